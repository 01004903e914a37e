"""What the log has told of a customer counts, whatever somebody who can write the ledger makes of its row."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import apsw
import pytest

from appliance.accounts.audit import Actor, Event, Selection, rows
from appliance.accounts.customers import CustomerId, Customers
from appliance.accounts.tokens import IssuedToken, Tokens
from appliance.accounts.transparency.leaves import leaf, recorded
from appliance.accounts.transparency.rows import Standing
from appliance.errors import Forbidden
from appliance.ledger import Connection
from tests.unit.accounts.conftest import OPERATOR, Accounts

AWAKE = "UPDATE customers SET suspended_at = NULL"
CHANGES = (
    AWAKE,
    f"{AWAKE}, resumed_at = 2000000000000",
    f"{AWAKE}, created_at = 0, name = 'Another'",
    "DELETE FROM customers",
)


@pytest.fixture
async def customer(accounts: Accounts) -> CustomerId:
    return (await accounts.customers.add(OPERATOR, "Zoo")).id


@pytest.fixture
async def issued(accounts: Accounts, customer: CustomerId) -> IssuedToken:
    return await accounts.tokens.add(OPERATOR, customer)


def by_hand(accounts: Accounts, statement: str) -> None:
    """By another program, which has the file of the ledger and none of its settings."""
    database = apsw.Connection(str(accounts.ledger._path))
    database.execute(statement)
    database.close()


@asynccontextmanager
async def restarted(accounts: Accounts) -> AsyncIterator[tuple[Customers, Tokens]]:
    async with (
        Customers(accounts.ledger, accounts.clock) as customers,
        Tokens(accounts.ledger, accounts.keys, customers, accounts.clock) as tokens,
    ):
        yield customers, tokens


async def found(accounts: Accounts) -> tuple[list[str], list[str]]:
    """What `audit verify` has to say of customers: findings and remarks."""

    def judged(connection: Connection) -> tuple[list[str], list[str]]:
        rule = Standing()
        for row in rows(connection, Selection(), after=0, limit=-1):
            rule.see(recorded(leaf(row)))
        judgement = rule.judge(connection)
        return list(judgement.findings), list(judgement.remarks)

    return await accounts.ledger.read(judged)


@pytest.mark.parametrize("change", CHANGES)
async def test_no_row_takes_a_suspension_back(
    accounts: Accounts, customer: CustomerId, issued: IssuedToken, change: str
) -> None:
    await accounts.customers.suspend(OPERATOR, customer)
    assert await found(accounts) == ([], [])
    by_hand(accounts, change)
    async with restarted(accounts) as (customers, tokens):
        assert customers.suspended(customer)
        with pytest.raises(Forbidden, match="suspended"):
            tokens.verify(issued.token)
    findings, _ = await found(accounts)
    assert (
        f"entry 3: it suspended customer {customer}, and the row says otherwise: that was changed" in findings
    )


async def test_a_call_that_began_before_changes_nothing_either(
    accounts: Accounts, customer: CustomerId, issued: IssuedToken
) -> None:
    await accounts.customers.suspend(OPERATOR, customer)
    by_hand(accounts, AWAKE)
    with pytest.raises(Forbidden, match="suspended"):
        await accounts.tokens.add(Actor("token", issued.id), customer)


async def test_an_operator_sees_it_as_it_is_and_resumes_it(
    accounts: Accounts, customer: CustomerId, issued: IssuedToken
) -> None:
    suspended = await accounts.customers.suspend(OPERATOR, customer)
    by_hand(accounts, AWAKE)
    async with restarted(accounts) as (customers, tokens):
        assert await customers.get(customer) == suspended
        assert await customers.list() == [suspended]
        accounts.clock.now += 1
        resumed = await customers.resume(OPERATOR, customer)
        assert (resumed.suspended_at, resumed.resumed_at) == (None, int(accounts.clock.now * 1000))
        assert tokens.verify(issued.token).customer == customer
    assert await found(accounts) == ([], [])


async def test_who_suspends_it_once_more_puts_its_row_right(accounts: Accounts, customer: CustomerId) -> None:
    await accounts.customers.suspend(OPERATOR, customer)
    by_hand(accounts, AWAKE)
    await accounts.customers.suspend(OPERATOR, customer)
    assert await found(accounts) == ([], [])
    assert [entry.event for entry in await accounts.log()].count(Event.CUSTOMER_SUSPEND) == 1


@pytest.mark.parametrize("back", [-86_400, 0, 1])
async def test_the_last_entry_counts_whatever_the_clock_said(
    accounts: Accounts, customer: CustomerId, issued: IssuedToken, back: int
) -> None:
    await accounts.customers.suspend(OPERATOR, customer)
    accounts.clock.now += back
    await accounts.customers.resume(OPERATOR, customer)
    async with restarted(accounts) as (_, tokens):
        assert tokens.verify(issued.token).customer == customer
    accounts.clock.now += back
    await accounts.customers.suspend(OPERATOR, customer)
    by_hand(accounts, AWAKE)
    async with restarted(accounts) as (_, tokens):
        with pytest.raises(Forbidden):
            tokens.verify(issued.token)


@pytest.mark.parametrize("resumed_at", ["NULL", "0", "resumed_at - 1"])
async def test_another_time_of_its_resumption_is_found(
    accounts: Accounts, customer: CustomerId, resumed_at: str
) -> None:
    await accounts.customers.suspend(OPERATOR, customer)
    await accounts.customers.resume(OPERATOR, customer)
    by_hand(accounts, f"UPDATE customers SET resumed_at = {resumed_at}")
    (finding,), _ = await found(accounts)
    assert finding.startswith(f"entry 3: it resumed customer {customer}, and the row says otherwise")


@pytest.mark.parametrize("restored", [False, True])
async def test_a_suspension_that_the_log_does_not_know_counts_and_is_told(
    accounts: Accounts, customer: CustomerId, issued: IssuedToken, restored: bool
) -> None:
    """As a restore of an earlier version left it."""
    if restored:
        await accounts.customers.suspend(OPERATOR, customer)
        await accounts.customers.resume(OPERATOR, customer)
    by_hand(accounts, "UPDATE customers SET suspended_at = 7")
    async with restarted(accounts) as (customers, tokens):
        assert (await customers.get(customer)).suspended_at == 7
        with pytest.raises(Forbidden):
            tokens.verify(issued.token)
    findings, (remark,) = await found(accounts)
    assert findings == []
    assert remark.startswith(f"1 customers are suspended or erased by their rows alone, first {customer}")
