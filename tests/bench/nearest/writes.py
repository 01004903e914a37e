"""What durable writes cost beside hnswlib's own add, and what they cost the searches beside them."""

import asyncio
import time

import numpy as np

from appliance import config
from tests.bench.nearest.direct import TARGETS, Direct
from tests.bench.nearest.embeddings import Embeddings, K, neighbours, recall
from tests.bench.nearest.filled import Filled, empty, filled, insert, search
from tests.bench.report import Report
from tests.searching import ACTOR, Vectors, numbered

BATCH = 10
FEW = 4_000
BULK = 1_000
ROUNDS, SHARE = 10, 0.3
CHECKED = 1_000  # queries: two recalls of 0.99 then differ by chance by about 0.001
RATE, SECONDS = 200, 25.0


async def inserting(report: Report, data: Embeddings, direct: Direct) -> None:
    """Without graphs, as a bulk import has none either, and with all that come of it."""
    assert direct.add is not None
    without = config.Search(flat_bytes=1 << 40)
    async with empty(without, dim=data.dim) as mine:
        for batch, name, bound, count in (
            (BATCH, "durable inserts of 10", 0.5, FEW),
            (BULK, "inserts of 1,000", 0.9, len(data.vectors) - FEW),
        ):
            start = mine.opened.count
            vectors = data.vectors[start : start + count]
            cost = await mine.measured(lambda: insert(mine.opened, vectors, start, batch), count)  # noqa: B023
            report.figure(
                f"{data.name}: {name} per CPU s / hnswlib's add",
                direct.add / cost.cpu,
                "x",
                at_least=bound,
                note=f"{1000 * cost.cpu:.3f} ms, hnswlib {1000 * direct.add:.3f} ms, no graph; "
                f"{1 / cost.wall:.0f}/s wall",
            )
    async with empty(dim=data.dim) as mine:

        async def grow() -> None:
            await insert(mine.opened, data.vectors, batch=BATCH)
            await mine.opened.settle()

        cost = await mine.measured(grow, len(data.vectors))
        built = mine.things.count("appliance_search_graphs_total", end="built")
        report.figure(
            "... durable inserts of 10, with the graphs that fall due",
            direct.add / cost.cpu,
            "x",
            note=f"{1000 * cost.cpu:.3f} ms, {built:.0f} graphs, the last over {mine.opened.graphed} records",
        )


async def replacing(report: Report, data: Embeddings, count: int, ef: int) -> None:
    """Deletes and re-inserts of other vectors under the same ids, ten rounds, against a fresh build."""
    assert len(data.vectors) >= count * (1 + ROUNDS * SHARE)
    rng, queries = np.random.default_rng(2), data.queries[:CHECKED]
    changed, following = int(SHARE * count), data.vectors[count:]
    vectors = data.vectors[:count].copy()
    worst = 1.0
    async with filled(vectors) as mine:
        await mine.opened.seal()
        for turn in range(ROUNDS):
            gone = rng.choice(count, changed, replace=False)
            fresh = following[turn * changed : (turn + 1) * changed]
            await mine.opened.delete(ACTOR, [f"r{n}" for n in gone.tolist()])
            vectors[gone] = fresh
            records = [numbered(fresh[n : n + 1], number)[0] for n, number in enumerate(gone.tolist())]
            for low in range(0, changed, BULK):
                await mine.opened.insert(ACTOR, records[low : low + BULK])
            true = neighbours(vectors, queries, K)
            mine.look_at(ef)  # Upkeep tunes to the collection's own target whenever it has built a graph.
            worst = min(worst, recall((await search(mine.opened, queries))[0], true))
            await mine.opened.settle()
        mine.look_at(ef)
        true = neighbours(vectors, queries, K)
        after = recall((await search(mine.opened, queries))[0], true)
        built = mine.things.count("appliance_search_graphs_total", end="built")
    async with filled(vectors) as mine:
        await mine.opened.seal()
        mine.look_at(ef)
        afresh = recall((await search(mine.opened, queries))[0], true)
    report.figure(
        f"{data.kind} {count:,} x {data.dim}: recall@10 that {ROUNDS} rounds of 30 % replaced take away",
        afresh - after,
        "",
        at_most=0.005,
        note=f"{after:.4f}, fresh build {afresh:.4f}, least before a graph was renewed {worst:.4f}, "
        f"{built:.0f} graphs, ef {ef}",
    )


