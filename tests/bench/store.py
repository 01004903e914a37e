"""The sealed store: what putting and getting cost beside plain files and beside other encrypted stores.

One run, the same files: 10 of 100 MB and 1,000 of 100 KB, random bytes, on the disk that the tree is on. CPU
is that of this process, which plays the daemon, with its loop and all its threads; of the others that of
their processes. Puts are 16 at a time, gets one after the other.
An image is proven and made smaller by a decoder first: a stage of its own, printed in ms an image.
"""

import asyncio
import itertools
import os
import shutil
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import uvloop
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from appliance.config import Recognition
from appliance.metrics import Registry
from appliance.recognition.decoders import Decoders
from appliance.vault import Container, Name
from tests import images
from tests.bench import vaults
from tests.bench.report import Report
from tests.storing import Stand, stand

FOLDER = Path(__file__).parents[2] / ".cache" / "bench-store"
LARGE, LARGE_COUNT = 100 * 10**6, 10
SMALL, SMALL_COUNT = 100 * 10**3, 1_000
GIGABYTE = 10**9
AT_ONCE = 16
ROUNDS, SMALL_ROUNDS, OTHERS_ROUNDS = 5, 9, 3
READ = 256 << 10  # as a download


@dataclass(frozen=True)
class Spent:
    """CPU seconds and seconds a GB."""

    cpu: float
    wall: float


def run(report: Report) -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    try:
        uvloop.run(_measure(report))  # as the daemon does
        _beside_others(report)
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)


