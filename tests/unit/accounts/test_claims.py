"""Whose tokens are: the operator's to issue until the customer uses one, then the customer's alone."""

import asyncio

import pytest

from appliance.accounts.audit import Actor, Event
from appliance.accounts.customers import CustomerId, Customers
from appliance.accounts.rights import ALL_SCOPES, Scope
from appliance.accounts.tokens import IssuedToken, Tokens
from appliance.errors import Conflict, Forbidden, InvalidInput, Unauthenticated
from tests.unit.accounts.conftest import OPERATOR, Accounts

DAY = 86400


@pytest.fixture
async def customer(accounts: Accounts) -> CustomerId:
    """One that has used a token."""
    made = (await accounts.customers.add(OPERATOR, "Zoo")).id
    await claimed(accounts, made)
    return made


async def claimed(accounts: Accounts, customer: CustomerId) -> IssuedToken:
    issued = await accounts.tokens.add(OPERATOR, customer)
    await accounts.tokens.note_use(accounts.tokens.verify(issued.token), "req-1")
    return issued


async def own(accounts: Accounts, customer: CustomerId) -> Actor:
    """The customer, by its first token."""
    (first, *_) = [token for token in await accounts.tokens.list(customer) if token.valid_from is None]
    return Actor("token", first.id, "req-1")


async def recovered(accounts: Accounts, customer: CustomerId, *scopes: Scope) -> IssuedToken:
    return await accounts.tokens.add(OPERATOR, customer, scopes or None, recovery=True)


async def taken(accounts: Accounts, issued: IssuedToken) -> bool:
    """Whether the token is taken, now and after a restart."""

    async def by(tokens: Tokens) -> bool:
        try:
            tokens.verify(issued.token)
        except (Unauthenticated, Forbidden):
            return False
        return True

    async with (
        Customers(accounts.ledger, accounts.clock) as customers,
        Tokens(accounts.ledger, accounts.keys, customers, accounts.clock) as restarted,
    ):
        now, then = await by(accounts.tokens), await by(restarted)
    assert now == then
    return now


async def test_an_operator_issues_and_rotates_until_a_token_is_used(accounts: Accounts) -> None:
    customer = (await accounts.customers.add(OPERATOR, "Zoo")).id
    issued = [await accounts.tokens.add(OPERATOR, customer) for _ in range(2)]
    await accounts.tokens.rotate(OPERATOR, None, issued[1].id)
    principal = accounts.tokens.verify(issued[0].token)
    assert accounts.tokens.is_first_use(principal)
    await asyncio.gather(*(accounts.tokens.note_use(principal, "req-1") for _ in range(3)))
    assert not accounts.tokens.is_first_use(principal)
    assert (await accounts.customers.get(customer)).claimed_at == int(accounts.clock.now * 1000)
    (claim,) = [entry for entry in await accounts.log() if entry.event is Event.CUSTOMER_CLAIM]
    assert (claim.actor, claim.customer) == (Actor("token", issued[0].id, "req-1"), customer)

    before = await accounts.tokens.list()
    for scopes in (None, {Scope.INFER}, ALL_SCOPES):
        with pytest.raises(Forbidden, match="POST /appliance/v1/tokens"):
            await accounts.tokens.add(OPERATOR, customer, scopes)
    with pytest.raises(Forbidden):
        await accounts.tokens.rotate(OPERATOR, None, issued[0].id)
    assert await accounts.tokens.list() == before


async def test_the_claim_outlives_a_restart(accounts: Accounts, customer: CustomerId) -> None:
    async with (
        Customers(accounts.ledger, accounts.clock) as customers,
        Tokens(accounts.ledger, accounts.keys, customers, accounts.clock) as tokens,
    ):
        assert customers.claimed(customer)
        with pytest.raises(Forbidden):
            await tokens.add(OPERATOR, customer)


async def test_another_customer_is_not_claimed_by_it(accounts: Accounts, customer: CustomerId) -> None:
    other = (await accounts.customers.add(OPERATOR, "Atelier")).id
    await accounts.tokens.add(OPERATOR, other)
    assert not accounts.customers.claimed(other)


async def test_the_customer_issues_and_rotates_its_own(accounts: Accounts, customer: CustomerId) -> None:
    me = await own(accounts, customer)
    issued = await accounts.tokens.add(me, customer, ALL_SCOPES)
    await accounts.tokens.rotate(me, customer, issued.id)
    assert await taken(accounts, issued)
    with pytest.raises(Forbidden, match="revokes them itself"):
        await accounts.tokens.revoke(OPERATOR, None, issued.id)
    assert await taken(accounts, issued)
    recovery = await accounts.tokens.add(OPERATOR, customer, recovery=True)
    await accounts.tokens.revoke(OPERATOR, None, recovery.id)


async def test_a_token_of_recovery_is_taken_a_day_later(accounts: Accounts, customer: CustomerId) -> None:
    issued = await recovered(accounts, customer)
    (listed,) = [token for token in await accounts.tokens.list(customer) if token.valid_from is not None]
    assert listed.scopes == frozenset({Scope.ADMIN})
    assert listed.valid_from == listed.created_at + DAY * 1000
    *_, told = await accounts.log()
    assert (told.event, told.customer, told.subject) == (Event.TOKEN_ADD, customer, issued.id)
    assert told.details == {"scopes": ["admin"], "recovery": True}
    accounts.clock.now += DAY - 0.001
    assert not await taken(accounts, issued)
    accounts.clock.now += 0.001
    assert await taken(accounts, issued)


