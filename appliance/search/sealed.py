"""Sealed graphs as the daemon sees them: built, searched, kept, restored and dropped in the graph process."""

import asyncio
import contextlib
import itertools
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from typing import Self

import msgspec
import numpy as np

from appliance import config
from appliance.channel import Limits
from appliance.errors import (
    InvalidInput,
    NotFound,
    SealBroken,
    StorageFailed,
    VolumeFull,
    WorkerLost,
)
from appliance.search import fitting
from appliance.search import graph_process as process
from appliance.search.exact import Positions
from appliance.search.graph_files import PIECE, GraphFolder, Manifest, SavedGraph
from appliance.search.graph_process import Horizons
from appliance.search.records import Vector
from appliance.search.vectors import View
from appliance.workers import Memory, Worker

_BATCH_BYTES = PIECE
_BATCH_ROWS = 1024
_BUILD_SECONDS = 120.0
"""For one batch, which takes about half a second: the thread that adds it has low priority."""
_FILE_SECONDS = 120.0
"""For taking a graph down or putting it together, about a second for a million vectors."""
_QUERY_SECONDS = 5.0
_CANDIDATES = 4096
"""Looked at for one message, which takes about 10 ms: the process answers one after the other."""
_PROBES = 10
_PROBED = 8
"""So many of the probes must find themselves: in a sound graph one in a hundred may not be reached."""
_PROBE_EF = 200
_NEAR = 1e-3  # what float16 does to a distance, ten times over
_ENCODER = msgspec.msgpack.Encoder()

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A graph over the `size` records that lived when it was built, of those with labels above `after` and
    up to `through`. `memory` is what it holds in the graph process, in bytes.
    """

    number: int
    size: int
    after: int
    through: int
    dim: int
    memory: int


@dataclass(frozen=True, slots=True)
class Ask:
    """How many nearest are wanted of a graph, and how many candidates it shall look at for them."""

    sealed: Sealed
    k: int
    ef: int


@dataclass(frozen=True, slots=True)
class Proposed:
    """What graphs answer to n vectors. It comes from another process: a label is looked up before it is
    believed.

    `labels` are int64 (n, sum of k), those of each graph together, -1 where it has fewer. `horizons`, float32
    (n, graphs), tell how far away the last of them is: what is farther may be missing.
    """

    labels: Positions
    horizons: Horizons


class SealedGraphs:
    """The graph process: started with the first graph, replaced when it dies, its graphs then lost."""

    def __init__(self, settings: config.Search) -> None:
        self._settings = settings
        self._numbers = itertools.count(1)
        self._stack = AsyncExitStack()
        self._starting = asyncio.Lock()
        self._building = asyncio.Lock()
        self._filing = asyncio.Lock()
        self._held_up = False
        self._memories: list[Memory] = []
        self._worker: Worker | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def pid(self) -> int | None:
        """The graph process, None while there is none."""
        return self._worker.pid if self._worker else None

    async def build(self, view: View, after: int, through: int) -> Sealed:
        """A graph over what lives in the view, of which something must, with labels above `after` and up to
        `through`; several are built by turns.

        Raises WorkerLost when the process dies meanwhile, WorkerRefused when it cannot start.
        """
        worker = await self._start()
        part = view.part(view.after(after), view.after(through))
        slots = np.flatnonzero(part.alive)
        number, size = next(self._numbers), len(slots)
        m, ef_construction = self._settings.m, self._settings.ef_construction
        with self._dropping(number):
            try:
                begin = process.Begin(number, view.dim, size, m, ef_construction)
                await worker.call(_ENCODER.encode(begin), _BUILD_SECONDS)
                for batch in self._batches(slots, view.dim):
                    # First come, first served: no large graph keeps small ones waiting.
                    async with self._building:
                        await self._add(worker, number, part, batch)
                held = await worker.call(_ENCODER.encode(process.Finish(number)), _BUILD_SECONDS)
            except NotFound:
                raise WorkerLost("the graph process was replaced while it built") from None
        return Sealed(number, size, after, through, view.dim, _number(held))

    async def save(self, sealed: Sealed, view: View, folder: GraphFolder) -> SavedGraph | None:
        """Keep a graph on the disk, durably, for `load` after the next start.

        `view` has the records of the graph that live by now. None where it could not be kept, which is said:
        a cache less, and nothing else. Raises NotFound when the collection's key is destroyed.
        """
        async with self._filing:
            worker = await self._start()
            try:
                length = _number(await self._call_long(worker, process.Dump(sealed.number)))
                manifest = Manifest(
                    dim=sealed.dim,
                    size=sealed.size,
                    m=self._settings.m,
                    ef_construction=self._settings.ef_construction,
                    after=sealed.after,
                    through=sealed.through,
                    length=length,
                )
                async with aclosing(self._dumped(worker, sealed, length, view)) as content:
                    return await folder.write(manifest, content)
            except (StorageFailed, VolumeFull) as error:
                _log.warning("a graph is not kept and will be built anew after a start: %s", error)
            except WorkerLost as error:
                _log.warning("a graph was lost before it could be kept: %s", error)
        return None

    async def load(self, saved: SavedGraph, view: View, folder: GraphFolder) -> Sealed | None:
        """A graph that was kept, over what lives of it in the view; younger records are not in it.

        It is proven before it is used: that every living record of its range is in it, with the very vector
        that it was built with, and that it finds some of them. None where it is damaged, does not fit the
        view or the settings, or costs the process its life: then its file is removed, and that is said.
        Raises WorkerLost when the process dies of something else, WorkerRefused when it cannot start,
        StorageFailed when the disk fails; the file stays then. NotFound when the key is destroyed.
        """
        async with self._filing:
            try:
                fitting.require_fit(saved.manifest, self._settings, view.dim)
                return await self._restored(saved, view, folder)
            except (SealBroken, InvalidInput) as error:
                _log.error("the saved graph %s is removed and will be built anew: %s", saved.id, error)
        await folder.remove(saved)
        return None

    async def query(self, asks: Sequence[Ask], vectors: Vector) -> Proposed | None:
        """What each graph has nearest to each vector; None when one of them is lost.

        `vectors` are float32 (n, dim) of length 1 and of the graphs' dimension. They go in one message, where
        that does not keep others waiting.
        """
        asked = [process.Ask(ask.sealed.number, ask.k, ask.ef) for ask in asks]
        together = max(1, _CANDIDATES // sum(ask.ef for ask in asks))
        parts = []
        for low in range(0, len(vectors), together):
            part = await self._query(asked, vectors[low : low + together])
            if part is None:
                return None
            parts.append(part)
        if len(parts) == 1:
            return parts[0]
        return Proposed(
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.horizons for part in parts]),
        )

    async def _query(self, asked: list[process.Ask], vectors: Vector) -> Proposed | None:
        if self._worker is None or not self._worker.serving:
            return None
        request = _ENCODER.encode(process.Query(asked, vectors.shape[1], vectors.tobytes()))
        seconds = _FILE_SECONDS if self._held_up else _QUERY_SECONDS
        try:
            answer = await self._worker.call(request, seconds)
        except (NotFound, InvalidInput, WorkerLost):
            return None
        count, labels = len(vectors), len(vectors) * sum(ask.k for ask in asked)
        if len(answer) != 8 * labels + 4 * count * len(asked):
            return None
        return Proposed(
            np.frombuffer(answer, np.int64, labels).reshape(count, -1),
            np.frombuffer(answer, np.float32, -1, 8 * labels).reshape(count, -1),
        )

    def drop(self, sealed: Sealed) -> None:
        """Forget a graph; at once here, soon there."""
        self._drop(sealed.number)

    def _drop(self, number: int) -> None:
        if self._worker is not None:
            with contextlib.suppress(WorkerLost):  # then its graphs are gone as well
                request = _ENCODER.encode(process.Drop(number))
                self._worker.submit(request, _BUILD_SECONDS, lambda _: None)

    async def _add(self, worker: Worker, number: int, view: View, batch: Positions) -> None:
        memory, rows = self._memories[process.BUILDING], view.rows(batch)
        memory.view[: rows.nbytes] = rows.data.cast("B")
        try:
            add = process.Add(number, view.labels[batch].tobytes())
            await worker.call(_ENCODER.encode(add), _BUILD_SECONDS)
        finally:
            memory.release()

    @contextlib.contextmanager
    def _dropping(self, number: int) -> Iterator[None]:
        """A graph that does not come to be is forgotten."""
        try:
            yield
        except BaseException:
            self._drop(number)
            raise

    async def _call_long(self, worker: Worker, request: msgspec.Struct) -> bytes:
        """A call during which the engine may let no other thread of its process run."""
        self._held_up = True
        try:
            return await self._call_filing(worker, request)
        finally:
            self._held_up = False

    async def _call_filing(self, worker: Worker, request: msgspec.Struct) -> bytes:
        try:
            return await worker.call(_ENCODER.encode(request), _FILE_SECONDS)
        except NotFound:
            raise WorkerLost("the graph process was replaced meanwhile") from None

    async def _dumped(self, worker: Worker, sealed: Sealed, length: int, view: View) -> AsyncGenerator[bytes]:
        """Labels, links, and a print of each vector."""
        memory = self._memories[process.FILING]
        labels = bytearray()
        try:
            while length > 0:
                size = _number(await self._call_filing(worker, process.Read(sealed.number)))
                if not 0 < size <= min(length, memory.size):
                    raise WorkerLost("the graph process gave out more or less than it said")
                length -= size
                piece = bytes(memory.view[:size])
                labels += piece[: 8 * sealed.size - len(labels)]
                yield piece
        finally:
            memory.release()
        for batch in self._batches(np.frombuffer(labels, np.int64), view.dim):
            yield fitting.prints(fitting.living_rows(view, batch)).tobytes()

    async def _restored(self, saved: SavedGraph, view: View, folder: GraphFolder) -> Sealed:
        worker = await self._start()
        memory, manifest, number = self._memories[process.FILING], saved.manifest, next(self._numbers)
        call = partial(self._call_filing, worker)
        with self._dropping(number):
            try:
                begin = process.Restore(
                    number, manifest.dim, manifest.size, manifest.m, manifest.ef_construction, manifest.length
                )
                await call(begin)
                labels, prints, left = bytearray(), bytearray(), manifest.length
                async with aclosing(folder.read(saved)) as content:
                    async for piece in content:
                        labels += piece[: 8 * manifest.size - len(labels)]
                        prints += piece[left:]
                        if part := piece[:left]:
                            memory.view[: len(part)] = part
                            await call(process.Write(number, len(part)))
                            left -= len(part)
                known = np.frombuffer(labels, np.int64)
                through = await asyncio.to_thread(fitting.youngest_known, known, manifest, view)
                await self._fill(call, number, view, known, np.frombuffer(prints, np.uint32))
            finally:
                memory.release()
            try:
                held = _number(await self._call_long(worker, process.Restored(number)))
                sealed = Sealed(number, manifest.size, manifest.after, through, view.dim, held)
                await self._probe(sealed, view)
            except WorkerLost as error:
                raise SealBroken(f"the graph process did not survive it: {error}") from None
            return sealed

    async def _fill(
        self,
        call: Callable[[msgspec.Struct], Awaitable[bytes]],
        number: int,
        view: View,
        labels: Positions,
        prints: fitting.Prints,
    ) -> None:
        """Give a graph the vectors of its nodes. Raises SealBroken for one that it was not built with."""
        memory, first = self._memories[process.FILING], 0
        for batch in self._batches(labels, view.dim):
            rows = fitting.living_rows(view, batch)
            last = first + len(rows)
            fitting.require_same(rows, prints[first:last])
            memory.view[: rows.nbytes] = rows.data.cast("B")
            await call(process.Rows(number, first, len(rows)))
            first = last

    async def _probe(self, sealed: Sealed, view: View) -> None:
        """Raises SealBroken for a graph that does not find its own records; WorkerLost."""
        first, last = view.after(sealed.after), view.after(sealed.through)
        slots = first + np.flatnonzero(view.alive[first:last])
        chosen = slots[np.linspace(0, len(slots) - 1, min(_PROBES, len(slots))).astype(np.int64)]
        probes = view.rows(chosen)
        probes = probes[probes.any(axis=1)]  # some may have died since
        if not len(probes):
            return
        proposed = await self.query([Ask(sealed, _PROBES, _PROBE_EF)], probes)
        if proposed is None:
            raise WorkerLost("it answered no query")
        found = 0
        for vector, labels in zip(probes, np.sort(proposed.labels), strict=True):
            found += bool(np.any(view.rows(view.slots(labels)) @ vector > 1 - _NEAR))
        if found * _PROBES < _PROBED * len(probes):
            raise SealBroken(f"of {len(probes)} records it finds {found}")

    async def _start(self) -> Worker:
        async with self._starting:
            if not self._memories:
                self._memories = [Memory(_BATCH_BYTES), Memory(_BATCH_BYTES)]
                for memory in self._memories:
                    self._stack.callback(memory.close)
            if self._worker is None:
                # Half of the processors: building is never urgent, exact search answers meanwhile.
                threads = max(1, (os.cpu_count() or 1) // 2)
                settings = {"engine": self._settings.engine, "threads": threads}
                # A query reads a few hundred places all over a graph: over 100,000 vectors of 256 dimensions
                # 0.19 ms of CPU, and 0.24 in small pages (measured; four fifths of the process are huge).
                limits = Limits(huge_pages=True)
                worker = Worker("graphs", process.TARGET, settings, memories=self._memories, limits=limits)
                self._worker = await self._stack.enter_async_context(worker)
            return self._worker

    def _batches(self, slots: Positions, dim: int) -> list[Positions]:
        rows = min(_BATCH_ROWS, max(1, _BATCH_BYTES // (dim * 4)))
        return [slots[low : low + rows] for low in range(0, len(slots), rows)]


def _number(answer: bytes) -> int:
    return int.from_bytes(answer, "little")
