"""The way out, towards hosts that are declared: what is fetched, what is refused, what is not repeated."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from appliance.errors import HostFailed, InvalidInput, Overloaded, TooLarge
from appliance.metrics import Registry
from appliance.outbound import UNDECLARED, Outbound, Traffic, gate
from appliance.outbound.way import CONNECTIONS, FEEDS, HOUR
from appliance.residency import Destination, Residency, Use

IMAGE = b"\xff\xd8 an image, as far as the gate can tell"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def declared(
    port: int, *cidrs: str, host: str = "photos.example", uses: tuple[Use, ...], **budget: float
) -> Residency:
    destination = Destination.model_validate(
        {
            "name": "shop",
            "host": host,
            "local": True,
            "cidrs": cidrs or ["127.0.0.1/32"],
            "port": port,
            "country": "CZ",
            "purpose": "photos",
            "uses": uses,
            "tls": False,
            **budget,
        }
    )
    return Residency("Prague", "CZ", eea=False, destinations=(destination,), clients=())


@asynccontextmanager
async def host(handler: Handler, *uses: Use) -> AsyncIterator[tuple[Outbound, str, int]]:
    """A host on loopback, declared; the gate, the host's address and its port."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with Outbound(declared(port, uses=uses or ("images",)), Registry()) as way:
            yield way, f"http://photos.example:{port}", port
    finally:
        await runner.cleanup()


def jpeg(body: bytes = IMAGE, header: tuple[str, str] = ("X-Any", "thing")) -> web.Response:
    return web.Response(body=body, headers=dict([("Content-Type", "image/jpeg"), header]))


async def fetch(way: Outbound, url: str) -> bytes:
    async with way.image(url) as image:
        return image


async def test_an_image_of_a_declared_host_is_fetched_without_anything_of_ours() -> None:
    seen: list[web.Request] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request)
        return jpeg(header=("Set-Cookie", "a=b"))

    async with host(handler) as (way, address, _):
        assert await fetch(way, f"{address}/a.jpg?x=1#part") == IMAGE
        assert await fetch(way, f"{address}/b.jpg") == IMAGE
    assert [request.path_qs for request in seen] == ["/a.jpg?x=1", "/b.jpg"]
    for request in seen:
        assert set(request.headers) == {"Host", "User-Agent", "Accept", "Accept-Encoding"}
        assert request.headers["User-Agent"] == "appliance"
        assert request.headers["Accept-Encoding"] == "identity"


async def test_redirects_stay_within_the_destination() -> None:
    async def handler(request: web.Request) -> web.Response:
        port = request.url.port
        targets = {
            "/start": "/middle",
            "/middle": f"http://photos.example:{port}/end",
            "/other-host": f"http://127.0.0.1:{port}/end",
            "/other-port": f"http://photos.example:{port + 1 if port else 0}/end",
            "/other-scheme": f"https://photos.example:{port}/end",
            "/file": "file:///etc/passwd",
            "/named": f"http://name:word@photos.example:{port}/end",
            "/loop": "/loop",
            "/none": "",
        }
        if (target := targets.get(request.path)) is None:
            return jpeg()
        return web.Response(status=302, headers={"Location": target} if target else {})

    async with host(handler) as (way, address, _):
        assert await fetch(way, f"{address}/start") == IMAGE
        for path in ("other-host", "other-port", "other-scheme", "file", "named", "loop", "none"):
            with pytest.raises(InvalidInput):
                await fetch(way, f"{address}/{path}")


async def test_bytes_type_and_status_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "IMAGE_BYTES", 1000)

    async def handler(request: web.Request) -> web.StreamResponse:
        match request.path:
            case "/whole":
                return jpeg(b"x" * 1000)
            case "/declared":
                return jpeg(b"x" * 1001)
            case "/streamed":
                response = web.StreamResponse(headers={"Content-Type": "image/jpeg"})
                await response.prepare(request)
                for _ in range(100):
                    await response.write(b"x" * 100)
                return response
            case "/html":
                return web.Response(text="<secret>", content_type="text/html")
            case "/packed":
                return jpeg(header=("Content-Encoding", "gzip"))
            case _:
                return web.Response(status=404, text="<secret>")

    async with host(handler) as (way, address, _):
        assert len(await fetch(way, f"{address}/whole")) == 1000
        for path in ("declared", "streamed"):
            with pytest.raises(TooLarge, match="1000"):
                await fetch(way, f"{address}/{path}")
        for path in ("html", "packed", "missing"):
            with pytest.raises(InvalidInput) as refusal:
                await fetch(way, f"{address}/{path}")
            assert "secret" not in str(refusal.value)


