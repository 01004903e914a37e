"""The root key, what is derived from it, and the proof at start that the ciphers are what they claim."""

import hashlib
import hmac
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from appliance.config import Vault
from appliance.errors import ConfigInvalid, SelfTestFailed, StorageFailed
from appliance.systemd import credential
from appliance.vault import signatures

KEY_BYTES = 32
CREDENTIAL = "root.key"
_CONTEXT = b"appliance/v1/"
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
        return _read_file(config.root_key)
    key = credential(CREDENTIAL)
    if key is None:
        raise _refused(f'not set, and systemd passed no credential "{CREDENTIAL}" (LoadCredentialEncrypted=)')
    if len(key) != KEY_BYTES:
        raise _refused(f'the credential "{CREDENTIAL}" has {len(key)} bytes instead of {KEY_BYTES}')
    return bytearray(key)


class Keys:
    """Labelled subkeys of one root key (HKDF-SHA256, RFC 5869); independent of each other by construction.

    Takes `root` over: a bytearray is wiped at once. After `wipe` every call raises ValueError. Immutable
    copies that `subkey` gave away are the caller's.
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
        return bytes(self._cached(label))

    def mac(self, label: str, data: bytes) -> bytes:
        """HMAC-SHA256 (32 bytes) of `data` under the subkey of `label`."""
        return hmac.digest(self._cached(label), data, "sha256")

    def seal(self, label: str, data: bytes, context: bytes) -> bytes:
        """`data` under AES-256-GCM with the subkey of `label`, bound to `context`; its nonce comes first."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + AESGCM(self._cached(label)).encrypt(nonce, data, context)

    def unseal(self, label: str, sealed: bytes, context: bytes) -> bytes:
        """What `seal` was given. Raises StorageFailed when it was sealed otherwise or has changed."""
        try:
            return AESGCM(self._cached(label)).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError):
            raise StorageFailed(f"what was sealed as {label} does not open: it was changed") from None

    def wipe(self) -> None:
        """Overwrite the root and every derived key."""
        for key in (self._root, *self._subkeys.values()):
            _wipe(key)
        self._root = bytearray()
        self._subkeys.clear()

    def __repr__(self) -> str:
        return "Keys(...)"

    def _cached(self, label: str) -> bytearray:
        found = self._subkeys.get(label)
        if found is None:
            if not self._root:
                raise ValueError("the keys are wiped")
            expand = HKDFExpand(SHA256(), KEY_BYTES, _CONTEXT + label.encode())
            found = self._subkeys[label] = bytearray(expand.derive(self._root))
        return found


