"""Fixtures that more than one kind of test uses: a prepared state folder and real daemons on it."""

import shutil
from collections.abc import Iterator

import pytest

from demo.state import DemoState, prepare
from tests.running import CopyState, RunningAppliance, free_port


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
