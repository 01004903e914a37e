"""`/appliance/v1`: how much a customer has and may have, how fast tokens may ask, what operators allow."""

from dataclasses import asdict

import msgspec
from msgspec import UNSET, UnsetType

from appliance.accounts.customers import CustomerId, Customers
from appliance.accounts.quotas import Quotas
from appliance.accounts.tokens import Tokens
from appliance.api.answers import Answer
from appliance.api.asynchronous import Asynchronous
from appliance.api.call import Call
from appliance.api.management import named
from appliance.api.throttle import Throttle
from appliance.datasets.catalogue import Datasets
from appliance.search.collections import Collections

Limit = int | None | UnsetType


class NewQuota(msgspec.Struct, forbid_unknown_fields=True):
    images: Limit = UNSET
    collections: Limit = UNSET
    vectors: Limit = UNSET
    bytes: Limit = UNSET
    jobs: Limit = UNSET


class NewRates(msgspec.Struct, forbid_unknown_fields=True):
    requests_per_minute: Limit = UNSET
    bytes_per_minute: Limit = UNSET


class Limits:
    """The handlers."""

    def __init__(  # noqa: PLR0917 -- the parts that count
        self,
        customers: Customers,
        tokens: Tokens,
        quotas: Quotas,
        throttle: Throttle,
        collections: Collections,
        datasets: Datasets | None,
        asynchronous: Asynchronous,
    ) -> None:
        self._customers = customers
        self._tokens = tokens
        self._quotas = quotas
        self._throttle = throttle
        self._collections = collections
        self._datasets = datasets
        self._asynchronous = asynchronous

    async def limit_customer(self, call: Call) -> Answer:
        """Set what a customer may have; null is what the configuration says."""
        customer = CustomerId(call.parameters["id"])
        most = msgspec.to_builtins(call.document(NewQuota))
        return Answer(asdict(await self._quotas.limit(call.actor, customer, most)))

    async def limit_token(self, call: Call) -> Answer:
        """Set how fast a token may ask; null is what the configuration says, 0 no limit."""
        most = msgspec.to_builtins(call.document(NewRates))
        rights = (await self._tokens.limit(call.actor, call.parameters["id"], most)).rights
        return Answer(
            {
                "requests_per_minute": rights.requests_per_minute,
                "bytes_per_minute": rights.bytes_per_minute,
            }
        )

    async def usage(self, call: Call) -> Answer:
        """What a customer has beside what it may have, and the rates of the token that asks.

        Raises Forbidden for a token with a list: all collections and tasks are counted.
        """
        call.check_unlisted()
        owner = named(call.owner(call.query.get("customer")))
        await self._customers.get(owner)
        collections, vectors = await self._collections.usage(owner)
        images, size = (None, None) if self._datasets is None else await self._datasets.usage(owner)
        used = {
            "images": images,
            "collections": collections,
            "vectors": vectors,
            "bytes": size,
            "jobs": self._asynchronous.jobs(owner),
        }
        requests_per_minute, bytes_per_minute = self._throttle.rates(call.principal)
        return Answer(
            {
                "customer": owner,
                "quotas": {
                    kind: {"used": used[kind], "limit": most}
                    for kind, most in asdict(self._quotas.of(owner)).items()
                },
                "rates": {
                    "requests_per_minute": requests_per_minute or None,
                    "bytes_per_minute": bytes_per_minute or None,
                },
            }
        )
