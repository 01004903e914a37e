"""Vectors that changed in the ledger: named in the log, left out of searches, and everything else served."""

import logging
from pathlib import Path

import numpy as np
import pytest

from appliance.ledger import Connection
from appliance.search import filters
from appliance.search.collections import CollectionId, NewRecord
from tests.searching import ACTOR, numbered, shelf, unit

DIM = 16
DAMAGE = {
    2: b"",
    3: b"\0" * 7,
    5: b"\1" * (DIM * 4 + 4),
    7: np.full(DIM, np.nan, np.float32).tobytes(),
    11: np.zeros(DIM, np.float32).tobytes(),
    13: np.full(DIM, 1e38, np.float32).tobytes(),
}


async def damaged(folder: Path) -> CollectionId:
    vectors = unit(np.random.default_rng(1), 20, DIM)
    async with shelf(folder) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(vectors))
        other = await things.collection(DIM, "other")
        await other.insert(ACTOR, numbered(vectors))

        def damage(connection: Connection) -> None:
            for label, blob in DAMAGE.items():
                connection.execute(
                    "UPDATE records SET vector = ? WHERE collection = 1 AND external_id = ?",
                    (blob, f"r{label}".encode()),
                )

        await things.ledger.write(damage)
        return opened.collection.id


async def test_damaged_vectors_are_named_and_the_others_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    identifier = await damaged(tmp_path)
    async with shelf(tmp_path) as things:
        with caplog.at_level(logging.ERROR, "appliance.search"):
            opened = await things.collections.open(None, identifier)
        for label in DAMAGE:
            assert f"collection {identifier}: the vector of record {label} is damaged" in caplog.text
        assert len(caplog.records) == len(DAMAGE) == opened.damaged
        assert things.count("appliance_search_damaged_records_total") == len(DAMAGE)
        sound = {f"r{n}" for n in range(20)} - {f"r{n}" for n in DAMAGE}
        assert {hit.id for hit in await opened.search(np.ones(DIM), 100)} == sound
        assert await opened.search(np.ones(DIM), 5, filters.compile({"n": 7})) == []
        other = next(found for found in await things.collections.list() if found.name == "other")
        assert len(await (await things.collections.open(None, other.id)).search(np.ones(DIM), 100)) == 20


async def test_a_damaged_record_is_fetched_paged_deleted_and_inserted_anew(tmp_path: Path) -> None:
    identifier = await damaged(tmp_path)
    async with shelf(tmp_path) as things:
        opened = await things.collections.open(None, identifier)
        assert opened.count == 20
        assert [record.id for record in (await opened.page(1, 100))[0]] == [f"r{n}" for n in range(20)]
        assert [found.metadata for found in await opened.get(["r7"]) if found] == [{"n": 7}]
        assert [vector is None for vector in await opened.vectors(["r7", "r8"])] == [True, False]
        assert [found.metadata for found in await opened.update(ACTOR, [("r7", {"x": 1})]) if found] == [
            {"n": 7, "x": 1}
        ]
        assert await opened.delete(ACTOR, ["r7"]) == [True]
        assert (opened.count, opened.damaged) == (19, len(DAMAGE) - 1)
        assert await opened.insert(ACTOR, [NewRecord("r7", np.ones(DIM, np.float32))]) == ["inserted"]
        assert (await opened.search(np.ones(DIM), 1))[0].id == "r7"
