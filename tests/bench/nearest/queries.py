"""Queries per CPU second against hnswlib's own at the same recall, and memory, over one set of embeddings."""

import gc
import itertools
import time
from collections.abc import Iterator

import msgspec
import numpy as np

from appliance import config
from appliance.search.graph import Hnswlib, HnswlibGraph, Shape
from appliance.search.graph_process import Ask, Graphs, Query
from tests.bench.nearest.direct import EFS, TARGETS, Direct
from tests.bench.nearest.embeddings import Embeddings, K
from tests.bench.nearest.filled import (
    SETTINGS,
    Filled,
    Paired,
    empty,
    filled,
    in_turns,
    insert,
    paired,
    search,
    search_many,
)
from tests.bench.report import Report

PART = 200  # queries in one of the rounds that take turns
TOGETHER = 10
LEAST = {20_000: 0.75, 100_000: 0.9}
"""Through the child, by the number of vectors."""


async def run(report: Report, data: Embeddings, direct: Direct) -> None:
    """Of a collection with one graph over everything and nothing beside it."""
    for target in TARGETS:
        note = f"ef {direct.efs[target]}, for {target}"
        report.figure(f"{data.name}: hnswlib, recall@10", direct.recalls[target], "", note=note)
    _in_the_graph_process(report, data, direct)
    async with filled(data.vectors) as mine:
        sealing = await mine.measured(mine.opened.seal, len(data.vectors))
        assert mine.opened.graphed == len(data.vectors)
        note = "hnswlib's came from the cache" if direct.add is None else f"hnswlib {1000 * direct.add:.3f}"
        report.figure("... building the graph", 1000 * sealing.cpu, "ms CPU a record", note=note)
        for target in TARGETS:
            await _one_in_flight(report, mine, data, direct, target)
        for target in TARGETS:
            await _ten_in_a_call(report, mine, data, direct, target)
        _memory(report, mine, data, direct)


def _in_the_graph_process(report: Report, data: Embeddings, direct: Direct) -> None:
    """What it does with a query between receiving and sending, on the very index that is driven directly."""
    graphs, decode = _holding(direct), msgspec.msgpack.Decoder(Query).decode
    parts = in_turns(data.queries, PART)
    for target in TARGETS:
        ratios, costs = list[float](), list[float]()
        for part in itertools.islice(parts, 7):
            asked = [
                msgspec.msgpack.encode(Query([Ask(1, K, direct.efs[target])], data.dim, query.tobytes()))
                for query in part
            ]
            began = time.process_time()
            for message in asked:
                graphs.query(decode(message))
            between = time.process_time()
            direct.search(part, target)
            costs.append((between - began) / PART)
            ratios.append((time.process_time() - between) / (between - began))
        report.figure(
            f"... in the graph process, at {target}: queries per CPU s / hnswlib's",
            float(np.median(ratios)),
            "x",
            at_least=0.9,
            note=f"{1000 * float(np.median(costs)):.4f} ms",
        )


def _holding(direct: Direct) -> Graphs:
    """The graph process's own object, with hnswlib's index as its graph 1."""
    graphs = Graphs(Hnswlib(threads=1), memoryview(b""), memoryview(b""))
    shape = Shape(direct.index.dim, direct.index.element_count, SETTINGS.m, SETTINGS.ef_construction)
    graphs._finished[1] = HnswlibGraph(shape, direct.index)
    return graphs


async def _one_in_flight(
    report: Report, mine: Filled, data: Embeddings, direct: Direct, target: float
) -> None:
    mine.look_at(direct.efs[target])
    found, _ = await search(mine.opened, data.queries)  # the second time hits are known by their ids
    through = mine.answered("graph")
    seconds = list[float]()
    parts = in_turns(data.queries, PART)

    async def ours() -> None:
        seconds.extend((await search(mine.opened, next(parts)))[1])

    theirs = in_turns(data.queries, PART)
    cost = await paired(mine, ours, lambda: direct.search(next(theirs), target), PART)
    assert mine.answered("graph") - through == len(seconds)
    report.figure("... recall@10 of a search", data.recall(found), "", at_least=target)
    report.figure(
        f"... one in flight, at {target}: queries per CPU s / hnswlib's",
        cost.ratio,
        "x",
        at_least=LEAST[len(data.vectors)],
        note=_costs(cost) + f"; p99 {1000 * float(np.quantile(seconds, 0.99)):.2f} ms wall",
    )


