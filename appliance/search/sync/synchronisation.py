"""The part that has collections follow their feeds: what is due is run, of each customer one at a time."""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Self

from prometheus_client import Counter, Gauge

from appliance import config
from appliance.accounts.audit import Actor
from appliance.accounts.customers import CustomerId, Customers
from appliance.background import end_tasks
from appliance.errors import ApplianceError, NotFound, SealBroken, StorageFailed, VolumeFull
from appliance.ledger import Ledger
from appliance.metrics import Registry
from appliance.outbound import Outbound
from appliance.search.collections import Collections
from appliance.search.records import CollectionId
from appliance.search.sync.diff import Difference, Differences
from appliance.search.sync.feeds import Begun, Feeds, Following
from appliance.search.sync.report import Run, State
from appliance.search.sync.running import Embed, FeedRun, Running, Suspended
from appliance.search.sync.source import Source, check_source
from appliance.unforeseen import frames_of
from appliance.vault import Keyring

AT_ONCE = 4
"""Runs; of each customer one, so that nobody's feeds keep those of others waiting."""
_IDLE_SECONDS = 60.0  # a customer that is resumed need not tell
_FAULT_SECONDS = 5.0
_UNFORESEEN = "the appliance failed on it: its log says where"

_log = logging.getLogger(__name__)


