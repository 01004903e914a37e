"""Graphs at rest: what spares a start the building of them. FOLDER/<container>/<graph>, ids in hexadecimal.

A file is a sealed object (see `vault.sealed`) under the key of its collection:

    length of the manifest u32 | manifest, msgpack
    | labels of the nodes, i64, ascending | links (see `links`) | prints of the vectors, u32

There is no vector in it: those are in the ledger, whence a deleted one is gone at once, and join the links as
a graph is restored. So a file is also small, an eighth of its graph at 256 dimensions. By the prints, the
exclusive or of a vector's words, it is told whether the vectors are those that the graph was built with.

Files are a cache. Where one is damaged, or does not fit its collection, it is removed and said; a backup has
none. One thread does all that touches the disk, in the order in which it is asked.
"""

import asyncio
import logging
import os
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar
from uuid import UUID

import msgspec

from appliance.errors import SealBroken, StorageFailed, VolumeFull
from appliance.search.seals import Seals
from appliance.vault import SealedFile, Sealer, sealed_size
from appliance.volume import AtomicFile, failing_as_storage, remove_tree, sync_folder

P = ParamSpec("P")
T = TypeVar("T")

FORMAT = 1
PIECE = 1 << 20
_LENGTH = 4
_LONGEST_MANIFEST = 4096
_FREE = 2
"""So many times its size must be free for a file: a cache is not what fills the volume of the ledger."""

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
        await self.run(_keep_only, self._folder, {container.hex for container in containers})

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
        head = msgspec.msgpack.encode(manifest)
        size = sealed_size(_LENGTH + len(head) + manifest.content)
        file = _Writing(self._path, graph.id)
        try:
            await self._files.run(file.open, self._seals, size)
            await self._files.run(file.write, len(head).to_bytes(_LENGTH, "big") + head)
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
            await self._files.run(self._remove, [graph.id for graph in graphs])

    def _saved(self) -> list[SavedGraph]:
        try:
            names = sorted(path.name for path in self._path.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageFailed(f"{self._path}: {error.strerror}") from error
        found = []
        for name in names:
            with suppress(ValueError):  # a draft, which the next start removes
                graph = UUID(hex=name)
                try:
                    with closing(_Reading(self._path, graph)) as file:
                        file.open(self._seals)
                        found.append(SavedGraph(graph, file.manifest))
                except SealBroken as error:
                    _log.error("the saved graph %s is removed and will be built anew: %s", graph, error)
                    self._remove([graph])
        return sorted(found, key=lambda one: (-one.manifest.through, one.manifest.size))

    def _remove(self, graphs: list[UUID]) -> None:
        with failing_as_storage(self._path):
            for graph in graphs:
                (self._path / graph.hex).unlink(missing_ok=True)
            sync_folder(self._path)


class _Writing:
    """A file on its way, sealed as it comes; in the thread only."""

    def __init__(self, folder: Path, graph: UUID) -> None:
        self._folder = folder
        self._graph = graph
        self._opened = ExitStack()

    def open(self, seals: Seals, size: int) -> None:
        folder = self._folder
        self._sealer: Sealer = seals.sealer(self._graph)
        with failing_as_storage(folder):
            for path in (folder.parent, folder):
                with suppress(FileExistsError):
                    path.mkdir(mode=0o700)
                    sync_folder(path.parent)
            space = os.statvfs(folder)
        if (free := space.f_bavail * space.f_frsize) < _FREE * size:
            raise VolumeFull(f"{folder}: {free} bytes are free, and {_FREE * size} are needed")
        self._file = self._opened.enter_context(closing(AtomicFile(folder / self._graph.hex)))
        self._file.write(self._sealer.header)

    def write(self, piece: bytes) -> None:
        self._file.write(self._sealer.update(piece))

    def publish(self) -> None:
        self._file.write(self._sealer.finish())
        self._file.publish()

    def close(self) -> None:
        self._opened.close()


class _Reading:
    """A file that is read; in the thread only."""

    def __init__(self, folder: Path, graph: UUID) -> None:
        self._path = folder / graph.hex
        self._graph = graph
        self._opened = ExitStack()

    def open(self, seals: Seals) -> None:
        with failing_as_storage(self._path):
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            self._opened.callback(os.close, fd)
            self._file: SealedFile = seals.sealed_file(fd, self._graph)
            self.length = self._file.length
            self.start = _LENGTH + self._manifest_bytes()
            self.manifest = self._read_manifest()

    def read(self, start: int, stop: int) -> memoryview:
        with failing_as_storage(self._path):
            return self._file.read(start, stop)

    def close(self) -> None:
        self._opened.close()

    def _manifest_bytes(self) -> int:
        length = int.from_bytes(self._file.read(0, min(_LENGTH, self.length)), "big")
        if self.length < _LENGTH or length > min(_LONGEST_MANIFEST, self.length - _LENGTH):
            raise SealBroken("it has no manifest")
        return length

    def _read_manifest(self) -> Manifest:
        try:
            manifest = msgspec.msgpack.decode(self._file.read(_LENGTH, self.start), type=Manifest)
        except msgspec.MsgspecError:
            raise SealBroken("it is of a format that this version does not read") from None
        if manifest.format != FORMAT or manifest.content != self.length - self.start:
            raise SealBroken("it is of a format that this version does not read")
        return manifest


def _keep_only(folder: Path, containers: Collection[str]) -> None:
    try:
        kept = list(os.scandir(folder))
    except FileNotFoundError:
        return
    with failing_as_storage(folder):
        for entry in kept:
            if not entry.is_dir(follow_symlinks=False):
                Path(entry).unlink()
            elif entry.name not in containers:
                remove_tree(Path(entry))
            else:
                for draft in Path(entry).glob(".*"):
                    draft.unlink()
