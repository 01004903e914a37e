"""Proves every frame of vectors again and again: those that nobody loads fail in silence otherwise.

One round goes through all frames in order of their keys, a twentieth of the time at work, and the next begins
when `[search] scrub_days` have passed since. How far it has come and what was found outlives a restart.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self
from uuid import UUID

from prometheus_client import Counter, Gauge

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId
from appliance.errors import NotFound, StorageFailed, VolumeFull
from appliance.ledger import Connection, Ledger
from appliance.metrics import Registry
from appliance.search import entries, frames
from appliance.search.numbering import label_of
from appliance.search.records import CollectionId
from appliance.search.seals import ContainerId, Seals
from appliance.vault import Keyring

_AT_ONCE = 16
"""Frames of 64 KiB: read and opened in a few milliseconds."""
_WORK_SECONDS, _REST_SECONDS = 1.0, 19.0
_IDLE_SECONDS = 600.0
_SYSTEM = Actor("system", "search")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Proven:
    """A frame that was looked at. `sound` is None where there is no key to tell."""

    key: int
    count: int
    size: int
    customer: CustomerId
    collection: CollectionId
    sound: bool | None


class Scrub:
    """The proof of all frames, in the background between `async with`.

    A damaged frame is logged and audited once, and counts until it is whole again or gone with its records.
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
        self._work: asyncio.Task[None] | None = None
        self.damaged = 0
        """Frames that are known to be damaged."""
        self.keyless: list[CollectionId] = []
        """Collections that were not removed and have no key: nothing of them opens. `Collections` says which
        as it starts, every scrub looks again."""
        self._bytes = Counter(
            "appliance_search_scrubbed_bytes", "Bytes of vectors proven by scrubs", registry=registry
        )
        self._gauge = Gauge(
            "appliance_search_frames_damaged", "Frames of vectors known to be damaged", registry=registry
        )

    async def __aenter__(self) -> Self:
        await self._count()
        self._work = asyncio.get_running_loop().create_task(self._work_forever(), name="search scrub")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)

    async def scrub(self, seconds: float) -> float:
        """Prove frames whose time has come, for about so long; how many seconds until it is worth a call.

        Raises StorageFailed, VolumeFull.
        """
        await self._look_for_keys()
        end = self._clock() + seconds
        position, began = await self._ledger.read(_state)
        if position is None:
            if self._now() - began < self._every_ms:
                return _IDLE_SECONDS
            position, began = -1, self._now()
        looked: list[_Proven] = []
        over = False
        while not over and (not looked or self._clock() < end):
            page = await self._ledger.read(partial(_prove, keyring=self._keyring, after=position))
            over, looked = not page, looked + page
            position = page[-1].key if page else position
        self._bytes.inc(sum(one.size for one in looked))
        found = await self._ledger.write(
            partial(_note, looked=looked, position=None if over else position, began=began, now=self._now())
        )
        for one in found:
            _log.error(
                "damaged: the vectors of %d records of collection %s, from record %d on: delete or replace"
                " them, or restore a backup",
                one.count,
                one.collection,
                label_of(one.key),
            )
        await self._count()
        return _IDLE_SECONDS if over else 0.0

    async def _work_forever(self) -> None:
        while True:
            try:
                pause = await self.scrub(_WORK_SECONDS)
            except (StorageFailed, VolumeFull):  # of the ledger, which says so itself
                pause = _IDLE_SECONDS
            await asyncio.sleep(max(pause, _REST_SECONDS))

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
        self.damaged = await self._ledger.read(_damaged)
        self._gauge.set(self.damaged)

    def _now(self) -> int:
        return int(self._clock() * 1000)


def _state(connection: Connection) -> tuple[int | None, int]:
    row: Any = connection.execute("SELECT position, began_at FROM frame_scrub").fetchone()
    return row[0], row[1]


def _prove(connection: Connection, keyring: Keyring, after: int) -> list[_Proven]:
    """The frames that come next, opened."""
    rows = connection.execute(
        "SELECT key, frames.count, content, dim, id, customer, container FROM frames"
        " JOIN collections ON number = collection WHERE key > ? AND NOT removed ORDER BY key LIMIT ?",
        (after, _AT_ONCE),
    )
    proven = []
    for key, count, content, dim, identity, customer, container in rows:
        seals = Seals(keyring, customer, ContainerId(container))
        sound: bool | None
        try:
            sound = frames.is_whole(seals, key, count, dim, content)
        except NotFound:  # destroyed with its collection just now, or a finding of its own
            sound = None
        proven.append(_Proven(key, count, len(content), customer, identity, sound))
    return proven


def _note(
    connection: Connection, looked: list[_Proven], position: int | None, began: int, now: int
) -> list[_Proven]:
    """What was found, durably; the damaged ones that are news."""
    news = []
    for one in looked:
        known = connection.execute("SELECT 1 FROM damaged_frames WHERE key = ?", (one.key,)).get
        if one.sound and known:
            connection.execute("DELETE FROM damaged_frames WHERE key = ?", (one.key,))
        if one.sound is False and not known:
            connection.execute("INSERT INTO damaged_frames VALUES (?, ?)", (one.key, now))
            details: dict[str, object] = {"records": one.count}
            record(connection, now, _SYSTEM, Event.SEARCH_DAMAGED, one.customer, one.collection, details)
            news.append(one)
    connection.execute("UPDATE frame_scrub SET position = ?, began_at = ?", (position, began))
    connection.execute("DELETE FROM damaged_frames WHERE key NOT IN (SELECT key FROM frames)")
    return news


def _damaged(connection: Connection) -> int:
    """Those of collections that were not removed meanwhile."""
    found: int = connection.execute(
        "SELECT count(*) FROM damaged_frames JOIN frames USING (key)"
        " JOIN collections ON number = collection WHERE NOT removed"
    ).get
    return found
