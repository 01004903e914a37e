"""A merge that takes long: what comes meanwhile gets graphs of its own, and nothing is lost in between."""

import asyncio
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from appliance import config
from appliance.search import tiers
from appliance.search.collections import OpenCollection
from appliance.search.sealed import Sealed, SealedGraphs
from appliance.search.vectors import View
from tests.searching import ACTOR, Shelf, Vectors, low_rank, numbered, shelf
from tests.unit.search.test_segments import (
    assert_each_record_is_in_one_graph_or_the_tail,
    recall,
    through_graph,
)

DIM, PORTION, WHOLE = 32, 200, 2800
SETTINGS = config.Search(flat_bytes=300 * DIM * 4, tail_bytes=PORTION * DIM * 4, ef=100)


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return low_rank(np.random.default_rng(1), WHOLE + 20 * PORTION, DIM)


class Merges:
    """Long ones are as good as done and wait for `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = asyncio.Event()
        build = SealedGraphs.build

        async def held(graphs: SealedGraphs, view: View, after: int, through: int) -> Sealed:
            sealed = await build(graphs, view, after, through)
            if tiers.is_long(sealed.size, PORTION):
                await self.go.wait()
            return sealed

        monkeypatch.setattr(SealedGraphs, "build", held)


async def grown(things: Shelf, vectors: Vectors) -> OpenCollection:
    """One graph short of the portion with which all are merged."""
    opened = await things.collection(DIM, recall=0.99)
    await opened.insert(ACTOR, numbered(vectors[:WHOLE]))
    await opened.settle()
    assert opened.sealing.segments == ((WHOLE, 0),)
    return opened


async def grow(opened: OpenCollection, vectors: Vectors, portions: int) -> None:
    """By so many, one after the other; returns when nothing is built any more but long merges."""
    for _ in range(portions):
        low = opened.count
        await opened.insert(ACTOR, numbered(vectors[low : low + PORTION], low))
        await upkeep(opened)


async def upkeep(opened: OpenCollection) -> None:
    while (work := opened._segments._upkeep) is not None:
        await asyncio.wait([work])


async def test_what_comes_during_a_long_merge_is_not_left_to_scans(
    tmp_path: Path, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await grown(things, vectors)
        merges = Merges(monkeypatch)
        for portions in range(1, 12):
            await grow(opened, vectors, 1)
            under_way = len(opened._segments._merges)
            # The first portion joins the merge, the sixth after it begins one of its own.
            assert under_way == (1 if portions < 7 else 2)
            assert opened.sealing.tail < PORTION
            assert len(opened.sealing.segments) <= 2 + (under_way - 1) * 3 + tiers.BESIDE
            assert_each_record_is_in_one_graph_or_the_tail(opened)
        before = through_graph(things)
        living = dict(enumerate(vectors[: opened.count]))
        assert await recall(opened, living, vectors[: opened.count : 50]) >= 0.97
        assert through_graph(things) > before
        gone = range(0, opened.count, 10)  # of what is merged, of what came since, of the tail
        await opened.insert(ACTOR, numbered(vectors[opened.count : opened.count + 10], opened.count))
        living = {n: vectors[n] for n in range(opened.count) if n % 10}
        await opened.delete(ACTOR, [f"r{n}" for n in [*gone, opened.count - 10]])
        for n in gone[::20]:
            assert f"r{n}" not in {hit.id for hit in await opened.search(vectors[n], 20)}
        merges.go.set()
        await opened.settle()
        assert len(opened.sealing.segments) <= tiers.MOST
        assert_each_record_is_in_one_graph_or_the_tail(opened)
        assert opened.count == len(living)
        assert await recall(opened, living, vectors[1 :: 10 * 9]) >= 0.97


async def test_a_process_that_dies_in_a_long_merge_takes_what_was_built_beside_it(
    tmp_path: Path, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph over the youngest alone would answer for all others."""
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await grown(things, vectors)
        merges = Merges(monkeypatch)
        await grow(opened, vectors, 4)
        assert len(opened._segments._merges) == 1
        living = dict(enumerate(vectors[: opened.count]))
        pid = things.collections.graph_process
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert await recall(opened, living, vectors[: opened.count : 50]) >= 0.97
        merges.go.set()
        before = through_graph(things)
        async with asyncio.timeout(30):
            while through_graph(things) == before:
                assert (await opened.search(vectors[7], 1))[0].id == "r7"
                await asyncio.sleep(0.02)
        await opened.settle()
        assert things.count("appliance_search_graphs_total", end="restored") > 1
        assert_each_record_is_in_one_graph_or_the_tail(opened)
        assert await recall(opened, living, vectors[: opened.count : 50]) >= 0.97


async def test_a_kill_in_a_long_merge_leaves_every_graph_but_that_one(
    tmp_path: Path, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, killed = tmp_path / "state", tmp_path / "killed"
    state.mkdir()
    async with shelf(state, SETTINGS) as things:
        opened = await grown(things, vectors)
        merges = Merges(monkeypatch)
        await grow(opened, vectors, 4)
        count, sizes = opened.count, [size for size, _ in opened.sealing.segments]
        assert len(sizes) > 2
        shutil.copytree(state, killed, ignore=shutil.ignore_patterns("*-shm"))
    monkeypatch.undo()
    del merges
    for left in (state, killed):  # by a stop, and by a kill
        async with shelf(left, SETTINGS) as things:
            (found,) = await things.collections.list()
            opened = await things.collections.open(None, found.id)
            assert opened.count == count
            assert (await opened.search(vectors[count - 1], 1))[0].id == f"r{count - 1}"
            await opened.settle()
            assert things.count("appliance_search_graphs_total", end="restored") == len(sizes)
            assert things.count("appliance_search_graphs_total", end="built") == 1, "the merge that is due"
            assert len(opened.sealing.segments) <= tiers.MOST
            assert_each_record_is_in_one_graph_or_the_tail(opened)
            living = dict(enumerate(vectors[:count]))
            assert await recall(opened, living, vectors[:count:50]) >= 0.97
