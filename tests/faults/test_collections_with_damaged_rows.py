"""Rows that changed in the ledger: named in the log, left out of answers, and everything else served."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from appliance.ledger import Connection
from appliance.search import filters, frames
from appliance.search.collections import CollectionId, NewRecord
from appliance.search.numbering import key_of
from appliance.search.seals import ContainerId, Seals
from tests.searching import ACTOR, Shelf, numbered, shelf, unit

DIM = 16
COUNT = 20
UNSOUND = {
    7: np.full(DIM, np.nan, np.float32),
    11: np.zeros(DIM, np.float32),
    13: np.full(DIM, 1e38, np.float32),
}


@pytest.fixture(autouse=True)
def _small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five vectors a frame: 0 to 4, 5 to 9, 10 to 14, 15 to 19."""
    monkeypatch.setattr(frames, "FRAME_BYTES", 5 * 4 * (1 + DIM))


async def stored(folder: Path, damage: Callable[[Connection, Seals], object]) -> CollectionId:
    """A collection of r0 to r19 with this damage done to it, and a sound one called other."""
    vectors = unit(np.random.default_rng(1), COUNT, DIM)
    async with shelf(folder) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(vectors))
        other = await things.collection(DIM, "other")
        await other.insert(ACTOR, numbered(vectors))
        seals = Seals(things.keyring, things.customer, ContainerId(opened.collection.id))
        await things.ledger.write(lambda connection: damage(connection, seals))
        return opened.collection.id


def unsound_vectors(connection: Connection, seals: Seals) -> None:
    """As a bundle would have made them, or a version that did not look."""
    for label, vector in UNSOUND.items():
        key = key_of(1, label - label % 5)
        content = connection.execute("SELECT content FROM frames WHERE key = ?", (key,)).get
        opened = bytearray(seals.open_frame(key, content))
        start = 4 * (5 + DIM * (label % 5))
        opened[start : start + 4 * DIM] = vector.tobytes()
        sealed = seals.seal_frame(key, bytes(opened))
        connection.execute("UPDATE frames SET content = ? WHERE key = ?", (sealed, key))


def flip(connection: Connection, table: str, column: str, label: int, position: int = -20) -> None:
    key = key_of(1, label)
    blob = bytearray(connection.execute(f"SELECT {column} FROM {table} WHERE key = ?", (key,)).get)
    blob[position] ^= 1
    connection.execute(f"UPDATE {table} SET {column} = ? WHERE key = ?", (bytes(blob), key))


async def assert_named(
    things: Shelf, identifier: CollectionId, labels: list[int], caplog: pytest.LogCaptureFixture, what: str
) -> None:
    for label in labels:
        assert f"collection {identifier}: the {what} of record {label} is damaged" in caplog.text
    assert len(caplog.records) == len(labels)
    assert things.count("appliance_search_damage_found_total") == len(labels)
    other = next(found for found in await things.collections.list() if found.name == "other")
    opened = await things.collections.open(None, other.id)
    assert len(await opened.search(np.ones(DIM), 100)) == COUNT


@pytest.mark.parametrize(
    ("damage", "labels"),
    [
        (unsound_vectors, [*UNSOUND]),
        (lambda connection, _: flip(connection, "frames", "content", 5), [5, 6, 7, 8, 9]),
        (lambda connection, _: flip(connection, "frames", "content", 15, 0), [15, 16, 17, 18, 19]),
        (
            lambda connection, _: connection.execute(
                "UPDATE frames SET count = 4 WHERE key = ?", (key_of(1, 0),)
            ),
            [0, 1, 2, 3, 4],
        ),
        (
            lambda connection, _: connection.execute("DELETE FROM frames WHERE key = ?", (key_of(1, 10),)),
            [10, 11, 12, 13, 14],
        ),
    ],
    ids=["no unit vectors", "flipped bit", "other generation", "other count", "frame lost"],
)
async def test_damaged_vectors_are_named_and_the_others_served(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Connection, Seals], object],
    labels: list[int],
) -> None:
    identifier = await stored(tmp_path, damage)
    async with shelf(tmp_path) as things:
        with caplog.at_level(logging.ERROR, "appliance.search"):
            opened = await things.collections.open(None, identifier)
        await assert_named(things, identifier, labels, caplog, "vector")
        assert (opened.count, opened.damaged) == (COUNT, len(labels))
        sound = {f"r{n}" for n in range(COUNT)} - {f"r{n}" for n in labels}
        assert {hit.id for hit in await opened.search(np.ones(DIM), 100)} == sound
        assert await opened.search(np.ones(DIM), 5, filters.compile({"n": labels[0]})) == []


