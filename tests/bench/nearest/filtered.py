"""Filters that keep from half of the records to a thousandth: recall, and queries per CPU second."""

import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from appliance.search import filters
from appliance.search.filters import Filter
from tests.bench.nearest.embeddings import Embeddings, K, neighbours, recall
from tests.bench.nearest.filled import Filled, filled, in_turns, search
from tests.bench.report import Report
from tests.searching import ACTOR, Vectors

ASKED = 200
PART = 100
ROUNDS = 5
WAYS = ("graph", "exact", "both")
TOGETHER = 0.05


@dataclass(frozen=True)
class _Case:
    """A filter, and the numbers of the records that it keeps, ascending."""

    name: str
    document: object
    kept: list[int]
    bound: float | None


async def run(report: Report, data: Embeddings, ef: int) -> None:
    """`ef` is what reaches a recall of 0.99 without a filter."""
    queries = data.queries[:ASKED]
    count = len(data.vectors)
    near = neighbours(data.vectors, data.queries[-1:], int(TOGETHER * count))[0].tolist()
    cases = [
        _Case(
            f"{100 * share:g} %",
            {"n": {"$lt": int(share * count)}},
            list(range(int(share * count))),
            bound=0.6,
        )
        for share in (0.5, 0.1, 0.01, 0.001)
    ]
    cases.append(_Case(f"{100 * TOGETHER:g} % that lie together", {"together": True}, sorted(near), None))
    async with filled(data.vectors) as mine:
        await mine.opened.update(ACTOR, [(f"r{n}", {"together": True}) for n in near])
        await mine.opened.seal()
        mine.look_at(ef)
        await search(mine.opened, queries)
        for case in cases:
            await _case(report, data, mine, queries, case)
        await _changing(report, mine, queries, count)


async def _case(report: Report, data: Embeddings, mine: Filled, queries: Vectors, case: _Case) -> None:
    wanted = filters.compile(case.document)
    found, _ = await search(mine.opened, queries, wanted)
    before = {way: mine.answered(f"filtered_{way}") for way in WAYS}
    cost, ratio = await _against_none(mine, queries, itertools.repeat(wanted))
    ways = {way: mine.answered(f"filtered_{way}") - before[way] for way in WAYS}
    kept = np.array(case.kept)
    report.figure(
        f"{data.name}: filter that keeps {case.name}, queries per CPU s / without",
        ratio,
        "x",
        at_least=case.bound,
        note=f"{1000 * cost:.3f} ms; " + ", ".join(f"{way} {times:.0f}" for way, times in ways.items()),
    )
    true = kept[neighbours(data.vectors[kept], queries, K)]
    report.figure("... recall@10", recall(found, true), "", at_least=0.99)


async def _changing(report: Report, mine: Filled, queries: Vectors, count: int) -> None:
    """What nothing that is remembered of a filter helps with."""
    changing = (filters.compile({"n": {"$lt": count // 2 + n}}) for n in itertools.count())
    cost, ratio = await _against_none(mine, queries, changing)
    name = "... another filter each time, keeps 50 %: queries per CPU s / without"
    report.figure(name, ratio, "x", note=f"{1000 * cost:.3f} ms")


async def _against_none(mine: Filled, queries: Vectors, wanted: Iterator[Filter]) -> tuple[float, float]:
    """CPU seconds a query, and those of a query without a filter by them; medians of rounds in turns."""
    costs = list[tuple[float, float]]()
    for part in itertools.islice(in_turns(queries, PART), ROUNDS):

        async def filtered(part: Vectors = part) -> None:
            for query in part:
                await search(mine.opened, query[np.newaxis], next(wanted))

        own = await mine.measured(filtered, PART)
        whole = await mine.measured(lambda part=part: search(mine.opened, part), PART)  # type: ignore[misc]
        costs.append((own.cpu, whole.cpu))
    return statistics.median(own for own, _ in costs), statistics.median(one / own for own, one in costs)
