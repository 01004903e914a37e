"""Fixtures that more than one kind of test uses: a prepared state folder and real daemons on it."""

import fcntl
import os
import shutil
from collections.abc import Iterator

import pytest

from demo.state import DemoState, prepare
from tests.running import CopyState, RunningAppliance, free_port
from tests.serving import Served, Tenant
from tests.verbs import ForkedState


@pytest.fixture(scope="session")
def prepared_state(tmp_path_factory: pytest.TempPathFactory) -> DemoState:
    """What `./dev run` makes before it starts the daemon; nobody serves it, tests copy it.

    It is made once for all workers of a run, by the first that asks.
    """
    run = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent
    with (run / "prepared.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Always with the same port: of what is complete it changes nothing, while others copy it.
        return prepare(run / "prepared" / "state", 8080, lambda line: None)


@pytest.fixture(scope="session")
def copy_state(prepared_state: DemoState, tmp_path_factory: pytest.TempPathFactory) -> CopyState:
    """Gives a state folder of its own, with a free port, at each call."""

    def copy() -> DemoState:
        folder = tmp_path_factory.mktemp("copied") / "state"
        shutil.copytree(prepared_state.folder, folder)
        return ForkedState(prepare(folder, free_port(), lambda line: None).folder)

    return copy


@pytest.fixture(scope="session")
def appliance(copy_state: CopyState) -> Iterator[RunningAppliance]:
    """One daemon for the session. Tests make collections of their own and leave it serving."""
    state = copy_state()
    with RunningAppliance(state, state.port) as running:
        yield running


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server inside the test process for the session; tests make tenants of their own."""
    with Served(tmp_path_factory.mktemp("served")) as served:
        yield served


@pytest.fixture(scope="module")
def tenant(served: Served, request: pytest.FixtureRequest) -> Tenant:
    """A customer of the module's own."""
    return served.tenant(request.module.__name__)
