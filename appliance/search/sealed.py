"""Sealed graphs as the daemon sees them: built, searched and dropped in the graph process."""

import asyncio
import contextlib
import itertools
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Self

import msgspec
import numpy as np

from appliance import config
from appliance.errors import InvalidInput, NotFound, WorkerLost
from appliance.search import graph
from appliance.search.exact import Positions
from appliance.search.graph import Horizons
from appliance.search.records import Vector
from appliance.search.vectors import View
from appliance.workers import Memory, Worker

_BATCH_BYTES = 1 << 20
_BATCH_ROWS = 1024
_BUILD_SECONDS = 120.0
"""For one batch, which takes about half a second: the thread that adds it has low priority."""
_QUERY_SECONDS = 5.0
_CANDIDATES = 4096
"""Looked at for one message, which takes about 10 ms: the process answers one after the other."""
_ENCODER = msgspec.msgpack.Encoder()


@dataclass(frozen=True, slots=True)
class Sealed:
    """A graph over the `size` records that lived when it was built; no label in it is above `through`."""

    number: int
    size: int
    through: int


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
        self._memory: Memory | None = None
        self._worker: Worker | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def pid(self) -> int | None:
        """The graph process, None while there is none."""
        return self._worker.pid if self._worker else None

    async def build(self, view: View) -> Sealed:
        """A graph over what lives in the view, which must not be empty; several are built by turns.

        Raises WorkerLost when the process dies meanwhile, WorkerRefused when it cannot start.
        """
        worker, memory = await self._start()
        slots = np.flatnonzero(view.alive)
        sealed = Sealed(next(self._numbers), len(slots), int(view.labels[-1]))
        begin = graph.Begin(
            sealed.number, view.dim, sealed.size, self._settings.m, self._settings.ef_construction
        )
        try:
            await worker.call(_ENCODER.encode(begin), _BUILD_SECONDS)
            for batch in self._batches(slots, view.dim):
                async with (
                    self._building
                ):  # first come, first served: no large graph keeps small ones waiting
                    await self._add(worker, memory, sealed, view, batch)
            await worker.call(_ENCODER.encode(graph.Finish(sealed.number)), _BUILD_SECONDS)
        except NotFound:
            raise WorkerLost("the graph process was replaced while it built") from None
        except asyncio.CancelledError:
            self.drop(sealed)
            raise
        return sealed

    async def _add(
        self, worker: Worker, memory: Memory, sealed: Sealed, view: View, batch: Positions
    ) -> None:
        rows = view.rows(batch)
        memory.view[: rows.nbytes] = rows.data.cast("B")
        try:
            add = graph.Add(sealed.number, view.labels[batch].tobytes())
            await worker.call(_ENCODER.encode(add), _BUILD_SECONDS)
        finally:
            memory.wipe(0, rows.nbytes)

    async def query(self, asks: Sequence[Ask], vectors: Vector) -> Proposed | None:
        """What each graph has nearest to each vector; None when one of them is lost.

        `vectors` are float32 (n, dim) of length 1 and of the graphs' dimension. They go in one message, where
        that does not keep others waiting.
        """
        asked = [graph.Ask(ask.sealed.number, ask.k, ask.ef) for ask in asks]
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

    async def _query(self, asked: list[graph.Ask], vectors: Vector) -> Proposed | None:
        if self._worker is None or not self._worker.serving:
            return None
        request = _ENCODER.encode(graph.Query(asked, vectors.shape[1], vectors.tobytes()))
        try:
            answer = await self._worker.call(request, _QUERY_SECONDS)
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
        if self._worker is not None:
            with contextlib.suppress(WorkerLost):  # then its graphs are gone as well
                request = _ENCODER.encode(graph.Drop(sealed.number))
                self._worker.submit(request, _BUILD_SECONDS, lambda _: None)

    async def _start(self) -> tuple[Worker, Memory]:
        async with self._starting:
            if self._memory is None:
                self._memory = Memory(_BATCH_BYTES)
                self._stack.callback(self._memory.close)
            if self._worker is None:
                # Half of the processors: building is never urgent, exact search answers meanwhile.
                threads = max(1, (os.cpu_count() or 1) // 2)
                worker = Worker("graphs", graph.TARGET, {"threads": threads}, memories=[self._memory])
                self._worker = await self._stack.enter_async_context(worker)
            return self._worker, self._memory

    def _batches(self, slots: Positions, dim: int) -> list[Positions]:
        rows = min(_BATCH_ROWS, max(1, _BATCH_BYTES // (dim * 4)))
        return [slots[low : low + rows] for low in range(0, len(slots), rows)]
