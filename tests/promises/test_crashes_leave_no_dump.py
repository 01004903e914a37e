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

ENDED = re.compile(r"^(\d+) +\+\+\+ killed by (SIG\w+)( \(core dumped\))? \+\+\+", re.MULTILINE)


@pytest.fixture(scope="module", autouse=True)
def _dumps_allowed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The daemon is started by somebody who lets every process dump all it has, and the kernel does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        if not dumps(tmp_path_factory.mktemp("dumps")):
            pytest.skip("this machine dumps no process at all: that none of these is would prove nothing")
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def dumps(folder: Path) -> bool:
    """Whether a plain process that aborts in this folder is dumped, and seen to be."""
    log = folder / "calls"
    strace = ["strace", "-f", "-q", "-e", "trace=none", "-e", "signal=SIGABRT", "-o", str(log)]
    subprocess.run([*strace, sys.executable, "-c", "import os; os.abort()"], cwd=folder, check=False)
    return ("SIGABRT", True) in crashes(log.read_text()).values()


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

    daemon = appliance.pid
    with image_held_by(children(appliance)[1], appliance):
        assert appliance.stop(signal.SIGABRT) != 0
    ended = crashes(traced.log.read_text(errors="replace"))
    assert ended[decoder.pid] == ended[device.pid] == ("SIGSEGV", False)
    assert ended[daemon] == ("SIGABRT", False)
    assert [name for name, dumped in ended.values() if dumped] == []


def crashes(log: str) -> dict[int, tuple[str, bool]]:
    """By thread (the first has the number of its process): the signal that ended it, and if it was dumped."""
    return {int(thread): (name, bool(dumped)) for thread, name, dumped in ENDED.findall(log)}


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
