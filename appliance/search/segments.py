"""The searchable side of one collection: every vector, a sealed graph over most, tombstones over both.

A search takes what the graph proposes, measures it again on the exact vectors, and scans the tail of records
that are younger than the graph. Dead records stay in the graph until it is built anew, so more is asked of it
than is wanted. Where that is not enough, and while there is no graph, every vector is scanned.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import numpy as np
from prometheus_client import Counter

from appliance import config
from appliance.errors import WorkerLost, WorkerRefused
from appliance.metrics import Registry
from appliance.search import exact
from appliance.search.columns import Matching
from appliance.search.exact import Distances, Positions
from appliance.search.records import Vector
from appliance.search.sealed import Sealed, SealedGraphs
from appliance.search.vectors import Vectors, View

P = ParamSpec("P")
T = TypeVar("T")
Found = tuple[Positions, Distances]

_INLINE_BYTES = 8 << 20
"""A scan of this much takes well under a millisecond; a larger one goes to a thread."""
_LARGE_SHARE = 0.2
"""Of dead rows or of records the graph does not know: rebuilding then costs less than searching around."""
_FEW_DEAD = 256
_MOST_FROM_GRAPH = 1000
_RACES = 3
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0

_log = logging.getLogger(__name__)


class Scans:
    """Where scans run: small ones at once, large ones in a thread, so that the event loop is never held."""

    def __init__(self, registry: Registry) -> None:
        self._threads = ThreadPoolExecutor(thread_name_prefix="search")
        queries = Counter(
            "appliance_search_queries", "Searches, by what answered them", ["path"], registry=registry
        )
        self.by_graph = queries.labels("graph")
        self.exact = queries.labels("exact")
        self.filtered = queries.labels("filtered")
        self.graphs = Counter(
            "appliance_search_graphs", "Graphs, by what became of their building", ["end"], registry=registry
        )

    async def run(self, size: int, scan: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`scan(...)`, which reads about `size` bytes."""
        if size <= _INLINE_BYTES:
            return scan(*args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: scan(*args, **kwargs))

    def close(self) -> None:
        self._threads.shutdown()


