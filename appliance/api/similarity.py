"""Visual search in the cloud's words: the routes under similarity/photos/v2 and their siblings.

All siblings serve the same collections. The wire codes are the cloud's: 200 OK, 205 records found, 206 some
of the records not found, 210 records inserted, 211 some records inserted, 220 records deleted, 404 records
not found, 411 record duplicate, 412 hard capacity exceeded.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from appliance.api.answers import Answer, Refused, code_of, http_status, status, status_of
from appliance.api.call import Call
from appliance.api.payload import MAX_IMAGES, Payload, Record, integer
from appliance.api.vision import Vector, Vision, each
from appliance.config import Search
from appliance.errors import ApplianceError, CapacityExceeded, Conflict, InvalidInput, NotFound, NotInstalled
from appliance.recognition.bundles import Bundle
from appliance.search import filters
from appliance.search.collections import Collections, OpenCollection
from appliance.search.exact import MAX_K, rank
from appliance.search.filters import Filter
from appliance.search.records import (
    CollectionId,
    Inserted,
    Metadata,
    NewRecord,
    encode_id,
)
from appliance.search.records import Record as Stored

MAX_PAGE = 10_000
_ID_ONLY = ["_id"]
_EVERYTHING = ["*"]

_TEXTS = {
    200: "OK",
    205: "records found",
    206: "some of the records not found",
    210: "records inserted",
    211: "some records inserted",
    220: "records deleted",
    400: "no record could be used",
    404: "records not found",
    411: "record duplicate",
    412: "hard capacity exceeded",
}


@dataclass(frozen=True)
class _Fresh:
    """A record ready for the collection, and the size of the image it came from."""

    record: NewRecord
    width: int
    height: int


class Similarity:
    """The handlers of the search family."""

    def __init__(self, collections: Collections, vision: Vision, limits: Search) -> None:
        self._collections = collections
        self._vision = vision
        self._limits = limits
        self._draw = np.random.default_rng()

    async def insert(self, call: Call) -> Answer:
        """Stores what can be stored, in one durable transaction; every record that was not says why.

        Runs to its end even when the caller hangs up.
        """
        collection = await self._collection(call)
        records = call.payload.records
        if not records or len(records) > MAX_IMAGES:
            raise InvalidInput(f"records: 1 to {MAX_IMAGES} are expected")
        bundle = self._backbone(collection)
        prepared = await each(records, lambda record: self._prepared(collection, bundle, record))
        fresh = [outcome.record for outcome in prepared if isinstance(outcome, _Fresh)]
        with call.measures.stage("search"):
            inserted = iter(await collection.insert(call.actor, fresh) if fresh else [])
        wanted = _wanted(call.payload, _EVERYTHING)
        answers: list[Metadata] = []
        skipped: list[Metadata] = []
        refusals: list[ApplianceError] = []
        for record, outcome in zip(records, prepared, strict=True):
            refusal = _refusal(next(inserted)) if isinstance(outcome, _Fresh) else outcome
            if isinstance(outcome, _Fresh) and refusal is None:
                seen: Metadata = {"_width": outcome.width, "_height": outcome.height}
                seen["_status"] = status(210, "record inserted", call.id)
                answers.append(_project(record.fields, wanted) | seen)
            elif refusal is not None:
                refusals.append(refusal)
                skipped.append(_skipped(call, record, refusal))
        return _answer(call, _insert_code(len(answers), refusals), answers, skipped)

    async def update(self, call: Call) -> Answer:
        """Sets metadata fields; vectors stay as they are (delete and insert to change one)."""
        collection = await self._collection(call)
        records, skipped = self._identified(call)
        wanted = _wanted(call.payload, _EVERYTHING)
        with call.measures.stage("search"):
            changes = [(record.id, _metadata(record)) for record in records]
            updated = await collection.update(call.actor, changes) if changes else []
        answers = [_stored(found, wanted) for found in updated if found is not None]
        skipped += _missing(call, records, updated)
        return _answer(call, _found_code(200, answers, skipped), answers, skipped)

    async def delete(self, call: Call) -> Answer:
        """Erases records, vectors included."""
        collection = await self._collection(call)
        records, skipped = self._identified(call)
        with call.measures.stage("search"):
            deleted = (
                await collection.delete(call.actor, [record.id for record in records]) if records else []
            )
        answers: list[Metadata] = [
            {"_id": record.id} for record, done in zip(records, deleted, strict=True) if done
        ]
        skipped += _missing(call, records, [done or None for done in deleted])
        return _answer(call, _found_code(220, answers, skipped), answers, skipped)

    async def get(self, call: Call) -> Answer:
        """Stored records by `_id`."""
        collection = await self._collection(call)
        records, skipped = self._identified(call)
        wanted = _wanted(call.payload, _ID_ONLY)
        with call.measures.stage("search"):
            stored = await collection.get([record.id for record in records]) if records else []
        answers = [_stored(found, wanted) for found in stored if found is not None]
        skipped += _missing(call, records, stored)
        return _answer(call, _found_code(205, answers, skipped), answers, skipped)

    async def visual_knn(self, call: Call) -> Answer:
        """The `k` records nearest to an image, or to a stored record, which comes back itself."""
        collection = await self._collection(call)
        wanted = _wanted(call.payload, _ID_ONLY)
        k = call.payload.integer("k", 5, 1, MAX_K)
        condition = _filter(call.payload)
        query = await self._query(collection, call)
        with call.measures.stage("search"):
            hits = await collection.search(query, k, condition, metadata=wanted != frozenset(_ID_ONLY))
        answers = [_project(hit.metadata | {"_id": hit.id}, wanted) for hit in hits]
        return _answer(call, 200, answers, answer_distances=[hit.distance for hit in hits])

    async def visual_rank_records(self, call: Call) -> Answer:
        """The given records (images, or stored ones by `_id`) in order of their distance to the query."""
        collection = await self._collection(call)
        wanted = _wanted(call.payload, _ID_ONLY)
        records = call.payload.records
        if not records:
            raise InvalidInput("records: at least one is expected")
        if sum(record.has_image or "_id" not in record.fields for record in records) > MAX_IMAGES:
            raise InvalidInput(f"records: at most {MAX_IMAGES} with images in one call")
        query = await self._query(collection, call)
        outcomes = await each(records, lambda record: self._vector(collection, record))
        usable = [
            (record, vector)
            for record, vector in zip(records, outcomes, strict=True)
            if not isinstance(vector, ApplianceError)
        ]
        with call.measures.stage("search"):
            order, distances = rank(query, [vector for _, vector in usable])
        answers = [_project(usable[position][0].fields, wanted) for position in order]
        skipped = [
            _skipped(call, record, outcome)
            for record, outcome in zip(records, outcomes, strict=True)
            if isinstance(outcome, ApplianceError)
        ]
        return _answer(call, _found_code(200, answers, skipped), answers, skipped, answer_distances=distances)

    async def random(self, call: Call) -> Answer:
        """`count` different records, each with the same chance."""
        collection = await self._collection(call)
        wanted = _wanted(call.payload, _ID_ONLY)
        count = call.payload.integer("count", 10, 1, MAX_K)
        with call.measures.stage("search"):
            records = await collection.sample(count, _filter(call.payload), self._draw)
        return _answer(call, 200, [_stored(record, wanted) for record in records])

    async def all_records(self, call: Call) -> Answer:
        """A page (`size`, `page` in the query; `next` only while one follows), or all that match `filter`."""
        collection = await self._collection(call)
        wanted = _wanted(call.payload, _ID_ONLY)
        condition = _filter(call.payload)
        if "size" not in call.query and "page" not in call.query:
            with call.measures.stage("search"):
                everything = await collection.all(condition)
            return _answer(call, 200, [_stored(record, wanted) for record in everything])
        if condition is not None:
            raise InvalidInput("filter: not together with size and page")
        size = integer(call.query.get("size"), "size", 1000, 1, MAX_PAGE)
        page = integer(call.query.get("page"), "page", 1, 1, 1 << 31)
        with call.measures.stage("search"):
            records, has_next = await collection.page(page, size)
        following: dict[str, Any] = {"next": f"{call.path}?size={size}&page={page + 1}"} if has_next else {}
        return _answer(call, 200, [_stored(record, wanted) for record in records], **following)

    async def ping(self, call: Call) -> Answer:
        """Whether search answers; with a collection named, whether the token may read that one."""
        count: dict[str, object] = {}
        if _collection_id(call) is not None:
            count["collection_size"] = (await self._collection(call)).count
        info = {"info": "visual search of the appliance", **count}
        return Answer(
            {**info, "status": status(200, "OK", call.id), "statistics": {"OperationTime": call.elapsed}}
        )

    async def _collection(self, call: Call) -> OpenCollection:
        named = _collection_id(call)
        if named is None:
            raise InvalidInput("collection-id: the header is expected")
        if not named.isascii():  # bytes of a header that are no UTF-8 arrive as what no id can hold
            raise NotFound("no such collection")
        return await self._collections.open(call.customer, CollectionId(named))

    def _backbone(self, collection: OpenCollection) -> Bundle:
        """The one that made the collection's vectors, whichever is active now."""
        pin = collection.collection.backbone
        try:
            return self._vision.backbone(pin)
        except NotInstalled as error:
            active = self._vision.backbone()
            raise Conflict(
                f"the collection holds vectors of {pin} and {active.pin} is active: they cannot be compared"
            ) from error

    async def _prepared(self, collection: OpenCollection, bundle: Bundle, record: Record) -> _Fresh:
        record.ensure_id()
        encode_id(record.id, self._limits.max_id_bytes)
        vector, seen = await self._vision.embed(bundle, record)
        fresh = NewRecord(record.id, vector, _metadata(record))
        collection.check(fresh)
        return _Fresh(fresh, seen.width, seen.height)

    async def _query(self, collection: OpenCollection, call: Call) -> Vector:
        if call.payload.query is None:
            raise InvalidInput("query_record: a record with an image or an _id is expected")
        return await self._vector(collection, call.payload.query)

    async def _vector(self, collection: OpenCollection, record: Record) -> Vector:
        if record.has_image or "_id" not in record.fields:
            return (await self._vision.embed(self._backbone(collection), record))[0]
        (vector,) = await collection.vectors([record.id])
        if vector is None:
            raise NotFound(_TEXTS[404])
        return vector

    def _identified(self, call: Call) -> tuple[list[Record], list[Metadata]]:
        """The records that have a usable `_id`, and the others as skipped."""
        usable: list[Record] = []
        skipped: list[Metadata] = []
        if not call.payload.records:
            raise InvalidInput("records: at least one is expected")
        for record in call.payload.records:
            try:
                encode_id(record.id, self._limits.max_id_bytes)
            except InvalidInput as refusal:
                skipped.append(_skipped(call, record, refusal))
            else:
                usable.append(record)
        return usable, skipped


