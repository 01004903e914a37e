"""Another program's reader of sealed files, written from the description alone: no code of the appliance."""

import struct

from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


def expand(key: bytes, info: bytes, size: int) -> bytes:
    """HKDF-Expand with SHA-512 (RFC 5869, section 2.3)."""
    made, block, number = b"", b"", 0
    while len(made) < size:
        number += 1
        mac = hmac.HMAC(key, hashes.SHA512())
        mac.update(block + info + bytes([number]))
        block = mac.finalize()
        made += block
    return made[:size]


def read(file: bytes, key: bytes) -> tuple[dict[str, object], bytes]:
    """What the header says, and the object. `key` is for objects, of the generation in the header."""
    magic, version, suite, log2, flags, sealed, container, customer, generation, reserved = struct.unpack(
        ">4sBBBB16s16s16sII", file[:64]
    )
    assert (magic, version, suite, log2, flags, reserved) == (b"ASO1", 1, 1, 14, 0, 0)
    header, salt, commitment, chunks = file[:64], file[64:88], file[88:120], file[120:]
    info = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0" + salt + header
    derived = expand(key, info, 32 + 12 + 32)
    assert derived[44:] == commitment
    plain = b""
    number, size = 0, 16384 + 16
    while True:
        chunk = chunks[number * size : (number + 1) * size]
        nonce = (int.from_bytes(derived[32:44]) ^ number).to_bytes(12)
        cipher = Cipher(algorithms.AES(derived[:32]), modes.GCM(nonce, chunk[-16:])).decryptor()
        plain += cipher.update(chunk[:-16]) + cipher.finalize()
        if len(chunk) < size:
            assert len(chunks) == number * size + len(chunk)
            ids = {"object": sealed, "container": container, "customer": customer}
            return {**ids, "generation": generation}, plain
        number += 1
