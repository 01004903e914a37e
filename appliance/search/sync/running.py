"""One run: the feed is read whole, then what it asks for is done, some items at a time.

Each step is one transaction of records, of what they were made of, and of the report: whatever ends a run,
the next one does what is left and nothing twice. Images are in memory alone, from the gate to the vector.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from appliance import config
from appliance.accounts.audit import Actor
from appliance.accounts.customers import Customers
from appliance.errors import (
    ApplianceError,
    HostFailed,
    InvalidInput,
    ModelFailed,
    Overloaded,
    TooLarge,
    WorkerLost,
)
from appliance.ledger import Connection, Ledger
from appliance.outbound import Fetched, Outbound
from appliance.search.collections import Collections
from appliance.search.entries import find_collection
from appliance.search.opened import OpenCollection
from appliance.search.records import (
    NewRecord,
    Record,
    Upserted,
    Vector,
    decode_metadata,
    encode_id,
    encode_metadata,
)
from appliance.search.seals import Seals
from appliance.search.sync import items
from appliance.search.sync.feeds import Begun, Feeds
from appliance.search.sync.items import Need
from appliance.search.sync.parsing import Item, parsing
from appliance.search.sync.plan import Plan
from appliance.search.sync.report import NAMED, Report, State

T = TypeVar("T")

MOST_LOST = 0.3
"""Of the records that a feed brought; one that has lost more asks before they go."""
IMAGES_AT_ONCE = 4
"""Of one run: half of what the gate lets go to one destination at a time."""
AGAIN_SECONDS = (1.0, 5.0)
"""Before a second and a third try, of what may go well in a while."""
_GONE_AT_ONCE = 256

_log = logging.getLogger(__name__)

_ACTOR = Actor("system", "feeds")
_LATER = (HostFailed, Overloaded, WorkerLost)
_ITS_OWN = (InvalidInput, ModelFailed, Overloaded, WorkerLost)  # what costs an item, and not the run


class Embed(Protocol):
    """Makes vectors of images, which it does not keep."""

    def check(self, backbone: str) -> None:
        """Raises Conflict or NotInstalled when no vector of this backbone can be made here."""

    async def vector(self, backbone: str, image: bytes) -> Vector:
        """Of an encoded image. Raises InvalidInput for what is none, ModelFailed, Overloaded, WorkerLost."""


class Suspended(Exception):
    """The customer is suspended: the run goes on when it is resumed."""


class Running:
    """What runs need of their neighbours. `pause` waits for so many seconds."""

    def __init__(
        self,
        ledger: Ledger,
        feeds: Feeds,
        *,
        collections: Collections,
        customers: Customers,
        outbound: Outbound,
        embed: Embed,
        settings: config.Search,
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        self.ledger = ledger
        self.feeds = feeds
        self.collections = collections
        self.customers = customers
        self.outbound = outbound
        self.embed = embed
        self.settings = settings
        self.pause = pause

    async def again(self, act: Callable[[], Awaitable[T]]) -> T:
        """`act`, again where it failed for now. Raises what it raises at last."""
        for seconds in AGAIN_SECONDS:
            try:
                return await act()
            except _LATER:
                await self.pause(seconds)
        return await act()


class FeedRun:
    """A run on its way; `report` is what it has done by now, `known` what the host knows the feed by."""

    def __init__(self, parts: Running, begun: Begun) -> None:
        self._parts = parts
        self._begun = begun
        self._open_images = asyncio.Semaphore(IMAGES_AT_ONCE)
        self.report = begun.run.report.again()
        self.known: dict[str, str] | None = None

    async def go(self) -> State:
        """Run to the end, or to the question whether so many items may go.

        Raises what the feed, the backbone or the volume are at fault with, NotFound when the collection or
        its source is gone, Suspended.
        """
        self._parts.embed.check(self._begun.backbone)
        plan = await self._parts.again(self._read)
        if plan is None:
            self.known = self._begun.known
            return State.UNCHANGED
        if await self._lost_too_many(plan):
            return State.NEEDS_CONFIRMATION
        for block in plan.blocks():
            self._require_active()
            await self._see_to(block)
        await self._remove_gone(plan)
        if self.report.failed:
            self.known = None  # what failed is tried again, though the feed be the same
        return State.DONE

    async def _read(self) -> Plan | None:
        """The feed to its end, None when it is the one that was applied last."""
        source, settings = self._begun.source, self._parts.settings
        self.report = self._begun.run.report.again()
        headers = {**source.headers}
        if not self._begun.run.asked:
            names = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}
            headers |= {names[name]: value for name, value in self._begun.known.items()}
        async with self._parts.outbound.feed(source.url, headers, settings.feed_bytes) as fetched:
            if fetched is None:
                return None
            self.known = dict(fetched.known)
            return await self._planned(fetched)

    async def _planned(self, fetched: Fetched) -> Plan:
        plan = Plan()
        async with parsing(self._begun.source.mapping, self._parts.settings.max_metadata_bytes) as parser:
            async for piece in fetched.pieces:
                self._require_active()
                self.report.bytes += len(piece)
                async for some in parser.feed(piece):
                    await self._compare(plan, some)
            async for some in parser.close():
                await self._compare(plan, some)
        self.report.left = plan.left
        # What this run did before it was interrupted is as the feed has it.
        self.report.unchanged = max(0, self.report.unchanged - self.report.added - self.report.changed)
        return plan

    async def _compare(self, plan: Plan, some: Sequence[Item]) -> None:
        self.report.items += len(some)
        named = [item for item in some if self._is_named(item)]
        compared = await self._read_ledger(partial(items.compare, items=named))
        for item, (handle, need, known) in zip(named, compared, strict=True):
            if not plan.take(item, handle, need, known=known):
                self.report.fail(item.id, "the id comes more than once in the feed: the first counts")
            elif item.fault:
                self.report.fail(item.id, item.fault)
            elif need == "nothing":
                self.report.unchanged += 1
        if len(plan.seen) > self._parts.settings.capacity:
            raise TooLarge(
                f"the feed has more than {self._parts.settings.capacity} items, which a collection holds"
            )

    def _is_named(self, item: Item) -> bool:
        """Whether its id can be a record's; one that cannot has failed."""
        try:
            encode_id(item.id, self._parts.settings.max_id_bytes)
        except InvalidInput as error:
            self.report.fail(item.id, item.fault or error.told)
            return False
        return True

    async def _lost_too_many(self, plan: Plan) -> bool:
        def query(connection: Connection, _: Seals, number: int) -> int:
            return items.remembered(connection, number)

        brought = await self._read_ledger(query)
        missing = self.report.missing = brought - plan.matched
        if missing <= self._begun.run.may_go or (plan.seen and missing <= MOST_LOST * brought):
            return False
        self.report.reason = (
            f"{missing} of {brought} records are no more in the feed, which has {len(plan.seen)} items:"
            " nothing was changed. Confirm it, and they go; or put the feed right and have it run again"
        )
        return True

    async def _see_to(self, block: Sequence[tuple[Need, Item]]) -> None:
        await self._describe([item for need, item in block if need == "words"])
        wanted = [(need, item) for need, item in block if need != "words"]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._vector(item)) for _, item in wanted]
        opened = await self._opened()
        records: list[tuple[Need, Item, NewRecord]] = []
        for (need, item), task in zip(wanted, tasks, strict=True):
            try:
                new = NewRecord(item.id, _given(task.result()), decode_metadata(item.metadata))
                opened.check(new)
            except _ITS_OWN as error:
                self._fail(item, error)
            else:
                records.append((need, item, new))
        if records:
            await self._store(opened, records)

    async def _vector(self, item: Item) -> Vector | ApplianceError:
        """Of the image behind the item's URL, which is dropped; or what is wrong with it."""

        async def seen() -> Vector:
            async with self._open_images, self._parts.outbound.image(item.url) as image:
                return await self._parts.embed.vector(self._begun.backbone, image)

        try:
            return await self._parts.again(seen)
        except ApplianceError as error:
            return error

    async def _store(self, opened: OpenCollection, records: Sequence[tuple[Need, Item, NewRecord]]) -> None:
        after = self.report.copy()

        def also(connection: Connection, outcomes: list[Upserted]) -> None:
            stored = []
            for (_, item, _), outcome in zip(records, outcomes, strict=True):
                after.left -= 1
                if outcome == "full":
                    after.fail(item.id, "the collection is full")
                    continue
                stored.append(item)
                if outcome == "inserted":
                    after.add(item.id)
                else:
                    after.change(item.id)
            self._remember(connection, stored, after)

        await opened.upsert(_ACTOR, [new for _, _, new in records], also)
        self.report = after

    async def _describe(self, some: Sequence[Item]) -> None:
        """Set the metadata of records whose images are the same."""
        some = [item for item in some if self._is_described(item)]
        if not some:
            return
        opened, after = await self._opened(), self.report.copy()

        def also(connection: Connection, outcomes: list[Record | None]) -> None:
            for item, outcome in zip(some, outcomes, strict=True):
                after.left -= 1
                if outcome is None:
                    after.fail(item.id, "the record was deleted meanwhile")
                else:
                    after.change(item.id)
            self._remember(connection, some, after)

        changes = [(item.id, decode_metadata(item.metadata)) for item in some]
        await opened.update(_ACTOR, changes, also, whole=True)
        self.report = after

    def _is_described(self, item: Item) -> bool:
        """Whether its metadata can be a record's; where it cannot the item has failed."""
        try:
            encode_metadata(decode_metadata(item.metadata), self._parts.settings.max_metadata_bytes)
        except InvalidInput as error:
            self._fail(item, error)
            return False
        return True

    async def _remove_gone(self, plan: Plan) -> None:
        after: int | None = -1
        while after is not None:
            self._require_active()
            query = partial(items.unseen, seen=plan.seen, after=after, limit=20 * _GONE_AT_ONCE, of_feed=True)
            ids, after = await self._read_ledger(query)
            for start in range(0, len(ids), _GONE_AT_ONCE):
                await self._remove(ids[start : start + _GONE_AT_ONCE])

    async def _remove(self, ids: Sequence[str]) -> None:
        opened, after = await self._opened(), self.report.copy()

        def also(connection: Connection, outcomes: list[bool]) -> None:
            for identity, existed in zip(ids, outcomes, strict=True):
                if existed:
                    after.lose(identity)
            self._parts.feeds.save(connection, self._begun, after)

        await opened.delete(_ACTOR, ids, also)
        self.report = after

    def _remember(self, connection: Connection, stored: Sequence[Item], after: Report) -> None:
        entry = find_collection(connection, self._begun.customer, self._begun.collection)
        items.remember(connection, self._parts.feeds.seals(entry), entry.number, stored)
        self._parts.feeds.save(connection, self._begun, after)

    def _fail(self, item: Item, error: ApplianceError) -> None:
        if error.told != str(error) and self.report.failed < NAMED:
            _log.warning("collection %s: an item of its feed: %s", self._begun.collection, error)
        self.report.left -= 1
        self.report.fail(item.id, error.told)

    async def _opened(self) -> OpenCollection:
        return await self._parts.collections.open(self._begun.customer, self._begun.collection)

    async def _read_ledger(self, query: Callable[[Connection, Seals, int], T]) -> T:
        """`query` with the seals and the number that the collection has now."""

        def act(connection: Connection) -> T:
            entry = find_collection(connection, self._begun.customer, self._begun.collection)
            return query(connection, self._parts.feeds.seals(entry), entry.number)

        return await self._parts.ledger.read(act)

    def _require_active(self) -> None:
        if self._parts.customers.suspended(self._begun.customer):
            raise Suspended


def _given(vector: Vector | ApplianceError) -> Vector:
    if isinstance(vector, ApplianceError):
        raise vector
    return vector
