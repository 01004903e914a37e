"""A collection that follows a feed of a shop on loopback, with all real parts but the model."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web

from appliance import config
from appliance.accounts.customers import CustomerId, Customers
from appliance.errors import Conflict, InvalidImage
from appliance.ledger import Ledger
from appliance.metrics import Registry
from appliance.outbound import Outbound
from appliance.residency import Destination, Residency
from appliance.search.collections import Collections, OpenCollection
from appliance.search.records import CollectionId, Record, Vector
from appliance.search.sync.report import Run, State
from appliance.search.sync.source import Source
from appliance.search.sync.synchronisation import Synchronisation
from appliance.vault import open_keyring
from tests.searching import ACTOR, BACKBONE, NOW, ROOT, space

NAME = "shop.example"
DIM = 16
OPEN = {State.WAITING, State.RUNNING}


class Shop:
    """Serves `feed` at /feed and an image at every other path, unless `answers` has another status for it.

    `asked` is every path that was asked for, in order. `hold` is awaited before an image is given out.
    """

    def __init__(self) -> None:
        self.feed = b""
        self.headers: dict[str, str] = {}
        self.answers: dict[str, list[int]] = {}
        self.asked: list[str] = []
        self.seen: list[Mapping[str, str]] = []
        self.hold: Callable[[str], Any] | None = None
        self.port = 0

    @property
    def address(self) -> str:
        return f"http://{NAME}:{self.port}"

    @property
    def images(self) -> list[str]:
        """The paths of images that were asked for since the last time."""
        found = [path for path in self.asked if path != "/feed"]
        self.asked.clear()
        return found

    def items(self, names: Iterable[object], **more: object) -> list[dict[str, object]]:
        return [
            {"id": str(n), "title": f"thing {n}", "image_link": f"{self.address}/{n}.png"} | more
            for n in names
        ]

    def offer(self, items: Iterable[Mapping[str, object]]) -> None:
        """Have the feed be these items, in JSON lines."""
        self.feed = b"".join(json.dumps(item).encode() + b"\n" for item in items)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        if statuses := self.answers.get(request.path):
            return web.Response(status=statuses.pop(0))
        if request.path == "/feed":
            self.seen.append(dict(request.headers))
            if "ETag" in self.headers and request.headers.get("If-None-Match") == self.headers["ETag"]:
                return web.Response(status=304)
            return web.Response(body=self.feed, headers=self.headers)
        if self.hold is not None:
            await self.hold(request.path)
        return web.Response(body=b"image of " + request.path.encode(), content_type="image/png")


class Colours:
    """A model that sees another direction in every image, and what is not one of the shop's in none."""

    def __init__(self) -> None:
        self.installed = {BACKBONE}

    def check(self, backbone: str) -> None:
        if backbone not in self.installed:
            raise Conflict(f"{backbone} is not installed")

    async def vector(self, backbone: str, image: bytes) -> Vector:
        self.check(backbone)
        if not image.startswith(b"image of"):
            raise InvalidImage("no image")
        return direction(image)


def direction(image: bytes) -> Vector:
    digest = np.frombuffer(hashlib.sha256(image).digest()[: DIM * 2], np.int16).astype(np.float32)
    vector: Vector = (digest / np.linalg.norm(digest)).astype(np.float32)
    return vector


@dataclass
class Followed:
    """A collection and its feed; `now` is the clock."""

    shop: Shop
    ledger: Ledger
    customers: Customers
    collections: Collections
    outbound: Outbound
    sync: Synchronisation
    customer: CustomerId
    id: CollectionId
    registry: Registry
    model: Colours
    clock: list[float] = field(default_factory=lambda: [NOW])
    pauses: list[float] = field(default_factory=list)

    async def opened(self) -> OpenCollection:
        return await self.collections.open(self.customer, self.id)

    async def records(self) -> dict[str, Record]:
        return {record.id: record for record in await (await self.opened()).all()}

    async def follow(self, **source: Any) -> None:
        given = Source(**({"url": f"{self.shop.address}/feed"} | source))
        await self.sync.set(ACTOR, self.customer, self.id, given)

    async def run(self) -> Run:
        """A run that somebody asks for, ended or asking."""
        await self.sync.run(ACTOR, self.customer, self.id)
        return await self.ended()

    async def ended(self) -> Run:
        """The latest run, when it is not under way any more."""
        return await self.until(lambda run: run.state not in OPEN)

    async def until(self, holds: Callable[[Run], bool], seconds: float = 30) -> Run:
        """The latest run, as soon as this holds for it."""
        async with asyncio.timeout(seconds):
            while True:
                runs = await self.sync.runs(self.customer, self.id)
                if runs and holds(runs[0]):
                    return runs[0]
                await asyncio.sleep(0.005)

    async def pass_time(self, seconds: float) -> None:
        self.clock[0] += seconds
        self.sync.wake()


@asynccontextmanager
async def serving(shop: Shop) -> AsyncIterator[Shop]:
    """The shop on loopback."""
    application = web.Application()
    application.router.add_route("GET", "/{path:.*}", shop.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)  # whoever is held is let go
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", shop.port)
        await site.start()
        shop.port = runner.addresses[0][1]
        yield shop
    finally:
        await runner.cleanup()


@asynccontextmanager
async def followed(
    folder: Path,
    shop: Shop,
    settings: config.Search | None = None,
    *,
    uses: tuple[str, ...] = ("feeds", "images"),
    clock: list[float] | None = None,
) -> AsyncIterator[Followed]:
    """The folder's state with one collection; entering a second time is a restart."""
    registry, given, now = Registry(), settings or config.Search(), clock or [NOW]
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    declared = Destination.model_validate(
        {
            "name": "shop",
            "host": NAME,
            "local": True,
            "cidrs": ["127.0.0.1/32"],
            "port": shop.port,
            "country": "CZ",
            "purpose": "products",
            "uses": uses,
            "tls": False,
        }
    )
    residency = Residency("Prague", "CZ", False, (declared,), (ip_network("127.0.0.0/8"),))
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        ledger = await enter(Ledger(folder, registry))
        keyring = await open_keyring(folder, ledger, bytearray(ROOT))
        stack.callback(keyring.wipe)
        customers = await enter(Customers(ledger, lambda: now[0]))
        collections = await enter(
            Collections(
                ledger,
                keyring,
                given,
                lambda: now[0],
                registry,
                graphs=folder / "graphs",
                snapshots=folder / "snapshots",
                space=stack.enter_context(space(folder)),
            )
        )
        known = await customers.list()
        customer = known[0] if known else await customers.add(ACTOR, "someone")
        there = await collections.list(customer.id)
        found = there[0] if there else await collections.add(ACTOR, customer.id, "things", BACKBONE, DIM)
        outbound = await enter(Outbound(residency, registry))
        model = Colours()
        sync = await enter(
            Synchronisation(
                ledger,
                keyring,
                collections=collections,
                customers=customers,
                outbound=outbound,
                embed=model,
                settings=given,
                clock=lambda: now[0],
                registry=registry,
                pause=pause,
            )
        )
        yield Followed(
            shop,
            ledger,
            customers,
            collections,
            outbound,
            sync,
            customer.id,
            found.id,
            registry,
            model,
            now,
            pauses,
        )
