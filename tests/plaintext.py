"""A search for what must be in no file, in each form that is easily read, at every offset.

Text and images are cut into pieces of 16 bytes, so that an unbroken run of 23 bytes of an image is found
wherever it lies.
"""

import base64
import binascii
import json
import math
import unicodedata
import zlib
from collections.abc import Iterable
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

PIECE = 16
_STEP = 8
_SPARSE = 256
_DISTINCT = 8  # a piece of fewer different bytes is padding, which is anybody's
_TABLE_BITS = 24
RANDOM = 6.0  # standard deviations: of a thousand random files one is beyond them in a million runs
_ODD = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))


class Plaintext:
    """What is searched for; `add` all of it, then search."""

    def __init__(self) -> None:
        self._pieces: set[bytes] = set()
        self._known: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._table: NDArray[np.bool_] = np.zeros(1 << _TABLE_BITS, np.bool_)

    def __len__(self) -> int:
        return len(self._pieces)

    def add(self, data: bytes) -> None:
        """Bytes that no part of may be found: as they are, and as whole in base64 and hexadecimal."""
        self._cut(data, _STEP)
        for encoded in _encoded(data):
            self._cut(encoded, _SPARSE)

    def add_word(self, word: str) -> None:
        """16 bytes of UTF-8 or more: in either case, composed or not, however text is written down."""
        cases = (word, word.lower(), word.upper(), word.casefold())
        for text in {unicodedata.normalize(form, cased) for form in ("NFC", "NFD") for cased in cases}:
            written = [text.encode(charset) for charset in ("utf-8", "utf-16-le", "utf-16-be")]
            written += [json.dumps(text).strip('"').encode(), quote(text).encode()]
            for data in written:
                assert len(data) >= PIECE
                self._pieces.update(one[:PIECE] for one in (data, *_encoded(data)))
        self._known = np.zeros(0, np.uint64)

    def places(self, file: bytes) -> list[int]:
        """Where in a file pieces of it begin."""
        if not self._known.size and self._pieces:
            self._prepare()
        found: list[int] = []
        for phase in range(_STEP):
            count = (len(file) - phase) // 8
            if count < 2:
                break
            hashed = _hashed(np.frombuffer(file, "<u8", count, phase))
            near = np.flatnonzero(self._table[hashed >> np.uint64(64 - _TABLE_BITS)])
            at = np.searchsorted(self._known, hashed[near])
            same = self._known[np.minimum(at, self._known.size - 1)] == hashed[near]
            found += [phase + 8 * int(word) for word in near[same]]
        return sorted(place for place in found if file[place : place + PIECE] in self._pieces)

    def _cut(self, data: bytes, step: int) -> None:
        pieces = (data[start : start + PIECE] for start in range(0, len(data) - PIECE + 1, step))
        self._pieces.update(piece for piece in pieces if len(set(piece)) >= _DISTINCT)
        self._known = np.zeros(0, np.uint64)

    def _prepare(self) -> None:
        words = np.frombuffer(b"".join(self._pieces), "<u8").reshape(-1, 2)
        self._known = np.sort(_mixed(words[:, 0], words[:, 1]))
        self._table[:] = False
        self._table[self._known >> np.uint64(64 - _TABLE_BITS)] = True


def randomness(data: bytes) -> float:
    """How far the bytes are from random ones, in standard deviations of Pearson's chi-square (255 degrees).

    Above 0 some values are too frequent, below all are too equal; random bytes stay within RANDOM.
    """
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    square = float(((counts - len(data) / 256) ** 2).sum() / (len(data) / 256))
    spread = 2 / (9 * 255)  # Wilson and Hilferty's approximation
    return float(((square / 255) ** (1 / 3) - (1 - spread)) / math.sqrt(spread))


def compressible(data: bytes) -> bool:
    """Whether deflate makes it smaller."""
    return len(zlib.compress(data, 6)) < len(data)


def is_random(data: bytes) -> bool:
    """Whether neither how often values come nor deflate tells it from random bytes."""
    return abs(randomness(data)) < RANDOM and not compressible(data)


def _encoded(data: bytes) -> Iterable[bytes]:
    for shift in range(3):
        yield base64.b64encode(bytes(shift) + data)[4 if shift else 0 : -4]
    yield binascii.hexlify(data)
    yield binascii.hexlify(data).upper()


def _hashed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return _mixed(words[:-1], words[1:])


def _mixed(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return (first * _ODD[0]) ^ (second * _ODD[1])