async def test_a_silent_host_and_a_closed_port_are_refused_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "SECONDS", 0.05)
    asked, silent = asyncio.Event(), asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        asked.set()
        await silent.wait()
        return jpeg()

    async with host(handler) as (way, address, port):
        with pytest.raises(InvalidInput) as hung:
            await fetch(way, f"{address}/a.jpg")
        silent.set()
    assert asked.is_set()
    async with Outbound(declared(port, uses=("images",)), Registry()) as way:
        with pytest.raises(InvalidInput) as closed:
            await fetch(way, f"{address}/a.jpg")
    assert str(hung.value) == str(closed.value)


async def test_a_slow_host_keeps_no_more_than_its_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "SECONDS", 0.2)
    running = 0
    full, released = asyncio.Event(), asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        nonlocal running
        running += 1
        if running == CONNECTIONS:
            full.set()
        await released.wait()
        return jpeg()

    async with host(handler) as (way, address, _):
        async with asyncio.TaskGroup() as group:
            waiting = [
                group.create_task(_outcome(fetch(way, f"{address}/{number}")))
                for number in range(CONNECTIONS + 3)
            ]
            await full.wait()
        outcomes = [type(task.result()) for task in waiting]
        released.set()
    assert running <= 2 * CONNECTIONS
    assert outcomes[:CONNECTIONS] == [HostFailed] * CONNECTIONS
    assert set(outcomes[CONNECTIONS:]) <= {Overloaded, HostFailed}


async def _outcome(work: Awaitable[bytes]) -> object:
    try:
        return await work
    except (InvalidInput, Overloaded) as refusal:
        return refusal


async def test_a_destination_serves_what_it_is_declared_for_alone() -> None:
    async def handler(_: web.Request) -> web.Response:
        return jpeg()

    async with host(handler, "webhooks") as (way, address, _):
        with pytest.raises(InvalidInput, match="images; an operator declares it"):
            await fetch(way, f"{address}/a.jpg")
        assert await way.post(f"{address}/hook", b"{}", {}) == 200
        way.check(f"{address}/hook", "webhooks")
    async with host(handler, "images") as (way, address, _):
        with pytest.raises(InvalidInput, match="webhooks"):
            await way.post(f"{address}/hook", b"{}", {})


async def test_a_post_says_how_it_was_answered_and_follows_nothing() -> None:
    bodies: list[bytes] = []

    async def handler(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        assert request.headers["X-Own"] == "yes"
        assert request.content_type == "application/json"
        if request.path == "/moved":
            return web.Response(status=302, headers={"Location": "/hook"})
        return web.Response(status=503 if request.path == "/down" else 204)

    async with host(handler, "webhooks") as (way, address, port):
        paths = ("hook", "down", "moved")
        assert [await way.post(f"{address}/{path}", b"{}", {"X-Own": "yes"}) for path in paths] == [
            204,
            503,
            302,
        ]
    assert bodies == [b"{}"] * 3
    async with Outbound(declared(port, uses=("webhooks",)), Registry()) as way:
        assert await way.post(f"{address}/hook", b"{}", {}) is None


async def read_feed(
    way: Outbound, url: str, headers: Mapping[str, str] | None = None, most: int = 1 << 20
) -> tuple[bytes, object]:
    async with way.feed(url, headers or {}, most) as feed:
        if feed is None:
            return b"", None
        return b"".join([piece async for piece in feed.pieces]), feed.known


async def test_a_feed_comes_in_pieces_with_what_its_host_knows_it_by() -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer x"
        if request.path == "/moved":
            return web.Response(status=302, headers={"Location": "/feed"})
        if request.headers.get("If-None-Match") == '"7"':
            return web.Response(status=304)
        return web.Response(body=b"[" + b" " * 500_000 + b"]", headers={"ETag": '"7"', "X-Other": "y"})

    async with host(handler, "feeds") as (way, address, _):
        for path in ("feed", "moved"):
            content, known = await read_feed(way, f"{address}/{path}", {"Authorization": "Bearer x"})
            assert (len(content), known) == (500_002, {"ETag": '"7"'})
        same = {"Authorization": "Bearer x", "If-None-Match": '"7"'}
        assert await read_feed(way, f"{address}/feed", same) == (b"", None)


async def test_a_feed_that_breaks_off_or_is_too_large_or_refused_says_so() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        match request.path:
            case "/declared":
                return web.Response(body=b"x" * 1001)
            case "/streamed" | "/short":
                response = web.StreamResponse()
                if request.path == "/short":
                    response.content_length = 1000
                await response.prepare(request)
                await response.write(b"x" * (1001 if request.path == "/streamed" else 500))
                if request.path == "/short" and request.transport is not None:
                    request.transport.abort()
                return response
            case "/packed":
                return web.Response(body=b"x", headers={"Content-Encoding": "br"})
            case path:
                return web.Response(status=int(path[1:]), text="<secret>")

    async with host(handler, "feeds") as (way, address, _):
        for path in ("declared", "streamed"):
            with pytest.raises(TooLarge, match="1000"):
                await read_feed(way, f"{address}/{path}", most=1000)
        with pytest.raises(HostFailed, match="breaks off"):
            await read_feed(way, f"{address}/short")
        for path, kind in (
            ("404", InvalidInput),
            ("503", HostFailed),
            ("429", HostFailed),
            ("packed", InvalidInput),
        ):
            with pytest.raises(InvalidInput) as refusal:
                await read_feed(way, f"{address}/{path}")
            assert type(refusal.value) is kind
            assert "secret" not in str(refusal.value)


async def test_feeds_that_take_their_time_leave_the_connections_of_images() -> None:
    begun, released = asyncio.Semaphore(0), asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/a.jpg":
            return jpeg()
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"[")
        begun.release()
        await released.wait()
        return response

    async with host(handler, "feeds", "images") as (way, address, _), asyncio.TaskGroup() as group:
        for _n in range(FEEDS):
            group.create_task(read_feed(way, f"{address}/feed"))
            await begun.acquire()
        assert await fetch(way, f"{address}/a.jpg") == IMAGE
        released.set()


