"""The SQL of records: plain functions on a connection, within the caller's transaction."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from appliance.errors import NotFound, SealBroken
from appliance.ledger import Connection
from appliance.search import frames
from appliance.search.numbering import LABELS, key_of, label_of, number_of, span
from appliance.search.records import (
    Inserted,
    Metadata,
    Record,
    Upserted,
    Vector,
    decode_metadata,
    encode_metadata,
)
from appliance.search.seals import Seals

Found = tuple[int, Record | None]
"""The label of a row and its record, None where its words do not open."""


@dataclass(frozen=True, slots=True)
class Row:
    """A record before it has a label; its vector is of length 1."""

    external_id: bytes
    vector: Vector
    metadata: bytes


@dataclass(frozen=True, slots=True)
class Quota:
    """How many records a collection may have, and how many all collections of its customer together."""

    collection: int
    customer: int


def insert(
    connection: Connection, seals: Seals, number: int, rows: Sequence[Row], quota: Quota
) -> tuple[list[Inserted], list[int]]:
    """Store rows with new ids while there is room: an outcome for each, a label for each inserted one."""
    label, count, _ = _counters(connection, number)
    room = _room(connection, number, count, quota)
    outcomes: list[Inserted] = []
    labels: list[int] = []
    vectors: list[Vector] = []
    for row in rows:
        handle = seals.handle(row.external_id)
        if _key_of(connection, number, handle) is not None:
            outcomes.append("duplicate")
        elif room <= 0 or label >= LABELS:
            outcomes.append("full")
        else:
            add_record(connection, seals, key_of(number, label), handle, row.external_id, row.metadata)
            outcomes.append("inserted")
            labels.append(label)
            vectors.append(row.vector)
            label += 1
            count += 1
            room -= 1
    if labels:
        frames.add(connection, seals, number, np.array(labels), np.stack(vectors))
        connection.execute(
            "UPDATE collections SET next_label = ?, count = ? WHERE number = ?", (label, count, number)
        )
    return outcomes, labels


def upsert(
    connection: Connection, seals: Seals, number: int, rows: Sequence[Row], quota: Quota
) -> tuple[list[Upserted], list[int], dict[int, str]]:
    """Store each row in the place of the one with its id, or as a new one while there is room.

    An outcome for each, a label for each that was stored, and of those replaced the label and the id. What
    is replaced comes last in order of insertion: its label is new, as labels stand for one vector.
    """
    label, count, dim = _counters(connection, number)
    room = _room(connection, number, count, quota)
    outcomes: list[Upserted] = []
    labels: list[int] = []
    replaced: dict[int, str] = {}
    old: list[int] = []
    new: dict[bytes, tuple[int, Row]] = {}  # by handle, labels ascending
    for row in rows:
        handle = seals.handle(row.external_id)
        key = key_of(number, new[handle][0]) if handle in new else _key_of(connection, number, handle)
        if label >= LABELS or (key is None and room <= 0):
            outcomes.append("full")
            continue
        if key is not None:
            replaced[label_of(key)] = row.external_id.decode()
            if new.pop(handle, None) is None:
                old.append(label_of(key))
        new[handle] = label, row
        outcomes.append("inserted" if key is None else "replaced")
        labels.append(label)
        label += 1
        count += key is None
        room -= key is None
    # The old ones first: a frame is taken for that of all records above its label.
    _erase(connection, seals, number, dim, old)
    for handle, (fresh, row) in new.items():
        add_record(connection, seals, key_of(number, fresh), handle, row.external_id, row.metadata)
    if new:
        stored = [one[0] for one in new.values()]
        vectors = np.stack([one[1].vector for one in new.values()])
        frames.add(connection, seals, number, np.array(stored), vectors)
    connection.execute(
        "UPDATE collections SET next_label = ?, count = ? WHERE number = ?", (label, count, number)
    )
    return outcomes, labels, replaced


def add_record(  # noqa: PLR0917 -- the columns of the row
    connection: Connection, seals: Seals, key: int, handle: bytes, external_id: bytes, metadata: bytes
) -> None:
    """A record's row, its words sealed."""
    words = seals.seal_words(key, handle, external_id, metadata)
    connection.execute(
        "INSERT INTO records (key, collection, handle, words) VALUES (?, ?, ?, ?)",
        (key, number_of(key), handle, words),
    )


def update(
    connection: Connection,
    seals: Seals,
    number: int,
    changes: Iterable[tuple[bytes, Metadata]],
    max_metadata_bytes: int,
    *,
    whole: bool = False,
) -> list[Found | None]:
    """Set the given metadata fields, keeping the others unless `whole`; the record for each id, None where it
    does not exist.

    What does not open stays as it is. Raises InvalidInput when a record's metadata would become too large.
    """
    _counters(connection, number)
    updated: list[Found | None] = []
    for external_id, fields in changes:
        handle = seals.handle(external_id)
        found = record_by_handle(connection, seals, number, handle)
        if found is not None and found[1] is not None:
            kept = {} if whole else found[1].metadata
            label, record = found[0], Record(found[1].id, kept | fields)
            key, encoded = key_of(number, label), encode_metadata(record.metadata, max_metadata_bytes)
            words = seals.seal_words(key, handle, external_id, encoded)
            connection.execute("UPDATE records SET words = ? WHERE key = ?", (words, key))
            found = label, record
        updated.append(found)
    return updated


def delete(
    connection: Connection, seals: Seals, number: int, external_ids: Iterable[bytes]
) -> list[int | None]:
    """Erase records and their vectors; the label that each id had, None where it does not exist."""
    _, count, dim = _counters(connection, number)
    labels: list[int | None] = []
    gone: dict[int, None] = {}
    for external_id in external_ids:
        key = _key_of(connection, number, seals.handle(external_id))
        label = None if key is None or label_of(key) in gone else label_of(key)
        labels.append(label)
        if label is not None:
            gone[label] = None
    _erase(connection, seals, number, dim, gone)
    _count(connection, number, count - len(gone))
    return labels


