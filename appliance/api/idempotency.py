"""`Idempotency-Key`: a change that is sent again by the same token is answered again, and made once."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import chain
from typing import Any, TypeVar

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
_OF_ONE_LEFT_OUT = ("_id", "_status", "_reason")


class Once:
    """How the change of one call is answered: once under its key, where it has one."""

    def __init__(self, replies: Replies, asked: Asked | None) -> None:
        self._replies = replies
        self._asked = asked
        self._given: Answer | None = None

    def also(self, told: Callable[[T], Answer], ours: Sequence[str]) -> Also[T]:
        """For the transaction of the change: there what is `told` of its outcome is remembered.

        Of each answered record with `ours` alone, those of its fields that the appliance wrote; `_id` is one.
        """
        asked = self._asked
        if asked is None:
            return nothing

        def keep(connection: Connection, outcome: T) -> None:
            given = self._given = told(outcome)
            self._replies.keep(connection, asked, Reply(given.status, encode(_bare(given.document, ours))))

        return keep

    def answer(self, told: Callable[[T], Answer], outcome: T) -> Answer:
        """What is told of the outcome."""
        return self._given or told(outcome)


class Idempotency:
    """Makes each change once that comes with a key, while there is room for what is remembered of it.

    Without room there are only deletions, which change nothing when they are made again.
    """

    def __init__(self, replies: Replies) -> None:
        self._replies = replies

    async def answer(
        self, call: Call, collection: OpenCollection, change: Callable[[Once], Awaitable[Answer]]
    ) -> Answer:
        """What the change is answered; where it was made before, with ids and what became of each record.

        Raises Conflict when something else was asked under the key.
        """
        key = key_of(call)
        if key is None:
            return await change(Once(self._replies, None))
        asking = chain((call.path.encode(),), content(call.payload))
        digest = await asyncio.to_thread(digest_of, asking)
        asked = Asked(call.customer, collection.collection.id, call.actor.id, key, digest)
        try:
            await self._replies.check(asked)
            return await change(Once(self._replies, asked if call.room else None))
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


def digest_of(pieces: Iterable[bytes]) -> bytes:
    """SHA-256 of some pieces, which it tells apart; takes its time. It confirms a guess: it rests keyed."""
    running = hashlib.sha256()
    for piece in pieces:
        running.update(len(piece).to_bytes(8, "big"))
        running.update(piece)
    return running.digest()


def _bare(document: Any, ours: Sequence[str]) -> dict[str, object]:
    """An answer without what its records hold."""
    answered, left_out = document["answer_records"], document["skipped_records"]
    return {
        **document,
        "answer_records": [_only(one, ours) for one in answered],
        "skipped_records": [_only(one, _OF_ONE_LEFT_OUT) for one in left_out],
    }


def _only(fields: dict[str, object], names: Sequence[str]) -> dict[str, object]:
    return {name: fields[name] for name in names if name in fields}
