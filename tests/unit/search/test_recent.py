"""What was lately hit or asked for: as it is stored, read once, and never of a record that is gone."""

from pathlib import Path

import numpy as np
import pytest

from appliance.ledger import Connection
from appliance.search import recent
from appliance.search.collections import NewRecord
from appliance.search.recent import RecentIds, RecentLabels
from tests.searching import ACTOR, Shelf, numbered, shelf, unit

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


def test_new_records_are_expected_where_others_are_hit_and_many_drive_nobody_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recent, "_FEW_NEW", 2)
    ids = RecentIds()
    ids.expect([(1, "r1")])
    assert ids.find([1]) is None
    ids.remember([(0, "r0")])
    ids.expect([(1, "r1"), (2, "r2")])
    assert ids.find([0, 1, 2]) == ["r0", "r1", "r2"]
    ids.expect([(n, f"r{n}") for n in range(3, 6)])
    assert ids.find([3]) is None


def test_labels_asked_for_longest_ago_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MOST_ASKED", 2)
    labels = RecentLabels()
    labels.remember("a", 1)
    labels.remember("b", 2)
    assert labels.find("a") == 1
    labels.remember("c", 3)
    assert [labels.find(one) for one in ("a", "b", "c")] == [1, None, 3]
    labels.forget(1)
    labels.forget(1)
    labels.forget(2)
    assert [labels.find(one) for one in ("a", "c")] == [None, 3]
    labels.remember("d", 4)
    assert [labels.find(one) for one in ("c", "d")] == [3, 4]


async def hide(things: Shelf) -> None:
    """Nothing of any record opens any more."""

    def act(connection: Connection) -> None:
        connection.execute("UPDATE records SET words = x'00'")
        connection.execute("UPDATE frames SET content = x'00'")

    await things.ledger.write(act)


async def test_a_second_search_reads_nothing_and_answers_the_same(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(1), 40, DIM)
    async with shelf(tmp_path) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(vectors))
        first = await opened.search(vectors[3], 10, metadata=False)
        await hide(things)
        assert await opened.search(vectors[3], 10, metadata=False) == first
        await opened.delete(ACTOR, [first[0].id])
        assert first[0].id not in {hit.id for hit in await opened.search(vectors[3], 9, metadata=False)}
        await opened.insert(ACTOR, numbered(vectors[3:4], 3))
        assert (await opened.search(vectors[3], 1, metadata=False))[0].id == "r3"


async def test_what_came_beside_searches_is_found_without_reading(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(2), 40, DIM)
    async with shelf(tmp_path) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(vectors[:30]))
        await opened.search(vectors[3], 30, metadata=False)
        await opened.insert(ACTOR, numbered(vectors[30:], 30))
        await hide(things)
        found = await opened.search(vectors[35], 40, metadata=False)
        assert found[0].id == "r35"
        assert {hit.id for hit in found} == {f"r{n}" for n in range(40)}


async def test_a_vector_is_read_once_and_is_always_that_of_the_record_as_it_is(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(3), 40, DIM)
    async with shelf(tmp_path) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(vectors))
        asked = ["r3", "nothing", "r3", "r7"]
        first = await opened.vectors(asked)
        for found, expected in zip(first, (vectors[3], None, vectors[3], vectors[7]), strict=True):
            np.testing.assert_equal(found, expected)
        await opened.upsert(ACTOR, [NewRecord("r7", vectors[0], {})])
        (replaced,) = await opened.vectors(["r7"])
        np.testing.assert_equal(replaced, vectors[0])
        await hide(things)
        for found, expected in zip(await opened.vectors(["r3", "r7"]), (vectors[3], vectors[0]), strict=True):
            np.testing.assert_equal(found, expected)
        await opened.delete(ACTOR, ["r3"])
        np.testing.assert_equal(first[0], vectors[3])  # a copy: it is erased in memory, not in hands
        assert await opened.vectors(["r3"]) == [None]
        await opened.insert(ACTOR, [NewRecord("r3", vectors[1], {})])
        (again,) = await opened.vectors(["r3"])
        np.testing.assert_equal(again, vectors[1])
