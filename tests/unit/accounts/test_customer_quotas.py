"""Quotas: what is configured, what an operator sets for one customer, and who hears of it."""

import pytest

from appliance.accounts.audit import Event
from appliance.accounts.customers import CustomerId
from appliance.accounts.quotas import Quota, Quotas, defaults
from appliance.config import Config, Datasets, Requests, Search
from appliance.errors import InvalidInput, NotFound
from tests.unit.accounts.conftest import Accounts

DEFAULTS = Quota(images=10, collections=2, vectors=30, bytes=1000, jobs=4)


def test_what_is_configured_is_everybodys() -> None:
    settings = Config(
        search=Search(max_collections=2, max_records=30),
        datasets=Datasets(max_images=10, max_bytes=1000),
        requests=Requests(max_jobs=4),
    )
    assert defaults(settings) == DEFAULTS


async def test_what_is_set_for_one_is_its_own_now_and_after_a_restart(accounts: Accounts) -> None:
    first = (await accounts.customers.add(accounts.actor, "first")).id
    other = (await accounts.customers.add(accounts.actor, "other")).id
    async with Quotas(accounts.ledger, DEFAULTS, accounts.clock) as quotas:
        expected = Quota(images=10, collections=2, vectors=5, bytes=1000, jobs=0)
        assert await quotas.limit(accounts.actor, first, {"vectors": 5, "jobs": 0}) == expected
        assert quotas.of(first) == expected
        assert quotas.of(other) == DEFAULTS
    raised = Quota(images=11, collections=2, vectors=30, bytes=1000, jobs=4)
    async with Quotas(accounts.ledger, raised, accounts.clock) as quotas:
        assert quotas.of(first) == Quota(images=11, collections=2, vectors=5, bytes=1000, jobs=0)
        assert await quotas.limit(accounts.actor, first, {"vectors": None, "jobs": None}) == raised
        assert quotas.of(first) == quotas.of(other) == raised
    rows = [entry for entry in await accounts.log() if entry.event is Event.CUSTOMER_LIMIT]
    assert [(row.customer, row.details) for row in rows] == [
        (first, {"vectors": 5, "jobs": 0}),
        (first, {"vectors": None, "jobs": None}),
    ]


async def test_what_cannot_be_set_changes_nothing(accounts: Accounts) -> None:
    customer = (await accounts.customers.add(accounts.actor, "first")).id
    async with Quotas(accounts.ledger, DEFAULTS, accounts.clock) as quotas:
        for bad in ({"images": -1}, {"images": 1 << 51}, {"name": 1}, {"images": 1, "jobs": -1}):
            with pytest.raises(InvalidInput):
                await quotas.limit(accounts.actor, customer, bad)
        with pytest.raises(NotFound):
            await quotas.limit(accounts.actor, CustomerId("nobody"), {"images": 1})
        assert quotas.of(customer) == DEFAULTS
    assert Event.CUSTOMER_LIMIT not in [entry.event for entry in await accounts.log()]