async def _ten_in_a_call(
    report: Report, mine: Filled, data: Embeddings, direct: Direct, target: float
) -> None:
    mine.look_at(direct.efs[target])
    parts = in_turns(data.queries, PART)

    async def ours() -> None:
        for few in np.split(next(parts), PART // TOGETHER):
            await search_many(mine.opened, few)

    theirs = in_turns(data.queries, PART)
    cost = await paired(mine, ours, lambda: direct.search(next(theirs), target), PART)
    name = f"... ten in one call, at {target}: queries per CPU s / hnswlib's"
    report.figure(name, cost.ratio, "x", at_least=0.75, note=_costs(cost) + ", without HTTP")


async def beside_a_tail(report: Report, data: Embeddings, direct: Direct) -> None:
    """Four graphs of a portion each, and as many vectors as fit scanned beside them, until searches make one
    graph of them.
    """
    portion = -(-SETTINGS.tail_bytes // (4 * data.dim))
    async with empty(config.Search(flat_bytes=0), dim=data.dim) as mine:
        for low in range(0, 4 * portion, portion):
            await insert(mine.opened, data.vectors[low : low + portion], low, portion)
            await mine.opened.settle()
        rest = data.vectors[4 * portion :][: portion - 1]
        await insert(mine.opened, rest, 4 * portion)
        assert [size for size, _ in mine.opened.sealing.segments] == 4 * [portion]
        assert mine.opened.sealing.tail == len(rest)
        parts = f"four graphs and a tail of {len(rest)}"
        efs = iter(EFS)
        for target in TARGETS:
            reached = await _look_at_least(mine, data, target, efs)
            mine.forget_searches()
            cost = await _in_turns(mine, data, direct, target)
            name = f"... {parts}, at {target}: queries per CPU s / hnswlib's"
            report.figure(name, cost.ratio, "x", at_least=0.35, note=f"{_costs(cost)}; {reached}")
        mine.forget_searches()
        searches = 0
        while mine.opened.sealing.tail:
            assert searches < 100 * len(data.queries)
            await search(mine.opened, data.queries)
            searches += len(data.queries)
            await mine.opened.settle()
        report.figure("... searches that make one graph of them", searches, "", note="in thousands")
        mine.look_at(direct.efs[target])
        recall = data.recall((await search(mine.opened, data.queries))[0])
        cost = await _in_turns(mine, data, direct, target)
        name = f"... after these, at {target}: queries per CPU s / hnswlib's"
        report.figure(name, cost.ratio, "x", note=f"{_costs(cost)}; recall@10 {recall:.4f}")


async def _look_at_least(mine: Filled, data: Embeddings, target: float, efs: Iterator[int]) -> str:
    """Have graphs look at no more candidates than the target takes; how many, and what the recall is."""
    for ef in efs:
        mine.forget_searches()
        mine.look_at(ef)
        reached = data.recall((await search(mine.opened, data.queries))[0])
        if reached >= target:
            return f"ef {ef}, recall@10 {reached:.4f}"
    raise AssertionError(f"{data.name}: no recall of {target}")


async def _in_turns(mine: Filled, data: Embeddings, direct: Direct, target: float) -> Paired:
    """One query in flight, whose ids are known, beside hnswlib at its own ef for the target."""
    ours, theirs = in_turns(data.queries, PART), in_turns(data.queries, PART)
    return await paired(
        mine, lambda: search(mine.opened, next(ours)), lambda: direct.search(next(theirs), target), PART
    )


def _memory(report: Report, mine: Filled, data: Embeddings, direct: Direct) -> None:
    """Vectors and graph; no filter has been asked for, and no metadata is in memory."""
    gc.collect()
    own, alone = mine.resident_mib(), direct.resident_mib()
    count = len(data.vectors)
    allowed = 1.05 * data.dim * 4 + 100
    report.figure(
        "... memory beside hnswlib's own",
        (own - alone) * 2**20 / count,
        "B a record",
        at_most=allowed,
        note=f"{own:.0f} MiB, hnswlib alone {alone:.0f} MiB",
    )


def _costs(cost: Paired) -> str:
    return f"{1000 * cost.ours:.3f} ms, hnswlib {1000 * cost.theirs:.3f} ms"
