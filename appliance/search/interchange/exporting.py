"""A whole collection given out: as JSON lines, or as a zip of arrays and JSON lines beside them.

What an import reads. In the zip `records-00001.jsonl` names the rows of `vectors-00001.npy`, and so on: both
of a pair are of the same moment, and never more than a pair is in memory.
"""

import zipfile
from collections.abc import AsyncIterator, Iterator
from typing import IO, cast

from appliance.accounts.audit import Actor
from appliance.errors import Conflict
from appliance.search.interchange import lines, npy
from appliance.search.interchange.importing import MAX_HELD
from appliance.search.opened import OpenCollection
from appliance.search.records import Record, Vector

PAGE = 256
_VECTORS = 16 << 20
"""Bytes of vectors in one array of the zip."""
_PIECE = 256 << 10
"""What goes out at once, so that a slow reader has time for it."""

Pages = AsyncIterator[list[tuple[Record, Vector]]]


async def begin(actor: Actor, collection: OpenCollection, *, skip_damaged: bool = False) -> Pages:
    """The records that are there now, audited; see `OpenCollection.stored`.

    Raises Conflict when some are damaged, unless these are left out.
    """
    if (damaged := collection.damaged) and not skip_damaged:
        raise Conflict(
            f"{damaged} records are damaged and named in the log: skip_damaged=true exports the others"
        )
    await collection.note_export(actor)
    return collection.stored(PAGE)


async def as_lines(pages: Pages) -> AsyncIterator[bytes]:
    """JSON lines, each with its vector; see `lines`."""
    async for page in pages:
        for piece in _pieces(b"".join(lines.encode(record, vector) for record, vector in page)):
            yield piece


async def as_zip(pages: Pages, dim: int) -> AsyncIterator[bytes]:
    """A zip file, stored: vectors do not shrink. The same bytes as long as nothing changes."""
    sink, number = Sink(), 0
    with zipfile.ZipFile(cast("IO[bytes]", sink), "w", zipfile.ZIP_STORED) as archive:
        async for named, vectors in _pairs(pages, dim):
            number += 1
            array = [npy.header(len(vectors), dim), *[vector.astype("<f4").tobytes() for vector in vectors]]
            for name, content in ((f"records-{number:05}.jsonl", named), (f"vectors-{number:05}.npy", array)):
                with archive.open(zipfile.ZipInfo(name), "w") as member:
                    for piece in _pieces(b"".join(content)):
                        member.write(piece)
                        yield sink.taken()
    yield sink.taken()


async def _pairs(pages: Pages, dim: int) -> AsyncIterator[tuple[list[bytes], list[Vector]]]:
    """Lines and vectors of as many records as go together, at least one pair."""
    named, vectors, held, first = list[bytes](), list[Vector](), 0, True
    most = max(1, _VECTORS // (4 * dim))
    async for page in pages:
        for record, vector in page:
            line = lines.encode(record, None)
            if vectors and (len(vectors) >= most or held + len(line) > MAX_HELD):
                yield named, vectors
                named, vectors, held, first = [], [], 0, False
            named.append(line)
            vectors.append(vector)
            held += len(line)
    if vectors or first:
        yield named, vectors


def _pieces(content: bytes) -> Iterator[bytes]:
    for low in range(0, len(content), _PIECE):
        yield content[low : low + _PIECE]


class Sink:
    """A file for `zipfile` that can only be written to; what was written is taken away again."""

    def __init__(self) -> None:
        self._written: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._written.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def taken(self) -> bytes:
        taken, self._written = b"".join(self._written), []
        return taken
