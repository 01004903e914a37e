"""Sealed graphs as the daemon sees them: built, searched and dropped in the graph process."""

import asyncio
import contextlib
import itertools
import os
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Self

import msgspec
import numpy as np

from appliance import config
from appliance.errors import InvalidInput, NotFound, WorkerLost
from appliance.search import graph
from appliance.search.exact import Positions
from appliance.search.records import Vector
from appliance.search.vectors import View
from appliance.workers import Memory, Worker

_BATCH_BYTES = 1 << 20
_BATCH_ROWS = 1024
_BUILD_SECONDS = 120.0
"""For one batch, which takes about half a second: the thread that adds it has low priority."""
_QUERY_SECONDS = 5.0
_ENCODER = msgspec.msgpack.Encoder()


@dataclass(frozen=True, slots=True)
class Sealed:
    """A graph over the `size` records that lived when it was built; no label in it is above `through`."""

    number: int
    size: int
    through: int


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
        """A graph over what lives in the view, which must not be empty; one is built at a time.

        Raises WorkerLost when the process dies meanwhile, WorkerRefused when it cannot start.
        """
        async with self._building:
            worker, memory = await self._start()
            slots = np.flatnonzero(view.alive)
            sealed = Sealed(next(self._numbers), len(slots), int(view.labels[-1]))
            begin = graph.Begin(
                sealed.number, view.dim, sealed.size, self._settings.m, self._settings.ef_construction
            )
            try:
                await worker.call(_ENCODER.encode(begin), _BUILD_SECONDS)
                for batch in self._batches(slots, view.dim):
                    rows = view.rows(batch)
                    memory.view[: rows.nbytes] = rows.data.cast("B")
                    add = graph.Add(sealed.number, view.labels[batch].tobytes())
                    await worker.call(_ENCODER.encode(add), _BUILD_SECONDS)
                await worker.call(_ENCODER.encode(graph.Finish(sealed.number)), _BUILD_SECONDS)
            except NotFound:
                raise WorkerLost("the graph process was replaced while it built") from None
            except asyncio.CancelledError:
                self.drop(sealed)
                raise
            finally:
                memory.wipe(0, _BATCH_BYTES)
            return sealed

    async def query(self, sealed: Sealed, vector: Vector, k: int, ef: int) -> Positions | None:
        """Labels of about the k nearest, in no order worth relying on; None when the graph is lost.

        `vector` is float32 of length 1 and of the graph's dimension. The labels come from another process:
        each is to be looked up before it is believed.
        """
        if self._worker is None or not self._worker.serving:
            return None
        request = _ENCODER.encode(graph.Query(sealed.number, k, ef, vector.tobytes()))
        try:
            answer = await self._worker.call(request, _QUERY_SECONDS)
        except (NotFound, InvalidInput, WorkerLost):
            return None
        return np.frombuffer(answer, np.int64, len(answer) // 8)

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
