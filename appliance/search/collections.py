"""Collections: the door to visual search. The ledger is the truth; what is open is a faster copy of it."""

import asyncio
import dataclasses
import logging
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Self, TypeVar
from uuid import UUID

from prometheus_client import Counter, Gauge

from appliance import config
from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId
from appliance.errors import (
    ApplianceError,
    Conflict,
    InvalidInput,
    NotFound,
    SealBroken,
    StorageFailed,
    VolumeFull,
)
from appliance.ledger import Connection, Ledger
from appliance.metrics import Registry
from appliance.search import entries
from appliance.search.clear import seal_clear_rows
from appliance.search.entries import Entry
from appliance.search.graph_files import GraphFiles
from appliance.search.loading import load_page
from appliance.search.opened import OpenCollection
from appliance.search.records import (
    MAX_DIM,
    Collection,
    CollectionId,
    Hit,
    Metadata,
    NewRecord,
    Record,
    Vector,
    check_name,
)
from appliance.search.sealed import SealedGraphs
from appliance.search.seals import ContainerId, Seals
from appliance.search.segments import Scans
from appliance.vault import Keyring

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

_ERASE_ROWS = 256
"""A removed collection is erased in steps of this many records, so that others' writes get in between."""
_LOG_SECONDS = 1.0
"""From one cut of the ledger's log to the next: each syncs twice, or a reader was in the way."""

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
    ) -> None:
        """Graphs are kept in the folder `graphs`, which is made with the first."""
        self._ledger = ledger
        self._keyring = keyring
        self._settings = settings
        self._clock = clock
        self._graphs = SealedGraphs(settings)
        self._files = GraphFiles(graphs)
        self._scans = Scans(registry)
        self._stack = AsyncExitStack()
        self._open: dict[CollectionId, OpenCollection] = {}
        self._loading: dict[CollectionId, asyncio.Task[OpenCollection]] = {}
        self._naming = asyncio.Lock()
        self._erasing: set[asyncio.Task[None]] = set()
        self._emptying: asyncio.Task[None] | None = None
        self._left_in_log = False
        self._removed: set[CollectionId] = set()
        self._stale: set[CollectionId] = set()
        """Those that were renamed or emptied while they were loaded."""
        self._opened = Gauge("appliance_search_open", "Collections in memory", registry=registry)
        self._damaged = Counter(
            "appliance_search_damaged_records",
            "Records found without a sound vector, id or metadata",
            registry=registry,
        )

    async def __aenter__(self) -> Self:
        self._stack.callback(self._files.close)
        await self._stack.enter_async_context(self._graphs)
        self._stack.callback(self._scans.close)
        await seal_clear_rows(self._ledger, self._keyring)
        for entry in await self._ledger.read(entries.removed_collections):
            _ = self._start_erasing(entry)
        held = {container for _, container, _ in self._keyring.containers()}
        for entry in await self._ledger.read(partial(entries.list_collections, customer=None)):
            if UUID(entry.container) not in held:
                _log.error(
                    "collection %s has no key: it was removed after this ledger was backed up, or made after "
                    "this keyring was. Nothing of it can be opened, and nothing of it is removed",
                    entry.id,
                )
        await self._clear_files()
        self._empty_log_soon()  # of what a crash left there
        return self

    async def __aexit__(self, *_: object) -> None:
        unfinished = [*self._erasing, *self._loading.values()]
        if self._emptying is not None:
            unfinished.append(self._emptying)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        for opened in self._open.values():
            await opened.close()
        self._open.clear()
        await self._stack.aclose()

    @property
    def graph_process(self) -> int | None:
        """The pid of the process that holds the graphs, None while there is none."""
        return self._graphs.pid

    async def add(self, actor: Actor, customer: CustomerId, name: str, backbone: str, dim: int) -> Collection:
        """Create an empty collection, durably and audited.

        `backbone` (name@version) is what its vectors are made by, `dim` their width, 1 to 4,096. Raises
        InvalidInput for the name or `dim`, Conflict when the customer has one of this name, NotFound for the
        customer.
        """
        if not 1 <= dim <= MAX_DIM:
            raise InvalidInput(f"dim: 1 to {MAX_DIM}")
        cleaned = check_name(name)
        await self._ledger.read(partial(entries.check_customer, customer=customer))
        now, identifier = int(self._clock() * 1000), CollectionId(str(uuid.uuid4()))
        collection = Collection(identifier, customer, cleaned, backbone, dim, now, count=0)

        def act(new: Entry, connection: Connection) -> Collection:
            entries.add_collection(connection, new)
            details: dict[str, object] = {"backbone": backbone, "dim": dim}
            record(connection, now, actor, Event.COLLECTION_ADD, customer, identifier, details)
            return collection

        async with self._naming:
            await self._require_free(customer, cleaned)
            return await self._under_new_key(collection, ContainerId(identifier), act)

    async def list(self, customer: CustomerId | None = None) -> list[Collection]:
        """One customer's collections, or all with None, oldest first; without those whose key is gone."""

        def query(connection: Connection) -> tuple[list[Collection], set[ContainerId]]:
            found = entries.list_collections(connection, customer)
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

    async def rename(
        self, actor: Actor, customer: CustomerId | None, collection: CollectionId, name: str
    ) -> Collection:
        """Give a collection another name, durably and audited.

        Raises NotFound as `get`, InvalidInput for the name, Conflict when its customer has one of this name.
        """
        checked = check_name(name)

        def act(connection: Connection) -> Entry:
            entry = entries.find_collection(connection, customer, collection)
            entries.rename_collection(connection, entry.number, self._seals(entry).seal_name(checked))
            now = int(self._clock() * 1000)
            record(connection, now, actor, Event.COLLECTION_RENAME, entry.customer, collection)
            return entry

        def apply(_: Entry) -> None:
            if collection in self._open:
                self._open[collection].rename(checked)
            self._stale.add(collection)

        async with self._naming:
            _, found = await self._find(customer, collection)
            await self._require_free(found.customer, checked, besides=collection)
            entry = await self._ledger.write(act, then=apply)
        return dataclasses.replace(found, name=checked, count=entry.count)

    async def empty(self, actor: Actor, customer: CustomerId | None, collection: CollectionId) -> Collection:
        """Erase all records of a collection, which keeps its id, name and backbone; the empty collection.

        They are gone for every caller, all at once, when this is durable. It goes on under a key of its own;
        this returns when the old one is destroyed, with which none of them opens any more, and the last row
        is erased. An erasure that is interrupted goes on at the next start. Calls that are under way on the
        old records fail with NotFound. Raises NotFound as `get`.
        """
        tombstone = CollectionId(str(uuid.uuid4()))
        old: list[OpenCollection] = []

        def act(new: Entry, connection: Connection) -> Entry:
            entry = entries.find_collection(connection, customer, collection)
            entries.renew_collection(connection, entry.number, new, tombstone)
            now = int(self._clock() * 1000)
            details: dict[str, object] = {"records": entry.count, "container": entry.container}
            record(connection, now, actor, Event.COLLECTION_EMPTY, entry.customer, collection, details)
            return entry

        def apply(_: Entry) -> None:
            self._stale.add(collection)
            if (opened := self._open.pop(collection, None)) is not None:
                opened.mark_removed()
                self._opened.dec()
                old.append(opened)

        async with self._naming:  # a name that is given meanwhile would be lost
            _, found = await self._find(customer, collection)
            entry = await self._under_new_key(found, ContainerId(str(uuid.uuid4())), act, apply)
        for opened in old:
            await opened.close()
        await asyncio.shield(self._start_erasing(entry))
        return await self.get(customer, collection)

    async def remove(self, actor: Actor, customer: CustomerId | None, collection: CollectionId) -> None:
        """Erase a collection: its key, with which nothing of it opens any more, then all its rows.

        It is gone for every caller once the removal is durable; this returns when the last row is erased. An
        erasure that is interrupted goes on at the next start. Old backups open until no keyring with the key
        opens any more: see `Keyring`. Raises NotFound as `get`, but not for a key that is gone.
        """

        def act(connection: Connection) -> Entry:
            found = entries.find_collection(connection, customer, collection)
            entries.mark_removed(connection, found.number)
            now = int(self._clock() * 1000)
            details: dict[str, object] = {"records": found.count}
            record(connection, now, actor, Event.COLLECTION_REMOVE, found.customer, collection, details)
            return found

        def apply(_: Entry) -> None:
            self._removed.add(collection)
            if collection in self._open:
                self._open[collection].mark_removed()

        entry = await self._ledger.write(act, then=apply)
        if (opened := self._open.pop(collection, None)) is not None:
            self._opened.dec()
            await opened.close()
        await asyncio.shield(self._start_erasing(entry))

    async def open(self, customer: CustomerId | None, collection: CollectionId) -> OpenCollection:
        """The collection, ready to search: loaded from the ledger at its first use, in memory from then on.

        Raises NotFound as `get`. Records whose vector is damaged (its frame does not open, or it is not of
        length 1) are logged by collection and label and left out of searches; all others are served.
        """
        if collection not in self._open:
            await self.get(customer, collection)
        opened = self._open.get(collection)  # asked again: another caller's load may have ended meanwhile
        if opened is None:
            opened = await asyncio.shield(self._loaded(collection))
        if customer is not None and opened.collection.customer != customer:
            raise NotFound("no such collection")
        return opened

    def _loaded(self, collection: CollectionId) -> asyncio.Task[OpenCollection]:
        if collection not in self._loading:
            self._loading[collection] = asyncio.get_running_loop().create_task(self._load(collection))
        return self._loading[collection]

    async def _load(self, identifier: CollectionId) -> OpenCollection:
        try:
            while True:
                self._stale.discard(identifier)
                try:
                    opened = await self._read(identifier)
                except NotFound:
                    if identifier in self._removed or identifier not in self._stale:
                        raise
                    continue
                self._open[identifier] = opened
                self._opened.inc()
                return opened
        finally:
            del self._loading[identifier]

    async def _read(self, identifier: CollectionId) -> OpenCollection:
        """Raises NotFound when it is removed meanwhile, or emptied or renamed: read it again then."""
        entry, collection = await self._find(None, identifier)
        seals = self._seals(entry)
        opened = OpenCollection(
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
            erased=self._empty_log_soon,
        )
        try:
            opened.reserve(collection.count)
            last = -1
            read = partial(load_page, seals=seals, number=entry.number, dim=collection.dim)
            while (page := await self._ledger.read(partial(read, after=last))).last >= 0:
                self._require_current(identifier)  # without its key nothing opens, and nothing is damaged
                opened.adopt(page)
                last = page.last
            self._require_current(identifier)
            await opened.reconcile(partial(self._require_current, identifier))
            self._require_current(identifier)
        except BaseException:
            await opened.close()
            raise
        return opened

    def _require_current(self, identifier: CollectionId) -> None:
        if identifier in self._removed or identifier in self._stale:
            raise NotFound("no such collection")

    async def _require_free(
        self, customer: CustomerId, name: str, besides: CollectionId | None = None
    ) -> None:
        if any(one.name == name and one.id != besides for one in await self.list(customer)):
            raise Conflict("a collection of this name exists already")

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
        )
        try:
            return await self._ledger.write(partial(act, new), then=apply)
        except StorageFailed:
            raise  # the row may be on the disk all the same, and is nothing without its key
        except ApplianceError:
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
            name = self._seals(entry).open_name(entry.name)
        except NotFound:
            return None
        except SealBroken:
            name = f"damaged {entry.id}"
        return Collection(
            entry.id, entry.customer, name, entry.backbone, entry.dim, entry.created_at, entry.count
        )

    def _seals(self, entry: Entry) -> Seals:
        return Seals(self._keyring, entry.customer, entry.container)

    def _start_erasing(self, entry: Entry) -> asyncio.Future[None]:
        task = asyncio.get_running_loop().create_task(self._erase(entry))
        self._erasing.add(task)
        task.add_done_callback(self._erasing.discard)
        return task

    async def _erase(self, entry: Entry) -> None:
        try:
            await asyncio.to_thread(self._keyring.destroy, UUID(entry.customer), UUID(entry.container))
            await self._files.remove(UUID(entry.container))
            while not await self._ledger.write(
                partial(entries.erase_some, number=entry.number, limit=_ERASE_ROWS)
            ):
                pass
        except (StorageFailed, VolumeFull):
            _log.exception("a removed collection is not erased yet; the next start goes on with it")
            raise
        self._empty_log_soon()

    async def _clear_files(self) -> None:
        """Of graphs, what an erasure or a write left that a crash interrupted."""
        try:
            await self._files.keep_only({container for _, container, _ in self._keyring.containers()})
        except StorageFailed as error:
            _log.error("what is left of old graphs stays for now: %s", error)

    def _empty_log_soon(self) -> None:
        """What was deleted is overwritten in the database, and still in its log until that is cut."""
        self._left_in_log = True
        if self._emptying is None or self._emptying.done():
            self._emptying = asyncio.get_running_loop().create_task(self._empty_log())

    async def _empty_log(self) -> None:
        try:
            while self._left_in_log:
                self._left_in_log = False
                if not await self._ledger.empty_log():  # a reader was in the way
                    self._left_in_log = True
                await asyncio.sleep(_LOG_SECONDS)
        except (StorageFailed, VolumeFull) as error:
            _log.error("deleted records stay in the ledger's log for now: %s", error)
