"""`/appliance/v1/collections`: what search is about, as REST."""

from collections.abc import Sequence

import msgspec

from appliance.accounts.customers import CustomerId, Customers
from appliance.api.answers import Answer, moment
from appliance.api.call import Call
from appliance.api.management import named
from appliance.api.payload import integer
from appliance.errors import InvalidInput, NotFound
from appliance.recognition import hashing
from appliance.recognition.bundles import Bundles
from appliance.search.collections import Collections as Shelf
from appliance.search.records import RECALL, Collection, CollectionId, check_recall

METRIC = "cosine"

MAX_PAGE = 1000


class NewCollection(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    customer: str | None = None
    backbone: str | None = None
    metric: str | None = None
    recall: float | None = None


class Changed(msgspec.Struct, forbid_unknown_fields=True):
    name: str | None = None
    recall: float | None = None


class Collections:
    """The handlers of `/appliance/v1/collections`."""

    def __init__(self, customers: Customers, collections: Shelf, bundles: Bundles) -> None:
        self._customers = customers
        self._collections = collections
        self._bundles = bundles

    async def add(self, call: Call) -> Answer:
        asked = call.document(NewCollection)
        owner = named(call.owner(asked.customer))
        pin, dim = self._pin(asked.backbone)
        if asked.metric not in {None, METRIC}:
            raise InvalidInput(
                f"metric: {METRIC} is what there is; embeddings have length 1, so that by euclidean distance"
                " and by inner product the order is the same"
            )
        recall = RECALL if asked.recall is None else asked.recall
        made = await self._collections.add(call.actor, owner, asked.name, pin, dim, recall=recall)
        return Answer(described(made), 201)

    async def list(self, call: Call) -> Answer:
        """All, or a page: `limit` of them after the one `after`; `next` is the `after` of the next page.

        With `name` the one of this name, if there is one.
        """
        owner = await call.listed(self._customers)
        if (name := call.query.get("name")) is not None:
            return await self._named(owner, name)
        limit, after = call.query.get("limit"), call.query.get("after")
        size = None if limit is None else integer(limit, "limit", MAX_PAGE, 1, MAX_PAGE)
        found = await self._collections.list(
            owner,
            after=None if after is None else CollectionId(after),
            limit=None if size is None else size + 1,
        )
        page = found[:size]
        return _listing(page, page[-1].id if len(found) > len(page) else None)

    async def get(self, call: Call) -> Answer:
        return Answer(described(await self._collections.get(call.principal.customer, call.collection)))

    async def change(self, call: Call) -> Answer:
        """Its name, its recall, or both."""
        asked = call.document(Changed)
        owner, identifier = call.principal.customer, call.collection
        if asked.name is None and asked.recall is None:
            raise InvalidInput("name or recall: one of them is expected")
        if asked.recall is not None:
            check_recall(asked.recall)  # before the name is changed
        if asked.name is not None:
            await self._collections.rename(call.actor, owner, identifier, asked.name)
        if asked.recall is not None:
            await self._collections.aim(call.actor, owner, identifier, asked.recall)
        return Answer(described(await self._collections.get(owner, identifier)))

    async def empty(self, call: Call) -> Answer:
        """All records go; id, name and backbone stay."""
        return Answer(
            described(await self._collections.empty(call.actor, call.principal.customer, call.collection))
        )

    async def remove(self, call: Call) -> Answer:
        await self._collections.remove(call.actor, call.principal.customer, call.collection)
        return Answer(status=204)

    async def stats(self, call: Call) -> Answer:
        """What is in a collection and how it is searched; loads it if it is not in memory."""
        opened = await self._collections.open(call.principal.customer, call.collection)
        searchable, graphed, sealing = opened.count - opened.damaged, opened.graphed, opened.sealing
        return Answer(
            {
                "count": opened.count,
                "damaged": opened.damaged,
                "dim": opened.collection.dim,
                "backbone": opened.collection.backbone,
                "graph": graphed is not None,
                "graph_records": graphed or 0,
                "graph_share": round(graphed / searchable, 4) if graphed and searchable else 0.0,
                "segments": [
                    {"records": records, "dead_share": round(dead / records, 4)}
                    for records, dead in sealing.segments
                ],
                "tail_records": sealing.tail,
                "recall": opened.collection.recall,
                "ef": sealing.tuned and sealing.tuned.ef,
                "measured_recall": sealing.tuned and round(sealing.tuned.recall, 4),
            }
        )

    async def _named(self, owner: CustomerId | None, name: str) -> Answer:
        if owner is None:
            raise InvalidInput("name: customer is expected as well, as names are each customer's own")
        try:
            return _listing([await self._collections.find(owner, name)])
        except NotFound:
            return _listing([])

    def _pin(self, wanted: str | None) -> tuple[str, int]:
        """What makes the vectors of a new collection, and how wide they are."""
        if wanted in {"phash", hashing.PIN}:
            return hashing.PIN, hashing.BITS
        backbone = self._bundles.backbone(wanted)
        return backbone.pin, backbone.outputs["embedding"][-1]


def _listing(page: Sequence[Collection], following: CollectionId | None = None) -> Answer:
    return Answer({"collections": [described(one) for one in page], "next": following})


def described(collection: Collection) -> dict[str, object]:
    """A collection as answers have it."""
    return {
        "id": collection.id,
        "customer": collection.customer,
        "name": collection.name,
        "backbone": collection.backbone,
        "dim": collection.dim,
        "metric": METRIC,
        "recall": collection.recall,
        "created_at": moment(collection.created_at),
        "count": collection.count,
    }
