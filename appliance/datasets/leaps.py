"""A clock that leaps: what rests for a number of days must not be deleted because a clock was set wrong.

Retention goes by the time that is believed. It follows the clock as long as the clock goes on as another one,
which nobody sets, counts; it is never set back; and what the clock is ahead of that is believed when the
appliance has run for a day beside it.
"""

import logging
from collections.abc import Callable

LEAP_SECONDS = 6 * 3600.0
"""What nobody counted up to here is believed at once: a restart, a clock set right, a time zone mistaken."""
DOUBT_SECONDS = 86_400.0
"""So long is more than that doubted: time for a person to see it and to set the clock right."""

_log = logging.getLogger(__name__)


class Leaps:
    """The time that is believed, from run to run.

    `believed` is what an earlier run believed in the end, 0 for none, and `latest` the latest time that it
    knew of; `until` is when, by the time that was believed, it would have believed its clock again, 0 for no
    doubt. `clock` tells the present time, all in unix seconds; `monotonic` seconds that no setting changes.
    """

    def __init__(
        self,
        believed: float,
        latest: float,
        until: float,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._believed = believed or latest or clock()
        self._counted = monotonic()
        self._ahead = 0.0  # how far the clock was ahead when the day of doubt began
        self._until = 0.0
        ahead = clock() - self._believed
        # Who is off every night would never be believed, were the day to begin anew each time.
        if until > self._believed and clock() - latest <= DOUBT_SECONDS and ahead > LEAP_SECONDS:
            self._doubt(ahead, min(until - self._believed, DOUBT_SECONDS))
        self.believed()

    def believed(self) -> float:
        """Unix seconds, never less than before: what retention goes by."""
        counted = self._monotonic()
        self._believed += counted - self._counted
        self._counted = counted
        ahead = self._clock() - self._believed
        if ahead > LEAP_SECONDS and (not self._until or ahead > self._ahead + DOUBT_SECONDS):
            self._doubt(ahead, DOUBT_SECONDS)
        elif ahead <= LEAP_SECONDS or self._believed >= self._until:
            self._until = 0.0
            self._believed += max(ahead, 0.0)
        return self._believed

    def stamp(self) -> float:
        """Unix seconds for what is stored now: by the clock, and never earlier than what is believed."""
        return max(self.believed(), self._clock())

    def until(self) -> float:
        """When, by the time that is believed, a doubted clock will be, in unix seconds; 0 while it is."""
        self.believed()
        return self._until

    def ahead(self) -> float:
        """By how many seconds the clock is ahead of what is believed: 0 while it is not doubted."""
        return self._clock() - self._believed if self.until() else 0.0

    def _doubt(self, ahead: float, seconds: float) -> None:
        self._ahead = ahead
        self._until = self._believed + seconds
        _log.error("%s", warning(ahead, seconds))


def warning(ahead: float, seconds: float) -> str:
    """What a person has to know of a clock that is doubted for so many seconds more."""
    return (
        f"the clock is {ahead / 3600:.0f} hours ahead of the time that the appliance knows of: for"
        f" {seconds / 3600:.0f} hours more these do not count for the retention of images. Set the clock"
        " right, unless the appliance was off so long"
    )
