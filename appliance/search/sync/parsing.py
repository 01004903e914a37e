"""Reads feeds in a process of its own, which is locked in and then ends.

A feed is a stranger's text of any length: what parses it must hold neither a key nor the loop that serves
everybody else, and may be lost.
"""

import codecs
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from appliance.channel import Channel, Limits
from appliance.errors import ApplianceError, TooLarge, WorkerLost
from appliance.search.sync.formats import Feed, Unpacked
from appliance.search.sync.mapping import Mapped, Mapper, Mapping, Raw, Unusable
from appliance.workers import Worker

SECONDS = 60.0
MOST_ID = 1 << 10
MOST_URL = 2048

_PIECE = 256 << 10
_AT_ONCE = 250  # items of one answer
_ANSWER_BYTES = 2 << 20
_MEMORY_BYTES = 1 << 30  # Python with its libraries, and a piece with what is made of it
# What feeds call their encodings in which shops of the EU still write XML.
_ENCODINGS = ("utf-8-sig", "utf-16", "windows-1250", "windows-1252", "iso-8859-2", "iso-8859-15")


class Item(msgspec.Struct, frozen=True, array_like=True):
    """An item of a feed: what becomes its record, or, with `fault`, why nothing does.

    `metadata` is JSON, the same for the same values. `id` is empty where the item has none.
    """

    id: str
    url: str
    metadata: bytes
    fault: str


class _Start(msgspec.Struct, frozen=True, array_like=True, tag=0):
    mapping: Mapping
    most_metadata: int


class _Piece(msgspec.Struct, frozen=True, array_like=True, tag=1):
    content: bytes


class _More(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """What did not fit into the answer before."""


class _End(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """There are no more pieces."""


class _Some(msgspec.Struct, frozen=True, array_like=True):
    items: list[Item]
    more: bool


_REQUEST: msgspec.msgpack.Decoder[_Start | _Piece | _More | _End] = msgspec.msgpack.Decoder(
    _Start | _Piece | _More | _End
)
_SOME = msgspec.msgpack.Decoder(_Some)
_encode = msgspec.msgpack.encode


class Parser:
    """A feed that is read as it comes. Raises InvalidInput for what is no feed, TooLarge, WorkerLost."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def feed(self, piece: bytes) -> AsyncIterator[list[Item]]:
        """The items that end in a piece of any size."""
        for start in range(0, len(piece), _PIECE):
            async for some in self._asked(_Piece(piece[start : start + _PIECE])):
                yield some

    async def close(self) -> AsyncIterator[list[Item]]:
        """The last items; a feed that is not whole is refused here at the latest."""
        async for some in self._asked(_End()):
            yield some

    async def _asked(self, request: _Piece | _End) -> AsyncIterator[list[Item]]:
        asked: _Piece | _End | _More = request
        while True:
            try:
                some = _SOME.decode(await self._worker.call(_encode(asked), SECONDS))
            except (WorkerLost, msgspec.MsgspecError):
                raise TooLarge("the feed could not be read in the time and memory that there is") from None
            if some.items:
                yield some.items
            if not some.more:
                return
            asked = _More()


@asynccontextmanager
async def parsing(mapping: Mapping, most_metadata: int) -> AsyncIterator[Parser]:
    """A parser for one feed. Items of more than so many bytes of metadata are faulty."""
    limits = Limits(address_space_bytes=_MEMORY_BYTES, file_bytes=0, nice=5, confined=True)
    async with Worker("feeds", f"{__name__}:main", {}, limits=limits) as worker:
        _ = await worker.call(_encode(_Start(mapping, most_metadata)), SECONDS)
        yield Parser(worker)


def main(channel: Channel, settings: dict[str, Any]) -> None:  # noqa: ARG001 - every child is called so
    """The child: it is given a feed piece by piece, and answers with the items."""
    for encoding in _ENCODINGS:  # before the lock: what Python would look for on the disk
        codecs.lookup(encoding)
    work = _Work(Mapping(), 0)
    channel.ready({})
    while (request := channel.receive()) is not None:
        identifier, body = request
        try:
            match _REQUEST.decode(body):
                case _Start(mapping, most_metadata):
                    work = _Work(mapping, most_metadata)
                case _Piece(content):
                    work.found = work.read(content)
                case _End():
                    work.found = work.close()
                case _More():
                    pass
            channel.send(identifier, _encode(work.some()))
        except ApplianceError as refusal:
            channel.refuse(identifier, refusal)
        except (MemoryError, RecursionError):
            channel.refuse(identifier, TooLarge("the feed has items that are too large or nested too deep"))


class _Work:
    """One feed on its way through the child."""

    def __init__(self, mapping: Mapping, most_metadata: int) -> None:
        self._unpacked = Unpacked()
        self._feed = Feed(mapping)
        self._mapper = Mapper(mapping)
        self._most_metadata = most_metadata
        self.found: Iterator[Raw] = iter(())

    def read(self, content: bytes) -> Iterator[Raw]:
        for piece in self._unpacked.pieces(content):
            yield from self._feed.feed(piece)

    def close(self) -> Iterator[Raw]:
        yield from self._feed.feed(self._unpacked.close())
        yield from self._feed.close()

    def some(self) -> _Some:
        """As many items as fit into an answer."""
        items: list[Item] = []
        size = 0
        for raw in self.found:
            item = self._item(raw)
            items.append(item)
            size += len(item.metadata) + len(item.url) + len(item.id)
            if len(items) == _AT_ONCE or size > _ANSWER_BYTES:
                return _Some(items, more=True)
        return _Some(items, more=False)

    def _item(self, raw: Raw) -> Item:
        match self._mapper.apply(raw):
            case Unusable(identity, reason):
                return Item(_short(identity), "", b"", reason)
            case Mapped(identity, url, metadata):
                if len(identity) > MOST_ID or len(url) > MOST_URL:
                    return Item(_short(identity), "", b"", "the id or the URL of the image is too long")
                try:
                    encoded = msgspec.json.encode(metadata, order="deterministic")
                    f"{identity}{url}".encode()
                except (ValueError, OverflowError, TypeError):
                    return Item(_short(identity), "", b"", "a text or a number is none that JSON can hold")
                if len(encoded) > self._most_metadata:
                    reason = f"{len(encoded)} bytes of metadata, at most {self._most_metadata} are allowed"
                    return Item(_short(identity), "", b"", reason)
                return Item(identity, url, encoded, "")


def _short(identity: str) -> str:
    """An id that can be told of."""
    return identity[:MOST_ID].encode(errors="replace").decode()
