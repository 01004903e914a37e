"""Inference for everyone on the devices of this machine: queues, slots and device workers."""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from itertools import count
from math import prod
from types import TracebackType
from typing import Literal, Self

import msgspec
import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge

from appliance.config import Recognition
from appliance.errors import InvalidInput, NotInstalled, Overloaded, WorkerLost, WorkerRefused
from appliance.recognition.bundles import Bundle
from appliance.recognition.slots import FLOAT_BYTES, SLOT_BYTES, Load, Loaded, Run, Unload, places
from appliance.workers import Memory, Worker

Pixels = npt.NDArray[np.uint8] | memoryview
Outputs = dict[str, npt.NDArray[np.float32]]

LOAD_SECONDS = 300.0


class DeviceStatus(msgspec.Struct, frozen=True):
    """One device: `provider` is what really runs the models, `queued` counts requests not yet answered."""

    name: str
    provider: str
    queued: int
    restarts: int
    state: Literal["serving", "restarting"]
    note: str


@dataclass(frozen=True, slots=True)
class _Model:
    number: int
    path: str
    shape: tuple[int, ...]
    shapes: dict[str, tuple[int, ...]]

    @property
    def pixel_bytes(self) -> int:
        return prod(self.shape)


# No repr: the pixels of a request must not get into a message by accident.
@dataclass(slots=True, eq=False, repr=False)
class _Job:
    model: _Model
    pixels: npt.NDArray[np.uint8]
    outputs: tuple[str, ...]
    answer: asyncio.Future[Outputs]
    retried: bool = False


class _Device:
    """The queue of one device. Slots for two batches: while one runs, the next lies ready in the worker."""

    def __init__(
        self, config: Recognition, models: Mapping[tuple[str, str], _Model], counts: "_Counts"
    ) -> None:
        slots = 2 * config.max_batch
        self._memory = Memory(slots * SLOT_BYTES)
        self._free = list(range(slots))
        self._waiting: deque[_Job] = deque()
        self._running: set[_Job] = set()
        self._moved = asyncio.Event()
        # A request that was with a worker when it died runs with nobody else: it may be what killed it.
        self._one_at_a_time = False
        self._seconds = config.infer_seconds
        self._models = models
        self._counts = counts
        self._encoder = msgspec.msgpack.Encoder()
        self.worker = Worker(
            "device worker",
            "appliance.recognition.session:main",
            {"device": config.device, "threads": config.threads, "max_batch": config.max_batch},
            memories=(self._memory,),
            on_start=self._restore,
        )

    @property
    def queued(self) -> int:
        return len(self._waiting) + len(self._running)

    def status(self) -> DeviceStatus:
        info = self.worker.info
        return DeviceStatus(
            name=info["device"],
            provider=info["provider"],
            queued=self.queued,
            restarts=self.worker.restarts,
            state="serving" if self.worker.serving else "restarting",
            note=info["note"],
        )

    def close(self) -> None:
        for job in self._waiting:
            if not job.answer.done():
                job.answer.set_exception(WorkerLost("the engine has stopped"))
        self._memory.close()

    async def load(self, model: _Model) -> Loaded:
        request = Load(model.number, model.path, model.shape)
        reply = await self.worker.call(self._encoder.encode(request), LOAD_SECONDS)
        return msgspec.msgpack.decode(reply, type=Loaded)

    async def unload(self, model: _Model) -> None:
        """Returns when the worker has forgotten it; a restarted worker does not know it anyway."""
        with contextlib.suppress(WorkerLost):
            await self.worker.call(self._encoder.encode(Unload(model.number)), LOAD_SECONDS)

    async def _restore(self) -> None:
        """A restarted worker knows no models; what waits goes on as soon as calls are let through."""
        if self.worker.restarts:
            self._counts.restarts.inc()
        for model in self._models.values():
            await self.load(model)
        asyncio.get_running_loop().call_soon(self._advance)

    def add(self, job: _Job) -> None:
        self._waiting.append(job)
        self._advance()

    def discard(self, job: _Job) -> None:
        """Nobody waits for this job any more. One in the worker's hands keeps its slot until it is done."""
        if job in self._waiting:
            self._waiting.remove(job)
            self._moved.set()

    async def drained(self, model: _Model) -> None:
        """Returns when no request for the model is under way."""
        while any(job.model is model for job in (*self._waiting, *self._running)):
            self._moved.clear()
            await self._moved.wait()

    def _advance(self) -> None:
        while self._waiting and self._free and self.worker.serving:
            if self._running and (self._one_at_a_time or self._waiting[0].retried):
                return
            job = self._waiting.popleft()
            self._one_at_a_time = job.retried
            self._send(job)

    def _send(self, job: _Job) -> None:
        slot = self._free.pop()
        start = slot * SLOT_BYTES
        self._memory.view[start : start + job.model.pixel_bytes] = job.pixels.reshape(-1).data
        self._running.add(job)
        request = Run(job.model.number, slot, job.outputs, alone=job.retried)
        reply = self.worker.submit(self._encoder.encode(request), self._seconds)
        reply.add_done_callback(partial(self._settle, job, slot))

    def _settle(self, job: _Job, slot: int, reply: asyncio.Future[bytes]) -> None:
        start = slot * SLOT_BYTES
        layout = places(job.model.pixel_bytes, [job.model.shapes[name] for name in job.outputs])
        error = reply.exception()
        if job.answer.done():
            pass
        elif error is None:
            job.answer.set_result(
                {
                    name: np.frombuffer(self._memory.view, np.float32, count, start + offset)
                    .reshape(job.model.shapes[name])
                    .copy()
                    for name, (offset, count) in zip(job.outputs, layout, strict=True)
                }
            )
        elif isinstance(error, WorkerLost) and not job.retried:
            job.retried = True
            self._counts.retries.inc()
            self._waiting.appendleft(job)
        else:
            job.answer.set_exception(error)
        last, count = layout[-1]
        self._memory.wipe(start, last + count * FLOAT_BYTES)
        self._free.append(slot)
        self._running.discard(job)
        self._moved.set()
        self._advance()


