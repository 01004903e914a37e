"""Findings, verdicts and metrics from facts that each test states."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from appliance import config, health, metrics, residency
from appliance.errors import StorageFailed
from appliance.health import Gpu, Gpus, Health
from appliance.recognition.engine import DeviceStatus
from appliance.volume import VolumeFacts

VOLUME = VolumeFacts(Path("/data"), "ext4", "luks", False, 50 << 30, 100 << 30, 1000)
READY = DeviceStatus("cpu", "CPUExecutionProvider", queued=0, restarts=0, state="serving", note="")
GPU = Gpu(0, "ok", "GPU-0", "Fake", 41, 1 << 30, 8 << 30, 0)


DeviceState = Literal["serving", "restarting"]


class Machine:
    """What the sources answer; a test changes the fields."""

    def __init__(self) -> None:
        self.volume = VOLUME
        self.rules: list[residency.Finding] = []
        self.ledger_fault: str | None = None
        self.devices = [READY]
        self.gpus = Gpus()
        self.notices: list[health.Finding] = []
        self.answering = threading.Event()
        self.answering.set()
        self.unreadable = False
        self.looks = threading.Semaphore(0)

    def facts(self) -> residency.Facts:
        self.looks.release()
        if self.unreadable:
            raise StorageFailed("/data: Input/output error")
        return residency.Facts(self.volume, (), 0)

    def read_gpus(self) -> Gpus:
        self.answering.wait()
        return self.gpus

    def sources(self) -> health.Sources:
        return health.Sources(
            machine=self.facts,
            rules=lambda _: self.rules,
            ledger_fault=lambda: self.ledger_fault,
            devices=lambda: self.devices,
            notices=lambda: self.notices,
            gpus=self.read_gpus,
        )


@asynccontextmanager
async def observing(machine: Machine, **settings: float) -> AsyncIterator[Health]:
    """A Health that serves and has looked at the machine once; it looks again when `observe` is called."""
    section = config.Health.model_validate({"interval_seconds": 3600.0, **settings})
    async with Health(section, machine.sources(), metrics.create()) as observer:
        observer.serving()
        yield observer


def keys(observer: Health) -> list[tuple[str, str]]:
    return [(finding.severity, finding.key) for finding in observer.findings()]


async def test_a_sound_machine_is_ready() -> None:
    async with observing(Machine()) as observer:
        readiness = observer.readiness()
        assert (readiness.state, readiness.serving, readiness.findings) == ("ready", True, ())
        assert observer.watchdog() is None


async def test_little_space_degrades_and_still_serves() -> None:
    machine = Machine()
    machine.volume = replace(VOLUME, free_bytes=(1 << 30) - 1)
    async with observing(machine) as observer:
        assert keys(observer) == [("degraded", "volume.space")]
        assert (observer.readiness().state, observer.readiness().serving) == ("degraded", True)
        machine.volume = replace(VOLUME, free_bytes=1 << 30)
        await observer.observe()
        assert observer.readiness().state == "ready"


async def test_a_read_only_volume_fails() -> None:
    machine = Machine()
    machine.volume = replace(VOLUME, read_only=True)
    async with observing(machine) as observer:
        assert keys(observer) == [("failed", "volume.read_only")]
        assert (observer.readiness().state, observer.readiness().serving) == ("failed", False)
        assert observer.watchdog() is None  # a restart would not make it writable


async def test_a_volume_that_cannot_be_examined_fails() -> None:
    machine = Machine()
    machine.unreadable = True
    async with observing(machine) as observer:
        assert keys(observer) == [("failed", "volume.unreadable")]
        assert observer.volume is None


async def test_a_rule_broken_after_the_start_fails_and_a_warning_is_only_told() -> None:
    machine = Machine()
    machine.rules = [
        residency.Finding("warn", "state", "plain"),
        residency.Finding("refuse", "swap", "/dev/sdb is plain"),
    ]
    async with observing(machine) as observer:
        assert keys(observer) == [("failed", "swap"), ("notice", "state")]
        machine.rules.pop()
        await observer.observe()
        assert observer.readiness().state == "ready"


async def test_a_failed_ledger_fails_and_asks_for_a_restart() -> None:
    machine = Machine()
    async with observing(machine) as observer:
        machine.ledger_fault = "ledger.db: disk I/O error"
        assert keys(observer) == [("failed", "ledger")]
        assert observer.readiness().state == "failed"
        assert observer.watchdog() == "ledger.db: disk I/O error"


@pytest.mark.parametrize(
    ("states", "verdict"), [(("serving", "restarting"), "degraded"), (("restarting", "restarting"), "failed")]
)
async def test_lost_device_workers(states: tuple[DeviceState, DeviceState], verdict: str) -> None:
    machine = Machine()
    machine.devices = [msgspec.structs.replace(READY, state=state) for state in states]
    async with observing(machine) as observer:
        assert observer.readiness().state == verdict


@pytest.mark.parametrize(
    ("gpus", "expected", "found"),
    [
        (Gpus(), None, []),
        (Gpus("ok", (GPU,)), None, []),
        (Gpus(), 1, [("degraded", "gpus.count")]),
        (Gpus("ok", (GPU,)), 2, [("degraded", "gpus.count")]),
        (Gpus("ok", (GPU,)), 1, []),
        (Gpus("ok", (GPU,)), 0, [("notice", "gpus.count")]),
        (Gpus("Driver Not Loaded"), None, [("degraded", "gpus.driver")]),
        (Gpus("ok", (replace(GPU, state="lost"),)), 1, [("degraded", "gpus.0")]),
        (Gpus("ok", (replace(GPU, ecc_uncorrected=2),)), 1, [("degraded", "gpus.0.ecc")]),
        (Gpus("ok", (replace(GPU, ecc_uncorrected="unsupported"),)), 1, []),
    ],
)
async def test_gpu_findings(gpus: Gpus, expected: int | None, found: list[tuple[str, str]]) -> None:
    machine = Machine()
    machine.gpus = gpus
    settings = {} if expected is None else {"gpus": expected}
    async with observing(machine, **settings) as observer:
        assert keys(observer) == found


async def test_a_hung_driver_is_a_finding_and_shows_no_old_values() -> None:
    machine = Machine()
    machine.gpus = Gpus("ok", (GPU,))
    async with observing(machine, gpu_seconds=0.05) as observer:
        machine.answering.clear()
        await observer.observe()
        assert keys(observer) == [("degraded", "gpus.silent")]
        assert observer.gpus == Gpus("silent", (Gpu(0, "silent", "GPU-0", "Fake"),))
        machine.answering.set()
        await observer.observe()
        assert keys(observer) == []
        assert observer.gpus.devices == (GPU,)


async def test_lifecycle_comes_before_findings() -> None:
    section = config.Health.model_validate({"interval_seconds": 3600.0})
    async with Health(section, Machine().sources(), metrics.create()) as observer:
        assert (observer.readiness().state, observer.readiness().serving) == ("starting", False)
        observer.serving()
        assert observer.readiness().serving
        observer.draining()
        assert (observer.readiness().state, observer.readiness().serving) == ("draining", False)


async def test_it_looks_again_by_itself() -> None:
    machine = Machine()
    async with observing(machine, interval_seconds=0.01):
        assert await asyncio.to_thread(machine.looks.acquire, timeout=10)  # at the start
        assert await asyncio.to_thread(machine.looks.acquire, timeout=10)


async def test_what_other_parts_have_to_say_now_is_a_finding_at_once() -> None:
    machine = Machine()
    async with observing(machine) as observer:
        machine.notices = [health.Finding("notice", "keys.root", "a rotation is under way")]
        assert [finding.key for finding in observer.findings()] == ["keys.root"]
        assert observer.readiness().state == "ready"
        machine.notices = []
        assert observer.findings() == ()


async def test_another_parts_finding_stays_until_it_is_withdrawn() -> None:
    async with observing(Machine()) as observer:
        observer.report(health.Finding("notice", "config", "first"))
        observer.report(health.Finding("notice", "config", "second"))
        await observer.observe()
        assert [finding.message for finding in observer.findings()] == ["second"]
        observer.withdraw("config")
        assert observer.findings() == ()


async def test_metrics_name_their_dcgm_counterparts_and_leave_out_what_is_unsupported() -> None:
    machine = Machine()
    machine.gpus = Gpus("ok", (GPU, replace(GPU, index=1, ecc_uncorrected="unsupported", state="lost")))
    registry = metrics.create()
    section = config.Health.model_validate({"interval_seconds": 3600.0})
    async with Health(section, machine.sources(), registry):
        text = metrics.expose(registry)[0].decode()
    assert 'appliance_gpu_temperature_celsius{gpu="0"} 41.0' in text
    assert 'appliance_gpu_memory_used_bytes{gpu="1"} 1.073741824e+09' in text
    assert 'appliance_gpu_ecc_uncorrected_errors{gpu="0"} 0.0' in text
    assert 'appliance_gpu_ecc_uncorrected_errors{gpu="1"}' not in text
    assert 'appliance_gpu_lost{gpu="1"} 1.0' in text
    assert "appliance_volume_free_bytes 5.36870912e+10" in text
    assert 'appliance_findings{severity="degraded"} 1.0' in text
    assert 'appliance_findings{severity="failed"} 0.0' in text
    for name in ("GPU_TEMP", "FB_USED", "FB_TOTAL", "ECC_DBE_VOL_TOTAL"):
        assert f"(DCGM_FI_DEV_{name})" in text


async def test_the_status_document_is_plain_json() -> None:
    machine = Machine()
    machine.gpus = Gpus("ok", (replace(GPU, temperature_celsius="unsupported"),))
    async with observing(machine) as observer:
        document = health.Status(
            version="1",
            profile="demo",
            state=observer.readiness().state,
            findings=(health.Finding("notice", "config", "text"),),
            pid=1,
            uptime_seconds=0.5,
            listeners={"api": ["127.0.0.1:8080"]},
            devices=machine.devices,
            gpus=observer.gpus,
            volume=observer.volume,
            customers=1,
            collections=None,
            bundles=[],
        ).document()
    document = json.loads(json.dumps(document))
    assert document["findings"] == [{"severity": "notice", "key": "config", "message": "text"}]
    assert document["volume"] == {
        "mount": "/data",
        "filesystem": "ext4",
        "encryption": "luks",
        "read_only": False,
        "free_bytes": 50 << 30,
        "total_bytes": 100 << 30,
        "free_inodes": 1000,
        "luks": [],
    }
    assert document["gpus"]["devices"][0]["temperature_celsius"] == "unsupported"
    assert document["devices"] == [
        {
            "name": "cpu",
            "provider": "CPUExecutionProvider",
            "queued": 0,
            "restarts": 0,
            "state": "serving",
            "note": "",
        }
    ]


async def test_rules_are_judged_every_minute_however_seldom_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert health.RULES_SECONDS <= 60
    monkeypatch.setattr(health, "RULES_SECONDS", 0.001)
    machine = Machine()
    async with observing(machine, interval_seconds=3600.0):
        for _ in range(3):
            assert await asyncio.to_thread(machine.looks.acquire, timeout=30)
