"""Is the appliance well: GPUs, volume, ledger, device workers and the rules of residency as findings.

What can hang (a wedged GPU driver, a dead disk) is asked in a thread of its own under a time limit, so
`status`, `/readyz` and the watchdog always answer at once, from the last observation.

The fault paths are tested against a fake `libnvidia-ml.so.1`; the layout of the structures is pynvml's.
"""

import asyncio
import contextlib
import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Self, TypeVar

import msgspec
from prometheus_client.core import GaugeMetricFamily, Metric

from appliance import config, residency
from appliance.background import end_tasks
from appliance.errors import ApplianceError
from appliance.metrics import Registry
from appliance.recognition.engine import DeviceStatus
from appliance.volume import VolumeFacts

State = Literal["starting", "ready", "degraded", "failed", "draining"]
Severity = Literal["notice", "degraded", "failed"]
GRAVEST_FIRST: tuple[Severity, ...] = ("failed", "degraded", "notice")
Reading = int | Literal["unsupported"] | None
"""A measured value, "unsupported" where this GPU has no such sensor, None where it could not be read."""

RULES_SECONDS = 60.0
"""The rules of residency are judged as often, however seldom the rest is looked at."""

VOLUME_SECONDS = 5.0
"""A disk that is alive answers statvfs in microseconds; a few seconds let a spun-down array wake up."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing an operator should know. `key` is stable (`volume.space`), `message` is for people."""

    severity: Severity
    key: str
    message: str


@dataclass(frozen=True, slots=True)
class Readiness:
    """The verdict for load balancers: `serving` is what `/readyz` answers with 200."""

    state: State
    findings: tuple[Finding, ...] = ()

    @property
    def serving(self) -> bool:
        return self.state in {"ready", "degraded"}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML sees it; `state` is "ok", "lost", or NVML's own words for what is wrong."""

    index: int
    state: str = "ok"
    uuid: str = ""
    name: str = ""
    temperature_celsius: Reading = None
    memory_used_bytes: Reading = None
    memory_total_bytes: Reading = None
    ecc_uncorrected: Reading = None


@dataclass(frozen=True, slots=True)
class Gpus:
    """What NVML answered: `driver` is "ok", "absent" (no library), "silent" (the call hangs) or the fault."""

    driver: str = "absent"
    devices: tuple[Gpu, ...] = ()


class Probe(Generic[T]):
    """Calls `read` in one thread of its own, under a time limit.

    A call that hangs costs that thread and nothing else: no second call is started behind it, and a wedged
    driver does not hold the process at exit.
    """

    def __init__(self, name: str, read: Callable[[], T]) -> None:
        self._read = read
        self._asked: queue.SimpleQueue[asyncio.Future[T] | None] = queue.SimpleQueue()
        self._pending: asyncio.Future[T] | None = None
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    async def reading(self, seconds: float) -> T:
        """What `read` returned or raised; TimeoutError while it, or the call before it, does not answer."""
        if not self._thread.is_alive():
            self._thread.start()
        if self._pending is None:
            self._pending = asyncio.get_running_loop().create_future()
            self._asked.put(self._pending)
        await asyncio.wait({self._pending}, timeout=seconds)
        if not self._pending.done():
            raise TimeoutError(f"no answer within {seconds:g} s")
        answered, self._pending = self._pending, None
        return answered.result()

    def close(self) -> None:
        """Ends the thread when its call comes back; does not wait for it."""
        self._asked.put(None)
        self._pending = None

    def _serve(self) -> None:
        while (answer := self._asked.get()) is not None:
            try:
                value = self._read()
            except Exception as error:  # noqa: BLE001 whatever it is, it belongs to the one who asked
                self._answer(answer, answer.set_exception, error)
            else:
                self._answer(answer, answer.set_result, value)

    @staticmethod
    def _answer(future: asyncio.Future[T], settle: Callable[[Any], None], outcome: object) -> None:
        def deliver() -> None:
            if not future.done():
                settle(outcome)

        with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits any more
            future.get_loop().call_soon_threadsafe(deliver)