class Seconds:
    """Seconds that rise when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def granted(
    handler: Handler, clock: Seconds, **budget: float
) -> AsyncIterator[tuple[Outbound, str, Registry]]:
    """A host on loopback that is granted so much in an hour; the gate, the host's address, its numbers."""
    registry, uses = Registry(), ("images", "webhooks", "feeds")
    async with host(handler) as (_, address, port):
        residency = declared(port, uses=uses, **budget)  # type: ignore[arg-type]
        async with Outbound(residency, registry, clock=clock) as way:
            yield way, address, registry


async def test_what_went_and_what_was_refused_is_counted_by_destination() -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.path == "/elsewhere":
            return web.Response(status=302, headers={"Location": "http://169.254.169.254/"})
        return jpeg()

    clock = Seconds()
    async with granted(handler, clock) as (way, address, registry):
        assert not way.changed.is_set()
        for _ in range(2):
            assert await fetch(way, f"{address}/a.jpg") == IMAGE
        assert await way.post(f"{address}/hook", b"x" * 100, {}) == 200
        assert way.changed.is_set()
        for refused in (f"{address}/elsewhere", "http://169.254.169.254/", "nonsense"):
            with pytest.raises(InvalidInput):
                await fetch(way, refused)
        shop, undeclared = way.traffic()
        assert shop.allowed >= 1
        shop.allowed = 1
        assert shop == Traffic("shop", 1, 1, sent_bytes=100, received_bytes=2 * len(IMAGE), seconds=0.0)
        assert undeclared == Traffic(UNDECLARED, refused=2)

        def sample(name: str, **labels: str) -> float | None:
            return registry.get_sample_value(f"appliance_outbound_{name}_total", labels)

        assert sample("connections", destination="shop", verdict="refused") == 1
        assert sample("connections", destination=UNDECLARED, verdict="refused") == 2
        assert sample("bytes", destination="shop", direction="received") == 2 * len(IMAGE)


async def test_an_address_that_is_not_declared_counts_for_its_destination() -> None:
    residency = declared(1, "192.0.2.1/32", host="127.0.0.1", uses=("images",))
    async with Outbound(residency, Registry()) as way:
        with pytest.raises(InvalidInput):
            await fetch(way, "http://127.0.0.1:1/a.jpg")
        shop, undeclared = way.traffic()
        assert (shop.allowed, shop.refused, undeclared.refused) == (0, 1, 0)


async def test_an_hour_s_bytes_are_a_bound_that_comes_back() -> None:
    async def handler(_: web.Request) -> web.Response:
        return jpeg(b"x" * 600)

    clock = Seconds()
    async with granted(handler, clock, hourly_bytes=1000) as (way, address, _):
        assert len(await fetch(way, f"{address}/a.jpg")) == 600
        with pytest.raises(HostFailed, match="used up"):
            await fetch(way, f"{address}/a.jpg")  # it would be 1200
        clock.now = HOUR - 1
        for attempt in (fetch(way, f"{address}/a.jpg"), read_feed(way, f"{address}/feed")):
            with pytest.raises(Overloaded, match="shop") as refusal:
                await attempt
            assert refusal.value.retry_after == 1
        assert await way.post(f"{address}/hook", b"{}", {}) is None
        assert way.traffic()[0].refused == 3
        clock.now = HOUR
        assert len(await fetch(way, f"{address}/a.jpg")) == 600


async def test_an_hour_s_seconds_are_a_bound_too() -> None:
    clock = Seconds()

    async def handler(_: web.Request) -> web.Response:
        clock.now += 40
        return jpeg()

    async with granted(handler, clock, hourly_seconds=60) as (way, address, _):
        assert await fetch(way, f"{address}/a.jpg") == IMAGE
        with pytest.raises(HostFailed, match="used up"):
            await fetch(way, f"{address}/a.jpg")
        assert way.traffic()[0].seconds == 80
        with pytest.raises(Overloaded):
            await fetch(way, f"{address}/a.jpg")
