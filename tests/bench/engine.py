"""What engine and decoders cost beside the bare session and the bare decoder: CPU time of all processes."""

import asyncio
import io
import statistics
import tempfile  # noqa: TID251 - the bundle is built into a folder of its own; no image is written
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import uvloop
from PIL import Image
from sklearn.datasets import load_sample_image

from appliance.config import Recognition
from appliance.metrics import Registry
from appliance.recognition import manifest, starter
from appliance.recognition.bundles import Bundle, TaskId
from appliance.recognition.decode import decode
from appliance.recognition.decoders import Decoders
from appliance.recognition.engine import Engine
from appliance.recognition.preprocessing import Preprocessing
from tests.bench.report import Report

ROUNDS, IMAGES = 11, 30
OUTPUTS = ("embedding",)
SIZES = {"320 x 240": (320, 240), "1 megapixel": (1155, 866), "12 megapixels": (4000, 3000)}


def run(report: Report) -> None:
    """Rounds of the bare session and of the engine take turns, so that both meet the same machine."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = _bundle(Path(folder) / "bundle")
        uvloop.run(_engine(report, bundle))
        uvloop.run(_decoders(report, bundle))


async def _engine(report: Report, bundle: Bundle) -> None:
    pixels = np.asarray(_decoded(_jpeg((640, 480))).pixels)
    session = _session(bundle)
    batch = pixels[np.newaxis]
    async with Engine(Recognition(), Registry()) as engine:
        worker = _pid(engine)
        started = _spent(worker)
        await engine.load(bundle)
        report.figure("device worker: import, load, first image", _spent(worker), "CPU ms")
        report.figure("... of which the model", _spent(worker) - started, "CPU ms")
        bare, alone, busy, wall = [], [], [], []
        session.run(list(OUTPUTS), {"images": batch})
        for _ in range(ROUNDS):
            before = time.process_time()
            for _ in range(IMAGES):
                session.run(list(OUTPUTS), {"images": batch})
            bare.append((time.process_time() - before) * 1000 / IMAGES)
            spent, clock = _all(worker), time.perf_counter()
            for _ in range(IMAGES):
                await engine.infer(bundle, pixels, OUTPUTS)
            alone.append((_all(worker) - spent) / IMAGES)
            wall.append((time.perf_counter() - clock) * 1000 / IMAGES)
            spent = _all(worker)
            await asyncio.gather(*(engine.infer(bundle, pixels, OUTPUTS) for _ in range(IMAGES)))
            busy.append((_all(worker) - spent) / IMAGES)
        cost = statistics.median(bare)
        report.figure("bare session, one image", cost, "CPU ms")
        report.figure("engine and worker, one image at a time", statistics.median(alone), "CPU ms")
        report.figure("engine / session", _ratio(alone, bare), "", at_most=1.1)
        report.figure("engine / session, thirty at once", _ratio(busy, bare), "", note="batched")
        report.figure("one image alone, until answered", statistics.median(wall), "ms", note="wall")


def _ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over rounds of what both cost in the same round."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


async def _decoders(report: Report, bundle: Bundle) -> None:
    async with Decoders(Recognition(decoders=1), Registry()) as decoders:
        worker = decoders._idle[0].worker.pid
        assert worker is not None
        report.figure("decoder: import", _spent(worker), "CPU ms")
        for name, size in SIZES.items():
            data = _jpeg(size)

            times = max(3, int(60 / (size[0] * size[1] / 1e6 + 1)))
            full = _per_call(partial(_full, data), times)
            own = _per_call(partial(_decoded, data), times)
            spent = await _spent_on(partial(decoders.decode, data, bundle.preprocessing), worker, times)
            note = f"{len(data) // 1024} KB JPEG; {own / full:.2f} of Pillow's open-convert-resize"
            report.figure(f"decode {name}", own, "CPU ms", note=note)
            report.figure(f"... through a decoder process / in one's own, {name}", spent / own, "")


async def _spent_on(act: Callable[[], Awaitable[object]], worker: int, times: int) -> float:
    rounds = []
    for _ in range(3):
        before = _all(worker)
        for _ in range(times):
            await act()
        rounds.append((_all(worker) - before) / times)
    return min(rounds)


def _per_call(act: Callable[[], object], times: int) -> float:
    rounds = []
    for _ in range(3):
        before = time.process_time()
        for _ in range(times):
            act()
        rounds.append((time.process_time() - before) * 1000 / times)
    return min(rounds)


def _all(worker: int) -> float:
    return time.process_time() * 1000 + _spent(worker)


def _spent(process: int) -> float:
    """CPU milliseconds of a process in the scheduler's nanoseconds; /proc/PID/stat counts in hundredths."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


def _pid(engine: Engine) -> int:
    pid = engine._devices[0].worker.pid
    assert pid is not None
    return pid


def _bundle(folder: Path) -> Bundle:
    starter.build("efficientnet-lite0", folder)
    verified = manifest.verify(folder)
    made = verified.manifest
    return Bundle(
        name=made.name,
        version=made.version,
        kind=made.kind,
        task=TaskId("bench"),
        routes=made.routes,
        preprocessing=made.preprocessing,
        outputs=made.outputs,
        labels=verified.labels,
        folder=folder,
        model=folder / manifest.MODEL,
        sha256=made.files[manifest.MODEL],
    )


def _session(bundle: Bundle) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(bundle.model), options, providers=["CPUExecutionProvider"])


def _jpeg(size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(load_sample_image("china.jpg")).resize(size).save(out, "JPEG", quality=85)
    return out.getvalue()


def _decoded(data: bytes) -> Any:
    return decode(data, Preprocessing(), max_pixels=50_000_000, max_side=16384)


def _full(data: bytes) -> object:
    return Image.open(io.BytesIO(data)).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
