"""The registry, ours alone, in the text format; plain numbers say what the library's own kinds say."""

import asyncio
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest

from appliance.metrics import CPU_STAGES, SAMPLED, CpuTime, Durations, Registry, create, expose

BOUNDS = (0.001, 0.1, 2.5, 10.0)


def test_two_registries_share_nothing() -> None:
    first, second = create(), create()
    Counter("appliance_tests", "Tests", registry=first).inc(3)
    assert b"appliance_tests_total 3.0" in expose(first)[0]
    assert b"appliance_tests" not in expose(second)[0]
    assert REGISTRY.get_sample_value("appliance_tests_total") is None


def test_the_process_is_shown_and_every_name_is_ours() -> None:
    text, content_type = expose(create())
    lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
    assert any(line.startswith("appliance_process_resident_memory_bytes ") for line in lines)
    assert all(line.startswith("appliance_") for line in lines)
    assert content_type.startswith("text/plain; version=")


@given(st.lists(st.floats(0, 20)))
def test_durations_read_as_a_histogram_of_the_library(seconds: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    durations = Durations("stage_seconds", "of a stage", ("decode",), BOUNDS)
    ours.register(durations)
    histogram = Histogram("stage_seconds", "of a stage", ("stage",), buckets=BOUNDS, registry=theirs)
    labelled = histogram.labels("decode")
    for one in seconds:
        durations.observe("decode", one)
        labelled.observe(one)
    assert told(ours) == told(theirs)


def told(registry: CollectorRegistry) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line]


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_one_block_in_so_many_counts_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("appliance.metrics.thread_time", lambda: float(next(clock)))
    spent = CpuTime()
    for _ in range(SAMPLED - 1):
        with spent:
            pass
    assert spent.seconds == 0
    with spent:
        pass
    assert spent.seconds == SAMPLED


def test_a_block_within_a_block_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("appliance.metrics.thread_time", lambda: float(next(clock)))
    spent = CpuTime()
    for _ in range(SAMPLED):
        with spent, spent, spent:
            pass
    assert spent.seconds == SAMPLED


def test_a_block_that_fails_is_measured_and_over() -> None:
    spent = CpuTime()
    for _ in range(2 * SAMPLED):
        with pytest.raises(ValueError, match="no"), spent:
            raise ValueError("no")
    assert spent.seconds > 0


async def stepping(act: Callable[[], None], times: int) -> str:
    for _ in range(times):
        act()
        await asyncio.sleep(0)
    return "done"


async def test_steps_measure_the_work_and_not_what_others_do_between() -> None:
    spent = CpuTime()
    work = asyncio.ensure_future(wrapped(spent, stepping(lambda: burn(0.001), 2 * SAMPLED)))
    others = asyncio.ensure_future(stepping(lambda: burn(0.001), 2 * SAMPLED))
    assert await work == "done"
    await others
    assert 0.001 * 2 * SAMPLED * 0.9 < spent.seconds < 0.001 * 2 * SAMPLED * 1.6


async def wrapped(spent: CpuTime, work: "asyncio._CoroutineLike[str]") -> str:
    return await spent.steps(work)  # type: ignore[arg-type]


async def test_steps_hand_on_results_errors_and_cancelling() -> None:
    async def failing() -> None:
        await asyncio.sleep(0)
        raise KeyError("inside")

    heard: list[str] = []

    async def waiting() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            heard.append("cancelled")
            raise

    spent = CpuTime()
    with pytest.raises(KeyError, match="inside"):
        await spent.steps(failing())
    task = asyncio.ensure_future(wrapped(spent, waiting()))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert heard == ["cancelled"]


def test_every_stage_is_exposed_beside_the_rest_of_the_loop() -> None:
    text = expose(Registry())[0].decode()
    for stage in (*CPU_STAGES, "http"):
        assert f'appliance_loop_cpu_seconds_total{{stage="{stage}"}}' in text


def test_no_stage_falls_when_an_estimate_runs_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.metrics.thread_time", lambda: 10.0)
    registry = Registry()
    name, labels = "appliance_loop_cpu_seconds_total", {"stage": "http"}
    assert registry.get_sample_value(name, labels) == 10.0
    registry.cpu("answer").seconds = 4.0
    assert registry.get_sample_value(name, labels) == 10.0
    monkeypatch.setattr("appliance.metrics.thread_time", lambda: 16.0)
    assert registry.get_sample_value(name, labels) == 12.0
