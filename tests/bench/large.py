"""Large images: what scaled decoding saves, and how long a body of 10 MB keeps everybody else waiting."""

import asyncio
import base64
import io
import json
import shutil
import statistics
import time

import numpy as np
from PIL import Image

from tests.bench import load, stand
from tests.bench.load import Client
from tests.bench.report import Report
from tests.bench.sight import SIZE, TWELVE_MEGAPIXELS, milliseconds, photograph, pixels
from tests.serving import Served

ROUNDS, TIMES = 7, 3
BODY_BYTES = 10_000_000


def run(report: Report, client: Client) -> None:
    for progressive in (False, True):
        _decoding(report, progressive=progressive)
    _holding(report, client)


def _decoding(report: Report, *, progressive: bool) -> None:
    image = photograph(TWELVE_MEGAPIXELS, progressive=progressive)
    own, plain = list[float](), list[float]()
    for _ in range(ROUNDS):
        own.append(milliseconds(lambda: pixels(image), TIMES)[0])
        plain.append(milliseconds(lambda: _plainly(image), TIMES)[0])
    kind = "progressive" if progressive else "baseline"
    times = f"{statistics.median(own):.1f} and {statistics.median(plain):.1f} CPU ms"
    report.figure(
        f"12 megapixels, {kind}: decoding / Pillow's open, convert, resize",
        statistics.median(one / other for one, other in zip(own, plain, strict=True)),
        "",
        at_most=None if progressive else 0.2,
        note=f"{times}, {len(image) / 1e6:.1f} MB",
    )


def _plainly(image: bytes) -> Image.Image:
    with Image.open(io.BytesIO(image)) as opened:
        return opened.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def _holding(report: Report, client: Client) -> None:
    """The whole server, its loop in this process; the client and the decoders are in others."""
    image = photograph(TWELVE_MEGAPIXELS)
    padding = np.random.default_rng(1).bytes(BODY_BYTES * 3 // 4 - len(image))  # decoders ignore what follows
    encoded = base64.b64encode(image + padding).decode()
    folder = stand.CACHE / "bench-holding"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with Served(folder) as served:
            body = json.dumps({"task_id": served.bundle.task, "records": [{"_base64": encoded}]}).encode()
            headers = served.tenant("bench").headers()
            request = load.request("/recognition/v2/classify", body, headers)
            holds = [_longest_holds(served, client, request) for _ in range(ROUNDS)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    stdlib = [milliseconds(lambda: _by_stdlib(body), 1)[0] for _ in range(ROUNDS)]
    cpu, wall = (statistics.median(times) for times in zip(*holds, strict=True))
    name = f"{len(body) / 1e6:.1f} MB of base64 JSON: the loop's thread is held"
    note = f"CPU, longest of one request; {wall:.1f} ms wall"
    report.figure(name, cpu, "CPU ms", at_most=8, note=note)
    report.figure("... by the standard library's json and base64", statistics.median(stdlib), "CPU ms")


def _longest_holds(served: Served, client: Client, request: bytes) -> tuple[float, float]:
    """The most milliseconds between two turns of the loop while a request is answered: CPU, wall."""
    asked = asyncio.Event()

    async def watch() -> tuple[float, float]:
        gaps, walls = [0.0], [0.0]
        cpu, wall = time.thread_time(), time.perf_counter()
        while not asked.is_set():
            await asyncio.sleep(0)
            before = cpu, wall
            cpu, wall = time.thread_time(), time.perf_counter()
            gaps.append(cpu - before[0])
            walls.append(wall - before[1])
        return 1000 * max(gaps), 1000 * max(walls)

    watching = asyncio.run_coroutine_threadsafe(watch(), served._loop)
    outcome = client.closed(served.site.port, request, at_once=1, count=1)
    served._loop.call_soon_threadsafe(asked.set)
    assert outcome.count(200) == 1, outcome.answers
    return watching.result(10)


def _by_stdlib(body: bytes) -> bytes:
    return base64.b64decode(json.loads(body)["records"][0]["_base64"])
