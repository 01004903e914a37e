"""What is searched often and hardly changes gets one graph over everything, by itself."""

from pathlib import Path

import numpy as np
import pytest

from appliance import config
from appliance.search import tiers
from appliance.search.collections import OpenCollection
from tests.searching import ACTOR, Shelf, Vectors, low_rank, numbered, shelf
from tests.unit.search.test_segments import assert_each_record_is_in_one_graph_or_the_tail, recall

DIM, PORTION = 32, 200
SETTINGS = config.Search(flat_bytes=300 * DIM * 4, tail_bytes=PORTION * DIM * 4, ef=100)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a graph is built a hundred times faster: after tens of searches, not thousands."""
    monkeypatch.setattr(tiers, "_BUILT", 5.0)


async def in_parts(things: Shelf, vectors: Vectors) -> OpenCollection:
    """Graphs over most, and a tail."""
    opened = await things.collection(DIM, recall=0.99)
    for low in range(0, len(vectors), 100):
        await opened.insert(ACTOR, numbered(vectors[low : low + 100], low))
        await opened.settle()
    assert len(opened.sealing.segments) > 1
    assert opened.sealing.tail > 0
    return opened


def built(things: Shelf) -> float:
    return things.count("appliance_search_graphs_total", end="built")


@pytest.mark.parametrize("count", [700, 1_500], ids=["at once", "by a long merge"])
async def test_searches_alone_end_in_one_graph_that_stays(tmp_path: Path, count: int) -> None:
    vectors = low_rank(np.random.default_rng(1), count + 100, DIM)
    assert tiers.is_long(count, PORTION) == (count > 1_000)
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await in_parts(things, vectors[:count])
        living = dict(enumerate(vectors[:count]))
        for low in range(0, 200, 10):
            assert await recall(opened, living, vectors[-100:][low % 100 :][:10]) >= 0.97
            await opened.settle()
            assert_each_record_is_in_one_graph_or_the_tail(opened)
        assert opened.sealing.segments == ((count, 0),)
        assert opened.sealing.tail == 0
        so_far = built(things)
        assert await recall(opened, living, vectors[-100:]) >= 0.97
        await opened.settle()
        assert built(things) == so_far


async def test_what_changes_as_it_is_searched_stays_in_parts(tmp_path: Path) -> None:
    vectors = low_rank(np.random.default_rng(2), 900, DIM)
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await in_parts(things, vectors[:700])
        before, so_far = opened.sealing.segments, built(things)
        for low in range(700, 900, 10):
            await opened.insert(ACTOR, numbered(vectors[low : low + 10], low))
            for query in vectors[:3]:
                await opened.search(query, 10)
            await opened.delete(ACTOR, [f"r{n}" for n in range(low, low + 10)])
            await opened.settle()
        assert opened.sealing.segments == before
        assert built(things) == so_far
        for query in vectors[:60]:
            await opened.search(query, 10)
        await opened.settle()
        assert opened.sealing.segments == ((700, 0),)
