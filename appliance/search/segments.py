"""The searchable side of one collection: every vector, a sealed graph over most, tombstones over both.

A search takes what the graph proposes, measures it again on the exact vectors, and scans the tail of records
that are younger than the graph. Dead records stay in the graph until it is built anew, and a filter leaves
others out (see `planner`), so more is asked of it than is wanted. Where that is not enough, and while there
is no graph, every vector that matches is scanned.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import numpy as np
from prometheus_client import Counter

from appliance import config
from appliance.errors import NotFound, StorageFailed, WorkerLost, WorkerRefused
from appliance.metrics import Registry
from appliance.search import exact, planner
from appliance.search.columns import Matching
from appliance.search.exact import Distances, Positions
from appliance.search.graph_files import GraphFolder
from appliance.search.records import Vector
from appliance.search.sealed import Sealed, SealedGraphs
from appliance.search.vectors import Mask, Vectors, View

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
        self.filtered_by_graph = queries.labels("filtered_graph")
        self.filtered_exact = queries.labels("filtered_exact")
        self.filtered_both = queries.labels("filtered_both")
        self.graphs = Counter(
            "appliance_search_graphs", "Graphs, by what became of their building", ["end"], registry=registry
        )

    async def run(self, size: int, scan: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`scan(...)`, which takes about as long as reading `size` bytes in order."""
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
        *,
        folder: GraphFolder,
    ) -> None:
        """`moved` is told the old slot of every slot when compaction moves the vectors. Graphs are kept in
        `folder`.
        """
        self._settings = settings
        self._dim = dim
        self._graphs = graphs
        self._folder = folder
        self._scans = scans
        self._moved = moved
        self._vectors = Vectors(dim)
        self._sealed: Sealed | None = None
        self._sealed_dead = 0
        self._replaced = 0
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

    def append(self, labels: Sequence[int] | Positions, rows: Vector) -> int:
        """Add rows of length 1, labels ascending and new; the slot of the first."""
        first = self._vectors.slots
        self._vectors.append(labels, rows)
        return first

    def kill(self, label: int, *, replaced: bool = False) -> bool:
        """Take a record out of every later answer and erase its vector; False when it is not here.

        `replaced`: another one has come in its place. A search that is under way looks again.
        """
        killed = self._vectors.kill(label)
        self._replaced += replaced
        if killed and self._sealed is not None and label <= self._sealed.through:
            self._sealed_dead += 1
        return killed

    async def nearest(self, query: Vector, k: int) -> Found:
        """Labels and distances of the k nearest records (all, if there are fewer), ascending."""
        self.tend()
        found = await self._through_graph(query, k)
        if found is not None:
            self._scans.by_graph.inc()
            return found
        self._scans.exact.inc()
        return await self._exactly(query, k)

    async def nearest_matching(
        self, query: Vector, k: int, matching: Callable[[], Awaitable[tuple[Matching, View]]]
    ) -> Found:
        """As `nearest`, among the records that match: always k when k match."""
        self.tend()
        races = 0
        while True:
            decided, view = await matching()
            replaced = self._replaced
            hurried = races >= _RACES
            mask = await self._scans.run(0 if hurried else decided.effort, decided.mask)
            wanted = mask & view.alive
            found = None if races else await self._matching_through_graph(query, k, view, wanted)
            if found is None:
                size = 0 if hurried else view.effort(int(np.count_nonzero(wanted)))
                found = await self._scans.run(size, _scan, view, query, k, wanted)
            if self._undisturbed(found, replaced):
                return found
            races += 1

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

    async def _exactly(self, query: Vector, k: int) -> Found:
        races = 0
        while True:
            view, replaced = self.view(), self._replaced
            # A record deleted while a thread scans leaves the answer short: scan again, at last right here.
            size = view.bytes if races < _RACES else 0
            found = await self._scans.run(size, _scan, view, query, k, None)
            if self._undisturbed(found, replaced):
                return found
            races += 1

    async def _through_graph(self, query: Vector, k: int) -> Found | None:
        sealed = self._sealed
        if sealed is None or (reach := self._reach(sealed, k)) is None:
            return None
        proposed = await self._proposed(sealed, query, reach)
        if proposed is None:
            return None
        view, replaced = self.view(), self._replaced
        slots = view.slots(proposed)
        if len(slots) < k:
            return None
        known = _measured(view, slots, query, k)
        found = _merged(known, await self._tail(view, query, k, sealed, None), k)
        return found if self._undisturbed(found, replaced) else None

    async def _matching_through_graph(self, query: Vector, k: int, view: View, wanted: Mask) -> Found | None:
        """Of the view's records that are wanted; None when the planner or the graph leaves them to a scan."""
        sealed = self._sealed
        reach = None if sealed is None else self._reach_matching(sealed, k, view, wanted)
        if sealed is None or reach is None:
            self._scans.filtered_exact.inc()
            return None
        proposed = await self._proposed(sealed, query, reach)
        slots = np.empty(0, np.int64) if proposed is None else view.slots(proposed)
        slots = slots[wanted[slots]]
        if len(slots) < k:
            self._scans.filtered_both.inc()
            return None
        self._scans.filtered_by_graph.inc()
        known = _measured(view, slots, query, k)
        return _merged(known, await self._tail(view, query, k, sealed, wanted), k)

    def _reach_matching(self, sealed: Sealed, k: int, view: View, wanted: Mask) -> int | None:
        known = int(np.count_nonzero(wanted[: view.after(sealed.through)]))
        return planner.reach(
            k,
            known,
            sealed.size,
            ef=self._settings.ef,
            dim=self._dim,
            scanned=view.effort(int(np.count_nonzero(wanted))),
        )

    async def _proposed(self, sealed: Sealed, query: Vector, reach: int) -> Positions | None:
        """Labels, ascending, of about so many nearest that the graph knows; None when it is lost."""
        proposed = await self._graphs.query(sealed, query, reach, max(self._settings.ef, reach))
        if proposed is None:
            self._lose(sealed)
            return None
        # In order and each once, whatever the other process says.
        believed = np.unique(proposed)
        return believed[believed <= sealed.through]

    async def _tail(self, view: View, query: Vector, k: int, sealed: Sealed, wanted: Mask | None) -> Found:
        """The k nearest of the view's records that the graph does not know."""
        first = view.after(sealed.through)
        size = (len(view.labels) - first) * self._dim * 4
        return await self._scans.run(size, view.scan, query, k, wanted, first)

    def _undisturbed(self, found: Found, replaced: int) -> bool:
        """Whether nothing that was found has been deleted since, and nothing at all replaced: the old record
        may have been missed where the view has no new one.
        """
        return self._replaced == replaced and len(self.view().slots(found[0])) == len(found[0])

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
        if self._seal_due() and not (self._sealed is None and await self._restore()):
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
        self._use(sealed)
        await self._keep(sealed)

    async def _restore(self) -> bool:
        """Search by the graph that was kept; False where there is none and one is to be built."""
        try:
            for saved in await self._folder.saved():
                sealed = await self._graphs.load(saved, self.view(), self._folder)
                if sealed is not None:
                    self._scans.graphs.labels("restored").inc()
                    self._use(sealed)
                    return True
                self._scans.graphs.labels("refused").inc()
        except (WorkerLost, WorkerRefused) as error:
            self._delay()
            _log.warning("the saved graph waits for its process, answers stay exact: %s", error)
            return True
        except StorageFailed as error:
            _log.warning("the saved graph is not read and one is built anew: %s", error)
        except NotFound:  # the collection is being removed, and its key is gone
            return True
        return False

    async def _keep(self, sealed: Sealed) -> None:
        """Have the graph on the disk, in the place of the ones before."""
        try:
            before = await self._folder.saved()
            if await self._graphs.save(sealed, self.view(), self._folder) is not None:
                await self._folder.remove(*before)
        except StorageFailed as error:
            _log.warning("graphs that are not needed any more stay for now: %s", error)
        except NotFound:
            return  # as above

    def _use(self, sealed: Sealed) -> None:
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


def _scan(view: View, query: Vector, k: int, wanted: Mask | None) -> Found:
    return view.scan(query, k, wanted)


def _measured(view: View, slots: Positions, query: Vector, k: int) -> Found:
    """What may be the k nearest of these slots, measured exactly."""
    rows = view.rows(slots)
    best = exact.contenders(rows @ query, k, view.dim)
    return view.labels[slots[best]], exact.distances(rows[best], query)


def _merged(one: Found, other: Found, k: int) -> Found:
    """The k nearest of both."""
    labels, measured = (np.concatenate(pair) for pair in zip(one, other, strict=True))
    return exact.nearest(labels, measured, k)
