"""Backup and restore of the whole state: as ciphertext, its keyring apart, verified both ways."""
