"""Erasing removed collections: the key first, with which nothing of them opens any more, then all else."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import partial
from pathlib import Path
from uuid import UUID

from appliance.accounts.certificates import Certificates, Erased
from appliance.background import end_tasks
from appliance.errors import StorageFailed, VolumeFull
from appliance.ledger import Connection, Ledger
from appliance.search import entries
from appliance.search.container_files import keep_only
from appliance.search.entries import Entry
from appliance.search.graph_files import GraphFiles
from appliance.vault import Keyring
from appliance.volume import Space, remove_tree

_ROWS = 256
"""At once, so that others' writes get in between."""
AGAIN_SECONDS = 20.0
"""Until what could not be erased is tried again."""
_LOG_SECONDS = 1.0
"""From one cut of the ledger's log to the next: each syncs twice, or a reader was in the way."""

_log = logging.getLogger(__name__)


class Erasing:
    """The erasures that are under way; on the event loop only."""

    def __init__(
        self,
        ledger: Ledger,
        keyring: Keyring,
        files: GraphFiles,
        snapshots: Path,
        clock: Callable[[], float],
        *,
        space: Space,
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        """Snapshots are kept below the folder `snapshots`; `space` is that of the volume of all of it."""
        self._ledger = ledger
        self._keyring = keyring
        self._certificates = Certificates(ledger, keyring.service)
        self._clock = clock
        self._files = files
        self._snapshots = snapshots
        self._space = space
        self._pause = pause
        self._failed: dict[int, Entry] = {}
        """By their numbers."""
        self._again: asyncio.Task[None] | None = None
        self._erasures: set[asyncio.Task[None]] = set()
        self._emptying: asyncio.Task[None] | None = None
        self._left_in_log = False

    def start(self, entry: Entry) -> asyncio.Future[None]:
        """Erase a collection that is marked as removed; done when its last row is gone, which is certified.

        What fails is tried again, see `failed`. A stop leaves the mark, by which the next start goes on.
        """
        task = asyncio.get_running_loop().create_task(self._erase(entry))
        self._erasures.add(task)
        task.add_done_callback(self._erasures.discard)
        return task

    @property
    def failed(self) -> int:
        """How many of them have failed, and are tried again every AGAIN_SECONDS until they are done."""
        return len(self._failed)

    async def clear_files(self, known: AbstractSet[UUID]) -> None:
        """Remove what a crash left of graphs and snapshots, by an erasure or a write that it interrupted.

        Snapshots of the containers `known` stay though no key opens them now: another keyring may.
        """
        held = {container for _, container, _ in self._keyring.containers()}
        try:
            await self._files.keep_only(held)
            await self._files.run(keep_only, self._snapshots, held | known)
        except StorageFailed as error:
            _log.error("what is left of old graphs and snapshots stays for now: %s", error)

    async def remove_graphs(self, container: UUID) -> None:
        """Remove the graphs of a collection that gets other records; one that stays is refused later."""
        try:
            await self._files.remove(container)
        except StorageFailed as error:
            _log.error("what is left of old graphs stays for now: %s", error)

    def empty_log_soon(self) -> None:
        """What was deleted is overwritten in the database, and still in its log until that is cut."""
        self._left_in_log = True
        if self._emptying is None or self._emptying.done():
            self._emptying = asyncio.get_running_loop().create_task(self._empty_log())

    async def settle(self) -> None:
        """Return when every erasure has ended. Raises what one of them raised."""
        await asyncio.gather(*self._erasures)

    async def close(self) -> None:
        """Interrupt all."""
        background = (self._again, self._emptying)
        await end_tasks(*self._erasures, *(task for task in background if task is not None))

    async def _erase(self, entry: Entry) -> None:
        try:
            await asyncio.to_thread(self._space.before_deletion)
            await asyncio.to_thread(self._keyring.destroy, UUID(entry.customer), UUID(entry.container))
            await self._files.remove(UUID(entry.container))
            await self._files.run(remove_tree, self._snapshots / UUID(entry.container).hex)
            await self._ledger.write_on(partial(self._erase_some, entry=entry), _ROWS)
        except (StorageFailed, VolumeFull):
            if entry.number not in self._failed:
                _log.exception("a removed collection is not erased yet, and is tried again from now on")
            self._failed[entry.number] = entry
            if self._again is None or self._again.done():
                self._again = asyncio.get_running_loop().create_task(self._try_again())
            raise
        if self._failed.pop(entry.number, None) is not None:
            _log.info("a removed collection that could not be erased before is erased")
        self.empty_log_soon()

    async def _try_again(self) -> None:
        while self._failed:
            await self._pause(AGAIN_SECONDS)
            for entry in [*self._failed.values()]:
                with suppress(StorageFailed, VolumeFull):  # it stays among those that have failed
                    await self._ledger.empty_log()  # which may be what has filled the volume
                    await self.start(entry)

    def _erase_some(self, connection: Connection, most: int, entry: Entry) -> bool:
        """As `entries.erase_some`, but whether there is more.

        Of two who erase the same collection, one takes its last row. What was no collection of its own has no
        certificate.
        """
        gone = entries.erase_some(connection, entry.number, most)
        if gone and connection.changes() and not entry.spare:
            subject, counts = entry.emptied or entry.id, {"records": entry.count}
            erased = Erased("collection", entry.customer, subject, counts, keys=(entry.container,))
            self._certificates.add(connection, int(self._clock() * 1000), erased)
        return not gone

    async def _empty_log(self) -> None:
        try:
            while self._left_in_log:
                self._left_in_log = False
                if not await self._ledger.empty_log():  # a reader was in the way
                    self._left_in_log = True
                await self._pause(_LOG_SECONDS)
        except (StorageFailed, VolumeFull) as error:
            _log.error("deleted records stay in the ledger's log for now: %s", error)
