"""A collection that holds all embeddings, and what work on it costs: this process plays the daemon."""

import gc
import itertools
import os
import shutil
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from appliance import config
from appliance.search.collections import Hit, OpenCollection
from appliance.search.filters import Filter
from appliance.search.tuning import Tuned
from tests.bench import spent
from tests.bench.nearest.embeddings import K
from tests.searching import ACTOR, Shelf, Vectors, numbered, shelf

FOLDER = Path(__file__).parents[3] / ".cache" / "bench-search"
"""On the disk that the tree is on, not on a tmpfs."""
SETTINGS = config.Search()
_folders = itertools.count()
AT_ONCE = 1_000
"""Records in one insert, where it is not the insert that is measured."""


@dataclass(frozen=True)
class Spent:
    """CPU and wall seconds of one unit of some work."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class Filled:
    """The collection, open, and MiB that opening it took of this process."""

    things: Shelf
    opened: OpenCollection
    before_mib: float

    def cpu_seconds(self) -> float:
        """So far, of this process and of the graph process."""
        child = self.things.collections.graph_process
        return time.process_time() + (spent.cpu_milliseconds([child]) / 1000 if child else 0)

    def resident_mib(self) -> float:
        """Of the graph process, and what this process holds more than before the collection was opened."""
        child = self.things.collections.graph_process
        return spent.resident_mib([os.getpid(), *([child] if child else [])]) - self.before_mib

    async def measured(self, act: Callable[[], Awaitable[object]], units: int) -> Spent:
        cpu, wall = self.cpu_seconds(), time.perf_counter()
        await act()
        return Spent((self.cpu_seconds() - cpu) / units, (time.perf_counter() - wall) / units)

    def look_at(self, candidates: int) -> None:
        """How many candidates a graph compares for a search (ef), which decides its recall."""
        segments = self.opened._segments
        segments._settings = segments._settings.model_copy(update={"ef": 1})
        segments._tuned = Tuned(candidates, 0.0)

    def forget_searches(self) -> None:
        """So that searches to measure with are no reason to build one graph, see `appliance.search.tiers`."""
        self.opened._segments._apart = 0.0

    def answered(self, path: str) -> float:
        """Searches so far that were answered in this way."""
        return self.things.count("appliance_search_queries_total", path=path)


@asynccontextmanager
async def empty(settings: config.Search = SETTINGS, *, dim: int) -> AsyncIterator[Filled]:
    """A new collection in a folder of its own."""
    folder = _new_folder()
    try:
        async with shelf(folder, settings) as things:
            before = _settled_mib()
            yield Filled(things, await things.collection(dim), before)
    finally:
        shutil.rmtree(folder)


@asynccontextmanager
async def filled(vectors: Vectors, settings: config.Search = SETTINGS) -> AsyncIterator[Filled]:
    """A collection of these vectors, r0, r1, ... with `n` as metadata, opened after a restart."""
    folder = _new_folder()
    try:
        async with shelf(folder, config.Search(flat_bytes=1 << 40)) as things:
            opened = await things.collection(vectors.shape[1])
            await insert(opened, vectors)
            identifier = opened.collection.id
            del opened
        async with shelf(folder, settings) as things:
            before = _settled_mib()
            yield Filled(things, await things.collections.open(None, identifier), before)
    finally:
        shutil.rmtree(folder)


async def insert(opened: OpenCollection, vectors: Vectors, start: int = 0, batch: int = AT_ONCE) -> None:
    for low in range(0, len(vectors), batch):
        await opened.insert(ACTOR, numbered(vectors[low : low + batch], start + low))


async def search(
    opened: OpenCollection, queries: Vectors, wanted: Filter | None = None
) -> tuple[list[list[int]], list[float]]:
    """One query in flight, ids only: the numbers that each found, and the wall seconds that it took."""
    found, seconds = list[list[int]](), list[float]()
    for query in queries:
        began = time.perf_counter()
        hits = await opened.search(query, K, wanted, metadata=False)
        seconds.append(time.perf_counter() - began)
        found.append(numbers(hits))
    return found, seconds


async def search_many(opened: OpenCollection, queries: Vectors) -> list[list[int]]:
    """All in one call."""
    return [numbers(hits) for hits in await opened.search_many(list(queries), K, metadata=False)]


def numbers(hits: list[Hit]) -> list[int]:
    return [int(hit.id[1:]) for hit in hits]


@dataclass(frozen=True)
class Paired:
    """Our and hnswlib's CPU seconds a unit: medians of rounds in turns, and of the ratios of each round."""

    ours: float
    theirs: float
    ratio: float
    """hnswlib's CPU / ours: units per CPU second against its own."""


async def paired(
    mine: Filled,
    ours: Callable[[], Awaitable[object]],
    theirs: Callable[[], object],
    units: int,
    rounds: int = 7,
) -> Paired:
    """In turns, so that a machine whose pace changes changes it for both."""
    costs = list[tuple[float, float]]()
    for _ in range(rounds):
        own = await mine.measured(ours, units)
        began = time.process_time()
        theirs()
        costs.append((own.cpu, (time.process_time() - began) / units))
    return Paired(
        statistics.median(own for own, _ in costs),
        statistics.median(other for _, other in costs),
        statistics.median(other / own for own, other in costs),
    )


def _new_folder() -> Path:
    folder = FOLDER / str(next(_folders))
    folder.mkdir(parents=True)
    return folder


def _settled_mib() -> float:
    gc.collect()
    spent.give_back()
    return spent.resident_mib([os.getpid()])


def in_turns(queries: Vectors, size: int) -> Iterator[Vectors]:
    """So many of them at each turn, over and over."""
    return itertools.cycle(np.split(queries, len(queries) // size))
