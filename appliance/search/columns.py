"""Metadata fields that filters ask for, held in RAM as one small number a record.

A column is built from the ledger when a filter first names its field, and follows every later change.
Distinct values are numbered, so that a condition is decided once a value and spread over the records by
numpy; what decides by several fields is combined record by record.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from appliance.search.exact import Positions
from appliance.search.expressions import AllOf, Compared, Condition, Expression, Missing, OneOf, Test
from appliance.search.filters import MAX_FIELDS, Filter
from appliance.search.records import Metadata, Record
from appliance.search.values import Chosen, Codes, Values, reached
from appliance.search.vectors import Mask, View

ID_FIELD = "_id"
MAX_COLUMNS = 2 * MAX_FIELDS
"""Of one collection; the least recently used one goes, and is built again when it is asked for."""
MAX_DECIDED = 8
"""Filters of one collection that stay decided while nothing changes: two bytes a record each."""
_SPREAD_EFFORT, _VALUE_EFFORT, _STRING_EFFORT = 25, 15, 300
"""Bytes that are read in the time for one slot of a field, one value of a condition, one string compared."""
_VALUE_BYTES = 250
"""What a distinct value takes in memory, about: itself, its numbers, its place in the order."""
_STALE_FACTOR = 4
"""A column with this many times more numbered values than records is dropped: updates left them behind."""


class Wanted:
    """The records that match a filter and lived at one moment: `mask` has one bool a slot, and stays."""

    def __init__(self, mask: Mask) -> None:
        self.mask = mask
        self._counts: dict[tuple[int, int], int] = {}

    def within(self, first: int, last: int) -> int:
        """How many there are from one slot to before another, counted once."""
        if (first, last) not in self._counts:
            self._counts[first, last] = int(np.count_nonzero(self.mask[first:last]))
        return self._counts[first, last]


@dataclass(slots=True)
class Matching:
    """A filter decided for the records of one view; `mask` may be computed in any thread and is then kept."""

    where: Expression
    chosen: dict[Condition, Chosen]
    codes: dict[str, tuple[Codes, int]]
    """By field: the number of each slot's value, and how many numbers there were."""
    slots: int
    _mask: Mask | None = None
    _wanted: tuple[Hashable, Wanted] | None = None

    @property
    def effort(self) -> int:
        """The bytes that could be read in order in the time of `mask`."""
        if self._mask is not None:
            return 0
        spread = _SPREAD_EFFORT * self.slots * len(self.codes)
        return spread + sum(
            (_STRING_EFFORT if _compares_strings(one) else _VALUE_EFFORT) * self.codes[one.field][1]
            for one in self.chosen
        )

    def mask(self) -> Mask:
        """One bool a slot: whether its record matches; not to be changed."""
        if self._mask is None:
            self._mask = self._spread(*self._decide(self.where))
        return self._mask

    def among(self, mask: Mask, view: View, moment: Hashable) -> Wanted:
        """Those of the `mask` that live in the view. Kept for one `moment`: every death begins another."""
        if self._wanted is None or self._wanted[0] != moment:
            self._wanted = moment, Wanted(mask & view.alive)
        return self._wanted[1]

    def _decide(self, part: Expression) -> tuple[str | None, Mask]:
        """By value of the one field that decides, or by slot (None): values are fewer."""
        if isinstance(part, Condition):
            return part.field, self._table(part)
        combine = np.logical_and if isinstance(part, AllOf) else np.logical_or
        decided: dict[str | None, Mask] = {}
        for inner in part.parts:
            field, mask = self._decide(inner)
            decided[field] = combine(decided[field], mask) if field in decided else mask
        if len(decided) == 1:
            return next(iter(decided.items()))
        whole = np.full(self.slots, isinstance(part, AllOf))
        for field, mask in decided.items():
            combine(whole, self._spread(field, mask), out=whole)
        return None, whole

    def _table(self, condition: Condition) -> Mask:
        table = np.zeros(self.codes[condition.field][1] + 2, np.bool_)
        table[self.chosen[condition]()] = True
        if condition.negated:
            np.logical_not(table, out=table)
        # No record was seen there, and: a value that appears while this runs has a number past the end.
        table[0] = table[-1] = False
        return table

    def _spread(self, field: str | None, mask: Mask) -> Mask:
        return mask if field is None else mask.take(self.codes[field][0], mode="clip")


