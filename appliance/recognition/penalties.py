"""Who has to wait with a model over whose images its workers ended: the others are served meanwhile.

A device that waits for a model that hangs, or is started anew, serves nobody. Who has one image after the
other do that waits for longer each time, with that model alone: what others ask of it, and what the same
customer asks of others, goes on.
"""

import math
from collections.abc import Callable

from appliance.errors import Overloaded

FIRST_SECONDS, LONGEST_SECONDS = 60.0, 3600.0
"""It doubles with each time. Who has done nothing for the longest after that begins anew."""

_Offender = tuple[str, str]
_NONE = -math.inf, FIRST_SECONDS / 2


class Penalties:
    """Of customers and models, these by name and version; `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._penalties: dict[_Offender, tuple[float, float]] = {}  # until when, and for how long

    def add(self, customer: str, pin: str) -> None:
        """A worker ended over an image of theirs that it had alone: who else was suspected of it was not."""
        now = self._clock()
        self._penalties = {
            one: (until, seconds)
            for one, (until, seconds) in self._penalties.items()
            if self._stands(one, now) and (seconds >= FIRST_SECONDS or one[1] != pin)
        }
        _, last = self._penalties.get((customer, pin), _NONE)
        seconds = min(2 * last, LONGEST_SECONDS)
        self._penalties[customer, pin] = now + seconds, seconds

    def suspect(self, customer: str, pin: str) -> None:
        """A worker ended that had an image of theirs among others, and nobody waits for a second try."""
        now = self._clock()
        if not self._stands((customer, pin), now):
            self._penalties[customer, pin] = now, FIRST_SECONDS / 2

    def check(self, customer: str, pin: str) -> None:
        """Raises Overloaded for as long as they have to wait."""
        until, _ = self._penalties.get((customer, pin), _NONE)
        if (left := until - self._clock()) > 0:
            message = "the model crashed or hung over an image of yours: ask it later"
            raise Overloaded(message, retry_after=math.ceil(left))

    def watched(self, customer: str, pin: str) -> bool:
        """Whether what they ask of the model is to be run with nobody else, and has no second try."""
        return self._stands((customer, pin), self._clock())

    def _stands(self, offender: _Offender, now: float) -> bool:
        until, _ = self._penalties.get(offender, _NONE)
        return now < until + LONGEST_SECONDS
