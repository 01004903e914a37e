"""Processes that make, restore and remove snapshots, and say what was done.

    python -m tests.faults.snapshots_writer

It is driven and speaks as `store_writer`. The one mode, "all", copies a collection, restores an older
snapshot in its place and into a new collection, and removes the copy.
"""

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from appliance.errors import ApplianceError
from tests.faults.collections_writer import DIM, record
from tests.faults.store_writer import main, say
from tests.searching import ACTOR, shelf

T = TypeVar("T")

OLD = [f"old-{number}" for number in range(300)]
"""What the snapshot has: more than one batch."""
NEW = [f"new-{number}" for number in range(280)]
"""What the collection has when a child begins."""


async def prepare(state: Path) -> None:
    async with shelf(state) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, [record(external) for external in OLD])
        await things.collections.snapshots.add(ACTOR, None, opened.collection.id)
        await opened.delete(ACTOR, OLD)
        await opened.insert(ACTOR, [record(external) for external in NEW])


async def child(state: Path, mode: str) -> None:
    # One thread of a kind, so that a tracer of this thread sees all of it.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1, "blocking"))
    await asyncio.to_thread(os.getpid)
    try:
        async with shelf(state) as things:
            (collection,) = await things.collections.list()
            snapshots, identifier = things.collections.snapshots, collection.id
            (old,) = await snapshots.list(None, identifier)
            say("ready", os.getpid(), {thread.name: thread.native_id for thread in threading.enumerate()})
            os.read(0, 1)
            new = await attempt("add", "new", snapshots.add(ACTOR, None, identifier))
            await attempt("restore", "old", snapshots.restore(ACTOR, None, identifier, old.id))
            into = snapshots.restore_into(ACTOR, None, identifier, old.id, "copy")
            await attempt("into", "copy", into)
            await attempt("remove", "new", snapshots.remove(ACTOR, None, identifier, new.id))
        say("closed")
    except ApplianceError as error:
        say("failed", repr(error))


async def attempt(act: str, label: str, work: Coroutine[Any, Any, T]) -> T:
    say("begin", act, label)
    done = await work
    say("done", act, label)
    return done


if __name__ == "__main__":
    main(child)
