"""Records that go by what they say: in bounded steps, as they are when their turn comes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from appliance.accounts.audit import Event, entries
from appliance.errors import InvalidInput
from appliance.search import filters, frames
from appliance.search.collections import NewRecord
from tests.searching import ACTOR, Shelf, shelf, unit

DIM = 8


@pytest.fixture
async def things(tmp_path: Path) -> AsyncIterator[Shelf]:
    async with shelf(tmp_path) as opened:
        yield opened


def parts(count: int) -> list[NewRecord]:
    vectors = unit(np.random.default_rng(3), count, DIM)
    return [NewRecord(f"r{n}", vector, {"part": n % 2}) for n, vector in enumerate(vectors)]


async def test_what_matches_goes_in_steps_that_are_each_durable_and_audited(tmp_path: Path) -> None:
    async with shelf(tmp_path) as first:
        opened = await first.collection(DIM)
        await opened.insert(ACTOR, parts(1300))
        assert await opened.delete_matching(ACTOR, filters.compile({"part": 1})) == 650
        audited = await first.ledger.read(entries)
        steps = [row.details["deleted"] for row in audited if row.event is Event.SEARCH_DELETE]
        assert steps == [256, 256, 138]
        assert await opened.delete_matching(ACTOR, filters.compile({"part": 1})) == 0
        assert opened.count == 650
    async with shelf(tmp_path) as second:
        again = await second.collections.open(None, opened.collection.id)
        assert {record.metadata["part"] for record in await again.all()} == {0}
        assert again.collection.count == 650


async def test_a_filter_that_every_record_matches_is_refused(things: Shelf) -> None:
    opened = await things.collection(DIM)
    await opened.insert(ACTOR, parts(3))
    with pytest.raises(InvalidInput, match="filter"):
        await opened.delete_matching(ACTOR, filters.compile({"$and": [{}]}))
    assert opened.count == 3


async def test_what_is_changed_meanwhile_is_judged_as_it_is(things: Shelf) -> None:
    opened = await things.collection(DIM)
    await opened.insert(ACTOR, parts(2000))
    saved = [f"r{n}" for n in range(1501, 2000, 2)]

    async def save() -> None:
        await opened.update(ACTOR, [(name, {"part": 0}) for name in saved])

    deleted, _ = await asyncio.gather(opened.delete_matching(ACTOR, filters.compile({"part": 1})), save())
    left = {record.id for record in await opened.all()}
    assert deleted + len(left) == 2000
    assert {f"r{n}" for n in range(0, 2000, 2)} <= left
    assert left >= set(saved)  # the update was durable before their step came


async def test_records_without_a_sound_vector_go_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "FRAME_BYTES", 2 * 4 * (1 + DIM))  # of two vectors
    async with shelf(tmp_path) as first:
        opened = await first.collection(DIM)
        await opened.insert(ACTOR, parts(4))
        await first.ledger.write(
            lambda connection: connection.execute(
                "UPDATE frames SET content = zeroblob(length(content)) WHERE key & 0xffffffff = 0"
            )
        )
    async with shelf(tmp_path) as second:
        again = await second.collections.open(None, opened.collection.id)
        assert again.damaged == 2
        assert await again.delete_matching(ACTOR, filters.compile({"part": 1})) == 2
        assert [record.id for record in await again.all()] == ["r0", "r2"]
        assert again.damaged == 1


async def test_pages_by_position_miss_nothing_while_others_come_and_go(things: Shelf) -> None:
    opened = await things.collection(DIM)
    records = parts(40)
    await opened.insert(ACTOR, records[:30])
    stay = {f"r{n}" for n in range(30) if n % 3}
    seen: list[str] = []
    label: int | None = -1
    turn = 0
    while label is not None:
        page, label = await opened.after(label, 4)
        seen += [record.id for record in page]
        await opened.delete(ACTOR, [f"r{turn * 3}"])
        await opened.insert(ACTOR, records[30 + turn : 31 + turn])
        turn += 1
    assert len(seen) == len(set(seen))
    assert stay <= set(seen)
    with pytest.raises(InvalidInput, match="size"):
        await opened.after(-1, 0)
