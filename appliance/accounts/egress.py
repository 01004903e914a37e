"""What went out and what was refused, in the audit log: a row a minute for each destination at most."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Self

from appliance.accounts.audit import Actor, Event, record
from appliance.errors import StorageFailed, VolumeFull
from appliance.ledger import Connection, Ledger
from appliance.outbound import Outbound, Traffic

SECONDS = 60.0

_ACTOR = Actor("system", "outbound")


class Egress:
    """Follows the counters of the gate. The first connection after a quiet minute is written at once, those
    of the minute that follows as one number: a flood of refusals is counted and cannot flood the log.

    What an exit has not written yet is written then; a crash loses the numbers of its last minute.
    """

    def __init__(
        self,
        ledger: Ledger,
        outbound: Outbound,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        """`clock` is of unix seconds, `monotonic` of seconds that only rise."""
        self._ledger = ledger
        self._outbound = outbound
        self._clock = clock
        self._monotonic = monotonic
        self._stopping = False
        self._told: dict[str, Traffic] = {}
        self._due: dict[str, float] = {}

    async def __aenter__(self) -> Self:
        self._task = asyncio.get_running_loop().create_task(self._follow(), name="egress")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True  # no cancelling: a row that is being written would be written twice
        self._outbound.changed.set()
        await self._task
        await self._write(self._untold())

    async def write(self) -> float | None:
        """Write what is due; seconds until more is, None when all is written."""
        now = self._monotonic()
        untold = self._untold()
        due = [one for one in untold if self._due.get(one.destination, now) <= now]
        if not await self._write(due):
            return SECONDS
        return min((self._due[one.destination] - now for one in untold if one not in due), default=None)

    async def _follow(self) -> None:
        while not self._stopping:
            self._outbound.changed.clear()
            wait = await self.write()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._outbound.changed.wait()

    def _untold(self) -> list[Traffic]:
        """Each destination's connections that no row tells of."""
        counted = []
        for one in self._outbound.traffic():
            told = self._told.get(one.destination, Traffic(one.destination))
            more = Traffic(one.destination, one.allowed - told.allowed, one.refused - told.refused)
            if more.allowed or more.refused:
                counted.append(more)
        return counted

    async def _write(self, untold: list[Traffic]) -> bool:
        """False where the ledger takes no write, which says so itself: it is tried again."""
        now = int(self._clock() * 1000)

        def act(connection: Connection) -> None:
            for one in untold:
                for event, count in (
                    (Event.OUTBOUND_ALLOW, one.allowed),
                    (Event.OUTBOUND_REFUSE, one.refused),
                ):
                    if count:
                        details: dict[str, object] = {"connections": count}
                        record(connection, now, _ACTOR, event, None, one.destination, details)

        if untold:
            try:
                await self._ledger.write(act)
            except (StorageFailed, VolumeFull):
                return False
        for one in untold:
            told = self._told.setdefault(one.destination, Traffic(one.destination))
            told.allowed += one.allowed
            told.refused += one.refused
            self._due[one.destination] = self._monotonic() + SECONDS
        return True