class Synchronisation:
    """The feeds of all collections; `async with` runs what is due, also what a stop has interrupted.

    What is not a customer's raises NotFound, and so does a collection that follows nothing.
    """

    def __init__(
        self,
        ledger: Ledger,
        keyring: Keyring,
        *,
        collections: Collections,
        customers: Customers,
        outbound: Outbound,
        embed: Embed,
        settings: config.Search,
        clock: Callable[[], float],
        registry: Registry,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._outbound = outbound
        self._feeds = Feeds(ledger, keyring, clock)
        self._parts = Running(
            ledger,
            self._feeds,
            collections=collections,
            customers=customers,
            outbound=outbound,
            embed=embed,
            settings=settings,
            pause=pause,
        )
        self._differences = Differences(ledger, self._feeds.seals, settings)
        self._woken = asyncio.Event()
        self._tasks: dict[CollectionId, tuple[CustomerId, asyncio.Task[None]]] = {}
        self._under_way: dict[CollectionId, FeedRun] = {}
        self._changing: set[CollectionId] = set()
        self.asking = 0
        """How many collections wait for somebody to confirm what their feeds have lost."""
        self._runs = Counter(
            "appliance_search_feed_runs", "Runs of feeds, by how they ended", ("state",), registry=registry
        )
        Gauge(
            "appliance_search_feeds_asking", "Feeds that wait for a confirmation", registry=registry
        ).set_function(lambda: self.asking)

    async def __aenter__(self) -> Self:
        self._task = asyncio.get_running_loop().create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        await end_tasks(self._task, *(task for _, task in self._tasks.values()))

    def wake(self) -> None:
        """Look at once for what is due."""
        self._woken.set()

    async def set(
        self, actor: Actor, customer: CustomerId, collection: CollectionId, source: Source
    ) -> Following:
        """Have the collection follow this source and no other, durably and audited.

        A run that is under way ends. Raises InvalidInput naming the field.
        """
        _ = await self._parts.collections.get(customer, collection)
        check_source(source, self._outbound)
        async with self._stopped(collection):
            return await self._feeds.set(actor, customer, collection, source)

    async def get(self, customer: CustomerId, collection: CollectionId) -> Following:
        """What the collection follows."""
        return await self._feeds.get(customer, collection)

    async def remove(self, actor: Actor, customer: CustomerId, collection: CollectionId) -> None:
        """Have it follow nothing, durably and audited; a run that is under way ends, records stay."""
        _ = await self._feeds.get(customer, collection)
        async with self._stopped(collection):
            await self._feeds.remove(actor, customer, collection)

    async def run(self, actor: Actor, customer: CustomerId, collection: CollectionId) -> Run:
        """Have it run now, and look at the feed even when its host says that it is the same.

        Raises Conflict while a run is under way.
        """
        run = await self._feeds.ask(actor, customer, collection)
        self.wake()
        return run

    async def confirm(self, actor: Actor, customer: CustomerId, collection: CollectionId) -> Run:
        """Let the run that asks go on; when even more items have gone since, it asks again.

        Raises Conflict when none asks.
        """
        run = await self._feeds.confirm(actor, customer, collection)
        self.wake()
        return run

    async def diff(
        self,
        customer: CustomerId,
        collection: CollectionId,
        pieces: AsyncIterator[bytes],
        *,
        lines: bool,
        hash_field: str,
    ) -> Difference:
        """What it takes to have the collection hold what `pieces` want; see `Differences.between`."""
        return await self._differences.between(
            customer, collection, pieces, lines=lines, hash_field=hash_field
        )

    async def runs(self, customer: CustomerId, collection: CollectionId) -> list[Run]:
        """The last runs, the newest first; the one under way as it is now."""
        runs = await self._feeds.runs(customer, collection)
        now = self._under_way.get(collection)
        return [
            dataclasses.replace(run, report=now.report)
            if now is not None and run.state is State.RUNNING
            else run
            for run in runs
        ]

    async def _follow(self) -> None:
        while True:
            self._woken.clear()
            try:
                seconds = await self._start_due()
            except (StorageFailed, VolumeFull):  # a finding of its own
                seconds = _FAULT_SECONDS
            except Exception as error:  # noqa: BLE001 - what is wrong with one must not end all others
                _log.error("feeds: %s\n%s", type(error).__name__, frames_of(error))
                seconds = _IDLE_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._woken.wait()

    async def _start_due(self) -> float:
        """Starts what is due as far as there is room; seconds until more may be. The end of a run wakes."""
        self.asking = await self._feeds.asking()
        if (room := AT_ONCE - len(self._tasks)) > 0:
            busy = {customer for customer, _ in self._tasks.values()}
            for customer, collection in await self._feeds.due(busy, room):
                if collection not in self._changing:
                    task = asyncio.get_running_loop().create_task(self._run(collection))
                    self._tasks[collection] = customer, task
        soonest = await self._feeds.next_due()
        return _IDLE_SECONDS if soonest is None else min(soonest, _IDLE_SECONDS)

    async def _run(self, collection: CollectionId) -> None:
        try:
            try:
                begun = await self._feeds.begin(collection)
            except (SealBroken, NotFound):
                await self._feeds.suspend(collection)
                _log.error("collection %s: its source does not open, set it again", collection)
                return
            if begun is not None:
                await self._go(begun)
        except (Suspended, NotFound):
            pass  # it goes on when the customer is resumed; or there is nothing any more that could
        except (StorageFailed, VolumeFull) as error:
            _log.error("collection %s: the run of its feed is held up: %s", collection, error)
            await asyncio.sleep(_FAULT_SECONDS)
        finally:
            self._under_way.pop(collection, None)
            self._tasks.pop(collection, None)
            self.wake()

    async def _go(self, begun: Begun) -> None:
        run = self._under_way[begun.collection] = FeedRun(self._parts, begun)
        try:
            state = await run.go()
        except (Suspended, NotFound, StorageFailed, VolumeFull):
            raise
        except ApplianceError as error:
            if error.told != str(error):
                _log.error("collection %s: the run of its feed failed: %s", begun.collection, error)
            state, run.known, run.report.reason = State.FAILED, None, error.told
        except Exception as error:  # noqa: BLE001 - what is wrong with one feed must not end all others
            _log.error("collection %s: %s\n%s", begun.collection, type(error).__name__, frames_of(error))
            state, run.known, run.report.reason = State.FAILED, None, _UNFORESEEN
        known = run.known if state in {State.DONE, State.UNCHANGED} else None
        await self._feeds.end(begun, state, run.report, known)
        self._runs.labels(state).inc()
        told = _log.info if state in {State.DONE, State.UNCHANGED} else _log.warning
        report = run.report
        told(
            "collection %s: the run of its feed: %s; %d added, %d changed, %d gone, %d failed, %d missing",
            begun.collection,
            state,
            report.added,
            report.changed,
            report.gone,
            report.failed,
            report.missing,
        )

    @contextlib.asynccontextmanager
    async def _stopped(self, collection: CollectionId) -> AsyncIterator[None]:
        """Within the block no run of the collection is under way, and none begins."""
        self._changing.add(collection)
        try:
            _, task = self._tasks.get(collection, (None, None))
            if task is not None:
                await end_tasks(task)
                self._tasks.pop(collection, None)  # one that had not begun leaves nothing behind
            yield
        finally:
            self._changing.discard(collection)
            self.wake()
