"""The graph process dies or stops answering: searches stay right, and the graph comes back by itself."""

import asyncio
import os
import signal
from pathlib import Path

import numpy as np

from appliance import config
from appliance.search import sealed
from appliance.search.collections import OpenCollection
from tests.searching import ACTOR, Shelf, Vectors, brute_force, low_rank, numbered, shelf

DIM = 32
SETTINGS = config.Search(flat_bytes=500 * DIM * 4, tail_bytes=500 * DIM * 4, ef=200)


async def assert_right(opened: OpenCollection, vectors: Vectors, query: int) -> None:
    hits = await opened.search(vectors[query], 10)
    order, _ = brute_force(vectors, vectors[query], 10)
    found = {hit.id for hit in hits} & {f"r{n}" for n in order}
    assert hits[0].id == f"r{query}"
    assert len(hits) == 10
    assert len(found) >= 9


def counted(things: Shelf, path: str) -> float:
    return things.count("appliance_search_queries_total", path=path)


async def until_rebuilt(things: Shelf, opened: OpenCollection, vectors: Vectors) -> None:
    """Search until a graph answers again; every answer on the way is right."""
    before = counted(things, "graph")
    async with asyncio.timeout(30):
        while counted(things, "graph") == before:
            await assert_right(opened, vectors, 3)
            await asyncio.sleep(0.02)


async def test_kill_9_of_the_graph_process_during_queries(tmp_path: Path) -> None:
    vectors = low_rank(np.random.default_rng(1), 2000, DIM)
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(vectors))
        await opened.seal()
        for _ in range(3):
            pid = things.collections.graph_process
            assert pid is not None
            searches = [asyncio.ensure_future(assert_right(opened, vectors, n)) for n in range(60)]
            await asyncio.sleep(0)
            os.kill(pid, signal.SIGKILL)
            await asyncio.gather(*searches)
            await until_rebuilt(things, opened, vectors)
            assert things.collections.graph_process not in (None, pid)
        assert counted(things, "exact") > 0


async def test_kill_9_of_the_graph_process_while_it_builds(tmp_path: Path) -> None:
    vectors = low_rank(np.random.default_rng(2), 6000, DIM)
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(vectors[:1000]))
        await opened.seal()
        await opened.insert(ACTOR, numbered(vectors[1000:], 1000))
        building = asyncio.ensure_future(opened.settle())
        while not opened._segments._graphs._building.locked():  # noqa: ASYNC110 -- it gives no event
            await asyncio.sleep(0)
        pid = things.collections.graph_process
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await building
        assert things.count("appliance_search_graphs_total", end="failed") == 1
        await until_rebuilt(things, opened, vectors)
        assert opened.count == 6000


async def test_a_graph_process_that_hangs_is_replaced(tmp_path: Path) -> None:
    vectors = low_rank(np.random.default_rng(3), 2000, DIM)
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(vectors))
        await opened.seal()
        pid = things.collections.graph_process
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(sealed._QUERY_SECONDS + 5):
            await assert_right(opened, vectors, 5)
        await until_rebuilt(things, opened, vectors)
        assert things.collections.graph_process != pid
