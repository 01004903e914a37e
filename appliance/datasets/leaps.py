"""A clock that leaps: what rests for a number of days must not be deleted because a clock was set wrong."""

import logging
from collections.abc import Callable

LEAP_SECONDS = 7 * 86_400.0
"""A longer way than that at once, or while the appliance was down, is taken for a clock that may be wrong."""
DOUBT_SECONDS = 86_400.0
"""So long is deletion put off: time for a person to see it and to set the clock right."""

_log = logging.getLogger(__name__)


class Leaps:
    """Tells whether the time may be believed.

    `latest` is the last that is known of an earlier run, 0 for none, and `clock` tells the present one, both
    in unix seconds; `monotonic` tells seconds that no setting changes. `until` is when an earlier run would
    have believed the clock again, 0 for none.
    """

    def __init__(
        self, latest: float, until: float, clock: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._wall = latest or clock()
        self._passed = monotonic()
        self._believed_from = self._passed + min(max(until - clock(), 0.0), DOUBT_SECONDS)
        self.until = until
        """For the next run, in unix seconds by the clock that is doubted."""

    def doubted(self) -> bool:
        """True for a day after the clock went ahead by more than a week that nobody saw pass."""
        wall, passed = self._clock(), self._monotonic()
        ahead = (wall - self._wall) - (passed - self._passed)
        self._wall, self._passed = wall, passed
        if ahead > LEAP_SECONDS:
            self._believed_from = passed + DOUBT_SECONDS
            self.until = wall + DOUBT_SECONDS
            _log.error(
                "the clock is %.0f days ahead of the last time that is known: for a day no image is deleted"
                " because its time is over. Set the clock right, unless the appliance was down so long",
                ahead / 86_400,
            )
        return passed < self._believed_from