def _collection_id(call: Call) -> str | None:
    # `collection-id` is today's header, `collection` the old clients'; some send it in the body as well.
    header = call.headers.get("collection-id") or call.headers.get("collection")
    return header or call.payload.text("collection_id")


def _filter(payload: Payload) -> Filter | None:
    document = payload.fields.get("filter")
    return None if document in (None, {}) else filters.compile(document)


def _wanted(payload: Payload, default: list[str]) -> frozenset[str] | None:
    """`fields_to_return` with `_id`, which always comes back; None for all fields."""
    names = payload.fields.get("fields_to_return") or default
    if isinstance(names, str):
        names = names.split(",")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidInput("fields_to_return: a list of field names is expected")
    return None if "*" in names else frozenset(names) | {"_id"}


def _project(fields: Metadata, wanted: frozenset[str] | None) -> Metadata:
    if wanted is None:
        return dict(fields)
    return {name: value for name, value in fields.items() if name in wanted}


def _stored(record: Stored, wanted: frozenset[str] | None) -> Metadata:
    return _project({"_id": record.id, **record.metadata}, wanted)


def _metadata(record: Record) -> Metadata:
    return {name: value for name, value in record.fields.items() if name != "_id"}


def _refusal(outcome: Inserted) -> ApplianceError | None:
    if outcome == "inserted":
        return None
    return Refused(411, _TEXTS[411]) if outcome == "duplicate" else CapacityExceeded(_TEXTS[412])


