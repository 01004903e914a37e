"""Records that no snapshot brings back, for their owner has had them erased from all.

Files of snapshots never change. So there is kept, of each such record, the keyed hash of its id and the label
that the next record was to get: what a snapshot has of it lies below, and is left out by whoever restores it.
What is inserted later under the same id is another record, and comes back. The SQL here is plain functions on
a connection, within the caller's transaction.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from appliance.ledger import Connection
from appliance.search import entries
from appliance.search.copying import Stored
from appliance.search.seals import ContainerId, Seals

Erased = Mapping[bytes, int]
"""By its handle, the label below which a record was erased."""


def leave_out(connection: Connection, seals: Seals, number: int, external_ids: Iterable[bytes]) -> None:
    """Have no snapshot of now bring back the records of these ids, whether the collection has them or not."""
    label, container = entries.next_label(connection, number), str(seals.container)
    connection.executemany(
        "INSERT OR REPLACE INTO erased_records (container, handle, label) VALUES (?, ?, ?)",
        [(container, seals.handle(external), label) for external in external_ids],
    )


def erased_from(connection: Connection, container: ContainerId) -> Erased:
    """What is left out of the snapshots of a collection."""
    found: list[Any] = connection.execute(
        "SELECT handle, label FROM erased_records WHERE container = ?", (container,)
    ).fetchall()
    return dict(found)


def without(some: Stored, seals: Seals, erased: Erased) -> Stored:
    """The records of a snapshot that are not among the erased ones."""
    if not erased:
        return some
    kept = [
        position
        for position, (label, (external, _)) in enumerate(zip(some.labels.tolist(), some.words, strict=True))
        if label >= erased.get(seals.handle(external), 0)
    ]
    return Stored(some.labels[kept], some.vectors[kept], [some.words[position] for position in kept])
