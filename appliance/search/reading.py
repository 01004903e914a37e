"""Reading the records behind labels that were chosen a moment ago, whatever is written meanwhile.

A replaced record has a new label. Whoever goes through labels would miss it: the old one leads nowhere, and
the new one is not among them. So readers are told of replacements, and look again by the id.
"""

import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from appliance.ledger import Connection
from appliance.search import rows
from appliance.search.columns import ID_FIELD
from appliance.search.exact import Positions
from appliance.search.filters import Filter
from appliance.search.records import Record
from appliance.search.seals import Seals

P = ParamSpec("P")
T = TypeVar("T")

_PAGE = 1_000


class Read(Protocol):
    """Runs a query of `rows` about the collection; raises NotFound once that is removed."""

    def __call__(
        self,
        query: Callable[Concatenate[Connection, Seals, int, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Awaitable[T]: ...


class Reading:
    """The records of one collection; on the event loop only, but for `note`."""

    def __init__(
        self, read: Read, sound: Callable[[Iterable[rows.Found | None]], list[Record | None]]
    ) -> None:
        """`sound` makes records of rows, None of those that do not open."""
        self._read = read
        self._sound = sound
        self._lock = threading.Lock()
        self._readers: dict[int, dict[int, str]] = {}
        self._not_in_ram: dict[int, str] = {}

    def note(self, replaced: Mapping[int, str]) -> None:
        """Tell whoever reads which labels lead to which ids until the transaction that this is called in.

        On any thread. Whoever sees the labels gone finds the ids here: nothing is seen of a transaction
        before its commit. What is undone after all does no harm, as labels that are there are not looked up.
        """
        with self._lock:
            self._not_in_ram.update(replaced)
            for reader in self._readers.values():
                reader.update(replaced)

    def taken_over(self, replaced: Iterable[int]) -> None:
        """These labels are gone from RAM too: who chooses from now on does not meet them."""
        with self._lock:
            for label in replaced:
                self._not_in_ram.pop(label, None)

    @contextmanager
    def following(self) -> Iterator[Mapping[int, str]]:
        """Within the block, the ids of the records that are replaced, by the labels that they had."""
        with self._lock:
            replaced = dict(self._not_in_ram)
            self._readers[id(replaced)] = replaced
        try:
            yield replaced
        finally:
            with self._lock:
                del self._readers[id(replaced)]

    async def records(self, labels: Positions, *, metadata: bool = True) -> list[Record | None]:
        """In the order of the labels, None for one that was deleted or replaced meanwhile or does not open.

        `metadata=False` leaves that empty.
        """
        found: list[Record | None] = []
        for low in range(0, len(labels), _PAGE):
            part = labels[low : low + _PAGE].tolist()
            found += self._sound(await self._read(rows.records_by_label, labels=part, metadata=metadata))
        return found

    async def present(
        self, labels: Positions, replaced: Mapping[int, str], wanted: Filter | None = None
    ) -> list[Record]:
        """The records of these labels that exist; what was `replaced` meanwhile as it is now, if it matches.

        The labels were chosen within the block of `following` that gave `replaced`.
        """
        present: list[Record] = []
        for low in range(0, len(labels), _PAGE):
            part = labels[low : low + _PAGE]
            found = dict(zip(part.tolist(), await self.records(part), strict=True))
            gone = [label for label, record in found.items() if record is None]
            renewed = {label: known for label in gone if (known := replaced.get(label))}
            again = zip(renewed, await self._again(renewed.values()), strict=True)
            found |= {label: record for label, record in again if record and _fits(wanted, record)}
            present += [record for record in found.values() if record is not None]
        return present

    async def _again(self, ids: Iterable[str]) -> list[Record | None]:
        encoded = [one.encode() for one in ids]
        if not encoded:
            return []
        return self._sound(await self._read(rows.records_by_id, external_ids=encoded))


def _fits(wanted: Filter | None, record: Record) -> bool:
    return wanted is None or matches(wanted, record)


def matches(wanted: Filter, record: Record) -> bool:
    """Whether a filter, which may name `_id`, matches a record."""
    return wanted.matches({**record.metadata, ID_FIELD: record.id})
