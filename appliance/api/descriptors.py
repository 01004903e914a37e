"""Where search gets its vectors: the collection that a call is about, and what it holds its images as."""

from dataclasses import dataclass

import numpy as np

from appliance.accounts.customers import CustomerId
from appliance.api.call import Call
from appliance.api.payload import Record
from appliance.api.similarity_answers import TEXTS
from appliance.api.vision import Upright, Vector, Vision
from appliance.errors import Conflict, InvalidInput, NotFound, NotInstalled
from appliance.recognition import hashing
from appliance.recognition.bundles import Bundle
from appliance.search.collections import Collections, OpenCollection


@dataclass(frozen=True)
class Measure:
    """How distances of a collection are told: `whole` for 1 - cosine = 2, in whole numbers or not.

    `near` is the largest one between near duplicates, where a caller does not say.
    """

    whole: int
    near: float

    def told(self, distance: float) -> float:
        """A distance of search as callers are told it."""
        return distance if self.whole == COSINE.whole else round(distance * self.whole / 2)


COSINE = Measure(2, 0.05)
BITS = Measure(hashing.BITS, 10)
"""How many bits of two hashes differ."""


class Descriptors:
    """Opens collections for calls, and makes vectors of images as each collection has them."""

    def __init__(self, collections: Collections, vision: Vision) -> None:
        self._collections = collections
        self._vision = vision

    async def collection(self, call: Call) -> OpenCollection:
        """The collection that a call names, by its id or an alias. Raises InvalidInput for none, NotFound."""
        named = collection_id(call)
        if named is None:
            raise InvalidInput("collection-id: the header is expected")
        if not named.isascii():  # bytes of a header that are no UTF-8 arrive as what no id can hold
            raise NotFound("no such collection")
        alias = self._collections.aliases.find(call.customer, named)
        call.check_collection(named if alias is None else alias.collection)
        return await self._collections.named(call.customer, named)

    def check(self, collection: OpenCollection) -> None:
        """Raises Conflict where no vector for this collection can be made now, NotInstalled."""
        if collection.collection.backbone != hashing.PIN:
            self._backbone(collection)

    def measure(self, collection: OpenCollection) -> Measure:
        """How distances in this collection are told."""
        return BITS if collection.collection.backbone == hashing.PIN else COSINE

    async def embed(self, collection: OpenCollection, record: Record) -> tuple[Vector, Upright]:
        """The vector of a record's image, which the record gives away. Raises as `check` and `Vision`."""
        if collection.collection.backbone == hashing.PIN:
            bits, decoded = await self.hash(record, collection.collection.customer)
            return hashing.vector(bits), decoded
        return await self._vision.of(collection.collection.customer).embed(self._backbone(collection), record)

    async def hash(self, record: Record, customer: CustomerId) -> tuple[hashing.Bits, Upright]:
        """The perceptual hash of a record's image, which the record gives away. Raises as `Vision`."""
        decoded = await self._vision.of(customer).decode(record, hashing.PREPROCESSING)
        return hashing.perceptual(np.asarray(decoded.pixels)), decoded

    async def vector(self, collection: OpenCollection, record: Record) -> Vector:
        """Of a record's image, or of the stored record with its `_id`. Raises NotFound, and as `embed`."""
        if record.has_image or "_id" not in record.fields:
            return (await self.embed(collection, record))[0]
        (vector,) = await collection.vectors([record.id])
        if vector is None:
            raise NotFound(TEXTS[404])
        return vector

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


def collection_id(call: Call) -> str | None:
    """What a call names its collection by, None when it names none. Raises InvalidInput."""
    # `collection-id` is today's header, `collection` the old clients'; some send it in the body as well.
    header = call.headers.get("collection-id") or call.headers.get("collection")
    return header or call.payload.text("collection_id")
