"""What changes a collection: the writing routes under similarity/photos/v2 and their siblings."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from appliance.accounts.audit import Actor
from appliance.api.answers import Answer, status
from appliance.api.call import Call
from appliance.api.descriptors import Descriptors
from appliance.api.idempotency import Idempotency, Once
from appliance.api.payload import MAX_IMAGES, Record
from appliance.api.projection import EVERYTHING, ID_ONLY, Projection, wanted
from appliance.api.similarity_answers import (
    answer,
    enveloped,
    filter_of,
    found_code,
    identified,
    metadata_of,
    missing,
    refusal,
    shown,
    skipped,
    stored_code,
)
from appliance.api.vision import each
from appliance.config import Search
from appliance.errors import ApplianceError, InvalidInput
from appliance.search.collections import Collections, OpenCollection
from appliance.search.opened import Also
from appliance.search.records import Inserted, Metadata, NewRecord, Upserted, encode_id
from appliance.search.records import Record as Stored
from appliance.search.replies import Replies

S = TypeVar("S", Inserted, Upserted)

_OF_ONE_STORED = ("_id", "_status", "_width", "_height")
"""The fields of an answered record that are not its caller's."""
Store = Callable[[OpenCollection, Actor, Sequence[NewRecord], Also[list[S]]], Awaitable[list[S]]]


@dataclass(frozen=True)
class _Fresh:
    """A record ready for the collection, and the size of the image it came from."""

    record: NewRecord
    width: int
    height: int


class SimilarityChanges:
    """The writing handlers of the search family."""

    def __init__(
        self, descriptors: Descriptors, replies: Replies, limits: Search, collections: Collections
    ) -> None:
        self._descriptors = descriptors
        self._idempotency = Idempotency(replies)
        self._limits = limits
        self._collections = collections

    async def insert(self, call: Call) -> Answer:
        """Stores what can be stored, in one durable transaction; every record that was not says why.

        Where none could because the customer has as many as it may, the call is refused (429).

        Runs to its end even when the caller hangs up.
        """
        return await self._store(call, OpenCollection.insert)

    async def upsert(self, call: Call) -> Answer:
        """As `insert`, but a record takes the place of the one with its `_id`: vector and metadata."""
        return await self._store(call, OpenCollection.upsert)

    async def update(self, call: Call) -> Answer:
        """Sets metadata fields; vectors stay as they are (`upsert` changes them)."""
        collection = await self._descriptors.collection(call)
        projection = wanted(call.payload, EVERYTHING)
        records, left_out = identified(call, self._limits)
        changes = [(record.id, metadata_of(record)) for record in records]

        def told(updated: list[Stored | None]) -> Answer:
            answers = [shown(found, projection) for found in updated if found is not None]
            unknown = left_out + missing(call, records, updated)
            return answer(call, found_code(200, answers, unknown), answers, unknown)

        async def change(once: Once) -> Answer:
            with call.measures.stage("search"):
                also = once.also(told, ID_ONLY)
                updated = await collection.update(call.actor, changes, also) if changes else []
            return once.answer(told, updated)

        return await self._idempotency.answer(call, collection, change)

    async def delete(self, call: Call) -> Answer:
        """Erases records, vectors included; with `erase` from snapshots too, also what these alone have."""
        collection = await self._descriptors.collection(call)
        records, left_out = identified(call, self._limits)
        ids, erase = [record.id for record in records], call.payload.flag("erase")

        def told(deleted: list[bool]) -> Answer:
            answers: list[Metadata] = [{"_id": name} for name, done in zip(ids, deleted, strict=True) if done]
            unknown = left_out + missing(call, records, [done or None for done in deleted])
            return answer(call, found_code(220, answers, unknown), answers, unknown)

        async def change(once: Once) -> Answer:
            with call.measures.stage("search"):
                also = once.also(told, ID_ONLY)
                deleted = await collection.delete(call.actor, ids, also, erase=erase) if ids else []
            return once.answer(told, deleted)

        return await self._idempotency.answer(call, collection, change)

    async def delete_by_filter(self, call: Call) -> Answer:
        """Erases every record that matches `filter`, as `delete` does; `deleted_count` tells how many."""
        collection = await self._descriptors.collection(call)
        condition = filter_of(call.payload)
        if condition is None or condition.everything:
            raise InvalidInput(
                "filter: an empty one matches every record; to empty a collection,"
                f" POST /appliance/v1/collections/{collection.collection.id}/empty with the scope admin"
            )
        erase = call.payload.flag("erase")
        with call.measures.stage("search"):
            deleted = await collection.delete_matching(call.actor, condition, erase=erase)
        return enveloped(call, 220, {"deleted_count": deleted})

    async def _store(self, call: Call, store: Store[S]) -> Answer:
        collection = await self._descriptors.collection(call)
        projection = wanted(call.payload, EVERYTHING)

        async def change(once: Once) -> Answer:
            prepared = await self._prepared(collection, call)
            fresh = [outcome.record for outcome in prepared if isinstance(outcome, _Fresh)]
            outcomes = list(zip(call.payload.records or [], prepared, strict=True))

            def told(stored: Sequence[S]) -> Answer:
                return _told(call, projection, outcomes, stored)

            with call.measures.stage("search"):
                also = once.also(told, _OF_ONE_STORED)
                stored = await store(collection, call.actor, fresh, also) if fresh else []
            if fresh and all(outcome == "full" for outcome in stored):
                await self._collections.check_records(call.customer)
            return once.answer(told, stored)

        return await self._idempotency.answer(call, collection, change)

    async def _prepared(self, collection: OpenCollection, call: Call) -> list[_Fresh | ApplianceError]:
        """What becomes of each record of the call. Raises InvalidInput for no records, or too many."""
        records = call.payload.records
        if not records or len(records) > MAX_IMAGES:
            raise InvalidInput(f"records: 1 to {MAX_IMAGES} are expected")
        self._descriptors.check(collection)

        async def prepare(record: Record) -> _Fresh:
            record.ensure_id()
            encode_id(record.id, self._limits.max_id_bytes)
            vector, seen = await self._descriptors.embed(collection, record)
            fresh = NewRecord(record.id, vector, metadata_of(record))
            collection.check(fresh)
            return _Fresh(fresh, seen.width, seen.height)

        return await each(records, prepare)


def _told(
    call: Call,
    projection: Projection,
    outcomes: Sequence[tuple[Record, _Fresh | ApplianceError]],
    stored: Sequence[Inserted | Upserted],
) -> Answer:
    """The answer to an insert or upsert in which the fresh ones among the records were `stored` so."""
    answers: list[Metadata] = []
    left_out: list[Metadata] = []
    refusals: list[ApplianceError] = []
    following = iter(stored)
    for record, outcome in outcomes:
        if isinstance(outcome, _Fresh):
            done = next(following)
            why = refusal(done)
            if why is None:
                seen: Metadata = {"_width": outcome.width, "_height": outcome.height}
                seen["_status"] = status(210, f"record {done}", call.id)
                answers.append(projection.of(record.fields) | seen)
                continue
        else:
            why = outcome
        refusals.append(why)
        left_out.append(skipped(call, record, why))
    return answer(call, stored_code(len(answers), refusals), answers, left_out)
