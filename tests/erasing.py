"""A customer with something of everything, on a store with search, and what erases it."""

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from appliance import config
from appliance.accounts.agreements import Kind
from appliance.accounts.audit import Actor
from appliance.accounts.certificates import Certificates
from appliance.accounts.customers import CustomerId
from appliance.accounts.tokens import Tokens
from appliance.asynchronous.requests import Requests, State, Webhook
from appliance.datasets.records import Box
from appliance.ledger import Connection
from appliance.privacy.erasure import Erasure
from appliance.search.collections import CollectionId, Collections, NewRecord
from appliance.search.replies import Asked, Replies, Reply
from appliance.search.sync.feeds import Feeds
from appliance.search.sync.source import Source
from tests.storing import Stand, stand

TOKEN = Actor("system", "test")
OPERATOR = Actor("operator", "0")
DIM = 8
REFERRING = (
    "SELECT tables.name, columns.name FROM sqlite_schema AS tables, pragma_table_info(tables.name) AS columns"
    " WHERE tables.type = 'table' AND columns.name = 'customer'"
)
STAYS = {"audit", "certificates"}


@dataclass
class Everything:
    """All parts that hold something of a customer."""

    stand: Stand
    tokens: Tokens
    collections: Collections
    requests: Requests
    certificates: Certificates
    erasure: Erasure

    async def names(self) -> list[str]:
        return [customer.name for customer in await self.stand.customers.list()]

    async def rows(self, customer: CustomerId) -> dict[str, int]:
        """How many rows of a customer there are in each table that has any."""

        def query(connection: Connection) -> dict[str, int]:
            counts = {}
            for table, _ in connection.execute(REFERRING).fetchall():
                found = connection.execute(
                    f'SELECT count(*) FROM "{table}" WHERE customer = ?', (customer,)
                ).get
                if found and table not in STAYS:
                    counts[str(table)] = int(found)
            return counts

        return await self.stand.ledger.read(query)


@dataclass
class Held:
    """A customer, and every word of its own, each of which is nobody else's."""

    name: str
    id: CustomerId
    token: str = ""
    words: list[str] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)
    collection: CollectionId = field(default_factory=lambda: CollectionId(""))

    def word(self) -> str:
        self.words.append(secrets.token_hex(12))
        return self.words[-1]


@asynccontextmanager
async def everything(state: Path) -> AsyncIterator[Everything]:
    """All of it on `state`; entering again is a restart, which goes on with erasures."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        one = await enter(stand(state))
        keys = one.keyring.service
        tokens = await enter(Tokens(one.ledger, keys, one.customers, one.clock))
        collections = await enter(
            Collections(
                one.ledger,
                one.keyring,
                config.Search(),
                one.clock,
                one.registry,
                graphs=state / "graphs",
                snapshots=state / "snapshots",
                space=one.space,
            )
        )
        requests = await enter(Requests(one.ledger, one.keyring, one.clock, 86_400))
        erasure = await enter(
            Erasure(
                one.ledger,
                one.keyring,
                customers=one.customers,
                tokens=tokens,
                agreements=one.agreements,
                collections=collections,
                datasets=one.datasets,
                clock=one.clock,
            )
        )
        yield Everything(one, tokens, collections, requests, Certificates(one.ledger, keys), erasure)


async def fill(parts: Everything, *, records: int = 20, images: int = 3) -> Held:
    """A new customer with something of everything."""
    one = parts.stand
    added = await one.customers.add(OPERATOR, secrets.token_hex(12))
    held = Held(added.name, added.id, words=[added.name])
    await one.agreements.sign(OPERATOR, held.id, Kind.TRAINING_DATA)
    first = await parts.tokens.add(OPERATOR, held.id)
    held.token = (await parts.tokens.rotate(OPERATOR, held.id, first.id)).token
    await _store(parts, held, images)
    await _search(parts, held, records)
    answer = msgspec.json.encode({"label": held.word()})
    webhook = Webhook(f"https://{held.word()}.example/", {"X-Key": held.word()})
    asked, _ = await parts.requests.add(
        TOKEN, held.id, "custom-recognition", key=held.word(), webhook=webhook
    )
    await parts.requests.finish(asked.id, State.DONE, answer)
    return held


async def _store(parts: Everything, held: Held, images: int) -> None:
    one = parts.stand
    named = await one.datasets.add(TOKEN, held.id, held.word())
    for dataset in (await one.datasets.default(held.id), named):
        contents = [secrets.token_bytes(3000) for _ in range(images)]
        held.images += contents
        meta_data = [msgspec.json.encode({"shelf": held.word()}) for _ in contents]
        stored = [
            await one.store.put(TOKEN, dataset, content, meta)
            for content, meta in zip(contents, meta_data, strict=True)
        ]
        label = await one.annotations.labels.add(TOKEN, dataset, "detection", held.word())
        box = Box(1, 2, 30, 40)
        await one.annotations.objects.add(
            TOKEN, held.id, stored[-1].id, label=label.id, box=box, meta_data={"what": held.word()}
        )
        await one.annotations.tasks.add(TOKEN, dataset, "detection", held.word(), held.word())


async def _search(parts: Everything, held: Held, records: int) -> None:
    collections, one = parts.collections, parts.stand
    added = await collections.add(TOKEN, held.id, held.word(), "test@1", DIM)
    held.collection = added.id
    opened = await collections.open(held.id, added.id)
    vectors = np.random.default_rng(records).standard_normal((records, DIM)).astype(np.float32)
    new: list[Any] = [NewRecord(held.word(), vector, {"note": held.word()}) for vector in vectors]
    replies = Replies(one.ledger, one.keyring, one.upkeep.leaps)
    asked = Asked(held.id, added.id, "a token", held.word(), b"asked")
    answer = Reply(200, held.word().encode())
    await opened.insert(TOKEN, new, lambda connection, _: replies.keep(connection, asked, answer))
    await collections.aliases.point(TOKEN, held.id, held.word(), added.id)
    source = Source(f"https://{held.word()}.example/feed", {"X-Key": held.word()})
    await Feeds(one.ledger, one.keyring, one.clock).set(TOKEN, held.id, added.id, source)
