"""The SQL of collections themselves: plain functions on a connection, within the caller's transaction."""

from dataclasses import dataclass, replace
from typing import Any

from appliance.accounts.customers import CustomerId
from appliance.accounts.endings import ERASED_CUSTOMERS
from appliance.errors import Conflict, InvalidInput, NotFound, QuotaReached
from appliance.ledger import Connection
from appliance.search.numbering import span
from appliance.search.records import CollectionId
from appliance.search.seals import ContainerId

_COLUMNS = (
    "number, id, container, customer, name, backbone, dim, created_at, count, name_handle, recall, emptied,"
    " spare"
)
_OF_ALL = f"?1 IS NULL AND customer NOT IN ({ERASED_CUSTOMERS})"


@dataclass(frozen=True, slots=True)
class Entry:
    """A collection's row: `name` is sealed with all else under the key of `container`.

    `handle` is what the name is found by, see `names`; None where it does not open. `emptied` is the id that
    one had until it was emptied, which is then being erased. A `spare` row is no collection of its own: it is
    filled unseen, or a restored snapshot has replaced it.
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
    emptied: CollectionId | None = None
    spare: bool = False


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
    """By age, oldest first; of one customer, or of all that are not being erased with None.

    At most `limit`, from the one `after` this on.

    Raises InvalidInput when there is no such one.
    """
    of_one = "customer = ?1" if customer is not None else _OF_ALL
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


def same_collection(connection: Connection, entry: Entry) -> Entry:
    """A collection as it is now. NotFound when it is gone, or was emptied since and has another key."""
    now = find_collection(connection, entry.customer, entry.id)
    if now.container != entry.container:
        raise NotFound("no such collection")
    return now


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
    connection.execute(
        "UPDATE collections SET id = ?, emptied = id, removed = 1 WHERE number = ?", (tombstone, old)
    )
    add_collection(connection, new)


def add_unseen(connection: Connection, new: Entry) -> int:
    """A collection to be filled where nobody sees it, and to be shown then; its number.

    It is marked as removed: what is left of it after a crash is erased by the next start.
    """
    add_collection(connection, replace(new, handle=None))
    number: int = connection.last_insert_rowid()
    connection.execute("UPDATE collections SET removed = 1, spare = 1 WHERE number = ?", (number,))
    return number


def show_collection(connection: Connection, filled: Entry, next_label: int) -> None:
    """Have a collection that was filled unseen be this one, for everybody, with its `count` of records."""
    connection.execute(
        "UPDATE collections SET id = ?, container = ?, name = ?, created_at = ?, count = ?, next_label = ?,"
        " name_handle = ?, recall = ? WHERE number = ?",
        (
            filled.id,
            filled.container,
            filled.name,
            filled.created_at,
            filled.count,
            next_label,
            filled.handle,
            filled.recall,
            filled.number,
        ),
    )
    connection.execute("UPDATE collections SET removed = 0, spare = 0 WHERE number = ?", (filled.number,))


def step_aside(connection: Connection, old: Entry, tombstone: str) -> Entry:
    """Take id and key from a collection in whose place another one comes; what is left of it, to be erased.

    It goes by `tombstone`, which is no container of the keyring: the key goes on with the other one.
    """
    connection.execute(
        "UPDATE collections SET id = ?1, container = ?1, removed = 1, spare = 1 WHERE number = ?2",
        (tombstone, old.number),
    )
    return replace(old, id=CollectionId(tombstone), container=ContainerId(tombstone), spare=True)


def next_label(connection: Connection, number: int) -> int:
    """The label that the next record gets."""
    found: int = connection.execute("SELECT next_label FROM collections WHERE number = ?", (number,)).get
    return found


def mark_removed(connection: Connection, number: int) -> None:
    connection.execute("UPDATE collections SET removed = 1 WHERE number = ?", (number,))


def removed_collections(connection: Connection, customer: CustomerId | None = None) -> list[Entry]:
    """Those whose erasure has begun and not ended; of one customer, or all with None."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM collections WHERE removed AND (?1 IS NULL OR customer = ?1)",  # noqa: S608
        (customer,),
    )
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
    for table in ("search_replies", "feed_runs"):
        connection.execute(
            f"DELETE FROM {table} WHERE number IN"  # noqa: S608 -- a constant
            f" (SELECT number FROM {table} WHERE collection = ? LIMIT ?)",
            (number, limit),
        )
        if connection.changes():
            return False
    connection.execute(
        "DELETE FROM erased_records WHERE (container, handle) IN"
        " (SELECT container, handle FROM erased_records"
        " WHERE container = (SELECT container FROM collections WHERE number = ?) LIMIT ?)",
        (number, limit),
    )
    if connection.changes():
        return False
    connection.execute("DELETE FROM feeds WHERE collection = ?", (number,))
    connection.execute("DELETE FROM collections WHERE number = ?", (number,))
    return True


def _entry(row: tuple[Any, ...]) -> Entry:
    return replace(Entry(*row[:-1]), spare=bool(row[-1]))
