"""Customers: unique names, random ids, known at once and after a restart."""

from dataclasses import replace

import pytest

from appliance.accounts.audit import Event
from appliance.accounts.customers import CustomerId, Customers
from appliance.errors import Conflict, InvalidInput, NotFound
from tests.unit.accounts.conftest import Accounts


async def test_a_customer_is_known_listed_and_found(accounts: Accounts) -> None:
    added = await accounts.customers.add(accounts.actor, "Zoo")
    other = await accounts.customers.add(accounts.actor, "Atelier")
    assert added.created_at == 1_800_000_000_000
    assert accounts.customers.known(added.id)
    assert await accounts.customers.get(added.id) == added
    assert await accounts.customers.list() == [other, added]
    async with Customers(accounts.ledger, accounts.clock) as restarted:
        assert restarted.known(added.id)


async def test_nobody_else_is_known(accounts: Accounts) -> None:
    stranger = CustomerId("00000000-0000-4000-8000-000000000000")
    assert not accounts.customers.known(stranger)
    with pytest.raises(NotFound):
        await accounts.customers.get(stranger)


async def test_a_suspended_customer_is_known_as_such_also_after_a_restart(accounts: Accounts) -> None:
    added = await accounts.customers.add(accounts.actor, "Zoo")
    other = await accounts.customers.add(accounts.actor, "Atelier")
    suspended = await accounts.customers.suspend(accounts.actor, added.id)
    assert suspended.suspended_at == 1_800_000_000_000
    assert await accounts.customers.suspend(accounts.actor, added.id) == suspended  # and changes nothing
    assert await accounts.customers.get(added.id) == suspended
    async with Customers(accounts.ledger, accounts.clock) as restarted:
        assert (restarted.suspended(added.id), restarted.suspended(other.id)) == (True, False)
    for _ in range(2):
        resumed = await accounts.customers.resume(accounts.actor, added.id)
        assert resumed == replace(added, resumed_at=1_800_000_000_000)
    assert not accounts.customers.suspended(added.id)
    events = [entry.event for entry in await accounts.log()]
    assert events == [Event.CUSTOMER_ADD] * 2 + [Event.CUSTOMER_SUSPEND, Event.CUSTOMER_RESUME]
    stranger = CustomerId("00000000-0000-4000-8000-000000000000")
    for act in (accounts.customers.suspend, accounts.customers.resume):
        with pytest.raises(NotFound):
            await act(accounts.actor, stranger)


@pytest.mark.parametrize(("first", "second"), [("Zoo", "Zoo"), ("Zoo", " Zoo "), ("Café", "Cafe\u0301")])
async def test_a_name_is_taken_once(accounts: Accounts, first: str, second: str) -> None:
    added = await accounts.customers.add(accounts.actor, first)
    with pytest.raises(Conflict):
        await accounts.customers.add(accounts.actor, second)
    assert await accounts.customers.list() == [added]
    assert len(await accounts.log()) == 1


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x00b", "x" * 201, "\u202eevil", "\ud800"])
async def test_names_that_are_none(accounts: Accounts, name: str) -> None:
    with pytest.raises(InvalidInput, match="name"):
        await accounts.customers.add(accounts.actor, name)


async def test_the_audit_row_holds_the_id_and_not_the_name(accounts: Accounts) -> None:
    added = await accounts.customers.add(accounts.actor, "Zoo")
    (entry,) = await accounts.log()
    assert (entry.event, entry.customer, entry.subject) == (Event.CUSTOMER_ADD, added.id, added.id)
    assert entry.actor == accounts.actor
    assert "Zoo" not in repr(entry)
