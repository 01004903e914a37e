"""Two hundred downloads at once of images of 5 MB by their links: what the appliance holds for them.

The real daemon, and a client in a process of its own. Fast readers take what comes. Slow ones all stop after
the head of their answer, so that every download is under way at the same time and nothing moves, and then
read on little by little. Memory is what all processes of the appliance hold, above what they held before.
"""

import asyncio
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import uvloop

from tests import images
from tests.bench import stand
from tests.bench.report import Report
from tests.running import RunningAppliance

AT_ONCE, IMAGES = 200, 8
SIDE = 1291  # pixels of noise, which as a PNG are 5 MB
MEBIBYTE = 1 << 20
Readers = Literal["fast", "slow"]
_LOOK_SECONDS = 0.005
_PIECE, _SLOW_SECONDS = 256 << 10, 0.2  # of each slow reader: about 1.3 MB/s
_CLIENT_BUFFER = 64 << 10


def run(report: Report) -> None:
    folder = stand.CACHE / "bench-downloads"
    built = stand.build(folder)
    try:
        built.state.ask("agreement", "sign", "demo", "training-data")
        with RunningAppliance(built.state, built.state.port) as appliance:
            links = [_uploaded(appliance, seed) for seed in range(IMAGES)]
        for readers in ("fast", "slow"):
            with RunningAppliance(built.state, built.state.port) as appliance:
                _measure(report, appliance, links, readers)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _uploaded(appliance: RunningAppliance, seed: int) -> str:
    """The link to a new image."""
    image = images.encoded(images.noise(SIDE, seed), "PNG", compress_level=0)
    headers = appliance.headers(content_type="image/png")
    answer = appliance.call("POST", "/recognition/v2/training-image", image, headers=headers)
    assert answer.status == 201, answer.body[:300]
    return "/" + str(answer.document["img_path"]).split("/", 3)[3]


def _measure(report: Report, appliance: RunningAppliance, links: list[str], readers: Readers) -> None:
    for link in links:
        assert appliance.call("GET", link, headers={}).status == 200  # what is loaded once is loaded
    memory = _Memory([process.pid for process in appliance.processes()])
    before = memory.now()
    buffered = _socket_bytes()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        done = pool.submit(_download, appliance.port, list(islice(cycle(links), AT_ONCE)), readers)
        in_sockets = max(memory.watch(done))
        seconds = done.result()
    report.figure(
        f"{AT_ONCE} downloads at once, {readers} readers",
        (memory.peak() - before) / MEBIBYTE,
        "MiB",
        at_most=100e6 / MEBIBYTE,
        note=f"above {before / MEBIBYTE:.0f} MiB; {seconds:.1f} s;"
        f" the kernel's sockets {(in_sockets - buffered) / MEBIBYTE:.0f} MiB",
    )


class _Memory:
    """Resident memory of processes: now, and at its highest since this was made."""

    def __init__(self, processes: list[int]) -> None:
        self._processes = processes
        self._marks = {pid: _status(pid, "VmHWM") for pid in processes}
        self._seen = dict.fromkeys(processes, 0)

    def now(self) -> int:
        return sum(_status(pid, "VmRSS") for pid in self._processes)

    def watch(self, work: "Future[float]") -> Iterator[int]:
        """Looks until the work is done; what the sockets of this machine hold meanwhile."""
        while not work.done():
            for pid in self._processes:
                self._seen[pid] = max(self._seen[pid], _status(pid, "VmRSS"))
            yield _socket_bytes()
            time.sleep(_LOOK_SECONDS)

    def peak(self) -> int:
        """The sum of each one's peak: the kernel's own mark where it rose, what was seen where it did not."""
        marks = {pid: _status(pid, "VmHWM") for pid in self._processes}
        return sum(marks[pid] if marks[pid] > self._marks[pid] else self._seen[pid] for pid in marks)


def _status(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


def _socket_bytes() -> int:
    """What the kernel holds for all TCP sockets."""
    lines = Path("/proc/net/sockstat").read_text().splitlines()
    pages = next(line for line in lines if line.startswith("TCP:")).split()[-1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _download(port: int, links: list[str], readers: Readers) -> float:
    """Fetch all links at once, each whole; how many seconds it took. In the client's process."""
    return uvloop.run(_all(port, links, readers))


async def _all(port: int, links: list[str], readers: Readers) -> float:
    begun = asyncio.Barrier(len(links))
    began = time.perf_counter()
    await asyncio.gather(*(_one(port, link, readers, begun) for link in links))
    return time.perf_counter() - began


async def _one(port: int, link: str, readers: Readers, begun: asyncio.Barrier) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_CLIENT_BUFFER)
    writer.write(f"GET {link} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    assert head.startswith("http/1.1 200 "), head
    left = int(head.split("content-length: ")[1].split("\r\n")[0])
    if readers == "slow":
        await begun.wait()
    while left:
        if readers == "slow":
            await asyncio.sleep(_SLOW_SECONDS)
        left -= len(await reader.readexactly(min(left, _PIECE)))
    writer.close()
