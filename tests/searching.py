"""Collections on a real ledger in a folder: what the tests of search, their faults and the bench stand on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from appliance import config
from appliance.accounts.audit import Actor
from appliance.accounts.customers import CustomerId, Customers
from appliance.ledger import Ledger
from appliance.metrics import Registry
from appliance.search.collections import Collections, NewRecord, OpenCollection
from appliance.search.records import RECALL
from appliance.vault import Keyring, open_keyring
from appliance.volume import HeldFolder, Space

ACTOR = Actor("system", "test")
BACKBONE = "test@1"
NOW = 1_700_000_000.0
ROOT = bytes(range(32))

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shelf:
    """One customer's collections and what they stand on."""

    ledger: Ledger
    keyring: Keyring
    space: Space
    collections: Collections
    customer: CustomerId
    registry: Registry

    async def collection(self, dim: int, name: str = "things", *, recall: float = RECALL) -> OpenCollection:
        """A new, empty one, opened."""
        added = await self.collections.add(ACTOR, self.customer, name, BACKBONE, dim, recall=recall)
        return await self.collections.open(self.customer, added.id)

    def count(self, metric: str, **labels: str) -> float:
        """A counter's value."""
        return self.registry.get_sample_value(metric, labels) or 0.0


@contextmanager
def space(folder: Path, reserve: int = 0, ballast: int = 0) -> Iterator[Space]:
    """Of the folder's volume: what comes in leaves `reserve` bytes, `ballast` are given up for deletions."""
    held = HeldFolder(folder)
    try:
        yield Space(held, fraction=0, least_bytes=reserve, ballast_bytes=ballast)
    finally:
        held.close()


@asynccontextmanager
async def shelf(
    folder: Path,
    settings: config.Search | None = None,
    *,
    reserve: int = 0,
    ballast: int = 0,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncIterator[Shelf]:
    """Open the folder's ledger and its collections; entering a second time is a restart."""
    registry = Registry()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        ledger = await enter(Ledger(folder, registry))
        keyring = await open_keyring(folder, ledger, bytearray(ROOT))
        stack.callback(keyring.wipe)
        customers = await enter(Customers(ledger, lambda: NOW))
        given = settings or config.Search()
        room = stack.enter_context(space(folder, reserve, ballast))
        collections = await enter(
            Collections(
                ledger,
                keyring,
                given,
                lambda: NOW,
                registry,
                graphs=folder / "graphs",
                snapshots=folder / "snapshots",
                space=room,
                pause=pause,
            )
        )
        known = await customers.list()
        customer = known[0] if known else await customers.add(ACTOR, "someone")
        yield Shelf(ledger, keyring, room, collections, customer.id, registry)


def unit(rng: np.random.Generator, count: int, dim: int) -> Vectors:
    """Random directions."""
    return _normalised(rng.standard_normal((count, dim)))


def low_rank(rng: np.random.Generator, count: int, dim: int) -> Vectors:
    """Vectors like embeddings: 128 clusters of skewed sizes, each in 24 dimensions of its own, plus noise."""
    centres = rng.standard_normal((128, dim))
    bases = rng.standard_normal((128, 24, dim)) / np.sqrt(24)
    shares = rng.pareto(1.5, 128) + 0.1
    cluster = rng.choice(128, count, p=shares / shares.sum())
    vectors = np.empty((count, dim))
    for number in range(128):
        members = np.flatnonzero(cluster == number)
        inside = rng.standard_normal((len(members), 24)) @ bases[number]
        noise = 0.1 * rng.standard_normal((len(members), dim))
        vectors[members] = 0.5 * centres[number] + inside + noise
    return _normalised(vectors)


def numbered(vectors: Vectors, start: int = 0) -> list[NewRecord]:
    """Records r0, r1, ... with their number as metadata."""
    return [NewRecord(f"r{start + n}", vector, {"n": start + n}) for n, vector in enumerate(vectors)]


def brute_force(vectors: Vectors, query: Vectors, k: int) -> tuple[list[int], list[float]]:
    """The k nearest by a float64 product over everything: positions and distances."""
    rows, one = vectors.astype(np.float64), query.astype(np.float64)
    cosines = (rows @ one) / (np.linalg.norm(rows, axis=1) * np.linalg.norm(one))
    order = np.argsort(np.round(1.0 - cosines, 7), kind="stable")[:k]
    return order.tolist(), (1.0 - cosines)[order].tolist()


def _normalised(vectors: npt.NDArray[np.float64]) -> Vectors:
    lengths: npt.NDArray[np.float64] = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / lengths).astype(np.float32)
