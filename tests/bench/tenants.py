"""Thousands of collections: what they take in memory, and what those that are used notice of the others.

A state with 10,000 collections of 100 records is made, and a process of its own goes through all of them:
with a budget for a quarter of their vectors and, where these are narrow, with all of them open. One customer
uses its 50 all the while.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from appliance import config
from appliance.accounts.customers import CustomerId, Customers
from appliance.search.collections import CollectionId
from tests.bench.report import Report
from tests.bench.spent import resident_mib
from tests.searching import ACTOR, BACKBONE, NOW, Shelf, numbered, shelf, unit

COLLECTIONS, RECORDS, HOT, OTHERS = 10_000, 100, 50, 19
MOST_MIB = 1000  # a gigabyte, and less than a gibibyte
FOLDER = Path(__file__).parents[2] / ".cache" / "bench-tenants"
_TOGETHER = 16


@dataclass(frozen=True)
class Visited:
    """What a process took that went through all collections."""

    started_mib: float
    resident_mib: float
    counted_mib: float
    open: int
    hot_loads: int
    cold_milliseconds: float
    """CPU of a query for which its collection was loaded."""


def run(report: Report) -> None:
    for dim, budget in ((512, 512 << 20), (64, 4 << 30)):
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(parents=True)
        try:
            asyncio.run(build(FOLDER, COLLECTIONS, dim))
            seen = visit(FOLDER, budget)
        finally:
            shutil.rmtree(FOLDER, ignore_errors=True)
        what = f"{COLLECTIONS:,} x {RECORDS} x {dim}"
        note = f"budget {budget >> 20} MiB, {seen.open:,} open; {seen.started_mib:.0f} MiB with none open"
        report.figure(f"{what}: resident", seen.resident_mib, "MiB", at_most=MOST_MIB, note=note)
        report.figure("  counted by the appliance", seen.counted_mib, "MiB", at_most=budget / (1 << 20))
        again = seen.hot_loads - HOT
        report.figure("  loads of what is in use", again, "again", at_most=0, note=f"{HOT} of one customer")
        report.figure("  CPU of a query that loads", seen.cold_milliseconds, "ms")


async def build(folder: Path, count: int, dim: int) -> None:
    """HOT collections of the first customer, the others of OTHERS customers."""
    records = numbered(unit(np.random.default_rng(1), RECORDS, dim))

    async def add(things: Shelf, customer: CustomerId, number: int) -> None:
        added = await things.collections.add(ACTOR, customer, f"{number}", BACKBONE, dim)
        await (await things.collections.open(None, added.id)).insert(ACTOR, records)

    async with shelf(folder, config.Search(memory_bytes=0)) as things:
        async with Customers(things.ledger, lambda: NOW) as customers:
            owners = [(await customers.add(ACTOR, f"{number}")).id for number in range(OTHERS)]
        for low in range(0, count, _TOGETHER):
            numbers = range(low, min(low + _TOGETHER, count))
            asked = [things.customer if n < HOT else owners[n % OTHERS] for n in numbers]
            await asyncio.gather(*(add(things, one, n) for one, n in zip(asked, numbers, strict=True)))


def visit(folder: Path, budget: int) -> Visited:
    """Go through all collections in a new process."""
    asked = [sys.executable, "-m", "tests.bench.tenants", str(folder), str(budget)]
    told = subprocess.run(asked, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    return Visited(**json.loads(told.stdout))


async def _visit(folder: Path, budget: int) -> Visited:
    query = np.random.default_rng(2)
    async with shelf(folder, config.Search(memory_bytes=budget)) as things:
        every = await things.collections.list()
        hot = [one.id for one in every if int(one.name) < HOT]
        cold = [one.id for one in every if int(one.name) >= HOT]
        vector = query.standard_normal(every[0].dim)

        async def ask(collection: CollectionId) -> None:
            opened = await things.collections.open(None, collection)
            assert len(await opened.search(vector, 10)) == 10

        await ask(hot[0])
        started, loaded = resident_mib([os.getpid()]), 0
        for one in hot[1:]:
            await ask(one)
        spent = 0.0
        for number, one in enumerate(cold):
            before, began = things.count("appliance_search_collections_loaded_total"), time.process_time()
            await ask(one)
            spent += time.process_time() - began
            loaded += int(things.count("appliance_search_collections_loaded_total") - before)
            await ask(hot[number % len(hot)])
        return Visited(
            started_mib=started,
            resident_mib=resident_mib([os.getpid()]),
            counted_mib=things.count("appliance_search_memory_bytes") / (1 << 20),
            open=int(things.count("appliance_search_collections_open")),
            hot_loads=int(things.count("appliance_search_collections_loaded_total")) - loaded,
            cold_milliseconds=1000 * spent / len(cold),
        )


if __name__ == "__main__":
    print(json.dumps(vars(asyncio.run(_visit(Path(sys.argv[1]), int(sys.argv[2]))))))
