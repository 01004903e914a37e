"""A clock that leaps: what rests for a number of days must not be deleted because a clock was set wrong.

Retention goes by the time that is believed. It follows the clock as long as the clock goes on as another one,
which nobody sets, counts; it is never set back; and what the clock is ahead of that is believed when the
appliance has run for a day beside it. If it was set while the appliance ran, then no time passed as it leapt,
whether it is right now or was before: what rests here grows no older, by a Correction. Small leaps are
believed at once, from an allowance of six hours that fills up again in a day of running: however often a
clock is set, it gains no more.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

LEAP_SECONDS = 6 * 3600.0
"""So much of what nobody counted is believed at once: a restart, a clock set right, a time zone mistaken.

It is to be had again as a day of DOUBT_SECONDS is counted, not before."""
DOUBT_SECONDS = 86_400.0
"""So long is more than that doubted: time for a person to see it and to set the clock right."""
_STEP_SECONDS = 60.0  # clocks that are slewed, or read one after the other, differ by less: that is no leap
_NO_CLOCK = 1e9  # 2001: who believes less has counted from 0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Belief:
    """What one run of the appliance leaves for the next; unix seconds."""

    time: float
    """What it believed in the end, 0 where nobody knows: then nothing is old until a day has been counted."""
    clock: float
    """What the clock said then."""
    allowance: float = LEAP_SECONDS
    """So many seconds that nobody counted may be believed at once."""
    until: float = 0.0
    """When, by the time that is believed, the clock will be believed again, 0 for no doubt."""
    leapt: float = 0.0
    """By how much, of what is doubted, the clock was set while the appliance ran."""
    leapt_at: float = 0.0
    """What was believed, or the clock said, before it was last set ahead, whichever is later."""


UNKNOWN = Belief(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Correction:
    """What rests grows no older by so many `seconds` by which the clock was set ahead."""

    until: float
    """What was believed, or the clock said, before that, whichever is later: unix seconds."""
    seconds: float
    reached: float
    """What is believed when it counts, and not before: unix seconds."""


class Stamp(NamedTuple):
    """For what is stored now, in unix seconds."""

    created: float
    """By the clock, and never earlier than what is believed."""
    rests_from: float
    """What is believed, and will be at once for the time that the appliance was off: no setting is in it."""


class Leaps:
    """The time that is believed, from run to run.

    `earlier` is what the last run left. A leap that needs a `correction` is not believed before
    `correct`. `clock` tells the present time in unix seconds; `monotonic` seconds that no setting changes.
    Any thread may ask; on the one that sees it, `on_doubt` is called when a doubt begins, changes or ends:
    the `belief` has to be durable then.
    """

    def __init__(
        self,
        earlier: Belief,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        on_doubt: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._on_doubt = on_doubt
        self._lock = threading.RLock()
        self._believed = earlier.time
        self._counted = monotonic()
        self._seen = clock()
        self._allowance = earlier.allowance
        self._leapt, self._leapt_at = earlier.leapt, earlier.leapt_at
        self._ahead = 0.0  # how far the clock was ahead when the day of doubt began
        self._until = 0.0
        ahead = clock() - self._believed
        # Who is off every night would never be believed, were the day to begin anew each time: neither one
        # that goes on, nor one that is over and whose correction was not made before the stop.
        if earlier.until and clock() - earlier.clock <= DOUBT_SECONDS and self._is_leap(ahead):
            self._doubt(ahead, min(max(earlier.until - self._believed, 0.0), DOUBT_SECONDS))
        self.believed()

    def believed(self) -> float:
        """Unix seconds, never less than before: what retention goes by."""
        with self._lock:
            before = self._until, self._until and self._leapt
            self._follow()
            changed = before != (self._until, self._until and self._leapt)
            believed = self._believed
        if changed:
            self._on_doubt()
        return believed

    def correction(self) -> Correction | None:
        """What has to be durable now, so that what rests here grows no older by a clock that was set."""
        with self._lock:
            ahead = self.ahead()
            if self._until and self._believed >= self._until and self._leapt:
                seconds = min(self._leapt, ahead)
                return Correction(self._leapt_at, seconds, self._believed + seconds)
            return None

    def correct(self, correction: Correction) -> None:
        """It is durable: so much is believed. A leap since it was asked for is doubted as any other."""
        with self._lock:
            self._believed += correction.seconds
            self._ahead -= correction.seconds
            self._leapt = max(self._leapt - correction.seconds, 0.0)
        self.believed()

    def stamp(self) -> Stamp:
        """What is stored now is stamped so."""
        with self._lock:
            believed = self.believed()
            off = max(self._seen - believed - self._leapt, 0.0)
            return Stamp(max(believed, self._seen), believed + off)

    def rests_from(self) -> float:
        """Of the `stamp` of what is stored now."""
        return self.stamp().rests_from

    def until(self) -> float:
        """When, by the time that is believed, a doubted clock will be, in unix seconds; 0 while it is."""
        self.believed()
        return self._until

    def ahead(self) -> float:
        """By how many seconds the clock is ahead of what is believed: 0 while it is not doubted."""
        return self._seen - self._believed if self.until() else 0.0

    def belief(self) -> Belief:
        """For the next run, to be kept where a crash leaves it."""
        with self._lock:
            believed = self.believed()
            return Belief(believed, self._seen, self._allowance, self._until, self._leapt, self._leapt_at)

    def warning(self) -> str | None:
        """What a person has to know while the clock is doubted."""
        if not (until := self.until()):
            return None
        hours = f"for {max(until - self._believed, 0.0) / 3600:.0f} hours more"
        if self._believed < _NO_CLOCK:
            return (
                "it is not known how late it was when the appliance last ran, as after a restore:"
                f" {hours} nothing is deleted because its time is over. See that the clock is right"
            )
        hours_ahead = f"{(self._seen - self._believed) / 3600:.0f} hours ahead"
        ahead = f"the clock is {hours_ahead} of the time that the appliance knows of"
        if self._leapt:
            return (
                f"{ahead}, because it was set: {hours} nothing goes by that. If it is right now, nothing has"
                " to be done, and images rest for as long as they should; if not, set it right"
            )
        return (
            f"{ahead}: {hours} these do not count for the retention of images. Set the clock right,"
            " unless the appliance was off so long"
        )

    def _follow(self) -> None:
        counted = self._monotonic()
        passed, self._counted = counted - self._counted, counted
        self._believed += passed
        self._allowance = min(self._allowance + passed * LEAP_SECONDS / DOUBT_SECONDS, LEAP_SECONDS)
        self._notice_setting(passed)
        ahead = self._seen - self._believed
        if not self._is_leap(ahead):
            self._until = self._leapt = 0.0
            taken = min(max(ahead, 0.0), self._allowance)
            self._allowance -= taken
            self._believed += taken
        elif not self._until or ahead > self._ahead + DOUBT_SECONDS:
            self._doubt(ahead, DOUBT_SECONDS)
        elif self._believed >= self._until and not self._leapt:
            self._until = 0.0
            self._believed += ahead

    def _notice_setting(self, passed: float) -> None:
        """Look at the clock, `passed` seconds after the last time."""
        expected, self._seen = self._seen + passed, self._clock()
        step = self._seen - expected
        if abs(step) > _STEP_SECONDS:
            self._leapt = max(self._leapt + step, 0.0)
            if step > 0:
                self._leapt_at = max(self._believed, expected)

    def _is_leap(self, ahead: float) -> bool:
        return ahead > self._allowance + _STEP_SECONDS

    def _doubt(self, ahead: float, seconds: float) -> None:
        self._ahead = ahead
        self._until = self._believed + seconds
        if (warning := self.warning()) is not None:  # None for a day that is over already
            _log.error("%s", warning)
