"""Collections: the door to visual search. The ledger is the truth; what is open is a faster copy of it."""

import asyncio
import contextlib
import dataclasses
import logging
import uuid
import weakref
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Self, TypeVar
from uuid import UUID

from prometheus_client import Counter

from appliance import config
from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.certificates import Certificates
from appliance.accounts.customers import CustomerId, check_living
from appliance.accounts.quotas import Quotas
from appliance.errors import (
    ApplianceError,
    InvalidInput,
    NotFound,
    QuotaReached,
    SealBroken,
    may_be_kept,
)
from appliance.ledger import Connection, Ledger
from appliance.metrics import Registry
from appliance.search import entries, names
from appliance.search.aliases import Aliases
from appliance.search.clear import seal_clear_rows
from appliance.search.entries import Entry
from appliance.search.erasing import Erasing
from appliance.search.graph_files import GraphFiles
from appliance.search.opened import OpenCollection
from appliance.search.records import (
    MAX_DIM,
    RECALL,
    Collection,
    CollectionId,
    Hit,
    Metadata,
    NewRecord,
    Record,
    Vector,
    check_name,
    check_recall,
)
from appliance.search.refilling import Refilling
from appliance.search.residents import Residents
from appliance.search.scans import Scans
from appliance.search.scrub import Scrub
from appliance.search.sealed import SealedGraphs
from appliance.search.seals import ContainerId, Seals
from appliance.search.snapshots import Snapshots
from appliance.search.sync.feeds import carry_over
from appliance.vault import Keyring
from appliance.volume import Space

__all__ = [
    "Collection",
    "CollectionId",
    "Collections",
    "Hit",
    "Metadata",
    "NewRecord",
    "OpenCollection",
    "Record",
    "Vector",
]

T = TypeVar("T")

_AT_ONCE = 256

_log = logging.getLogger(__name__)


