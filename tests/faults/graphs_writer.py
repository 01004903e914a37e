"""Processes that have graphs built, kept and replaced, and say what was done.

    python -m tests.faults.graphs_writer

It is driven and speaks as `store_writer`. The one mode, "all", seals a collection twice, so that the second
graph takes the place of the first, and removes another one that has a graph.
"""

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from appliance import config
from appliance.errors import ApplianceError
from appliance.search.collections import OpenCollection
from tests.faults.collections_writer import DIM, record
from tests.faults.store_writer import main, say
from tests.searching import ACTOR, Shelf, shelf

COUNT = 150
ALL = [f"one-{number}" for number in range(COUNT)]
SETTINGS = config.Search(flat_bytes=100 * DIM * 4)


async def prepare(state: Path) -> None:
    """Two collections without a graph, and one that has it."""
    async with shelf(state, config.Search(flat_bytes=1 << 40)) as things:
        for name in ("kept", "doomed"):
            opened = await things.collection(DIM, name)
            await opened.insert(ACTOR, [record(external) for external in ALL])
    async with shelf(state, SETTINGS) as things:
        await (await named(things, "doomed")).seal()


async def named(things: Shelf, name: str) -> OpenCollection:
    (found,) = [one for one in await things.collections.list() if one.name == name]
    return await things.collections.open(None, found.id)


async def child(state: Path, mode: str) -> None:
    # One thread of a kind, so that a tracer of this thread sees all of it.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1, "blocking"))
    await asyncio.to_thread(os.getpid)
    try:
        async with shelf(state, SETTINGS) as things:
            kept, doomed = await named(things, "kept"), await named(things, "doomed")
            say("ready", os.getpid(), {thread.name: thread.native_id for thread in threading.enumerate()})
            os.read(0, 1)
            await attempt("seal", "first", kept.seal())
            await attempt("seal", "second", kept.seal())
            await attempt("remove", "doomed", things.collections.remove(ACTOR, None, doomed.collection.id))
        say("closed")
    except ApplianceError as error:
        say("failed", repr(error))


async def attempt(act: str, label: str, work: Coroutine[Any, Any, None]) -> None:
    say("begin", act, label)
    await work
    say("done", act, label)


if __name__ == "__main__":
    main(child)
