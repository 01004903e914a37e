"""Items of feeds in JSON, JSON lines and CSV, and whatever a feed is: found out from its first bytes.

Readers take a feed in pieces of any size and hold no more of it than the item under way. They are strict: a
feed that does not go on as it began is refused, and so is one that ends within an item or a list.
"""

import codecs
import csv
import json
import re
import zlib
from collections.abc import Generator, Iterator
from typing import Any, NoReturn, Protocol

from appliance.errors import InvalidInput
from appliance.search.sync.elements import MOST_ITEM, Elements
from appliance.search.sync.mapping import Mapping, Raw

MOST_COLUMNS = 1000
MOST_COLUMN_NAME = 256

_HEAD = 64 << 10  # of blanks before the first character that tells the format
_UNPACKED = 1 << 20
_GZIP = b"\x1f\x8b"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_DELIMITERS = ",;\t|"
_SPACES = re.compile(r"[ \t\r\n]*")
_ENDS = "the feed ends within an item or a list: it is not whole"


class Reader(Protocol):
    """Takes a feed in pieces and gives its items as they end. Raises InvalidInput."""

    def feed(self, piece: bytes) -> list[Raw]:
        """The items that end in this piece."""

    def close(self) -> list[Raw]:
        """After the last piece: what ends with the feed."""


class Unpacked:
    """What a feed is behind gzip (RFC 1952), and itself where it is not packed."""

    def __init__(self) -> None:
        self._head: bytes | None = b""
        self._unpacker: Any = None

    def pieces(self, piece: bytes) -> Iterator[bytes]:
        """At most a megabyte each. Raises InvalidInput."""
        if self._head is not None:
            self._head += piece
            if len(self._head) < len(_GZIP):
                return
            piece, self._head = self._head, None
            if piece.startswith(_GZIP):
                self._unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
        if self._unpacker is None:
            yield piece
            return
        try:
            while piece:
                yield self._unpacker.decompress(piece, _UNPACKED)
                piece = self._unpacker.unconsumed_tail
        except zlib.error:
            raise InvalidInput("the feed is not whole: its gzip does not unpack") from None
        if self._unpacker.unused_data:
            raise InvalidInput("the feed goes on behind the end of its gzip")

    def close(self) -> bytes:
        """What is left at the end."""
        if self._unpacker is not None and not self._unpacker.eof:
            raise InvalidInput("the feed is not whole: its gzip does not end")
        return self._head or b""


