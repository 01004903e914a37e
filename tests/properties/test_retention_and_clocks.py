"""Images that rest for days, while somebody sets the clock: none goes early, none stays too long."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from appliance.accounts.forward import note_correction, resting
from appliance.datasets.leaps import DOUBT_SECONDS, LEAP_SECONDS, Belief, Leaps
from appliance.ledger import Connection
from appliance.ledger.database import open_writer
from appliance.ledger.migrations import migrate, shipped

NOW = 1_800_000_000.0
SECOND, MINUTE, HOUR, DAY = 1, 60, 3600, 86_400
NOTED_EVERY_SECONDS = 60.0
SLACK_SECONDS = 600.0  # what a kill takes back, and steps that are none
SEEN_SECONDS = 3  # by then a clock that was set is known to the disk


@dataclass(frozen=True)
class Resting:
    """An image: from when on it rests, and what had passed and run as it was stored."""

    since: float
    passed: float
    ran: float
    off: float
    """So long it had been off before, all together: what may have been doubted then."""


class Appliance:
    """One on a machine whose clock is `ahead` of the right time; the ledger and the last belief stay."""

    def __init__(self, ledger: Connection, ahead: float) -> None:
        ledger.execute("DELETE FROM clock_corrections")
        self._ledger = ledger
        self.passed = self.ran = self.off = 0.0
        self.ahead = ahead
        self.images: list[Resting] = []
        self.off_at_correction: float | None = None
        self._noted = Belief(self._clock(), self._clock())
        self._start()

    def _clock(self) -> float:
        return NOW + self.passed + self.ahead

    def _counted(self) -> float:
        return self.ran

    def _start(self) -> None:
        self._leaps = Leaps(self._noted, self._clock, self._counted)
        self._note()

    def _note(self) -> None:
        """As the upkeep does whenever it looks at the clock."""
        if (found := self._leaps.correction()) is not None:
            self._noted = self._leaps.belief()
            note_correction(self._ledger, found.until, found.seconds, found.reached)
            if (off := self.off_at_correction) is not None:
                self.off_at_correction = None
                self.restart(off, killed=True)
                return
            self._leaps.correct(found)
        belief, noted = self._leaps.belief(), self._noted
        known = (belief.until, belief.leapt, belief.leapt_at) == (noted.until, noted.leapt, noted.leapt_at)
        if not known or belief.time - noted.time >= NOTED_EVERY_SECONDS:
            self._noted = belief

    def run(self, seconds: float) -> None:
        for part in (min(seconds, SEEN_SECONDS), seconds - SEEN_SECONDS):
            if part > 0:
                self.passed += part
                self.ran += part
                self._note()

    def set(self, seconds: float) -> None:
        self.ahead += seconds
        self.run(SEEN_SECONDS)

    def upload(self) -> None:
        since = self._resting(self._leaps.stamp().rests_from)
        self._noted = self._leaps.belief()
        self.images.append(Resting(since, self.passed, self.ran, self.off))

    def restart(self, off: float, *, killed: bool) -> None:
        """After so many seconds off."""
        if not killed:
            self._noted = self._leaps.belief()
        self.passed += off
        self.off += off
        self._start()

    def check(self) -> None:
        now = self._resting(self._leaps.believed())
        for image in self.images:
            age, ran = now - image.since, self.ran - image.ran
            small = LEAP_SECONDS * (2 + ran / DOUBT_SECONDS)
            assert age <= self.passed - image.passed + small + SLACK_SECONDS, "it would be deleted early"
            assert age >= ran - image.off - SLACK_SECONDS, "it rests too long"

    def _resting(self, time: float) -> float:
        milliseconds: int = self._ledger.execute(f"SELECT {resting('?1')}", (int(time * 1000),)).get
        return milliseconds / 1000


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    connection = open_writer(tmp_path_factory.mktemp("rests") / "ledger.db")
    migrate(connection, shipped())
    connection.pragma("synchronous", 0)  # no example loses power
    logging.disable(logging.ERROR)  # of each doubt the log has a line
    yield connection
    logging.disable(logging.NOTSET)
    connection.close()


_SET = st.one_of(
    st.integers(-6 * HOUR, 6 * HOUR),
    st.integers(6 * HOUR, 30 * HOUR),
    st.integers(-400 * DAY, 400 * DAY),
    st.just("right"),
)
_OFF = st.one_of(st.integers(SECOND, 10 * MINUTE), st.integers(0, 5 * HOUR), st.integers(0, 20 * DAY))
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.integers(1, 30 * MINUTE)),
        st.tuples(st.just("run"), st.integers(HOUR, 40 * HOUR)),
        st.tuples(st.just("set"), _SET),
        st.tuples(st.just("upload"), st.just(0)),
        st.tuples(st.just("kill"), _OFF),
        st.tuples(st.just("stop"), _OFF),
        st.tuples(st.just("kill at a correction"), _OFF),
    ),
    min_size=3,
    max_size=40,
)
_A_DAY = [("run", 13 * HOUR), ("run", 13 * HOUR)]


@settings(
    max_examples=600,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(ahead=st.sampled_from([0, -60 * DAY, -2000 * DAY, 90 * DAY]), steps=_STEPS)
@example(  # stored while the clock is wrong, which then goes back and ahead
    -100 * DAY,
    [
        *[("upload", 0), ("set", 40 * DAY), ("upload", 0), ("set", -3 * HOUR), ("set", "right")],
        *[("upload", 0), *_A_DAY],
    ],
)
@example(  # stored when the clock is right, which steps a little before it is believed
    -2190 * DAY,
    [("upload", 0), ("set", "right"), ("upload", 0), ("set", 2 * MINUTE), *_A_DAY, *[("run", DAY)] * 30],
)
@example(  # killed when the ledger has the correction, and the disk not yet what is believed by it
    0,
    [
        *[("upload", 0), ("set", 60 * DAY), ("kill at a correction", 9 * DAY), ("run", DAY), ("upload", 0)],
        *[*_A_DAY, ("upload", 0), ("stop", HOUR)],
    ],
)
def test_images_rest_for_their_days(
    ledger: Connection, ahead: int, steps: Sequence[tuple[str, int | str]]
) -> None:
    appliance = Appliance(ledger, ahead)
    for step, number in steps:
        if step == "upload":
            appliance.upload()
        elif number == "right":
            appliance.set(-appliance.ahead)
        elif step == "set":
            appliance.set(float(number))
        elif step == "run":
            appliance.run(float(number))
        elif step == "kill at a correction":
            appliance.off_at_correction = float(number)
        else:
            appliance.restart(float(number), killed=step == "kill")
        appliance.check()
