"""The only way out: a client that connects to the destinations of the residency file, and to nothing else.

A destination has a connector of its own, whose sockets are made here, one for every address that a name
resolves to: an address outside of the destination's networks gets no socket, whatever name, literal, redirect
or answer of a name server led to it. Where the networks are single addresses no name is resolved at all.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from types import TracebackType
from typing import Self

from aiohttp import (
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
    ThreadedResolver,
)
from aiohttp.abc import AbstractResolver, ResolveResult
from prometheus_client import Counter
from yarl import URL

from appliance.errors import HostFailed, InvalidInput, Overloaded, TooLarge
from appliance.metrics import Registry
from appliance.residency import Destination, Residency, Use

SECONDS = 10.0  # for one exchange, redirects included; of a feed for its beginning
FEED_PAUSE_SECONDS = 60.0  # that a feed may stay silent
FEED_SECONDS = 3600.0  # for a whole feed, what is done with its pieces included
IMAGE_BYTES = 20 << 20
URL_CHARACTERS = 2048
REDIRECTS = 3
CONNECTIONS = 8  # to one destination at a time: one that is slow keeps nobody from the others
FEEDS = 2  # beside these: whoever reads a feed for an hour takes nothing from images and webhooks
MEDIA = ("image/", "application/octet-stream", "binary/octet-stream")

# What an address can mean beside "a machine over there". A network that merely contains one of these does not
# declare it: a destination must name the special network itself or a part of it. RFC 6890 and its successors
# in IANA's registries of special-purpose addresses; RFC 6052 (NAT64), RFC 3056 (6to4), RFC 4380 (Teredo).
SPECIAL = tuple(
    ip_network(network)
    for network in (
        *("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("::/128", "::1/128", "::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64"),
        *("2001::/32", "2002::/16", "fe80::/10", "fec0::/10", "ff00::/8"),
        # Where clouds tell a machine its own credentials.
        *("169.254.169.254/32", "169.254.170.2/32", "100.100.100.200/32", "fd00:ec2::254/128"),
    )
)

Network = IPv4Network | IPv6Network

_FIELDS: dict[Use, str] = {"images": "_url", "webhooks": "webhook", "feeds": "url"}  # as refusals name them
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})  # answers that may be others in a while

log = logging.getLogger(__name__)


def admits(destination: Destination, address: str) -> bool:
    """Whether a connection to this address (a literal as the system writes it) is declared."""
    try:
        literal = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    meanings = [network for network in SPECIAL if literal in network]
    narrowest = max(meanings, key=lambda network: network.prefixlen, default=None)
    return any(
        literal in declared and (narrowest is None or _within(declared, narrowest))
        for declared in destination.cidrs
    )


def _within(inner: Network, outer: Network) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]


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


class _Way:
    """The connections to one destination."""

    def __init__(self, destination: Destination, resolver: AbstractResolver) -> None:
        self.destination = destination
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
            timeout=ClientTimeout(total=SECONDS),
            headers={"User-Agent": "appliance", "Accept-Encoding": "identity"},
            auto_decompress=False,
            trust_env=False,
        )

    def _socket(self, found: tuple[int, int, int, str, tuple[str | int, ...]]) -> socket.socket:
        family, kind, protocol, _, (address, port, *_rest) = found
        if port != self.destination.port or not admits(self.destination, str(address)):
            log.warning("destination %s: a connection to %s is refused", self.destination.name, address)
            raise PermissionError(f"{address} is not declared")
        return socket.socket(family, kind, protocol)


@dataclass(frozen=True)
class Fetched:
    """A feed whose host has answered: the headers `ETag` and `Last-Modified` as far as there are any, and its
    bytes, packed by gzip where the host packs it.
    """

    known: Mapping[str, str]
    pieces: AsyncIterator[bytes]


class Outbound:
    """`async with` opens the gate; without a residency file nothing is let through.

    Messages repeat nothing of what a host answered, and do not tell a closed port from a silent one.
    """

    def __init__(
        self,
        residency: Residency | None,
        registry: Registry,
        *,
        resolver: type[AbstractResolver] = ThreadedResolver,
    ) -> None:
        self._destinations = () if residency is None else residency.destinations
        self._resolver = resolver
        self._ways: list[_Way] = []
        self._exchanges = Counter(
            "appliance_outbound_exchanges",
            "Exchanges with declared destinations, by their outcome",
            ("destination", "outcome"),
            registry=registry,
        )

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            resolver = self._resolver()
            stack.push_async_callback(resolver.close)
            for destination in self._destinations:
                way = _Way(destination, resolver)
                await stack.enter_async_context(way.session)
                self._ways.append(way)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ways.clear()
        await self._stack.aclose()

    def check(self, url: str, use: Use) -> None:
        """Raises InvalidInput, with what to do, unless some destination is declared for this use of `url`."""
        self._way(url, use)

    @contextlib.asynccontextmanager
    async def image(self, url: str) -> AsyncIterator[bytes]:
        """The encoded image behind `url`, at most IMAGE_BYTES; until the block ends, it is a connection.

        Redirects are followed within the destination alone. Raises InvalidInput for what is not declared or
        cannot be had within SECONDS, TooLarge, and Overloaded when too many images are being fetched.
        """
        target, way = self._way(url, "images")
        try:
            async with asyncio.timeout(SECONDS):
                await way.free.acquire()
        except TimeoutError:
            raise Overloaded("_url: too many images are being fetched from this host") from None
        try:
            yield await self._fetched(way, target)
        finally:
            way.free.release()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int | None:
        """The status that a POST of JSON is answered with, None when there was no answer within SECONDS.

        What the answer says is not read, no redirect is followed. Raises InvalidInput for what is undeclared.
        """
        target, way = self._way(url, "webhooks")
        try:
            async with (
                asyncio.timeout(SECONDS),
                way.free,
                way.session.post(
                    target,
                    data=body,
                    headers={**headers, "Content-Type": "application/json"},
                    allow_redirects=False,
                ) as answer,
            ):
                self._count(way, f"{answer.status // 100}xx")
                return answer.status
        except (ClientError, OSError, TimeoutError, ValueError):
            self._count(way, "failed")
            return None

    @contextlib.asynccontextmanager
    async def feed(
        self, url: str, headers: Mapping[str, str], most_bytes: int
    ) -> AsyncIterator[Fetched | None]:
        """The feed behind `url`, to be read within the block; None when it is as `headers` have it.

        Redirects are followed as for images. Raises InvalidInput for what is not declared or not there,
        HostFailed for a host that fails, Overloaded; the pieces HostFailed when they break off or stall, and
        TooLarge above `most_bytes`.
        """
        target, way = self._way(url, "feeds")
        try:
            async with asyncio.timeout(SECONDS):
                await way.feeds.acquire()
        except TimeoutError:
            raise Overloaded("url: too many feeds are being fetched from this host", retry_after=60) from None
        try:
            async with contextlib.AsyncExitStack() as stack:
                answered = self._answered(way, target, "url", headers, _FEED_TIMEOUT)
                try:
                    async with asyncio.timeout(SECONDS):
                        answer = await stack.enter_async_context(answered)
                        fetched = _feed(answer, most_bytes)
                except InvalidInput:
                    self._count(way, "refused")
                    raise
                except _BROKEN:
                    self._count(way, "failed")
                    raise HostFailed("url: the host gave no feed in time") from None
                self._count(way, f"{answer.status // 100}xx")
                yield fetched
        finally:
            way.feeds.release()

    async def _fetched(self, way: _Way, target: URL) -> bytes:
        try:
            async with asyncio.timeout(SECONDS), self._answered(way, target, "_url") as answer:
                content = await _content(answer)
                self._count(way, "2xx")
                return content
        except InvalidInput:
            self._count(way, "refused")
            raise
        except _BROKEN:
            self._count(way, "failed")
            raise HostFailed("_url: the host gave no image in time") from None

    @contextlib.asynccontextmanager
    async def _answered(
        self,
        way: _Way,
        target: URL,
        field: str,
        headers: Mapping[str, str] | None = None,
        timeout: ClientTimeout | None = None,  # noqa: ASYNC109 - aiohttp's own, between pieces
    ) -> AsyncIterator[ClientResponse]:
        """The answer that redirects within the destination lead to. Raises InvalidInput."""
        for _ in range(REDIRECTS + 1):
            async with way.session.get(
                target, headers=headers, timeout=timeout or way.session.timeout, allow_redirects=False
            ) as answer:
                if answer.status not in {301, 302, 303, 307, 308}:
                    yield answer
                    return
                target = _redirected(way, target, answer, field)
        raise InvalidInput(f"{field}: more than {REDIRECTS} redirects")

    def _way(self, url: str, use: Use) -> tuple[URL, _Way]:
        field = _FIELDS[use]
        try:
            target = _parsed(url)
        except InvalidInput as refusal:
            raise InvalidInput(f"{field}: {refusal}") from None
        for way in self._ways:
            if use in way.destination.uses and _leads_to(way.destination, target):
                return target, way
        raise InvalidInput(
            f"{field}: {target.scheme}://{target.host}:{target.port} is no destination declared for {use};"
            " an operator declares it in the residency file"
        )

    def _count(self, way: _Way, outcome: str) -> None:
        self._exchanges.labels(way.destination.name, outcome).inc()


_EXPECTED = "a URL such as https://HOST/PATH is expected"
_BROKEN = (ClientError, OSError, TimeoutError, ValueError)  # what aiohttp raises when an exchange fails
_FEED_TIMEOUT = ClientTimeout(total=None, sock_read=FEED_PAUSE_SECONDS)


def _parsed(url: str) -> URL:
    """The address as the client reads it. Raises InvalidInput."""
    if len(url) > URL_CHARACTERS or not url.isprintable() or "\\" in url or " " in url:
        raise InvalidInput(f"a URL of at most {URL_CHARACTERS} characters, without spaces, is expected")
    try:
        parsed = URL(url)
        # Its parts are parsed when they are asked for, all that the client will ask for too.
        complete = parsed.host and parsed.raw_host and parsed.port and parsed.raw_path_qs and str(parsed)
    except Exception:  # noqa: BLE001 - IDNA and bracketed hosts raise what they like, IndexError among it
        raise InvalidInput(_EXPECTED) from None
    if parsed.scheme not in {"http", "https"} or not complete:
        raise InvalidInput(_EXPECTED)
    if parsed.user is not None or parsed.password is not None:
        raise InvalidInput("a URL without user name and password is expected")
    return parsed.with_fragment(None)


def _leads_to(destination: Destination, url: URL) -> bool:
    scheme = "https" if destination.tls else "http"
    return (url.scheme, _host(url.host or ""), url.port) == (
        scheme,
        _host(destination.host),
        destination.port,
    )


def _host(name: str) -> str:
    """One spelling of a host: an address in its canonical form, a name in small letters."""
    try:
        return str(ip_address(name))
    except ValueError:
        return name.lower()


def _redirected(way: _Way, target: URL, answer: ClientResponse, field: str) -> URL:
    try:
        following = _parsed(str(target.join(URL(answer.headers.get("Location", "")))))
    except ValueError:
        raise InvalidInput(f"{field}: the host redirects nowhere") from None
    if not _leads_to(way.destination, following):
        raise InvalidInput(f"{field}: the host redirects to another one")
    return following


def _require_found(answer: ClientResponse, field: str) -> None:
    if answer.status != 200:
        kind = HostFailed if answer.status in _LATER else InvalidInput
        raise kind(f"{field}: the host answered {answer.status}")


async def _content(answer: ClientResponse) -> bytes:
    _require_found(answer, "_url")
    if not answer.content_type.startswith(MEDIA) or "Content-Encoding" in answer.headers:
        raise InvalidInput("_url: the host answered with something else than an image")
    if (answer.content_length or 0) > IMAGE_BYTES:
        raise TooLarge(f"_url: the image is larger than {IMAGE_BYTES} bytes")
    content = bytearray()
    async for piece in answer.content.iter_any():
        content += piece
        if len(content) > IMAGE_BYTES:
            raise TooLarge(f"_url: the image is larger than {IMAGE_BYTES} bytes")
    return bytes(content)


def _feed(answer: ClientResponse, most_bytes: int) -> Fetched | None:
    if answer.status == 304:
        return None
    _require_found(answer, "url")
    if answer.headers.get("Content-Encoding", "gzip").lower() not in {"gzip", "x-gzip", "identity"}:
        raise InvalidInput("url: the host packs the feed in another way than gzip")
    if (answer.content_length or 0) > most_bytes:
        raise TooLarge(f"url: the feed is larger than {most_bytes} bytes")
    known = {
        name: answer.headers[name][:1024] for name in ("ETag", "Last-Modified") if name in answer.headers
    }
    return Fetched(known, _pieces(answer, most_bytes))


async def _pieces(answer: ClientResponse, most_bytes: int) -> AsyncIterator[bytes]:
    clock, size = asyncio.get_running_loop().time, 0
    until = clock() + FEED_SECONDS
    pieces = answer.content.iter_any()
    while True:
        try:
            piece = await anext(pieces, None)
        except _BROKEN:
            raise HostFailed("url: the feed breaks off before its end") from None
        if piece is None:
            return
        size += len(piece)
        if size > most_bytes:
            raise TooLarge(f"url: the feed is larger than {most_bytes} bytes")
        if clock() > until:
            raise HostFailed(f"url: the feed took longer than {FEED_SECONDS:g} s")
        yield piece
