"""Processes of ledger, vault and search that do a fixed row of things and say what was acknowledged.

    python -m tests.faults.searches_writer

It is driven and speaks as `store_writer`. Modes: "all" inserts, updates, upserts, deletes, and adds, renames,
empties and removes collections; "seal" opens a state from before collections had keys; "premature" is the
control, which says "done" before it asks.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

from appliance.errors import ApplianceError
from appliance.ledger import Ledger
from appliance.metrics import Registry
from appliance.search.clear import seal_clear_rows
from appliance.search.collections import Metadata, NewRecord, OpenCollection
from appliance.vault import open_keyring
from tests.faults.collections_writer import DIM, vector
from tests.faults.store_writer import main, say
from tests.searching import ACTOR, BACKBONE, ROOT, Shelf, Vectors, shelf

OLD = [f"old-{number}" for number in range(12)]
DOOMED = [f"doomed-{number}" for number in range(5)]
POURED = [f"poured-{number}" for number in range(5)]
NAMED = ["named-0"]
BATCH = [f"batch-{number}" for number in range(10)]
UPSERTED = [OLD[8], "upserted-0", OLD[9]]
INSERTED, UPDATED, REPLACED = 1, 2, 3
"""The version in a record's metadata. An update leaves the vector, an upsert brings another one."""


def direction(label: str, version: int) -> Vectors:
    return vector(label, int(version == REPLACED))


def record(label: str, version: int = INSERTED) -> NewRecord:
    return NewRecord(label, direction(label, version), {"me": label, "version": version})


async def prepare(state: Path) -> None:
    """What every child finds: a collection in several frames, and three that something will become of."""
    async with shelf(state) as things:
        kept = await things.collection(DIM, "kept")
        for label in OLD:
            await kept.insert(ACTOR, [record(label)])
        for name, labels in (("doomed", DOOMED), ("full", POURED), ("before", NAMED)):
            opened = await things.collection(DIM, name)
            await opened.insert(ACTOR, [record(label) for label in labels])


class Work:
    """The acts of one child, one after the other."""

    def __init__(self, things: Shelf, *, premature: bool) -> None:
        self._things = things
        self._premature = premature

    async def attempt(self, act: str, labels: list[str], work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        for word in ("begin", "done") if self._premature else ("begin",):
            for label in labels:
                say(word, act, label)
        try:
            result = await work()
        except ApplianceError as error:
            say("refused", act, labels[0], type(error).__name__)
            return None
        if not self._premature:
            for label in labels:
                say("done", act, label)
        return result

    async def insert(self, opened: OpenCollection, labels: list[str]) -> None:
        new = [record(label) for label in labels]
        await self.attempt("insert", labels, lambda: opened.insert(ACTOR, new))

    async def upsert(self, opened: OpenCollection, labels: list[str]) -> None:
        new = [record(label, REPLACED) for label in labels]
        await self.attempt("upsert", labels, lambda: opened.upsert(ACTOR, new))

    async def delete(self, opened: OpenCollection, labels: list[str]) -> None:
        await self.attempt("delete", labels, lambda: opened.delete(ACTOR, labels))

    async def everything(self, kept: OpenCollection) -> None:
        collections, customer = self._things.collections, self._things.customer
        named = {one.name: one.id for one in await collections.list()}
        await self.insert(kept, ["solo-0"])
        await self.insert(kept, BATCH)
        change: list[tuple[str, Metadata]] = [(OLD[0], {"version": UPDATED})]
        await self.attempt("update", OLD[:1], lambda: kept.update(ACTOR, change))
        await self.upsert(kept, UPSERTED)
        await self.delete(kept, [OLD[1]])
        await self.delete(kept, [OLD[2], "batch-3"])
        added = await self.attempt(
            "add", ["fresh"], lambda: collections.add(ACTOR, customer, "fresh", BACKBONE, DIM)
        )
        if added is not None:
            fresh = await collections.open(customer, added.id)
            await self.attempt("fill", ["fresh"], lambda: fresh.insert(ACTOR, [record("fresh-0")]))
        await asyncio.to_thread(
            self._things.keyring.rotate_container, UUID(customer), UUID(kept.collection.id)
        )
        await self.insert(kept, ["rotated-0"])
        await self.attempt(
            "rename", ["after"], lambda: collections.rename(ACTOR, None, named["before"], "after")
        )
        await self.attempt("empty", ["full"], lambda: collections.empty(ACTOR, None, named["full"]))
        await self.attempt("remove", ["doomed"], lambda: collections.remove(ACTOR, None, named["doomed"]))
        await asyncio.gather(
            *(self.insert(kept, [f"group-{number}"]) for number in range(4)),
            self.delete(kept, [OLD[3]]),
            self.delete(kept, [OLD[4], OLD[5]]),
        )


async def child(state: Path, mode: str) -> None:
    # One thread of a kind, so that a tracer of this thread sees all of it.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1, "blocking"))
    await asyncio.to_thread(os.getpid)
    try:
        if mode == "seal":
            await seal(state)
        else:
            async with shelf(state) as things:
                (collection, *_) = await things.collections.list()
                kept = await things.collections.open(None, collection.id)
                ready()
                await Work(things, premature=mode == "premature").everything(kept)
        say("closed")
    except ApplianceError as error:
        say("failed", repr(error))


async def seal(state: Path) -> None:
    async with Ledger(state, Registry()) as ledger:
        keyring = await open_keyring(state, ledger, bytearray(ROOT))
        ready()
        await seal_clear_rows(ledger, keyring)
        keyring.wipe()


def ready() -> None:
    say("ready", os.getpid(), {thread.name: thread.native_id for thread in threading.enumerate()})
    os.read(0, 1)


if __name__ == "__main__":
    main(child)