class Feed:
    """A reader that is what the mapping says, or what the feed begins as."""

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping
        self._head = b""
        self._reader: Reader | None = None

    def feed(self, piece: bytes) -> list[Raw]:
        if self._reader is None:
            self._head += piece
            self._reader = self._chosen()
            if self._reader is None:
                return []
            piece, self._head = self._head, b""
        return self._reader.feed(piece)

    def close(self) -> list[Raw]:
        if self._reader is not None:
            return self._reader.close()
        if self._head.strip(b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n"):
            raise InvalidInput("the feed is in no known format")
        return []

    def _chosen(self) -> Reader | None:
        mapping = self._mapping
        path = () if mapping.items is None else tuple(mapping.items.split("."))
        match mapping.format if mapping.format != "auto" else self._begins():
            case "xml":
                return Elements(mapping.items)
            case "json":
                return Objects(path, lines=False)
            case "jsonl":
                return Objects((), lines=True)
            case "{":  # a line, or the object in which the list is
                return Objects(path, lines=not path)
            case "csv":
                return Rows()
            case _:
                return None

    def _begins(self) -> str | None:
        utf_16 = self._head.startswith(_UTF_16)
        start = self._head[:_HEAD].decode("utf-16" if utf_16 else "utf-8-sig", "ignore").lstrip()
        if not start:
            if len(self._head) > _HEAD:
                raise InvalidInput("the feed begins with nothing but blanks")
            return None
        return {"<": "xml", "[": "json", "{": "{"}.get(start[0], "csv")


class _Text:
    """Bytes as text: UTF-8, with its mark or without, or UTF-16 with it."""

    def __init__(self) -> None:
        self._decoder: codecs.IncrementalDecoder | None = None
        self._head = b""
        self._before = 0

    def decode(self, piece: bytes, *, last: bool = False) -> str:
        if self._decoder is None:
            self._head += piece
            if len(self._head) < 2 and not last:
                return ""
            piece, self._head = self._head, b""
            name = "utf-16" if piece.startswith(_UTF_16) else "utf-8-sig"
            self._decoder = codecs.getincrementaldecoder(name)("strict")
        try:
            text = self._decoder.decode(piece, last)
        except UnicodeDecodeError:
            reason = f"is no UTF-8 text at about byte {self._before}: save it as UTF-8"
            raise InvalidInput(f"the feed {reason}") from None
        self._before += len(piece)
        return text


class Objects:
    """JSON: a list of objects, which is the whole document or lies at `path` in it, or an object a line."""

    def __init__(self, path: tuple[str, ...], *, lines: bool) -> None:
        self._decoder = json.JSONDecoder(parse_constant=_no_number)
        self._encoding = _Text()
        self._text = ""
        self._at = 0
        self._last = False
        self._number = 0
        self._found: list[Raw] = []
        self._reading = self._lines() if lines else self._document(path)

    def feed(self, piece: bytes) -> list[Raw]:
        return self._go_on(self._encoding.decode(piece))

    def close(self) -> list[Raw]:
        self._last = True
        return self._go_on(self._encoding.decode(b"", last=True))

    def _go_on(self, text: str) -> list[Raw]:
        self._text, self._at = self._text[self._at :] + text, 0
        next(self._reading, None)
        found, self._found = self._found, []
        return found

    # What follows is one parser that pauses (`yield`) wherever it needs more of the text.

    def _lines(self) -> Generator[None, None, None]:
        while (yield from self._next()) == "{":
            yield from self._item()
        yield from self._nothing_more()

    def _document(self, path: tuple[str, ...]) -> Generator[None, None, None]:
        for name in path:
            yield from self._take("{")
            yield from self._find(name)
        yield from self._take("[")
        more = (yield from self._next()) != "]"
        while more:
            yield from self._item()
            more = (yield from self._next()) == ","
            if more:
                self._at += 1
        yield from self._take("]")
        for _ in path:
            yield from self._pass_members()
        yield from self._nothing_more()

    def _item(self) -> Generator[None, None, None]:
        self._number += 1
        yield from self._expect("{")
        item = yield from self._value()
        self._found.append(item)  # looked up now: while this paused, those before were given away

    def _find(self, name: str) -> Generator[None, None, None]:
        """Go behind the colon of this member."""
        while True:
            key = yield from self._key()
            if key == name:
                return
            yield from self._value()
            if (yield from self._next()) != ",":
                raise InvalidInput(f"the feed has no list where mapping.items says: there is no {name[:64]}")
            self._at += 1

    def _pass_members(self) -> Generator[None, None, None]:
        """Go to the end of an object of which some members have been read."""
        while (yield from self._next()) == ",":
            self._at += 1
            yield from self._key()
            yield from self._value()
        yield from self._take("}")

    def _key(self) -> Generator[None, None, str]:
        yield from self._expect('"')
        key: str = yield from self._value()
        yield from self._take(":")
        return key

    def _value(self) -> Generator[None, None, Any]:
        yield from self._next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                # A number may go on in the next piece.
                if end < len(self._text) or self._last or not isinstance(value, int | float):
                    self._at = end
                    return value
            except RecursionError:
                self._refuse("it is nested too deep")
            except ValueError:
                if self._last:
                    self._refuse("it is no JSON, or the feed ends within it")
            if len(self._text) - self._at > MOST_ITEM:
                self._refuse(f"it is no JSON, or larger than {MOST_ITEM >> 20} MiB")
            yield

    def _next(self) -> Generator[None, None, str]:
        """The next character that is no blank, empty at the end; it is not taken."""
        while True:
            found = _SPACES.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if self._last:
                return ""
            yield

    def _take(self, expected: str) -> Generator[None, None, None]:
        yield from self._expect(expected)
        self._at += 1

    def _expect(self, expected: str) -> Generator[None, None, None]:
        found = yield from self._next()
        if not found:
            raise InvalidInput(_ENDS)
        if found != expected:
            self._refuse(f"{expected} is expected")

    def _nothing_more(self) -> Generator[None, None, None]:
        if (yield from self._next()):
            self._refuse("something else follows")

    def _refuse(self, reason: str) -> NoReturn:
        raise InvalidInput(f"the feed cannot be read at item {self._number}: {reason}")


class Rows:
    """CSV (RFC 4180) with a row of names first; its delimiter is the one that this row has most of."""

    def __init__(self) -> None:
        csv.field_size_limit(MOST_ITEM)
        self._encoding = _Text()
        self._rest = ""
        self._lines: list[str] = []
        self._size = 0
        self._quoted = False
        self._number = 0
        self._delimiter = ","
        self._names: list[str] | None = None

    def feed(self, piece: bytes) -> list[Raw]:
        *lines, self._rest = (self._rest + self._encoding.decode(piece)).split("\n")
        return self._take(lines)

    def close(self) -> list[Raw]:
        lines = (self._rest + self._encoding.decode(b"", last=True)).split("\n")
        found = self._take(lines)
        if self._quoted:
            raise InvalidInput(_ENDS)
        return found

    def _take(self, lines: list[str]) -> list[Raw]:
        found: list[Raw] = []
        for line in lines:
            self._lines.append(f"{line}\n")
            self._size += len(line) + 1
            self._quoted ^= bool(line.count('"') & 1)
            if not self._quoted and (self._names is None or self._size > _HEAD):
                found += self._rows()
            if self._size > MOST_ITEM:
                break
        if not self._quoted:
            found += self._rows()
        if self._size + len(self._rest) > MOST_ITEM:
            raise InvalidInput(
                f"the feed has a row of more than {MOST_ITEM >> 20} MiB at line {self._number + 1}"
            )
        return found

    def _rows(self) -> Iterator[Raw]:
        """Of the lines that wait, which are whole rows."""
        lines, self._lines, self._size = self._lines, [], 0
        if self._names is None and any(line.strip() for line in lines):
            head = "".join(lines)
            self._delimiter = max(_DELIMITERS, key=head.count)
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        try:
            for row in reader:
                if row and self._names is None:
                    self._names = self._header(row)
                elif row and self._names is not None:
                    if len(row) != len(self._names):
                        self._refuse(reader.line_num, f"{len(row)} fields instead of {len(self._names)}")
                    yield {name: value for name, value in zip(self._names, row, strict=True) if value}
        except csv.Error:
            self._refuse(reader.line_num, "quotes are not closed, or a field is too large")
        self._number += len(lines)

    def _header(self, row: list[str]) -> list[str]:
        names = [name.strip() for name in row]
        if len(names) > MOST_COLUMNS or max(map(len, names)) > MOST_COLUMN_NAME:
            raise InvalidInput(f"the feed has more than {MOST_COLUMNS} columns, or too long names of them")
        if len(set(names)) < len(names):
            raise InvalidInput("the feed has two columns of the same name")
        return names

    def _refuse(self, line: int, reason: str) -> NoReturn:
        raise InvalidInput(f"the feed is no CSV at line {self._number + line}: {reason}")


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)
