"""The SQL of collections themselves: plain functions on a connection, within the caller's transaction."""

from dataclasses import dataclass
from typing import Any

from appliance.accounts.customers import CustomerId
from appliance.errors import NotFound
from appliance.ledger import Connection
from appliance.search.numbering import span
from appliance.search.records import CollectionId
from appliance.search.seals import ContainerId

_COLUMNS = "number, id, container, customer, name, backbone, dim, created_at, count, recall"


@dataclass(frozen=True, slots=True)
class Entry:
    """A collection's row: `name` is sealed with all else under the key of `container`."""

    number: int
    id: CollectionId
    container: ContainerId
    customer: CustomerId
    name: bytes
    backbone: str
    dim: int
    created_at: int
    count: int
    recall: float


def check_customer(connection: Connection, customer: CustomerId) -> None:
    """Raises NotFound."""
    if not connection.execute("SELECT 1 FROM customers WHERE id = ?", (customer,)).get:
        raise NotFound("no such customer")


def add_collection(connection: Connection, new: Entry) -> None:
    """Its number is the next one, and it is empty, whatever `new` says of these."""
    connection.execute(
        "INSERT INTO collections (id, container, customer, name, backbone, dim, created_at, recall)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (new.id, new.container, new.customer, new.name, new.backbone, new.dim, new.created_at, new.recall),
    )


def list_collections(connection: Connection, customer: CustomerId | None) -> list[Entry]:
    """By age, oldest first; of one customer, or all with None."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM collections"  # noqa: S608 -- a constant
        " WHERE (?1 IS NULL OR customer = ?1) AND NOT removed ORDER BY created_at, number",
        (customer,),
    )
    return [_entry(row) for row in rows]


def find_collection(
    connection: Connection,
    customer: CustomerId | None,
    id: CollectionId,  # noqa: A002 -- the column's name
) -> Entry:
    """NotFound when it does not exist or is not `customer`'s (None: anybody's)."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM collections WHERE id = ? AND NOT removed",  # noqa: S608 -- a constant
        (id,),
    ).fetchone()
    if row is None or (customer is not None and row[3] != customer):
        raise NotFound("no such collection")
    return _entry(row)


def rename_collection(connection: Connection, number: int, name: bytes) -> None:
    """`name` is the sealed one."""
    connection.execute("UPDATE collections SET name = ? WHERE number = ?", (name, number))


def aim_collection(connection: Connection, number: int, recall: float) -> None:
    connection.execute("UPDATE collections SET recall = ? WHERE number = ?", (recall, number))


def renew_collection(connection: Connection, old: int, new: Entry, tombstone: CollectionId) -> None:
    """Put an empty one in the place of a collection, which goes by `tombstone` until it is erased."""
    connection.execute("UPDATE collections SET id = ?, removed = 1 WHERE number = ?", (tombstone, old))
    add_collection(connection, new)


def mark_removed(connection: Connection, number: int) -> None:
    connection.execute("UPDATE collections SET removed = 1 WHERE number = ?", (number,))


def removed_collections(connection: Connection) -> list[Entry]:
    """Those whose erasure has begun and not ended."""
    rows = connection.execute(f"SELECT {_COLUMNS} FROM collections WHERE removed")  # noqa: S608 -- a constant
    return [_entry(row) for row in rows]


def erase_some(connection: Connection, number: int, limit: int) -> bool:
    """Erase up to `limit` rows of a removed collection and, with the last, its own; True: all gone."""
    for table in ("records", "frames"):
        connection.execute(
            f"DELETE FROM {table} WHERE key IN"  # noqa: S608 -- a constant
            f" (SELECT key FROM {table} WHERE key BETWEEN ? AND ? LIMIT ?)",
            (*span(number), limit),
        )
        if connection.changes():
            return False
    connection.execute("DELETE FROM search_replies WHERE collection = ?", (number,))
    connection.execute("DELETE FROM collections WHERE number = ?", (number,))
    return True


def _entry(row: tuple[Any, ...]) -> Entry:
    return Entry(*row)