async def test_a_record_with_a_damaged_vector_is_fetched_paged_deleted_and_inserted_anew(
    tmp_path: Path,
) -> None:
    identifier = await stored(tmp_path, lambda connection, _: flip(connection, "frames", "content", 5))
    async with shelf(tmp_path) as things:
        opened = await things.collections.open(None, identifier)
        assert [record.id for record in (await opened.page(1, 100))[0]] == [f"r{n}" for n in range(COUNT)]
        assert [found.metadata for found in await opened.get(["r7"]) if found] == [{"n": 7}]
        assert [vector is None for vector in await opened.vectors(["r7", "r10"])] == [True, False]
        assert [found.metadata for found in await opened.update(ACTOR, [("r7", {"x": 1})]) if found] == [
            {"n": 7, "x": 1}
        ]
        assert await opened.delete(ACTOR, ["r7"]) == [True]
        assert (opened.count, opened.damaged) == (COUNT - 1, 4)
        assert await opened.insert(ACTOR, [NewRecord("r7", np.ones(DIM, np.float32))]) == ["inserted"]
        assert (await opened.search(np.ones(DIM), 1))[0].id == "r7"
        # The frame that does not open is kept for as long as a record has its vector in it.
        await opened.delete(ACTOR, ["r5", "r6", "r8"])
        assert await things.ledger.read(lambda c: frame_is_there(c, 5))
        await opened.delete(ACTOR, ["r9"])
        assert not await things.ledger.read(lambda c: frame_is_there(c, 5))
        assert (opened.count, opened.damaged) == (COUNT - 4, 0)


def frame_is_there(connection: Connection, label: int) -> bool:
    return bool(connection.execute("SELECT 1 FROM frames WHERE key = ?", (key_of(1, label),)).get)


@pytest.mark.parametrize("column", ["words", "handle"])
@pytest.mark.parametrize("asked", ["search", "filter", "page", "all"])
async def test_a_record_whose_words_changed_is_in_no_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, asked: str, column: str
) -> None:
    def damage(connection: Connection, _: Seals) -> None:
        for label in (3, 4, 12):
            flip(connection, "records", column, label, position=-5)

    identifier = await stored(tmp_path, damage)
    sound = {f"r{n}" for n in range(COUNT)} - {"r3", "r4", "r12"}
    async with shelf(tmp_path) as things:
        opened = await things.collections.open(None, identifier)
        with caplog.at_level(logging.ERROR, "appliance.search"):
            for _ in range(2):
                match asked:
                    case "search":
                        # As many as are sound are asked for: the damaged ones must not take their places.
                        found = {hit.id for hit in await opened.search(np.ones(DIM), len(sound))}
                    case "filter":
                        wanted = filters.compile({"n": {"$in": list(range(COUNT))}})
                        found = {hit.id for hit in await opened.search(np.ones(DIM), 100, wanted)}
                    case "page":
                        found = {record.id for record in (await opened.page(1, 100))[0]}
                    case _:
                        found = {record.id for record in await opened.all()}
                assert found == sound
        await assert_named(things, identifier, [3, 4, 12], caplog, "id or metadata")
        assert (opened.count, opened.damaged) == (COUNT, 3)


async def test_a_record_whose_words_changed_keeps_its_id_until_it_is_deleted(tmp_path: Path) -> None:
    identifier = await stored(tmp_path, lambda connection, _: flip(connection, "records", "words", 3))
    async with shelf(tmp_path) as things:
        opened = await things.collections.open(None, identifier)
        new = NewRecord("r3", np.ones(DIM, np.float32))
        assert await opened.get(["r3", "r2"]) == [None, *(await opened.get(["r2"]))]
        assert await opened.update(ACTOR, [("r3", {"x": 1}), ("r2", {"x": 1})]) != [None, None]
        assert await opened.get(["r3"]) == [None]
        assert await opened.insert(ACTOR, [new]) == ["duplicate"]
        assert await opened.delete(ACTOR, ["r3"]) == [True]
        assert (opened.count, opened.damaged) == (COUNT - 1, 0)
        assert await opened.insert(ACTOR, [new]) == ["inserted"]
        assert (await opened.search(np.ones(DIM), 1))[0].id == "r3"


async def test_a_frame_of_before_that_is_put_back_brings_no_deleted_vector(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        opened = await things.collection(DIM)
        vectors = unit(np.random.default_rng(1), COUNT, DIM)
        await opened.insert(ACTOR, numbered(vectors))
        before = await things.ledger.read(
            lambda c: c.execute("SELECT key, collection, count, content FROM frames").fetchall()
        )
        await opened.delete(ACTOR, ["r6", "r10", "r11", "r12", "r13", "r14"])

        def put_back(connection: Connection) -> None:
            for row in before:
                connection.execute("INSERT OR REPLACE INTO frames VALUES (?, ?, ?, ?)", row)

        await things.ledger.write(put_back)
    async with shelf(tmp_path) as things:
        again = await things.collections.open(None, opened.collection.id)
        left = {f"r{n}" for n in range(COUNT)} - {"r6", "r10", "r11", "r12", "r13", "r14"}
        assert {hit.id for hit in await again.search(vectors[6], 100)} == left
        assert (again.count, again.damaged) == (len(left), 0)


async def test_a_name_that_changed_costs_nothing_but_itself(tmp_path: Path) -> None:
    def damage(connection: Connection, _: Seals) -> None:
        name = bytearray(connection.execute("SELECT name FROM collections WHERE number = 1").get)
        name[-1] ^= 1
        connection.execute("UPDATE collections SET name = ? WHERE number = 1", (bytes(name),))

    identifier = await stored(tmp_path, damage)
    async with shelf(tmp_path) as things:
        assert [one.name for one in await things.collections.list()] == [f"damaged {identifier}", "other"]
        opened = await things.collections.open(None, identifier)
        assert len(await opened.search(np.ones(DIM), 100)) == COUNT
