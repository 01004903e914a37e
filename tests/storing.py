"""A store on a real folder and ledger, with opaque bytes in place of images where pixels do not matter."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from appliance import metrics
from appliance.accounts.agreements import Agreements, Kind
from appliance.accounts.audit import Actor
from appliance.accounts.customers import CustomerId, Customers
from appliance.accounts.forward import ForwardTime, latest_time
from appliance.datasets.annotations import Annotations
from appliance.datasets.catalogue import Datasets
from appliance.datasets.deletions import Deletions
from appliance.datasets.files import SealedFiles
from appliance.datasets.folder import data_folder
from appliance.datasets.links import Links
from appliance.datasets.ports import Encoded
from appliance.datasets.records import Dataset, Image, ReadPermit, Variant
from appliance.datasets.store import Store
from appliance.datasets.upkeep import Upkeep
from appliance.errors import InvalidImage
from appliance.ledger import Ledger
from appliance.vault import Keyring, open_keyring
from appliance.volume import DataFolder, Space

ACTOR = Actor("token", "test")
OPERATOR = Actor("operator", "0")
ROOT = bytes(range(32))


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True, repr=False)
class Opaque:
    image: bytes
    thumbnail: bytes
    format: Literal["jpeg", "png", "webp"] = "jpeg"
    width: int = 640
    height: int = 480


class OpaqueCodec:
    """Takes all but nothing and the word "broken" for an image; its thumbnail is its start, reversed."""

    async def ingest(self, data: Encoded, *, keep_metadata: bool, customer: str | None = None) -> Opaque:
        if not data or bytes(data[:6]) == b"broken":
            raise InvalidImage("not an image")
        return Opaque(bytes(data), bytes(data[:100])[::-1])


@dataclass
class Stand:
    """The parts of a store that is open, and what a test turns."""

    state: Path
    ledger: Ledger
    keyring: Keyring
    customers: Customers
    folder: DataFolder
    space: Space
    files: SealedFiles
    datasets: Datasets
    deletions: Deletions
    store: Store
    upkeep: Upkeep
    clock: Clock
    agreements: Agreements
    annotations: Annotations
    links: Links
    registry: metrics.Registry

    async def customer(self, name: str = "Alice") -> CustomerId:
        """The customer of this name, made and with an agreement signed when it is first asked for."""
        known = {customer.name: customer.id for customer in await self.customers.list()}
        if name not in known:
            known[name] = (await self.customers.add(ACTOR, name)).id
            await self.agreements.sign(ACTOR, known[name], Kind.TRAINING_DATA)
        return known[name]


@asynccontextmanager
async def stand(
    state: Path,
    *,
    clock: Clock | None = None,
    monotonic: Callable[[], float] | None = None,
    reserve: int = 0,
    root: bytes = ROOT,
    contradicted: bool = False,
) -> AsyncIterator[Stand]:
    """A store on `state`, which may hold what an earlier one left; uploads leave `reserve` bytes free.

    What `clock` is moved ahead passes, unless `monotonic` says otherwise.
    """
    clock = clock or Clock()
    monotonic = monotonic or _passing(clock)
    registry = metrics.create()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        ledger = await enter(Ledger(state, registry))
        keyring = await open_keyring(state, ledger, bytearray(root))
        stack.callback(keyring.wipe)
        latest = await ledger.read(partial(latest_time, now=clock()))
        forward = ForwardTime(latest, clock, monotonic)
        customers = await enter(Customers(ledger, clock))
        agreements = await enter(Agreements(ledger, keyring, customers, clock))
        folder = await enter(data_folder(state / "images", ledger, encrypted=False))
        space = Space(folder, fraction=0, least_bytes=reserve, ballast_bytes=1 << 20)
        files = await enter(SealedFiles(folder, keyring.service, registry))
        datasets = await enter(Datasets(ledger, keyring, files, space=space, clock=clock))
        deletions = Deletions(ledger, files, datasets.certificates, clock)
        upkeep = await enter(
            Upkeep(
                ledger,
                datasets,
                files,
                deletions,
                space,
                scrub_days=30,
                clock=clock,
                monotonic=monotonic,
                registry=registry,
                contradicted=contradicted,
            )
        )
        store = await enter(
            Store(
                ledger,
                datasets,
                files,
                deletions,
                codec=OpaqueCodec(),
                agreements=agreements,
                space=space,
                clock=clock,
                leaps=upkeep.leaps,
                registry=registry,
                on_damage=upkeep.count_one_damaged,
            )
        )
        yield Stand(
            state,
            ledger,
            keyring,
            customers,
            folder,
            space,
            files,
            datasets,
            deletions,
            store,
            upkeep,
            clock,
            agreements,
            await enter(Annotations(ledger, datasets, store, clock=clock)),
            await enter(Links(ledger, datasets, keyring.service, clock=clock, forward=forward.now)),
            registry,
        )


def _passing(clock: Clock) -> Callable[[], float]:
    before, passed = clock(), 0.0

    def monotonic() -> float:
        nonlocal before, passed
        now = clock()
        passed += max(now - before, 0.0)
        before = now
        return passed

    return monotonic


PHOTO = os.urandom(50_000)


def permit(image: Image) -> ReadPermit:
    return ReadPermit(image.customer, image.dataset, image.id, "token")


async def read(stand: Stand, image: Image, variant: Variant = "image") -> bytes:
    opened = await stand.store.open(permit(image), variant)
    try:
        return b"".join([piece async for piece in opened.read(0, opened.length)])
    finally:
        opened.close()


async def default(stand: Stand, name: str = "Alice") -> Dataset:
    return await stand.datasets.default(await stand.customer(name))


def files(state: Path) -> list[Path]:
    """The sealed files: what else lies there is the volume's own."""
    return [path for path in (state / "images").glob("*/*") if path.is_file()]


def everything(state: Path) -> bytes:
    return b"".join(path.read_bytes() for path in state.rglob("*") if path.is_file())


def damage(file: Path, at: int = 20_000) -> None:
    """Another byte at this place."""
    with file.open("r+b") as opened:
        opened.seek(at)
        (byte,) = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))


def restore(state: Path, ledger: bytes) -> None:
    for path in state.glob("ledger.db*"):
        path.unlink()
    (state / "ledger.db").write_bytes(ledger)


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
