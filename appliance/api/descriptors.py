"""Where search gets its vectors: the collection that a call is about, and what it holds its images as."""

from appliance.api.call import Call
from appliance.api.payload import Record
from appliance.api.similarity_answers import TEXTS
from appliance.api.vision import Seen, Vector, Vision
from appliance.errors import Conflict, InvalidInput, NotFound, NotInstalled
from appliance.recognition.bundles import Bundle
from appliance.search.collections import Collections, OpenCollection
from appliance.search.records import CollectionId


class Descriptors:
    """Opens collections for calls, and makes vectors of images as each collection has them."""

    def __init__(self, collections: Collections, vision: Vision) -> None:
        self._collections = collections
        self._vision = vision

    async def collection(self, call: Call) -> OpenCollection:
        """The collection that a call names. Raises InvalidInput when it names none, NotFound."""
        named = collection_id(call)
        if named is None:
            raise InvalidInput("collection-id: the header is expected")
        if not named.isascii():  # bytes of a header that are no UTF-8 arrive as what no id can hold
            raise NotFound("no such collection")
        return await self._collections.open(call.customer, CollectionId(named))

    def check(self, collection: OpenCollection) -> None:
        """Raises Conflict where no vector for this collection can be made now, NotInstalled."""
        self._backbone(collection)

    async def embed(self, collection: OpenCollection, record: Record) -> tuple[Vector, Seen]:
        """The vector of a record's image, which the record gives away. Raises as `check` and `Vision`."""
        return await self._vision.embed(self._backbone(collection), record)

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
    """The id of the collection that a call names, None when it names none. Raises InvalidInput."""
    # `collection-id` is today's header, `collection` the old clients'; some send it in the body as well.
    header = call.headers.get("collection-id") or call.headers.get("collection")
    return header or call.payload.text("collection_id")
