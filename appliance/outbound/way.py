"""The connections to one destination: to which addresses, and how much goes over them in an hour.

Its sockets are made here, one for every address that a name resolves to: an address outside of the
destination's networks gets no socket, whatever name, literal, redirect or answer of a name server led to it.
Where the networks are single addresses no name is resolved at all.
"""

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult

from appliance.errors import HostFailed, Overloaded
from appliance.residency import Destination, reachable

CONNECTIONS = 8  # to one destination at a time: one that is slow keeps nobody from the others
FEEDS = 2  # beside these: whoever reads a feed for an hour takes nothing from images and webhooks
HOUR = 3600.0
_TOLD_EVERY = 60.0  # seconds between lines of the log about one destination

log = logging.getLogger(__name__)

Clock = Callable[[], float]


def admits(destination: Destination, address: str) -> bool:
    """Whether a connection to this address (a literal as the system writes it) is declared."""
    try:
        literal = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return any(literal in network for network in reachable(destination.cidrs))


@dataclass(slots=True)
class Traffic:
    """What there was with a destination since the start: `allowed` connections were begun, `refused` ones
    were not; bytes of what was posted and of what came, and the seconds that exchanges took together.
    """

    destination: str
    allowed: int = 0
    refused: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    seconds: float = 0.0


class Way:
    """One destination's session and budgets; counts into `traffic`, calls `changed` for each connection."""

    def __init__(
        self,
        destination: Destination,
        resolver: AbstractResolver,
        traffic: Traffic,
        *,
        seconds: float,
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        self.destination = destination
        self.traffic = traffic
        self.free = asyncio.Semaphore(CONNECTIONS)
        self.feeds = asyncio.Semaphore(FEEDS)
        self.session = ClientSession(
            connector=TCPConnector(
                resolver=_Declared(destination, resolver),
                socket_factory=self._socket,
                limit=CONNECTIONS + FEEDS,
                use_dns_cache=False,
            ),
            cookie_jar=DummyCookieJar(),
            timeout=ClientTimeout(total=seconds),
            headers={"User-Agent": "appliance", "Accept-Encoding": "identity"},
            auto_decompress=False,
            trust_env=False,
        )
        self._clock = clock
        self._changed = changed
        self._bytes = _Budget(destination.hourly_bytes, clock)
        self._seconds = _Budget(destination.hourly_seconds, clock)
        self._quiet_until = -math.inf

    def refuse(self) -> None:
        """Count a connection that was wanted and is not made."""
        self.traffic.refused += 1
        self._changed()

    def check_budget(self, field: str) -> None:
        """Raises Overloaded, and counts, when the bytes or seconds of this hour are used up."""
        if (wait := self._wait()) > 0:
            self.refuse()
            raise Overloaded(f"{field}: {self._used_up}", retry_after=math.ceil(wait))

    @contextlib.contextmanager
    def exchange(self, sent_bytes: int = 0) -> Iterator["Exchange"]:
        """Within the block time counts, and with it what the exchange says it has received."""
        self.traffic.sent_bytes += sent_bytes
        self._bytes.use(sent_bytes)
        exchange = Exchange(self, self._clock)
        try:
            yield exchange
        finally:
            exchange.tick()

    def receive(self, size: int, seconds: float) -> None:
        """Count what came, and how long it took."""
        self.traffic.received_bytes += size
        self.traffic.seconds += seconds
        self._bytes.use(size)
        self._seconds.use(seconds)

    def require_budget(self, field: str) -> None:
        """In an exchange: raises HostFailed when the bytes or seconds of this hour are used up."""
        if self._wait() > 0:
            raise HostFailed(f"{field}: {self._used_up}")

    @property
    def _used_up(self) -> str:
        return f"what the residency file grants {self.destination.name} in an hour is used up"

    def _wait(self) -> float:
        return max(self._bytes.wait(), self._seconds.wait())

    def _socket(self, found: tuple[int, int, int, str, tuple[str | int, ...]]) -> socket.socket:
        family, kind, protocol, _, (address, port, *_rest) = found
        if port != self.destination.port or not admits(self.destination, str(address)):
            self.refuse()
            self._tell(f"a connection to {address} is refused")
            raise PermissionError(f"{address} is not declared")
        self.traffic.allowed += 1
        self._changed()
        return socket.socket(family, kind, protocol)

    def _tell(self, message: str) -> None:
        if (now := self._clock()) >= self._quiet_until:
            self._quiet_until = now + _TOLD_EVERY
            log.warning("destination %s: %s", self.destination.name, message)


class Exchange:
    """One question and its answer, as they take bytes and time."""

    def __init__(self, way: Way, clock: Clock) -> None:
        self._way = way
        self._clock = clock
        self._at = clock()

    def tick(self, received: int = 0, field: str | None = None) -> None:
        """Count these bytes and the time since the last tick; with `field` raises HostFailed over budget."""
        now = self._clock()
        self._way.receive(received, now - self._at)
        self._at = now
        if field is not None:
            self._way.require_budget(field)


class _Budget:
    """What may be used of something within an hour, which begins with the first use; None for any amount."""

    def __init__(self, most: float | None, clock: Clock) -> None:
        self._most = most
        self._clock = clock
        self._used = 0.0
        self._ends = -math.inf

    def use(self, amount: float) -> None:
        now = self._clock()
        if now >= self._ends:
            self._used, self._ends = 0.0, now + HOUR
        self._used += amount

    def wait(self) -> float:
        """Seconds until something is left again, 0 where something is."""
        if self._most is None or self._used < self._most:
            return 0.0
        return max(0.0, self._ends - self._clock())


class _Declared(AbstractResolver):
    """Names become the addresses that are declared, without asking anybody, where those are single ones."""

    def __init__(self, destination: Destination, resolver: AbstractResolver) -> None:
        self._single = [one.network_address for one in destination.cidrs if one.num_addresses == 1]
        self._complete = len(self._single) == len(destination.cidrs)
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        if not self._complete:
            return await self._resolver.resolve(host, port, family)
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._single
        ]

    async def close(self) -> None:
        """The shared resolver stays open."""