def _skipped(call: Call, record: Record, refusal: ApplianceError) -> Metadata:
    reason = status_of(refusal, call.id)
    return record.fields | {"_status": reason, "_reason": {"status": reason}}


def _missing(call: Call, records: Iterable[Record], found: Iterable[object]) -> list[Metadata]:
    pairs = zip(records, found, strict=True)
    return [_skipped(call, record, NotFound(_TEXTS[404])) for record, there in pairs if there is None]


def _found_code(complete: int, answers: Sequence[Metadata], skipped: Sequence[Metadata]) -> int:
    if not skipped:
        return complete
    return 206 if answers else 404


def _insert_code(inserted: int, refusals: Sequence[ApplianceError]) -> int:
    if inserted:
        return 211 if refusals else 210
    codes = {code_of(refusal) for refusal in refusals}
    return codes.pop() if codes in ({411}, {412}) else 400


def _answer(
    call: Call,
    code: int,
    records: Sequence[Metadata],
    skipped: Sequence[Metadata] | None = None,
    **more: object,
) -> Answer:
    document: dict[str, object] = {"answer_records": records, "answer_count": len(records), **more}
    if skipped is not None:
        document["skipped_records"] = skipped
    document |= {
        "status": status(code, _TEXTS[code], call.id),
        "statistics": {"OperationTime": call.elapsed},
    }
    return Answer(document, http_status(code))
