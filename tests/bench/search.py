"""Visual search against hnswlib driven directly: CPU of a query and of a durable insert, and recall.

One run, the same 20,000 x 512 vectors, low-rank like embeddings. CPU is that of all our processes: this one,
which plays the daemon, and the graph process. Wall rates are printed beside and not judged.
"""

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import hnswlib
import numpy as np
import psutil

from appliance import config
from appliance.search import filters
from appliance.search.collections import Hit, OpenCollection
from tests.bench.report import Report
from tests.searching import ACTOR, Shelf, Vectors, brute_force, low_rank, numbered, shelf

COUNT, DIM, QUERIES, K = 20_000, 512, 1_000, 10
INSERTED, BATCH, FILTERED = 2_000, 10, 200
SETTINGS = config.Search()
FOLDER = (
    Path(__file__).parents[2] / ".cache" / "bench-search"
)  # on the disk that the tree is on, not on a tmpfs


@dataclass
class Spent:
    """What a piece of work took, a unit of it, in seconds."""

    cpu: float
    wall: float


@dataclass
class Direct:
    """The same work by hnswlib alone, in one thread."""

    query: Spent
    add: Spent


@dataclass
class Data:
    """`true` are the k nearest of the first queries."""

    vectors: Vectors
    queries: Vectors
    true: list[list[int]]

    def recall(self, found: list[list[int]]) -> float:
        hits = sum(len(set(one) & set(other)) for one, other in zip(found, self.true, strict=False))
        return hits / (K * len(self.true))


def run(report: Report) -> None:
    rng = np.random.default_rng(1)
    everything = low_rank(rng, COUNT + QUERIES, DIM)
    vectors, queries = everything[:COUNT], everything[COUNT:]
    data = Data(vectors, queries, [brute_force(vectors, query, K)[0] for query in queries[:200]])
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    try:
        direct = hnswlib_itself(report, data)
        asyncio.run(ours(report, data, direct))
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)


def hnswlib_itself(report: Report, data: Data) -> Direct:
    index = hnswlib.Index(space="ip", dim=DIM)
    index.init_index(COUNT, M=SETTINGS.m, ef_construction=SETTINGS.ef_construction)
    add = timed(lambda: index.add_items(data.vectors, num_threads=1), COUNT)
    index.set_ef(SETTINGS.ef)
    found: list[list[int]] = []

    def search() -> None:
        found.extend(index.knn_query(query, K, num_threads=1)[0][0].tolist() for query in data.queries)

    query = timed(search, QUERIES)
    report.figure("hnswlib: recall@10", data.recall(found), "", note=f"ef {SETTINGS.ef}")
    report.figure("hnswlib: query", 1000 * query.cpu, "ms CPU", note=f"{1 / query.wall:.0f}/s wall")
    report.figure("hnswlib: add", 1000 * add.cpu, "ms CPU", note=f"{1 / add.wall:.0f}/s wall, not durable")
    return Direct(query, add)


async def ours(report: Report, data: Data, direct: Direct) -> None:
    async with shelf(FOLDER, config.Search(flat_bytes=1 << 40)) as things:
        opened = await things.collection(DIM)
        await inserts(report, things, opened, data.vectors[:INSERTED], direct)
        for low in range(INSERTED, COUNT, 500):
            await opened.insert(ACTOR, numbered(data.vectors[low : low + 500], low))
        identifier = opened.collection.id
    async with shelf(FOLDER, SETTINGS) as things:
        started = time.process_time()
        opened = await things.collections.open(None, identifier)
        first = await opened.search(data.queries[0], K)
        spent = time.process_time() - started
        report.figure("first exact answer after a start", spent, "s CPU", note=f"{COUNT} records")
        assert [hit.id for hit in first] == [f"r{n}" for n in data.true[0]]
        await opened.settle()
        sealing = await measured(things, opened.seal, COUNT)
        note = f"a record, {1 / sealing.wall:.0f}/s wall"
        report.figure("building the graph", 1000 * sealing.cpu, "ms CPU", note=note)
        await answers(report, things, opened, data, direct)
        await filtered_answers(report, things, opened, data)


async def inserts(
    report: Report, things: Shelf, opened: OpenCollection, vectors: Vectors, direct: Direct
) -> None:
    records = [numbered(vectors[low : low + BATCH], low) for low in range(0, len(vectors), BATCH)]

    async def insert() -> None:
        for batch in records:
            await opened.insert(ACTOR, batch)

    spent = await measured(things, insert, len(vectors))
    note = f"a record, {1 / spent.wall:.0f}/s wall, graph not included"
    report.figure("durable insert, batches of 10", 1000 * spent.cpu, "ms CPU", note=note)
    report.figure("  inserts per CPU second, against hnswlib's add", direct.add.cpu / spent.cpu, "x")


