"""Collections above `flat_bytes`: a real graph process, and answers that stay right around it."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest

from appliance import config
from appliance.metrics import Registry
from appliance.search import filters, planner, scans, segments
from appliance.search.collections import NewRecord, OpenCollection
from appliance.search.exact import Found
from appliance.search.scans import Scans
from appliance.search.sealed import Ask, Proposed
from appliance.search.vectors import QUERIES_TOGETHER, Mask, View
from tests.searching import ACTOR, Shelf, Vectors, brute_force, low_rank, numbered, shelf

DIM = 32
COUNT = 3000
SETTINGS = config.Search(flat_bytes=1000 * DIM * 4, tail_bytes=800 * DIM * 4)


async def filled(things: Shelf, vectors: Vectors) -> OpenCollection:
    """Sealed whole, with a recall of 0.99."""
    opened = await things.collection(DIM, recall=0.99)
    await opened.insert(ACTOR, numbered(vectors))
    await opened.seal()
    return opened


async def recall(
    opened: OpenCollection, living: dict[int, np.ndarray], queries: Vectors, k: int = 10
) -> float:
    """The share of the true k nearest that are found; every answer has k living records, measured exactly."""
    labels = sorted(living)
    rows = np.stack([living[label] for label in labels])
    found = 0
    for query in queries:
        hits = await opened.search(query, k)
        true, _ = brute_force(rows, query, k)
        assert len(hits) == k
        for hit in hits:
            cosine = float(living[int(hit.id[1:])].astype(np.float64) @ query.astype(np.float64))
            assert hit.distance == pytest.approx(1 - cosine, abs=2e-7)
        assert [hit.distance for hit in hits] == sorted(hit.distance for hit in hits)
        found += len({hit.id for hit in hits} & {f"r{labels[position]}" for position in true})
    return found / (k * len(queries))


def through_graph(things: Shelf) -> float:
    return things.count("appliance_search_queries_total", path="graph")


def filtered(things: Shelf, way: str) -> float:
    return things.count("appliance_search_queries_total", path=f"filtered_{way}")


@pytest.fixture
def graph_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a collection so large that every scan costs more than its graph."""
    monkeypatch.setattr(planner, "_BYTE", 1.0)


async def test_a_small_collection_needs_no_graph_process(tmp_path: Path) -> None:
    vectors = low_rank(np.random.default_rng(1), 900, DIM)
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await filled(things, vectors)
        assert await recall(opened, dict(enumerate(vectors)), vectors[:20]) == 1.0
        assert things.collections.graph_process is None


