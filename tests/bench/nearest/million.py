"""A million vectors of 256 dimensions: how soon they answer after a start, how well, and who waits for that.

The state is kept outside the tree. To insert so many takes minutes, and where a start finds no graph,
to build one takes half an hour.
"""

import asyncio
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvloop

from appliance import config
from appliance.search import filters
from appliance.search.collections import NewRecord, OpenCollection
from tests.bench import spent
from tests.bench.nearest.embeddings import CACHE, Embeddings, K, embeddings, neighbours, recall
from tests.bench.nearest.filled import Filled, insert, search
from tests.bench.report import Report
from tests.searching import ACTOR, shelf

COUNT, DIM, QUERIES = 1_000_000, 256, 200
KEPT = 0.01
SETTINGS = config.Search(capacity=2 * COUNT)
IDLE_SECONDS = 5.0
WRITE_SECONDS, LOOK_SECONDS = 0.05, 0.002


def run(report: Report) -> None:
    data = embeddings("low-rank", COUNT, DIM, QUERIES)
    folder = CACHE / f"{data.key}.state"
    if not folder.exists():
        print(f"  inserting {COUNT:,} records", file=sys.stderr, flush=True)
        part = folder.with_suffix(f".{os.getpid()}")
        part.mkdir(parents=True)
        try:
            uvloop.run(_fill(part, data))
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    uvloop.run(_started(report, folder, data))


async def _fill(folder: Path, data: Embeddings) -> None:
    async with shelf(folder, SETTINGS.model_copy(update={"flat_bytes": 1 << 40})) as things:
        await insert(await things.collection(DIM), data.vectors)


async def _started(report: Report, folder: Path, data: Embeddings) -> None:
    async with shelf(folder, SETTINGS) as things:
        (collection,) = await things.collections.list()
        cpu, wall = time.process_time(), time.perf_counter()
        opened = await things.collections.open(None, collection.id)
        mine = Filled(things, opened, before_mib=0)
        (first,), _ = await search(opened, data.queries[:1])
        note = f"{time.perf_counter() - wall:.1f} s wall"
        exact = "first answer after a start"
        report.figure(exact, time.process_time() - cpu, "s CPU", at_most=2, note=note)
        report.figure("... is exact", recall([first], data.true), "", at_least=1)
        async with _watched(opened) as busy:
            await opened.settle()
        assert opened.graphed is not None
        report.figure("graph answers after a start", mine.cpu_seconds() - cpu, "s CPU", at_most=15)
        async with _watched(opened) as idle:
            await asyncio.sleep(IDLE_SECONDS)
        _tell(report, busy, idle)
        await _answers(report, mine, data)
        await opened.delete(ACTOR, [f"w{n}" for n in range(max(len(busy.writes), len(idle.writes)))])


async def _answers(report: Report, mine: Filled, data: Embeddings) -> None:
    found, seconds = await search(mine.opened, data.queries)
    cost = await mine.measured(lambda: search(mine.opened, data.queries), QUERIES)
    p99 = 1000 * float(np.quantile(seconds, 0.99))
    note = f"{mine.opened.sealing.tuned}, {1000 * cost.cpu:.3f} ms CPU, p99 {p99:.1f} ms wall"
    report.figure("recall@10", data.recall(found), "", at_least=0.95, note=note)
    kept = int(KEPT * COUNT)
    wanted = filters.compile({"n": {"$lt": kept}})
    first = await mine.measured(lambda: search(mine.opened, data.queries[:1], wanted), 1)
    report.figure("first filtered answer", first.cpu, "s CPU", at_most=15, note=f"{first.wall:.1f} s wall")
    found, _ = await search(mine.opened, data.queries, wanted)
    true = neighbours(data.vectors[:kept], data.queries, K)
    report.figure("... recall@10, keeps 1 %", recall(found, true), "", at_least=0.99)
    memory = spent.resident_mib([os.getpid(), mine.things.collections.graph_process or os.getpid()])
    report.figure("resident memory with the bench's own copy", memory, "MiB")


@dataclass
class _Seen:
    """CPU seconds of the loop's thread from look to look, and wall seconds of single durable upserts."""

    looks: list[float] = field(default_factory=list)
    writes: list[float] = field(default_factory=list)


@asynccontextmanager
async def _watched(opened: OpenCollection) -> AsyncIterator[_Seen]:
    """What the loop and a write go through meanwhile."""
    seen = _Seen()
    watching = [asyncio.ensure_future(_look(seen)), asyncio.ensure_future(_write(opened, seen))]
    try:
        yield seen
    finally:
        for one in watching:
            one.cancel()
        await asyncio.gather(*watching, return_exceptions=True)


async def _look(seen: _Seen) -> None:
    while True:
        began = time.thread_time()
        await asyncio.sleep(LOOK_SECONDS)
        seen.looks.append(time.thread_time() - began)


async def _write(opened: OpenCollection, seen: _Seen) -> None:
    rng = np.random.default_rng(3)
    while True:
        record = NewRecord(f"w{len(seen.writes)}", rng.standard_normal(DIM, np.float32))
        began = time.perf_counter()
        await opened.upsert(ACTOR, [record])
        seen.writes.append(time.perf_counter() - began)
        await asyncio.sleep(WRITE_SECONDS)


def _tell(report: Report, busy: _Seen, idle: _Seen) -> None:
    for name, bound, seconds, calm in (
        ("the loop is held while graphs come, p99.9", 20, busy.looks, idle.looks),
        ("a write takes while graphs come, p99", 50, busy.writes, idle.writes),
    ):
        share = 0.999 if seconds is busy.looks else 0.99
        value, control = (1000 * float(np.quantile(one, share)) for one in (seconds, calm))
        unit = "ms CPU" if seconds is busy.looks else "ms wall"
        note = f"{len(seconds)} times, at most {1000 * max(seconds):.1f}; idle {control:.1f}"
        report.figure(name, value, unit, at_most=bound, note=note)
