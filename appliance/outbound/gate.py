"""The gate: fetches and posts at declared destinations, each by its own `Way`, and refuses all else."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from aiohttp import ClientError, ClientResponse, ClientTimeout, ThreadedResolver
from aiohttp.abc import AbstractResolver
from prometheus_client import Counter
from prometheus_client.core import CounterMetricFamily
from yarl import URL

from appliance.errors import HostFailed, InvalidInput, Overloaded, TooLarge
from appliance.metrics import Registry
from appliance.outbound.urls import leads_to, parsed, redirected
from appliance.outbound.way import Clock, Exchange, Traffic, Way
from appliance.residency import Residency, Use

SECONDS = 10.0  # for one exchange, redirects included; of a feed for its beginning
FEED_PAUSE_SECONDS = 60.0  # that a feed may stay silent
FEED_SECONDS = 3600.0  # for a whole feed, what is done with its pieces included
IMAGE_BYTES = 20 << 20
REDIRECTS = 3
MEDIA = ("image/", "application/octet-stream", "binary/octet-stream")
UNDECLARED = "(undeclared)"

_FIELDS: dict[Use, str] = {"images": "_url", "webhooks": "webhook", "feeds": "url"}  # as refusals name them
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})  # answers that may be others in a while
_BROKEN = (ClientError, OSError, TimeoutError, ValueError)  # what aiohttp raises when an exchange fails
_FEED_TIMEOUT = ClientTimeout(total=None, sock_read=FEED_PAUSE_SECONDS)


@dataclass(frozen=True)
class Fetched:
    """A feed whose host has answered: the headers `ETag` and `Last-Modified` as far as there are any, and its
    bytes, packed by gzip where the host packs it.
    """

    known: Mapping[str, str]
    pieces: AsyncIterator[bytes]


class Outbound:
    """`async with` opens the gate; without a residency file nothing is let through.

    Messages repeat nothing of what a host answered, and do not tell a closed port from a silent one. Also a
    Prometheus collector of its traffic. `changed` is set whenever a connection was begun or refused.
    """

    def __init__(
        self,
        residency: Residency | None,
        registry: Registry,
        *,
        resolver: type[AbstractResolver] = ThreadedResolver,
        clock: Clock = time.monotonic,
    ) -> None:
        self._destinations = () if residency is None else residency.destinations
        self._resolver = resolver
        self._clock = clock
        self._ways: list[Way] = []
        # By name: two destinations of one name are one to who counts them.
        names = (*(one.name for one in self._destinations), UNDECLARED)
        self._traffic = {name: Traffic(name) for name in names}
        self.changed = asyncio.Event()
        self._exchanges = Counter(
            "appliance_outbound_exchanges",
            "Exchanges with declared destinations, by their outcome",
            ("destination", "outcome"),
            registry=registry,
        )
        registry.register(self)

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            resolver = self._resolver()
            stack.push_async_callback(resolver.close)
            for destination in self._destinations:
                way = Way(
                    destination,
                    resolver,
                    self._traffic[destination.name],
                    seconds=SECONDS,
                    clock=self._clock,
                    changed=self.changed.set,
                )
                await stack.enter_async_context(way.session)
                self._ways.append(way)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ways.clear()
        await self._stack.aclose()

    def traffic(self) -> list[Traffic]:
        """What there was since the start, by destination in the file's order; last, as UNDECLARED, what was
        refused because it led to none.
        """
        return [replace(one) for one in self._traffic.values()]

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Prometheus families of the traffic."""
        connections = CounterMetricFamily(
            "appliance_outbound_connections",
            "Connections that were begun, or refused, by destination",
            labels=["destination", "verdict"],
        )
        size = CounterMetricFamily(
            "appliance_outbound_bytes",
            "Bytes of what was posted to destinations, and of what came from them",
            labels=["destination", "direction"],
        )
        for one in self.traffic():
            connections.add_metric([one.destination, "allowed"], one.allowed)
            connections.add_metric([one.destination, "refused"], one.refused)
            size.add_metric([one.destination, "sent"], one.sent_bytes)
            size.add_metric([one.destination, "received"], one.received_bytes)
        yield connections
        yield size

    def check(self, url: str, use: Use) -> None:
        """Raises InvalidInput, with what to do, unless some destination is declared for this use of `url`."""
        self._way(url, use)

    @contextlib.asynccontextmanager
    async def image(self, url: str) -> AsyncIterator[bytes]:
        """The encoded image behind `url`, at most IMAGE_BYTES; until the block ends, it is a connection.

        Redirects are followed within the destination alone. Raises InvalidInput for what is not declared or
        cannot be had within SECONDS, TooLarge, and Overloaded when too many images are being fetched or the
        destination's budget for this hour is used up.
        """
        target, way = self._way(url, "images")
        way.check_budget("_url")
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
        """The status that a POST of JSON is answered with, None when there was no answer within SECONDS, or
        the destination's budget for this hour is used up.

        What the answer says is not read, no redirect is followed. Raises InvalidInput for what is undeclared.
        """
        target, way = self._way(url, "webhooks")
        try:
            way.check_budget("webhook")
            async with asyncio.timeout(SECONDS), way.free:
                with way.exchange(len(body)):
                    async with way.session.post(
                        target,
                        data=body,
                        headers={**headers, "Content-Type": "application/json"},
                        allow_redirects=False,
                    ) as answer:
                        self._count(way, f"{answer.status // 100}xx")
                        return answer.status
        except Overloaded:
            self._count(way, "refused")
            return None
        except _BROKEN:
            self._count(way, "failed")
            return None

    @contextlib.asynccontextmanager
    async def feed(
        self, url: str, headers: Mapping[str, str], most_bytes: int
    ) -> AsyncIterator[Fetched | None]:
        """The feed behind `url`, to be read within the block; None when it is as `headers` have it.

        Redirects are followed as for images. Raises InvalidInput for what is not declared or not there,
        HostFailed for a host that fails, Overloaded as for images; the pieces HostFailed when they break off
        or stall or the budget is used up, and TooLarge above `most_bytes`.
        """
        target, way = self._way(url, "feeds")
        way.check_budget("url")
        try:
            async with asyncio.timeout(SECONDS):
                await way.feeds.acquire()
        except TimeoutError:
            raise Overloaded("url: too many feeds are being fetched from this host", retry_after=60) from None
        try:
            async with contextlib.AsyncExitStack() as stack:
                exchange = stack.enter_context(way.exchange())
                answered = self._answered(way, target, "url", headers, _FEED_TIMEOUT)
                try:
                    async with asyncio.timeout(SECONDS):
                        answer = await stack.enter_async_context(answered)
                        fetched = _feed(answer, most_bytes, exchange)
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

    async def _fetched(self, way: Way, target: URL) -> bytes:
        try:
            with way.exchange() as exchange:
                async with asyncio.timeout(SECONDS), self._answered(way, target, "_url") as answer:
                    content = await _content(answer, exchange)
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
        way: Way,
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

    def _way(self, url: str, use: Use) -> tuple[URL, Way]:
        field = _FIELDS[use]
        try:
            target = parsed(url)
        except InvalidInput as refusal:
            self._refuse()
            raise InvalidInput(f"{field}: {refusal}") from None
        for way in self._ways:
            if use in way.destination.uses and leads_to(way.destination, target):
                return target, way
        self._refuse()
        raise InvalidInput(
            f"{field}: {target.scheme}://{target.host}:{target.port} is no destination declared for {use};"
            " an operator declares it in the residency file"
        )

    def _refuse(self) -> None:
        self._traffic[UNDECLARED].refused += 1
        self.changed.set()

    def _count(self, way: Way, outcome: str) -> None:
        self._exchanges.labels(way.destination.name, outcome).inc()


