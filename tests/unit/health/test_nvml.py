"""NVML's answers and faults through the real pynvml, against a fake library compiled from C."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.health import Gpu, Gpus, Nvml, Probe

MACHINE = Callable[..., None]
GIB = 1 << 30


def test_metrics_of_every_gpu(machine: MACHINE) -> None:
    machine(f"gpu 41 {GIB} {8 * GIB} 0 0", f"gpu 77 {2 * GIB} {16 * GIB} 3 0")
    assert Nvml().read() == Gpus(
        "ok",
        (
            Gpu(0, "ok", "GPU-fake-0", "Fake GPU", 41, GIB, 8 * GIB, 0),
            Gpu(1, "ok", "GPU-fake-1", "Fake GPU", 77, 2 * GIB, 16 * GIB, 3),
        ),
    )


def test_what_a_gpu_cannot_measure_is_unsupported_and_not_zero(machine: MACHINE) -> None:
    machine(f"gpu -1 {GIB} {8 * GIB} -1 0", "gpu 40 -1 -1 0 0")
    first, second = Nvml().read().devices
    assert (first.temperature_celsius, first.ecc_uncorrected) == ("unsupported", "unsupported")
    assert (first.state, first.memory_used_bytes) == ("ok", GIB)
    assert (second.memory_used_bytes, second.memory_total_bytes) == ("unsupported", "unsupported")
    assert second.temperature_celsius == 40


def test_a_lost_gpu_does_not_hide_the_other(machine: MACHINE) -> None:
    machine(f"gpu 41 {GIB} {8 * GIB} 0 15", f"gpu 42 {GIB} {8 * GIB} 0 0")
    lost, alive = Nvml().read().devices
    assert (lost.state, lost.uuid, lost.temperature_celsius) == ("lost", "GPU-fake-0", None)
    assert (alive.state, alive.temperature_celsius) == ("ok", 42)


def test_another_fault_of_a_gpu_is_told_in_nvmls_words(machine: MACHINE) -> None:
    machine("gpu 41 1 1 0 999")
    assert Nvml().read().devices[0].state == "Unknown Error"


@pytest.mark.parametrize(("code", "words"), [(9, "Driver Not Loaded"), (18, "version mismatch")])
def test_a_driver_that_cannot_be_used(machine: MACHINE, code: int, words: str) -> None:
    machine(f"init={code}")
    answer = Nvml().read()
    assert words in answer.driver
    assert answer.devices == ()


def test_a_driver_that_comes_back_is_used_again(machine: MACHINE) -> None:
    nvml = Nvml()
    machine("gpu 41 1 2 0 0")
    assert nvml.read().driver == "ok"
    machine("init=9")
    assert nvml.read().driver == "Driver Not Loaded"
    machine("gpu 43 1 2 0 0")
    assert nvml.read().devices[0].temperature_celsius == 43


def test_no_library_is_no_fault(tmp_path: Path) -> None:
    # A file that is no library shadows whatever this machine has; a process of its own, because a loaded
    # library stays loaded.
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")
    answer = subprocess.run(
        [sys.executable, "-c", "from appliance.health import Nvml; print(Nvml().read())"],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == str(Gpus("absent"))


async def test_a_wedged_driver_costs_its_thread_only(machine: MACHINE) -> None:
    machine("wedge=1", "gpu 41 1 2 0 0")
    probe = Probe("gpus", Nvml().read)
    with pytest.raises(TimeoutError):
        await probe.reading(0.05)
    with pytest.raises(TimeoutError):  # no second call behind the first
        await probe.reading(0.05)
    assert sum(thread.name == "gpus" for thread in threading.enumerate()) == 1
    machine("gpu 42 1 2 0 0")  # the driver comes back, and so does the answer
    assert (await probe.reading(10)).devices[0].temperature_celsius == 42
    probe.close()


async def test_a_probe_hands_on_what_its_function_raises() -> None:
    def broken() -> int:
        raise OSError(5, "Input/output error")

    probe = Probe("broken", broken)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            await probe.reading(10)
    probe.close()


def test_a_wedged_call_does_not_hold_the_process_at_exit(fake_library: Path, tmp_path: Path) -> None:
    state = tmp_path / "gpus.txt"
    state.write_text("wedge=1\n")
    program = """
import asyncio, contextlib
from appliance.health import Nvml, Probe
async def main():
    with contextlib.suppress(TimeoutError):
        await Probe("gpus", Nvml().read).reading(0.05)
    print("done", flush=True)
asyncio.run(main())
"""
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "LD_LIBRARY_PATH": str(fake_library), "FAKE_NVML": str(state)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert answer.stdout == "done\n"


async def test_the_loop_runs_on_while_a_call_is_wedged(machine: MACHINE) -> None:
    machine("wedge=1")
    probe = Probe("gpus", Nvml().read)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    async with asyncio.TaskGroup() as tasks:
        ticking = tasks.create_task(tick())
        with pytest.raises(TimeoutError):
            await probe.reading(0.1)
        ticking.cancel()
    assert ticks > 100
    machine()
    await probe.reading(10)
    probe.close()
