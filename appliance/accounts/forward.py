"""Time that only goes forward: what has ended stays ended when the clock is set back, and what rests grows no
older when it is set ahead.
"""

from collections.abc import Callable
from typing import Protocol

from appliance.ledger import Connection

TOLD_EVERY_SECONDS = 30.0
"""So often a running appliance tells the ledger how late it is, see `tell_time`."""


class ForwardTime:
    """A clock that never goes back, whatever is done to the one that it follows.

    It goes on as `monotonic` counts, seconds that no setting changes, and is put ahead by `clock` (unix
    seconds); `latest` is the latest time that an earlier run knew of.
    """

    def __init__(self, latest: float, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._mark = latest  # the latest time that was ever seen, and when by the other clock
        self._marked_at = monotonic()

    def now(self) -> float:
        """Unix seconds, never less than before."""
        monotonic = self._monotonic()
        self._mark = max(self._clock(), self._mark + monotonic - self._marked_at)
        self._marked_at = monotonic
        return self._mark


def tell_time(connection: Connection, time: float, clock: float) -> None:
    """Have the ledger know how late it is, and what the clock says then; both in unix seconds."""
    connection.execute(
        "INSERT INTO latest_time (id, time, clock) VALUES (1, ?1, ?2)"
        " ON CONFLICT (id) DO UPDATE SET time = max(time, ?1), clock = ?2",
        (int(time * 1000), int(clock * 1000)),
    )


def latest_time(connection: Connection, now: float) -> float:
    """The latest time that the ledger knows of, in unix seconds; 0 for a new one.

    `now` by the clock, it was off for as long as the clock has gone on since the time was told: that has
    passed too. A clock that says less than it did then was set back. How long ago that was it does not tell,
    and the time goes on from the latest moment that a crash can have left.
    """
    told = "SELECT time + iif(clock > ?1, ?2, coalesce(?1 - clock, 0)) FROM latest_time"
    time = connection.execute(
        f"SELECT max(coalesce(({told}), 0), coalesce((SELECT max(time) FROM audit), 0))",  # noqa: S608
        (int(now * 1000), int(TOLD_EVERY_SECONDS * 1000)),
    ).get
    return float(time) / 1000


def is_set_back(connection: Connection, now: float) -> bool:
    """Whether the clock says less `now` than when the ledger was last told the time, and so was set back."""
    return bool(connection.execute("SELECT clock > ? FROM latest_time", (int(now * 1000),)).get)


def note_correction(connection: Connection, until: float, seconds: float, reached: float) -> None:
    """The clock was set ahead at `until`: what rests grows no older by so many `seconds`.

    That counts when what is believed has `reached` that. The same `until` again is the same correction.
    """
    connection.execute(
        "INSERT OR REPLACE INTO clock_corrections (until, milliseconds, reached) VALUES (?, ?, ?)",
        (int(until * 1000) + 1, int(seconds * 1000), int(reached * 1000)),
    )


class RestTime(Protocol):
    """What time it is for what rests for days, as `datasets.leaps` tells it; unix seconds, on any thread."""

    def believed(self) -> float:
        """Never less than before: of it `resting` makes the time that ages are counted in."""

    def rests_from(self) -> float:
        """What is stored now rests from when so much is believed."""


class Untold:
    """The RestTime of a process that watches no clock, as a single command: there nothing is ever old."""

    def believed(self) -> float:
        return 0.0

    def rests_from(self) -> float:
        return 0.0


def resting(time: str) -> str:
    """An expression of SQL: what rests goes by this while `time` is believed; both in unix milliseconds.

    No clock that is set moves it, so what was stored may be told apart by it whatever the clock said then.
    """
    set_by = f"SELECT coalesce(sum(milliseconds), 0) FROM clock_corrections WHERE reached <= {time}"  # noqa: S608
    return f"({time} - ({set_by}))"
