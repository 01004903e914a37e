"""What a ledger has of customers, read by another connection than the daemon's: all that is sealed in it."""

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from uuid import UUID

import apsw

from appliance.vault import Keyring

# What is sealed in the ledger: table, column, and as what.
SEALED = (
    ("datasets", "name", "name"),
    ("images", "meta_data", "meta_data"),
    ("tasks", "words", "task"),
    ("labels", "words", "label"),
    ("objects", "words", "object"),
    ("verifications", "words", "verification"),
    ("points", "words", "point"),
)


def blobs(folder: Path) -> Iterator[tuple[str, str, str, str, bytes]]:
    """Noun, row, customer, dataset and content of all that is sealed in the ledger."""
    with closing(apsw.Connection(str(folder / "ledger.db"), flags=apsw.SQLITE_OPEN_READONLY)) as ledger:
        for table, column, noun in SEALED:
            where = {
                "datasets": "datasets",
                "verifications": "verifications JOIN images ON images.key = verifications.image"
                " JOIN datasets ON datasets.number = images.dataset",
            }.get(table, f"{table} JOIN datasets ON datasets.number = {table}.dataset")
            yield from (
                (noun, *row)
                for row in ledger.execute(
                    f"SELECT {table}.id, datasets.customer, datasets.id, {table}.{column} FROM {where}"
                    f" WHERE {table}.{column} IS NOT NULL"
                )
            )


def blobs_of(folder: Path, collection: str) -> list[tuple[str, bytes]]:
    """Noun and content of all that is sealed of one collection."""
    with closing(apsw.Connection(str(folder / "ledger.db"), flags=apsw.SQLITE_OPEN_READONLY)) as ledger:
        container = ledger.execute("SELECT container FROM collections WHERE id = ?", (collection,)).get
    return [(noun, content) for noun, _, one, _, content in collection_blobs(folder) if one == container]


def collection_blobs(folder: Path) -> Iterator[tuple[str, str, str, bytes, bytes]]:
    """Noun, customer, container, context and content of all that is sealed of collections."""
    with closing(apsw.Connection(str(folder / "ledger.db"), flags=apsw.SQLITE_OPEN_READONLY)) as ledger:
        for customer, container, content in ledger.execute(
            "SELECT customer, container, name FROM collections"
        ):
            yield "name", customer, container, UUID(container).bytes, content
        for customer, container, content in ledger.execute("SELECT customer, id, name FROM aliases"):
            yield "name", customer, container, UUID(container).bytes, content
        for customer, container, key, handle, content in ledger.execute(
            "SELECT customer, container, key, handle, words FROM records"
            " JOIN collections ON number = collection"
        ):
            yield "record", customer, container, key.to_bytes(8) + handle, content
        for customer, container, key, content in ledger.execute(
            "SELECT customer, container, key, content FROM frames JOIN collections ON number = collection"
        ):
            yield "frame", customer, container, key.to_bytes(8), content
        for customer, container, handle, content in ledger.execute(
            "SELECT collections.customer, container, search_replies.handle, reply FROM search_replies"
            " JOIN collections ON collections.number = collection"
        ):
            yield "reply", customer, container, handle, content


def collection_contents(folder: Path, keyring: Keyring) -> Iterator[tuple[str, bytes]]:
    """Noun and what was sealed. Raises SealBroken."""
    for noun, customer, collection, context, content in collection_blobs(folder):
        keys = keyring.container(UUID(customer), UUID(collection))
        yield noun, keys.unseal(noun, content, context)


def of_images(folder: Path, but: Iterable[str] = ()) -> list[bytes]:
    """What the ledger has of images: the keyed hash of each, and all that is sealed beside it."""
    with closing(apsw.Connection(str(folder / "ledger.db"), flags=apsw.SQLITE_OPEN_READONLY)) as ledger:
        left_out = json.dumps(list(but))
        rows = ledger.execute(
            "WITH going AS (SELECT * FROM images WHERE id NOT IN (SELECT value FROM json_each(?)))"
            " SELECT content FROM going UNION ALL SELECT meta_data FROM going"
            " UNION ALL SELECT words FROM objects WHERE image IN (SELECT key FROM going)"
            " UNION ALL SELECT words FROM verifications WHERE image IN (SELECT key FROM going)"
            " UNION ALL SELECT user FROM verifications WHERE image IN (SELECT key FROM going)"
            " UNION ALL SELECT words FROM points WHERE image IN (SELECT key FROM going)",
            (left_out,),
        )
        return [row[0] for row in rows]
