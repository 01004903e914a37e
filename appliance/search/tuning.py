"""How many candidates the graphs of a collection look at, so that their recall is what was asked for.

Recall is measured as ann-benchmarks does: how many of the ten exactly nearest a search finds, those at equal
distance counted alike (Aumueller, Bernhardsson, Faithfull, "ANN-Benchmarks", Information Systems 87, 2020).

A graph finds its own records more surely than anything else (measured: 0.985 where new queries of the same
kind have 0.92). So the queries are made of records: each is moved away from its nearest neighbour, by as much
as the two are apart. These were found as surely as new ones, to 0.02, in three data sets.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from appliance.search.exact import Found
from appliance.search.records import Vector
from appliance.search.vectors import QUERIES_TOGETHER

K = 10
SAMPLE = 256
STEPS = (10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512, 768)
_CERTAINTY = 2.0
"""Standard errors by which what is measured is above what was asked for."""
_ROUNDING = 1e-6
"""By so much distances that are equal may differ."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """The candidates, `ef`, that a search has each graph look at for ten records, and its recall@10."""

    ef: int
    recall: float


Search = Callable[[Vector, int, int], Awaitable[Sequence[Found | None]]]
"""What the graphs give for queries, k and ef; None for a query that they leave to an exact scan."""


def moved(records: Vector, neighbours: Vector) -> Vector:
    """Queries of length 1, each a record (n, dim) that is moved away from its neighbour."""
    away = 2 * records - neighbours
    queries: Vector = away / np.linalg.norm(away, axis=1, keepdims=True)
    return queries


async def tuned(queries: Vector, true: Sequence[Found], target: float, search: Search) -> Tuned:
    """The smallest of STEPS with which `search` surely reaches the target, or the largest.

    `true` is what is exactly the nearest K to each query (n, dim).
    """
    recall = 0.0
    for ef in STEPS:
        shares: list[float] = []
        for low in range(0, len(queries), QUERIES_TOGETHER):
            high = low + QUERIES_TOGETHER
            shares += map(_share, await search(queries[low:high], K, ef), true[low:high])
        recall = float(np.mean(shares))
        if recall - _CERTAINTY * float(np.std(shares)) / math.sqrt(len(shares)) >= target:
            break
    return Tuned(ef, recall)


def _share(found: Found | None, true: Found) -> float:
    """How much of what is nearest was found; an exact scan, which follows where there is none, finds all."""
    if found is None or not len(true[1]):
        return 1.0
    return int(np.count_nonzero(found[1] <= true[1][-1] + _ROUNDING)) / len(true[1])
