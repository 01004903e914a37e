"""Fixtures that more than one kind of test uses: a prepared state folder and real daemons on it."""

import shutil
from collections.abc import Iterator

import pytest

from demo.state import DemoState, prepare
from tests.running import CopyState, RunningAppliance, free_port
from tests.serving import Served, Tenant


@pytest.fixture(scope="session")
def prepared_state(tmp_path_factory: pytest.TempPathFactory) -> DemoState:
    """What `./dev run` makes before it starts the daemon; nobody serves it, tests copy it."""
    return prepare(tmp_path_factory.mktemp("prepared") / "state", free_port(), lambda line: None)


@pytest.fixture(scope="session")
def copy_state(prepared_state: DemoState, tmp_path_factory: pytest.TempPathFactory) -> CopyState:
    """Gives a state folder of its own, with a free port, at each call."""

    def copy() -> DemoState:
        folder = tmp_path_factory.mktemp("copied") / "state"
        shutil.copytree(prepared_state.folder, folder)
        return prepare(folder, free_port(), lambda line: None)

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