class _Counts:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.restarts = Counter(
            "appliance_device_restarts", "Device workers replaced after they died or hung", registry=registry
        )
        self.retries = Counter(
            "appliance_inference_retries", "Requests given to a second device worker", registry=registry
        )
        self.queued = Gauge("appliance_inference_queued", "Images not yet inferred", registry=registry)


class Engine:
    """`async with` starts the device workers; models are loaded into all of them and shared by everyone.

    Entering raises WorkerRefused when the configured device cannot serve, naming what is missing.
    """

    def __init__(self, config: Recognition, registry: CollectorRegistry) -> None:
        self._config = config
        self._models: dict[tuple[str, str], _Model] = {}
        self._retired: set[tuple[str, str]] = set()
        self._numbers = count()
        self._loading = asyncio.Lock()
        counts = _Counts(registry)
        counts.queued.set_function(lambda: sum(device.queued for device in self._devices))
        self._counts = counts
        self._devices: list[_Device] = []

    async def __aenter__(self) -> Self:
        _check_installation()
        async with contextlib.AsyncExitStack() as stack:
            device = _Device(self._config, self._models, self._counts)
            stack.callback(device.close)
            await stack.enter_async_context(device.worker)
            self._devices = [device]
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def devices(self) -> list[DeviceStatus]:
        """The devices that serve, one worker process each."""
        return [device.status() for device in self._devices]

    async def load(self, bundle: Bundle) -> None:
        """Load the bundle's model into every device and run it once; a second time does nothing.

        InvalidInput when onnxruntime refuses the model, when it would run elsewhere than on the device, or
        when it does not give the outputs that the bundle promises.
        """
        key = (bundle.name, bundle.version)
        async with self._loading:
            if key in self._models:
                return
            model = _Model(
                next(self._numbers), str(bundle.model), bundle.preprocessing.shape, dict(bundle.outputs)
            )
            last, floats = places(model.pixel_bytes, model.shapes.values())[-1]
            if last + floats * FLOAT_BYTES > SLOT_BYTES:
                raise InvalidInput(
                    f"bundle {bundle.name}: pixels and outputs of one image exceed {SLOT_BYTES} bytes"
                )
            for device in self._devices:
                loaded = await device.load(model)
                for name, shape in model.shapes.items():
                    if (given := loaded.outputs.get(name)) != shape:
                        raise InvalidInput(
                            f"bundle {bundle.name}: output {name} is {given} for one image, not {shape}"
                        )
            self._models[key] = model

    async def unload(self, bundle: Bundle) -> None:
        """Forget the bundle's model once the requests for it that are under way are answered."""
        key = (bundle.name, bundle.version)
        async with self._loading:
            model = self._models.get(key)
            if model is None:
                return
            self._retired.add(key)
            try:
                for device in self._devices:
                    await device.drained(model)
                del self._models[key]
            finally:
                self._retired.discard(key)
            for device in self._devices:
                await device.unload(model)

    def serves(self, bundle: Bundle) -> bool:
        """Whether the bundle's model is loaded, and a device is there that runs it."""
        key = (bundle.name, bundle.version)
        loaded = key in self._models and key not in self._retired
        return loaded and any(device.worker.serving for device in self._devices)

    async def infer(self, bundle: Bundle, pixels: Pixels, outputs: tuple[str, ...]) -> Outputs:
        """The named outputs (float32, of the bundle's shapes) for one image.

        `pixels`: uint8 of the shape that the bundle's preprocessing gives. The answer does
        not depend on who else is served at the same time. A request whose worker dies is given to the next
        one, once. Raises NotInstalled when the bundle is not loaded, Overloaded when the queue is full,
        WorkerLost when two workers died of the request or none answered in time.
        """
        key = (bundle.name, bundle.version)
        model = self._models.get(key)
        if model is None or key in self._retired:
            raise NotInstalled(f"bundle {bundle.name} is not loaded")
        image = np.asarray(pixels)
        if image.dtype != np.uint8 or image.shape != model.shape:
            raise ValueError(f"pixels are {image.dtype} {image.shape}, the model takes {model.shape}")
        if not outputs or not model.shapes.keys() >= set(outputs):
            raise ValueError(f"outputs {outputs}; bundle {bundle.name} has {', '.join(model.shapes)}")
        device = min(self._devices, key=lambda device: device.queued)
        if device.queued >= self._config.queue:
            raise Overloaded(f"{device.queued} images wait for the model, as many as the queue holds")
        job = _Job(model, image, outputs, asyncio.get_running_loop().create_future())
        device.add(job)
        try:
            async with asyncio.timeout(self._config.infer_seconds):
                return await job.answer
        except TimeoutError:
            device.discard(job)
            raise WorkerLost(f"no answer from the model within {self._config.infer_seconds:g} s") from None
        except asyncio.CancelledError:
            device.discard(job)
            raise

    async def embed(self, bundle: Bundle, pixels: Pixels) -> npt.NDArray[np.float32]:
        """The bundle's `embedding` of one image, of length 1 (L2). Raises what `infer` raises."""
        return (await self.infer(bundle, pixels, ("embedding",)))["embedding"]


def _check_installation() -> None:
    if os.environ.get("ORT_DISABLE_TELEMETRY") != "1":
        raise WorkerRefused(
            "ORT_DISABLE_TELEMETRY is not 1: onnxruntime could send telemetry; unset what changes it"
        )
    installed = []
    for distribution in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed.append(f"{distribution} {metadata.version(distribution)}")
    if len(installed) > 1:
        # Both fill the same package folder; the one installed last wins and the other's files are gone.
        raise WorkerRefused(
            f"{' and '.join(installed)} are installed together: remove both, then install one"
        )