def _read_file(path: Path) -> bytearray:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        fix = f"install -m 600 /dev/null {path} && head -c {KEY_BYTES} /dev/urandom > {path}"
        raise _refused(f"{path} does not exist; for a new appliance: {fix}") from None
    except OSError as error:
        raise _refused(f"{path}: {error.strerror}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _refused(f"{path} is not a regular file")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise _refused(f"{path} has mode {mode:04o}, others may read it: chmod 600 {path}")
        if status.st_uid not in {0, os.geteuid()}:
            raise _refused(f"{path} belongs to uid {status.st_uid}: chown it to the daemon's user")
        key = bytearray(KEY_BYTES)
        if status.st_size != KEY_BYTES or os.readv(fd, [key]) != KEY_BYTES:
            raise _refused(f"{path} has {status.st_size} bytes instead of {KEY_BYTES} raw ones")
        return key
    finally:
        os.close(fd)


def _refused(reason: str) -> ConfigInvalid:
    return ConfigInvalid([f"vault.root_key: {reason}"])


def _wipe(key: bytearray) -> None:
    key[:] = bytes(len(key))


@dataclass(frozen=True, slots=True)
class _Expansion:
    """RFC 5869, appendix A; `salt` None stands for "not provided"."""

    ikm: bytes
    salt: bytes | None
    info: bytes
    prk: bytes
    okm: bytes


@dataclass(frozen=True, slots=True)
class _Mac:
    """RFC 4231, section 4."""

    key: bytes
    data: bytes
    mac: bytes


@dataclass(frozen=True, slots=True)
class _Sealed:
    """McGrew and Viega, "The Galois/Counter Mode of Operation", appendix B."""

    key: bytes
    nonce: bytes
    plain: bytes
    associated: bytes
    sealed: bytes


_EXPANSIONS = (
    _Expansion(
        b"\x0b" * 22,
        bytes(range(0x0D)),
        bytes(range(0xF0, 0xFA)),
        bytes.fromhex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"),
        bytes.fromhex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"),
    ),
    _Expansion(
        bytes(range(0x50)),
        bytes(range(0x60, 0xB0)),
        bytes(range(0xB0, 0x100)),
        bytes.fromhex("06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244"),
        bytes.fromhex(
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
            "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87"
        ),
    ),
    _Expansion(
        b"\x0b" * 22,
        b"",
        b"",
        bytes.fromhex("19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04"),
        bytes.fromhex("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"),
    ),
)
_MACS = (
    _Mac(
        b"\x0b" * 20,
        b"Hi There",
        bytes.fromhex("b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
    ),
    _Mac(
        b"Jefe",
        b"what do ya want for nothing?",
        bytes.fromhex("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
    ),
    _Mac(
        b"\xaa" * 20,
        b"\xdd" * 50,
        bytes.fromhex("773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
    ),
    _Mac(
        b"\xaa" * 131,
        b"Test Using Larger Than Block-Size Key - Hash Key First",
        bytes.fromhex("60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"),
    ),
)
_GCM_KEY = bytes.fromhex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308")
_GCM_PLAIN = bytes.fromhex(
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
)
_GCM_CIPHER = bytes.fromhex(
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
    "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
)
_GCM_NONCE = bytes.fromhex("cafebabefacedbaddecaf888")
_SEALED = (
    _Sealed(bytes(32), bytes(12), b"", b"", bytes.fromhex("530f8afbc74536b9a963b4f1c4cb738b")),
    _Sealed(
        bytes(32),
        bytes(12),
        bytes(16),
        b"",
        bytes.fromhex("cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"),
    ),
    _Sealed(
        _GCM_KEY,
        _GCM_NONCE,
        _GCM_PLAIN,
        b"",
        _GCM_CIPHER + bytes.fromhex("b094dac5d93471bdec1a502270e3cc6c"),
    ),
    _Sealed(
        _GCM_KEY,
        _GCM_NONCE,
        _GCM_PLAIN[:60],
        bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2"),
        _GCM_CIPHER[:60] + bytes.fromhex("76fc6ece0f4e1768cddf8853bb2d551b"),
    ),
)
_VECTORS = 11


def self_test() -> None:
    """Known answers of HKDF-SHA256, HMAC-SHA256, AES-256-GCM and Ed25519, refusals of forgeries among them.

    Raises SelfTestFailed naming the first algorithm and case that differ, or a missing case.
    """
    signatures.self_test()
    tested = 0
    for number, case in enumerate(_EXPANSIONS, 1):
        extracted = hmac.digest(case.salt or bytes(32), case.ikm, hashlib.sha256)
        expanded = HKDFExpand(SHA256(), len(case.okm), case.info).derive(case.prk)
        whole = HKDF(SHA256(), len(case.okm), case.salt, case.info).derive(case.ikm)
        _expect("HKDF-SHA256 (RFC 5869)", number, extracted == case.prk and expanded == whole == case.okm)
        tested += 1
    for number, vector in enumerate(_MACS, 1):
        computed = hmac.digest(vector.key, vector.data, "sha256")
        _expect("HMAC-SHA256 (RFC 4231)", number, computed == vector.mac)
        tested += 1
    for number, sample in enumerate(_SEALED, 1):
        _expect("AES-256-GCM", number, _gcm_holds(sample))
        tested += 1
    if tested != _VECTORS:
        raise SelfTestFailed(f"{tested} of {_VECTORS} known answers were tested")


def _gcm_holds(sample: _Sealed) -> bool:
    cipher = AESGCM(sample.key)
    forged = sample.sealed[:-1] + bytes([sample.sealed[-1] ^ 1])
    try:
        cipher.decrypt(sample.nonce, forged, sample.associated)
    except InvalidTag:
        sealed = cipher.encrypt(sample.nonce, sample.plain, sample.associated)
        opened = cipher.decrypt(sample.nonce, sample.sealed, sample.associated)
        return sealed == sample.sealed and opened == sample.plain
    return False


def _expect(algorithm: str, case: int, held: bool) -> None:
    if not held:
        raise SelfTestFailed(f"{algorithm} gives a wrong answer for known case {case}: the library is broken")