async def test_the_customer_cancels_it(accounts: Accounts, customer: CustomerId) -> None:
    issued = await recovered(accounts, customer)
    await accounts.tokens.revoke(await own(accounts, customer), customer, issued.id)
    accounts.clock.now += 2 * DAY
    assert not await taken(accounts, issued)


async def test_a_suspension_does_not_use_the_day_up(accounts: Accounts, customer: CustomerId) -> None:
    """Meanwhile the customer sees nothing and can cancel nothing."""
    issued = await recovered(accounts, customer)
    await accounts.customers.suspend(OPERATOR, customer)
    with pytest.raises(Conflict, match="resume"):
        await recovered(accounts, customer)
    accounts.clock.now += 3 * DAY
    await accounts.customers.resume(OPERATOR, customer)
    (listed,) = [token for token in await accounts.tokens.list(customer) if token.valid_from is not None]
    assert listed.valid_from == int((accounts.clock.now + DAY) * 1000)
    accounts.clock.now += DAY - 1
    assert not await taken(accounts, issued)
    accounts.clock.now += 1
    assert await taken(accounts, issued)


async def test_it_never_sees_images_and_issues_tokens_at_once(
    accounts: Accounts, customer: CustomerId
) -> None:
    for scopes in (ALL_SCOPES, {Scope.ADMIN, Scope.DATASETS_READ}):
        with pytest.raises(InvalidInput, match="never both"):
            await recovered(accounts, customer, *scopes)
    await recovered(accounts, customer, *(ALL_SCOPES - {Scope.ADMIN}))
    await recovered(accounts, customer, *(ALL_SCOPES - {Scope.DATASETS_READ}))


async def test_it_is_for_operators_and_for_customers_that_have_used_one(
    accounts: Accounts, customer: CustomerId
) -> None:
    with pytest.raises(InvalidInput, match="operators alone"):
        await accounts.tokens.add(await own(accounts, customer), customer, recovery=True)
    fresh = (await accounts.customers.add(OPERATOR, "Atelier")).id
    with pytest.raises(Conflict, match="no token yet"):
        await recovered(accounts, fresh)
    assert await accounts.tokens.list(fresh) == []


async def tampered(accounts: Accounts, statement: str) -> None:
    await accounts.ledger.write(lambda connection: connection.execute(statement).get)


@pytest.mark.parametrize("restart", [False, True])
async def test_a_row_that_was_changed_unclaims_nobody(
    accounts: Accounts, customer: CustomerId, restart: bool
) -> None:
    (used,) = await accounts.tokens.list(customer)
    await tampered(accounts, "UPDATE customers SET claimed_at = NULL")
    async with (
        Customers(accounts.ledger, accounts.clock) as customers,
        Tokens(accounts.ledger, accounts.keys, customers, accounts.clock) as restarted,
    ):
        tokens = restarted if restart else accounts.tokens
        with pytest.raises(Forbidden, match="POST /appliance/v1/tokens"):
            await tokens.add(OPERATOR, customer, ALL_SCOPES)
        with pytest.raises(Forbidden, match="POST /appliance/v1/tokens"):
            await tokens.rotate(OPERATOR, None, used.id)
        with pytest.raises(Forbidden, match="revokes them itself"):
            await tokens.revoke(OPERATOR, None, used.id)
        await tokens.add(OPERATOR, customer, recovery=True)
        assert customers.claimed(customer)
        assert (await customers.get(customer)).claimed_at == int(accounts.clock.now * 1000)


@pytest.mark.parametrize("resumed_at", ["NULL", "0"])
async def test_a_row_that_was_changed_gives_no_day_of_a_suspension_back(
    accounts: Accounts, customer: CustomerId, resumed_at: str
) -> None:
    issued = await recovered(accounts, customer)
    await accounts.customers.suspend(OPERATOR, customer)
    accounts.clock.now += 3 * DAY
    await accounts.customers.resume(OPERATOR, customer)
    await tampered(accounts, f"UPDATE customers SET resumed_at = {resumed_at}")
    (listed,) = [token for token in await accounts.tokens.list(customer) if token.valid_from is not None]
    assert listed.valid_from == int((accounts.clock.now + DAY) * 1000)
    accounts.clock.now += DAY - 1
    assert not await taken(accounts, issued)
    accounts.clock.now += 1
    assert await taken(accounts, issued)


@pytest.mark.parametrize("change", ["recovery = 0", "created_at = 0", "recovery = 0, created_at = 0"])
async def test_a_row_that_was_changed_has_no_token_of_recovery_taken_earlier(
    accounts: Accounts, customer: CustomerId, change: str
) -> None:
    issued = await recovered(accounts, customer)
    await tampered(accounts, f"UPDATE tokens SET {change} WHERE recovery")
    assert not await taken(accounts, issued)
    assert (await accounts.reloaded()).damaged == [issued.id], "it is not taken a day later either"
    await accounts.tokens.revoke(OPERATOR, None, issued.id)
