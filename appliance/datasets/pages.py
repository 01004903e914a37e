"""Pages of lists in the order in which their rows were made.

A page is found by its number or, at the same cost wherever it lies, by the position of the row before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from appliance.ledger import Connection

T = TypeVar("T")

_POSITION = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Cut:
    """Which part of a list is wanted: `size` rows, of page `number` (from 1), or after the position `after`.

    `counted` is what an earlier page was told of the whole; it is not counted again then, where that is work.
    """

    number: int = 1
    size: int = 20
    after: int | None = None
    counted: int | None = None

    @property
    def offset(self) -> int:
        """How many rows are to be passed over, unless `after` says where to begin."""
        return 0 if self.after is not None else (self.number - 1) * self.size

    def floor(self, dataset: int) -> int:
        """The keys of the page lie above this one."""
        return (dataset << 32) + (-1 if self.after is None else self.after)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Rows of a list of `count`; `after` is the position that the next page goes on from, None on the last.

    `worked` says that counting was work, so that the next page should be told.
    """

    rows: Sequence[T]
    count: int
    after: int | None
    worked: bool = False


def cut(rows: Sequence[T], keys: Sequence[int], wanted: Cut, count: int, *, worked: bool = False) -> Page[T]:
    """The page of rows of which one more than wanted was asked for, to see whether there are more."""
    more = len(rows) > wanted.size
    after = keys[wanted.size - 1] & _POSITION if more else None
    return Page(rows[: wanted.size], count, after, worked)


@dataclass
class Query:
    """A list as SQL that is put together: the rows of `table` whose `key` lies above the floor of a cut."""

    table: str
    key: str
    conditions: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def where(self, condition: str, *values: object) -> None:
        self.conditions.append(condition)
        self.values += values

    def keys(self, connection: Connection, dataset: int, wanted: Cut) -> list[int]:
        """The keys of the wanted page, and one more if there is one."""
        found = connection.execute(
            f"SELECT {self.key} FROM {self.table} WHERE {self.key} > ? AND {self.key} < ?{self._more}"  # noqa: S608
            f" ORDER BY {self.key} LIMIT ? OFFSET ?",
            (wanted.floor(dataset), (dataset + 1) << 32, *self.values, wanted.size + 1, wanted.offset),
        )
        return [key for (key,) in found]

    def rows(self, connection: Connection, dataset: int, columns: str) -> Iterator[tuple[Any, ...]]:
        """The keys of all rows in their order, and these columns beside them."""
        return connection.execute(
            f"SELECT {self.key}, {columns} FROM {self.table}"  # noqa: S608
            f" WHERE {self.key} > ? AND {self.key} < ?{self._more} ORDER BY {self.key}",
            ((dataset << 32) - 1, (dataset + 1) << 32, *self.values),
        )

    def count(self, connection: Connection, dataset: int) -> int:
        """How many rows there are in all, counted one by one."""
        return int(
            connection.execute(
                f"SELECT count(*) FROM {self.table} WHERE {self.key} > ? AND {self.key} < ?{self._more}",  # noqa: S608
                ((dataset << 32) - 1, (dataset + 1) << 32, *self.values),
            ).get
        )

    @property
    def _more(self) -> str:
        return "".join(f" AND {condition}" for condition in self.conditions)
