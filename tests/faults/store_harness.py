"""Runs children of `store_writer` under faults, and checks what a restart finds against what they said."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from appliance.datasets.records import Dataset
from appliance.errors import AlreadyStored, KeyringInvalid, NotFound
from appliance.vault import Keyring
from appliance.volume.anchor import PROBE, SENTINEL
from tests.faults.store_writer import DOOMED, GROUP, NEW_ROOT, OLD, content, label_of, prepare, read
from tests.storing import ACTOR, ROOT, Stand, stand

ROOT_FOLDER = Path(__file__).parents[2]
SYNCS = ("fsync", "fdatasync", "syncfs")
WRITES = ("write", "writev", "pwrite64", "fallocate", "ftruncate")
NAMES = ("linkat", "rename", "renameat", "mkdirat", "mkdir", "unlinkat", "unlink", "rmdir")
CALLS = ("openat", "close", "pread64", *WRITES, *SYNCS, *NAMES)
# The threads that change anything; the others read, or run the event loop.
THREADS = ("ledger-writer", "sealing_0", "sealed-files_0", "blocking_0")
_CALL = re.compile(r"^(?:\d+ +)?(\w+)\(")


@dataclass(frozen=True)
class Point:
    """The `when`-th call of `call` in one thread."""

    thread: str
    call: str
    when: int

    def __str__(self) -> str:
        return f"{self.thread}-{self.call}-{self.when}"


@dataclass
class Heard:
    """What a child said."""

    begun: set[tuple[str, str]] = field(default_factory=set)
    done: set[tuple[str, str]] = field(default_factory=set)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    order: list[tuple[str, str, str]] = field(default_factory=list)
    reads: int = 0
    offline: int = 0
    end: str = "killed"
    code: int = 0
    met: bool = False
    trace: list[str] = field(default_factory=list)

    def take(self, words: list[Any]) -> None:
        match words:
            case ["begin", act, label]:
                self.begun.add((act, label))
                self.order.append(("begin", act, label))
            case ["done", act, label]:
                self.done.add((act, label))
                self.order.append(("done", act, label))
            case ["refused", act, label, error]:
                self.refused[act, label] = error
                self.order.append(("refused", act, label))
            case ["read", _]:
                self.reads += 1
            case ["offline", _]:
                self.offline += 1
            case ["closed" | "failed" as end, *_]:
                self.end = end
            case _:
                raise AssertionError(words)

    def said(self, word: str, act: str) -> set[str]:
        """The labels of an act that were "begun", "done" or "refused"."""
        return {label for kind, label in getattr(self, word) if kind == act}


class Writers:
    """The process that children are forked from, and a prepared state that each gets a copy of.

    `module` is what runs, `prepare` makes the state, and in `threads` lie the points of a sweep.
    """

    def __init__(
        self,
        folder: Path,
        module: str = "tests.faults.store_writer",
        prepare: Callable[[Path], Coroutine[Any, Any, None]] = prepare,
        threads: tuple[str, ...] = THREADS,
    ) -> None:
        self._folder = folder
        self._module = module
        self._prepare = prepare
        self._threads = threads
        self._copies = 0

    def __enter__(self) -> Self:
        self._prepared = self._folder / "prepared"
        self._prepared.mkdir()
        asyncio.run(self._prepare(self._prepared))
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            cwd=ROOT_FOLDER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()

    def copy(self) -> Path:
        """A state folder of one's own; the one before it goes."""
        shutil.rmtree(self._folder / f"state-{self._copies}", ignore_errors=True)
        self._copies += 1
        state = self._folder / f"state-{self._copies}"
        shutil.copytree(self._prepared, state)
        return state

    def run(self, state: Path, thread: str, *options: str, mode: str = "all") -> Heard:
        """One child, of which one thread is traced with these options of strace once it is ready."""
        self._tell(json.dumps([str(state), mode]).encode() + b"\n")
        word, _, threads = self._line()
        assert word == "ready"
        heard = Heard()
        log = self._folder / "trace"
        # Without -f and with the number of a thread strace leaves the other threads alone.
        command = ["strace", "-y", "-o", str(log), "-e", f"trace={','.join(CALLS)}", *options]
        with subprocess.Popen(
            [*command, "-p", str(threads[thread])], stderr=subprocess.PIPE, text=True
        ) as tracer:
            assert tracer.stderr is not None
            attached = tracer.stderr.readline()
            assert "attached" in attached, attached
            self._tell(b"\n")
            while (words := self._line())[0] != "ended":
                heard.take(words)
            heard.code = words[1]
            tracer.stderr.read()
        heard.trace = log.read_text(errors="replace").splitlines()
        heard.met = any("INJECTED" in line for line in heard.trace) or heard.code == -9
        return heard

    def points(self, calls: tuple[str, ...], mode: str = "all") -> list[Point]:
        """Every call of these in every thread, as a child without a fault makes them."""
        found = []
        for thread in self._threads:
            heard = self.run(self.copy(), thread, mode=mode)
            assert heard.end == "closed"
            assert not heard.refused
            made = Counter(match[1] for line in heard.trace if (match := _CALL.match(line)))
            found += [Point(thread, call, n) for call in calls for n in range(1, made[call] + 1)]
        return found

    def killed_at(self, state: Path, point: Point, mode: str = "all") -> Heard:
        """A child that is killed as it enters the call."""
        inject = f"inject={point.call}:signal=SIGKILL:when={point.when}"
        return self.run(state, point.thread, "-e", inject, mode=mode)

    def failing_at(self, state: Path, point: Point, error: str, *, ever_after: bool = False) -> Heard:
        """A child for which the call fails, once or from then on."""
        when = f"{point.when}{'+' if ever_after else ''}"
        return self.run(state, point.thread, "-e", f"inject={point.call}:error={error}:when={when}")

    def _tell(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def _line(self) -> list[Any]:
        assert self._process.stdout is not None
        line: list[Any] = json.loads(self._process.stdout.readline())
        return line


async def check(state: Path, heard: Heard, absent: set[str]) -> None:
    """A restart finds what was acknowledged whole, of the rest all or nothing, and nothing of `absent`."""
    async with stand(state) as one:
        await asyncio.gather(*one.datasets._erasing)
        datasets = await one.datasets.list(await one.customer())
        present = await labels(one, datasets)
        _check_images(heard, present, absent)
        _check_erased(heard, {dataset.name: dataset for dataset in datasets}, present)
        check_files(one, datasets, present)
        await _check_keys(one, heard, datasets)
        assert one.upkeep.findings == []
        await _check_use(one, datasets[0], present)
    async with stand(state) as again:  # what it was used for is there, and nothing is left to be done
        assert "afterwards" in await labels(again, await again.datasets.list(await again.customer()))
        assert again.upkeep.findings == []


async def labels(one: Stand, datasets: list[Dataset]) -> dict[str, str]:
    """The ids of all images by their labels, every byte read."""
    found: dict[str, str] = {}
    for dataset in datasets:
        images = await one.store.list(dataset)
        assert len(images) == dataset.images
        assert sum(image.size for image in images) == dataset.bytes
        for image in images:
            assert not image.damaged
            label = label_of(await read(one, image))
            assert label not in found
            found[label] = image.id
    return found


def _check_images(heard: Heard, present: dict[str, str], absent: set[str]) -> None:
    kept = set(OLD) - heard.said("begun", "delete")
    assert heard.said("done", "put") | kept <= set(present)
    assert not heard.said("done", "delete") & set(present)
    assert not absent & set(present)
    # Of what nobody was told about there is all or nothing, and nothing that was not asked for.
    assert set(present) <= heard.said("begun", "put") | {*OLD, *DOOMED}


def _check_erased(heard: Heard, named: dict[str | None, Dataset], present: dict[str, str]) -> None:
    if "doomed" in named:
        assert ("erase", "doomed") not in heard.done
        assert set(DOOMED) <= set(present)
    else:
        assert ("erase", "doomed") in heard.begun
        assert not set(DOOMED) & set(present)
    if ("add", "fresh") in heard.done:
        assert "fresh" in named


def check_files(one: Stand, datasets: list[Dataset], present: dict[str, str]) -> None:
    """As many files as rows, in no folders but the datasets' own, and no other file anywhere."""
    images = one.state / "images"
    files = {path.name for path in images.glob("*/*")}
    assert files == {uuid.UUID(image).hex for image in present.values()}
    assert {path.name for path in images.iterdir() if path.is_dir()} <= {
        uuid.UUID(dataset.id).hex for dataset in datasets
    }
    assert {path.name for path in one.state.iterdir()} <= {
        *("images", "keyring", ".keyring.ballast", "ledger.db", "ledger.db-wal", "ledger.db-shm")
    }
    others = {path.name for path in images.iterdir() if not path.is_dir()}
    assert {SENTINEL, PROBE} <= others <= {SENTINEL, PROBE, "witness"}


async def _check_keys(one: Stand, heard: Heard, datasets: list[Dataset]) -> None:
    """Each dataset has its key, and one that was erased is in no file that opens as a keyring."""
    if ("keys", "rotate_root") in heard.done:
        Keyring.open(one.state / "keyring", bytes(NEW_ROOT)).wipe()
    living = {uuid.UUID(dataset.id) for dataset in datasets}
    gone = await one.ledger.read(
        lambda connection: {
            uuid.UUID(row[0]) for row in connection.execute("SELECT id FROM tombstones WHERE id = dataset")
        }
    )
    assert living <= {container for _, container, _ in one.keyring.containers()}
    for path in (path for path in one.state.rglob("*") if path.is_file()):
        for root in (ROOT, NEW_ROOT):
            try:
                keyring = Keyring.open(path, bytes(root))
            except (KeyringInvalid, NotFound):
                continue
            assert not gone & {container for _, container, _ in keyring.containers()}
            keyring.wipe()


async def _check_use(one: Stand, dataset: Dataset, present: dict[str, str]) -> None:
    """It is a store like any other: takes what is new, knows what it has, deletes."""
    for label in ("afterwards", OLD[1]):
        try:
            await one.store.put(ACTOR, dataset, content(label))
        except AlreadyStored:
            assert label in present
        else:
            assert label not in present
    image = await one.store.get(dataset.customer, present[OLD[2]])
    await one.store.delete(ACTOR, image)
    assert not (one.state / "images" / image.name.container.hex / image.name.object.hex).exists()


def certainly_absent(heard: Heard, point: Point) -> set[str]:
    """What was asked for and cannot have been stored: its file was being written when the fault came.

    A fault of the ledger's own thread may come just after its row was committed, and of what is put at the
    same time nobody was told about either.
    """
    if point.thread == "ledger-writer":
        return set()
    return heard.said("refused", "put") | (heard.said("begun", "put") - heard.said("done", "put") - {*GROUP})