class Collections:
    """All collections of the appliance, each sealed under a key of its own.

    Entering seals what a version before sealing left in clear, and goes on with erasures that a stop
    interrupted.
    """

    def __init__(
        self,
        ledger: Ledger,
        keyring: Keyring,
        settings: config.Search,
        clock: Callable[[], float],
        registry: Registry,
        *,
        graphs: Path,
        snapshots: Path,
        space: Space,
        quotas: Quotas | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Graphs and snapshots are kept in folders of their own, which are made with the first of each.

        All is on the volume of `space`: what comes in leaves its reserve free, what goes has its ballast.
        Without `quotas` all customers may have what the settings say. `pause` waits for so many seconds.
        """
        self._ledger = ledger
        self._keyring = keyring
        self._settings = settings
        self._clock = clock
        self._certificates = Certificates(ledger, keyring.service)
        self._quotas = quotas
        self._space = space
        self.aliases = Aliases(ledger, keyring, clock)
        """Names that stand for collections: see `named`."""
        self.scrub = Scrub(ledger, keyring, clock, registry, scrub_days=settings.scrub_days)
        """To be entered where it shall run in the background."""
        self._graphs = SealedGraphs(settings)
        self._files = GraphFiles(graphs)
        self._scans = Scans(registry)
        self._residents = Residents(settings.memory_bytes, registry)
        self._erasing = Erasing(ledger, keyring, self._files, snapshots, clock, space=space, pause=pause)
        self._stack = AsyncExitStack()
        self._known: weakref.WeakValueDictionary[CollectionId, OpenCollection] = weakref.WeakValueDictionary()
        """What anybody has open, in memory or not: a second one would not see the changes of the first."""
        self._changes = 0
        """Of rows that an `OpenCollection` is made from."""
        self._naming = asyncio.Lock()
        refilling = Refilling(
            ledger,
            keyring,
            settings,
            self._erasing,
            space,
            naming=self._naming,
            replaced=self._replaced,
            most=self.most,
        )
        self.snapshots = Snapshots(ledger, keyring, settings, clock, refilling, folder=snapshots, space=space)
        """Collections as they were, to go back to."""
        self._damaged = Counter(
            "appliance_search_damage_found",
            "Records found without a sound vector, id or metadata",
            registry=registry,
        )

    async def __aenter__(self) -> Self:
        self._stack.callback(self._files.close)
        await self._stack.enter_async_context(self._graphs)
        self._stack.callback(self._scans.close)
        await self._stack.enter_async_context(self._residents)
        self._stack.push_async_callback(self._erasing.close)
        self._stack.push_async_callback(self.snapshots.close)
        await seal_clear_rows(self._ledger, self._keyring)
        await names.fill_handles(self._ledger, self._keyring)
        await self._stack.enter_async_context(self.aliases)
        for entry in await self._ledger.read(entries.removed_collections):
            _ = self._erasing.start(entry)
        held = {container for _, container, _ in self._keyring.containers()}
        every = await self._ledger.read(partial(entries.list_collections, customer=None))
        without_key = [entry for entry in every if UUID(entry.container) not in held]
        for entry in without_key:
            _log.error(
                "collection %s has no key: it was removed after this ledger was backed up, or made after "
                "this keyring was. Nothing of it can be opened, and nothing of it is removed",
                entry.id,
            )
        self.scrub.keyless = sorted(entry.id for entry in without_key)
        await names.free(self._ledger, without_key)
        await self._erasing.clear_files({UUID(entry.container) for entry in every})
        self._erasing.empty_log_soon()  # of what a crash left there
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def graph_process(self) -> int | None:
        """The pid of the process that holds the graphs, None while there is none."""
        return self._graphs.pid

    @property
    def unerased(self) -> int:
        """How many removed, emptied or replaced collections could not be erased; each is tried again soon."""
        return self._erasing.failed

    async def add(
        self,
        actor: Actor,
        customer: CustomerId,
        name: str,
        backbone: str,
        dim: int,
        *,
        recall: float = RECALL,
    ) -> Collection:
        """Create an empty collection, durably and audited.

        `backbone` (name@version) is what its vectors are made by, `dim` their width, 1 to 4,096; `recall`,
        0.8 to 0.999, what its graphs are tuned to. Raises InvalidInput for any of these or the name, Conflict
        when the customer has one of this name, QuotaReached when it has as many as it may, NotFound for the
        customer.
        """
        if not 1 <= dim <= MAX_DIM:
            raise InvalidInput(f"dim: 1 to {MAX_DIM}")
        cleaned = check_name(name)
        check_recall(recall)
        handle = names.handle_of(self._keyring, customer, cleaned)

        def check(connection: Connection) -> None:
            check_living(connection, customer)
            entries.check_free(connection, customer, handle)
            entries.check_room(connection, customer, self.most(customer)[0])

        await self._ledger.read(check)  # before a key is made for nothing
        now, identifier = int(self._clock() * 1000), CollectionId(str(uuid.uuid4()))
        collection = Collection(identifier, customer, cleaned, backbone, dim, now, 0, recall)

        def act(new: Entry, connection: Connection) -> Collection:
            check(connection)
            entries.add_collection(connection, new)
            details: dict[str, object] = {"backbone": backbone, "dim": dim}
            record(connection, now, actor, Event.COLLECTION_ADD, customer, identifier, details)
            return collection

        return await self._under_new_key(collection, ContainerId(identifier), act)

    async def list(
        self,
        customer: CustomerId | None = None,
        *,
        after: CollectionId | None = None,
        limit: int | None = None,
    ) -> list[Collection]:
        """One customer's collections, or all with None, oldest first; without those whose key is gone.

        At most `limit`, those that come after the one `after`. Raises InvalidInput when there is no such one.
        """

        def query(connection: Connection) -> tuple[list[Collection], set[ContainerId]]:
            found = entries.list_collections(connection, customer, after, limit)
            pairs = [(entry, self._opened_entry(entry)) for entry in found]
            return (
                [one for _, one in pairs if one is not None],
                {entry.container for entry, one in pairs if one is None},
            )

        collections, closed = await self._ledger.read(query)
        while closed:
            # One that was emptied just now has another key, and was read with the old one.
            before = closed
            collections, closed = await self._ledger.read(query)
            if closed == before:
                break
        return collections

    async def get(self, customer: CustomerId | None, collection: CollectionId) -> Collection:
        """Raises NotFound when it does not exist, is another customer's (None: anybody's), or has no key."""
        return (await self._find(customer, collection))[1]

    async def find(self, customer: CustomerId, name: str) -> Collection:
        """A customer's collection of this name, trimmed. Raises NotFound when there is none."""
        handle = names.handle_of(self._keyring, customer, name.strip())
        entry = await self._ledger.read(partial(entries.find_named, customer=customer, handle=handle))
        # Without a key it was emptied just now, or is gone.
        return self._opened_entry(entry) or await self.get(customer, entry.id)

    async def rename(
        self, actor: Actor, customer: CustomerId | None, collection: CollectionId, name: str
    ) -> Collection:
        """Give a collection another name, durably and audited.

        Raises NotFound as `get`, InvalidInput for the name, Conflict when its customer has one of this name.
        """
        checked = check_name(name)

        def act(connection: Connection) -> Entry:
            entry = entries.find_collection(connection, customer, collection)
            handle = names.handle_of(self._keyring, entry.customer, checked)
            entries.check_free(connection, entry.customer, handle, besides=collection)
            entries.rename_collection(connection, entry.number, self._seals(entry).seal_name(checked), handle)
            now = int(self._clock() * 1000)
            record(connection, now, actor, Event.COLLECTION_RENAME, entry.customer, collection)
            return entry

        def apply(_: Entry) -> None:
            self._changes += 1
            if (opened := self._known.get(collection)) is not None:
                opened.rename(checked)

        async with self._naming:
            _, found = await self._find(customer, collection)
            entry = await self._ledger.write(act, then=apply)
        return dataclasses.replace(found, name=checked, count=entry.count)

    async def aim(
        self, actor: Actor, customer: CustomerId | None, collection: CollectionId, recall: float
    ) -> Collection:
        """Ask another recall of a collection's graphs, durably and audited; they are tuned to it soon.

        Raises NotFound as `get`, InvalidInput unless it is from 0.8 to 0.999.
        """
        check_recall(recall)

        def act(connection: Connection) -> Entry:
            entry = entries.find_collection(connection, customer, collection)
            entries.aim_collection(connection, entry.number, recall)
            now = int(self._clock() * 1000)
            details: dict[str, object] = {"recall": recall}
            record(connection, now, actor, Event.COLLECTION_RECALL, entry.customer, collection, details)
            return entry

        def apply(_: Entry) -> None:
            self._changes += 1
            if (opened := self._known.get(collection)) is not None:
                opened.aim(recall)

        async with self._naming:  # emptied meanwhile, it would go on with the old one
            _, found = await self._find(customer, collection)
            entry = await self._ledger.write(act, then=apply)
        return dataclasses.replace(found, recall=recall, count=entry.count)

    async def empty(self, actor: Actor, customer: CustomerId | None, collection: CollectionId) -> Collection:
        """Erase all records of a collection, which keeps its id, name and backbone; the empty collection.

        They are gone for every caller, all at once, when this is durable. It goes on under a key of its own;
        this returns when the old one is destroyed, with which none of them opens any more, and the last row
        is erased. An erasure that fails is tried again soon, one that is interrupted goes on at the next
        start. Calls that are under way on the old records fail with NotFound. A feed that it follows fills it
        anew. Raises NotFound as `get`; StorageFailed, VolumeFull also where only the erasure has failed.
        """
        tombstone = CollectionId(str(uuid.uuid4()))

        def act(new: Entry, connection: Connection) -> Entry:
            entry = entries.find_collection(connection, customer, collection)
            entries.renew_collection(connection, entry.number, new, tombstone)
            carry_over(connection, entry, self._seals(entry), self._seals(new))
            now = int(self._clock() * 1000)
            details: dict[str, object] = {"records": entry.count, "container": entry.container}
            record(connection, now, actor, Event.COLLECTION_EMPTY, entry.customer, collection, details)
            return entry

        def apply(_: Entry) -> None:
            self._forget(collection)

        async with self._naming:  # a name that is given meanwhile would be lost
            _, found = await self._find(customer, collection)
            await asyncio.to_thread(self._space.before_deletion)
            entry = await self._under_new_key(found, ContainerId(str(uuid.uuid4())), act, apply)
        await asyncio.shield(self._erasing.start(entry))
        return await self.get(customer, collection)

    async def remove(self, actor: Actor, customer: CustomerId | None, collection: CollectionId) -> None:
        """Erase a collection: its key, with which nothing of it opens any more, then all its rows.

        It is gone for every caller once the removal is durable; this returns when the last row is erased. An
        erasure that fails is tried again soon, one that is interrupted goes on at the next start. Old backups
        open until no keyring with the key opens any more: see `Keyring`. Raises NotFound as `get`, but not
        for a key that is gone; StorageFailed, VolumeFull also where only the erasure has failed.
        """

        def act(connection: Connection) -> Entry:
            found = entries.find_collection(connection, customer, collection)
            self._space.before_deletion()
            entries.mark_removed(connection, found.number)
            now = int(self._clock() * 1000)
            details: dict[str, object] = {"records": found.count}
            record(connection, now, actor, Event.COLLECTION_REMOVE, found.customer, collection, details)
            return found

        def apply(_: Entry) -> None:
            self._forget(collection)

        entry = await self._ledger.write(act, then=apply)
        await asyncio.shield(self._erasing.start(entry))

    async def erase_all(self, actor: Actor, customer: CustomerId) -> None:
        """Erase every collection of a customer whose erasure has begun; when this returns no row is left.

        Also those whose erasure had begun before, or whose key is gone. Raises StorageFailed, VolumeFull:
        what is left goes with the next call.
        """
        self.aliases.forget(customer)
        living = partial(entries.list_collections, customer=customer, limit=_AT_ONCE)
        while found := await self._ledger.read(living):
            for entry in found:
                with contextlib.suppress(NotFound):  # removed meanwhile
                    await self.remove(actor, customer, entry.id)
        for entry in await self._ledger.read(partial(entries.removed_collections, customer=customer)):
            await asyncio.shield(self._erasing.start(entry))

    async def open(self, customer: CustomerId | None, collection: CollectionId) -> OpenCollection:
        """The collection, ready to search: in memory, which it leaves unused when others need the room.

        What is asked of it then loads it again. Raises NotFound as `get`. Records whose vector is damaged
        (its frame does not open, or it is not of length 1) are logged by collection and label and left out
        of searches; all others are served.
        """
        while True:
            opened = self._known.get(collection) or await self._handle(customer, collection)
            if customer is not None and opened.customer != customer:
                raise NotFound("no such collection")
            try:
                await opened.ready()
            except NotFound:
                if self._known.get(collection) is opened:  # it was not emptied meanwhile
                    raise
            else:
                return opened

    async def named(self, customer: CustomerId, name: str) -> OpenCollection:
        """As `open`, by the collection's id or by one of the customer's aliases: its name or its id."""
        alias = self.aliases.find(customer, name)
        if alias is None:
            return await self.open(customer, CollectionId(name))
        try:
            return await self.open(customer, alias.collection)
        except NotFound:
            reason = f"the alias stands for the collection {alias.collection}, which is no more"
            raise NotFound(f"{reason}: have it stand for another one") from None

    def most(self, customer: CustomerId) -> tuple[int, int]:
        """How many collections a customer may have, and how many records in all of them."""
        if self._quotas is None:
            return self._settings.max_collections, self._settings.max_records
        quota = self._quotas.of(customer)
        return quota.collections, quota.vectors

    async def usage(self, customer: CustomerId) -> tuple[int, int]:
        """How many collections a customer has, and how many records in all of them."""
        return await self._ledger.read(partial(entries.usage, customer=customer))

    async def check_records(self, customer: CustomerId) -> None:
        """Raises QuotaReached when a customer has as many records as it may, in all collections together."""
        most = self.most(customer)[1]
        if (await self.usage(customer))[1] >= most:
            raise QuotaReached(most, "records in its collections")

    async def _handle(self, customer: CustomerId | None, identifier: CollectionId) -> OpenCollection:
        while True:
            before = self._changes
            entry, collection = await self._find(customer, identifier)
            if before == self._changes:  # else it may have been read as it was
                break
        if (opened := self._known.get(identifier)) is None:
            seals = self._seals(entry)
            opened = self._known[identifier] = OpenCollection(
                entry.number,
                collection,
                seals=seals,
                ledger=self._ledger,
                settings=self._settings,
                clock=self._clock,
                graphs=self._graphs,
                folder=self._files.of(seals),
                scans=self._scans,
                damages=self._damaged,
                doubt=partial(self.scrub.doubt, entry.number),
                residents=self._residents,
                certificates=self._certificates,
                erased=self._erasing.empty_log_soon,
                space=self._space,
                most=lambda: self.most(collection.customer)[1],
                snapshots=partial(self.snapshots.ids, seals.container),
            )
        return opened

    def _replaced(self, collection: CollectionId) -> None:
        """A restored snapshot has taken the place of its rows: who has it open goes on with that."""
        self._forget(collection, lambda: self.open(None, collection))

    def _forget(
        self, collection: CollectionId, successor: Callable[[], Awaitable[OpenCollection]] | None = None
    ) -> None:
        """Its rows are gone, or no longer its."""
        self._changes += 1
        if (opened := self._known.pop(collection, None)) is not None:
            opened.mark_removed(successor)
            self._residents.discard(opened)

    async def _under_new_key(
        self,
        collection: Collection,
        container: ContainerId,
        act: Callable[[Entry, Connection], T],
        apply: Callable[[T], None] | None = None,
    ) -> T:
        """`act` with the row of a collection whose key this makes.

        The key first: a row without one would be a collection that nothing can be put into.
        """
        owner, identity = UUID(collection.customer), UUID(container)
        await asyncio.to_thread(self._keyring.add, owner, identity, "collection")
        name = Seals(self._keyring, collection.customer, container).seal_name(collection.name)
        handle = names.handle_of(self._keyring, collection.customer, collection.name)
        new = Entry(
            0,
            collection.id,
            container,
            collection.customer,
            name,
            collection.backbone,
            collection.dim,
            collection.created_at,
            count=0,
            handle=handle,
            recall=collection.recall,
        )
        try:
            return await self._ledger.write(partial(act, new), then=apply)
        except ApplianceError as error:
            if not may_be_kept(error):  # else the row may be there, and is nothing without its key
                await asyncio.to_thread(self._keyring.destroy, owner, identity)
            raise

    async def _find(self, customer: CustomerId | None, identifier: CollectionId) -> tuple[Entry, Collection]:
        find = partial(entries.find_collection, customer=customer, id=identifier)
        entry = await self._ledger.read(find)
        while (found := self._opened_entry(entry)) is None:
            before = entry
            entry = await self._ledger.read(find)
            if entry.container == before.container:  # it was not emptied just now
                raise NotFound("no such collection")
        return entry, found

    def _opened_entry(self, entry: Entry) -> Collection | None:
        """None when there is no key for it. A name that was changed costs nothing but itself."""
        try:
            name = names.opened(self._keyring, entry)
        except NotFound:
            return None
        except SealBroken:
            name = f"damaged {entry.id}"
        return Collection(
            entry.id,
            entry.customer,
            name,
            entry.backbone,
            entry.dim,
            entry.created_at,
            entry.count,
            entry.recall,
        )

    def _seals(self, entry: Entry) -> Seals:
        return Seals(self._keyring, entry.customer, entry.container)