async def beside_inserts(report: Report, data: Embeddings, count: int) -> None:
    """Queries one after the other while 200 records a second come in, in tens.

    How many queries there are to share what the inserts cost is up to the machine. So the same inserts are
    made once more without a query, until the graphs that fall due by them are built both times, and what
    they cost by themselves is taken off; the rest is the queries', what both do to each other included. The
    other figure is of all CPU.
    """
    assert len(data.vectors) >= count + RATE * SECONDS
    async with filled(data.vectors[:count]) as mine:
        await _seal(mine)
        await search(mine.opened, data.queries)
        alone, calm, _ = await _searching(mine, data.queries, SECONDS / 5)
        began = mine.cpu_seconds()
        inserting = asyncio.ensure_future(_insert_evenly(mine, data.vectors[count:], count))
        beside, busy, queries = await _searching(mine, data.queries, SECONDS)
        inserting.cancel()
        await asyncio.gather(inserting, return_exceptions=True)
        await mine.opened.settle()
        together = mine.cpu_seconds() - began
        inserted = mine.opened.count - count
        graphs = mine.things.count("appliance_search_graphs_total", end="built") - 1
    async with filled(data.vectors[:count]) as mine:
        await _seal(mine)
        began = mine.cpu_seconds()
        await _insert_evenly(mine, data.vectors[count:][:inserted], count)
        await mine.opened.settle()
        inserts = mine.cpu_seconds() - began
    own = (together - inserts) / queries
    report.figure(
        f"{data.kind} {count:,} x {data.dim}: CPU a query while {RATE} inserts/s run / without",
        own / alone,
        "x",
        at_most=2,
        note=f"{1000 * own:.3f} and {1000 * alone:.3f} ms; {inserted / SECONDS:.0f} inserts/s, "
        f"{queries / SECONDS:.0f} queries/s, {graphs:.0f} graphs built",
    )
    report.figure(
        "... with the CPU of the inserts in it",
        beside / alone,
        "x",
        note=f"{1000 * inserts / inserted:.3f} ms an insert without queries, its part of the graphs included",
    )
    report.figure("... p99 of a query, with inserts", 1000 * busy, "ms wall")
    report.figure("... p99 of a query, without", 1000 * calm, "ms wall")


async def _seal(mine: Filled) -> None:
    """One graph, tuned by the collection itself to the higher recall, as those that follow are."""
    await mine.opened.seal()
    mine.opened.aim(max(TARGETS))
    await mine.opened.settle()


async def _searching(mine: Filled, queries: Vectors, seconds: float) -> tuple[float, float, int]:
    """CPU seconds a query with all else that goes on, the p99 of the wall seconds, and how many."""
    began, cpu, took = time.perf_counter(), mine.cpu_seconds(), list[float]()
    while time.perf_counter() - began < seconds:
        took += (await search(mine.opened, queries[len(took) % len(queries) :][:BATCH]))[1]
    return (mine.cpu_seconds() - cpu) / len(took), float(np.quantile(took, 0.99)), len(took)


async def _insert_evenly(mine: Filled, vectors: Vectors, start: int) -> None:
    began = time.perf_counter()
    for low in range(0, len(vectors), BATCH):
        await asyncio.sleep(max(0.0, began + low / RATE - time.perf_counter()))
        await mine.opened.insert(ACTOR, numbered(vectors[low : low + BATCH], start + low))
