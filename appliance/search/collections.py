"""Collections: the door to visual search. The ledger is the truth; what is open is a faster copy of it."""

import asyncio
import dataclasses
import logging
import uuid
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from typing import Self

from prometheus_client import Counter, Gauge

from appliance import config
from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId
from appliance.errors import InvalidInput, NotFound, StorageFailed, VolumeFull
from appliance.ledger import Connection, Ledger
from appliance.metrics import Registry
from appliance.search import rows
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
from appliance.search.segments import Scans

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

_ERASE_ROWS = 256
"""A removed collection is erased in steps of this many records, so that others' writes get in between."""

_log = logging.getLogger(__name__)


class Collections:
    """All collections of the appliance. Entering goes on with erasures that a stop interrupted."""

    def __init__(
        self,
        ledger: Ledger,
        settings: config.Search,
        clock: Callable[[], float],
        registry: Registry,
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._clock = clock
        self._graphs = SealedGraphs(settings)
        self._scans = Scans(registry)
        self._stack = AsyncExitStack()
        self._open: dict[CollectionId, OpenCollection] = {}
        self._loading: dict[CollectionId, asyncio.Task[OpenCollection]] = {}
        self._erasing: set[asyncio.Task[None]] = set()
        self._removed: set[CollectionId] = set()
        self._stale: set[CollectionId] = set()
        """Those that were renamed or emptied while they were loaded."""
        self._opened = Gauge("appliance_search_open", "Collections in memory", registry=registry)
        self._damaged = Counter(
            "appliance_search_damaged_records", "Records loaded without a sound vector", registry=registry
        )

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._graphs)
        self._stack.callback(self._scans.close)
        for number in await self._ledger.read(rows.removed_collections):
            _ = self._start_erasing(number)
        return self

    async def __aexit__(self, *_: object) -> None:
        unfinished = [*self._erasing, *self._loading.values()]
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
        now = int(self._clock() * 1000)
        identifier = CollectionId(str(uuid.uuid4()))
        collection = Collection(identifier, customer, check_name(name), backbone, dim, now, 0)

        def act(connection: Connection) -> Collection:
            rows.add_collection(connection, collection)
            details: dict[str, object] = {"backbone": backbone, "dim": dim}
            record(connection, now, actor, Event.COLLECTION_ADD, customer, identifier, details)
            return collection

        return await self._ledger.write(act)

    async def list(self, customer: CustomerId | None = None) -> list[Collection]:
        """One customer's collections, or all with None, oldest first."""
        return await self._ledger.read(partial(rows.list_collections, customer=customer))

    async def get(self, customer: CustomerId | None, collection: CollectionId) -> Collection:
        """Raises NotFound when it does not exist or is another customer's (None: anybody's)."""
        return (await self._ledger.read(partial(rows.find_collection, customer=customer, id=collection)))[1]

    async def rename(
        self, actor: Actor, customer: CustomerId | None, collection: CollectionId, name: str
    ) -> Collection:
        """Give a collection another name, durably and audited.

        Raises NotFound as `get`, InvalidInput for the name, Conflict when its customer has one of this name.
        """
        checked = check_name(name)

        def act(connection: Connection) -> Collection:
            number, found = rows.find_collection(connection, customer, collection)
            rows.rename_collection(connection, number, found.customer, checked)
            now = int(self._clock() * 1000)
            record(connection, now, actor, Event.COLLECTION_RENAME, found.customer, collection)
            return dataclasses.replace(found, name=checked)

        def apply(_renamed: Collection) -> None:
            if collection in self._open:
                self._open[collection].rename(checked)
            self._stale.add(collection)

        return await self._ledger.write(act, then=apply)

    async def empty(self, actor: Actor, customer: CustomerId | None, collection: CollectionId) -> Collection:
        """Erase all records of a collection, which keeps its id, name and backbone; the empty collection.

        They are gone for every caller, all at once, when this is durable; it returns when the last row is
        erased, and an erasure that is interrupted goes on at the next start. Calls that are under way on the
        old records fail with NotFound. Raises NotFound as `get`.
        """
        tombstone = CollectionId(str(uuid.uuid4()))

        def act(connection: Connection) -> int:
            number, found = rows.find_collection(connection, customer, collection)
            rows.renew_collection(connection, number, found, tombstone)
            now = int(self._clock() * 1000)
            details: dict[str, object] = {"records": found.count}
            record(connection, now, actor, Event.COLLECTION_EMPTY, found.customer, collection, details)
            return number

        old: list[OpenCollection] = []

        def apply(_number: int) -> None:
            self._stale.add(collection)
            if (opened := self._open.pop(collection, None)) is not None:
                opened.mark_removed()
                self._opened.dec()
                old.append(opened)

        number = await self._ledger.write(act, then=apply)
        for opened in old:
            await opened.close()
        await asyncio.shield(self._start_erasing(number))
        return await self.get(customer, collection)

    async def remove(self, actor: Actor, customer: CustomerId | None, collection: CollectionId) -> None:
        """Erase a collection with all records and vectors.

        It is gone for every caller once the removal is durable; this returns when the last row is erased. An
        erasure that is interrupted goes on at the next start. Raises NotFound as `get`.
        """

        def act(connection: Connection) -> int:
            number, found = rows.find_collection(connection, customer, collection)
            rows.mark_removed(connection, number)
            now = int(self._clock() * 1000)
            details: dict[str, object] = {"records": found.count}
            record(connection, now, actor, Event.COLLECTION_REMOVE, found.customer, collection, details)
            return number

        def apply(_number: int) -> None:
            self._removed.add(collection)
            if collection in self._open:
                self._open[collection].mark_removed()

        number = await self._ledger.write(act, then=apply)
        if (opened := self._open.pop(collection, None)) is not None:
            self._opened.dec()
            await opened.close()
        await asyncio.shield(self._start_erasing(number))

    async def open(self, customer: CustomerId | None, collection: CollectionId) -> OpenCollection:
        """The collection, ready to search: loaded from the ledger at its first use, in memory from then on.

        Raises NotFound as `get`. Records whose stored vector is damaged (wrong length, not of length 1) are
        logged by collection and label and left out of searches; all others are served.
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
                opened = await self._read(identifier)
                if identifier in self._removed:
                    raise NotFound("no such collection")
                if identifier not in self._stale:
                    break
                await opened.close()
            self._open[identifier] = opened
            self._opened.inc()
            return opened
        finally:
            del self._loading[identifier]

    async def _read(self, identifier: CollectionId) -> OpenCollection:
        number, collection = await self._ledger.read(
            partial(rows.find_collection, customer=None, id=identifier)
        )
        opened = OpenCollection(
            number,
            collection,
            ledger=self._ledger,
            settings=self._settings,
            clock=self._clock,
            graphs=self._graphs,
            scans=self._scans,
        )
        opened.reserve(collection.count)
        last = -1
        read = partial(load_page, number=number, dim=collection.dim)
        while (page := await self._ledger.read(partial(read, after=last))).last >= 0:
            opened.adopt(page)
            last = page.last
            self._report(identifier, page.damaged)
        return opened

    def _report(self, identifier: CollectionId, damaged: Iterable[int]) -> None:
        for label in damaged:
            self._damaged.inc()
            _log.error(
                "collection %s: the vector of record %d is damaged in the ledger; searches leave it out, "
                "delete it or restore a backup",
                identifier,
                label,
            )

    def _start_erasing(self, number: int) -> asyncio.Future[None]:
        task = asyncio.get_running_loop().create_task(self._erase(number))
        self._erasing.add(task)
        task.add_done_callback(self._erasing.discard)
        return task

    async def _erase(self, number: int) -> None:
        try:
            while not await self._ledger.write(partial(rows.erase_some, number=number, limit=_ERASE_ROWS)):
                pass
        except (StorageFailed, VolumeFull):
            _log.exception("a removed collection is not erased yet; the next start goes on with it")
            raise
