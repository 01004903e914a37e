"""Texts of annotation files: their encoding, their numbers, and many of them held in little memory."""

import zlib
from collections.abc import Iterator

from appliance.errors import InvalidInput

_EXACT = 1 << 53  # whole numbers below it are exact
_PIECE = 64 << 10

MOST_FIELD = 131_072
"""Characters of one field of a CSV file. The csv module has one limit for all readers: each sets its own."""


def decoded(path: str, content: bytes) -> str:
    """A file as text: UTF-8, or UTF-16 with its mark as spreadsheets save it. Raises InvalidInput."""
    utf_16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return content.decode("utf-16" if utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: is no UTF-8 text at byte {error.start}: save it as UTF-8") from None


def number(value: float) -> float:
    """A finite number as it is written: whole numbers without a point."""
    return int(value) if -_EXACT < value < _EXACT and value == int(value) else value


def unread(error: Exception, expected: str) -> str:
    """Why msgspec read no JSON object: `expected`, save for a number that is JSON and no float holds."""
    return "a number is out of range" if "out of range" in str(error) else expected


class Spool:
    """Bytes that are written once and read once, compressed in between."""

    def __init__(self) -> None:
        self._compressor = zlib.compressobj(1)
        self._waiting = bytearray()
        self._pieces: list[bytes] = []

    def write(self, content: bytes) -> None:
        self._waiting += content
        if len(self._waiting) >= _PIECE:
            self._pieces.append(self._compressor.compress(self._waiting))
            self._waiting.clear()

    def pieces(self) -> Iterator[bytes]:
        """All that was written; nothing can be added then."""
        self._pieces.append(self._compressor.compress(self._waiting) + self._compressor.flush())
        decompressor = zlib.decompressobj()
        for compressed in self._pieces:
            yield decompressor.decompress(compressed)
        yield decompressor.flush()
