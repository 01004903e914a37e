"""kill -9 at the calls that write, sync and name while snapshots are made, restored and removed."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.ledger import Connection
from appliance.search.collections import OpenCollection
from tests.faults.collections_writer import vector
from tests.faults.snapshots_writer import NEW, OLD, prepare
from tests.faults.store_harness import NAMES, SYNCS, WRITES, Heard, Writers
from tests.searching import ACTOR, Shelf, shelf

CALLS = (*WRITES, *SYNCS, *NAMES)
THREADS = ("ledger-writer", "blocking_0", "graph-files_0")


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[Writers]:
    with Writers(tmp_path, "tests.faults.snapshots_writer", prepare, THREADS) as running:
        yield running


async def ids(opened: OpenCollection) -> list[str]:
    """Of all records, each with the vector and the metadata that belong to it."""
    found = [one for page in [page async for page in opened.stored(1000)] for one in page]
    assert opened.count == len(found)
    for record, kept in found[::20]:
        expected = vector(record.id)
        np.testing.assert_allclose(kept, expected / np.linalg.norm(expected), atol=1e-6)
        assert record.metadata["me"] == record.id
    return [record.id for record, _ in found]


def counted(connection: Connection) -> tuple[Any, ...]:
    row: tuple[Any, ...] = connection.execute(
        "SELECT (SELECT count(*) FROM collections), (SELECT count(*) FROM records),"
        " (SELECT sum(collections) FROM search_usage), (SELECT sum(records) FROM search_usage)"
    ).get
    return row


async def check(state: Path, heard: Heard) -> None:
    """A start finds the records of before or of the snapshot, and every snapshot whole or not at all."""
    async with shelf(state) as things:
        await things.collections._erasing.settle()
        named = {one.name: one for one in await things.collections.list()}
        found = await ids(await things.collections.open(None, named["things"].id))
        assert found in (OLD, NEW)
        assert found == OLD or ("restore", "old") not in heard.done
        assert found == NEW or ("restore", "old") in heard.begun
        assert set(named) <= {"things", "copy"}
        assert "copy" in named or ("into", "copy") not in heard.done
        assert "copy" not in named or ("into", "copy") in heard.begun
        if "copy" in named:
            assert await ids(await things.collections.open(None, named["copy"].id)) == OLD
        # Nothing is left of what was filled or replaced.
        records = sum(one.count for one in named.values())
        assert await things.ledger.read(counted) == (len(named), records, len(named), records)
        assert not list((state / "snapshots").rglob(".*"))
        await check_snapshots(things, heard)


async def check_snapshots(things: Shelf, heard: Heard) -> None:
    snapshots = things.collections.snapshots
    (collection,) = [one for one in await things.collections.list() if one.name == "things"]
    listed = await snapshots.list(None, collection.id)
    sizes = [one.records for one in listed]
    assert sizes in ([len(OLD)], [len(OLD), len(NEW)], [len(NEW), len(OLD)])
    if ("add", "new") in heard.done and ("remove", "new") not in heard.begun:
        assert len(sizes) == 2
    assert len(sizes) == 1 or ("remove", "new") not in heard.done
    for one in listed:
        await snapshots.restore(ACTOR, None, collection.id, one.id)
        expected = OLD if one.records == len(OLD) else NEW
        assert await ids(await things.collections.open(None, collection.id)) == expected


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("each", [23, pytest.param(1, marks=pytest.mark.full)])
async def test_all_or_nothing_is_there_after_a_kill_at_any_call(writers: Writers, each: int) -> None:
    points = await asyncio.to_thread(writers.points, CALLS)
    assert {"write", "fsync", "rename", "pwrite64", "fdatasync"} <= {point.call for point in points}
    chosen = points[each // 2 :: each]
    heard = []
    for point in chosen:
        state = writers.copy()
        one = await asyncio.to_thread(writers.killed_at, state, point)
        assert one.code == -9, point
        try:
            await check(state, one)
        except Exception as error:
            error.add_note(f"killed at {point}, after {sorted(one.done)}")
            raise
        heard.append(one)
    print(f"{len(chosen)} of {len(points)} points")
    for act in (("add", "new"), ("restore", "old"), ("into", "copy")):
        assert any(act in one.begun and act not in one.done for one in heard), act
        assert any(act in one.done for one in heard), act


async def test_the_check_finds_what_is_lost_or_half(writers: Writers) -> None:
    """The control: what was said to be done and is not, and a collection of which a part is there."""
    for done in (("restore", "old"), ("into", "copy"), ("add", "new")):
        with pytest.raises(AssertionError):
            await check(writers.copy(), Heard(set(), {done}))
    state = writers.copy()
    async with shelf(state) as things:
        (collection,) = await things.collections.list()
        await (await things.collections.open(None, collection.id)).delete(ACTOR, NEW[:1])
    with pytest.raises(AssertionError):
        await check(state, Heard())
    state = writers.copy()
    (file,) = (path for path in (state / "snapshots").rglob("*") if path.is_file())
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(AssertionError):
        await check(state, Heard())
