"""An appliance that is restarted and killed, and whose clock is set, as far as what rests for days knows."""

from dataclasses import dataclass

from hypothesis import strategies as st

from appliance.accounts.forward import note_correction, resting
from appliance.datasets.leaps import DOUBT_SECONDS, LEAP_SECONDS, Belief, Leaps
from appliance.ledger import Connection

NOW = 1_800_000_000.0
SECOND, MINUTE, HOUR, DAY = 1, 60, 3600, 86_400
NOTED_EVERY_SECONDS = 60.0
SLACK_SECONDS = 600.0  # what a kill takes back, and steps that are none
SEEN_SECONDS = 3  # by then a clock that was set is known to the disk
AHEAD = [0, -60 * DAY, -2000 * DAY, 90 * DAY]
"""By how many seconds a clock may be ahead at the first start."""

Step = tuple[str, int | str]

_SET = st.one_of(
    st.integers(-6 * HOUR, 6 * HOUR),
    st.integers(6 * HOUR, 30 * HOUR),
    st.integers(-400 * DAY, 400 * DAY),
    st.just("right"),
)
_OFF = st.one_of(st.integers(SECOND, 10 * MINUTE), st.integers(0, 5 * HOUR), st.integers(0, 20 * DAY))
STEPS = st.lists(
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


@dataclass(frozen=True)
class Resting:
    """What was stored: from when on it rests, and what had passed and run then."""

    since: float
    passed: float
    ran: float
    off: float
    """So long it had been off before, all together: what may have been doubted then."""


@dataclass(frozen=True)
class Stopped:
    """The RestTime of an appliance for which no time passes."""

    now: float

    def believed(self) -> float:
        return self.now

    def rests_from(self) -> float:
        return self.now


class Appliance:
    """One on a machine whose clock is `ahead` of the right time; the ledger and the last belief stay."""

    def __init__(self, ledger: Connection, ahead: float) -> None:
        ledger.execute("DELETE FROM clock_corrections")
        self._ledger = ledger
        self.passed = self.ran = self.off = 0.0
        self.ahead = ahead
        self.images: list[Resting] = []
        self.off_at_correction: float | None = None
        self._noted = Belief(self.clock(), self.clock())
        self._start()

    def _counted(self) -> float:
        return self.ran

    def _start(self) -> None:
        self._leaps = Leaps(self._noted, self.clock, self._counted)
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
        self._noted = self._leaps.belief()
        self.images.append(self.stored())

    def stored(self) -> Resting:
        """What is stored now."""
        return Resting(self._resting(self.rests_from()), self.passed, self.ran, self.off)

    def least(self, stored: Resting) -> float:
        """So long it has rested for certain, in seconds."""
        return self.ran - stored.ran - stored.off - SLACK_SECONDS

    def most(self, stored: Resting) -> float:
        """Longer it has not rested, in seconds."""
        small = LEAP_SECONDS * (2 + (self.ran - stored.ran) / DOUBT_SECONDS)
        return self.passed - stored.passed + small + SLACK_SECONDS

    def restart(self, off: float, *, killed: bool) -> None:
        """After so many seconds off."""
        if not killed:
            self._noted = self._leaps.belief()
        self.passed += off
        self.off += off
        self._start()

    def take(self, step: Step) -> None:
        """One of STEPS."""
        kind, number = step
        if kind == "upload":
            self.upload()
        elif number == "right":
            self.set(-self.ahead)
        elif kind == "set":
            self.set(float(number))
        elif kind == "run":
            self.run(float(number))
        elif kind == "kill at a correction":
            self.off_at_correction = float(number)
        else:
            self.restart(float(number), killed=kind == "kill")

    def believed(self) -> float:
        return self._leaps.believed()

    def rests_from(self) -> float:
        return self._leaps.rests_from()

    def clock(self) -> float:
        return NOW + self.passed + self.ahead

    def check(self) -> None:
        now = self._resting(self._leaps.believed())
        for image in self.images:
            age = now - image.since
            assert age <= self.most(image), "it would be deleted early"
            assert age >= self.least(image), "it rests too long"

    def _resting(self, time: float) -> float:
        milliseconds: int = self._ledger.execute(f"SELECT {resting('?1')}", (int(time * 1000),)).get
        return milliseconds / 1000
