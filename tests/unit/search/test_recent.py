"""Ids of recent hits: as they are stored, only together, forgotten with their record."""

from pathlib import Path

import numpy as np
import pytest

from appliance.ledger import Connection
from appliance.search import recent
from appliance.search.recent import RecentIds
from tests.searching import ACTOR, numbered, shelf, unit

DIM = 16


def test_those_hit_longest_ago_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MOST", 4)
    ids = RecentIds()
    ids.remember((n, f"r{n}") for n in range(4))
    assert ids.find([1, 0]) == ["r1", "r0"]
    assert ids.find([1, 9]) is None
    ids.remember([(8, "r8"), (9, "r9")])
    assert [ids.find([n]) for n in (0, 1, 2, 3, 8, 9)] == [["r0"], ["r1"], None, None, ["r8"], ["r9"]]
    ids.forget(8)
    ids.forget(8)
    assert ids.find([8]) is None
    assert ids.find([]) == []


async def test_a_second_search_reads_nothing_and_answers_the_same(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(1), 40, DIM)
    async with shelf(tmp_path) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(vectors))
        first = await opened.search(vectors[3], 10, metadata=False)

        def hide(connection: Connection) -> None:
            connection.execute("UPDATE records SET words = x'00'")

        await things.ledger.write(hide)
        assert await opened.search(vectors[3], 10, metadata=False) == first
        await opened.delete(ACTOR, [first[0].id])
        assert first[0].id not in {hit.id for hit in await opened.search(vectors[3], 9, metadata=False)}
        await opened.insert(ACTOR, numbered(vectors[3:4], 3))
        assert (await opened.search(vectors[3], 1, metadata=False))[0].id == "r3"
