"""One daemon under strace for the promises that are about system calls."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w

from tests.hosts import Host
from tests.running import CopyState, RunningAppliance
from tests.tracing import Traced, tracer

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A host of a customer, declared to the traced daemon."""
    with Host() as host:
        yield host


@pytest.fixture(scope="module")
def traced(copy_state: CopyState, tmp_path_factory: pytest.TempPathFactory, host: Host) -> Iterator[Traced]:
    """HOME is fresh and CI unset: libraries that report home hide it from a build machine. Collections have
    graphs from 20 kB of vectors on.
    """
    home = tmp_path_factory.mktemp("home")
    log = tmp_path_factory.mktemp("strace") / "calls"
    state = copy_state()
    residency = tomllib.loads((state.folder / "residency.toml").read_text())
    residency["destinations"] = [host.declaration]
    (state.folder / "residency.toml").write_text(tomli_w.dumps(residency))
    with (state.folder / "appliance.toml").open("a") as settings:
        settings.write("\n[search]\nflat_bytes = 20_000\n")  # a few records have a graph, and that a file
    environment = {
        "HOME": str(home),
        "PATH": "/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(REPOSITORY),  # the code that is tested, wherever the environment was installed from
    }
    with RunningAppliance(state, state.port, wrapper=tracer(log), environment=environment) as running:
        yield Traced(running, home, log)
