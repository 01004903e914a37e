"""Sealed objects: how an image rests on the volume, written as a stream and read at any place.

A sealed file is a header in clear, 64 bytes, and a Cobblestone-256 message (C2SP chunked-encryption v1:
AES-256-GCM over chunks of 16 KiB, the last one always shorter, a commitment to the key before them):

    "ASO1" | version 1 | suite 1 | log2 of the chunk size 14 | flags 0
    | object 16 | container 16 | customer 16 | generation of the container's key u32 | 0 u32   (big-endian)
    | salt 24 | commitment 32 | chunks of 16384 + 16 bytes | a last chunk of 0 to 16383 + 16 bytes

The whole header is the context of the message's keys: bytes that were put under another name, customer or key
do not open. The message's input key is HKDF-Expand-SHA256 of the container's key of that generation with the
info "appliance/v1/objects". A program that has it needs nothing else to read the file.
"""

import hmac
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn
from uuid import UUID

from cryptography.cobblestone import Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from appliance.errors import SealBroken
from appliance.volume import read_at_hand

CHUNK = 16384
HEADER_BYTES = 64

_MAGIC, _VERSION, _SUITE, _LOG2_CHUNK = b"ASO1", 1, 1, 14
_HEADER = struct.Struct(">4sBBBB16s16s16sII")
_INFO = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0"
_SALT, _COMMITMENT, _KEY, _NONCE, _TAG = 24, 32, 32, 12, 16
_FIRST_CHUNK = HEADER_BYTES + _SALT + _COMMITMENT
_SEALED_CHUNK = CHUNK + _TAG
_PIECE = 64 * CHUNK

_Pread = Callable[[int, int, int], bytes | bytearray]


@dataclass(frozen=True, slots=True)
class Name:
    """Whose object it is, in which container, and which one: a sealed file opens under this name alone."""

    customer: UUID
    container: UUID
    object: UUID


def sealed_size(length: int) -> int:
    """The size of a sealed file of `length` bytes."""
    full, rest = divmod(length, CHUNK)
    return _FIRST_CHUNK + full * _SEALED_CHUNK + rest + _TAG


class Sealer:
    """Seals one object as it comes: `header`, then what `update` gives, then what `finish` gives.

    `key` is the container's of this `generation`: 32 bytes. Memory: a chunk, and what `update` is given.
    """

    __slots__ = ("_encryptor", "header")

    def __init__(self, name: Name, generation: int, key: bytes) -> None:
        self.header = _header(name, generation)
        self._encryptor = Cobblestone256Encryptor(key, self.header)

    def update(self, data: bytes | bytearray | memoryview) -> bytes:
        """The next sealed bytes, which may be none."""
        return self._encryptor.update(data)

    def finish(self) -> bytes:
        """The last sealed bytes, exactly once."""
        return self._encryptor.finalize()


