"""The SQL of collections themselves: plain functions on a connection, within the caller's transaction."""

from dataclasses import dataclass
from typing import Any

from appliance.accounts.customers import CustomerId
from appliance.errors import Conflict, InvalidInput, NotFound, QuotaReached
from appliance.ledger import Connection
from appliance.search.numbering import span
from appliance.search.records import CollectionId
from appliance.search.seals import ContainerId

_COLUMNS = "number, id, container, customer, name, backbone, dim, created_at, count, name_handle, recall"


@dataclass(frozen=True, slots=True)
class Entry:
    """A collection's row: `name` is sealed with all else under the key of `container`.

    `handle` is what the name is found by, see `names`; None where it does not open.
    """

    number: int
    id: CollectionId
    container: ContainerId
    customer: CustomerId
    name: bytes
    backbone: str
    dim: int
    created_at: int
    count: int
    handle: bytes | None
    recall: float


def check_customer(connection: Connection, customer: CustomerId) -> None:
    """Raises NotFound."""
    if not connection.execute("SELECT 1 FROM customers WHERE id = ?", (customer,)).get:
        raise NotFound("no such customer")


def usage(connection: Connection, customer: CustomerId) -> tuple[int, int]:
    """How many collections a customer has, and how many records in all of them."""
    query = "SELECT collections, records FROM search_usage WHERE customer = ?"
    found: tuple[int, int] | None = connection.execute(query, (customer,)).fetchone()
    return found or (0, 0)


def check_room(connection: Connection, customer: CustomerId, most: int) -> None:
    """Raises QuotaReached when a customer has `most` collections."""
    if usage(connection, customer)[0] >= most:
        raise QuotaReached(most, "collections")


def check_free(
    connection: Connection, customer: CustomerId, handle: bytes, besides: CollectionId | None = None
) -> None:
    """Raises Conflict when a customer has a collection of this name other than `besides`."""
    try:
        named = find_named(connection, customer, handle)
    except NotFound:
        return
    if named.id != besides:
        raise Conflict("a collection of this name exists already")


def add_collection(connection: Connection, new: Entry) -> None:
    """Its number is the next one, and it is empty, whatever `new` says of these."""
    connection.execute(
        "INSERT INTO collections"
        " (id, container, customer, name, backbone, dim, created_at, name_handle, recall)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            new.id,
            new.container,
            new.customer,
            new.name,
            new.backbone,
            new.dim,
            new.created_at,
            new.handle,
            new.recall,
        ),
    )


def list_collections(
    connection: Connection,
    customer: CustomerId | None,
    after: CollectionId | None = None,
    limit: int | None = None,
) -> list[Entry]:
    """By age, oldest first; of one customer, or all with None; at most `limit`, from the one `after` this on.

    Raises InvalidInput when there is no such one.
    """
    of_one = "customer = ?1" if customer is not None else "?1 IS NULL"
    position = (-1, -1)
    if after is not None:
        query = f"SELECT created_at, number FROM collections WHERE id = ?2 AND {of_one}"  # noqa: S608
        found = connection.execute(query, (customer, after)).fetchone()
        if found is None:
            raise InvalidInput("after: no such collection, it may have been removed; begin without it")
        position = found
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM collections"  # noqa: S608 -- constants
        f" WHERE {of_one} AND NOT removed AND (created_at, number) > (?2, ?3)"
        " ORDER BY created_at, number LIMIT ?4",
        (customer, *position, -1 if limit is None else limit),
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


def find_named(connection: Connection, customer: CustomerId, handle: bytes) -> Entry:
    """A customer's collection by its name's handle. Raises NotFound."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM collections WHERE customer = ? AND name_handle = ? AND NOT removed",  # noqa: S608
        (customer, handle),
    ).fetchone()
    if row is None:
        raise NotFound("no such collection")
    return _entry(row)


def rename_collection(connection: Connection, number: int, name: bytes, handle: bytes) -> None:
    """`name` is the sealed one."""
    connection.execute(
        "UPDATE collections SET name = ?, name_handle = ? WHERE number = ?", (name, handle, number)
    )


def without_handle(connection: Connection) -> list[Entry]:
    """Those that cannot be found by name."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM collections WHERE name_handle IS NULL AND NOT removed"  # noqa: S608
    )
    return [_entry(row) for row in rows]


def set_handle(connection: Connection, collection: CollectionId, handle: bytes | None) -> None:
    """Unless another one of its customer has it."""
    connection.execute("UPDATE OR IGNORE collections SET name_handle = ? WHERE id = ?", (handle, collection))


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
    for table in ("search_replies", "feed_runs", "feeds"):
        connection.execute(f"DELETE FROM {table} WHERE collection = ?", (number,))  # noqa: S608 -- a constant
    connection.execute("DELETE FROM collections WHERE number = ?", (number,))
    return True


def _entry(row: tuple[Any, ...]) -> Entry:
    return Entry(*row)
