"""The root key, and what is derived from a key."""

import hmac
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from appliance.config import Vault
from appliance.errors import ConfigInvalid, InvalidInput, SealBroken
from appliance.systemd import credential
from appliance.vault import signatures

T = TypeVar("T")

KEY_BYTES = 32
CREDENTIAL = "root.key"

NODE = "node"
"""The label of the appliance's own signing key: what leaves it is signed with that one."""

_CONTEXT = b"appliance/v1/"
_WIPED = "the keys are wiped"
_NONCE_BYTES = 12  # NIST SP 800-38D, 8.2.2: random nonces are good for 2^32 messages under one key


def create_root() -> bytes:
    """A new root key: 32 bytes from the operating system's generator."""
    return os.urandom(KEY_BYTES)


def at_hand(config: Vault) -> bool:
    """Whether `read_root` has something to read: a credential is there in the process of its unit alone."""
    return config.root_key is not None or credential(CREDENTIAL) is not None


def read_root(config: Vault) -> bytearray:
    """The root key from `[vault] root_key`, or from the systemd credential `root.key` when that is unset.

    Raises ConfigInvalid, naming the fix, when it is missing, not exactly 32 bytes, or when the file may be
    read by anyone but its owner, who must be root or this process's user.
    """
    if config.root_key is not None:
        try:
            return read_key(config.root_key)
        except InvalidInput as error:
            raise _refused(str(error)) from None
    key = credential(CREDENTIAL)
    if key is None:
        raise _refused(f'not set, and systemd passed no credential "{CREDENTIAL}" (LoadCredentialEncrypted=)')
    if len(key) != KEY_BYTES:
        raise _refused(f'the credential "{CREDENTIAL}" has {len(key)} bytes instead of {KEY_BYTES}')
    return bytearray(key)


def read_key(path: Path) -> bytearray:
    """A root key from a file.

    Raises InvalidInput, naming the fix, when it is missing, not exactly 32 bytes, or when it may be read by
    anyone but its owner, who must be root or this process's user.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        fix = f"install -m 600 /dev/null {path} && head -c {KEY_BYTES} /dev/urandom > {path}"
        raise InvalidInput(f"{path} does not exist; for a new one: {fix}") from None
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidInput(f"{path} is not a regular file")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise InvalidInput(f"{path} has mode {mode:04o}, others may read it: chmod 600 {path}")
        if status.st_uid not in {0, os.geteuid()}:
            raise InvalidInput(f"{path} belongs to uid {status.st_uid}: chown it to the user who reads it")
        key = bytearray(KEY_BYTES)
        if status.st_size != KEY_BYTES or os.readv(fd, [key]) != KEY_BYTES:
            raise InvalidInput(f"{path} has {status.st_size} bytes instead of {KEY_BYTES} raw ones")
        return key
    finally:
        os.close(fd)


class Keys:
    """Labelled subkeys of one root key (HKDF-SHA256, RFC 5869); independent of each other by construction.

    Takes `root` over: a bytearray is wiped at once. After `wipe`, which may come from another thread in the
    midst of them, all calls raise ValueError. Immutable copies that `subkey` gave away are the caller's.
    """

    __slots__ = ("_root", "_subkeys")

    def __init__(self, root: bytes | bytearray) -> None:
        if len(root) != KEY_BYTES:
            raise ValueError(f"a root key has {KEY_BYTES} bytes, not {len(root)}")
        self._root = bytearray(root)
        self._subkeys: dict[str, bytearray] = {}
        if isinstance(root, bytearray):
            _wipe(root)

    def subkey(self, label: str) -> bytes:
        """The 32-byte key for `label`: HKDF-Expand of the root with info "appliance/v1/LABEL"."""
        return self._using(label, bytes)

    def mac(self, label: str, data: bytes | bytearray | memoryview) -> bytes:
        """HMAC-SHA256 (32 bytes) of `data` under the subkey of `label`."""
        return self._using(label, lambda key: hmac.digest(key, data, "sha256"))

    def seal(self, label: str, data: bytes, context: bytes) -> bytes:
        """`data` under AES-256-GCM with the subkey of `label`, bound to `context`; its nonce comes first."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._using(label, lambda key: AESGCM(key).encrypt(nonce, data, context))

    def unseal(self, label: str, sealed: bytes, context: bytes) -> bytes:
        """What `seal` was given. Raises SealBroken when it was sealed otherwise or has changed."""
        try:
            return AESGCM(self._cached(label)).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError):
            raise SealBroken(f"what was sealed as {label} does not open: it was changed") from None

    def sign(self, label: str, message: bytes) -> bytes:
        """An Ed25519 signature (64 bytes) of the message; the private key is the subkey of `label`."""
        return self._using(label, lambda key: signatures.sign(key, message))

    def public(self, label: str) -> str:
        """What verifies the signatures of `sign`: the public key in base64, see `signed_by`."""
        return self._using(label, signatures.public_key)

    def wipe(self) -> None:
        """Overwrite the root and every derived key."""
        root, self._root = self._root, bytearray()  # first: whoever is at work looks for it when he is done
        subkeys, self._subkeys = self._subkeys, {}
        for key in (root, *subkeys.values()):
            _wipe(key)

    def __repr__(self) -> str:
        return "Keys(...)"

    def _using(self, label: str, use: Callable[[bytearray], T]) -> T:
        """What `use` makes of the subkey, unless that was overwritten meanwhile: zeros are no key."""
        key = self._cached(label)
        made = use(key)
        if not self._root:
            _wipe(key)
            raise ValueError(_WIPED)
        return made

    def _cached(self, label: str) -> bytearray:
        found = self._subkeys.get(label)
        if found is None:
            subkeys, root = self._subkeys, self._root
            if not root:
                raise ValueError(_WIPED)
            expand = HKDFExpand(SHA256(), KEY_BYTES, _CONTEXT + label.encode())
            found = subkeys[label] = bytearray(expand.derive(root))
        return found


def _refused(reason: str) -> ConfigInvalid:
    return ConfigInvalid([f"vault.root_key: {reason}"])


def _wipe(key: bytearray) -> None:
    key[:] = bytes(len(key))
