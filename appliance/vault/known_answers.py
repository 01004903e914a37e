"""The proof at every start that the ciphers are what they claim: known answers of their standards."""

import hashlib
import hmac
import os
import uuid
from dataclasses import dataclass

from cryptography.cobblestone import Cobblestone256Decryptor
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from appliance.errors import SealBroken, SelfTestFailed
from appliance.vault import signatures
from appliance.vault.sealed import Name, SealedFile, Sealer


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
_VECTORS = 13


@dataclass(frozen=True, slots=True)
class _Message:
    """Wycheproof, c2sp_chunked_encryption_aes_256_gcm_test.json, all under one key: cases 2 and 9."""

    context: bytes
    sealed: bytes


_MESSAGE_KEY = b"YELLOW SUBMARINE YELLOW SUBMARIN"
_MESSAGE_DIGEST = bytes.fromhex("e85f32a85f1d4f7c")  # the first 8 bytes of SHA-512
_MESSAGES = (
    _Message(
        b"",
        bytes.fromhex(
            "a1a1b56f6db58cd1ede0c5c9db62aef20d3f96a6c594bb9252bb38122de91236502b42a1d7fcab820ffa292940d2f86add21"
            "2cfa42c38df19d3cc9139ee61a5990d3db57433514229beea49a8a72bd"
        ),
    ),
    _Message(
        b"test context",
        bytes.fromhex(
            "dbedaefc1c35dc6c0f22b743b03e488747166a51f33479e7ceb8b7e11cc0d2710f624a127501bc4aea7d0af6f83cfe359b9e"
            "69415aa537f36adf86eb35b070475baa039bb7791432adbca49578bbd3"
        ),
    ),
)


def self_test() -> None:
    """Known answers of every cipher in use, refusals of forgeries among them, and a sealed file read back.

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
    for number, message in enumerate(_MESSAGES, 1):
        _expect("Cobblestone-256 (C2SP chunked-encryption)", number, _message_holds(message))
        tested += 1
    if tested != _VECTORS:
        raise SelfTestFailed(f"{tested} of {_VECTORS} known answers were tested")
    _expect("the reader of sealed files", 1, _sealed_file_holds())


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


def _message_holds(message: _Message) -> bool:
    forged = message.sealed[:-1] + bytes([message.sealed[-1] ^ 1])
    plain = _opened(message.sealed, message.context)
    return (
        plain is not None
        and hashlib.sha512(plain).digest()[:8] == _MESSAGE_DIGEST
        and _opened(forged, message.context) is None
    )


def _opened(sealed: bytes, context: bytes) -> bytes | None:
    decryptor = Cobblestone256Decryptor(_MESSAGE_KEY, context)
    try:
        return decryptor.update(sealed) + decryptor.finalize()
    except InvalidTag:
        return None


def _sealed_file_holds() -> bool:
    """What Cobblestone writes, the appliance's own reader gives back; a forgery it refuses."""
    name = Name(uuid.UUID(int=1), uuid.UUID(int=2), uuid.UUID(int=3))
    sealer = Sealer(name, 1, _MESSAGE_KEY)
    plain = bytes(range(256)) * 65  # more than a chunk
    sealed = sealer.header + sealer.update(plain) + sealer.finish()
    fd = os.memfd_create("known answer", os.MFD_CLOEXEC)
    try:
        os.pwrite(fd, sealed, 0)
        read = b"".join(bytes(piece) for piece in SealedFile(fd, name, lambda _: _MESSAGE_KEY).pieces())
        os.pwrite(fd, bytes([sealed[-1] ^ 1]), len(sealed) - 1)
        return read == plain and _refused(fd, name)
    finally:
        os.close(fd)


def _refused(fd: int, name: Name) -> bool:
    try:
        SealedFile(fd, name, lambda _: _MESSAGE_KEY)
    except SealBroken:
        return True
    return False


def _expect(algorithm: str, case: int, held: bool) -> None:
    if not held:
        raise SelfTestFailed(f"{algorithm} gives a wrong answer for known case {case}: the library is broken")
