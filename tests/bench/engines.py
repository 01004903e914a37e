"""The engines of graphs beside each other, over one saved graph: memory, speed at equal recall, restoring.

100,000 x 256, low-rank like embeddings. hnswlib builds the graph and it is kept; each engine then restores it
after a start, so that both search the very same links. CPU is that of all our processes; a turn of the loop
is the CPU time of its thread.
"""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import psutil

from appliance import config
from appliance.search.collections import OpenCollection
from appliance.search.graph import ENGINES, Graph, Shape
from appliance.search.graph_files import GraphFolder
from appliance.search.links import Links
from tests.bench.report import Report
from tests.searching import ACTOR, Shelf, Vectors, brute_force, low_rank, numbered, shelf

COUNT, DIM, QUERIES, K = 100_000, 256, 1_000, 10
RECALLS = (0.95, 0.99)
BREADTHS = (12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256)
ROUNDS = 5
FOLDER = Path(__file__).parents[2] / ".cache" / "bench-engines"
MIB = 1 << 20


def run(report: Report) -> None:
    everything = low_rank(np.random.default_rng(1), COUNT + QUERIES, DIM)
    vectors, queries = everything[:COUNT], everything[COUNT:]
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    try:
        asyncio.run(measure(report, vectors, queries))
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)


async def measure(report: Report, vectors: Vectors, queries: Vectors) -> None:
    async with shelf(FOLDER, config.Search(flat_bytes=1 << 40)) as things:
        opened = await things.collection(DIM)
        for low in range(0, COUNT, 500):
            await opened.insert(ACTOR, numbered(vectors[low : low + 500], low))
        identifier = opened.collection.id
    async with shelf(FOLDER) as things:
        opened = await things.collections.open(None, identifier)
        async with held(report, "building and saving"):
            await opened.seal()
        pid = things.collections.graph_process
        assert pid is not None
        report.figure(
            "hnswlib: process that built it", peak(pid), "MiB at most", note=f"now {resident(pid):.0f}"
        )
    (path,) = (FOLDER / "graphs").glob("*/*")
    report.figure("its file", path.stat().st_size / COUNT, "bytes a record")
    graphs: dict[str, Graph] = {}
    for name in ENGINES:
        async with shelf(FOLDER, config.Search(engine=name)) as things:  # type: ignore[arg-type]
            opened = await things.collections.open(None, identifier)
            await restore(report, name, things, opened, queries)
            graphs[name] = await in_this_process(name, opened._segments._folder, vectors)
    compare(report, graphs, vectors, queries)


async def restore(report: Report, name: str, things: Shelf, opened: OpenCollection, queries: Vectors) -> None:
    began, spent = time.perf_counter(), time.process_time()
    async with held(report, f"{name}: restoring"):
        await opened.search(queries[0], K, metadata=False)
        await opened.settle()
    wall, cpu = time.perf_counter() - began, time.process_time() - spent
    assert things.count("appliance_search_graphs_total", end="restored") == 1
    pid = things.collections.graph_process
    assert pid is not None
    times = psutil.Process(pid).cpu_times()
    (segment,) = opened._segments._segments
    note = f"of these the daemon {cpu:.2f}; {wall:.2f} s wall; the start of the process is in it"
    report.figure(
        f"{name}: from the first search to the graph", cpu + times.user + times.system, "s CPU", note=note
    )
    report.figure(f"{name}: process that restored it", resident(pid), "MiB", note=f"at most {peak(pid):.0f}")
    report.figure(f"{name}: the graph as it counts itself", segment.sealed.memory / MIB, "MiB")


async def in_this_process(name: str, folder: GraphFolder, vectors: Vectors) -> Graph:
    (saved,) = await folder.saved()
    content = b"".join([bytes(piece) async for piece in folder.read(saved)])
    manifest = saved.manifest
    shape = Shape(manifest.dim, manifest.size, manifest.m, manifest.ef_construction)
    labels = np.frombuffer(content, np.int64, shape.size).copy()
    links = Links.read(content[8 * shape.size : manifest.length], shape.size, shape.m)
    restoring = ENGINES[name](1).restore(shape, labels, links)
    restoring.rows[:] = vectors[labels]
    return restoring.finish()


def compare(report: Report, graphs: dict[str, Graph], vectors: Vectors, queries: Vectors) -> None:
    true = [set(brute_force(vectors, query, K)[0]) for query in queries[:200]]
    for wanted in RECALLS:
        spent: dict[str, list[float]] = {name: [] for name in graphs}
        breadths = {name: breadth(graph, queries, true, wanted) for name, graph in graphs.items()}
        for _ in range(ROUNDS):
            for name, graph in graphs.items():
                began = time.process_time()
                for query in queries:
                    graph.query(query[np.newaxis], K, breadths[name])
                spent[name].append((time.process_time() - began) / len(queries))
        best = {name: float(np.median(times)) for name, times in spent.items()}
        for name in graphs:
            report.figure(
                f"{name}: query at recall@10 {wanted}",
                1e6 * best[name],
                "us CPU",
                note=f"ef {breadths[name]}",
            )
        report.figure("  faiss against hnswlib", best["hnswlib"] / best["faiss"], "x")


def breadth(graph: Graph, queries: Vectors, true: list[set[int]], wanted: float) -> int:
    """The smallest ef that finds so much; of 2 K candidates the daemon's exact vectors choose."""
    for ef in BREADTHS:
        found = sum(
            len(set(graph.query(query[np.newaxis], K, ef)[0][0].tolist()) & one)
            for query, one in zip(queries, true, strict=False)
        )
        if found >= wanted * K * len(true):
            return ef
    raise AssertionError(f"recall {wanted} is not reached")


@asynccontextmanager
async def held(report: Report, name: str) -> AsyncIterator[None]:
    """The longest turn of the loop within the block."""
    loop, longest = asyncio.get_running_loop(), 0.0
    select = loop._selector.select  # type: ignore[attr-defined]
    left = time.thread_time()

    def watched(timeout: float | None) -> object:
        nonlocal longest, left
        longest = max(longest, time.thread_time() - left)
        try:
            return select(timeout)
        finally:
            left = time.thread_time()

    loop._selector.select = watched  # type: ignore[attr-defined]
    try:
        yield
    finally:
        loop._selector.select = select  # type: ignore[attr-defined]
        report.figure(f"{name}: longest turn of the loop", 1000 * longest, "ms CPU", at_most=20)


def resident(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss / MIB)


def peak(pid: int) -> float:
    (line,) = [one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmHWM")]
    return int(line.split()[1]) / 1024
