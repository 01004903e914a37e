"""Rates: how much somebody may spend in a minute, and how long he waits who has spent it."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

MINUTE = 60.0
_ROUNDING = 1e-6


class Rates(Generic[K]):
    """What each has spent and not got back yet: a leaky bucket as a meter (ITU-T I.371) for each of them.

    A limit is a minute's worth. All of it may be spent at once; it comes back evenly within a minute. Of more
    than `most` spenders those are forgotten that have spent nothing for the longest.
    """

    def __init__(self, clock: Callable[[], float], *, most: int) -> None:
        """`clock` gives seconds that only rise."""
        self._clock = clock
        self._most = most
        self._spent: OrderedDict[K, tuple[float, float]] = OrderedDict()  # how much, as of when

    def __len__(self) -> int:
        return len(self._spent)

    def wait(self, who: K, limit: float) -> float:
        """Seconds until `who` may spend 1 again; 0 where that is now."""
        over = self._left(who, limit, self._clock()) + 1 - limit
        return over * MINUTE / limit if over > _ROUNDING else 0.0

    def spend(self, who: K, limit: float, amount: float) -> None:
        """Note that `who` spends so much, which may be more than is left; less than 0 gives it back."""
        now = self._clock()
        self._spent[who] = max(0.0, self._left(who, limit, now) + amount), now
        self._spent.move_to_end(who)
        while len(self._spent) > self._most:
            self._spent.popitem(last=False)

    def _left(self, who: K, limit: float, now: float) -> float:
        """What of the spent has not come back."""
        spent, at = self._spent.get(who, (0.0, now))
        return max(0.0, spent - (now - at) * limit / MINUTE)
