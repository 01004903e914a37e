"""A state from before collections had keys, and what it must be after the start that seals it."""

from pathlib import Path
from uuid import UUID

import numpy as np

from appliance.accounts.customers import CustomerId
from appliance.ledger.database import open_writer
from appliance.ledger.migrations import migrate, shipped
from appliance.search.collections import CollectionId
from tests.plaintext import Plaintext
from tests.searching import ACTOR, BACKBONE, Vectors, brute_force, shelf, unit

DIM = 16
COUNT = 700
CUSTOMER = CustomerId("6f5a3b1e-0c0f-4a52-9b0c-3d1d1a6b7c01")
SHOES = CollectionId("1f5a3b1e-0c0f-4a52-9b0c-3d1d1a6b7c02")
GONE = CollectionId("2f5a3b1e-0c0f-4a52-9b0c-3d1d1a6b7c03")
EMPTY = CollectionId("3f5a3b1e-0c0f-4a52-9b0c-3d1d1a6b7c04")
DAMAGED = {5: b"", 9: b"\0" * 7, 300: np.full(DIM, np.nan, np.float32).tobytes()}


def vectors() -> Vectors:
    return unit(np.random.default_rng(1), COUNT, DIM)


def old_state(folder: Path) -> Plaintext:
    """A ledger of schema 13: a collection whose every third record was deleted, one half removed, one empty.

    Its plaintext.
    """
    connection = open_writer(folder / "ledger.db")
    migrate(connection, shipped()[:13])
    connection.execute("INSERT INTO customers (id, name, created_at) VALUES (?, 'someone', 1)", (CUSTOMER,))
    with connection:
        for number, identity, name, removed in (
            (2, SHOES, "secret name of shelves", 0),
            (4, GONE, "secret name of old ones", 1),
            (5, EMPTY, "secret name of nothing", 0),
        ):
            count = len(kept()) if identity == SHOES else 0
            connection.execute(
                "INSERT INTO collections VALUES (?, ?, ?, ?, ?, ?, 17, ?, ?, ?)",
                (number, identity, CUSTOMER, name, BACKBONE, DIM, COUNT, count, removed),
            )
        connection.execute("UPDATE sqlite_sequence SET seq = 9 WHERE name = 'collections'")
        for number in (2, 4):
            for label, vector in enumerate(vectors()):
                stored = DAMAGED.get(label, vector.tobytes()) if number == 2 else vector.tobytes()
                connection.execute(
                    "INSERT INTO records VALUES (?, ?, ?, ?, ?)",
                    ((number << 32) + label, number, external(label), stored, metadata(label)),
                )
    for collection, key in ((2, "kept"), (4, "gone")):
        connection.execute(
            "INSERT INTO search_replies (customer, key, collection, digest, status, reply, until)"
            " VALUES (?, ?, ?, x'01', 200, ?, 17)",
            (CUSTOMER, key, collection, b"not sealed by any key that is here"),
        )
    connection.execute("DELETE FROM records WHERE collection = 2 AND key % 3 = 1")
    connection.close()
    plaintext = Plaintext()
    for label, vector in enumerate(vectors()):
        plaintext.add(vector.tobytes())
        plaintext.add_word(external(label).decode())
        plaintext.add_word(f"secret shelf {label:09}")
    for name in ("secret name of shelves", "secret name of old ones", "secret name of nothing"):
        plaintext.add_word(name)
    return plaintext


def external(label: int) -> bytes:
    return f"secret id {label:09}".encode()


def metadata(label: int) -> bytes:
    return b'{"n":%d,"shelf":"secret shelf %09d"}' % (label, label)


def kept() -> list[int]:
    first = 2 << 32
    return [label for label in range(COUNT) if (first + label) % 3 != 1]


def files(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


async def check(folder: Path) -> None:
    async with shelf(folder) as things:
        assert [(one.id, one.name, one.count, one.created_at) for one in await things.collections.list()] == [
            (SHOES, "secret name of shelves", len(kept()), 17),
            (EMPTY, "secret name of nothing", 0, 17),
        ]
        opened = await things.collections.open(CUSTOMER, SHOES)
        assert (opened.count, opened.damaged) == (len(kept()), len(set(DAMAGED) & set(kept())))
        assert [(record.id, record.metadata) for record in await opened.all()] == [
            (external(n).decode(), {"n": n, "shelf": f"secret shelf {n:09}"}) for n in kept()
        ]
        sound = [label for label in kept() if label not in DAMAGED]
        order, _ = brute_force(vectors()[sound], vectors()[12], 10)
        hits = await opened.search(vectors()[12], 10)
        assert [hit.id for hit in hits] == [external(sound[n]).decode() for n in order]
        (found,) = await opened.vectors([external(12).decode()])
        np.testing.assert_array_equal(found, vectors()[12])
        held = {(container, kind) for _, container, kind in things.keyring.containers()}
        assert held == {(UUID(SHOES), "collection"), (UUID(EMPTY), "collection")}
        added = await things.collections.add(ACTOR, CUSTOMER, "after", BACKBONE, DIM)
        await things.collections.remove(ACTOR, None, added.id)
