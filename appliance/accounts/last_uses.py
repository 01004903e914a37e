"""When each token was last used: noted in memory, written to the ledger together, now and then."""

import asyncio
import contextlib
from functools import partial
from itertools import islice
from typing import Self

from appliance.background import end_tasks
from appliance.errors import StorageFailed, VolumeFull
from appliance.ledger import Connection, Ledger

EVERY_SECONDS = 60.0
_AT_ONCE = 1000  # rows of one act, so that nobody else's waits for long


class LastUses:
    """The last uses of tokens. Between `async with` they are written once a minute, and at its end.

    A use that was noted less than a minute before a crash may be lost.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._noted: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.get_running_loop().create_task(self._write_on())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            await end_tasks(self._task)
        await self.write()

    def note(self, token_id: str, now: int) -> None:
        """It was used `now`, in unix milliseconds."""
        self._noted[token_id] = now

    def latest(self, token_id: str, written: int | None) -> int | None:
        """When it was used last, where the ledger says `written`; None for never."""
        return self._noted.get(token_id, written)

    async def write(self) -> None:
        """Have the ledger follow; where it takes nothing now, the next time may."""
        noted = iter(list(self._noted.items()))
        with contextlib.suppress(StorageFailed, VolumeFull):  # findings of their own
            while some := list(islice(noted, _AT_ONCE)):
                await self._ledger.write(partial(_write, uses=some))
                for token_id, at in some:
                    if self._noted.get(token_id) == at:
                        del self._noted[token_id]

    async def _write_on(self) -> None:
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            await self.write()


def _write(connection: Connection, uses: list[tuple[str, int]]) -> None:
    rows = [(at, token_id) for token_id, at in uses]
    connection.executemany("UPDATE tokens SET last_used_at = ? WHERE id = ?", rows)
