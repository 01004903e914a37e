"""kill -9 at the calls that keep a graph on the disk, put another in its place, and remove it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from tests.faults.collections_writer import vector
from tests.faults.graphs_writer import ALL, SETTINGS, named, prepare
from tests.faults.store_harness import NAMES, SYNCS, WRITES, Heard, Writers
from tests.searching import shelf

CALLS = (*WRITES, *SYNCS, *NAMES)


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[Writers]:
    with Writers(tmp_path, "tests.faults.graphs_writer", prepare, ("graph-files_0",)) as running:
        yield running


async def check(state: Path, heard: Heard) -> None:
    """A start finds a whole graph or none, no half of a file, and none of what was removed."""
    async with shelf(state, SETTINGS) as things:
        await things.collections._erasing.settle()
        living = {UUID(one.id).hex: one.name for one in await things.collections.list()}
        found = [path for path in (state / "graphs").rglob("*") if path.is_file()]
        assert {path.parent.name for path in found} <= set(living)
        assert not [path for path in found if path.name.startswith(".")]
        assert ("remove", "doomed") not in heard.done or list(living.values()) == ["kept"]
        kept = await named(things, "kept")
        for external in ALL[::30]:
            assert (await kept.search(vector(external), 1))[0].id == external
        await kept.settle()
        restored = things.count("appliance_search_graphs_total", end="restored")
        assert things.count("appliance_search_graphs_total", end="refused") == 0
        assert restored == 1 or ("seal", "first") not in heard.done
        assert kept.graphed == len(ALL)
    async with shelf(state, SETTINGS) as things:
        kept = await named(things, "kept")
        assert (await kept.search(vector(ALL[7]), 1))[0].id == ALL[7]
        await kept.settle()
        assert things.count("appliance_search_graphs_total", end="restored") == 1


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("each", [6, pytest.param(1, marks=pytest.mark.full)])
async def test_a_graph_is_whole_or_not_there_after_a_kill_at_any_call(writers: Writers, each: int) -> None:
    points = await asyncio.to_thread(writers.points, CALLS)
    assert {"write", "fsync", "rename", "mkdir", "unlink"} <= {point.call for point in points}
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
    assert any(not one.done for one in heard)
    assert any(("seal", "first") in one.done for one in heard)


async def test_the_check_finds_a_graph_that_is_not_there(writers: Writers) -> None:
    """The control: what was said to be done and is not."""
    state = writers.copy()
    with pytest.raises(AssertionError):
        await check(state, Heard(set(), {("seal", "first")}))
    with pytest.raises(AssertionError):
        await check(writers.copy(), Heard(set(), {("remove", "doomed")}))
