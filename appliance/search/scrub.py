"""Proves every vector, id and metadata again and again: those that nobody loads fail in silence otherwise.

One round goes through all rows in order of their keys, a twentieth of the time at work, and the next begins
when `[search] scrub_days` have passed since. What is found damaged in use is proven out of turn, so that all
findings take one way. How far the round has come and what was found outlives a restart.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any, Self
from uuid import UUID

from prometheus_client import Counter, Gauge

from appliance.background import end_tasks
from appliance.errors import StorageFailed, VolumeFull
from appliance.ledger import Connection, Ledger
from appliance.metrics import Registry
from appliance.search import entries, proving
from appliance.search.numbering import key_of, label_of
from appliance.search.proving import Known, Proven
from appliance.search.records import CollectionId
from appliance.vault import Keyring

_DOUBTED_AT_ONCE = 256
_WORK_SECONDS, _REST_SECONDS = 1.0, 19.0
_IDLE_SECONDS = 600.0

_log = logging.getLogger(__name__)


class Scrub:
    """The proof of all rows, in the background between `async with`.

    What is damaged is logged once, is in the audit log once for its collection and kind, and counts until it
    is whole again or gone with its records.
    """

    def __init__(
        self,
        ledger: Ledger,
        keyring: Keyring,
        clock: Callable[[], float],
        registry: Registry,
        *,
        scrub_days: float,
    ) -> None:
        self._ledger = ledger
        self._keyring = keyring
        self._clock = clock
        self._every_ms = int(scrub_days * 86_400_000)
        self._work: list[asyncio.Task[None]] = []
        self._doubted: set[int] = set()
        """Keys of records that were found damaged in use, and are still to be proven."""
        self._awaited = asyncio.Event()
        self.damaged = Known(0, 0)
        """Frames and records that are known to be damaged."""
        self.keyless: list[CollectionId] = []
        """Collections that were not removed and have no key: nothing of them opens. `Collections` says which
        as it starts, every scrub looks again."""
        self._bytes = Counter(
            "appliance_search_scrubbed_bytes",
            "Bytes of vectors, ids and metadata proven by scrubs",
            registry=registry,
        )
        self._gauge = Gauge(
            "appliance_search_frames_damaged", "Frames of vectors known to be damaged", registry=registry
        )
        self._records_gauge = Gauge(
            "appliance_search_records_damaged",
            "Records whose id or metadata is known to be damaged",
            registry=registry,
        )

    async def __aenter__(self) -> Self:
        await self._count()
        loop = asyncio.get_running_loop()
        self._work = [
            loop.create_task(self._work_forever(), name="search scrub"),
            loop.create_task(self._look_forever(), name="search damage"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        await end_tasks(*self._work)

    def doubt(self, number: int, label: int) -> None:
        """A record was found damaged in use; on the event loop only. It is proven soon: see `look`."""
        self._doubted.add(key_of(number, label))
        self._awaited.set()

    async def look(self) -> None:
        """Prove what was doubted. Raises StorageFailed, VolumeFull, and it stays doubted."""
        while some := list(islice(self._doubted, _DOUBTED_AT_ONCE)):
            looked = await self._ledger.read(partial(proving.at, keyring=self._keyring, keys=some))
            found = await self._ledger.write(partial(proving.note, looked=looked, now=self._now()))
            self._doubted.difference_update(some)
            self._tell(found)
        await self._count()

    async def scrub(self, seconds: float) -> float:
        """Prove rows whose time has come, for about so long; how many seconds until it is worth a call.

        Raises StorageFailed, VolumeFull.
        """
        await self._look_for_keys()
        end = self._clock() + seconds
        reached, began = await self._ledger.read(_state)
        if reached is None:
            if self._now() - began < self._every_ms:
                return _IDLE_SECONDS
            began = self._now()
        position = -1 if reached is None else reached
        looked: list[Proven] = []
        over = False
        while not over and (not looked or self._clock() < end):
            page, position = await self._ledger.read(
                partial(proving.page, keyring=self._keyring, after=position)
            )
            over, looked = not page, looked + page
        self._bytes.inc(sum(one.size for one in looked))
        now, until = self._now(), None if over else position

        def act(connection: Connection) -> list[Proven]:
            connection.execute("UPDATE frame_scrub SET position = ?, began_at = ?", (until, began))
            return proving.note(connection, looked, now)

        self._tell(await self._ledger.write(act))
        await self._count()
        return _IDLE_SECONDS if over else 0.0

    async def _work_forever(self) -> None:
        while True:
            try:
                pause = await self.scrub(_WORK_SECONDS)
            except (StorageFailed, VolumeFull):  # of the ledger, which says so itself
                pause = _IDLE_SECONDS
            await asyncio.sleep(max(pause, _REST_SECONDS))

    async def _look_forever(self) -> None:
        while await self._awaited.wait():
            self._awaited.clear()
            try:
                await self.look()
            except (StorageFailed, VolumeFull):
                await asyncio.sleep(_IDLE_SECONDS)
                self._awaited.set()

    def _tell(self, found: list[Proven]) -> None:
        for one in found:
            what = f"the vectors of {one.records} records, from record" if one.kind == "vectors" else "record"
            _log.error(
                "damaged: in collection %s %s %d: delete or replace it, or restore a backup",
                one.collection,
                what,
                label_of(one.key),
            )

    async def _look_for_keys(self) -> None:
        held = {container for _, container, _ in self._keyring.containers()}
        found = await self._ledger.read(partial(entries.list_collections, customer=None))
        # Asked again: one that was made or emptied in between has its key in the one and not in the other.
        missing = {entry.id for entry in found if UUID(entry.container) not in held}
        if missing:
            held = {container for _, container, _ in self._keyring.containers()}
            found = await self._ledger.read(partial(entries.list_collections, customer=None))
            missing &= {entry.id for entry in found if UUID(entry.container) not in held}
        self.keyless = sorted(missing)

    async def _count(self) -> None:
        self.damaged = await self._ledger.read(proving.damaged)
        self._gauge.set(self.damaged.frames)
        self._records_gauge.set(self.damaged.records)

    def _now(self) -> int:
        return int(self._clock() * 1000)


def _state(connection: Connection) -> tuple[int | None, int]:
    row: Any = connection.execute("SELECT position, began_at FROM frame_scrub").fetchone()
    return row[0], row[1]
