"""Processes of ledger and audit log that record and publish a fixed row of entries and say what was signed.

    python -m tests.faults.audit_writer

It is driven and speaks as `store_writer`: the label of "record" is how many entries there are then, that of
"publish" the checkpoint. Mode "premature" is the control, which says "done" before it asks; "first" makes the
first checkpoint alone, of a log that has entries and none.
"""

import asyncio
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from appliance.accounts.audit import Actor, Event, record
from appliance.errors import ApplianceError
from appliance.ledger import Connection
from tests.auditing import NOW_MS, Log, opened
from tests.faults.store_writer import main, say

BEFORE = 250
STEPS = (1, 3, 10, 600)
"""So many entries more each time: the second tile is reached, then filled with the third."""


async def prepare(state: Path) -> None:
    """What every child finds: most of a tile, published."""
    async with opened(state) as log:
        await log.add(BEFORE)


async def prepare_unpublished(state: Path) -> None:
    """Hours of a daemon's entries without a published log, as after a restore."""

    def act(connection: Connection) -> None:
        for minute in range(BEFORE + 50):
            time = NOW_MS + minute * 60_000
            record(connection, time, Actor("token", "a-token"), Event.SEARCH_INSERT, None, "subject")

    async with opened(state) as log:
        await log.ledger.write(act)
    shutil.rmtree(state / "audit")


async def publish(log: Log) -> None:
    say("begin", "publish", "")
    head = await log.tree.publish()
    say("done", "publish", head.note)


async def everything(log: Log, *, premature: bool) -> None:
    size = BEFORE
    for count in STEPS:
        size += count
        say("begin", "record", str(size))
        if premature:
            say("done", "record", str(size))
        await log.add(count)
        if not premature:
            say("done", "record", str(size))
        await publish(log)


async def child(state: Path, mode: str) -> None:
    # One thread of a kind, so that a tracer of this thread sees all of it.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1, "blocking"))
    try:
        async with opened(state) as log:
            if mode != "first":
                await log.tree.publish()  # what the start has to do is done
            say("ready", os.getpid(), {thread.name: thread.native_id for thread in threading.enumerate()})
            os.read(0, 1)
            if mode == "first":
                await publish(log)
            else:
                await everything(log, premature=mode == "premature")
        say("closed")
    except ApplianceError as error:
        say("failed", repr(error))


if __name__ == "__main__":
    main(child)
