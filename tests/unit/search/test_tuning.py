"""Tuning on its own, and of the graphs of a collection."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from appliance import config
from appliance.errors import InvalidInput
from appliance.search import tuning
from appliance.search.collections import OpenCollection
from appliance.search.exact import Found
from tests.searching import ACTOR, Vectors, brute_force, low_rank, numbered, shelf, unit

DIM = 32
COUNT = 3000
SETTINGS = config.Search(flat_bytes=500 * DIM * 4, ef=1)


def answers(share: float, count: int) -> list[Found | None]:
    """Of ten that lie at 0.0, 0.1, ... the first `share`, and others far away."""
    near = round(share * tuning.K)
    distances = np.array([*(n / 10 for n in range(near)), *[1.5] * (tuning.K - near)])
    return [(np.arange(tuning.K), distances)] * count


@pytest.mark.parametrize(("target", "ef"), [(0.8, 20), (0.85, 32), (0.95, 64), (0.999, 96)])
async def test_the_smallest_that_reaches_the_target(target: float, ef: int) -> None:
    found = {10: 0.5, 16: 0.7, 20: 0.8, 32: 0.9, 64: 1.0}
    if target == 0.999:
        found = {10: 0.5, 96: 1.0}
    asked: list[int] = []

    async def search(queries: Vectors, k: int, ef: int) -> Sequence[Found | None]:
        assert k == tuning.K
        asked.append(ef)
        return answers(found[max(step for step in found if step <= ef)], len(queries))

    queries = unit(np.random.default_rng(1), 40, DIM)
    true = [(np.arange(tuning.K), np.arange(tuning.K) / 10)] * len(queries)
    tuned = await tuning.tuned(queries, true, target, search)
    assert tuned.ef == ef == max(asked)
    assert tuned.recall >= target


async def test_where_nothing_reaches_it_the_most_is_looked_at_and_what_was_measured_is_told() -> None:
    async def search(queries: Vectors, k: int, ef: int) -> Sequence[Found | None]:
        return answers(0.6, len(queries))

    true = [(np.arange(tuning.K), np.arange(tuning.K) / 10)] * 20
    tuned = await tuning.tuned(unit(np.random.default_rng(1), 20, DIM), true, 0.95, search)
    assert tuned.ef == tuning.STEPS[-1]
    assert tuned.recall == pytest.approx(0.6)


async def measured(opened: OpenCollection, vectors: Vectors, queries: Vectors) -> float:
    found = 0
    for query in queries:
        true, _ = brute_force(vectors, query, tuning.K)
        hits = await opened.search(query, tuning.K, metadata=False)
        found += len({hit.id for hit in hits} & {f"r{n}" for n in true})
    return found / (tuning.K * len(queries))


async def test_new_queries_have_the_recall_that_was_chosen_and_another_one_when_it_is_changed(
    tmp_path: Path,
) -> None:
    everything = low_rank(np.random.default_rng(2), COUNT + 200, DIM)
    vectors, queries = everything[:COUNT], everything[COUNT:]
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await things.collection(DIM, recall=0.8)
        await opened.insert(ACTOR, numbered(vectors))
        await opened.seal()
        low = opened.sealing.tuned
        assert low is not None
        assert low.recall >= 0.8
        assert await measured(opened, vectors, queries) >= 0.78
        identifier = opened.collection.id
        changed = await things.collections.aim(ACTOR, things.customer, identifier, 0.99)
        assert (changed.recall, opened.collection.recall) == (0.99, 0.99)
        await opened.settle()
        high = opened.sealing.tuned
        assert high is not None
        assert high.ef > low.ef
        assert high.recall >= 0.99
        assert await measured(opened, vectors, queries) >= 0.985
    async with shelf(tmp_path, SETTINGS) as things:
        assert (await things.collections.get(None, identifier)).recall == 0.99
        emptied = await things.collections.empty(ACTOR, None, identifier)
        assert (emptied.recall, emptied.count) == (0.99, 0)


@pytest.mark.parametrize("recall", [0.79, 1.0, -1.0, float("nan")])
async def test_a_recall_that_cannot_be_is_refused(tmp_path: Path, recall: float) -> None:
    async with shelf(tmp_path) as things:
        with pytest.raises(InvalidInput, match=r"recall: .* 0.8 to 0.999"):
            await things.collection(DIM, recall=recall)
        opened = await things.collection(DIM)
        with pytest.raises(InvalidInput, match="recall"):
            await things.collections.aim(ACTOR, None, opened.collection.id, recall)
        assert opened.collection.recall == 0.95