class Column:
    """One field: the number of its value for every slot, 0 where no record was seen."""

    def __init__(self, field: str, slots: int = 0) -> None:
        self._path = field.split(".")
        self._codes: Codes = np.zeros(slots, np.int32)
        self._values = Values()

    def fill(self, slots: int, known: Positions, numbers: Codes) -> None:
        """Start over with `slots` slots, of which the `known` ones have these numbers."""
        self._codes = np.zeros(slots, np.int32)
        self._codes[known] = numbers

    def number(self, metadata: Metadata) -> int:
        """The number of a record's value; `_id` is among its metadata."""
        return self._values.number(reached(metadata, self._path))

    def set(self, slot: int, metadata: Metadata) -> None:
        if slot >= len(self._codes):
            grown = np.zeros(max(slot + 1, 2 * len(self._codes)), np.int32)
            grown[: len(self._codes)] = self._codes
            self._codes = grown
        self._codes[slot] = self.number(metadata)

    def codes(self, slots: int) -> tuple[Codes, int]:
        """The numbers of the first `slots` slots, and how many there are by now."""
        if slots > len(self._codes):
            self._codes = np.concatenate([self._codes, np.zeros(slots - len(self._codes), np.int32)])
        return self._codes[:slots], len(self._values)

    def choose(self, test: Test) -> Chosen:
        """The numbers that satisfy it, found in any thread."""
        match test:
            case OneOf(wanted):
                return self._values.equal(wanted)
            case Compared(comparison, bound):
                return self._values.compared(comparison, bound)
            case Missing():
                return self._values.missing()

    def move(self, old_slots: Positions) -> None:
        """Slot n takes over what slot `old_slots[n]` had."""
        self._codes = self._codes[old_slots]

    @property
    def bytes(self) -> int:
        """What it takes in memory, about."""
        return self._codes.nbytes + _VALUE_BYTES * len(self._values)

    @property
    def stale(self) -> bool:
        return len(self._values) > _STALE_FACTOR * max(len(self._codes), 256)


class Columns:
    """The columns of one collection; on the event loop only.

    `read` gives the next page of (label, record) above a label, ascending, empty at the end; `view` shows
    where the records are now.
    """

    def __init__(
        self, read: Callable[[int], Awaitable[list[tuple[int, Record]]]], view: Callable[[], View]
    ) -> None:
        self._read = read
        self._view = view
        self._columns: dict[str, Column] = {}  # least recently used first
        self._decided: dict[Filter, Matching] = {}  # since the last change; least recently used first
        self._building = asyncio.Lock()
        self._changed: dict[int, Metadata] | None = None
        """While columns are being built: what was inserted or updated since."""

    @property
    def bytes(self) -> int:
        """What they take in memory, about."""
        if not self._columns:
            return 0
        masks = sum(2 * decided.slots for decided in self._decided.values())
        return masks + sum(column.bytes for column in self._columns.values())

    async def matching(self, wanted: Filter) -> tuple[Matching, View]:
        """The filter decided for every record of the view that comes with it."""
        while missing := wanted.fields - self._columns.keys():
            async with self._building:
                await self._build(missing - self._columns.keys())
        view = self._view()
        slots = len(view.labels)
        for field in wanted.fields:
            self._columns[field] = self._columns.pop(field)
        decided = self._decided.pop(wanted, None)
        if decided is None or decided.slots != slots:
            codes = {field: self._columns[field].codes(slots) for field in wanted.fields}
            chosen = {one: self._columns[one.field].choose(one.test) for one in wanted.conditions}
            decided = Matching(wanted.where, chosen, codes, slots)
        while len(self._decided) >= MAX_DECIDED:
            self._decided.pop(next(iter(self._decided)))
        self._decided[wanted] = decided
        return decided, view

    def set(self, label: int, slot: int, record: Record) -> None:
        """Follow an insert or an update that has been committed."""
        self._decided.clear()
        metadata = _with_id(record)
        if self._changed is not None:
            self._changed[label] = metadata
        for field, column in list(self._columns.items()):
            column.set(slot, metadata)
            if column.stale:
                del self._columns[field]

    def move(self, old_slots: Positions) -> None:
        """Follow the vectors to their new slots."""
        self._decided.clear()
        for column in self._columns.values():
            column.move(old_slots)

    async def _build(self, fields: AbstractSet[str]) -> None:
        if not fields:
            return
        self._changed = {}
        try:
            building = {field: Column(field) for field in fields}
            numbers: dict[str, list[Codes]] = {field: [np.empty(0, np.int32)] for field in fields}
            labels = [np.empty(0, np.int64)]
            last = -1
            while page := await self._read(last):
                last = page[-1][0]
                labels.append(np.array([label for label, _ in page], np.int64))
                records = [_with_id(record) for _, record in page]
                for field, column in building.items():
                    numbers[field].append(np.array([column.number(one) for one in records], np.int32))
                    await asyncio.sleep(0)  # milliseconds each: others' turn
            view = self._view()
            slots, here = _located(view, np.concatenate(labels))
            for field, column in building.items():
                column.fill(len(view.labels), slots, np.concatenate(numbers[field])[here])
                self._adopt(field, column, view, self._changed)
        finally:
            self._changed = None

    def _adopt(self, field: str, column: Column, view: View, changed: dict[int, Metadata]) -> None:
        for label, metadata in changed.items():
            for slot in view.slots(np.array([label])).tolist():
                column.set(slot, metadata)
        while len(self._columns) >= MAX_COLUMNS:
            self._columns.pop(next(iter(self._columns)))
        self._columns[field] = column


def _located(view: View, labels: Positions) -> tuple[Positions, Mask]:
    """The slots of those labels that have one, and which these are."""
    if not len(view.labels):
        return np.empty(0, np.int64), np.zeros(len(labels), np.bool_)
    slots = view.places(labels)
    here = view.labels[slots] == labels
    return slots[here], here


def _compares_strings(condition: Condition) -> bool:
    return isinstance(condition.test, Compared) and isinstance(condition.test.bound, str)


def _with_id(record: Record) -> Metadata:
    return record.metadata | {ID_FIELD: record.id}
