"""The SQL of items: what is remembered of those that became records, within the caller's transaction."""

from collections.abc import Container, Iterable
from typing import Any, Literal

from appliance.ledger import Connection
from appliance.search import rows
from appliance.search.numbering import label_of, span
from appliance.search.seals import Seals
from appliance.search.sync.parsing import Item

Need = Literal["nothing", "words", "image", "record"]
"""What an item wants: only metadata, a new vector as well, or a record that is not there."""


def compare(
    connection: Connection, seals: Seals, number: int, items: Iterable[Item]
) -> list[tuple[bytes, Need, bool]]:
    """Of each item the handle, what it needs, and whether its record is one that the feed brought."""
    compared: list[tuple[bytes, Need, bool]] = []
    for item in items:
        handle = seals.handle(item.id.encode())
        row = connection.execute(
            "SELECT feed_items.image, feed_items.words FROM records"
            " LEFT JOIN feed_items ON feed_items.key = records.key WHERE collection = ? AND handle = ?",
            (number, handle),
        ).fetchone()
        need: Need = "nothing"
        if row is None:
            need = "record"
        elif row[0] != seals.digest("image", item.url.encode()):
            need = "image"
        elif row[1] != seals.digest("words", item.metadata):
            need = "words"
        compared.append((handle, need, row is not None and row[0] is not None))
    return compared


def remember(connection: Connection, seals: Seals, number: int, items: Iterable[Item]) -> None:
    """What the records of these items were made of, those that there are."""
    for item in items:
        connection.execute(
            "INSERT OR REPLACE INTO feed_items (key, image, words)"
            " SELECT key, ?, ? FROM records WHERE collection = ? AND handle = ?",
            (
                seals.digest("image", item.url.encode()),
                seals.digest("words", item.metadata),
                number,
                seals.handle(item.id.encode()),
            ),
        )


def remembered(connection: Connection, number: int) -> int:
    """How many records of a collection its feed brought."""
    query = "SELECT count(*) FROM feed_items WHERE key BETWEEN ? AND ?"
    count: int = connection.execute(query, span(number)).get
    return count


def unseen(  # noqa: PLR0917 - a page of a query
    connection: Connection,
    seals: Seals,
    number: int,
    seen: Container[bytes],
    after: int,
    limit: int,
    *,
    of_feed: bool,
) -> tuple[list[str], int | None]:
    """Ids of records whose handles are not `seen`, among the next `limit` after the key `after`, and the key
    to go on after, None at the end; with `of_feed` of those alone that the feed brought.
    """
    first, last = span(number)
    found: list[tuple[Any, ...]] = connection.execute(
        f"SELECT key, handle FROM records {'JOIN feed_items USING (key)' if of_feed else ''}"  # noqa: S608
        " WHERE key BETWEEN ? AND ? ORDER BY key LIMIT ?",
        (max(first, after + 1), last, limit),
    ).fetchall()
    labels = [label_of(key) for key, handle in found if handle not in seen]
    records = rows.records_by_label(connection, seals, number, labels, metadata=False)
    ids = [one[1].id for one in records if one is not None and one[1] is not None]
    return ids, found[-1][0] if len(found) == limit else None


def forget_some(connection: Connection, number: int, limit: int) -> bool:
    """Have up to `limit` records be nobody's feed's; True: none is left."""
    connection.execute(
        "DELETE FROM feed_items WHERE key IN (SELECT key FROM feed_items WHERE key BETWEEN ? AND ? LIMIT ?)",
        (*span(number), limit),
    )
    return connection.changes() < limit
