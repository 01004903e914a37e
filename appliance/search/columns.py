"""Metadata fields that filters ask for, held in RAM as one small number a record.

A column is built from the ledger when a filter first names its field, and follows every later change.
Distinct values are numbered, so that a condition is decided once a value and spread over the records by
numpy.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from appliance.search.exact import Positions
from appliance.search.filters import ABSENT, MAX_FIELDS, Condition, Filter, canonical
from appliance.search.records import Metadata, Record
from appliance.search.vectors import Mask, View

Codes = npt.NDArray[np.int32]

ID_FIELD = "_id"
MAX_COLUMNS = 2 * MAX_FIELDS
"""Of one collection; the least recently used one goes, and is built again when it is asked for."""
_STALE_FACTOR = 4
"""A column with this many times more numbered values than records is dropped: updates left them behind."""


@dataclass(frozen=True, slots=True)
class Matching:
    """A filter decided for the records of one view; `mask` may be computed in any thread."""

    parts: tuple[tuple[Mask, Codes], ...]
    slots: int

    @property
    def bytes(self) -> int:
        """What `mask` reads."""
        return 4 * self.slots * len(self.parts)

    def mask(self) -> Mask:
        """One bool a slot: whether its record matches."""
        mask = np.ones(self.slots, np.bool_)
        for decided, codes in self.parts:
            # A value that appears while this runs has a number past the end, where the answer is no.
            mask &= decided.take(codes, mode="clip")
        return mask


class Column:
    """One field: the number of its value for every slot, 0 where no record was seen."""

    def __init__(self, slots: int) -> None:
        self._codes: Codes = np.zeros(slots, np.int32)
        self._numbers: dict[Hashable, int] = {}
        self._containing: dict[Hashable, list[int]] = {}  # element -> numbers of the lists that contain it

    def fill(self, slots: int, known: Positions, numbers: Codes) -> None:
        """Start over with `slots` slots, of which the `known` ones have these numbers."""
        self._codes = np.zeros(slots, np.int32)
        self._codes[known] = numbers

    def set(self, slot: int, value: object) -> None:
        if slot >= len(self._codes):
            grown = np.zeros(max(slot + 1, 2 * len(self._codes)), np.int32)
            grown[: len(self._codes)] = self._codes
            self._codes = grown
        self._codes[slot] = self.number(value)

    def decide(self, condition: Condition, slots: int) -> tuple[Mask, Codes]:
        """Whether each number satisfies the condition, and the numbers of the first `slots` slots."""
        decided = np.zeros(len(self._numbers) + 2, np.bool_)
        for value in condition.values:
            if (number := self._numbers.get(value)) is not None:
                decided[number] = True
            if (numbers := self._containing.get(value)) is not None:
                decided[numbers] = True
        if slots > len(self._codes):
            self._codes = np.concatenate([self._codes, np.zeros(slots - len(self._codes), np.int32)])
        return decided, self._codes[:slots]

    def move(self, old_slots: Positions) -> None:
        """Slot n takes over what slot `old_slots[n]` had."""
        self._codes = self._codes[old_slots]

    @property
    def stale(self) -> bool:
        return len(self._numbers) > _STALE_FACTOR * max(len(self._codes), 256)

    def number(self, value: object) -> int:
        """The number that stands for this value from now on."""
        key = canonical(value)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._numbers) + 1
            if isinstance(value, list):
                for element in {canonical(item) for item in value}:
                    self._containing.setdefault(element, []).append(number)
        return number


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
        self._building = asyncio.Lock()
        self._changed: dict[int, Metadata] | None = None
        """While columns are being built: what was inserted or updated since."""

    async def matching(self, wanted: Filter) -> tuple[Matching, View]:
        """The filter decided for every record of the view that comes with it."""
        while missing := wanted.fields - self._columns.keys():
            async with self._building:
                await self._build(missing - self._columns.keys())
        view = self._view()
        parts = []
        for condition in wanted.conditions:
            column = self._columns[condition.field] = self._columns.pop(condition.field)
            parts.append(column.decide(condition, len(view.labels)))
        return Matching(tuple(parts), len(view.labels)), view

    def set(self, label: int, slot: int, record: Record) -> None:
        """Follow an insert or an update that has been committed."""
        fields = record.metadata | {ID_FIELD: record.id}
        if self._changed is not None:
            self._changed[label] = fields
        for field, column in list(self._columns.items()):
            column.set(slot, fields.get(field, ABSENT))
            if column.stale:
                del self._columns[field]

    def move(self, old_slots: Positions) -> None:
        """Follow the vectors to their new slots."""
        for column in self._columns.values():
            column.move(old_slots)

    async def _build(self, fields: AbstractSet[str]) -> None:
        if not fields:
            return
        self._changed = {}
        try:
            building = {field: Column(0) for field in fields}
            numbers: dict[str, list[int]] = {field: [] for field in fields}
            labels: list[int] = []
            while page := await self._read(labels[-1] if labels else -1):
                labels += [label for label, _ in page]
                for field, column in building.items():
                    numbers[field] += [column.number(_value(record, field)) for _, record in page]
            view = self._view()
            slots, here = _located(view, np.array(labels, np.int64))
            for field, column in building.items():
                column.fill(len(view.labels), slots, np.array(numbers[field], np.int32)[here])
                self._adopt(field, column, view, self._changed)
        finally:
            self._changed = None

    def _adopt(self, field: str, column: Column, view: View, changed: dict[int, Metadata]) -> None:
        for label, fields in changed.items():
            for slot in view.slots(np.array([label])).tolist():
                column.set(slot, fields.get(field, ABSENT))
        while len(self._columns) >= MAX_COLUMNS:
            self._columns.pop(next(iter(self._columns)))
        self._columns[field] = column


def _located(view: View, labels: Positions) -> tuple[Positions, Mask]:
    """The slots of those labels that have one, and which these are."""
    if not len(view.labels):
        return np.empty(0, np.int64), np.zeros(len(labels), np.bool_)
    slots = np.minimum(np.searchsorted(view.labels, labels), len(view.labels) - 1)
    here = view.labels[slots] == labels
    return slots[here], here


def _value(record: Record, field: str) -> object:
    return record.id if field == ID_FIELD else record.metadata.get(field, ABSENT)
