"""Graphs at rest: what spares a start the building of them. FOLDER/<container>/<graph>.

The files are as in `container_files`. The content of one is

    labels of the nodes, i64, ascending | links (see `links`) | prints of the vectors, u32

There is no vector in it: those are in the ledger, whence a deleted one is gone at once, and join the links as
a graph is restored. So a file is also small, an eighth of its graph at 256 dimensions. By the prints, the
exclusive or of a vector's words, it is told whether the vectors are those that the graph was built with.

Files are a cache. Where one is damaged, or does not fit its collection, it is removed and said; a backup has
none. One thread does all that touches the disk, in the order in which it is asked.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar
from uuid import UUID

import msgspec

from appliance.errors import SealBroken
from appliance.search.container_files import UNREADABLE, Reading, Writing, head, keep_only, listed, unlink
from appliance.search.seals import Seals
from appliance.vault import sealed_size
from appliance.volume import remove_tree

P = ParamSpec("P")
T = TypeVar("T")

FORMAT = 1
PIECE = 1 << 20

_log = logging.getLogger(__name__)


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file says of its graph: all labels are above `after` and none above `through`.

    `length` is that of labels and links, in bytes; prints follow.
    """

    dim: int
    size: int
    m: int
    ef_construction: int
    after: int
    through: int
    length: int
    format: int = FORMAT

    @property
    def content(self) -> int:
        """The length of labels, links and prints."""
        return self.length + 4 * self.size


@dataclass(frozen=True, slots=True)
class SavedGraph:
    """A file that is there, its manifest proven."""

    id: UUID
    manifest: Manifest


class GraphFiles:
    """The files of all collections, below a folder that is made with the first of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, "graph-files")

    def close(self) -> None:
        """Return when what was asked for is done."""
        self._thread.shutdown()

    def of(self, seals: Seals) -> "GraphFolder":
        """One collection's."""
        return GraphFolder(self._folder / seals.container.hex, seals, self)

    async def keep_only(self, containers: Collection[UUID]) -> None:
        """Remove what a crash left: folders of no such container, and files that were never finished."""
        await self.run(keep_only, self._folder, containers)

    async def remove(self, container: UUID) -> None:
        """Remove all files of a collection. Raises StorageFailed."""
        await self.run(remove_tree, self._folder / container.hex)

    async def run(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`act(...)` in the thread, after all that was asked for before."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, partial(act, *args, **kwargs))


class GraphFolder:
    """The files of one collection. Everything raises NotFound once its key is destroyed."""

    def __init__(self, path: Path, seals: Seals, files: GraphFiles) -> None:
        self._path = path
        self._seals = seals
        self._files = files

    async def saved(self) -> list[SavedGraph]:
        """The files that open, the youngest graph first. Those that do not are removed."""
        return await self._files.run(self._saved)

    async def write(self, manifest: Manifest, content: AsyncIterable[bytes]) -> SavedGraph:
        """Labels, links and prints, durable on return. What is cancelled or fails leaves nothing.

        Raises StorageFailed; VolumeFull, before anything is written, where too little is free.
        """
        graph = SavedGraph(uuid.uuid4(), manifest)
        begin = head(manifest)
        size = sealed_size(len(begin) + manifest.content)
        file = Writing(self._path, graph.id)
        try:
            # Twice its size: a cache is not what fills the volume of the ledger.
            await self._files.run(file.open, self._seals, size, leaving=size)
            await self._files.run(file.write, begin)
            async for piece in content:
                await self._files.run(file.write, piece)
            await self._files.run(file.publish)
        finally:
            await asyncio.shield(self._files.run(file.close))
        return graph

    async def read(self, graph: SavedGraph) -> AsyncGenerator[memoryview]:
        """Labels, links and prints in pieces of up to 1 MiB, each proven before it is given.

        Raises SealBroken where one is not what was sealed; StorageFailed.
        """
        file = _Reading(self._path, graph.id)
        try:
            await self._files.run(file.open, self._seals)
            start = file.start
            while start < file.length:
                stop = min(start + PIECE, file.length)
                yield await self._files.run(file.read, start, stop)
                start = stop
        finally:
            await asyncio.shield(self._files.run(file.close))

    async def remove(self, *graphs: SavedGraph) -> None:
        """Remove files; those that are gone already are none. Raises StorageFailed."""
        if graphs:
            await self._files.run(unlink, self._path, *(graph.id for graph in graphs))

    def _saved(self) -> list[SavedGraph]:
        found = []
        for graph in listed(self._path):
            try:
                with closing(_Reading(self._path, graph)) as file:
                    file.open(self._seals)
                    found.append(SavedGraph(graph, file.manifest))
            except SealBroken as error:
                _log.error("the saved graph %s is removed and will be built anew: %s", graph, error)
                unlink(self._path, graph)
        return sorted(found, key=lambda one: (-one.manifest.through, one.manifest.size))


class _Reading(Reading[Manifest]):
    def __init__(self, folder: Path, graph: UUID) -> None:
        super().__init__(folder, graph, Manifest)

    def open(self, seals: Seals) -> None:
        super().open(seals)
        if self.manifest.format != FORMAT or self.manifest.content != self.length - self.start:
            raise SealBroken(UNREADABLE)
