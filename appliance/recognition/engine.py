"""Inference for everyone on the devices of this machine: which models are there, and who runs a request."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from importlib import metadata
from itertools import count
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from prometheus_client import Counter, Gauge

from appliance.background import end_tasks
from appliance.config import Recognition
from appliance.errors import (
    ApplianceError,
    BundleDamaged,
    InvalidInput,
    NotInstalled,
    Overloaded,
    WorkerLost,
    WorkerRefused,
)
from appliance.metrics import Registry
from appliance.recognition.bundles import Bundle
from appliance.recognition.devices import Device, DeviceStatus, Job, Model, Outputs, Priority
from appliance.recognition.penalties import Penalties
from appliance.recognition.slots import check_room
from appliance.recognition.turns import Shares
from appliance.workers import fail

__all__ = ["DeviceStatus", "Engine", "Job", "Outputs", "Pixels", "Priority"]

_log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8] | memoryview
# Called with NAME@VERSION of a bundle, and what is wrong with it.
Report = Callable[[str, str], Coroutine[Any, Any, None]]
# How long a request waits for its answer, in times of what a worker may take over it: one that hangs is
# replaced, its models are loaded again, and then the request has its second try.
PATIENCE = 3


class _Counts:
    def __init__(self, registry: Registry) -> None:
        self.restarts = Counter(
            "appliance_device_restarts", "Device workers replaced after they died or hung", registry=registry
        )
        self.retries = Counter(
            "appliance_inference_retries", "Requests given to a second device worker", registry=registry
        )
        self.loads = Counter(
            "appliance_model_loads",
            "Models loaded into the devices, again after making room",
            registry=registry,
        )
        self.queued = Gauge("appliance_inference_queued", "Images not yet inferred", registry=registry)
        self.resident = Gauge(
            "appliance_model_bytes", "Memory that the loaded models took on each device", registry=registry
        )


class Engine:
    """`async with` starts the device workers; models are loaded into all of them and shared by everyone.

    With a budget (`memory_bytes`) those used least recently make room for the one that is needed; backbones
    and those named in `pinned` stay. Entering raises WorkerRefused when the configured device cannot serve,
    naming what is missing.

    What is loaded, every time, are the very bytes whose SHA-256 the bundle has: `damaged` is told of a model
    whose file is another one by now.
    """

    def __init__(
        self,
        config: Recognition,
        registry: Registry,
        *,
        damaged: Report | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._penalties = Penalties(clock)
        self._report = damaged
        self._queue = registry.cpu("queue")
        self._models: dict[tuple[str, str], Model] = {}
        self._retired: set[tuple[str, str]] = set()
        self._left_out: dict[tuple[str, str], str] = {}  # and why
        self._numbers = count()
        self._uses = count()
        self._loading = asyncio.Lock()
        counts = _Counts(registry)
        counts.queued.set_function(lambda: sum(device.queued for device in self._devices))
        counts.resident.set_function(lambda: sum(model.bytes for model in self._resident()))
        self._counts = counts
        self._devices: list[Device] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        _check_installation()
        self._loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            # The first says what there is: how many GPUs, or that the CPU serves.
            first = await self._start(0, stack)
            number = self._config.devices or first.worker.info["gpus"] or 1
            if first.worker.info["gpus"]:
                number = min(number, first.worker.info["gpus"])
            starts = (self._start(other, stack) for other in range(1, number))
            self._devices = [first, *await asyncio.gather(*starts)]
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await end_tasks(*self._tasks)
        await self._stack.aclose()

    async def _start(self, number: int, stack: contextlib.AsyncExitStack) -> Device:
        restarted = self._counts.restarts.inc
        device = Device(
            self._config,
            number,
            models=self._resident,
            again=self._again,
            ended_by=self._blame,
            restarted=restarted,
            damaged=self._damaged,
            queue=self._queue,
        )
        stack.callback(device.close)
        await stack.enter_async_context(device.worker)
        return device

    def devices(self) -> list[DeviceStatus]:
        """The devices that serve, one worker process each."""
        return [device.status() for device in self._devices]

    def loaded(self, bundle: Bundle) -> bool:
        """Whether the bundle's model is on a device now; others are loaded when they are asked for."""
        model = self._models.get((bundle.name, bundle.version))
        return model is not None and model.resident and bool(self._able(model))

    def refused(self) -> list[tuple[str, str]]:
        """Bundles that were left out, or that a restarted device did not load any more: the name, and for
        people which, where, why.

        The next restart of the device tries again, and so does `load`. Others may be served all the while.
        """
        left_out = [(name, f"{name} {version}: {why}") for (name, version), why in self._left_out.items()]
        return left_out + [
            (name, f"{model.name} on {device.worker.info['device']}: {device.refused[model]}")
            for (name, _), model in self._models.items()
            for device in self._devices
            if model in device.refused
        ]

    def fault(self, bundle: Bundle) -> str | None:
        """Why this bundle was left out, or a device did not load its model any more; None where none did."""
        key = (bundle.name, bundle.version)
        if (why := self._left_out.get(key)) is not None:
            return why
        model = self._models.get(key)
        reasons = (
            [device.refused[model] for device in self._devices if model in device.refused] if model else []
        )
        return "; ".join(dict.fromkeys(reasons)) or None

    def pinned_bytes(self) -> int:
        """What the models that stay take of a device; beyond the budget there is room for one other."""
        return sum(model.bytes for model in self._resident() if model.pinned)

    async def load(self, bundle: Bundle) -> None:
        """Load the bundle's model into every device and run it once; a second time does nothing, unless a
        device has refused it since (`refused`): there it is tried again.

        InvalidInput when onnxruntime refuses the model, when it would run elsewhere than on the device, or
        when it does not give the outputs that the bundle promises.
        """
        key = (bundle.name, bundle.version)
        async with self._loading:
            if (known := self._models.get(key)) is not None:
                await self._load_where_refused(known)
                return
            pinned = bundle.kind == "backbone" or bundle.name in self._config.pinned
            shape = bundle.preprocessing.shape
            name = f"{bundle.name} {bundle.version}"
            model = Model(
                next(self._numbers),
                name,
                bundle.pin,
                str(bundle.model),
                bundle.sha256,
                shape,
                dict(bundle.outputs),
                pinned,
            )
            try:
                check_room(model.pixel_bytes, model.shapes)
                await self._make_resident(model)
            except InvalidInput as refusal:
                raise InvalidInput(f"bundle {bundle.name}: {refusal}") from refusal
            self._models[key] = model
            self._left_out.pop(key, None)

    async def unload(self, bundle: Bundle, *, because: str | None = None) -> None:
        """Forget the bundle's model once the requests for it that are under way are answered.

        `because` is what `fault` and `refused` tell from then on, until it is loaded or unloaded again.
        """
        key = (bundle.name, bundle.version)
        async with self._loading:
            self._left_out.pop(key, None)
            if because is not None:
                self._left_out[key] = because
            model = self._models.get(key)
            if model is None:
                return
            self._retired.add(key)
            try:
                await self._drained(model)
                del self._models[key]
            finally:
                self._retired.discard(key)
            await self._evict(model)

    def serves(self, bundle: Bundle) -> bool:
        """Whether the bundle's model is known, and a device is there that runs it."""
        key = (bundle.name, bundle.version)
        model = self._models.get(key)
        if model is None or key in self._retired:
            return False
        return any(device.worker.serving for device in self._able(model))

    def check_room(self, customer: str | None = None) -> None:
        """Raises Overloaded when the queue of every device is full, for this customer."""
        if not any(device.room.fits(customer) for device in self._devices):
            raise Overloaded("as many images wait for the models as the queues hold")

    async def infer(
        self,
        bundle: Bundle,
        pixels: Pixels,
        outputs: tuple[str, ...],
        *,
        priority: Priority = Priority.INTERACTIVE,
        seconds: float | None = None,
        customer: str | None = None,
    ) -> Outputs:
        """The named outputs (float32, finite, of the bundle's shapes) for one image, within `seconds`.

        `pixels`: uint8 of the shape that the bundle's preprocessing gives. `seconds` is PATIENCE times
        `infer_seconds` when it is not given. The answer does not depend on who else is served at the same
        time, and each `customer` has a fair share of that: see `turns`. A request whose worker dies or hangs
        is given to another one, once. Raises NotInstalled when the bundle is not loaded, Overloaded when the
        queue is full or did not come to the request in time, WorkerLost when two workers died of it or none
        answered in time, ModelFailed when the model fails for this image or gives no numbers for it. Of a
        customer over whose image two workers died nothing is taken for this model for a while (`Penalties`):
        Overloaded.
        """
        return await self.outcome(self.start(bundle, pixels, outputs, priority, customer), seconds)

    def start(
        self,
        bundle: Bundle,
        pixels: Pixels,
        outputs: tuple[str, ...],
        priority: Priority = Priority.INTERACTIVE,
        customer: str | None = None,
    ) -> Job:
        """`infer` up to where it has to wait; the pixels are the caller's again. `outcome` must follow."""
        image = np.asarray(pixels)
        model = self._known(bundle)
        if image.dtype != np.uint8 or image.shape != model.shape:
            raise ValueError(f"pixels are {image.dtype} {image.shape}, the model takes {model.shape}")
        if not outputs or not model.shapes.keys() >= set(outputs):
            raise ValueError(f"outputs {outputs}; bundle {bundle.name} has {', '.join(model.shapes)}")
        job = Job(model, image, outputs, priority, self._loop.create_future(), customer)
        if customer is not None:
            self._penalties.check(customer, model.pin)
            job.alone = self._penalties.watched(customer, model.pin)
        self._admit(job)
        job.keep()
        return job

    async def outcome(self, job: Job, seconds: float | None = None) -> Outputs:
        """What `infer` returns and raises, for what has been started."""
        limit = PATIENCE * self._config.infer_seconds if seconds is None else seconds
        patience = self._loop.call_later(limit, self._expire, job, limit)
        try:
            return await job.answer
        except asyncio.CancelledError:
            self._discard(job)
            raise
        finally:
            patience.cancel()
            # An error holds the frames that it passes, and the job holds the error: not the pixels too.
            job.pixels = None

    def _expire(self, job: Job, limit: float) -> None:
        self._discard(job)
        if job.sent:
            fail(job.answer, WorkerLost(f"no answer from the model within {limit:g} s"))
        else:
            fail(job.answer, Overloaded(f"the queue did not come to the image within {limit:g} s"))

    async def embed(self, bundle: Bundle, pixels: Pixels) -> npt.NDArray[np.float32]:
        """The bundle's `embedding` of one image, of length 1 (L2). Raises what `infer` raises."""
        return (await self.infer(bundle, pixels, ("embedding",)))["embedding"]

    def _known(self, bundle: Bundle) -> Model:
        key = (bundle.name, bundle.version)
        model = self._models.get(key)
        if model is None or key in self._retired:
            raise NotInstalled(f"bundle {bundle.name} is not loaded")
        return model

    def _admit(self, job: Job) -> None:
        """To the freest device, or to those that wait until the model is there again. Raises Overloaded."""
        job.model.used = next(self._uses)
        if not job.model.resident:
            if not self._able(job.model):
                raise _missing(job.model)
            room, memory = Shares(self._config.queue), Shares(self._config.queue_bytes)
            for other in (one for model in self._models.values() for one in model.waiting):
                room.take(other.customer, other.model is job.model)
                memory.take(other.customer, other.model.pixel_bytes)
            if not room.fits(job.customer):
                raise Overloaded(f"{room.taken} images wait for the model to be loaded")
            if not memory.fits(job.customer, job.model.pixel_bytes):
                raise Overloaded("the images that wait for models to be loaded take all the memory they may")
            job.model.waiting.append(job)
            if len(job.model.waiting) == 1:
                self._keep(self._load_again(job.model))
            return
        device = self._freest(job.model)
        if not device.room.fits(job.customer):
            raise Overloaded(f"{device.queued} images wait for the model, as many as the queue holds")
        if not device.bytes.fits(job.customer, job.model.pixel_bytes):
            raise Overloaded("the images that wait for the model take as much memory as the queue may")
        device.add(job)

    def _able(self, model: Model) -> list[Device]:
        return [device for device in self._devices if model not in device.refused]

    def _freest(self, model: Model) -> Device:
        """Raises NotInstalled when every device has refused the model."""
        able = self._able(model)
        if not able:
            raise _missing(model)
        serving = [device for device in able if device.worker.serving] or able
        return min(serving, key=lambda device: device.queued)

    def _discard(self, job: Job) -> None:
        if job in job.model.waiting:
            job.model.waiting.remove(job)
        for device in self._devices:
            device.discard(job)

    def _again(self, job: Job) -> None:
        """A job whose worker died, or knows its model no more, goes to the freest device that serves."""
        try:
            if job.customer is not None:
                self._penalties.check(job.customer, job.model.pin)
            device = self._freest(job.model)
        except (NotInstalled, Overloaded) as error:
            fail(job.answer, error)
            return
        self._counts.retries.inc()
        device.add(job, first=True)

    def _blame(self, job: Job) -> None:
        """A worker ended that had this job alone, or had it and nobody waits for it: it may be the reason."""
        if job.customer is None:
            return
        alike = [(device, other) for device in self._devices for other in device.of(job.customer, job.model)]
        if not job.alone:
            self._penalties.suspect(job.customer, job.model.pin)
            for _, other in alike:
                other.alone = True
            return
        _log.warning("bundle %s ended its worker over an image of customer %s", job.model.name, job.customer)
        self._penalties.add(job.customer, job.model.pin)
        for device, other in alike:
            device.discard(other)
            self._again(other)  # which is refused

    def _resident(self) -> Iterator[Model]:
        return (model for model in self._models.values() if model.resident)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load_again(self, model: Model) -> None:
        """Those who wait are admitted before another model can take the room again."""
        async with self._loading:
            failure: ApplianceError | None = None
            try:
                if model not in self._models.values():
                    raise NotInstalled("the bundle was removed")
                if not model.resident:
                    try:
                        await self._make_resident(model)
                    except WorkerLost:  # most often not of this: once more, as what is under way has it
                        await self._make_resident(model)
            except InvalidInput as refusal:
                # Who asks cannot help it: what is wrong is the operator's to read.
                _log.error("bundle %s is not loaded again: %s", model.name, refusal)
                failure = _missing(model)
            except ApplianceError as error:
                failure = error
            waiting, model.waiting = model.waiting, []
            for job in waiting:
                try:
                    if failure is not None:
                        raise failure
                    self._admit(job)
                except ApplianceError as error:
                    fail(job.answer, error)

    async def _make_resident(self, model: Model) -> None:
        """Load the model into every device, then have others go until the budget holds."""
        if model.bytes:
            await self._make_room(model.bytes, model)
        try:
            for device in self._devices:
                loaded = await device.load(model)
                model.bytes = max(model.bytes, loaded.bytes)
        except InvalidInput as refusal:
            for device in self._devices:
                await device.unload(model)
                if isinstance(refusal, BundleDamaged) and model in self._models.values():
                    device.refused[model] = str(refusal)  # nobody's request reads the file once more
            raise
        model.resident = True
        model.used = next(self._uses)
        self._counts.loads.inc()
        await self._make_room(model.bytes, model)

    async def _load_where_refused(self, model: Model) -> None:
        refusing = [device for device in self._devices if model in device.refused]
        try:
            if refusing and not model.resident:
                await self._make_resident(model)
                return
            for device in refusing:
                await device.load(model)
        except InvalidInput as refusal:
            raise InvalidInput(f"bundle {model.name}: {refusal}") from refusal

    def _damaged(self, model: Model, reason: str) -> None:
        if self._report is not None:
            self._keep(self._report(model.pin, reason))

    async def _make_room(self, wanted: int, keep: Model) -> None:
        if not self._config.memory_bytes:
            return
        others = [model for model in self._resident() if model is not keep]
        taken = wanted + sum(model.bytes for model in others)
        for model in sorted(others, key=lambda model: model.used):
            if taken <= self._config.memory_bytes:
                return
            if not model.pinned:
                taken -= model.bytes
                await self._evict(model)

    async def _evict(self, model: Model) -> None:
        model.resident = False  # from here on nobody sends it anything
        await self._drained(model)
        for device in self._devices:
            await device.unload(model)

    async def _drained(self, model: Model) -> None:
        for device in self._devices:
            await device.drained(model)


def _missing(model: Model) -> NotInstalled:
    return NotInstalled(f"bundle {model.name} is {'damaged' if model.damaged else 'not loaded'}")


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
