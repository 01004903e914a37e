"""The SQL of collections and records: plain functions on a connection, within the caller's transaction."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.accounts.customers import CustomerId
from appliance.errors import Conflict, NotFound
from appliance.ledger import Connection
from appliance.search.records import (
    Collection,
    CollectionId,
    Inserted,
    Metadata,
    Record,
    Upserted,
    decode_metadata,
    encode_metadata,
)

_LABEL_BITS = 32
_COLUMNS = "number, id, customer, name, backbone, dim, created_at, count"


@dataclass(frozen=True, slots=True)
class Row:
    """A record as it is stored, before it has a label."""

    external_id: bytes
    vector: bytes
    metadata: bytes


def add_collection(connection: Connection, collection: Collection) -> None:
    """Raises NotFound for the customer, Conflict when it has a collection of this name."""
    if not connection.execute("SELECT 1 FROM customers WHERE id = ?", (collection.customer,)).get:
        raise NotFound("no such customer")
    _check_free(connection, collection.customer, collection.name)
    _add(connection, collection)


def list_collections(connection: Connection, customer: CustomerId | None) -> list[Collection]:
    """By age, oldest first; of one customer, or all with None."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM collections"  # noqa: S608 -- a constant
        " WHERE (?1 IS NULL OR customer = ?1) AND NOT removed ORDER BY created_at, number",
        (customer,),
    )
    return [_collection(row) for row in rows]


