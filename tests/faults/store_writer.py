"""Processes of ledger, vault and store that do a fixed row of things and say what was acknowledged.

    python -m tests.faults.store_writer

It loads the appliance once and then forks a child for each line of its stdin, `FOLDER MODE` as a JSON list,
so that a start costs nothing. A child opens the store, says ["ready", pid, threads] where threads gives each
thread's number by its name, waits for one more line, and does its work; the parent then says ["ended", code].
What a child says is a JSON list a line, written at once:

    ["begin", act, label]              before it asks for it
    ["done", act, label]               acknowledged
    ["refused", act, label, error]     VolumeFull, StorageFailed or VolumeOffline, by name
    ["read", label]                    after a refusal: what rested before is still given out
    ["offline", label]                 after a refusal: nothing of the volume is given out
    ["broke", act, label, error]       anything else, which is always wrong
    ["closed"] or ["failed", error]    the end

Modes: "all" of it; "new" begins with an empty folder and puts what the others find there; "premature" is the
control, which says "done" before it asks.
"""

import asyncio
import ctypes
import gc
import json
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

from appliance.datasets import files
from appliance.datasets.records import Dataset, Image, ReadPermit
from appliance.errors import ApplianceError, StorageFailed, VolumeFull, VolumeOffline
from tests.storing import ACTOR, Stand, stand

NEW_ROOT = bytes(range(32, 64))
OLD = [f"old-{number}" for number in range(4)]
DOOMED = [f"doomed-{number}" for number in range(3)]
GROUP = [f"group-{number}" for number in range(6)]
PR_SET_PDEATHSIG = 1


def content(label: str) -> bytes:
    """The image of a label: of less than a chunk, or of several, up to another border with each label.

    A large one is written piece by piece, into room that was made for it before.
    """
    times = 43_000 if label.startswith("large") else 20 + sum(label.encode()) % 7 * 300
    return label.encode().ljust(25, b".") * times


def label_of(image: bytes) -> str:
    """The label of an image that is whole."""
    label = image[:25].rstrip(b".").decode()
    assert image == content(label)
    return label


async def read(one: Stand, image: Image) -> bytes:
    opened = await one.store.open(ReadPermit(image.customer, image.dataset, image.id, "token"))
    try:
        return b"".join([piece async for piece in opened.read(0, opened.length)])
    finally:
        opened.close()


async def prepare(state: Path, tell: Callable[..., None] = lambda *words: None) -> None:
    """What every child finds: images in the default dataset, and a dataset that will be erased."""
    async with stand(state) as one:
        customer = await one.customer()
        for dataset, labels in (
            (await one.datasets.default(customer), OLD),
            (await one.datasets.add(ACTOR, customer, "doomed"), DOOMED),
        ):
            for label in labels:
                await one.store.put(ACTOR, dataset, content(label), b"{}")
                tell("done", "put", label)


def say(*words: object) -> None:
    os.write(1, json.dumps(words).encode() + b"\n")


