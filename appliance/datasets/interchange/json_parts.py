"""A JSON object (RFC 8259) that comes in pieces, as objects of their size that together say the same.

A part ends behind an element of a member that is a list or an object, or behind such a member, and is
completed: `{"a": [{}, {}, {}]}` is `{"a": [{}, {}]}` and `{"a":[{}]}`. Between parts lies a comma, which is
checked here; all else is for the decoder of the parts, which takes them all just where it takes the whole.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_VALUE = 4 << 20
"""Bytes that may come without a value's end to cut behind: what is made of them is fifty times as large."""

_MOST_NAME = 1024  # bytes of a member that is cut: its parts repeat it

_OPENS, _CLOSES, _QUOTE = 1, -1, 2
_KINDS = bytes(
    _OPENS if byte in b"[{" else _CLOSES & 0xFF if byte in b"]}" else _QUOTE if byte == 0x22 else 0
    for byte in range(256)
)
_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_JOINT = re.compile(rb"[ \t\r\n]*+(?:,[ \t\r\n]*+(?![\]},])|(?=[\]}]|\Z))")
_CLOSING = {b"[": b"]}", b"{": b"}}"}

_Places = NDArray[np.int64]


class Part(NamedTuple):
    """An object of JSON. Where it begins in the middle of a member, that is its first, and `goes_on` its name
    as JSON. Byte N of `text` is byte `offset` + N of the whole.
    """

    text: bytes
    goes_on: bytes | None
    offset: int


class _Member(NamedTuple):
    """A member of the whole that is a list or an object: its name as JSON, and its bracket."""

    name: bytes
    bracket: bytes


class Parts:
    """Cuts an object. Raises ValueError, saying what and where, for what no decoder would see."""

    def __init__(self) -> None:
        self._rest = bytearray()  # what is not cut off yet
        self._offset = 0  # where in the whole it begins
        self._member: _Member | None = None  # that it begins in
        self._opened: _Member | None = None  # the latest
        self._cuts = 0
        # Of what was seen at its end: how deep it is, and whether in a string and behind a backslash.
        self._depth = 0
        self._within = False
        self._escaped = False
        self._quotes: _Places = np.zeros(0, np.int64)  # the last two

    def feed(self, piece: bytes) -> Iterator[Part]:
        """What can be cut off now. Takes time in proportion to the piece, whatever it holds."""
        if not piece:
            return
        places, steps, depths = self._brackets(piece)
        self._rest += piece
        closes = steps == _CLOSES
        member_ends = places[closes & (depths == 1)]
        openings = places[(steps == _OPENS) & (depths == 2)]
        cuts = np.flatnonzero(closes & ((depths == 1) | (depths == 2)))
        if cuts.size:
            last, within = int(places[cuts[-1]]), depths[cuts[-1]] == 2
            if self._member is not None and member_ends.size and member_ends[0] < last:
                yield self._cut(int(member_ends[0]), None)  # another one of its name may follow
            if (before := openings[openings < last]).size:
                self._opened = self._member_at(int(before[-1]))
            if not within or self._opened is not None:
                yield self._cut(last, self._opened if within else None)
        if openings.size and openings[-1] >= self._offset:
            self._opened = self._member_at(int(openings[-1]))
        if len(self._rest) > MOST_VALUE:
            raise ValueError(f"a value in it has more than {MOST_VALUE >> 20} MiB (byte {self._offset})")

    def close(self) -> Part:
        """The rest, which is as whole as what came."""
        return self._part(len(self._rest), b"")

    def _brackets(self, piece: bytes) -> tuple[_Places, _Places, _Places]:
        """The brackets of a piece that are in no string: their places in the whole, which, how deep it is."""
        if self._escaped:
            piece = b"_" + piece[1:]
        if b"\\" in piece:
            piece = _ESCAPED.sub(b"__", piece)
        self._escaped = piece.endswith(b"\\")
        kinds = np.frombuffer(piece.translate(_KINDS), np.int8)
        marks = np.flatnonzero(kinds)
        places, kinds = marks + (self._offset + len(self._rest)), kinds[marks]
        quotes = kinds == _QUOTE
        within = (np.cumsum(quotes) + self._within) % 2 == 1
        self._quotes = np.concatenate([self._quotes[-2:], places[quotes]])
        if within.size:
            self._within = bool(within[-1])
        outside = ~(quotes | within)
        places, steps = places[outside], kinds[outside].astype(np.int64)
        depths = self._depth + np.cumsum(steps)
        if depths.size:
            self._depth = int(depths[-1])
        return places, steps, depths

    def _member_at(self, place: int) -> _Member | None:
        """The member whose bracket is there; None where it is not cut, or has no name, which nobody takes."""
        end = int(np.searchsorted(self._quotes, place))
        if end < 2:
            return None
        first, last = (int(quote) - self._offset for quote in self._quotes[end - 2 : end])
        if first < 0 or last - first > _MOST_NAME:
            return None
        place -= self._offset
        return _Member(bytes(self._rest[first : last + 1]), bytes(self._rest[place : place + 1]))

    def _cut(self, last: int, member: _Member | None) -> Part:
        """All up to this place; the rest is in the middle of that member."""
        size = last + 1 - self._offset
        part = self._part(size, b"}" if member is None else _CLOSING[member.bracket])
        del self._rest[:size]
        self._offset = last + 1
        self._member = member
        self._cuts += 1
        return part

    def _part(self, size: int, closing: bytes) -> Part:
        text, member = bytes(self._rest[:size]), self._member
        if not self._cuts:
            return Part(text + closing, None, self._offset)
        joint = _JOINT.match(text)
        if joint is None:
            raise ValueError(f"JSON is malformed: a comma and a value are expected (byte {self._offset})")
        head = b"{" if member is None else b"{" + member.name + b":" + member.bracket
        offset = self._offset + joint.end() - len(head)
        return Part(head + text[joint.end() :] + closing, None if member is None else member.name, offset)
