"""All vectors of one collection in RAM, and the exact scan over them.

Rows lie in blocks that are never moved: growing appends a block, so the event loop copies no gigabyte and a
scan in a thread keeps what it reads. Slots are in order of labels. Only the event loop changes `Vectors`; any
thread may use a `View` of it meanwhile.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

import numpy as np
import numpy.typing as npt

from appliance.search import exact
from appliance.search.exact import Found, Positions
from appliance.search.records import Vector

Mask = npt.NDArray[np.bool_]

_FIRST_ROWS = 64
_BLOCK_BYTES = 16 << 20
_GATHER_SHARE = 3
"""Below 1/3 of the rows it is cheaper to copy the wanted rows together than to score all (measured)."""
_GATHER_EFFORT = 2.2
"""A row that is copied takes about as long as so many in order (measured)."""
_GATHER_BYTES = 256 << 10
"""Copied at once: what stays in a core's own cache until it is scored."""
_FEW = 64
"""So many rows, or twice as many as wanted, are measured at once; of more it is cheaper to see first which
may be nearest."""
_MEASURED_TOGETHER = 4096
"""Rows, of several queries: a few megabytes."""
QUERIES_TOGETHER = 16
"""In one pass over the rows, and in one message to the graphs; then others get their turn."""


@dataclass(frozen=True, slots=True)
class View:
    """The vectors as they were at one moment: later rows are not in it, later deletions may be.

    `labels` (int64, ascending) and `alive` are parallel to the slots; a dead slot's vector is zero.
    """

    blocks: tuple[Vector, ...]
    starts: tuple[int, ...]
    labels: Positions
    alive: Mask
    dim: int

    @property
    def bytes(self) -> int:
        """What a scan of everything reads."""
        return len(self.labels) * self.dim * 4

    def effort(self, matches: int) -> int:
        """The bytes that could be read in order in the time of a scan for so many wanted rows."""
        if matches * _GATHER_SHARE < len(self.labels):
            return int(_GATHER_EFFORT * matches * self.dim * 4)
        return self.bytes

    def after(self, label: int) -> int:
        """The first slot whose label is greater."""
        return int(self.labels.searchsorted(label, side="right"))

    def slots(self, labels: Positions) -> Positions:
        """The slots of those labels that are here and alive, in the order of `labels`."""
        if not len(self.labels):
            return np.empty(0, np.int64)
        slots = self.places(labels)
        here: Positions = slots[(self.labels[slots] == labels) & self.alive[slots]]
        return here

    def places(self, labels: Positions) -> Positions:
        """The slot of each of these labels that is here, any slot for another one; only if there is one."""
        last = len(self.labels) - 1
        # Where no label is left out there is nothing to look for, which costs two hundred labels 0.1 ms.
        if self.labels[last] - self.labels[0] == last:
            places: Positions = np.maximum(labels - self.labels[0], 0)
        else:
            places = self.labels.searchsorted(labels)
        return np.minimum(places, last)

    def rows(self, slots: Positions) -> Vector:
        """The vectors of ascending slots, copied together: float32 (len(slots), dim)."""
        gathered = np.empty((len(slots), self.dim), np.float32)
        for block, start, part in self._parts(slots):
            # "clip" copies once, "raise" twice.
            block.take(slots[part] - start, axis=0, out=gathered[part], mode="clip")
        return gathered

    def part(self, first: int, last: int) -> "View":
        """The slots from `first` to before `last`, as a view of their own."""
        starts = tuple(start - first for start in self.starts)
        return View(self.blocks, starts, self.labels[first:last], self.alive[first:last], self.dim)

    def scan(
        self,
        queries: Vector,
        k: int,
        wanted: Mask | None = None,
        first: int = 0,
        beside: Sequence[Positions] | None = None,
    ) -> list[Found]:
        """For each query (n, dim) the min(k, m) nearest alive rows from slot `first` on, exactly.

        `wanted` (one bool a slot) narrows them. `beside` has for each query ascending slots before `first`
        whose rows are nominated too, whatever `wanted` says of them. Queries have length 1. Ties in order of
        label.
        """
        found: list[Found] = []
        for low in range(0, len(queries), QUERIES_TOGETHER):
            some = queries[low : low + QUERIES_TOGETHER]
            slots = self._near(some, k, wanted, first)
            if beside is not None:
                slots = [_joined(*pair) for pair in zip(beside[low:], slots, strict=False)]
                slots = [self._fewer(query, one, k) for query, one in zip(some, slots, strict=True)]
            together = max(1, _MEASURED_TOGETHER // max(1, *map(len, slots)))
            for start in range(0, len(some), together):
                part = slice(start, start + together)
                found += self._nearest(some[part], slots[part], k)
        return found

    def _fewer(self, query: Vector, slots: Positions, k: int) -> Positions:
        """Those of these ascending slots that may be among the k nearest, where that leaves out many."""
        if len(slots) <= max(_FEW, 2 * k):
            return slots
        return slots[exact.contenders(self.rows(slots) @ query, k, self.dim)]

    def _nearest(self, queries: Vector, slots: Sequence[Positions], k: int) -> list[Found]:
        """The k nearest to each query of the ascending slots that it has, measured exactly."""
        found: list[Found] = []
        for one, measured in zip(slots, self._measured(queries, slots), strict=True):
            nearest = measured.argsort(kind="stable")[:k]  # labels ascend as slots do: ties stay in order
            found.append((self.labels[one[nearest]], measured[nearest]))
        return found

    def _measured(self, queries: Vector, slots: Sequence[Positions]) -> list[exact.Distances]:
        """How far from each query the slots are that it has."""
        if len(slots) == 1:
            return [exact.distances(self.rows(slots[0]), queries[0])]
        together = np.concatenate(slots)
        order = together.argsort(kind="stable")  # rows are read in order
        counts = [len(one) for one in slots]
        owner = np.repeat(np.arange(len(slots)), counts)
        measured = np.empty(len(together))
        measured[order] = exact.distances(self.rows(together[order]), queries[owner[order]])
        return [measured[end - count : end] for count, end in zip(counts, accumulate(counts), strict=True)]

    def _near(self, queries: Vector, k: int, wanted: Mask | None, first: int) -> list[Positions]:
        """For each query the slots, ascending, of all that may be among the k nearest from `first` on."""
        nothing = [np.empty(0, np.int64)] * len(queries)
        if first >= len(self.labels):
            return nothing
        # A copy: the loop may mark rows dead while this runs in a thread.
        eligible = self.alive[first:].copy() if wanted is None else self.alive[first:] & wanted[first:]
        matches = int(np.count_nonzero(eligible))
        if matches == 0:
            return nothing
        if matches * _GATHER_SHARE < len(eligible):
            slots = np.flatnonzero(eligible) + first
            gathered = self._gathered(queries, slots)
            return [slots[exact.contenders(scores, k, self.dim)] for scores in gathered]
        whole = self._scores(queries, first)
        if matches < len(eligible):
            whole[:, ~eligible] = -np.inf
        return [first + exact.contenders(scores, min(k, matches), self.dim) for scores in whole]

    def _scores(self, queries: Vector, first: int) -> exact.Scores:
        scores = np.empty((len(queries), len(self.labels) - first), np.float32)
        for block, start in zip(self.blocks, self.starts, strict=True):
            low, high = max(start, first), min(start + len(block), len(self.labels))
            if low < high:
                _multiply(queries, block[low - start : high - start], scores[:, low - first : high - first])
        return scores

    def _gathered(self, queries: Vector, slots: Positions) -> exact.Scores:
        """Of ascending slots alone."""
        scores = np.empty((len(queries), len(slots)), np.float32)
        step = max(1, _GATHER_BYTES // (self.dim * 4))
        together = np.empty((min(step, len(slots)), self.dim), np.float32)
        for block, start, part in self._parts(slots):
            for low in range(part.start, part.stop, step):
                some = slice(low, min(low + step, part.stop))
                rows = together[: some.stop - some.start]
                np.take(block, slots[some] - start, axis=0, out=rows, mode="clip")
                _multiply(queries, rows, scores[:, some])
        return scores

    def _parts(self, slots: Positions) -> Iterator[tuple[Vector, int, slice]]:
        """Each block that holds some of the ascending slots, its first slot, and its part of `slots`."""
        bounds = [*slots.searchsorted(self.starts).tolist(), len(slots)]
        for number, (block, start) in enumerate(zip(self.blocks, self.starts, strict=True)):
            if bounds[number] < bounds[number + 1]:
                yield block, start, slice(bounds[number], bounds[number + 1])


class Vectors:
    """The growing store behind the views; `expected` rows get their room at once."""

    def __init__(self, dim: int, expected: int = 0) -> None:
        self._dim = dim
        self._blocks: list[Vector] = []
        self._starts: list[int] = []
        self._room = 0
        self._used = 0
        self._labels = np.empty(expected, np.int64)
        self._alive = np.zeros(expected, np.bool_)
        self.count = 0
        """Rows that are alive."""
        while self._room < expected:
            self._add_block(min(expected - self._room, self._most))

    @property
    def slots(self) -> int:
        """Rows, dead ones included."""
        return self._used

    @property
    def bytes(self) -> int:
        """Memory that is taken, room for later rows included."""
        return self._room * self._dim * 4 + self._labels.nbytes + self._alive.nbytes

    def expected_bytes(self, rows: int) -> int:
        """What so many rows take that got their room at once."""
        return rows * (self._dim * 4 + self._labels.itemsize + self._alive.itemsize)

    def view(self) -> View:
        used = self._used
        return View(
            tuple(self._blocks), tuple(self._starts), self._labels[:used], self._alive[:used], self._dim
        )

    def append(self, labels: Sequence[int] | Positions, rows: Vector) -> None:
        """Add rows (n, dim) of length 1 whose labels are greater than all before, ascending."""
        stored = 0
        while stored < len(labels):
            if self._used == self._room:
                self._grow(len(labels) - stored)
            block, inside = self._place(self._used)
            taken = min(len(labels) - stored, len(block) - inside)
            block[inside : inside + taken] = rows[stored : stored + taken]
            new = slice(self._used, self._used + taken)
            self._labels[new] = labels[stored : stored + taken]
            self._alive[new] = True
            self._used += taken
            stored += taken
        self.count += len(labels)

    def kill(self, label: int) -> bool:
        """Take a row out of every later scan and zero its vector; False when it is not here."""
        slots = self.view().slots(np.array([label]))
        if not len(slots):
            return False
        slot = int(slots[0])
        self._alive[slot] = False
        block, inside = self._place(slot)
        block[inside] = 0.0
        self.count -= 1
        return True

    def without_dead(self, view: View) -> tuple[Self, Positions]:
        """A copy of the view's living rows, and the slots they had; may run in a thread, see `catch_up`."""
        kept = np.flatnonzero(view.alive)
        compact = type(self)(self._dim, len(kept))
        step = max(1, _BLOCK_BYTES // (self._dim * 4))
        for low in range(0, len(kept), step):
            slots = kept[low : low + step]
            compact.append(view.labels[slots], view.rows(slots))
        return compact, kept

    def catch_up(self, old: Self, view: View, kept: Positions) -> Positions:
        """Repeat what happened to `old` since `without_dead(view)` made this copy of it; on the event loop.

        Returns the old slot of each slot here, ascending.
        """
        now = old.view()
        for label in view.labels[kept][~now.alive[kept]].tolist():
            self.kill(label)
        later = np.flatnonzero(now.alive[len(view.labels) :]) + len(view.labels)
        self.append(now.labels[later], now.rows(later))
        return np.concatenate([kept, later])

    @property
    def _most(self) -> int:
        """Rows in a block."""
        return max(1, _BLOCK_BYTES // (self._dim * 4))

    def _place(self, slot: int) -> tuple[Vector, int]:
        """Its block, and the row there."""
        number = bisect_right(self._starts, slot) - 1
        return self._blocks[number], slot - self._starts[number]

    def _grow(self, rows: int) -> None:
        self._add_block(min(max(rows, self._room, _FIRST_ROWS), self._most))
        if self._room > len(self._labels):
            room = max(self._room, 2 * len(self._labels))
            self._labels = np.concatenate([self._labels, np.empty(room - len(self._labels), np.int64)])
            self._alive = np.concatenate([self._alive, np.zeros(room - len(self._alive), np.bool_)])

    def _add_block(self, rows: int) -> None:
        self._starts.append(self._room)
        self._blocks.append(np.empty((rows, self._dim), np.float32))
        self._room += rows


def _multiply(queries: Vector, rows: Vector, scores: exact.Scores) -> None:
    """The products of n queries and m rows, into `scores` (n, m)."""
    if len(queries) == 1:
        np.dot(rows, queries[0], out=scores[0])
    else:
        scores[:] = queries @ rows.T


def _joined(before: Positions, after: Positions) -> Positions:
    return np.concatenate([before, after]) if len(after) else before
