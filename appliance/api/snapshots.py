"""`/appliance/v1/collections/{id}/snapshots`: collections as they were, to go back to or to fill others."""

import msgspec

from appliance.api.answers import Answer, moment
from appliance.api.call import Call
from appliance.api.collections import described
from appliance.search.collections import Collections
from appliance.search.snapshots import Snapshot


class Restored(msgspec.Struct, forbid_unknown_fields=True):
    into: str | None = None


class Snapshots:
    """The handlers."""

    def __init__(self, collections: Collections) -> None:
        self._collections = collections
        self._snapshots = collections.snapshots

    async def add(self, call: Call) -> Answer:
        made = await self._snapshots.add(call.actor, call.principal.customer, call.collection)
        return Answer(_document(made), 201)

    async def list(self, call: Call) -> Answer:
        found = await self._snapshots.list(call.principal.customer, call.collection)
        return Answer({"snapshots": [_document(one) for one in found]})

    async def remove(self, call: Call) -> Answer:
        """The collection stays as it is."""
        owner, snapshot = call.principal.customer, call.parameters["snapshot"]
        await self._snapshots.remove(call.actor, owner, call.collection, snapshot)
        return Answer(status=204)

    async def restore(self, call: Call) -> Answer:
        """The collection with the records of then, or with `into` a new one of this name."""
        owner, collection, snapshot = call.principal.customer, call.collection, call.parameters["snapshot"]
        into = call.document(Restored).into
        if into is None:
            await self._snapshots.restore(call.actor, owner, collection, snapshot)
            return Answer(described(await self._collections.get(owner, collection)))
        made = await self._snapshots.restore_into(call.actor, owner, collection, snapshot, into)
        return Answer(described(await self._collections.get(owner, made)), 201)


def _document(snapshot: Snapshot) -> dict[str, object]:
    return {
        "id": snapshot.id,
        "collection": snapshot.collection,
        "created_at": moment(snapshot.created_at),
        "records": snapshot.records,
        "bytes": snapshot.bytes,
    }
