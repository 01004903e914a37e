"""The audit log as a tree: what publishing it adds to an insert, and a large ledger published and verified.

CPU of this process with all its threads, which play the daemon. An insert is the cheapest there is: one ready
vector into a collection, without HTTP, decoding and model.
"""

import asyncio
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
import uvloop

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.transparency import verification
from appliance.accounts.transparency.tree import AuditTree
from appliance.ledger import Connection
from tests.bench.report import Report
from tests.searching import ACTOR, Shelf, numbered, shelf, unit

FOLDER = Path(__file__).parents[2] / ".cache" / "bench-audit"
DIM, INSERTS, ROUNDS = 512, 1_000, 7
"""As many inserts a round as come in a minute of sixteen a second: one checkpoint."""
ENTRIES = 100_000


def run(report: Report) -> None:
    for measure in (_insert, _large):
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(parents=True)
        try:
            uvloop.run(measure(report))
        finally:
            shutil.rmtree(FOLDER, ignore_errors=True)


async def _insert(report: Report) -> None:
    rng = np.random.default_rng(8)
    async with shelf(FOLDER) as things, _tree(things) as tree:
        collection = await things.collection(DIM)
        shares, costs = [], []
        for number in range(ROUNDS):
            records = numbered(unit(rng, INSERTS, DIM), number * INSERTS)
            began = time.process_time()
            for one in records:
                await collection.insert(ACTOR, [one])
            between = time.process_time()
            await tree.publish()
            spent = time.process_time() - between
            shares.append(spent / (between - began) * 100)
            costs.append(spent / INSERTS * 1e6)
        quiet = []
        for number in range(ROUNDS * 3):
            await collection.insert(ACTOR, numbered(unit(rng, 1, DIM), -1 - number))
            began = time.process_time()
            await tree.publish()
            quiet.append((time.process_time() - began) * 1000)
    note = f"{statistics.median(costs):.1f} us CPU of an entry"
    report.figure("publishing beside an insert", statistics.median(shares), "%", at_most=5, note=note)
    report.figure("a checkpoint over one entry, CPU", statistics.median(quiet), "ms", note="once a minute")


async def _large(report: Report) -> None:
    """The first start on a ledger that has its entries already."""
    actor = Actor("operator", "0")

    def fill(connection: Connection) -> None:
        for number in range(ENTRIES):
            details: dict[str, object] = {"n": number}
            record(connection, number, actor, Event.SEARCH_INSERT, "a customer", "a collection", details)

    async with shelf(FOLDER) as things:
        await things.ledger.write(fill)
        async with _tree(things) as tree:
            began, cpu, longest = time.monotonic(), time.process_time(), 0.0
            publishing = asyncio.ensure_future(tree.publish())
            while not publishing.done():
                turn = time.thread_time()
                await asyncio.sleep(0.001)
                longest = max(longest, time.thread_time() - turn)
            await publishing
            wall, cpu = time.monotonic() - began, time.process_time() - cpu
    report.figure(f"{ENTRIES:,} entries published at once, CPU", cpu, "s", note=f"wall {wall:.1f} s")
    report.figure("the loop is held meanwhile, longest, CPU", longest * 1000, "ms", at_most=20)
    cpu = time.process_time()
    verification.verify(FOLDER)
    report.figure(f"{ENTRIES:,} entries verified, CPU", time.process_time() - cpu, "s")


def _tree(things: Shelf) -> AuditTree:
    return AuditTree(things.ledger, things.keyring.service, FOLDER)