class Work:
    """The acts of one child, one after the other; what the store refuses does not end it."""

    def __init__(self, one: Stand, default: Dataset, *, premature: bool) -> None:
        self._one = one
        self._default = default
        self._premature = premature
        self._kept: Image | None = None

    async def attempt(self, act: str, label: str, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """What `work` gives, None when it was refused."""
        say("begin", act, label)
        if self._premature:
            say("done", act, label)
        try:
            result = await work()
        except (VolumeFull, StorageFailed) as error:
            say("refused", act, label, type(error).__name__)
            await self._read_on(label)
            return None
        except BaseException as error:  # said, so that the test fails with it
            say("broke", act, label, repr(error))
            raise
        if not self._premature:
            say("done", act, label)
        return result

    async def put(self, dataset: Dataset, label: str) -> None:
        meta_data = json.dumps({"label": label}).encode()
        await self.attempt("put", label, lambda: self._put(dataset, label, meta_data))

    async def _put(self, dataset: Dataset, label: str, meta_data: bytes) -> Image:
        return await self._one.store.put(ACTOR, dataset, content(label), meta_data)

    async def _put_together(self) -> None:
        """All of a group wait for each other, so that one sync is for all of them."""
        filed = self._one.files
        gate = threading.Event()
        held = asyncio.ensure_future(filed._changing.run(gate.wait))
        puts = [asyncio.ensure_future(self.put(self._default, label)) for label in GROUP]
        while len(filed._sealed) + sum(put.done() for put in puts) < len(puts):
            await asyncio.wait(puts, timeout=0.001)
        gate.set()
        await asyncio.gather(held, *puts)

    async def _finish(self) -> None:
        """What an erasure leaves for later is done, or was said to be left for the next start."""
        await asyncio.gather(*self._one.datasets._erasing)

    async def _read_on(self, label: str) -> None:
        assert self._kept is not None
        try:
            say("read", label_of(await read(self._one, self._kept)))
        except VolumeOffline:
            say("offline", label)

    async def change_keys(self, act: str, *arguments: object) -> None:
        change = getattr(self._one.keyring, act)
        await self.attempt("keys", act, lambda: asyncio.to_thread(change, *arguments))

    async def warm_up(self) -> None:
        """Every thread has been used when a tracer asks for their numbers."""
        image = await self._put(self._default, "warm", b"{}")
        await self._one.store.delete(ACTOR, image)

    async def everything(self) -> None:
        one, default = self._one, self._default
        doomed = next(dataset for dataset in await one.datasets.list(default.customer) if dataset.name)
        first, self._kept, *_ = await one.store.list(default)
        await self.put(default, "solo-0")
        await self.put(default, "solo-1")
        fresh = await self.attempt("add", "fresh", lambda: one.datasets.add(ACTOR, default.customer, "fresh"))
        if fresh is not None:
            await self.put(fresh, "fresh-0")
        await self.attempt("delete", OLD[0], lambda: one.store.delete(ACTOR, first))
        await self.change_keys("rotate_container", UUID(default.customer), UUID(default.id))
        await self.put(default, "rotated-0")
        await self.change_keys("rotate_customer", UUID(default.customer))
        say("begin", "group", "group")
        await self._put_together()
        say("done", "group", "group")
        await self.attempt("erase", "doomed", lambda: one.datasets.erase(ACTOR, doomed))
        await self.attempt("finish", "doomed", self._finish)
        await self.change_keys("rotate_root", NEW_ROOT)
        await self.put(default, "large-0")


async def child(state: Path, mode: str) -> None:
    # One thread of a kind, so that a tracer of this thread sees all of it.
    files._SEALING_THREADS = 1
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1, "blocking"))
    try:
        if mode == "new":
            await prepare(state, say)
        async with stand(state) as one:
            default = await one.datasets.default(await one.customer())
            work = Work(one, default, premature=mode == "premature")
            await work.warm_up()
            threads = {thread.name: thread.native_id for thread in threading.enumerate()}
            say("ready", os.getpid(), threads)
            os.read(0, 1)
            await work.everything()
        say("closed")
    except ApplianceError as error:
        say("failed", repr(error))


def main(child: Callable[[Path, str], Coroutine[Any, Any, None]]) -> None:
    """Fork `child(folder, mode)` for each line of stdin."""
    gc.freeze()
    _die_with_the_parent()
    for line in iter(_next_line, b""):
        if not line.strip():
            continue  # of a child that died before it waited for it
        state, mode = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _die_with_the_parent()
            asyncio.run(child(Path(state), mode))
            os._exit(0)
        say("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _die_with_the_parent() -> None:
    """A test that ran out of time ends its tracer, and what was traced would run on."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _next_line() -> bytes:
    """Byte by byte: what follows the line belongs to the child."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return b""
        line += byte
    return line


if __name__ == "__main__":
    main(child)