def _redirected(way: Way, target: URL, answer: ClientResponse, field: str) -> URL:
    try:
        following = redirected(target, answer.headers.get("Location", ""))
    except InvalidInput:
        way.refuse()
        raise InvalidInput(f"{field}: the host redirects nowhere") from None
    if not leads_to(way.destination, following):
        way.refuse()
        raise InvalidInput(f"{field}: the host redirects to another one")
    return following


def _require_found(answer: ClientResponse, field: str) -> None:
    if answer.status != 200:
        kind = HostFailed if answer.status in _LATER else InvalidInput
        raise kind(f"{field}: the host answered {answer.status}")


async def _content(answer: ClientResponse, exchange: Exchange) -> bytes:
    _require_found(answer, "_url")
    if not answer.content_type.startswith(MEDIA) or "Content-Encoding" in answer.headers:
        raise InvalidInput("_url: the host answered with something else than an image")
    if (answer.content_length or 0) > IMAGE_BYTES:
        raise TooLarge(f"_url: the image is larger than {IMAGE_BYTES} bytes")
    content = bytearray()
    async for piece in answer.content.iter_any():
        exchange.tick(len(piece), "_url")
        content += piece
        if len(content) > IMAGE_BYTES:
            raise TooLarge(f"_url: the image is larger than {IMAGE_BYTES} bytes")
    return bytes(content)


def _feed(answer: ClientResponse, most_bytes: int, exchange: Exchange) -> Fetched | None:
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
    return Fetched(known, _pieces(answer, most_bytes, exchange))


async def _pieces(answer: ClientResponse, most_bytes: int, exchange: Exchange) -> AsyncIterator[bytes]:
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
        exchange.tick(len(piece), "url")
        if size > most_bytes:
            raise TooLarge(f"url: the feed is larger than {most_bytes} bytes")
        if clock() > until:
            raise HostFailed(f"url: the feed took longer than {FEED_SECONDS:g} s")
        yield piece