class Nvml:
    """NVIDIA's management library, asked from one thread. NVML stays initialised between readings."""

    def __init__(self) -> None:
        self._initialised = False

    def read(self) -> Gpus:
        """Every GPU with what it supports; a fault of NVML comes back as its own words, not as an error."""
        import pynvml  # noqa: PLC0415 a server without GPUs need not load it before it serves

        try:
            if not self._initialised:
                pynvml.nvmlInit()
                self._initialised = True
            count = pynvml.nvmlDeviceGetCount()
            return Gpus("ok", tuple(self._device(pynvml, index) for index in range(count)))
        except pynvml.NVMLError_LibraryNotFound:
            return Gpus("absent")
        except pynvml.NVMLError as error:
            if self._initialised:  # a reloaded driver answers again only after a new start of the library
                self._initialised = False
                with contextlib.suppress(pynvml.NVMLError):
                    pynvml.nvmlShutdown()
            return Gpus(str(error))

    def _device(self, pynvml: Any, index: int) -> Gpu:
        gpu = Gpu(index)
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            gpu = dataclasses.replace(
                gpu, uuid=pynvml.nvmlDeviceGetUUID(handle), name=pynvml.nvmlDeviceGetName(handle)
            )
            memory = _supported(pynvml, lambda: self._memory(pynvml, handle))
            used, total = memory if isinstance(memory, tuple) else (memory, memory)
            return dataclasses.replace(
                gpu,
                temperature_celsius=_supported(pynvml, lambda: self._temperature(pynvml, handle)),
                memory_used_bytes=used,
                memory_total_bytes=total,
                ecc_uncorrected=_supported(
                    pynvml,
                    lambda: int(
                        pynvml.nvmlDeviceGetTotalEccErrors(
                            handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
                        )
                    ),
                ),
            )
        except pynvml.NVMLError_GpuIsLost:
            return dataclasses.replace(gpu, state="lost")
        except pynvml.NVMLError as error:
            return dataclasses.replace(gpu, state=str(error))

    @staticmethod
    def _temperature(pynvml: Any, handle: Any) -> int:
        try:
            return int(pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU))
        except pynvml.NVMLError_FunctionNotFound:  # drivers before 560
            return int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))

    @staticmethod
    def _memory(pynvml: Any, handle: Any) -> tuple[int, int]:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        return int(memory.used), int(memory.total)


def _supported(pynvml: Any, read: Callable[[], T]) -> T | Literal["unsupported"]:
    try:
        return read()
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return "unsupported"


@dataclass(frozen=True, slots=True)
class Status:
    """What `appliance status` and GET /appliance/v1/status answer; the keys of its document are stable.

    `customers` and `collections` are counts, None where the ledger did not answer at once.
    `listeners` names the bound addresses under "api", "operator" and "socket". `volume` is None while the
    disk has never answered. `findings` are those of `state`, the gravest first.
    """

    version: str
    profile: Literal["production", "demo"]
    state: State
    findings: tuple[Finding, ...]
    pid: int
    uptime_seconds: float
    listeners: dict[str, list[str]]
    devices: list[DeviceStatus]
    gpus: Gpus
    volume: VolumeFacts | None
    customers: int | None
    collections: int | None
    bundles: list[dict[str, object]]

    def document(self) -> dict[str, object]:
        """The same as JSON has it: every dataclass as an object with the names of its fields."""
        document: dict[str, object] = msgspec.to_builtins(self, enc_hook=str)
        return document


@dataclass(frozen=True, slots=True)
class Sources:
    """Where facts come from; each is called at every observation.

    `machine` may block (it runs in a probe's thread), the others answer from memory. `rules` judges what
    `machine` found. `ledger_fault` is why the ledger refuses writes until a restart, or None. `notices` are
    what other parts have to say now.
    """

    machine: Callable[[], residency.Facts]
    rules: Callable[[residency.Facts], list[residency.Finding]]
    ledger_fault: Callable[[], str | None]
    devices: Callable[[], list[DeviceStatus]]
    notices: Callable[[], list[Finding]] = list
    gpus: Callable[[], Gpus] = field(default_factory=lambda: Nvml().read)


