"""Records in the place of others: all of the old one or all of the new one, for everybody who looks."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from appliance import config
from appliance.accounts.audit import Event, entries
from appliance.errors import InvalidInput
from appliance.ledger import Connection
from appliance.search import filters
from appliance.search.collections import NewRecord, OpenCollection, Record
from appliance.search.scans import Scans
from tests.searching import ACTOR, Shelf, numbered, shelf, unit

DIM = 8
AXES = np.eye(DIM, dtype=np.float32)


@pytest.fixture
async def things(tmp_path: Path) -> AsyncIterator[Shelf]:
    async with shelf(tmp_path) as opened:
        yield opened


async def test_vector_and_metadata_are_replaced_and_stay_so(tmp_path: Path) -> None:
    async with shelf(tmp_path) as first:
        opened = await first.collection(DIM)
        await opened.insert(ACTOR, [NewRecord("a", AXES[0], {"x": 1, "y": 1}), NewRecord("b", AXES[1])])
        new = [NewRecord("a", AXES[2], {"x": 2}), NewRecord("c", AXES[3])]
        assert await opened.upsert(ACTOR, new) == ["replaced", "inserted"]
        assert [hit.id for hit in await opened.search(AXES[2], 1)] == ["a"]
        assert (await opened.search(AXES[0], 3))[0].distance == 1.0
        assert await opened.get(["a"]) == [Record("a", {"x": 2})]
        assert await opened.all(filters.compile({"y": 1})) == []
        assert opened.count == 3
        (row,) = [one for one in await first.ledger.read(entries) if one.event is Event.SEARCH_UPSERT]
        assert row.details == {"inserted": 1, "replaced": 1}
    async with shelf(tmp_path) as second:
        again = await second.collections.open(None, opened.collection.id)
        assert [record.id for record in await again.all()] == ["b", "a", "c"]
        assert (await again.search(AXES[2], 1))[0].metadata == {"x": 2}
        assert again.count == again.collection.count == 3


async def test_the_last_of_one_id_in_a_call_counts(things: Shelf) -> None:
    opened = await things.collection(DIM)
    twice = [NewRecord("a", AXES[0], {"x": 1}), NewRecord("a", AXES[1], {"x": 2})]
    assert await opened.upsert(ACTOR, twice) == ["inserted", "replaced"]
    assert [(hit.id, hit.distance, hit.metadata) for hit in await opened.search(AXES[1], 5)] == [
        ("a", 0.0, {"x": 2})
    ]


async def test_a_full_collection_still_replaces(tmp_path: Path) -> None:
    async with shelf(tmp_path, config.Search(capacity=2)) as things:
        opened = await things.collection(DIM)
        records = [NewRecord(name, AXES[n]) for n, name in enumerate("abc")]
        assert await opened.upsert(ACTOR, records) == ["inserted", "inserted", "full"]
        assert await opened.upsert(ACTOR, [records[0], records[2]]) == ["replaced", "full"]
        assert opened.count == 2


async def test_a_bad_record_changes_nothing(things: Shelf) -> None:
    opened = await things.collection(DIM)
    await opened.insert(ACTOR, [NewRecord("a", AXES[0])])
    with pytest.raises(InvalidInput, match="record 1: vector"):
        await opened.upsert(ACTOR, [NewRecord("a", AXES[1]), NewRecord("b", np.zeros(DIM, np.float32))])
    assert (await opened.search(AXES[0], 1))[0].distance == 0.0


async def test_what_is_done_also_undoes_the_change_when_it_fails(things: Shelf) -> None:
    opened = await things.collection(DIM)

    def also(_: Connection, outcomes: object) -> None:
        raise InvalidInput(f"not {outcomes}")

    with pytest.raises(InvalidInput, match="inserted"):
        await opened.insert(ACTOR, [NewRecord("a", AXES[0])], also)
    with pytest.raises(InvalidInput, match="inserted"):
        await opened.upsert(ACTOR, [NewRecord("a", AXES[0])], also)
    assert opened.count == 0
    assert await opened.insert(ACTOR, [NewRecord("a", AXES[0])]) == ["inserted"]
    for change in (opened.update(ACTOR, [("a", {"x": 1})], also), opened.delete(ACTOR, ["a"], also)):
        with pytest.raises(InvalidInput):
            await change
    assert await opened.get(["a"]) == [Record("a", {})]


@pytest.mark.parametrize("flat_bytes", [10 << 20, 0], ids=["exact", "graph"])
async def test_nobody_sees_neither_or_both(tmp_path: Path, flat_bytes: int) -> None:
    """One record changes its vector and its metadata together, again and again, among a thousand others."""
    async with shelf(tmp_path, config.Search(flat_bytes=flat_bytes, ef=400)) as things:
        opened = await things.collection(DIM)
        others = numbered(unit(np.random.default_rng(5), 1000, DIM))
        await opened.insert(ACTOR, [NewRecord(one.id, one.vector, {"n": -1}) for one in others])
        await opened.insert(ACTOR, [NewRecord("moving", AXES[0], {"axis": 0})])
        await opened.settle()
        seen: Counter[object] = Counter()
        async with asyncio.TaskGroup() as group:
            changing = group.create_task(change(opened))
            while min(seen[0], seen[1]) < 5:
                seen[await look(opened)] += 1
            changing.cancel()


async def test_what_is_replaced_between_the_graph_and_the_tail_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph has proposed the old record, and the tail is scanned as it was before the new one came."""
    async with shelf(tmp_path, config.Search(flat_bytes=0, ef=400)) as things:
        opened = await things.collection(DIM)
        others = numbered(unit(np.random.default_rng(5), 500, DIM))
        await opened.insert(ACTOR, [*others, NewRecord("moving", AXES[0], {"new": False})])
        await opened.seal()
        turns = iter([opened.upsert(ACTOR, [NewRecord("moving", AXES[0], {"new": True})])])

        async def between(_: Scans, __: int, scan: Callable[..., object], *given: object) -> object:
            for turn in turns:
                assert await turn == ["replaced"]
            return scan(*given)

        monkeypatch.setattr(Scans, "run", between)
        (hit,) = await opened.search(AXES[0], 1)
        assert (hit.id, hit.distance, hit.metadata) == ("moving", 0.0, {"new": True})
        assert things.count("appliance_search_queries_total", path="graph") == 0


async def look(opened: OpenCollection) -> object:
    """Which axis the record has, by everything that shows it."""
    (found,) = [hit for hit in await opened.search(AXES[0], 1001) if hit.id == "moving"]
    assert found.distance == (0.0 if found.metadata["axis"] == 0 else 1.0)
    for listed in (
        await opened.all(),
        await opened.sample(1001, None, np.random.default_rng(1)),
        (await opened.page(1, 2000))[0],
        (await opened.after(-1, 2000))[0],
    ):
        assert [one.id for one in listed].count("moving") == 1
    assert (await opened.get(["moving"]))[0] is not None
    assert (await opened.vectors(["moving"]))[0] is not None
    return found.metadata["axis"]


async def change(opened: OpenCollection) -> None:
    """By chance, so that looks cannot keep step with the changes and see one kind only."""
    chance = np.random.RandomState(7)
    while True:
        axis = chance.randint(2)
        await opened.upsert(ACTOR, [NewRecord("moving", AXES[axis], {"axis": axis})])
