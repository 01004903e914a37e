"""Ends of tokens over stops and crashes, while somebody sets the clock: what was refused stays refused."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from appliance.accounts.forward import TOLD_EVERY_SECONDS, is_set_back, latest_time, tell_time
from appliance.accounts.times import Times
from appliance.datasets.leaps import Belief, Leaps
from appliance.ledger import Connection
from appliance.ledger.database import open_writer
from appliance.ledger.migrations import migrate, shipped

NOW = 1_800_000_000.0
NOTED_EVERY_SECONDS = 60.0
OFF_SECONDS = 2.0
TICK_SECONDS = 10.0


class Appliance:
    """One on a machine whose clock is `ahead` of the right time; the ledger and the last belief stay."""

    def __init__(self, ledger: Connection) -> None:
        ledger.execute("DELETE FROM latest_time")
        self._ledger = ledger
        self.right, self.ahead = NOW, 0.0
        self._noted = Belief(NOW, NOW)
        self.ended = NOW  # what ends by then was refused, and has to stay so
        self._start()

    def wall(self) -> float:
        return self.right + self.ahead

    def _counted(self) -> float:
        return self.right - NOW

    def _start(self) -> None:
        now = self.wall()
        latest, set_back = latest_time(self._ledger, now), is_set_back(self._ledger, now)
        self.times = Times(latest, self.wall, self._counted, set_back=set_back)
        self.leaps = Leaps(self._noted, self.wall, self._counted)
        self.times.go_by(self.leaps.believed())
        self.tell()

    def tell(self) -> None:
        """As links do twice a minute, and when one that has ended is refused."""
        tell_time(self._ledger, self.times.forward(), self.wall())
        self._told_at, self._told_clock = self.right, self.wall()

    def note(self) -> None:
        """As retention does once a minute."""
        self._noted = self.leaps.belief()

    def pass_by(self, seconds: float) -> None:
        until = self.right + seconds
        while self.right < until:
            passed = min(until - self.right, TICK_SECONDS)
            self.right += passed
            self.ended += passed
            if self.right - self._told_at >= TOLD_EVERY_SECONDS:
                self.tell()
            if self.leaps.belief().time - self._noted.time >= NOTED_EVERY_SECONDS:
                self.note()

    def restart(self, ahead: float, *, crash: bool) -> None:
        """After a moment off, with the clock so far ahead of the right time."""
        if not crash:
            self.note()
            self.tell()
        self.right += OFF_SECONDS
        self.ahead = ahead
        if self.wall() >= self._told_clock:  # nothing tells that it was set back
            self.ended = min(self.ended, self._noted.time)
        self._start()


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    path: Path = tmp_path_factory.mktemp("ends") / "ledger.db"
    connection = open_writer(path)
    migrate(connection, shipped())
    connection.pragma("synchronous", 0)  # no example loses power
    yield connection
    connection.close()


_AHEAD = st.one_of(
    st.just(0),
    st.integers(-60, 60),
    st.integers(-3 * 3600, 3 * 3600),
    st.integers(-40 * 86_400, 40 * 86_400),
)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.integers(1, 40)),
        st.tuples(st.just("pass"), st.integers(40, 1500)),
        st.tuples(st.just("set"), _AHEAD),
        st.tuples(st.just("tell"), st.just(0)),
        st.tuples(st.just("crash"), _AHEAD),
        st.tuples(st.just("stop"), _AHEAD),
    ),
    max_size=25,
)


@settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@example([("pass", 5), ("set", 3700), ("tell", 0), ("set", 0), ("pass", 11), ("crash", -40)])
@given(steps=_STEPS)
def test_what_was_refused_stays_refused(ledger: Connection, steps: Sequence[tuple[str, int]]) -> None:
    appliance = Appliance(ledger)
    for step, number in steps:
        if step == "pass":
            appliance.pass_by(number)
        elif step == "set":
            appliance.ahead = number
        elif step == "tell":
            appliance.tell()
        else:
            appliance.restart(number, crash=step == "crash")
        assert appliance.times.ended() >= appliance.ended
