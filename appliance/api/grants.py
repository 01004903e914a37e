"""`/appliance/v1/grants`: which operator may see which images; and `images/{id}`, where one then sees them.

A customer opens, approves, denies and renews, with a token that has the scope admin; an operator asks, on the
operator socket, and either may end a grant.
"""

import asyncio

import msgspec

from appliance.accounts.customers import CustomerId, Customers
from appliance.accounts.grants import MAX_IMAGES, Access, Grant, GrantId
from appliance.accounts.grants import Grants as Register
from appliance.api.answers import Answer, moment
from appliance.api.call import Call
from appliance.api.datasets import AWAY
from appliance.api.files import answered
from appliance.datasets import permits
from appliance.datasets.images import Images
from appliance.errors import Conflict, InvalidInput, NotInstalled

_HOURS = 8  # of a working day


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """What an operator asks to see."""

    customer: str
    reason: str
    dataset: str | None = None
    images: list[str] = []
    hours: int = _HOURS


class Opened(msgspec.Struct, forbid_unknown_fields=True):
    """What a customer lets an operator see unasked."""

    operator: str
    reason: str
    dataset: str | None = None
    images: list[str] = []
    hours: int = _HOURS
    customer: str | None = None


class Renewal(msgspec.Struct, forbid_unknown_fields=True):
    """For how long anew; as before when it is left out."""

    hours: int | None = None


class Grants:
    """The handlers. A process that only manages has no images: there nothing is asked for or seen."""

    def __init__(self, register: Register, customers: Customers, images: Images | None) -> None:
        self._register = register
        self._customers = customers
        self._open = images

    async def request(self, call: Call) -> Answer:
        asked = call.document(Asked)
        customer = (await self._customers.get(CustomerId(asked.customer))).id
        operator = str(call.principal.uid)
        access = await self._access(customer, operator, asked)
        return Answer(_grant(await self._register.ask(call.actor, customer, access, asked.reason)), 201)

    async def open(self, call: Call) -> Answer:
        asked = call.document(Opened)
        call.owner(asked.customer)
        access = await self._access(call.customer, asked.operator, asked)
        opened = await self._register.open(call.actor, call.customer, access, asked.reason)
        return Answer(_grant(opened), 201)

    async def list(self, call: Call) -> Answer:
        """To an operator the reasons of its own grants alone: they are people's words."""
        grants = await self._register.list(await call.listed(self._customers))
        reader = None if call.principal.customer is not None else str(call.principal.uid)
        shown = [_grant(one, reason=reader in {None, one.access.operator}) for one in grants]
        return Answer({"grants": shown})

    async def approve(self, call: Call) -> Answer:
        call.owner(call.query.get("customer"))
        return Answer(_grant(await self._register.approve(call.actor, call.customer, _named(call))))

    async def deny(self, call: Call) -> Answer:
        call.owner(call.query.get("customer"))
        return Answer(_grant(await self._register.deny(call.actor, call.customer, _named(call))))

    async def renew(self, call: Call) -> Answer:
        call.owner(call.query.get("customer"))
        hours = call.document(Renewal).hours
        renewed = await self._register.renew(call.actor, call.customer, _named(call), hours)
        return Answer(_grant(renewed), 201)

    async def revoke(self, call: Call) -> Answer:
        owner = call.owner(call.query.get("customer"))
        await self._register.revoke(call.actor, owner, _named(call))
        return Answer(status=204)

    async def see(self, call: Call) -> Answer:
        """One image, for the operator to whom its customer has granted that."""
        store = self._images.store
        image = await store.get(None, call.parameters["id"])
        dataset = await self._images.datasets.get(image.customer, image.dataset)
        opened = await store.open(await permits.of_grant(self._register, call.actor, dataset, image))
        try:
            return answered(call, opened)
        except BaseException:
            opened.close()
            raise

    async def _access(self, customer: CustomerId, operator: str, asked: Asked | Opened) -> Access:
        """What is asked for, of this customer. Raises NotFound for another's dataset or image."""
        images = tuple(dict.fromkeys(asked.images))
        if len(images) > MAX_IMAGES:  # before each is looked for
            raise InvalidInput(f"images: at most {MAX_IMAGES}; a grant may be for a whole dataset")
        found = [await self._images.store.get(customer, image) for image in images]
        named = {image.dataset for image in found} | ({asked.dataset} if asked.dataset is not None else set())
        datasets = await asyncio.gather(*(self._images.datasets.get(customer, one) for one in named))
        if any(dataset.visibility == "restricted" for dataset in datasets):
            raise Conflict(
                "images of a restricted dataset are opened by nobody but its customer: set its visibility to"
                " link first"
            )
        dataset = None if asked.dataset is None else datasets[0].id
        return Access(operator, asked.hours, dataset, images)

    @property
    def _images(self) -> Images:
        if self._open is None:
            raise NotInstalled(AWAY)
        return self._open


def _named(call: Call) -> GrantId:
    return GrantId(call.parameters["id"])


def _grant(grant: Grant, *, reason: bool = True) -> dict[str, object]:
    return {
        "id": grant.id,
        "customer": grant.customer,
        "state": grant.state,
        "operator": grant.access.operator,
        "dataset": grant.access.dataset,
        "images": list(grant.access.images),
        "reason": grant.reason if reason else None,
        "hours": grant.access.hours,
        "asked_by": grant.asked_by,
        "asked_at": moment(grant.asked_at),
        "approvals": list(grant.approvals),
        "opened_at": moment(grant.opened_at),
        "ends_at": moment(grant.ends_at),
    }
