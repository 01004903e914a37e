"""What time it is, where somebody may set the clock: three answers, each for another kind of end.

- The forward time never goes back. **Access grants** end by it, as links do. They are for hours, and the next
  one is had for the asking: a clock that was ahead may end them for good, set back it must show no image.
- The proven time has passed whatever the clock says. It is counted, and a leap of the clock is no part of it
  before it has stood for a day. **What waits** goes by it, so that no setting of the clock shortens a wait.
- The later of the proven time and the clock. **Tokens and agreements** end by it: nothing that ended while
  the clock was right comes back when it is set back, and what a wrong clock ended comes back when it is set
  right. That is asked at each look; no end is ever written down because its time has come.

What rests for days has a time of its own, `datasets.leaps`: from that the proven time begins at each start.
"""

import threading
from collections.abc import Callable

from appliance.accounts.forward import ForwardTime

STANDING_SECONDS = 86_400.0
"""So long a leap of the clock has to stand: no shorter than anything waits that goes by the proven time."""
_STEP_SECONDS = 60.0  # clocks that are slewed, or read one after the other, differ by less: that is no leap
_NEAR_SECONDS = 3600.0
_UNNOTED_SECONDS = 120.0  # what is believed is noted more often, on a volume that takes it


class ProvenTime:
    """Unix seconds that have passed for certain: on from `start` as `monotonic` counts, which nobody sets.

    What `clock` is ahead is added once it was ahead by no less for STANDING_SECONDS on end. So whoever notes
    the later of both, and waits from there for no longer than that, waits in seconds that are counted: a leap
    either stood already, and is in what was noted, or has to stand for longer than the wait.
    Any thread may ask.
    """

    def __init__(self, start: float, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._since = monotonic()
        self._offset = start - self._since
        self._ahead = clock() - start  # the least that the clock was ahead since then

    def now(self) -> float:
        """Never less than before."""
        with self._lock:
            counted = self._monotonic()
            ahead = self._clock() - (counted + self._offset)
            if ahead > self._ahead + _STEP_SECONDS:
                self._ahead, self._since = ahead, counted
            self._ahead = min(self._ahead, ahead)
            if counted - self._since >= STANDING_SECONDS:
                stood = max(self._ahead, 0.0)
                self._offset += stood
                self._ahead, self._since = ahead - stood, counted
            return counted + self._offset


class Times:
    """The three times of one run, in unix seconds.

    `latest` is the latest time that the ledger knows of, `clock` unix seconds that somebody may set,
    `monotonic` seconds that only rise; `set_back` tells that the clock was, since the ledger was told the
    time. Before `go_by`, as a single command has it, ends and waits go by the clock.
    """

    def __init__(
        self,
        latest: float,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        *,
        set_back: bool = False,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._set_back = set_back
        self._forward = ForwardTime(latest, clock, monotonic)
        self._proven = self._past = clock

    def go_by(self, believed: float) -> None:
        """Begin with what `datasets.leaps` believes at the start.

        That is noted once a minute, the forward time twice: after a crash the latter tells what had ended,
        unless it is far off, from a clock that was once ahead.

        Then the clock tells. If it was set back, or leapt, nothing does, and the latest moment is taken that
        a crash can have left: in this run something may end two minutes too early.
        """
        past, forward = believed, self._forward.now()
        if forward < believed + _NEAR_SECONDS:
            past = max(believed, forward)
        elif self._set_back or not believed <= self._clock() < believed + _UNNOTED_SECONDS:
            past = min(forward, believed + _UNNOTED_SECONDS)
        self._proven = ProvenTime(believed, self._clock, self._monotonic).now
        self._past = ProvenTime(past, self._clock, self._monotonic).now

    def forward(self) -> float:
        """Never less than before, nor than what an earlier run knew: for access grants."""
        return self._forward.now()

    def proven(self) -> float:
        """What has passed for certain: for what waits, from when `ended` said."""
        return self._proven()

    def ended(self) -> float:
        """What ends by then has ended: for tokens and agreements, and for what is stamped now."""
        return max(self._clock(), self._past(), self._proven())
