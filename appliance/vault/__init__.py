"""Keys and sealed data: the only door to cryptography."""

from appliance.vault.keys import Keys, at_hand, create_root, read_root, self_test

__all__ = ["Keys", "at_hand", "create_root", "read_root", "self_test"]
