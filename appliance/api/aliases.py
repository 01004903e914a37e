"""`/appliance/v1/aliases`: names that stand for a collection wherever the wire takes a collection's id."""

import msgspec

from appliance.accounts.customers import Customers
from appliance.api.answers import Answer, moment
from appliance.api.call import Call
from appliance.api.management import named
from appliance.search.aliases import Alias
from appliance.search.aliases import Aliases as Names
from appliance.search.records import CollectionId


class Pointed(msgspec.Struct, forbid_unknown_fields=True):
    collection: str


class Aliases:
    """The handlers."""

    def __init__(self, customers: Customers, aliases: Names) -> None:
        self._customers = customers
        self._aliases = aliases

    async def point(self, call: Call) -> Answer:
        """Create an alias, or have it go over to another collection."""
        collection = CollectionId(call.document(Pointed).collection)
        owner, name = call.principal.customer, call.parameters["name"]
        return Answer(_alias(await self._aliases.point(call.actor, owner, name, collection)))

    async def list(self, call: Call) -> Answer:
        aliases = self._aliases.list(await call.listed(self._customers))
        return Answer({"aliases": [_alias(alias) for alias in aliases]})

    async def remove(self, call: Call) -> Answer:
        """The collection stays."""
        owner = named(call.owner(call.query.get("customer")))
        await self._aliases.remove(call.actor, owner, call.parameters["name"])
        return Answer(status=204)


def _alias(alias: Alias) -> dict[str, object]:
    return {
        "id": alias.id,
        "customer": alias.customer,
        "name": alias.name,
        "collection": alias.collection,
        "changed_at": moment(alias.changed_at),
    }