class Segments:
    """One collection's vectors and, while there is one, its graph; on the event loop only."""

    def __init__(
        self,
        settings: config.Search,
        dim: int,
        graphs: SealedGraphs,
        scans: Scans,
        moved: Callable[[Positions], None],
    ) -> None:
        """`moved` is told the old slot of every slot when compaction moves the vectors."""
        self._settings = settings
        self._dim = dim
        self._graphs = graphs
        self._scans = scans
        self._moved = moved
        self._vectors = Vectors(dim)
        self._sealed: Sealed | None = None
        self._sealed_dead = 0
        self._upkeep: asyncio.Task[None] | None = None
        self._closed = False
        self._pause = 0.0
        self._not_before = 0.0

    @property
    def count(self) -> int:
        """Records that can be found."""
        return self._vectors.count

    @property
    def sealed(self) -> Sealed | None:
        """The graph in use."""
        return self._sealed

    @property
    def known(self) -> int | None:
        """How many living records the graph in use knows, None while there is none."""
        return None if self._sealed is None else self._sealed.size - self._sealed_dead

    def view(self) -> View:
        """The vectors as they are now."""
        return self._vectors.view()

    def reserve(self, rows: int) -> None:
        """Make room for the rows that are about to be loaded; only while empty."""
        self._vectors = Vectors(self._dim, rows)

    def append(self, labels: Sequence[int], ids: Sequence[str], rows: Vector) -> int:
        """Add rows of length 1, labels ascending and new; the slot of the first."""
        first = self._vectors.slots
        self._vectors.append(labels, ids, rows)
        return first

    def kill(self, label: int) -> bool:
        """Take a record out of every later answer and erase its vector; False when it is not here."""
        killed = self._vectors.kill(label)
        if killed and self._sealed is not None and label <= self._sealed.through:
            self._sealed_dead += 1
        return killed

    def ids(self, labels: Positions) -> list[str]:
        """The callers' ids of records that are here."""
        return self._vectors.ids(self.view().slots(labels))

    async def nearest(self, query: Vector, k: int) -> Found:
        """Labels and distances of the k nearest records (all, if there are fewer), ascending."""
        self.tend()
        found = await self._through_graph(query, k)
        if found is not None:
            self._scans.by_graph.inc()
            return found
        self._scans.exact.inc()
        return await self._exactly(query, k, None)

    async def nearest_matching(
        self, query: Vector, k: int, matching: Callable[[], Awaitable[tuple[Matching, View]]]
    ) -> Found:
        """As `nearest`, among the records that match: always k when k match."""
        self._scans.filtered.inc()
        return await self._exactly(query, k, matching)

    async def seal(self) -> None:
        """Build a graph over every record now, if the collection is large enough to have one."""
        await self.settle()
        if self._large() and not self._closed:
            self._start(self._build)
            await self.settle()

    async def settle(self) -> None:
        """Return when no upkeep is under way."""
        while self._upkeep is not None:
            await asyncio.wait([self._upkeep])

    async def close(self) -> None:
        """Stop the upkeep and drop the graph."""
        self._closed = True
        if self._upkeep is not None:
            self._upkeep.cancel()
            await self.settle()
        self._unseal()

    def tend(self) -> None:
        """Start upkeep in the background if it is due; to be called after changes."""
        if self._upkeep is not None or self._closed:
            return
        due = self._crowded() or self._seal_due() or (self._sealed is not None and self._small())
        if due and asyncio.get_running_loop().time() >= self._not_before:
            self._start(self._tend)

    async def _exactly(
        self, query: Vector, k: int, matching: Callable[[], Awaitable[tuple[Matching, View]]] | None
    ) -> Found:
        races = 0
        while True:
            decided, view = (None, self.view()) if matching is None else await matching()
            # A record deleted while a thread scans leaves the answer short: scan again, at last right here.
            size = view.bytes if races < _RACES else 0
            labels, measured = await self._scans.run(size, _scan, view, query, k, decided)
            if len(self.view().slots(labels)) == len(labels):
                return labels, measured
            races += 1

    async def _through_graph(self, query: Vector, k: int) -> Found | None:
        sealed = self._sealed
        if sealed is None or (reach := self._reach(sealed, k)) is None:
            return None
        proposed = await self._graphs.query(sealed, query, reach, max(self._settings.ef, reach))
        if proposed is None:
            self._lose(sealed)
            return None
        view = self.view()
        # In order and each once, whatever the other process says.
        believed = np.array(
            sorted({label for label in proposed.tolist() if label <= sealed.through}), np.int64
        )
        slots = view.slots(believed)
        if len(slots) < k:
            return None
        # Of one moment with the tail: what is replaced meanwhile is in one of the two, and is missed below.
        known, far = view.labels[slots], exact.distances(view.rows(slots), query)
        young, near = await self._tail(view, query, k, sealed.through)
        labels, measured = exact.nearest(np.concatenate([known, young]), np.concatenate([far, near]), k)
        return (labels, measured) if len(self.view().slots(labels)) == k else None

    async def _tail(self, view: View, query: Vector, k: int, through: int) -> Found:
        """The k nearest of the records that no graph knows."""
        first = view.after(through)
        return await self._scans.run(
            (len(view.labels) - first) * self._dim * 4, view.scan, query, k, None, first
        )

    def _reach(self, sealed: Sealed, k: int) -> int | None:
        """How many to ask of the graph for k living ones; None when it cannot give that many."""
        living = sealed.size - self._sealed_dead
        if living < k:
            return None
        reach = k if self._sealed_dead == 0 else int(1.5 * k * sealed.size / living) + 4
        return None if reach > min(sealed.size, _MOST_FROM_GRAPH) else reach

    def _large(self) -> bool:
        return self._vectors.count * self._dim * 4 > self._settings.flat_bytes

    def _small(self) -> bool:
        # Half, so that a collection of just this size does not build and drop its graph in turns.
        return self._vectors.count * self._dim * 4 <= self._settings.flat_bytes // 2

    def _crowded(self) -> bool:
        dead = self._vectors.slots - self._vectors.count
        return dead > max(_FEW_DEAD, _LARGE_SHARE * self._vectors.slots)

    def _seal_due(self) -> bool:
        if not self._large():
            return False
        if self._sealed is None or self._sealed_dead > _LARGE_SHARE * self._sealed.size:
            return True
        tail = self._vectors.slots - self.view().after(self._sealed.through)
        return tail > _LARGE_SHARE * self._sealed.size and tail * self._dim * 4 > self._settings.flat_bytes

    def _start(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        self._upkeep = asyncio.get_running_loop().create_task(work())
        self._upkeep.add_done_callback(self._ended)

    def _ended(self, upkeep: asyncio.Task[None]) -> None:
        self._upkeep = None
        if not upkeep.cancelled() and (error := upkeep.exception()) is not None:
            _log.error("upkeep of a collection failed", exc_info=error)
            self._delay()
        self.tend()  # what changed meanwhile may need more of it

    async def _tend(self) -> None:
        if self._sealed is not None and self._small():
            self._unseal()
        if self._crowded():
            await self._compact()
        if self._seal_due():
            await self._build()

    async def _compact(self) -> None:
        view = self.view()
        compact, kept = await self._scans.run(view.bytes, self._vectors.without_dead, view)
        old_slots = compact.catch_up(self._vectors, view, kept)
        self._vectors = compact
        self._moved(old_slots)

    async def _build(self) -> None:
        view = self.view()
        try:
            sealed = await self._graphs.build(view)
        except (WorkerLost, WorkerRefused) as error:
            self._scans.graphs.labels("failed").inc()
            self._delay()
            _log.warning("no graph could be built, answers stay exact: %s", error)
            return
        self._scans.graphs.labels("built").inc()
        self._pause = 0.0
        self._unseal()
        now = self.view()
        self._sealed = sealed
        self._sealed_dead = sealed.size - int(np.count_nonzero(now.alive[: now.after(sealed.through)]))

    def _lose(self, sealed: Sealed) -> None:
        if self._sealed is sealed:
            self._scans.graphs.labels("lost").inc()
            self._sealed = None
            self._delay()

    def _unseal(self) -> None:
        if self._sealed is not None:
            self._graphs.drop(self._sealed)
            self._sealed = None

    def _delay(self) -> None:
        """Do not try again at once, and each time later."""
        self._pause = min(max(2 * self._pause, _SHORTEST_PAUSE), _LONGEST_PAUSE)
        self._not_before = asyncio.get_running_loop().time() + self._pause


def _scan(view: View, query: Vector, k: int, decided: Matching | None) -> Found:
    return view.scan(query, k, None if decided is None else decided.mask())