class Health:
    """Observes every `interval_seconds`, at least every RULES_SECONDS, and keeps the last findings; also a
    Prometheus collector.

    `async with` returns after the first observation, which takes at most the probes' time limits.
    """

    def __init__(self, settings: config.Health, sources: Sources, registry: Registry) -> None:
        self._settings = settings
        self._sources = sources
        self._gpu_probe = Probe("gpus", sources.gpus)
        self._volume_probe = Probe("volume", sources.machine)
        self._lifecycle: Literal["starting", "serving", "draining"] = "starting"
        self._gpus = Gpus()
        self._volume: VolumeFacts | None = None
        self._gpu_findings: tuple[Finding, ...] = ()
        self._volume_findings: tuple[Finding, ...] = ()
        self._reported: dict[str, Finding] = {}
        self._observer: asyncio.Task[None] | None = None
        registry.register(self)

    async def __aenter__(self) -> Self:
        await self.observe()
        self._observer = asyncio.get_running_loop().create_task(self._observe_forever(), name="health")
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            if self._observer is not None:
                await end_tasks(self._observer)
        finally:
            self._gpu_probe.close()
            self._volume_probe.close()

    def serving(self) -> None:
        """From now on the verdict follows the findings; before, it is "starting"."""
        self._lifecycle = "serving"

    def draining(self) -> None:
        """From now on the verdict is "draining", whatever the findings are."""
        self._lifecycle = "draining"

    def report(self, finding: Finding) -> None:
        """A finding of another part; it stays, in place of an earlier one of that key, until `withdraw`."""
        self._reported[finding.key] = finding

    def withdraw(self, key: str) -> None:
        """Forgets what was reported under `key`."""
        self._reported.pop(key, None)

    async def observe(self) -> None:
        """Asks every source once; a source that hangs or fails becomes a finding."""
        await asyncio.gather(self._observe_gpus(), self._observe_volume())

    def readiness(self) -> Readiness:
        """ready, degraded (serves, and somebody should look) or failed; starting and draining come first."""
        findings = self.findings()
        if self._lifecycle != "serving":
            return Readiness("starting" if self._lifecycle == "starting" else "draining", findings)
        severities = {finding.severity for finding in findings}
        if "failed" in severities:
            return Readiness("failed", findings)
        return Readiness("degraded" if "degraded" in severities else "ready", findings)

    def watchdog(self) -> str | None:
        """Why the daemon should be restarted, or None. Only what a restart can mend counts."""
        if self._observer is not None and self._observer.done():
            return "nobody observes the appliance any more"
        return self._sources.ledger_fault()

    def findings(self) -> tuple[Finding, ...]:
        """The gravest first."""
        found = (
            *self._reported.values(),
            *self._sources.notices(),
            *self._volume_findings,
            *self._gpu_findings,
            *self._ledger_findings(),
            *self._device_findings(),
        )
        return tuple(sorted(found, key=lambda finding: GRAVEST_FIRST.index(finding.severity)))

    @property
    def volume(self) -> VolumeFacts | None:
        """As last observed; None while it has never answered."""
        return self._volume

    @property
    def gpus(self) -> Gpus:
        """As last observed."""
        return self._gpus

    def collect(self) -> Iterator[Metric]:
        """Prometheus families of the last observation; a value that is not supported has no sample."""
        for attribute, name, text in (
            ("temperature_celsius", "temperature_celsius", "Temperature of the GPU (DCGM_FI_DEV_GPU_TEMP)"),
            ("memory_used_bytes", "memory_used_bytes", "GPU memory in use (DCGM_FI_DEV_FB_USED)"),
            ("memory_total_bytes", "memory_total_bytes", "GPU memory (DCGM_FI_DEV_FB_TOTAL)"),
            (
                "ecc_uncorrected",
                "ecc_uncorrected_errors",
                "Uncorrected memory errors since the driver was loaded (DCGM_FI_DEV_ECC_DBE_VOL_TOTAL)",
            ),
        ):
            family = GaugeMetricFamily(f"appliance_gpu_{name}", text, labels=["gpu"])
            for gpu in self._gpus.devices:
                if isinstance(value := getattr(gpu, attribute), int):
                    family.add_metric([str(gpu.index)], value)
            yield family
        lost = GaugeMetricFamily("appliance_gpu_lost", "1 when the GPU no longer answers", labels=["gpu"])
        for gpu in self._gpus.devices:
            lost.add_metric([str(gpu.index)], gpu.state == "lost")
        yield lost
        yield GaugeMetricFamily("appliance_gpus", "GPUs that NVML reports", len(self._gpus.devices))
        if (facts := self._volume) is not None:
            yield GaugeMetricFamily(
                "appliance_volume_free_bytes", "Free on the data volume", facts.free_bytes
            )
            yield GaugeMetricFamily(
                "appliance_volume_total_bytes", "Size of the data volume", facts.total_bytes
            )
            yield GaugeMetricFamily("appliance_volume_free_inodes", "Free inodes", facts.free_inodes)
            yield GaugeMetricFamily("appliance_volume_read_only", "1 when mounted read-only", facts.read_only)
        findings = GaugeMetricFamily(
            "appliance_findings", "Findings of `status` by their severity", labels=["severity"]
        )
        found = [finding.severity for finding in self.findings()]
        for severity in GRAVEST_FIRST:
            findings.add_metric([severity], found.count(severity))
        yield findings
        yield GaugeMetricFamily("appliance_ready", "1 while /readyz answers 200", self.readiness().serving)

    async def _observe_forever(self) -> None:
        while True:
            await asyncio.sleep(min(self._settings.interval_seconds, RULES_SECONDS))
            await self.observe()

    async def _observe_gpus(self) -> None:
        try:
            self._gpus = await self._gpu_probe.reading(self._settings.gpu_seconds)
        except TimeoutError:
            # The last values would look alive; the names stay so that an operator sees which GPUs are meant.
            self._gpus = Gpus(
                "silent", tuple(Gpu(gpu.index, "silent", gpu.uuid, gpu.name) for gpu in self._gpus.devices)
            )
        self._gpu_findings = tuple(_judge_gpus(self._gpus, self._settings))

    async def _observe_volume(self) -> None:
        try:
            machine = await self._volume_probe.reading(VOLUME_SECONDS)
        except TimeoutError as error:
            self._volume_findings = (Finding("failed", "volume.silent", f"the data volume gives {error}"),)
        except ApplianceError as error:
            self._volume_findings = (Finding("failed", "volume.unreadable", str(error)),)
        else:
            self._volume = machine.volume
            self._volume_findings = (
                *_judge_volume(machine.volume, self._settings),
                *_judge_rules(self._sources.rules(machine)),
            )

    def _ledger_findings(self) -> Iterator[Finding]:
        if (fault := self._sources.ledger_fault()) is not None:
            yield Finding("failed", "ledger", f"the ledger refuses writes until a restart: {fault}")

    def _device_findings(self) -> Iterator[Finding]:
        devices = self._sources.devices()
        down = [device for device in devices if device.state != "serving"]
        for device in down:
            severity: Severity = "failed" if len(down) == len(devices) else "degraded"
            yield Finding(severity, f"device.{device.name}", f"the worker of {device.name} is {device.state}")


