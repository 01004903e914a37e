"""A process that crashes with images in its memory leaves no dump of it; strace says what the kernel did."""

import contextlib
import http.client
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests import images
from tests.running import RunningAppliance
from tests.tracing import Traced
from tests.waiting import eventually

ENDED = re.compile(r"\+\+\+ killed by (SIG\w+)( \(core dumped\))? \+\+\+")


@pytest.fixture(scope="module", autouse=True)
def _dumps_allowed() -> Iterator[None]:
    """The daemon is started by somebody who lets every process dump all it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard == 0:
        pytest.skip("this machine lets no process dump core")
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def test_a_process_that_may_dump_is_seen_to(tmp_path: Path) -> None:
    """Else the next test proves nothing."""
    log = tmp_path / "calls"
    crash = "import os; os.abort()"
    subprocess.run(
        [
            "strace",
            "-f",
            "-q",
            "-e",
            "trace=none",
            "-e",
            "signal=SIGSEGV,SIGABRT",
            "-o",
            log,
            sys.executable,
            "-c",
            crash,
        ],
        cwd=tmp_path,
        check=False,
    )
    assert crashes(log.read_text()) == [("SIGABRT", True)]


def test_neither_the_daemon_nor_its_children_dump_what_they_hold(traced: Traced) -> None:
    appliance = traced.appliance
    decoder, device = children(appliance)
    assert classify(appliance) == 200  # the decoder has seen an image, and its memory still shows it
    decoder.send_signal(signal.SIGSEGV)
    eventually(lambda: not decoder.is_running(), "the decoder is gone")

    with image_held_by(device, appliance):
        device.send_signal(signal.SIGSEGV)
    eventually(lambda: not device.is_running(), "the device worker is gone")
    eventually(lambda: classify(appliance) == 200, "both are replaced")

    with image_held_by(children(appliance)[1], appliance):
        assert appliance.stop(signal.SIGABRT) != 0
    ended = crashes(traced.log.read_text(errors="replace"))
    assert {name for name, _ in ended} >= {"SIGSEGV", "SIGABRT"}
    assert [name for name, dumped in ended if dumped] == []


def crashes(log: str) -> list[tuple[str, bool]]:
    """The signals that ended processes, and whether memory was dumped."""
    return [(name, bool(dumped)) for name, dumped in ENDED.findall(log)]


def children(appliance: RunningAppliance) -> tuple[psutil.Process, psutil.Process]:
    """A decoder and the device worker, the one process with the models' memory."""
    _, *every = appliance.processes()
    *decoders, device = sorted(every, key=lambda process: process.memory_info().rss)
    return decoders[0], device


@contextlib.contextmanager
def image_held_by(device: psutil.Process, appliance: RunningAppliance) -> Iterator[None]:
    """The device worker is stopped with an image in its slot, and goes on after the block."""
    device.suspend()
    client = threading.Thread(target=quietly(classify), args=(appliance,))
    client.start()
    try:
        eventually(lambda: queued(appliance) == 1, "the image waits for the model")
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            device.resume()
        client.join(timeout=60)


def classify(appliance: RunningAppliance) -> int:
    path = f"/recognition/v2/classify?task_id={appliance.task}"
    return appliance.call(
        "POST", path, images.jpeg(), headers=appliance.headers(content_type="image/jpeg")
    ).status


def quietly(act: Callable[[RunningAppliance], object]) -> Callable[[RunningAppliance], None]:
    def run(appliance: RunningAppliance) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            act(appliance)

    return run


def queued(appliance: RunningAppliance) -> int:
    return int(appliance.state.ask("status")["devices"][0]["queued"])
