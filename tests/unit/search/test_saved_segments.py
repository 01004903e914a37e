"""Several graphs of one collection that survive a restart: which files stand for what, what is left out."""

import asyncio
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from appliance import config
from appliance.search import keeping
from appliance.search.collections import OpenCollection
from tests.searching import ACTOR, Shelf, Vectors, brute_force, low_rank, numbered, shelf
from tests.unit.search.test_segments import assert_each_record_is_in_one_graph_or_the_tail

DIM, COUNT, STEP = 32, 1200, 100
SETTINGS = config.Search(flat_bytes=300 * DIM * 4, tail_bytes=200 * DIM * 4, ef=200)


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return low_rank(np.random.default_rng(1), COUNT + 700, DIM)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, vectors: Vectors) -> Path:
    """A state with a collection of several graphs and a tail, a tenth of it dead."""
    state = tmp_path_factory.mktemp("kept")

    async def fill() -> None:
        async with shelf(state, SETTINGS) as things:
            opened = await things.collection(DIM)
            for low in range(0, COUNT, STEP):
                await grow(opened, vectors, low)
            assert len(opened.sealing.segments) > 2
            assert opened.sealing.tail > 0

    asyncio.run(fill())
    return state


@pytest.fixture
def state(kept: Path, tmp_path: Path) -> Path:
    """A copy of one's own."""
    shutil.copytree(kept, tmp_path / "state")
    return tmp_path / "state"


async def grow(opened: OpenCollection, vectors: Vectors, low: int) -> None:
    await opened.insert(ACTOR, numbered(vectors[low : low + STEP], low))
    await opened.delete(ACTOR, [f"r{n}" for n in range(low, low + STEP, 10)])
    await opened.settle()


def ended(things: Shelf, end: str) -> float:
    return things.count("appliance_search_graphs_total", end=end)


def files(state: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (state / "graphs").glob("*/*")}


def ranges(opened: OpenCollection) -> list[tuple[int, int]]:
    return [(one.above, one.through) for one in opened._segments._segments]


async def woken(things: Shelf) -> OpenCollection:
    """The collection, once a first search has had its graphs restored or built."""
    (found,) = await things.collections.list()
    opened = await things.collections.open(None, found.id)
    await opened.search(np.ones(DIM), 1)
    await opened.settle()
    return opened


async def files_by_range(opened: OpenCollection) -> list[tuple[int, int]]:
    saved = await opened._segments._folder.saved()
    return sorted((one.manifest.after, one.manifest.through) for one in saved)


async def assert_right(opened: OpenCollection, vectors: Vectors, count: int = COUNT) -> None:
    """Each record is found, in one graph or the tail, and nearly all of those around it."""
    assert_each_record_is_in_one_graph_or_the_tail(opened)
    living = [n for n in range(count) if n % 10]
    right = 0
    for query in living[::20]:
        hits = await opened.search(vectors[query], 10)
        true, _ = brute_force(vectors[living], vectors[query], 10)
        assert hits[0].id == f"r{query}"
        right += len({hit.id for hit in hits} & {f"r{living[place]}" for place in true})
    assert right >= 0.97 * 10 * len(living[::20])


async def test_a_restart_restores_every_graph_and_tunes_them(state: Path, vectors: Vectors) -> None:
    before = files(state)
    async with shelf(state, SETTINGS) as things:
        opened = await woken(things)
        assert (ended(things, "restored"), ended(things, "built")) == (len(before), 0)
        assert ranges(opened) == await files_by_range(opened)
        assert len(ranges(opened)) == len(before) > 2
        assert opened.sealing.tuned is not None
        await assert_right(opened, vectors)
    assert files(state) == before


async def test_the_files_are_those_of_the_graphs_however_they_are_merged(
    state: Path, vectors: Vectors
) -> None:
    async with shelf(state, SETTINGS) as things:
        opened = await woken(things)
        for low in range(COUNT, COUNT + 700, STEP):
            await grow(opened, vectors, low)
            assert await files_by_range(opened) == ranges(opened)
        assert ended(things, "built") > 2
    async with shelf(state, SETTINGS) as things:
        await assert_right(await woken(things), vectors, COUNT + 700)
        assert ended(things, "built") == 0


async def test_what_a_crash_left_within_the_range_of_a_merged_graph_is_removed(
    state: Path, vectors: Vectors
) -> None:
    parts = files(state)
    async with shelf(state, SETTINGS) as things:
        await (await woken(things)).seal()
    ((whole, _),) = files(state).items()
    for path, content in parts.items():
        path.write_bytes(content)
    async with shelf(state, SETTINGS) as things:
        opened = await woken(things)
        assert list(files(state)) == [whole]
        assert (ended(things, "restored"), ended(things, "refused"), ended(things, "built")) == (1, 0, 0)
        await assert_right(opened, vectors)


