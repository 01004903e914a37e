"""The SQL of whole collections that are copied: plain functions on a connection, within a transaction.

Records keep their labels, and with them their order and their place in pages. They are opened under the seals
of the one collection and sealed anew under those of the other, or under the same ones for other rows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from appliance.accounts.customers import CustomerId
from appliance.errors import CapacityExceeded, QuotaReached, SealBroken
from appliance.ledger import Connection
from appliance.search import frames
from appliance.search.exact import Positions
from appliance.search.numbering import key_of, label_of, span
from appliance.search.records import Vector
from appliance.search.rows import Quota, add_record
from appliance.search.seals import Seals


@dataclass(frozen=True, slots=True)
class Stored:
    """Records by ascending label: vectors float32 (n, dim), and of each the caller's id and its metadata."""

    labels: Positions
    vectors: Vector
    words: list[tuple[bytes, bytes]]

    @property
    def size(self) -> int:
        """Bytes of all, without what seals and indexes add."""
        return self.vectors.nbytes + sum(len(external) + len(metadata) for external, metadata in self.words)


def sealed_bytes(connection: Connection, number: int) -> int:
    """What the records of a collection take as they rest, which is more than they are."""
    found: int = connection.execute(
        "SELECT (SELECT coalesce(sum(length(words)), 0) FROM records WHERE key BETWEEN ?1 AND ?2)"
        " + (SELECT coalesce(sum(length(content)), 0) FROM frames WHERE key BETWEEN ?1 AND ?2)",
        span(number),
    ).get
    return found


def read(  # noqa: PLR0917
    connection: Connection, seals: Seals, number: int, dim: int, after: int, limit: int
) -> Stored | None:
    """The records above label `after` (-1: all), at most `limit`; None when there are no more.

    Raises SealBroken when one is damaged.
    """
    first, last = span(number)
    query = "SELECT key, handle, words FROM records WHERE key BETWEEN ? AND ? ORDER BY key LIMIT ?"
    found: list[Any] = connection.execute(query, (first + after + 1, last, limit)).fetchall()
    if not found:
        return None
    labels = [label_of(row[0]) for row in found]
    words = [seals.open_words(*row) for row in found]
    vectors = frames.read(connection, seals, number, dim, labels)
    if len(vectors) < len(labels):
        raise SealBroken(f"{len(labels) - len(vectors)} records have no vector that opens")
    return Stored(np.array(labels), np.stack([vectors[label] for label in labels]), words)


def add(connection: Connection, seals: Seals, number: int, some: Stored) -> None:
    """Store records under the labels that they had, which are above all that are there."""
    for label, (external_id, metadata) in zip(some.labels.tolist(), some.words, strict=True):
        key, handle = key_of(number, label), seals.handle(external_id)
        add_record(connection, seals, key, handle, external_id, metadata)
    frames.add(connection, seals, number, some.labels, some.vectors)


def check_room(connection: Connection, customer: CustomerId, old: int, new: int, quota: Quota) -> None:
    """Whether `new` records may be in the place of `old` ones.

    Raises CapacityExceeded when that is too much for a collection, QuotaReached when it is for its customer.
    """
    query = "SELECT records FROM search_usage WHERE customer = ?"
    used: int = connection.execute(query, (customer,)).get or 0
    if new > quota.collection:
        raise CapacityExceeded(f"there is no room for {new} records: raise [search] capacity")
    if used - old + new > quota.customer:
        raise QuotaReached(quota.customer, "records in its collections")