def delete_matching(
    connection: Connection,
    seals: Seals,
    number: int,
    labels: Sequence[int],
    matches: Callable[[Record], bool],
) -> dict[int, str]:
    """Erase those of the records with these labels that match as they are stored now; their ids by label.

    What does not open matches nothing.
    """
    _, count, dim = _counters(connection, number)
    found = records_by_label(connection, seals, number, labels)
    gone = {one[0]: one[1].id for one in found if one is not None and one[1] is not None and matches(one[1])}
    _erase(connection, seals, number, dim, gone)
    _count(connection, number, count - len(gone))
    return gone


def current(
    connection: Connection, seals: Seals, number: int, external_ids: Iterable[bytes]
) -> list[tuple[Vector | None, Record] | None]:
    """Vector and record of each id, of one moment; None where it does not exist or does not open.

    Instead of a vector None where its frame does not open, or has none.
    """
    return _with_vectors(connection, seals, number, records_by_id(connection, seals, number, external_ids))


def current_by_label(
    connection: Connection, seals: Seals, number: int, labels: Iterable[int]
) -> list[tuple[Vector | None, Record] | None]:
    """As `current`, by the labels that the records have."""
    return _with_vectors(connection, seals, number, records_by_label(connection, seals, number, labels))


def records_by_id(
    connection: Connection, seals: Seals, number: int, external_ids: Iterable[bytes]
) -> list[Found | None]:
    """In the order of the ids; None for one that does not exist."""
    handles = map(seals.handle, external_ids)
    return [record_by_handle(connection, seals, number, handle) for handle in handles]


def records_by_label(
    connection: Connection, seals: Seals, number: int, labels: Iterable[int], *, metadata: bool = True
) -> list[Found | None]:
    """In the order of `labels`; None for one that has been deleted. `metadata=False` leaves that empty."""
    query = "SELECT handle, words FROM records WHERE key = ?"
    records: list[Found | None] = []
    for label in labels:
        key = key_of(number, label)
        row = connection.execute(query, (key,)).fetchone()
        records.append(None if row is None else (label, _opened(seals, key, *row, metadata=metadata)))
    return records


def load_records(connection: Connection, seals: Seals, number: int, after: int, limit: int) -> list[Found]:
    """The records above label `after` (-1: all), ascending, at most `limit`."""
    first, last = span(number)
    rows = connection.execute(
        "SELECT key, handle, words FROM records WHERE key BETWEEN ? AND ? ORDER BY key LIMIT ?",
        (first + after + 1, last, limit),
    )
    return [(label_of(key), _opened(seals, key, handle, words)) for key, handle, words in rows]


def labels(connection: Connection, number: int) -> list[int]:
    """Of every record, ascending."""
    rows = connection.execute("SELECT key FROM records WHERE key BETWEEN ? AND ? ORDER BY key", span(number))
    return [label_of(row[0]) for row in rows]


def _counters(connection: Connection, number: int) -> tuple[int, int, int]:
    """Next label, count and dimension; NotFound once the collection has been removed."""
    query = "SELECT next_label, count, dim FROM collections WHERE number = ? AND NOT removed"
    row = connection.execute(query, (number,)).fetchone()
    if row is None:
        raise NotFound("no such collection")
    return row[0], row[1], row[2]


def _room(connection: Connection, number: int, count: int, quota: Quota) -> int:
    """For how many more records there is room; below 0 where a quota was lowered."""
    query = "SELECT records FROM search_usage JOIN collections USING (customer) WHERE number = ?"
    used: int = connection.execute(query, (number,)).get
    return min(quota.collection - count, quota.customer - used)


def _count(connection: Connection, number: int, count: int) -> None:
    connection.execute("UPDATE collections SET count = ? WHERE number = ?", (count, number))


def _erase(connection: Connection, seals: Seals, number: int, dim: int, labels: Iterable[int]) -> None:
    """Records and their vectors."""
    labels = list(labels)
    connection.executemany(
        "DELETE FROM records WHERE key = ?", [(key_of(number, label),) for label in labels]
    )
    frames.remove(connection, seals, number, dim, labels)


def _with_vectors(
    connection: Connection, seals: Seals, number: int, found: Sequence[Found | None]
) -> list[tuple[Vector | None, Record] | None]:
    _, _, dim = _counters(connection, number)
    vectors = frames.read(connection, seals, number, dim, {one[0] for one in found if one is not None})
    return [None if one is None or one[1] is None else (vectors.get(one[0]), one[1]) for one in found]


def _key_of(connection: Connection, number: int, handle: bytes) -> int | None:
    query = "SELECT key FROM records WHERE collection = ? AND handle = ?"
    found: int | None = connection.execute(query, (number, handle)).get
    return found


def record_by_handle(connection: Connection, seals: Seals, number: int, handle: bytes) -> Found | None:
    """The record whose id has this handle, None where there is none."""
    query = "SELECT key, words FROM records WHERE collection = ? AND handle = ?"
    row = connection.execute(query, (number, handle)).fetchone()
    return None if row is None else (label_of(row[0]), _opened(seals, row[0], handle, row[1]))


def _opened(seals: Seals, key: int, handle: bytes, words: bytes, *, metadata: bool = True) -> Record | None:
    try:
        external_id, encoded = seals.open_words(key, handle, words)
    except SealBroken:
        return None
    return Record(external_id.decode(), decode_metadata(encoded) if metadata else {})