async def test_of_two_files_of_the_same_range_the_younger_is_used(state: Path, vectors: Vectors) -> None:
    async with shelf(state, SETTINGS) as things:
        opened = await woken(things)
        await opened.seal()
        old = files(state)
        gone = range(1, 500, 2)  # enough of it that the graph is built anew, and not the youngest
        await opened.delete(ACTOR, [f"r{n}" for n in gone])
        await opened.settle()
        size = opened._segments._segments[0].sealed.size
        assert len(ranges(opened)) == 1
    for path, content in old.items():
        path.write_bytes(content)
    async with shelf(state, SETTINGS) as things:
        opened = await woken(things)
        assert [one.sealed.size for one in opened._segments._segments] == [size]
        assert ended(things, "built") == 0
        assert len(files(state)) == 1


@pytest.mark.parametrize("place", [0, 1, -1])
async def test_without_one_of_them_those_before_are_used_and_the_rest_is_built(
    state: Path, vectors: Vectors, place: int
) -> None:
    async with shelf(state, SETTINGS) as things:
        opened = await woken(things)
        sealed = sorted(await opened._segments._folder.saved(), key=keeping._place)
        lost, count = sealed[place], len(sealed)
        (folder,) = (state / "graphs").iterdir()
    path = folder / lost.id.hex
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    async with shelf(state, SETTINGS) as things:
        opened = await woken(things)
        assert ended(things, "restored") == place % count
        assert (ended(things, "refused"), ended(things, "built")) == (1, 1)
        assert await files_by_range(opened) == ranges(opened)
        await assert_right(opened, vectors)
    async with shelf(state, SETTINGS) as things:
        await assert_right(await woken(things), vectors)
        assert (ended(things, "refused"), ended(things, "built")) == (0, 0)


async def test_a_range_of_which_all_died_is_no_gap(state: Path, vectors: Vectors) -> None:
    async with shelf(state, SETTINGS) as things:
        opened = await woken(things)
        above, through = ranges(opened)[1]
        count = len(ranges(opened))
    async with shelf(state, SETTINGS.model_copy(update={"flat_bytes": 1 << 40})) as things:
        opened = await woken(things)  # no upkeep comes in between
        await opened.delete(ACTOR, [f"r{n}" for n in range(above + 1, through + 1)])
    async with shelf(state, SETTINGS) as things:
        opened = await woken(things)
        assert (ended(things, "restored"), ended(things, "refused")) == (count - 1, 1)
        assert_each_record_is_in_one_graph_or_the_tail(opened)
        assert opened.graphed == opened.count - opened.sealing.tail


async def test_a_graph_of_which_all_died_loses_its_file(state: Path) -> None:
    async with shelf(state, SETTINGS) as things:
        opened = await woken(things)
        above, through = ranges(opened)[1]
        await opened.delete(ACTOR, [f"r{n}" for n in range(above + 1, through + 1)])
        await opened.settle()
        assert (above, through) not in ranges(opened)
        assert await files_by_range(opened) == ranges(opened)
        assert_each_record_is_in_one_graph_or_the_tail(opened)


async def test_a_process_that_died_gets_all_its_graphs_back(state: Path, vectors: Vectors) -> None:
    async with shelf(state, SETTINGS) as things:
        opened = await woken(things)
        before = ranges(opened)
        pid = things.collections.graph_process
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while ended(things, "restored") < 2 * len(before):
                await opened.search(vectors[0], 1)
                await asyncio.sleep(0.02)
        await opened.settle()
        assert ranges(opened) == before
        assert ended(things, "built") == 0
        await assert_right(opened, vectors)


async def test_what_gives_way_to_others_keeps_its_files_and_is_restored(
    state: Path, vectors: Vectors
) -> None:
    async with shelf(state, SETTINGS.model_copy(update={"memory_bytes": 0})) as things:
        opened = await woken(things)
        before, count = files(state), len(ranges(opened))
        assert ended(things, "restored") == count
        assert opened._segments.bytes > 2_700_000 * count
        beside = await things.collection(DIM, "beside")
        await beside.search(vectors[0], 1)
        assert not opened.place.loaded
        assert files(state) == before
        hits = await opened.search(vectors[1], 1)
        assert [hit.id for hit in hits] == ["r1"]
        await opened.settle()
        assert (ended(things, "restored"), ended(things, "built")) == (2 * count, 0)
        await assert_right(opened, vectors)
    assert files(state) == before