class SealedFile:
    """An open sealed file, read at any place in constant memory. For one thread at a time.

    A file of up to `ahead` bytes is read and proven as it is opened, and reading it then touches no disk.

    What cannot be what was sealed raises SealBroken, which names the object and the place; the header, the
    key and the length are proven when it is opened, each chunk before a byte of it is given out.

    `length` is what was sealed and `size` the file, in bytes; `etag` tells this file from every other, and
    nothing of its content; `key` opens this file and no other: the AES-256 key, then the base nonce.
    """

    __slots__ = (
        "_cipher",
        "_content",
        "_fd",
        "_name",
        "_nonce",
        "etag",
        "generation",
        "key",
        "length",
        "size",
    )

    def __init__(
        self, fd: int, name: Name, key_of: Callable[[int], bytes], ahead: int = 0, *, wait: bool = True
    ) -> None:
        """`key_of` gives the container's key of a generation, and raises SealBroken where there is none.

        Without `wait` NotAtHand is raised where the disk would have to be waited for.
        """
        read: _Pread = os.pread if wait else read_at_hand
        self._fd = fd
        self._name = name
        self.size = os.fstat(fd).st_size
        body = self.size - _FIRST_CHUNK
        wanted = self.size if self.size <= ahead else _FIRST_CHUNK
        start = read(fd, wanted, 0)
        if body < _TAG or body % _SEALED_CHUNK < _TAG or len(start) < wanted:
            self._broken("its length is none that a sealed file can have: it was cut or extended")
        header, salt, commitment = (
            bytes(start[:HEADER_BYTES]),
            bytes(start[HEADER_BYTES : HEADER_BYTES + _SALT]),
            start[HEADER_BYTES + _SALT : _FIRST_CHUNK],
        )
        self.generation = self._check_header(header)
        info = _INFO + salt + header
        expand = HKDFExpand(SHA512(), _KEY + _NONCE + _COMMITMENT, info)
        try:
            key = key_of(self.generation)
        except SealBroken as error:
            which = f"object {name.object}"
            raise SealBroken(f"{which}: {error}", told=f"{which}: {error.told}") from error
        derived = expand.derive(key)
        if not hmac.compare_digest(derived[_KEY + _NONCE :], commitment):
            self._broken(
                "its key does not fit: the start of the file was changed, or sealed with another key"
            )
        self.key = derived[: _KEY + _NONCE]
        self._cipher = AESGCM(derived[:_KEY])
        self._nonce = int.from_bytes(derived[_KEY : _KEY + _NONCE])
        full, rest = divmod(body, _SEALED_CHUNK)
        self.length = full * CHUNK + rest - _TAG
        self.etag = commitment[:16].hex()
        self._content: memoryview | None = None
        if self.size <= ahead:
            self._content = self._proven(memoryview(start)[_FIRST_CHUNK:], 0)
        else:
            self._opened(full, full + 1, read)  # a file of another length would need another last chunk

    def read(self, start: int, stop: int) -> memoryview:
        """The bytes from `start` up to `stop`.

        Raises ValueError for a range that is not within 0 to `length`.
        """
        return self._read(start, stop, os.pread)

    def read_at_hand(self, start: int, stop: int) -> memoryview:
        """As `read`, and never waits for the disk. Raises NotAtHand where it would have to."""
        return self._read(start, stop, read_at_hand)

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[memoryview]:
        """The bytes from `start` up to `stop`, in order, up to 1 MiB at once. Raises as `read`."""
        stop = self.length if stop is None else stop
        while True:
            end = min(stop, (start // _PIECE + 1) * _PIECE)
            yield self.read(start, end)
            if (start := end) >= stop:
                return

    def verify(self) -> None:
        """Read and prove every chunk."""
        for _ in self.pieces():
            pass

    def _read(self, start: int, stop: int, read: _Pread) -> memoryview:
        if not 0 <= start <= stop <= self.length:
            raise ValueError(f"bytes {start} to {stop} of {self.length}")
        if self._content is not None:
            return self._content[start:stop]
        if start == stop:
            return memoryview(b"")
        first, last = start // CHUNK, (stop - 1) // CHUNK + 1
        return self._opened(first, last, read)[start - first * CHUNK : stop - first * CHUNK]

    def _opened(self, first: int, last: int, read: _Pread) -> memoryview:
        """What the chunks `first` to `last` - 1 hold, each proven."""
        offset = _FIRST_CHUNK + first * _SEALED_CHUNK
        size = min((last - first) * _SEALED_CHUNK, self.size - offset)
        sealed = read(self._fd, size, offset)
        if len(sealed) < size:
            self._broken("it was cut while it was read")
        return self._proven(memoryview(sealed), first)

    def _proven(self, sealed: memoryview, first: int) -> memoryview:
        """What sealed chunks hold of which the first is number `first`, in memory of their own."""
        count = -(-len(sealed) // _SEALED_CHUNK)
        plain = memoryview(bytearray(len(sealed) - count * _TAG))
        for number in range(first, first + count):
            at, to = (number - first) * _SEALED_CHUNK, (number - first) * CHUNK
            nonce = (self._nonce ^ number).to_bytes(_NONCE)
            try:
                self._cipher.decrypt_into(
                    nonce, sealed[at : at + _SEALED_CHUNK], None, plain[to : to + CHUNK]
                )
            except InvalidTag:
                self._broken(f"chunk {number} is not what was sealed")
        return plain

    def _check_header(self, header: bytes) -> int:
        magic, version, suite, chunk, flags, *ids, generation, reserved = _HEADER.unpack(header)
        if magic != _MAGIC:
            self._broken("it is not a sealed file")
        if (version, suite, chunk, flags, reserved) != (_VERSION, _SUITE, _LOG2_CHUNK, 0, 0):
            self._broken("it is of a version that this appliance does not read, or its header was changed")
        if ids != [self._name.object.bytes, self._name.container.bytes, self._name.customer.bytes]:
            self._broken("it is another object's file")
        return int(generation)

    def _broken(self, reason: str) -> NoReturn:
        which = f"object {self._name.object}"
        raise SealBroken(f"{which}: {reason}", told=f"{which}: {SealBroken.told}")


def name_in(header: bytes) -> Name | None:
    """The name that a sealed file says it has, not proven; None when it does not start as one does."""
    if len(header) < HEADER_BYTES or not header.startswith(_MAGIC):
        return None
    *_, sealed, container, customer, _, _ = _HEADER.unpack(header[:HEADER_BYTES])
    return Name(UUID(bytes=customer), UUID(bytes=container), UUID(bytes=sealed))


def _header(name: Name, generation: int) -> bytes:
    ids = (name.object.bytes, name.container.bytes, name.customer.bytes)
    return _HEADER.pack(_MAGIC, _VERSION, _SUITE, _LOG2_CHUNK, 0, *ids, generation, 0)
