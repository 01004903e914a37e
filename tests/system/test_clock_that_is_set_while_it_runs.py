"""The real daemon on a machine whose clock somebody sets, and that is killed meanwhile.

What it reads as the clock and as the counter of seconds is the machine's, and what a file says beside: time
that passes moves both, a clock that is set moves alone. All the rest is real.
"""

import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests import images
from tests.running import CopyState, RunningAppliance

PROGRAM = """
import sys, time
from pathlib import Path

clock, counter, moved = time.time, time.monotonic, Path(sys.argv[1])
def ahead():
    return [float(seconds) for seconds in moved.read_text().split()]
time.time = lambda: clock() + sum(ahead())
time.monotonic = lambda: counter() + ahead()[0]
from appliance.cli import main
sys.exit(main(sys.argv[3:]))
"""
HOUR, DAY = 3600.0, 86_400.0
UPLOAD = "/recognition/v2/training-image"
LISTED = f"{UPLOAD}/"


class Machine:
    """What the daemon takes for both clocks of its machine."""

    def __init__(self, folder: Path) -> None:
        self.file, self._draft = folder / "moved", folder / "draft"
        self._passed = self._set = 0.0
        self._write()

    def pass_by(self, seconds: float) -> None:
        self._passed += seconds
        self._write()

    def set_by(self, seconds: float) -> None:
        self._set += seconds
        self._write()

    def _write(self) -> None:
        self._draft.write_text(f"{self._passed} {self._set}")
        self._draft.replace(self.file)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def running(copy_state: CopyState, machine: Machine) -> Iterator[RunningAppliance]:
    state = copy_state()
    wrapper = [sys.executable, "-c", PROGRAM, str(machine.file)]
    with RunningAppliance(state, state.port, wrapper=wrapper) as daemon:
        yield daemon


def upload(running: RunningAppliance, seed: int) -> int:
    headers = running.headers(content_type="image/jpeg")
    return running.call("POST", UPLOAD, images.jpeg(64, seed=seed), headers=headers).status


def takes(running: RunningAppliance, token: str) -> bool:
    status = running.call("GET", LISTED, headers=running.headers(authorization=f"Token {token}")).status
    assert status in {200, 401}
    return status == 200


def in_seconds(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def issue(running: RunningAppliance, expires_at: str) -> str:
    answer = running.post("/appliance/v1/tokens", {"scopes": ["datasets:read"], "expires_at": expires_at})
    assert answer.status == 201, answer.body
    return str(answer.document["token"])


def use_a_link(running: RunningAppliance) -> None:
    """Have the ledger told how late it is, as it is twice a minute."""
    link = f"/files/{uuid.uuid4()}.jpg?exp=1&sig={'A' * 43}"
    assert running.call("GET", link, headers={}).status == 403


def test_what_ended_stays_ended_and_what_waits_waits(running: RunningAppliance, machine: Machine) -> None:
    ending, living = issue(running, in_seconds(HOUR)), issue(running, in_seconds(DAY / 2))
    running.state.ask("agreement", "sign", "demo", "training-data", "--valid-until", in_seconds(HOUR))
    recovery = ("token", "add", "demo", "--recovery", "--scope", "datasets:read")
    waiting = running.state.ask(*recovery)["token"]
    assert upload(running, 1) == 201

    machine.set_by(2 * DAY)
    assert upload(running, 2) == 403
    assert [takes(running, token) for token in (ending, living, waiting)] == [False, False, False]
    machine.set_by(-2 * DAY)
    assert upload(running, 3) == 201
    assert [takes(running, token) for token in (ending, living, waiting)] == [True, True, False]

    machine.pass_by(HOUR)
    assert upload(running, 4) == 403
    assert [takes(running, token) for token in (ending, living, waiting)] == [False, True, False]
    machine.set_by(-600)
    assert upload(running, 5) == 403
    assert not takes(running, ending)
    use_a_link(running)
    running.kill()
    running.start()
    assert upload(running, 6) == 403
    assert [takes(running, token) for token in (ending, living, waiting)] == [False, True, False]
    machine.pass_by(DAY)
    assert takes(running, waiting)