async def answers(report: Report, things: Shelf, opened: OpenCollection, data: Data, direct: Direct) -> None:
    found: list[list[Hit]] = []

    async def full() -> None:
        found.extend([await opened.search(query, K) for query in data.queries])

    async def bare() -> None:
        for query in data.queries:
            await opened.search(query, K, metadata=False)

    async def eight_at_once() -> None:
        for low in range(0, QUERIES, 8):
            batch = data.queries[low : low + 8]
            await asyncio.gather(*(opened.search(query, K, metadata=False) for query in batch))

    await bare()
    for name, act in (
        ("query with metadata", full),
        ("query, ids only", bare),
        ("query, ids only, 8 at once", eight_at_once),
    ):
        spent = await measured(things, act, QUERIES)
        report.figure(name, 1000 * spent.cpu, "ms CPU", note=f"{1 / spent.wall:.0f}/s wall")
        report.figure("  queries per CPU second, against hnswlib", direct.query.cpu / spent.cpu, "x")
    assert things.count("appliance_search_queries_total", path="graph") == 4 * QUERIES
    labels = [[int(hit.id[1:]) for hit in hits] for hits in found]
    report.figure("recall@10", data.recall(labels), "", at_least=0.95, note=f"ef {SETTINGS.ef}")


async def filtered_answers(report: Report, things: Shelf, opened: OpenCollection, data: Data) -> None:
    """Filters that pass records from everywhere, and one whose records lie together; each many times."""
    queries = data.queries[:FILTERED]
    together, _ = brute_force(data.vectors, data.queries[-1], COUNT // 20)
    await opened.update(ACTOR, [(f"r{n}", {"together": True}) for n in together])
    whole = await measured(things, searching(opened, queries, None, []), FILTERED)
    cases: list[tuple[str, object, list[int]]] = [
        (f"keeps {100 * share:g} %", {"n": {"$lt": share * COUNT}}, list(range(int(share * COUNT))))
        for share in (0.5, 0.1, 0.01, 0.001)
    ]
    for name, document, kept in [
        *cases,
        ("keeps 5 % that lie together", {"together": True}, sorted(together)),
    ]:
        wanted = filters.compile(document)
        await opened.search(queries[0], K, wanted)
        ways = {way: taken(things, way) for way in ("graph", "exact", "both")}
        found: list[list[Hit]] = []
        spent = await measured(things, searching(opened, queries, wanted, found), FILTERED)
        note = ", ".join(f"{way} {taken(things, way) - before:.0f}" for way, before in ways.items())
        report.figure(f"query, filter {name}", 1000 * spent.cpu, "ms CPU", note=note)
        bound = None if document == {"together": True} else 0.6
        report.figure("  queries per CPU second, against none", whole.cpu / spent.cpu, "x", at_least=bound)
        true = [{kept[n] for n in brute_force(data.vectors[kept], query, K)[0]} for query in queries]
        hits = sum(
            len(one & {int(hit.id[1:]) for hit in other}) for one, other in zip(true, found, strict=True)
        )
        report.figure("  recall@10", hits / (K * FILTERED), "", at_least=0.99)

    changing = [filters.compile({"n": {"$lt": COUNT // 2 + n}}) for n in range(FILTERED)]

    async def change() -> None:
        for query, wanted in zip(queries, changing, strict=True):
            await opened.search(query, K, wanted, metadata=False)

    spent = await measured(things, change, FILTERED)
    report.figure("query, a new filter each time, keeps 50 %", 1000 * spent.cpu, "ms CPU")
    report.figure("  queries per CPU second, against none", whole.cpu / spent.cpu, "x")


def searching(
    opened: OpenCollection, queries: Vectors, wanted: filters.Filter | None, found: list[list[Hit]]
) -> Callable[[], Awaitable[None]]:
    async def search() -> None:
        found.extend([await opened.search(query, K, wanted, metadata=False) for query in queries])

    return search


def taken(things: Shelf, way: str) -> float:
    """Filtered searches that were answered so."""
    return things.count("appliance_search_queries_total", path=f"filtered_{way}")


def timed(act: Callable[[], object], units: int) -> Spent:
    cpu, wall = time.process_time(), time.perf_counter()
    act()
    return Spent((time.process_time() - cpu) / units, (time.perf_counter() - wall) / units)


async def measured(things: Shelf, act: Callable[[], Awaitable[None]], units: int) -> Spent:
    cpu, wall = cpu_seconds(things), time.perf_counter()
    await act()
    return Spent((cpu_seconds(things) - cpu) / units, (time.perf_counter() - wall) / units)


def cpu_seconds(things: Shelf) -> float:
    """CPU of this process and of the graph process."""
    spent = time.process_time()
    if (pid := things.collections.graph_process) is not None:
        times = psutil.Process(pid).cpu_times()
        spent += times.user + times.system
    return spent
