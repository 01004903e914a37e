"""Which collections are in memory: loaded when they are used, dropped when others need their room.

What is used is never dropped, and what was used last stays until another one is. So memory passes its budget
by what is in use at a time, and a collection that is larger than all of it is served as well.

What gives way is what was used longest ago, but nothing of a customer whose collections take less than those
of the one who asks: who goes through thousands drops its own, and no other's that are used, however seldom.
Ten minutes without use end that protection, so that nobody keeps room for nothing.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import wraps
from operator import itemgetter
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

from prometheus_client import Counter, Gauge

from appliance.accounts.customers import CustomerId
from appliance.metrics import Registry

P = ParamSpec("P")
T = TypeVar("T")

_LOADS, _LOADS_OF_ONE = 4, 2
"""At once, of all customers and of one: whoever has thousands to load lets others in between."""
_IDLE_SECONDS = 600.0


class Resident(Protocol):
    """A collection as far as its memory is concerned; on the event loop only."""

    place: "Place"
    customer: CustomerId

    @property
    def expected_bytes(self) -> int:
        """What it will take in memory, about."""

    @property
    def memory_bytes(self) -> int:
        """What it takes, about."""

    @property
    def tended(self) -> bool:
        """Whether it is at work by itself; it is not unloaded then."""

    @property
    def removed(self) -> bool:
        """Whether nobody will use it again."""

    async def load(self) -> None:
        """Read it into memory; called again only after `unload`."""

    def unload(self) -> None:
        """Drop all of it from memory."""

    async def close(self) -> None:
        """End what it does by itself."""


R = TypeVar("R", bound=Resident)


def held(
    operation: Callable[Concatenate[R, P], Awaitable[T]],
) -> Callable[Concatenate[R, P], Coroutine[Any, Any, T]]:
    """For what uses the memory of a resident: it is loaded before, if need be, and stays until the end."""

    @wraps(operation)
    async def within(resident: R, *args: P.args, **kwargs: P.kwargs) -> T:
        place = resident.place
        place.enter()
        try:
            if not place.loaded:
                await place.load()
            return await operation(resident, *args, **kwargs)
        finally:
            place.leave()

    return within  # type: ignore[return-value]  # `wraps` names its first argument


class Place:
    """Of one resident; made by `Residents.place`."""

    __slots__ = ("_residents", "bytes", "loaded", "resident", "users")

    def __init__(self, residents: "Residents", resident: Resident) -> None:
        self._residents = residents
        self.resident = resident
        self.users = 0
        self.loaded = False
        self.bytes = 0
        """As it is counted."""

    def enter(self) -> None:
        """Use the resident, which is not dropped from memory until as many calls of `leave`."""
        self.users += 1
        if self.loaded and self.users == 1:
            self._residents.rouse(self)

    async def load(self) -> None:
        """Between the two: have it in memory. Raises what its own `load` raises."""
        await asyncio.shield(self._residents.loading(self))

    def leave(self) -> None:
        """Use it no more."""
        self.users -= 1
        if self.loaded:
            self._residents.settle(self)


@dataclass(slots=True)
class _Customer:
    """What of a customer is in memory, or on its way there."""

    bytes: int = 0
    members: int = 0
    idle: dict[Place, float] = field(default_factory=dict)
    """When each was used last; longest ago first."""
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_LOADS_OF_ONE))


class Residents:
    """The memory of all collections, `budget` bytes; on the event loop only."""

    def __init__(
        self, budget: int, registry: Registry, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._budget = budget
        self._now = monotonic
        self._turns = asyncio.Semaphore(_LOADS)
        self._customers: dict[CustomerId, _Customer] = {}
        self._members: set[Place] = set()
        self._loading: dict[Place, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._tended: set[Place] = set()
        """Idle ones that were at work by themselves: what they take may have changed since."""
        self._bytes = 0
        opened = Gauge("appliance_search_collections_open", "Collections in memory", registry=registry)
        opened.set_function(lambda: len(self._members))
        taken = Gauge(
            "appliance_search_memory_bytes",
            "What collections take in memory, graphs included",
            registry=registry,
        )
        taken.set_function(lambda: self._bytes)
        self._loads = Counter(
            "appliance_search_collections_loaded", "Collections read into memory", registry=registry
        )
        self._evicted = Counter(
            "appliance_search_collections_evicted",
            "Collections dropped from memory for others",
            registry=registry,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """End loads, and what residents do by themselves; drop all."""
        loading = list(self._loading.values())
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, *self._closing, return_exceptions=True)
        for place in list(self._members):
            await place.resident.close()
            self._drop(place)

    def place(self, resident: Resident) -> Place:
        """A place for a new resident, which is not in memory yet."""
        return Place(self, resident)

    def discard(self, resident: Resident) -> None:
        """Drop one that was removed: at once, or when what is under way with it has ended."""
        place = resident.place
        if place.loaded and resident.tended:
            closing = asyncio.get_running_loop().create_task(self._close(place))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        elif place.loaded and not place.users:
            self._drop(place)

    def rouse(self, place: Place) -> None:
        """See Place.enter."""
        self._customers[place.resident.customer].idle.pop(place, None)

    def settle(self, place: Place) -> None:
        """See Place.leave."""
        resident = place.resident
        self._weigh(place)
        if not place.users:
            if resident.removed and not resident.tended:
                self._drop(place)
            else:
                self._customers[resident.customer].idle[place] = self._now()
                if resident.tended:
                    self._tended.add(place)
        self._make_room(place)

    def loading(self, place: Place) -> asyncio.Task[None]:
        """See Place.load: one load, however many wait for it."""
        if place not in self._loading:
            self._loading[place] = asyncio.get_running_loop().create_task(self._load(place))
        return self._loading[place]

    async def _close(self, place: Place) -> None:
        await place.resident.close()
        if place.loaded and not place.users:
            self._drop(place)

    async def _load(self, place: Place) -> None:
        resident = place.resident
        customer = self._customers.setdefault(resident.customer, _Customer())
        customer.members += 1
        try:
            async with customer.turns, self._turns:
                self._count(place, resident.expected_bytes)
                self._make_room(place)
                await resident.load()
        except BaseException:
            self._forget(place)
            raise
        finally:
            del self._loading[place]
        self._loads.inc()
        self._members.add(place)
        place.loaded = True
        self.settle(place)

    def _make_room(self, asking: Place) -> None:
        if self._bytes <= self._budget:
            return
        for place in list(self._tended):
            if place.loaded:
                self._weigh(place)
            if not place.resident.tended:
                self._tended.discard(place)
        while self._bytes > self._budget and (victim := self._victim(asking)) is not None:
            self._evicted.inc()
            self._drop(victim)

    def _victim(self, asking: Place) -> Place | None:
        """What goes next, None when everything else is in use."""
        oldest = [
            (used, owner, place)
            for owner, customer in self._customers.items()
            for used, place in [_oldest(customer, asking)]
            if place is not None
        ]
        if not oldest:
            return None
        used, _, place = min(oldest, key=itemgetter(0))
        if used <= self._now() - _IDLE_SECONDS:
            return place
        asks = asking.resident.customer
        takes = self._customers[asks].bytes
        giving = [one for one in oldest if one[1] == asks or self._customers[one[1]].bytes >= takes]
        # Where nobody else takes as much and all of its own is in use, others give way to it all the same.
        return min(giving or oldest, key=itemgetter(0))[2]

    def _drop(self, place: Place) -> None:
        self._members.discard(place)
        self._tended.discard(place)
        self._customers[place.resident.customer].idle.pop(place, None)
        self._forget(place)

    def _forget(self, place: Place) -> None:
        place.resident.unload()
        place.loaded = False
        self._count(place, 0)
        customer = self._customers[place.resident.customer]
        customer.members -= 1
        if not customer.members:
            del self._customers[place.resident.customer]

    def _weigh(self, place: Place) -> None:
        self._count(place, place.resident.memory_bytes)

    def _count(self, place: Place, now: int) -> None:
        more = now - place.bytes
        place.bytes = now
        self._bytes += more
        self._customers[place.resident.customer].bytes += more


def _oldest(customer: _Customer, besides: Place) -> tuple[float, Place | None]:
    """Since when nobody has used what may be dropped first, and what that is."""
    for place, used in customer.idle.items():
        if place is not besides and not place.resident.tended:
            return used, place
    return 0.0, None