def find_collection(
    connection: Connection,
    customer: CustomerId | None,
    id: CollectionId,  # noqa: A002 -- the column's name
) -> tuple[int, Collection]:
    """Its number and itself; NotFound when it does not exist or is not `customer`'s (None: anybody's)."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM collections WHERE id = ? AND NOT removed",  # noqa: S608 -- a constant
        (id,),
    ).fetchone()
    if row is None or (customer is not None and row[2] != customer):
        raise NotFound("no such collection")
    return row[0], _collection(row)


def rename_collection(connection: Connection, number: int, customer: CustomerId, name: str) -> None:
    """Raises Conflict when the customer has another collection of this name."""
    _check_free(connection, customer, name, besides=number)
    connection.execute("UPDATE collections SET name = ? WHERE number = ?", (name, number))


def renew_collection(
    connection: Connection, number: int, collection: Collection, tombstone: CollectionId
) -> None:
    """Put an empty one in the place of a collection, which goes by `tombstone` until it is erased."""
    connection.execute("UPDATE collections SET id = ?, removed = 1 WHERE number = ?", (tombstone, number))
    _add(connection, collection)


def mark_removed(connection: Connection, number: int) -> None:
    connection.execute("UPDATE collections SET removed = 1 WHERE number = ?", (number,))


def removed_collections(connection: Connection) -> list[int]:
    """Numbers of the collections whose erasure has begun and not ended."""
    return [row[0] for row in connection.execute("SELECT number FROM collections WHERE removed")]


def erase_some(connection: Connection, number: int, limit: int) -> bool:
    """Erase up to `limit` records of a removed collection and, with the last, itself; True: all gone."""
    connection.execute(
        "DELETE FROM records WHERE key IN (SELECT key FROM records WHERE key BETWEEN ? AND ? LIMIT ?)",
        (*_span(number), limit),
    )
    if connection.changes() == limit:
        return False
    connection.execute("DELETE FROM search_replies WHERE collection = ?", (number,))
    connection.execute("DELETE FROM collections WHERE number = ?", (number,))
    return True


def insert(
    connection: Connection, number: int, rows: Sequence[Row], capacity: int
) -> tuple[list[Inserted], list[int]]:
    """Store rows with new ids while there is room: an outcome for each, a label for each inserted one."""
    label, count = _counters(connection, number)
    outcomes: list[Inserted] = []
    labels: list[int] = []
    for row in rows:
        if _key_of(connection, number, row.external_id) is not None:
            outcomes.append("duplicate")
        elif count >= capacity or label >= 1 << _LABEL_BITS:
            outcomes.append("full")
        else:
            _store(connection, number, label, row)
            outcomes.append("inserted")
            labels.append(label)
            label += 1
            count += 1
    if labels:
        connection.execute(
            "UPDATE collections SET next_label = ?, count = ? WHERE number = ?", (label, count, number)
        )
    return outcomes, labels


def upsert(
    connection: Connection, number: int, rows: Sequence[Row], capacity: int
) -> tuple[list[Upserted], list[int], dict[int, str]]:
    """Store each row in the place of the one with its id, or as a new one while there is room.

    An outcome for each, a label for each that was stored, and of those replaced the label and the id. What
    is replaced comes last in order of insertion: its label is new, as labels stand for one vector.
    """
    label, count = _counters(connection, number)
    outcomes: list[Upserted] = []
    labels: list[int] = []
    replaced: dict[int, str] = {}
    for row in rows:
        key = _key_of(connection, number, row.external_id)
        if label >= 1 << _LABEL_BITS or (key is None and count >= capacity):
            outcomes.append("full")
            continue
        if key is not None:
            connection.execute("DELETE FROM records WHERE key = ?", (key,))
            replaced[_label(key)] = row.external_id.decode()
        _store(connection, number, label, row)
        outcomes.append("inserted" if key is None else "replaced")
        labels.append(label)
        label += 1
        count += key is None
    connection.execute(
        "UPDATE collections SET next_label = ?, count = ? WHERE number = ?", (label, count, number)
    )
    return outcomes, labels, replaced


def update(
    connection: Connection, number: int, changes: Iterable[tuple[bytes, Metadata]], max_metadata_bytes: int
) -> list[tuple[int, Record] | None]:
    """Set the given metadata fields; label and whole record for each id, None where it does not exist.

    Raises InvalidInput when a record's metadata would become too large.
    """
    _counters(connection, number)
    updated: list[tuple[int, Record] | None] = []
    for external_id, fields in changes:
        key = _key_of(connection, number, external_id)
        if key is None:
            updated.append(None)
            continue
        stored: bytes = connection.execute("SELECT metadata FROM records WHERE key = ?", (key,)).get
        merged = decode_metadata(stored) | fields
        encoded = encode_metadata(merged, max_metadata_bytes)
        connection.execute("UPDATE records SET metadata = ? WHERE key = ?", (encoded, key))
        updated.append((_label(key), Record(external_id.decode(), merged)))
    return updated


def delete(connection: Connection, number: int, external_ids: Iterable[bytes]) -> list[int | None]:
    """Erase rows, vectors included; the label that each id had, None where it does not exist."""
    _, count = _counters(connection, number)
    labels: list[int | None] = []
    for external_id in external_ids:
        key = _key_of(connection, number, external_id)
        labels.append(None if key is None else _label(key))
        if key is not None:
            connection.execute("DELETE FROM records WHERE key = ?", (key,))
            count -= 1
    _count(connection, number, count)
    return labels


def delete_matching(
    connection: Connection, number: int, labels: Sequence[int], matches: Callable[[Record], bool]
) -> list[int]:
    """Erase those of the records with these labels that match as they are stored now; their labels."""
    _, count = _counters(connection, number)
    found = zip(labels, records_by_label(connection, number, labels), strict=True)
    gone = [label for label, record in found if record is not None and matches(record)]
    for label in gone:
        connection.execute("DELETE FROM records WHERE key = ?", ((number << _LABEL_BITS) | label,))
    _count(connection, number, count - len(gone))
    return gone


def current(
    connection: Connection, number: int, external_ids: Iterable[bytes]
) -> list[tuple[bytes, Record] | None]:
    """Vector and record of each id, of one moment; None where it does not exist."""
    query = "SELECT vector, metadata FROM records WHERE collection = ? AND external_id = ?"
    found: list[tuple[bytes, Record] | None] = []
    for external_id in external_ids:
        row = connection.execute(query, (number, external_id)).fetchone()
        found.append(row and (row[0], Record(external_id.decode(), decode_metadata(row[1]))))
    return found


def records_by_id(connection: Connection, number: int, external_ids: Iterable[bytes]) -> list[Record | None]:
    query = "SELECT metadata FROM records WHERE collection = ? AND external_id = ?"
    records: list[Record | None] = []
    for external_id in external_ids:
        stored = connection.execute(query, (number, external_id)).get
        records.append(None if stored is None else Record(external_id.decode(), decode_metadata(stored)))
    return records


def records_by_label(connection: Connection, number: int, labels: Iterable[int]) -> list[Record | None]:
    """In the order of `labels`; None for one that has been deleted."""
    query = "SELECT external_id, metadata FROM records WHERE key = ?"
    records: list[Record | None] = []
    for label in labels:
        row = connection.execute(query, ((number << _LABEL_BITS) | label,)).fetchone()
        records.append(None if row is None else Record(row[0].decode(), decode_metadata(row[1])))
    return records


def load_vectors(
    connection: Connection, number: int, after: int, limit: int
) -> list[tuple[int, bytes, bytes]]:
    """Label, external id, vector of the records above label `after` (-1: all), ascending, at most `limit`."""
    first, last = _span(number)
    rows: list[Any] = connection.execute(
        "SELECT key - ?1, external_id, vector FROM records WHERE key BETWEEN ?2 AND ?3 ORDER BY key LIMIT ?4",
        (first, first + after + 1, last, limit),
    ).fetchall()
    return rows


def load_records(connection: Connection, number: int, after: int, limit: int) -> list[tuple[int, Record]]:
    """Label and record of the records above label `after` (-1: all), ascending, at most `limit`."""
    first, last = _span(number)
    rows = connection.execute(
        "SELECT key - ?1, external_id, metadata FROM records"
        " WHERE key BETWEEN ?2 AND ?3 ORDER BY key LIMIT ?4",
        (first, first + after + 1, last, limit),
    )
    return [
        (label, Record(external_id.decode(), decode_metadata(metadata)))
        for label, external_id, metadata in rows
    ]


def _check_free(connection: Connection, customer: CustomerId, name: str, besides: int = 0) -> None:
    taken = "SELECT 1 FROM collections WHERE customer = ? AND name = ? AND NOT removed AND number != ?"
    if connection.execute(taken, (customer, name, besides)).get:
        raise Conflict("a collection of this name exists already")


def _add(connection: Connection, collection: Collection) -> None:
    connection.execute(
        "INSERT INTO collections (id, customer, name, backbone, dim, created_at) VALUES (?, ?, ?, ?, ?, ?)",
        (
            collection.id,
            collection.customer,
            collection.name,
            collection.backbone,
            collection.dim,
            collection.created_at,
        ),
    )


def _counters(connection: Connection, number: int) -> tuple[int, int]:
    """Next label and count; NotFound once the collection has been removed."""
    query = "SELECT next_label, count FROM collections WHERE number = ? AND NOT removed"
    row = connection.execute(query, (number,)).fetchone()
    if row is None:
        raise NotFound("no such collection")
    return row[0], row[1]


def _count(connection: Connection, number: int, count: int) -> None:
    connection.execute("UPDATE collections SET count = ? WHERE number = ?", (count, number))


def _store(connection: Connection, number: int, label: int, row: Row) -> None:
    connection.execute(
        "INSERT INTO records (key, collection, external_id, vector, metadata) VALUES (?, ?, ?, ?, ?)",
        ((number << _LABEL_BITS) | label, number, row.external_id, row.vector, row.metadata),
    )


def _key_of(connection: Connection, number: int, external_id: bytes) -> int | None:
    query = "SELECT key FROM records WHERE collection = ? AND external_id = ?"
    found: int | None = connection.execute(query, (number, external_id)).get
    return found


def _span(number: int) -> tuple[int, int]:
    return number << _LABEL_BITS, ((number + 1) << _LABEL_BITS) - 1


def _label(key: int) -> int:
    return key & ((1 << _LABEL_BITS) - 1)


def _collection(row: tuple[Any, ...]) -> Collection:
    _, collection, customer, name, backbone, dim, created_at, count = row
    return Collection(CollectionId(collection), CustomerId(customer), name, backbone, dim, created_at, count)
