"""Keys and sealed data: the only door to cryptography."""

from appliance.vault.envelope import enveloped, opened, signed, unwrapped, wrapped
from appliance.vault.keyring import Container, Generations, Keyring, Kind, ballast_of, identity_of
from appliance.vault.keys import KEY_BYTES, NODE, Keys, at_hand, create_root, read_key, read_root
from appliance.vault.known_answers import self_test
from appliance.vault.opening import open_keyring
from appliance.vault.sealed import Name, SealedFile, Sealer, name_in, sealed_size
from appliance.vault.signatures import create_signing_key, public_key, sign, signed_by

__all__ = [
    "KEY_BYTES",
    "NODE",
    "Container",
    "Generations",
    "Keyring",
    "Keys",
    "Kind",
    "Name",
    "SealedFile",
    "Sealer",
    "at_hand",
    "ballast_of",
    "create_root",
    "create_signing_key",
    "enveloped",
    "identity_of",
    "name_in",
    "open_keyring",
    "opened",
    "public_key",
    "read_key",
    "read_root",
    "sealed_size",
    "self_test",
    "sign",
    "signed",
    "signed_by",
    "unwrapped",
    "wrapped",
]
