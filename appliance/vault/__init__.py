"""Keys and sealed data: the only door to cryptography."""

from appliance.vault.keys import Keys, at_hand, create_root, read_root, self_test
from appliance.vault.signatures import create_signing_key, public_key, sign, signed_by

__all__ = [
    "Keys",
    "at_hand",
    "create_root",
    "create_signing_key",
    "public_key",
    "read_root",
    "self_test",
    "sign",
    "signed_by",
]
