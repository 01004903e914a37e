"""What a collection tells of its graph."""

from pathlib import Path

import numpy as np

from appliance import config
from tests.searching import ACTOR, numbered, shelf, unit

DIM = 8


async def test_how_much_the_graph_knows(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(4), 310, DIM)
    async with shelf(tmp_path, config.Search(flat_bytes=2000)) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(vectors[:20]))
        assert (opened.graphed, opened.count) == (None, 20)
        await opened.insert(ACTOR, numbered(vectors[20:300], 20))
        await opened.seal()
        assert (opened.graphed, opened.count) == (300, 300)
        await opened.insert(ACTOR, numbered(vectors[300:], 300))
        await opened.delete(ACTOR, ["r0", "r1", "r305"])
        await opened.upsert(ACTOR, numbered(vectors[2:3], 2))
        assert (opened.graphed, opened.count) == (297, 307)
