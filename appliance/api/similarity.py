"""Visual search in the cloud's words: the reading routes under similarity/photos/v2 and their siblings.

All siblings serve the same collections.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from appliance.api.answers import Answer, status
from appliance.api.call import Call
from appliance.api.cursors import decode_cursor, encode_cursor
from appliance.api.descriptors import Descriptors, Measure, collection_id
from appliance.api.payload import MAX_IMAGES, integer
from appliance.api.projection import ID_ONLY, wanted
from appliance.api.similarity_answers import (
    TEXTS,
    answer,
    enveloped,
    filter_of,
    found_code,
    identified,
    missing,
    query_of,
    shown,
    skipped,
)
from appliance.api.vision import Vector, each
from appliance.config import Search
from appliance.errors import ApplianceError, InvalidInput
from appliance.search.collections import Hit, OpenCollection
from appliance.search.exact import MAX_K, rank
from appliance.search.filters import Filter
from appliance.search.opened import MAX_PAGE
from appliance.search.records import Metadata
from appliance.search.vectors import QUERIES_TOGETHER

T = TypeVar("T")

MAX_QUERIES = 100
"""Of one call."""


class Similarity:
    """The reading handlers of the search family."""

    def __init__(self, descriptors: Descriptors, limits: Search) -> None:
        self._descriptors = descriptors
        self._limits = limits
        self._draw = np.random.default_rng()

    async def get(self, call: Call) -> Answer:
        """Stored records by `_id`."""
        collection = await self._descriptors.collection(call)
        records, left_out = identified(call, self._limits)
        projection = wanted(call.payload, ID_ONLY)
        with call.measures.stage("search"):
            stored = await collection.get([record.id for record in records]) if records else []
        answers = [shown(found, projection) for found in stored if found is not None]
        left_out += missing(call, records, stored)
        return answer(call, found_code(205, answers, left_out), answers, left_out)

    async def visual_knn(self, call: Call) -> Answer:
        """The `k` records nearest to an image, or to a stored record, which comes back itself.

        Without `query_record` those nearest to each of the `records`, in `answers`, in their order.
        """
        collection = await self._descriptors.collection(call)
        projection = wanted(call.payload, ID_ONLY)
        k = call.payload.integer("k", 5, 1, MAX_K)
        condition = filter_of(call.payload)
        measure = self._descriptors.measure(collection)
        exactly = call.payload.flag("exact")

        async def found(vectors: Sequence[Vector]) -> list[Metadata]:
            with call.measures.stage("search"):
                answers = await collection.search_many(
                    vectors, k, condition, metadata=not projection.id_only, exactly=exactly
                )
            return [
                {
                    "answer_records": [projection.of({"_id": hit.id, **hit.metadata}) for hit in hits],
                    "answer_count": len(hits),
                    "answer_distances": [measure.told(hit.distance) for hit in hits],
                }
                for hits in answers
            ]

        if call.payload.query is not None or not call.payload.records:
            vector = await self._descriptors.vector(collection, query_of(call))
            return enveloped(call, 200, (await found([vector]))[0])
        queries = call.payload.records
        if len(queries) > MAX_QUERIES or len(queries) * k > MAX_K:
            raise InvalidInput(f"records: at most {MAX_QUERIES} queries in one call, their k {MAX_K} in all")
        outcomes = await each(queries, lambda query: self._descriptors.vector(collection, query))
        usable = [one for one in outcomes if not isinstance(one, ApplianceError)]
        searched = iter(await found(usable) if usable else ())
        refused = [one for one in outcomes if isinstance(one, ApplianceError)]
        answers = [
            skipped(call, query, one)
            if isinstance(one, ApplianceError)
            else query.fields | next(searched) | {"_status": status(200, TEXTS[200], call.id)}
            for query, one in zip(queries, outcomes, strict=True)
        ]
        return enveloped(call, found_code(200, usable, refused), {"answers": answers})

    async def visual_rank_records(self, call: Call) -> Answer:
        """The given records (images, or stored ones by `_id`) in order of their distance to the query."""
        collection = await self._descriptors.collection(call)
        projection = wanted(call.payload, ID_ONLY)
        records = call.payload.records
        if not records:
            raise InvalidInput("records: at least one is expected")
        if sum(record.has_image or "_id" not in record.fields for record in records) > MAX_IMAGES:
            raise InvalidInput(f"records: at most {MAX_IMAGES} with images in one call")
        query = await self._descriptors.vector(collection, query_of(call))
        outcomes = await each(records, lambda record: self._descriptors.vector(collection, record))
        usable = [
            (record, vector)
            for record, vector in zip(records, outcomes, strict=True)
            if not isinstance(vector, ApplianceError)
        ]
        with call.measures.stage("search"):
            order, distances = rank(query, [vector for _, vector in usable])
        told = self._descriptors.measure(collection).told
        answers = [projection.of(usable[position][0].fields) for position in order]
        left_out = [
            skipped(call, record, outcome)
            for record, outcome in zip(records, outcomes, strict=True)
            if isinstance(outcome, ApplianceError)
        ]
        more = {"answer_distances": [told(distance) for distance in distances]}
        return answer(call, found_code(200, answers, left_out), answers, left_out, **more)

    async def near_duplicates(self, call: Call) -> Answer:
        """What is nearer than `max_distance`: to the `query_record`, or, page by page, to each record."""
        collection = await self._descriptors.collection(call)
        projection = wanted(call.payload, ID_ONLY)
        k = call.payload.integer("k", 10, 1, MAX_K - 1)
        measure = self._descriptors.measure(collection)
        limit = call.payload.number("max_distance", measure.near, measure.whole)
        near = _Near(collection, k, measure, limit, filter_of(call.payload), call.payload.flag("exact"))
        if call.payload.query is not None:
            query = await self._descriptors.vector(collection, call.payload.query)
            own = None if call.payload.query.has_image else call.payload.query.fields.get("_id")
            with call.measures.stage("search"):
                (hits,) = await near.to([(query, own)], metadata=not projection.id_only)
            answers = [projection.of({"_id": hit.id, **hit.metadata}) for hit in hits]
            distances = [measure.told(hit.distance) for hit in hits]
            return answer(call, 200, answers, answer_distances=distances)
        size = integer(call.query.get("size"), "size", 100, 1, 1000)
        position = decode_cursor(collection, call.query.get("cursor", ""))
        with call.measures.stage("search"):
            records, following = await collection.after(position, size, near.condition)
            vectors = await collection.vectors([record.id for record in records])
            answers = []
            pairs = [
                (record, vector)
                for record, vector in zip(records, vectors, strict=True)
                if vector is not None
            ]
            for some in _together(pairs):
                queries = [(vector, record.id) for record, vector in some]
                for (record, _), hits in zip(some, await near.to(queries, metadata=False), strict=True):
                    if hits:
                        found = [{"_id": hit.id, "_distance": measure.told(hit.distance)} for hit in hits]
                        answers.append(shown(record, projection) | {"_near_duplicates": found})
                await asyncio.sleep(0)  # a scan of a small collection does not let go of the loop
        return answer(call, 200, answers, **_following(call, collection, size, following))

    async def random(self, call: Call) -> Answer:
        """`count` different records, each with the same chance."""
        collection = await self._descriptors.collection(call)
        projection = wanted(call.payload, ID_ONLY)
        count = call.payload.integer("count", 10, 1, MAX_K)
        with call.measures.stage("search"):
            records = await collection.sample(count, filter_of(call.payload), self._draw)
        return answer(call, 200, [shown(record, projection) for record in records])

    async def all_records(self, call: Call) -> Answer:
        """All that match `filter`, or a page: by `size` and `page` or, stable under writes, by `cursor`.

        `next` is there only while another page follows.
        """
        collection = await self._descriptors.collection(call)
        projection = wanted(call.payload, ID_ONLY)
        condition = filter_of(call.payload)
        if "cursor" in call.query:
            size = integer(call.query.get("size"), "size", 1000, 1, MAX_PAGE)
            position = decode_cursor(collection, call.query["cursor"])
            with call.measures.stage("search"):
                records, following = await collection.after(position, size, condition)
            answers = [shown(record, projection) for record in records]
            return answer(call, 200, answers, **_following(call, collection, size, following))
        if "size" not in call.query and "page" not in call.query:
            with call.measures.stage("search"):
                everything = await collection.all(condition)
            return answer(call, 200, [shown(record, projection) for record in everything])
        if condition is not None:
            raise InvalidInput("filter: not together with page; with cursor it may be")
        size = integer(call.query.get("size"), "size", 1000, 1, MAX_PAGE)
        page = integer(call.query.get("page"), "page", 1, 1, 1 << 31)
        with call.measures.stage("search"):
            records, has_next = await collection.page(page, size)
        more: dict[str, Any] = {"next": f"{call.path}?size={size}&page={page + 1}"} if has_next else {}
        return answer(call, 200, [shown(record, projection) for record in records], **more)

    async def ping(self, call: Call) -> Answer:
        """Whether search answers; with a collection named, whether the token may read that one."""
        count: dict[str, object] = {}
        if collection_id(call) is not None:
            count["collection_size"] = (await self._descriptors.collection(call)).count
        info = "visual search of the appliance"
        about = {"info": info, "_service_info": {"_name": "Appliance", "_info": info}, **count}
        return enveloped(call, 200, about)


@dataclass(frozen=True)
class _Near:
    """How near is near: at most `k` records that match, within `limit`."""

    collection: OpenCollection
    k: int
    measure: Measure
    limit: float
    condition: Filter | None
    exactly: bool

    async def to(self, queries: Sequence[tuple[Vector, object]], *, metadata: bool) -> list[list[Hit]]:
        """For each vector the near ones but for the record with the id beside it, nearest first."""
        vectors = [vector for vector, _ in queries]
        found = await self.collection.search_many(
            vectors, self.k + 1, self.condition, metadata=metadata, exactly=self.exactly
        )
        return [
            [hit for hit in hits if hit.id != own and self.measure.told(hit.distance) <= self.limit][: self.k]
            for hits, (_, own) in zip(found, queries, strict=True)
        ]


def _together(pairs: Sequence[T]) -> Iterator[Sequence[T]]:
    for low in range(0, len(pairs), QUERIES_TOGETHER):
        yield pairs[low : low + QUERIES_TOGETHER]


def _following(call: Call, collection: OpenCollection, size: int, label: int | None) -> dict[str, Any]:
    """`next` while another page follows."""
    if label is None:
        return {}
    return {"next": f"{call.path}?size={size}&cursor={encode_cursor(collection, label)}"}
