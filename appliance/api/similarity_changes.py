"""What changes a collection: the writing routes under similarity/photos/v2 and their siblings."""

from dataclasses import dataclass

from appliance.api.answers import Answer, status
from appliance.api.call import Call
from appliance.api.descriptors import Descriptors
from appliance.api.payload import MAX_IMAGES, Record
from appliance.api.projection import EVERYTHING, wanted
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
from appliance.search.collections import OpenCollection
from appliance.search.records import Metadata, NewRecord, encode_id


@dataclass(frozen=True)
class _Fresh:
    """A record ready for the collection, and the size of the image it came from."""

    record: NewRecord
    width: int
    height: int


class SimilarityChanges:
    """The writing handlers of the search family."""

    def __init__(self, descriptors: Descriptors, limits: Search) -> None:
        self._descriptors = descriptors
        self._limits = limits

    async def insert(self, call: Call) -> Answer:
        """Stores what can be stored, in one durable transaction; every record that was not says why.

        Runs to its end even when the caller hangs up.
        """
        collection = await self._descriptors.collection(call)
        projection = wanted(call.payload, EVERYTHING)
        prepared = await self._prepared(collection, call)
        fresh = [outcome.record for outcome in prepared if isinstance(outcome, _Fresh)]
        with call.measures.stage("search"):
            inserted = iter(await collection.insert(call.actor, fresh) if fresh else [])
        answers: list[Metadata] = []
        left_out: list[Metadata] = []
        refusals: list[ApplianceError] = []
        for record, outcome in zip(call.payload.records or [], prepared, strict=True):
            why = refusal(next(inserted)) if isinstance(outcome, _Fresh) else outcome
            if isinstance(outcome, _Fresh) and why is None:
                seen: Metadata = {"_width": outcome.width, "_height": outcome.height}
                seen["_status"] = status(210, "record inserted", call.id)
                answers.append(projection.of(record.fields) | seen)
            elif why is not None:
                refusals.append(why)
                left_out.append(skipped(call, record, why))
        return answer(call, stored_code(len(answers), refusals), answers, left_out)

    async def update(self, call: Call) -> Answer:
        """Sets metadata fields; vectors stay as they are (delete and insert to change one)."""
        collection = await self._descriptors.collection(call)
        records, left_out = identified(call, self._limits)
        projection = wanted(call.payload, EVERYTHING)
        with call.measures.stage("search"):
            changes = [(record.id, metadata_of(record)) for record in records]
            updated = await collection.update(call.actor, changes) if changes else []
        answers = [shown(found, projection) for found in updated if found is not None]
        left_out += missing(call, records, updated)
        return answer(call, found_code(200, answers, left_out), answers, left_out)

    async def delete(self, call: Call) -> Answer:
        """Erases records, vectors included."""
        collection = await self._descriptors.collection(call)
        records, left_out = identified(call, self._limits)
        with call.measures.stage("search"):
            ids = [record.id for record in records]
            deleted = await collection.delete(call.actor, ids) if ids else []
        answers: list[Metadata] = [
            {"_id": record.id} for record, done in zip(records, deleted, strict=True) if done
        ]
        left_out += missing(call, records, [done or None for done in deleted])
        return answer(call, found_code(220, answers, left_out), answers, left_out)

    async def delete_by_filter(self, call: Call) -> Answer:
        """Erases every record that matches `filter`, and tells how many went, in `deleted_count`."""
        collection = await self._descriptors.collection(call)
        condition = filter_of(call.payload)
        if condition is None or not condition.conditions:
            raise InvalidInput(
                "filter: an empty one matches every record; to empty a collection,"
                f" POST /appliance/v1/collections/{collection.collection.id}/empty with the scope admin"
            )
        with call.measures.stage("search"):
            deleted = await collection.delete_matching(call.actor, condition)
        return enveloped(call, 220, {"deleted_count": deleted})

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
