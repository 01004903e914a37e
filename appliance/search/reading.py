"""Reading the records behind labels that were chosen a moment ago, whatever is written meanwhile.

A replaced record has a new label. Whoever goes through labels would miss it: the old one leads nowhere, and
the new one is not among them. So readers are told of replacements, and look again by the id.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TypeVar

from appliance.ledger import Connection
from appliance.search import rows
from appliance.search.columns import ID_FIELD
from appliance.search.exact import Positions
from appliance.search.filters import Filter
from appliance.search.records import Record
from appliance.search.segments import Segments

T = TypeVar("T")

_PAGE = 1_000


class Read(Protocol):
    """Runs a query on the ledger; raises NotFound once the collection is removed."""

    def __call__(self, query: Callable[[Connection], T], /) -> Awaitable[T]: ...


class Reading:
    """The records of one collection; on the event loop only."""

    def __init__(self, read: Read, number: int, segments: Segments) -> None:
        self._read = read
        self._number = number
        self._segments = segments
        self._readers: dict[int, dict[int, str]] = {}

    def note(self, replaced: Mapping[int, str]) -> None:
        """Tell whoever reads which labels led to which ids until now."""
        for reader in self._readers.values():
            reader.update(replaced)

    @contextmanager
    def following(self) -> Iterator[dict[int, str]]:
        """Within the block, the ids of the records that are replaced, by the labels that they had."""
        replaced: dict[int, str] = {}
        self._readers[id(replaced)] = replaced
        try:
            yield replaced
        finally:
            del self._readers[id(replaced)]

    async def records(self, labels: Positions) -> list[Record | None]:
        """In the order of the labels, None for one that was deleted or replaced meanwhile."""
        found: list[Record | None] = []
        for low in range(0, len(labels), _PAGE):
            part = labels[low : low + _PAGE].tolist()
            found += await self._read(partial(rows.records_by_label, number=self._number, labels=part))
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
            view = self._segments.view()
            here = view.labels[view.slots(part)]
            ids = dict(zip(here.tolist(), self._segments.ids(here), strict=True))
            found = dict(zip(part.tolist(), await self.records(part), strict=True))
            # The ledger may be ahead of RAM, which tells of a replacement a moment later.
            gone = [label for label, record in found.items() if record is None]
            renewed = {label: known for label in gone if (known := replaced.get(label) or ids.get(label))}
            again = zip(renewed, await self._again(renewed.values()), strict=True)
            found |= {label: record for label, record in again if record and _fits(wanted, record)}
            present += [record for record in found.values() if record is not None]
        return present

    async def _again(self, ids: Iterable[str]) -> list[Record | None]:
        encoded = [one.encode() for one in ids]
        if not encoded:
            return []
        return await self._read(partial(rows.records_by_id, number=self._number, external_ids=encoded))


def _fits(wanted: Filter | None, record: Record) -> bool:
    return wanted is None or matches(wanted, record)


def matches(wanted: Filter, record: Record) -> bool:
    """Whether a filter, which may name `_id`, matches a record."""
    return wanted.matches({**record.metadata, ID_FIELD: record.id})
