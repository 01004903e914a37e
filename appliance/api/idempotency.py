"""`Idempotency-Key`: a change that is sent again is answered again, and made once."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from itertools import chain
from typing import TypeVar

import msgspec

from appliance.api.answers import Answer, encode
from appliance.api.call import Call
from appliance.api.payload import Payload
from appliance.errors import InvalidInput
from appliance.ledger import Connection
from appliance.search.opened import Also, OpenCollection, nothing
from appliance.search.replies import Asked, Repeated, Replies, Reply

T = TypeVar("T")

MAX_KEY = 255  # characters


class Once:
    """How the change of one call is answered: once under its key, where it has one."""

    def __init__(self, replies: Replies, asked: Asked | None) -> None:
        self._replies = replies
        self._asked = asked
        self._given: Answer | None = None

    def also(self, told: Callable[[T], Answer]) -> Also[T]:
        """For the transaction of the change: there what is `told` of its outcome is remembered."""
        asked = self._asked
        if asked is None:
            return nothing

        def keep(connection: Connection, outcome: T) -> None:
            given = self._given = told(outcome)
            self._replies.keep(connection, asked, Reply(given.status, encode(given.document)))

        return keep

    def answer(self, told: Callable[[T], Answer], outcome: T) -> Answer:
        """What is told of the outcome, and was remembered where it was to be."""
        return self._given or told(outcome)


class Idempotency:
    """Makes each change once that comes with a key."""

    def __init__(self, replies: Replies) -> None:
        self._replies = replies

    async def answer(
        self, call: Call, collection: OpenCollection, change: Callable[[Once], Awaitable[Answer]]
    ) -> Answer:
        """What the change is answered, or was when it came first. Raises Conflict for another one's key."""
        key = key_of(call)
        if key is None:
            return await change(Once(self._replies, None))
        identifier = collection.collection.id
        asking = chain((call.path.encode(), identifier.encode()), content(call.payload))
        digest = await asyncio.to_thread(self._replies.digest, asking)
        asked = Asked(call.customer, identifier, key, digest)
        try:
            await self._replies.check(asked)
            return await change(Once(self._replies, asked))
        except Repeated as repeated:
            reply = repeated.reply
            return Answer(msgspec.Raw(reply.body), reply.status, headers={"Idempotent-Replayed": "true"})


def key_of(call: Call) -> str | None:
    """The key that a call came with, None where it has none. Raises InvalidInput."""
    key = call.headers.get("Idempotency-Key")
    if key is not None and not (1 <= len(key) <= MAX_KEY and key.isascii() and key.isprintable()):
        raise InvalidInput(f"Idempotency-Key: 1 to {MAX_KEY} printable ASCII characters are expected")
    return key


def content(payload: Payload) -> Iterable[bytes]:
    """What makes two requests the same: every field and every image."""
    yield msgspec.json.encode(payload.fields)
    for record in payload.records or []:
        yield msgspec.json.encode(record.fields)
        yield bytes(record.image or b"")
