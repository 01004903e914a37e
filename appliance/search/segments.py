"""The searchable side of one collection: every vector, sealed graphs over most, tombstones over both.

Each graph is over the records of a range of labels and is never changed. A search takes what all of them
propose, measures it again on the exact vectors, and scans the tail of records that are younger than the last
graph. Dead records stay in a graph until it is built anew, and a filter leaves others out (see `planner`), so
more is asked of it than is wanted. Where that is not enough, and while there is no graph, every vector that
matches is scanned. Graphs are kept in files and restored from them (see `keeping`).

Upkeep is one thing after the other, but for long merges (see `tiers`). One goes on by itself, over graphs
that stay in use until it ends, while upkeep sees to what is younger: the tail, and graphs that came since.
When their merge is long as well, it goes on beside the first.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from appliance import config
from appliance.errors import NotFound, StorageFailed, WorkerLost, WorkerRefused
from appliance.process import trim_memory
from appliance.search import keeping, proposals, tiers, tuning
from appliance.search.columns import Matching, Wanted
from appliance.search.exact import Found, Positions
from appliance.search.graph_files import GraphFolder
from appliance.search.proposals import Segment
from appliance.search.records import Vector
from appliance.search.scans import Scans
from appliance.search.sealed import Proposed, Sealed, SealedGraphs
from appliance.search.tuning import Tuned
from appliance.search.vectors import QUERIES_TOGETHER, Mask, Vectors, View

_QUERIES_A_READ = 4
"""So many queries together take about as long as reading the rows for one (measured)."""
_LARGE_SHARE = 0.2
"""Of dead rows: building anew then costs less than searching around. Of new ones in graphs: tuning is due."""
_FEW_DEAD = 256
_UNTUNED_EF = 64
_RACES = 3
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sealing:
    """How the records of a collection are held."""

    segments: tuple[tuple[int, int], ...]
    """Of each graph the records that it knows, and how many of these are dead; oldest first."""
    tail: int
    """Records that no graph knows: they are scanned."""
    tuned: Tuned | None
    """None before there are graphs, and until they are tuned."""


class _Work(NamedTuple):
    """The labels, above one and up to another, that are to get one new graph; a `long` one need not be waited
    for.
    """

    above: int
    through: int
    long: bool = False


class _Moment(NamedTuple):
    """How many records have been taken out so far, and how many of them for others in their place."""

    killed: int = 0
    replaced: int = 0


class Segments:
    """One collection's vectors and, while there are any, its graphs; on the event loop only."""

    def __init__(
        self,
        settings: config.Search,
        dim: int,
        graphs: SealedGraphs,
        scans: Scans,
        *,
        folder: GraphFolder,
        moved: Callable[[Positions], None],
        target: float,
    ) -> None:
        """Graphs are kept in `folder`. `moved` is told the old slot of every slot when compaction moves the
        vectors. `target` is the recall of graphs, see `tuning`.
        """
        self._settings = settings
        self._dim = dim
        self._graphs = graphs
        self._folder = folder
        self._scans = scans
        self._moved = moved
        self._target = target
        self._vectors = Vectors(dim)
        self._segments: tuple[Segment, ...] = ()
        self._tail = 0
        self._apart = 0.0
        """What searches have cost more than with one graph over everything, see `tiers.apart`."""
        self._tuned: Tuned | None = None
        self._untuned = False
        self._moment = _Moment()
        self._upkeep: asyncio.Task[None] | None = None
        self._merges: dict[asyncio.Task[None], int] = {}
        """The label of each up to which there were graphs when it began: upkeep leaves these to it."""
        self._losses = 0
        """How often the graphs were dropped: what was built to join them is of no use then."""
        self._closed = False
        self._pause = 0.0
        self._not_before = 0.0

    @property
    def count(self) -> int:
        """Records that can be found."""
        return self._vectors.count

    @property
    def known(self) -> int | None:
        """How many living records the graphs know, None while there are none."""
        return sum(segment.living for segment in self._segments) if self._segments else None

    @property
    def sealing(self) -> Sealing:
        """How the records are held now."""
        parts = tuple((segment.sealed.size, segment.dead) for segment in self._segments)
        return Sealing(parts, self._tail, self._tuned if self._segments else None)

    @property
    def bytes(self) -> int:
        """What it takes in memory, the graphs in the other process included, about."""
        return self._vectors.bytes + sum(segment.sealed.memory for segment in self._segments)

    def expected_bytes(self, rows: int) -> int:
        """What so many rows will take, without graphs."""
        return self._vectors.expected_bytes(rows)

    @property
    def tended(self) -> bool:
        """Whether upkeep is under way."""
        return bool(self._under_way())

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
        self._tail += len(labels)
        self._apart = max(0.0, self._apart - tiers.AGAIN * tiers.building(len(labels)))
        return first

    def kill(self, label: int, *, replaced: bool = False) -> bool:
        """Take a record out of every later answer and erase its vector; False when it is not here.

        `replaced`: another one has come in its place. A search that is under way looks again.
        """
        killed = self._vectors.kill(label)
        self._moment = _Moment(self._moment.killed + killed, self._moment.replaced + replaced)
        if killed:
            for segment in self._segments:
                if label <= segment.through:
                    segment.dead += 1
                    break
            else:
                self._tail -= 1
        return killed

    def aim(self, target: float) -> None:
        """Have the graphs tuned to another recall, when upkeep comes to it."""
        self._target = target
        self._untuned = True

    async def nearest(self, queries: Vector, k: int, *, exactly: bool = False) -> list[Found]:
        """For each query (n, dim) labels and distances of the k nearest records (all, if there are fewer),
        ascending.

        `exactly`: without the graphs.
        """
        self.tend()
        answers: list[Found] = []
        for some in _together(queries):
            found: list[Found | None] = [None] * len(some)
            if not exactly:
                found = await self._through_graphs(some, k, self._ef)
            left = [n for n, one in enumerate(found) if one is None]
            self._apart += (len(some) - len(left)) * tiers.apart(len(self._segments), self._tail)
            self._scans.by_graph.inc(len(some) - len(left))
            if left:
                self._scans.exact.inc(len(left))
                for n, one in zip(left, await self._exactly(some[left], k), strict=True):
                    found[n] = one
            answers += [one for one in found if one is not None]
        return answers

    async def nearest_matching(
        self,
        queries: Vector,
        k: int,
        matching: Callable[[], Awaitable[tuple[Matching, View]]],
        *,
        exactly: bool = False,
    ) -> list[Found]:
        """As `nearest`, among the records that match: always k when k match."""
        self.tend()
        answers: list[Found] = []
        for some in _together(queries):
            answers += await self._nearest_matching(some, k, matching, exactly=exactly)
        return answers

    async def seal(self) -> None:
        """Build one graph over every record now, if the collection is large enough to have one."""
        await self.settle()
        if self._large() and not self._closed:
            self._start(self._build_whole)
            await self.settle()

    async def settle(self) -> None:
        """Return when no upkeep is under way."""
        while under_way := self._under_way():
            await asyncio.wait(under_way)

    async def close(self) -> None:
        """Stop the upkeep and drop the graphs; their files stay."""
        self._closed = True
        for task in self._under_way():
            task.cancel()
        await self.settle()
        self.drop()

    def drop(self) -> None:
        """Drop the graphs, and start no upkeep any more; only while none is under way. Their files stay."""
        self._closed = True
        self._unseal()

    def tend(self) -> None:
        """Start upkeep in the background if it is due; to be called after changes."""
        if self._upkeep is not None or self._closed:
            return
        due = self._crowded() or self._work() is not None or (self._segments and self._small())
        if (due or self._untuned) and asyncio.get_running_loop().time() >= self._not_before:
            self._start(self._tend)

    async def _nearest_matching(
        self,
        queries: Vector,
        k: int,
        matching: Callable[[], Awaitable[tuple[Matching, View]]],
        *,
        exactly: bool,
    ) -> list[Found]:
        answers: list[Found | None] = [None] * len(queries)
        races = 0
        while pending := [n for n, one in enumerate(answers) if one is None]:
            decided, view = await matching()
            moment = self._moment
            hurried = races >= _RACES
            mask = await self._scans.run(0 if hurried else decided.effort, decided.mask)
            wanted = decided.among(mask, view, moment)
            some = queries[pending]
            found: list[Found | None] = [None] * len(some)
            if not races and not exactly:
                found = await self._matching_through_graphs(some, k, view, wanted)
            left = [n for n, one in enumerate(found) if one is None]
            if left:
                size = 0 if hurried else _reads(len(left)) * view.effort(wanted.within(0, len(view.labels)))
                scanned = await self._scans.run(size, _scan, view, some[left], k, wanted.mask)
                for n, answer in zip(left, scanned, strict=True):
                    found[n] = answer
            for n, one in zip(pending, self._undisturbed(found, moment), strict=True):
                answers[n] = one
            races += 1
        return [one for one in answers if one is not None]

    async def _exactly(self, queries: Vector, k: int) -> list[Found]:
        answers: list[Found | None] = [None] * len(queries)
        races = 0
        while pending := [n for n, one in enumerate(answers) if one is None]:
            view, moment = self.view(), self._moment
            # A record deleted while a thread scans leaves the answer short: scan again, at last right here.
            size = _reads(len(pending)) * view.bytes if races < _RACES else 0
            found = await self._scans.run(size, _scan, view, queries[pending], k, None)
            for n, one in zip(pending, self._undisturbed(found, moment), strict=True):
                answers[n] = one
            races += 1
        return [one for one in answers if one is not None]

    @property
    def _ef(self) -> int:
        return max(self._settings.ef, self._tuned.ef if self._tuned else _UNTUNED_EF)

    async def _through_graphs(self, queries: Vector, k: int, ef: int) -> list[Found | None]:
        """None for a query that is left to a scan."""
        segments = self._segments
        asks = proposals.asks(segments, k, ef) if (self.known or 0) + self._tail >= k else []
        proposed = await self._graphs.query(asks, queries) if asks else None
        if proposed is None:
            if asks:
                self._lose(segments)
            return [None] * len(queries)
        view, moment = self.view(), self._moment
        found = await self._measured(segments, proposed, queries, k, view, None)
        return list(self._undisturbed(proposals.complete(found, proposed, k), moment))

    async def _matching_through_graphs(
        self, queries: Vector, k: int, view: View, wanted: Wanted
    ) -> list[Found | None]:
        """Of the view's records that are wanted; None for a query that is left to a scan."""
        segments = self._segments
        asks = proposals.asks_matching(segments, k, self._ef, view, wanted)
        found: list[Found | None] = [None] * len(queries)
        proposed = await self._graphs.query(asks, queries) if asks else None
        if proposed is not None:
            self._apart += len(queries) * tiers.apart(len(segments), self._tail)
            measured = await self._measured(segments, proposed, queries, k, view, wanted.mask)
            found = proposals.complete(measured, proposed, k)
        elif asks:
            self._lose(segments)
        left = found.count(None)
        self._scans.filtered_by_graph.inc(len(found) - left)
        (self._scans.filtered_both if asks else self._scans.filtered_exact).inc(left)
        return found

    async def _measured(  # noqa: PLR0917 -- what is searched, and among what
        self,
        segments: Sequence[Segment],
        proposed: Proposed,
        queries: Vector,
        k: int,
        view: View,
        wanted: Mask | None,
    ) -> list[Found]:
        """The k nearest of what is proposed for each query and of the records that no graph knows."""
        tail = view.after(segments[-1].through)
        nominated = proposals.nominated(proposed, view, tail, wanted)
        size = _reads(len(queries)) * (len(view.labels) - tail) * self._dim * 4
        return await self._scans.run(size, view.scan, queries, k, wanted, tail, nominated)

    def _undisturbed(self, found: Sequence[Found | None], moment: _Moment) -> Sequence[Found | None]:
        """None in the place of each answer of which something has been deleted since; of all when anything
        has been replaced: the old record may have been missed where the view has no new one.
        """
        if self._moment == moment:
            return found
        if self._moment.replaced != moment.replaced:
            return [None] * len(found)
        view = self.view()
        return [one if one is not None and len(view.slots(one[0])) == len(one[0]) else None for one in found]

    def _large(self) -> bool:
        return self._vectors.count * self._dim * 4 > self._settings.flat_bytes

    def _small(self) -> bool:
        # Half, so that a collection of just this size does not build and drop its graph in turns.
        return self._vectors.count * self._dim * 4 <= self._settings.flat_bytes // 2

    def _crowded(self) -> bool:
        if self._merges:  # they read what would be copied, and the copy would not let go of it
            return False
        dead = self._vectors.slots - self._vectors.count
        return dead > max(_FEW_DEAD, _LARGE_SHARE * self._vectors.slots)

    def _work(self) -> _Work | None:
        """What is to be built, beside the merges that are under way; None while nothing is due."""
        if not self._large() or (self._merges and not self._segments):  # merges of graphs that are lost end
            return None
        if not self._segments:
            return _Work(-1, self._youngest)
        floor, most = (max(self._merges.values()), tiers.BESIDE) if self._merges else (-1, tiers.MOST)
        segments = [one for one in self._segments if one.above >= floor]
        portion = max(1, self._settings.tail_bytes // (self._dim * 4))
        if not self._merges and self._apart > tiers.building(self.count):
            if not tiers.is_long(self.count, portion):
                return _Work(-1, self._youngest)
            return _Work(self._end, self._youngest) if self._tail else _Work(-1, self._end, long=True)
        step = tiers.due([one.sealed.size for one in segments], self._tail, portion, most)
        if step is not None:
            above = segments[step.kept - 1].through if step.kept else floor
            return _Work(above, self._youngest if step.tail else self._end, step.long)
        for one in segments:
            if one.dead > _LARGE_SHARE * one.sealed.size:
                return _Work(one.above, one.through, tiers.is_long(one.living, portion))
        return None

    def _under_way(self) -> list[asyncio.Task[None]]:
        return [*self._merges, *([] if self._upkeep is None else [self._upkeep])]

    def _start(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        self._upkeep = asyncio.get_running_loop().create_task(work())
        self._upkeep.add_done_callback(self._ended)

    def _merge(self, work: _Work) -> None:
        merge = asyncio.get_running_loop().create_task(self._build(work.above, work.through))
        self._merges[merge] = self._end
        merge.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task is self._upkeep:
            self._upkeep = None
        self._merges.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("upkeep of a collection failed", exc_info=error)
            self._delay()
        trim_memory()  # vectors and links went through here on their way
        self.tend()  # what changed meanwhile may need more of it

    async def _tend(self) -> None:
        if self._segments and self._small():
            self._unseal()
        if self._crowded():
            await self._compact()
        if not self._segments and self._work() is not None and not await self._restore():
            return
        if (work := self._work()) is not None and work.long:
            self._merge(work)
        elif work is not None:
            await self._build(work.above, work.through)
        if self._untuned:
            await self._tune()

    async def _compact(self) -> None:
        view = self.view()
        compact, kept = await self._scans.run(view.bytes, self._vectors.without_dead, view)
        old_slots = compact.catch_up(self._vectors, view, kept)
        self._vectors = compact
        self._moved(old_slots)

    async def _build_whole(self) -> None:
        await self._build(-1, self._youngest)
        if self._untuned:
            await self._tune()

    async def _build(self, above: int, through: int) -> None:
        """Put a graph over the records of these labels in the place of those that know some of them."""
        losses, view = self._losses, self.view()
        sealed: Sealed | None = None
        if view.alive[view.after(above) : view.after(through)].any():
            try:
                sealed = await self._graphs.build(view, above, through)
            except (WorkerLost, WorkerRefused) as error:
                self._scans.graphs.labels("failed").inc()
                self._delay()
                _log.warning("no graph could be built, answers stay exact: %s", error)
                return
            self._scans.graphs.labels("built").inc()
        if self._losses != losses:  # what it was to stand beside is gone, and a scan knows no gaps
            if sealed is not None:
                self._graphs.drop(sealed)
            return
        self._use(sealed, above, through)
        await keeping.keep(self._graphs, self._folder, self.view(), sealed, above=above, through=through)

    async def _restore(self) -> bool:
        """Search by the graphs that were kept, in order of labels until one is missing; False where it is not
        yet the time to build what is.
        """
        try:
            for saved in await keeping.kept(self._folder):
                before, view, above = self._segments, self.view(), saved.manifest.after
                if above < self._end or view.alive[view.after(self._end) : view.after(above)].any():
                    break
                sealed = await self._graphs.load(saved, view, self._folder)
                self._scans.graphs.labels("refused" if sealed is None else "restored").inc()
                if sealed is None:
                    continue
                if self._segments is not before:  # the process was lost meanwhile
                    self._graphs.drop(sealed)
                    return False
                self._use(sealed, sealed.after, sealed.through)
        except (WorkerLost, WorkerRefused) as error:
            self._unseal()
            self._delay()
            _log.warning("saved graphs wait for their process, answers stay exact: %s", error)
            return False
        except StorageFailed as error:
            _log.warning("saved graphs are not read and built anew: %s", error)
        except NotFound:  # the collection is being removed, and its key is gone
            self._delay()
            return False
        return True

    def _use(self, sealed: Sealed | None, above: int, through: int) -> None:
        """Have a graph, None where no record lives, in the place of those that know some of these labels."""
        self._pause = 0.0
        if above < 0:
            self._apart = 0.0
        before, now, built = self._segments, self.view(), list[Segment]()
        if sealed is not None:
            living = int(np.count_nonzero(now.alive[now.after(above) : now.after(through)]))
            built = [Segment(sealed, sealed.size - living)]
            self._untuned |= self._tuned is None or living > _LARGE_SHARE * self.count
        older = [one for one in before if one.through <= above]
        newer = [one for one in before if one.above >= through]
        self._segments = (*older, *built, *newer)
        self._drop(one for one in before if one not in self._segments)
        self._tail = int(np.count_nonzero(now.alive[now.after(self._end) :]))

    @property
    def _youngest(self) -> int:
        return int(self.view().labels[-1])

    @property
    def _end(self) -> int:
        """No graph knows a label above it."""
        return self._segments[-1].through if self._segments else -1

    async def _tune(self) -> None:
        """Find the candidates to look at for the recall that is asked for."""
        self._untuned = False
        if not self._segments:
            return
        view = self.view()
        known = np.flatnonzero(view.alive[: view.after(self._end)])
        chosen = np.random.default_rng(len(known)).choice(
            known, min(tuning.SAMPLE, len(known)), replace=False
        )
        queries = await self._moved_away(view, np.sort(chosen))
        size = _reads(len(queries)) * view.bytes
        true = await self._scans.run(size, _scan, view, queries, tuning.K, None)
        found = await tuning.tuned(queries, true, self._target, self._through_graphs)
        if self._segments:  # else they were lost meanwhile, and nothing was measured
            self._tuned = found

    async def _moved_away(self, view: View, slots: Positions) -> Vector:
        """Queries made of these records and, as far as the graphs know them, their nearest neighbours."""
        records, neighbours = view.rows(slots), view.rows(slots)
        for low in range(0, len(slots), QUERIES_TOGETHER):
            some = slice(low, low + QUERIES_TOGETHER)
            pairs = await self._through_graphs(records[some], 2, _UNTUNED_EF)
            for n, (slot, pair) in enumerate(zip(slots[some], pairs, strict=True), low):
                if pair is not None:
                    other = view.slots(pair[0][pair[0] != view.labels[slot]])[:1]
                    neighbours[n : n + len(other)] = view.rows(other)
        return tuning.moved(records, neighbours)

    def _lose(self, segments: Sequence[Segment]) -> None:
        """They are gone with their process, or with one of them nothing is found any more."""
        if self._segments is segments:
            self._scans.graphs.labels("lost").inc()
            self._unseal()
            self._delay()

    def _unseal(self) -> None:
        self._drop(self._segments)
        self._segments = ()
        self._tail = self.count
        self._losses += 1
        for merge in self._merges:
            merge.cancel()

    def _drop(self, segments: Iterable[Segment]) -> None:
        for segment in segments:
            self._graphs.drop(segment.sealed)

    def _delay(self) -> None:
        """Do not try again at once, and each time later."""
        self._pause = min(max(2 * self._pause, _SHORTEST_PAUSE), _LONGEST_PAUSE)
        self._not_before = asyncio.get_running_loop().time() + self._pause


def _together(queries: Vector) -> Iterator[Vector]:
    for low in range(0, len(queries), QUERIES_TOGETHER):
        yield queries[low : low + QUERIES_TOGETHER]


def _reads(queries: int) -> int:
    """How many scans for one query take as long as one for so many together."""
    return -(-queries // _QUERIES_A_READ)


def _scan(view: View, queries: Vector, k: int, wanted: Mask | None) -> list[Found]:
    return view.scan(queries, k, wanted)