async def test_a_large_one_is_answered_by_its_graph_beside_an_exact_tail(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    vectors = low_rank(rng, COUNT + 300, DIM)
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await filled(things, vectors[:COUNT])
        living = dict(enumerate(vectors[:COUNT]))
        assert await recall(opened, living, vectors[:100]) >= 0.97
        assert through_graph(things) == 100
        await opened.insert(ACTOR, numbered(vectors[COUNT:], COUNT))
        living |= dict(enumerate(vectors[COUNT:], COUNT))
        hits = [await opened.search(vector, 1) for vector in vectors[COUNT:]]
        assert [hit.id for (hit,) in hits] == [f"r{n}" for n in range(COUNT, COUNT + 300)]
        assert await recall(opened, living, vectors[-100:]) >= 0.97
        assert through_graph(things) == 500


async def test_deleted_records_are_never_answered_and_leave_no_gap(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    vectors = low_rank(rng, COUNT, DIM)
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await filled(things, vectors)
        living = dict(enumerate(vectors))
        # All neighbours of one place, so that the graph proposes little but dead records there.
        nearest, _ = brute_force(vectors, vectors[0], 500)
        await opened.delete(ACTOR, [f"r{n}" for n in nearest])
        for n in nearest:
            del living[n]
        await opened.settle()
        assert await recall(opened, living, vectors[nearest[:50]]) >= 0.97


async def test_a_graph_that_proposes_only_dead_records_is_not_made_up_for_by_the_tail(tmp_path: Path) -> None:
    rng = np.random.default_rng(10)
    vectors = low_rank(rng, COUNT, DIM)
    nearest, _ = brute_force(vectors, vectors[0], COUNT)
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await filled(things, vectors)
        await opened.delete(ACTOR, [f"r{n}" for n in nearest[:300]])
        await opened.insert(ACTOR, [NewRecord(f"far{n}", -vectors[0]) for n in range(100)])
        hits = await opened.search(vectors[0], 10)
        assert [hit.id for hit in hits] == [f"r{n}" for n in nearest[300:310]]


async def test_whatever_the_graph_process_says_answers_hold_each_record_once_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(11)
    vectors = low_rank(rng, COUNT + 100, DIM)
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await filled(things, vectors[:COUNT])
        await opened.insert(ACTOR, numbered(vectors[COUNT:], COUNT))

        async def lies(asks: list[Ask], queries: Vectors) -> Proposed:
            (ask,) = asks
            labels = rng.integers(-5, COUNT + 200, (len(queries), ask.k))
            labels[:, 1] = labels[:, 0]
            labels[:, 2] = COUNT + 50  # the tail's
            labels[:, 3] = 2**62
            return Proposed(labels, np.full((len(queries), 1), np.inf, np.float32))

        monkeypatch.setattr(opened._segments._graphs, "query", lies)
        for query in vectors[::300]:
            hits = await opened.search(query, 10)
            assert len({hit.id for hit in hits}) == 10
            for hit in hits:
                cosine = float(vectors[int(hit.id[1:])].astype(np.float64) @ query.astype(np.float64))
                assert hit.distance == pytest.approx(1 - cosine, abs=2e-7)


async def test_many_deletions_rebuild_the_graph_and_shrink_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    vectors = low_rank(rng, COUNT, DIM)
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await filled(things, vectors)
        built = things.count("appliance_search_graphs_total", end="built")
        assert len(await opened.all(filters.compile({"n": {"$in": [4, 5]}}))) == 2
        await opened.delete(ACTOR, [f"r{n}" for n in range(0, COUNT, 2)])
        await opened.settle()
        assert things.count("appliance_search_graphs_total", end="built") == built + 1
        assert opened._segments._vectors.slots == COUNT // 2
        living = {n: vectors[n] for n in range(1, COUNT, 2)}
        assert await recall(opened, living, vectors[:100]) >= 0.97
        assert [record.id for record in await opened.all(filters.compile({"n": 5}))] == ["r5"]
        await opened.delete(ACTOR, [f"r{n}" for n in range(1, COUNT - 800, 2)])
        await opened.settle()
        assert opened.graphed is None
        assert len(await opened.search(vectors[0], 1000)) == 400


async def test_a_growing_tail_is_sealed_and_graphs_are_merged_by_themselves(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    vectors = low_rank(rng, 4000, DIM)
    counts = set()
    async with shelf(tmp_path, config.Search(flat_bytes=300 * DIM * 4, tail_bytes=200 * DIM * 4)) as things:
        opened = await things.collection(DIM, recall=0.99)
        for low in range(0, 4000, 100):
            await opened.insert(ACTOR, numbered(vectors[low : low + 100], low))
            await opened.delete(ACTOR, [f"r{n}" for n in range(low, low + 100, 10)])
            await opened.settle()
            assert_each_record_is_in_one_graph_or_the_tail(opened)
            counts.add(len(opened.sealing.segments))
            assert opened.sealing.tail < 200 or not opened.sealing.segments
        assert counts == {0, 1, 2, 3, 4}
        living = {n: vectors[n] for n in range(4000) if n % 10}
        assert await recall(opened, living, vectors[:100]) >= 0.97
        await opened.delete(ACTOR, [f"r{n}" for n in range(3000, 4000)])
        await opened.settle()
        assert_each_record_is_in_one_graph_or_the_tail(opened)
        living = {n: vectors[n] for n in range(3000) if n % 10}
        assert await recall(opened, living, vectors[3000:3050]) >= 0.97


def assert_each_record_is_in_one_graph_or_the_tail(opened: OpenCollection) -> None:
    held, view = opened._segments, opened._segments.view()
    end = -1
    for segment in held._segments:
        assert end <= segment.above < segment.sealed.through <= segment.through
        assert segment.dead <= 0.2 * segment.sealed.size
        between = view.alive[view.after(segment.above) : view.after(segment.through)]
        assert np.count_nonzero(between) == segment.living
        assert not view.alive[view.after(end) : view.after(segment.above)].any()
        end = segment.through
    assert np.count_nonzero(view.alive[view.after(end) :]) == opened.sealing.tail
    assert sum(segment.living for segment in held._segments) + opened.sealing.tail == opened.count


async def test_ten_rounds_of_deletions_and_insertions_cost_no_recall(tmp_path: Path) -> None:
    rng = np.random.default_rng(15)
    vectors = low_rank(rng, 5000, DIM)
    queries, settings = vectors[-200:], SETTINGS.model_copy(update={"ef": 48, "tail_bytes": 400 * DIM * 4})
    living = dict(enumerate(vectors[:1200]))
    async with shelf(tmp_path, settings) as things:
        opened = await filled(things, vectors[:1200])
        for low in range(1200, 4800, 360):
            gone = rng.choice(sorted(living), 360, replace=False).tolist()
            await opened.delete(ACTOR, [f"r{n}" for n in gone])
            await opened.insert(ACTOR, numbered(vectors[low : low + 360], low))
            living |= dict(enumerate(vectors[low : low + 360], low))
            for n in gone:
                del living[n]
            await opened.settle()
        aged = await recall(opened, living, queries)
        await opened.seal()
        assert len(opened.sealing.segments) == 1
        assert aged >= await recall(opened, living, queries) - 0.005


async def test_many_queries_in_one_call_are_answered_as_each_alone(tmp_path: Path, graph_first: None) -> None:
    vectors = low_rank(np.random.default_rng(16), COUNT + 300, DIM)
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await filled(things, vectors[:2000])
        for low, high in ((2000, COUNT), (COUNT, COUNT + 300)):
            await opened.insert(ACTOR, numbered(vectors[low:high], low))
            await opened.settle()
        await opened.delete(ACTOR, [f"r{n}" for n in range(0, COUNT, 20)])
        assert len(opened.sealing.segments) >= 2
        assert opened.sealing.tail > 0
        queries = list(vectors[::100])
        assert len(queries) > 2 * QUERIES_TOGETHER
        half = filters.compile({"n": {"$gte": 0, "$lt": COUNT, "$not": {"$in": list(range(500))}}})
        for wanted in (None, half, filters.compile({"n": {"$in": list(range(0, 900, 3))}})):
            for exactly in (False, True):
                many = await opened.search_many(queries, 7, wanted, exactly=exactly)
                assert many == [await opened.search(query, 7, wanted, exactly=exactly) for query in queries]
        ids = [[hit.id for hit in hits] for hits in await opened.search_many(queries, 7, metadata=False)]
        assert ids == [[hit.id for hit in hits] for hits in await opened.search_many(queries, 7)]
        assert await opened.search_many([], 7) == []


async def test_an_exact_search_asks_no_graph(tmp_path: Path, graph_first: None) -> None:
    vectors = low_rank(np.random.default_rng(17), COUNT, DIM)
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await filled(things, vectors)
        exact = things.count("appliance_search_queries_total", path="exact")
        for query in vectors[:30]:
            expected, _ = brute_force(vectors, query, 10)
            assert [hit.id for hit in await opened.search(query, 10, exactly=True)] == [
                f"r{n}" for n in expected
            ]
        assert things.count("appliance_search_queries_total", path="exact") == exact + 30
        odd = filters.compile({"n": {"$not": {"$in": list(range(0, COUNT, 2))}}})
        expected, _ = brute_force(vectors[1::2], vectors[0], 10)
        hits = await opened.search(vectors[0], 10, odd, exactly=True)
        assert [hit.id for hit in hits] == [f"r{2 * n + 1}" for n in expected]
        assert through_graph(things) == filtered(things, "graph") == 0


async def test_a_k_beyond_the_graphs_reach_is_answered_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    vectors = low_rank(rng, COUNT, DIM)
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await filled(things, vectors)
        for k in (1001, 2999, 3000, 10_000):
            hits = await opened.search(vectors[7], k, metadata=False)
            expected, _ = brute_force(vectors, vectors[7], k)
            assert len(hits) == min(k, COUNT)
            assert {hit.id for hit in hits} == {f"r{n}" for n in expected}
        assert through_graph(things) == 0


async def test_a_filter_that_few_records_pass_is_exact_whatever_the_graph(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    vectors = low_rank(rng, COUNT, DIM)
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await filled(things, vectors)
        for choice in ([5], list(range(0, COUNT, 100)), list(range(0, COUNT, 2))):
            wanted = filters.compile({"n": {"$in": choice}})
            order, _ = brute_force(vectors[choice], vectors[1], 10)
            hits = await opened.search(vectors[1], 10, wanted)
            assert [hit.id for hit in hits] == [f"r{choice[position]}" for position in order]
        assert filtered(things, "exact") == 3


async def test_a_filter_that_many_pass_is_answered_by_the_graph_beside_the_tail(
    tmp_path: Path, graph_first: None
) -> None:
    vectors = low_rank(np.random.default_rng(12), COUNT + 300, DIM)
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await filled(things, vectors[:COUNT])
        await opened.insert(ACTOR, numbered(vectors[COUNT:], COUNT))
        gone = [f"r{n}" for n in range(0, COUNT + 300, 50)]
        await opened.delete(ACTOR, gone)
        await opened.update(ACTOR, [(f"r{n}", {"n": -1}) for n in range(1, COUNT, 50)])
        chosen = [n for n in range(COUNT + 300) if n % 3 and n % 50 and (n % 50 != 1 or n > COUNT)]
        thirds = filters.compile({"$nor": [{"n": {"$in": list(range(0, COUNT + 300, 3))}}], "n": {"$gte": 0}})
        found = 0
        for query in vectors[::100]:
            hits = await opened.search(query, 10, thirds)
            true, distances = brute_force(vectors[chosen], query, 10)
            assert len({hit.id for hit in hits}) == 10
            assert {int(hit.id[1:]) for hit in hits} <= set(chosen)
            assert hits[0].distance == pytest.approx(distances[0], abs=2e-7)
            found += len({hit.id for hit in hits} & {f"r{chosen[position]}" for position in true})
        assert found >= 0.98 * 10 * len(vectors[::100])
        assert filtered(things, "graph") > 0.9 * len(vectors[::100])


async def test_a_filter_whose_records_lie_elsewhere_is_answered_exactly_after_all(
    tmp_path: Path, graph_first: None
) -> None:
    vectors = low_rank(np.random.default_rng(13), COUNT, DIM)
    order, _ = brute_force(vectors, vectors[0], COUNT)
    far = sorted(order[COUNT // 2 :])
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await filled(things, vectors)
        near = set(order[: COUNT // 2])
        await opened.update(ACTOR, [(f"r{n}", {"near": n in near}) for n in range(COUNT)])
        hits = await opened.search(vectors[0], 10, filters.compile({"near": False}))
        expected, _ = brute_force(vectors[far], vectors[0], 10)
        assert [hit.id for hit in hits] == [f"r{far[position]}" for position in expected]
        assert filtered(things, "both") == 1
        assert len(await opened.search(vectors[0], 2000, filters.compile({"near": False}))) == COUNT // 2


@pytest.mark.parametrize("meanwhile", ["delete", "compact", "lose"])
async def test_what_happens_while_the_graph_is_asked_never_shows_in_the_answer(
    tmp_path: Path, graph_first: None, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    vectors = low_rank(np.random.default_rng(14), COUNT, DIM)
    order, _ = brute_force(vectors, vectors[0], 200)
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await filled(things, vectors)
        ask = opened._segments._graphs.query
        asked = 0

        async def overtaken(asks: list[Ask], queries: Vectors) -> Proposed | None:
            nonlocal asked
            proposed = await ask(asks, queries)
            asked += 1
            if meanwhile == "lose":
                return None
            await opened.delete(ACTOR, [f"r{n}" for n in order[:100:2]])
            if meanwhile == "compact":
                await opened._segments._compact()
            return proposed

        monkeypatch.setattr(opened._segments._graphs, "query", overtaken)
        hits = await opened.search(vectors[0], 10, filters.compile({"n": {"$gte": 0}}))
        living = order if meanwhile == "lose" else order[1:100:2] + order[100:]
        assert [hit.id for hit in hits] == [f"r{n}" for n in living[:10]]
        assert asked == 1


async def test_writes_and_searches_at_once_never_miss_or_invent(tmp_path: Path, graph_first: None) -> None:
    rng = np.random.default_rng(8)
    vectors = low_rank(rng, 6000, DIM)
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await filled(things, vectors[:2000])
        searches = 0

        async def write() -> None:
            for low in range(2000, 6000, 100):
                await opened.insert(ACTOR, numbered(vectors[low : low + 100], low))
                await opened.delete(ACTOR, [f"r{n}" for n in range(low - 2000, low - 1950)])

        async def search(wanted: filters.Filter | None) -> None:
            nonlocal searches
            while not writing.done():
                hits = await opened.search(vectors[searches % 6000], 20, wanted)
                assert len(hits) == 20
                assert len({hit.id for hit in hits}) == 20
                assert wanted is None or all(wanted.matches(hit.metadata) for hit in hits)
                searches += 1

        writing = asyncio.ensure_future(write())
        most = filters.compile({"n": {"$not": {"$gte": 1_000, "$lt": 1_500}}})
        await asyncio.gather(writing, search(None), search(most))
        assert searches > 20
        await opened.settle()
        living = {n: vectors[n] for n in range(6000) if n >= 4000 or n % 100 >= 50}
        assert opened.count == len(living)
        assert await recall(opened, living, vectors[::200]) >= 0.97
        assert await opened.search(vectors[5999], 1) != []


async def test_large_scans_leave_the_loop_to_others() -> None:
    running = Scans(Registry())
    here = threading.get_ident()
    assert await running.run(1 << 20, threading.get_ident) == here
    assert await running.run(20 << 20, threading.get_ident) != here
    running.close()


async def test_a_scan_that_deletions_overtake_is_repeated_and_at_last_made_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever a scan in a thread has its answer, the nearest record is deleted before the answer is used."""
    vectors = low_rank(np.random.default_rng(9), 500, DIM)
    order, _ = brute_force(vectors, vectors[0], 60)
    loop, here, scan = asyncio.get_running_loop(), threading.get_ident(), segments._scan
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(vectors))

        def overtaken(view: View, queries: Vectors, k: int, wanted: Mask | None) -> list[Found]:
            found = scan(view, queries, k, wanted)
            if threading.get_ident() != here:
                deleted = threading.Event()
                loop.call_soon_threadsafe(opened._segments.kill, int(found[0][0][0]))
                loop.call_soon_threadsafe(deleted.set)
                assert deleted.wait(10)
            return found

        monkeypatch.setattr(scans, "_INLINE_BYTES", 0)
        monkeypatch.setattr(segments, "_scan", overtaken)
        hits = await opened.search(vectors[0], 10, metadata=False)
        gone = segments._RACES
        assert [hit.id for hit in hits] == [f"r{n}" for n in order[gone : gone + 10]]
        among = filters.compile({"n": {"$in": order[:50]}})
        hits = await opened.search(vectors[0], 10, among, metadata=False)
        assert [hit.id for hit in hits] == [f"r{n}" for n in order[2 * gone : 2 * gone + 10]]
