"""`/appliance/v1`: customers, tokens and bundles, as REST.

A customer's token with the scope `admin` manages what is its own; an operator manages everything and names
the customer, in the body or the query.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial

import msgspec

from appliance.accounts.customers import Customer, CustomerId, Customers
from appliance.accounts.rights import parse_scopes
from appliance.accounts.token_rows import Token
from appliance.accounts.tokens import IssuedToken, Tokens
from appliance.api.answers import Answer, moment, unix_milliseconds
from appliance.api.call import Call
from appliance.api.fields import truth
from appliance.asynchronous.webhooks import Webhooks
from appliance.errors import Conflict, InvalidInput, NotFound
from appliance.recognition import selftest
from appliance.recognition.bundles import Bundle, Bundles, Damaged, TaskId
from appliance.recognition.decoders import Decoders
from appliance.recognition.engine import Engine
from appliance.recognition.heads import Heads
from appliance.recognition.trial import Trial
from appliance.search.collections import CollectionId, Collections


class NewCustomer(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class NewToken(msgspec.Struct, forbid_unknown_fields=True):
    customer: str | None = None
    scopes: list[str] | None = None
    expires_at: datetime | None = None
    collections: list[str] | None = None
    tasks: list[str] | None = None
    client_subject: str | None = None
    recovery: bool = False


class Rotation(msgspec.Struct, forbid_unknown_fields=True):
    overlap_seconds: int = 86400


class Management:
    """The handlers of `/appliance/v1`."""

    def __init__(
        self,
        *,
        customers: Customers,
        tokens: Tokens,
        collections: Collections,
        bundles: Bundles,
        decoders: Decoders | None,
        engine: Engine | None,
        heads: Heads,
        webhooks: Webhooks,
        status: Callable[[], Awaitable[dict[str, object]]],
    ) -> None:
        self._customers = customers
        self._tokens = tokens
        self._collections = collections
        self._bundles = bundles
        self._decoders = decoders
        self._engine = engine
        self._heads = heads
        self._webhooks = webhooks
        self._status = status

    async def add_customer(self, call: Call) -> Answer:
        asked = call.document(NewCustomer)
        return Answer(_customer(await self._customers.add(call.actor, asked.name)), 201)

    async def list_customers(self, call: Call) -> Answer:
        own = call.principal.customer
        customers = await self._customers.list() if own is None else [await self._customers.get(own)]
        return Answer({"customers": [_customer(customer) for customer in customers]})

    async def get_customer(self, call: Call) -> Answer:
        asked = CustomerId(call.parameters["id"])
        return Answer(_customer(await self._customers.get(call.owner(asked) or asked)))

    async def suspend_customer(self, call: Call) -> Answer:
        """None of its tokens and links is taken from now on."""
        return Answer(_customer(await self._customers.suspend(call.actor, CustomerId(call.parameters["id"]))))

    async def resume_customer(self, call: Call) -> Answer:
        """Its tokens and links are taken again, and its webhooks called that were due meanwhile."""
        resumed = await self._customers.resume(call.actor, CustomerId(call.parameters["id"]))
        self._webhooks.wake()
        return Answer(_customer(resumed))

    async def add_token(self, call: Call) -> Answer:
        asked = call.document(NewToken)
        owner = named(call.owner(asked.customer))
        scopes = None if asked.scopes is None else parse_scopes(asked.scopes)
        for collection in set(asked.collections or ()):
            await self._collections.get(owner, CollectionId(collection))
        for task in set(asked.tasks or ()):
            await self._check_task(owner, TaskId(task))
        issued = await self._tokens.add(
            call.actor,
            owner,
            scopes,
            unix_milliseconds(asked.expires_at, "expires_at"),
            collections=asked.collections,
            tasks=asked.tasks,
            client_subject=asked.client_subject,
            recovery=asked.recovery,
        )
        return Answer(_issued(issued), 201)

    async def _check_task(self, owner: CustomerId, task: TaskId) -> None:
        """Raises NotFound where nothing answers it: a mistyped id would shut the token out."""
        installed = any(bundle.task == task for bundle in self._bundles.catalogue(owner).list())
        if not installed and await self._heads.find(owner, task, None) is None:
            raise NotFound("no such task")

    async def list_tokens(self, call: Call) -> Answer:
        tokens = await self._tokens.list(await call.listed(self._customers))
        return Answer({"tokens": [_token(token) for token in tokens]})

    async def rotate_token(self, call: Call) -> Answer:
        asked = call.document(Rotation)
        owner = call.owner(call.query.get("customer"))
        token = call.parameters["id"]
        return Answer(
            _issued(await self._tokens.rotate(call.actor, owner, token, asked.overlap_seconds)), 201
        )

    async def revoke_token(self, call: Call) -> Answer:
        owner = call.owner(call.query.get("customer"))
        await self._tokens.revoke(call.actor, owner, call.parameters["id"])
        return Answer(status=204)

    async def install_bundle(self, call: Call) -> Answer:
        activate = truth(call, "activate") is not False
        customers = [CustomerId(one) for one in call.query.getall("customer", [])]
        for customer in customers:
            await self._customers.get(customer)
        bundle = await self._bundles.install(
            call.actor,
            call.payload.files,
            activate=activate,
            customers=customers or None,
            attempt=partial(self._attempt, call),
        )
        if self._engine is not None and self._decoders is not None:
            await selftest.serve(bundle, self._decoders, self._engine)
        return Answer(self._described(bundle), 201)

    async def _attempt(self, call: Call, bundle: Bundle) -> None:
        """A bundle that does not run here, or sees something else than its maker saw, is not installed.

        First in a trial: one that never ends, or takes all memory, must not do so where others are served.
        """
        with call.ending_with_client():
            async with Trial(bundle) as trial:
                if self._decoders is not None:
                    await selftest.check(bundle, self._decoders, trial)
        if self._engine is None or self._decoders is None:
            return  # the next start loads it, and has it see what its maker saw
        try:
            await self._engine.load(bundle)
            await selftest.check(bundle, self._decoders, self._engine)
        finally:
            await self._engine.unload(bundle)

    async def activate_bundle(self, call: Call) -> Answer:
        return Answer(self._described(await self._bundles.activate(call.actor, *_version(call))))

    async def remove_bundle(self, call: Call) -> Answer:
        name, version = _version(call)
        pin = f"{name}@{version}"
        users = [one for one in await self._collections.list(None) if one.backbone == pin]
        if users:
            raise Conflict(f"{len(users)} collections hold vectors of {pin}: remove them first")
        unload = None if self._engine is None else self._engine.unload
        await self._bundles.remove(call.actor, name, version, unload=unload)
        return Answer(status=204)

    async def verify_bundles(self, _: Call) -> Answer:
        """Every file of every bundle is read again."""
        verified = await self._bundles.verify()
        return Answer({"bundles": [self._described(one) | {"fault": fault} for one, fault in verified]})

    async def list_bundles(self, _: Call) -> Answer:
        """Each with its `fault`, as far as it is known without reading the files."""
        found = [self._described(one) | {"fault": self._fault(one)} for one in self._bundles.all()]
        return Answer({"bundles": found})

    def _described(self, bundle: Bundle | Damaged) -> dict[str, object]:
        return {
            "name": bundle.name,
            "version": bundle.version,
            "kind": bundle.kind,
            "task": bundle.task,
            "routes": bundle.routes,
            "shadowed": self._bundles.catalogue().shadowed(bundle),
            "active": bundle.active,
            "customers": None if bundle.customers is None else sorted(bundle.customers),
            "sha256": bundle.sha256 if isinstance(bundle, Bundle) else None,
        }

    def _fault(self, bundle: Bundle | Damaged) -> str | None:
        if isinstance(bundle, Damaged):
            return bundle.fault
        return None if self._engine is None else self._engine.fault(bundle)

    async def webhook_secret(self, call: Call) -> Answer:
        """What a customer verifies the signatures of its webhooks with."""
        owner = named(call.owner(call.query.get("customer")))
        await self._customers.get(owner)
        return Answer({"customer": owner, "secret": self._webhooks.secret(owner)})

    async def status(self, _: Call) -> Answer:
        return Answer(await self._status())


def named(owner: CustomerId | None) -> CustomerId:
    """The customer whom a call is about. Raises InvalidInput where an operator names none."""
    if owner is None:
        raise InvalidInput("customer: an operator names the customer")
    return owner


def _customer(customer: Customer) -> dict[str, object]:
    return {
        "id": customer.id,
        "name": customer.name,
        "created_at": moment(customer.created_at),
        "suspended_at": moment(customer.suspended_at),
        "claimed_at": moment(customer.claimed_at),
    }


def _issued(issued: IssuedToken) -> dict[str, object]:
    return {"id": issued.id, "token": issued.token}


def _token(token: Token) -> dict[str, object]:
    return {
        "id": token.id,
        "customer": token.customer,
        "scopes": sorted(token.scopes),
        "collections": _sorted(token.rights.collections),
        "tasks": _sorted(token.rights.tasks),
        "client_subject": token.rights.client_subject,
        "created_at": moment(token.created_at),
        "valid_from": moment(token.valid_from),
        "expires_at": moment(token.expires_at),
        "revoked_at": moment(token.revoked_at),
        "last_used_at": moment(token.last_used_at),
        "holder": token.holder,
    }


def _sorted(ids: frozenset[str] | None) -> list[str] | None:
    return None if ids is None else sorted(ids)


def _version(call: Call) -> tuple[str, str]:
    return call.parameters["name"], call.parameters["version"]