def _judge_volume(facts: VolumeFacts, settings: config.Health) -> Iterator[Finding]:
    if facts.read_only:
        yield Finding(
            "failed", "volume.read_only", f"{facts.mount} is mounted read-only: nothing can be stored"
        )
    if facts.free_bytes < settings.min_free_bytes:
        yield Finding(
            "degraded",
            "volume.space",
            f"{facts.free_bytes >> 20} MiB are free on {facts.mount}; "
            f"health.min_free_bytes asks for {settings.min_free_bytes >> 20} MiB",
        )


def _judge_rules(rules: list[residency.Finding]) -> Iterator[Finding]:
    for rule in rules:  # a rule that forbids the start may be broken later: somebody adds a plain swap
        yield Finding("failed" if rule.severity == "refuse" else "notice", rule.key, rule.message)


def _judge_gpus(gpus: Gpus, settings: config.Health) -> Iterator[Finding]:
    if gpus.driver == "silent":
        yield Finding(
            "degraded",
            "gpus.silent",
            f"the GPU driver has not answered for {settings.gpu_seconds:g} s or more",
        )
        return
    if gpus.driver not in {"ok", "absent"}:
        yield Finding("degraded", "gpus.driver", f"the GPU driver: {gpus.driver}")
    for gpu in gpus.devices:
        if gpu.state != "ok":
            yield Finding(
                "degraded", f"gpus.{gpu.index}", f"GPU {gpu.index} {gpu.uuid} is {gpu.state}".strip()
            )
        elif isinstance(gpu.ecc_uncorrected, int) and gpu.ecc_uncorrected > 0:
            yield Finding(
                "degraded",
                f"gpus.{gpu.index}.ecc",
                f"GPU {gpu.index} {gpu.uuid} has {gpu.ecc_uncorrected} uncorrected memory errors",
            )
    if settings.gpus is not None and (count := len(gpus.devices)) != settings.gpus:
        severity: Severity = "degraded" if count < settings.gpus else "notice"
        yield Finding(severity, "gpus.count", f"{count} GPUs found, health.gpus expects {settings.gpus}")
