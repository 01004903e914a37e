"""`/appliance/v1/datasets`: workspaces as the cloud does not have them, each with a key of its own."""

from typing import Literal

import msgspec

from appliance.accounts.customers import CustomerId, Customers
from appliance.api.answers import Answer, moment
from appliance.api.call import Call
from appliance.datasets.catalogue import Datasets as Catalogue
from appliance.datasets.records import Dataset
from appliance.errors import InvalidInput, NotInstalled

AWAY = "stored images are within reach of the daemon alone: start it"
"""Why a process that only manages serves nothing of them."""


class NewDataset(msgspec.Struct, forbid_unknown_fields=True):
    """What a dataset is made with; everything but the name has a default."""

    name: str
    visibility: Literal["link", "public", "restricted"] = "link"
    keep_metadata: bool = False
    retention_days: int | None = None


class Change(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be different; what is left out stays."""

    visibility: Literal["link", "public", "restricted"] | None = None
    retention_days: int | msgspec.UnsetType | None = msgspec.UNSET
    end_links: bool = False


class Datasets:
    """The handlers. A customer's token reaches its own datasets, and nobody else's exist for it."""

    def __init__(self, catalogue: Catalogue | None, customers: Customers) -> None:
        self._open = catalogue
        self._customers = customers

    async def add(self, call: Call) -> Answer:
        new = call.document(NewDataset)
        dataset = await self._catalogue.add(
            call.actor,
            _owner(call),
            new.name,
            visibility=new.visibility,
            keep_metadata=new.keep_metadata,
            retention_days=new.retention_days,
        )
        return Answer(_document(dataset), status=201)

    async def list(self, call: Call) -> Answer:
        """A customer's datasets; for an operator everybody's, without names: those are customers' words."""
        owner = await call.listed(self._customers)
        if call.principal.customer is not None:
            await self._catalogue.default(call.principal.customer)
        owners = [customer.id for customer in await self._customers.list()] if owner is None else [owner]
        found = [dataset for one in owners for dataset in await self._catalogue.list(one)]
        if call.principal.customer is None:
            hidden = {"name": None}
            return Answer(
                {"datasets": [_document(one) | hidden | {"customer": one.customer} for one in found]}
            )
        return Answer({"datasets": [_document(dataset) for dataset in found]})

    async def get(self, call: Call) -> Answer:
        return Answer(_document(await self._named(call)))

    async def change(self, call: Call) -> Answer:
        wanted = call.document(Change)
        dataset = await self._named(call)
        if wanted.end_links:
            await self._catalogue.end_links(call.actor, dataset)
        retention = wanted.retention_days
        if wanted.visibility is not None or retention is not msgspec.UNSET:
            dataset = await self._catalogue.change(
                call.actor,
                dataset,
                visibility=wanted.visibility,
                retention_days=None if retention is msgspec.UNSET else retention,
                forever=retention is None,
            )
        elif not wanted.end_links:
            raise InvalidInput("visibility, retention_days or end_links: one of them is expected")
        return Answer(_document(dataset))

    async def erase(self, call: Call) -> Answer:
        await self._catalogue.erase(call.actor, await self._named(call))
        return Answer(status=204)

    @property
    def _catalogue(self) -> Catalogue:
        if self._open is None:
            raise NotInstalled(AWAY)
        return self._open

    async def _named(self, call: Call) -> Dataset:
        return await self._catalogue.get(_owner(call), call.parameters["id"])


def _owner(call: Call) -> CustomerId:
    """The token's own customer. Raises NotFound when the query names another one."""
    call.owner(call.query.get("customer"))
    return call.customer


def _document(dataset: Dataset) -> dict[str, object]:
    return {
        "id": dataset.workspace,
        "name": dataset.name or "Default",
        "is_default": dataset.name is None,
        "visibility": dataset.visibility,
        "keep_metadata": dataset.keep_metadata,
        "retention_days": dataset.retention_days,
        "created_at": moment(dataset.created_at),
        "images": dataset.images,
        "bytes": dataset.bytes,
    }