async def _measure(report: Report) -> None:
    state = FOLDER / "state"
    state.mkdir()
    async with stand(state) as one:
        dataset = await one.datasets.default(await one.customer())
        keys = one.datasets.keys(dataset)
        shelf = _Shelf(one, keys, UUID(dataset.customer), UUID(dataset.id))
        large = [os.urandom(LARGE) for _ in range(2)]
        small = [os.urandom(SMALL) for _ in range(50)]
        for size, count, content, rounds, put_bound, get_bound in (
            ("10 x 100 MB", LARGE_COUNT, large, ROUNDS, 2.5, 1.0),
            ("1,000 x 100 KB", SMALL_COUNT, small, SMALL_ROUNDS, 7.0, 2.0),
        ):
            puts, gets = list[Spent](), list[Spent]()
            kept: list[Name] = []
            for _ in range(rounds):
                names = [shelf.name() for _ in range(count)]
                puts.append(await _spent(partial(shelf.put, names, content), count * len(content[0])))
                gets.append(await _spent(partial(shelf.get, names), count * len(content[0])))
                kept += names
                # Not each time: ext4 looks for inodes at length while many have been given back just now.
                if len(kept) * len(content[0]) >= GIGABYTE:
                    await one.files.remove(kept)
                    kept.clear()
            put, get = _median(puts), _median(gets)
            report.figure(
                f"put {size}", put.cpu, "CPU s/GB", at_most=put_bound, note=f"{1 / put.wall:.2f} GB/s"
            )
            report.figure(
                f"get {size}", get.cpu, "CPU s/GB", at_most=get_bound, note=f"{1 / get.wall:.2f} GB/s"
            )
        await _against_raw(report, shelf, large[0])
        await _one_byte(report, shelf)
        await _held_loop(report, shelf, os.urandom(LARGE // 5))
    await _stages(report)


class _Shelf:
    """Files of one container, put and got as the store does it."""

    def __init__(self, one: Stand, keys: Container, customer: UUID, container: UUID) -> None:
        self._files = one.files
        self._keys = keys
        self._customer, self._container = customer, container

    def name(self) -> Name:
        return Name(self._customer, self._container, uuid4())

    async def put(self, names: list[Name], content: list[bytes]) -> None:
        data = itertools.cycle(content)
        waiting = [(name, next(data)) for name in names]

        async def some() -> None:
            while waiting:
                name, part = waiting.pop()
                await self._files.write(name, self._keys, (part,))

        await asyncio.gather(*(some() for _ in range(AT_ONCE)))

    async def get(self, names: list[Name]) -> None:
        for name in names:
            file = await self._files.load(name, self._keys, READ)
            try:
                for start in range(0, file.length, READ):
                    await file.fetch(start, min(start + READ, file.length))
            finally:
                file.close()

    def one_byte(self, name: Name, place: int) -> None:
        file = self._files.open(name, self._keys)
        file.read(place, place + 1)
        file.close()


async def _spent(work: Callable[[], Awaitable[None]], size: int) -> Spent:
    cpu, wall = time.process_time(), time.perf_counter()
    await work()
    gigabytes = size / GIGABYTE
    return Spent((time.process_time() - cpu) / gigabytes, (time.perf_counter() - wall) / gigabytes)


async def _against_raw(report: Report, shelf: _Shelf, data: bytes) -> None:
    """100 MB at a time: sealed and stored, against AES-256-GCM alone and one synced write of the result."""

    async def raw() -> None:
        sealed = await asyncio.to_thread(AESGCM(bytes(32)).encrypt, bytes(12), data, None)
        await asyncio.to_thread(_write_synced, FOLDER / "raw", sealed)

    ratios = []
    for _ in range(ROUNDS):
        plain = await _spent(raw, len(data))
        sealed = await _spent(lambda: shelf.put([shelf.name()], [data]), len(data))
        ratios.append(plain.wall / sealed.wall)
    report.figure(
        "put 100 MB / raw AES-256-GCM and a synced write", statistics.median(ratios), "x", at_least=0.6
    )


async def _one_byte(report: Report, shelf: _Shelf) -> None:
    name, size = shelf.name(), GIGABYTE
    await shelf.put([name], [bytes(size)])
    times = []
    for turn in range(200):
        began = time.perf_counter()
        shelf.one_byte(name, turn * (size // 200))
        times.append((time.perf_counter() - began) * 1000)
    report.figure(
        "1 byte of a 1 GB object", statistics.median(times), "ms", at_most=1.0, note="opened and read"
    )


async def _held_loop(report: Report, shelf: _Shelf, data: bytes) -> None:
    """How long the loop does nothing else while 16 puts of 20 MB run: its CPU time at one go."""
    longest: list[float] = []

    async def watch() -> None:
        while True:
            began = time.thread_time()
            await asyncio.sleep(0)
            longest.append((time.thread_time() - began) * 1000)

    async def puts() -> None:
        await asyncio.gather(*(shelf.put([shelf.name()], [data]) for _ in range(16)))

    measured: tuple[tuple[str, Callable[[], Awaitable[None]]], ...] = (
        ("idle", partial(asyncio.sleep, 0.5)),
        ("16 puts at once", puts),
    )
    for name, work in measured:
        longest.clear()
        watching = asyncio.ensure_future(watch())
        await work()
        watching.cancel()
        held = sorted(longest)[int(len(longest) * 0.999)]
        report.figure(f"loop held, p99.9, {name}", held, "ms", at_most=None if name == "idle" else 20.0)


async def _stages(report: Report) -> None:
    photo = images.encoded(images.noise(1000), "JPEG", quality=85)
    async with Decoders(Recognition(decoders=1), Registry()) as decoders:
        await decoders.ingest(photo, keep_metadata=False)
        began = time.perf_counter()
        for _ in range(20):
            await decoders.ingest(photo, keep_metadata=False)
        milliseconds = (time.perf_counter() - began) * 1000 / 20
    note = f"1 megapixel of noise, {len(photo) >> 10} KiB"
    report.figure("proof, metadata and thumbnail of an image", milliseconds, "ms", note=note)


def _beside_others(report: Report) -> None:
    """The same two trees in what else keeps them encrypted: each costs more than the store."""
    own = {figure.name: figure.value for figure in report.figures}
    for name, size, count in (("10 x 100 MB", LARGE, LARGE_COUNT), ("1,000 x 100 KB", SMALL, SMALL_COUNT)):
        tree = FOLDER / "tree"
        tree.mkdir()
        for number in range(count):
            (tree / str(number)).write_bytes(os.urandom(size))
        for other in vaults.installed():
            rounds = [other.measure(FOLDER, tree, size * count) for _ in range(OTHERS_ROUNDS)]
            costs = {"put": [spent.put for spent in rounds], "get": [spent.get for spent in rounds]}
            for act, spent in costs.items():
                beside = statistics.median(spent)
                ratio = own[f"{act} {name}"] / beside
                note = f"{other.name}: {beside:.2f} CPU s/GB"
                report.figure(f"{act} {name} / {other.name}", ratio, "x", at_most=1.0, note=note)
        shutil.rmtree(tree)
    for missing in vaults.missing():
        report.figure(f"{missing} is not installed", 0, "", note=f"apt-get install {missing}")


def _median(rounds: list[Spent]) -> Spent:
    return Spent(statistics.median(one.cpu for one in rounds), statistics.median(one.wall for one in rounds))


def _write_synced(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for _ in _written(fd, data):
            pass
        os.fdatasync(fd)
    finally:
        os.close(fd)


def _written(fd: int, data: bytes) -> Iterator[int]:
    view = memoryview(data)
    while view:
        size = os.write(fd, view)
        yield size
        view = view[size:]
