"""Four eyes: two approvals are those of two people, whatever one of them, or an operator, can have issued."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import apsw
import pytest

from appliance.accounts.audit import Actor
from appliance.accounts.customers import CustomerId
from appliance.accounts.grants import Access, Grants
from appliance.accounts.rights import Scope
from appliance.errors import Forbidden
from appliance.ledger.migrations import migrate, shipped
from tests.unit.accounts.conftest import OPERATOR, Accounts, Clock

WHOLE = Access("1001", 2, dataset="the dataset")


@dataclass
class Staff:
    """A customer's people: who has the first token, and two whom that one has given tokens. What the operator
    issued beside the first is `kept` by it.
    """

    accounts: Accounts
    customer: CustomerId
    first: Actor
    kept: Actor
    one: Actor
    two: Actor
    grants: Grants

    async def issued(self, by: Actor, *, recovery: bool = False) -> Actor:
        """Another token with admin."""
        return await issue(self.accounts, self.customer, by, recovery=recovery)

    async def rotated(self, token: Actor, by: Actor | None = None) -> Actor:
        """The successor, which `by` is shown, by default who has the token itself."""
        issued = await self.accounts.tokens.rotate(by or token, self.customer, token.id)
        return Actor("token", issued.id)

    async def state_after(self, *approvals: Actor) -> str:
        """How a request stands that is made now and approved by these."""
        grant = await self.grants.ask(Actor("operator", "1001"), self.customer, WHOLE, "why")
        for token in approvals:
            grant = await self.grants.approve(token, self.customer, grant.id)
        return grant.state


async def issue(accounts: Accounts, customer: CustomerId, by: Actor, *, recovery: bool = False) -> Actor:
    issued = await accounts.tokens.add(by, customer, {Scope.ADMIN}, recovery=recovery)
    return Actor("token", issued.id)


@pytest.fixture
async def staff(accounts: Accounts) -> Staff:
    customer = (await accounts.customers.add(OPERATOR, "Zoo")).id
    first, kept = [await issue(accounts, customer, OPERATOR) for _ in range(2)]
    one, two = [await issue(accounts, customer, first) for _ in range(2)]
    grants = Grants(accounts.ledger, accounts.keyring, accounts.customers, Clock(), four_eyes=True)
    return Staff(accounts, customer, first, kept, one, two, grants)


async def test_two_people_approve_also_with_successors_of_their_tokens(staff: Staff) -> None:
    assert await staff.state_after(staff.one, staff.one) == "pending"
    assert await staff.state_after(staff.one, staff.two) == "live"
    later = await staff.rotated(staff.one)
    assert await staff.state_after(staff.two, await staff.rotated(later)) == "live"
    assert await staff.state_after(await staff.issued(staff.two), later) == "live"


async def test_the_first_ones_successor_gives_tokens_as_it_did(staff: Staff) -> None:
    successor = await staff.rotated(staff.first)
    assert await staff.state_after(staff.one, await staff.issued(successor)) == "live"


Made = Callable[[Staff], Awaitable[tuple[Actor, Actor]]]


async def its_successor(staff: Staff) -> tuple[Actor, Actor]:
    return staff.one, await staff.rotated(staff.one)


async def what_it_issued(staff: Staff) -> tuple[Actor, Actor]:
    return staff.one, await staff.issued(staff.one)


async def what_that_issued(staff: Staff) -> tuple[Actor, Actor]:
    return await staff.issued(await staff.issued(staff.one)), staff.one


async def two_that_it_issued(staff: Staff) -> tuple[Actor, Actor]:
    return await staff.issued(staff.one), await staff.issued(staff.one)


async def what_its_successor_issued(staff: Staff) -> tuple[Actor, Actor]:
    return staff.one, await staff.issued(await staff.rotated(staff.one))


async def anothers_successor_that_it_was_shown(staff: Staff) -> tuple[Actor, Actor]:
    return staff.one, await staff.rotated(staff.two, by=staff.one)


async def the_first_one_that_it_took_over(staff: Staff) -> tuple[Actor, Actor]:
    taken = await staff.rotated(staff.first, by=staff.one)
    return await staff.issued(taken), taken


async def its_own_that_the_first_one_rotated(staff: Staff) -> tuple[Actor, Actor]:
    return staff.one, await staff.rotated(staff.one, by=staff.first)


@pytest.mark.parametrize(
    "made",
    [
        its_successor,
        what_it_issued,
        what_that_issued,
        two_that_it_issued,
        what_its_successor_issued,
        anothers_successor_that_it_was_shown,
        the_first_one_that_it_took_over,
        its_own_that_the_first_one_rotated,
    ],
)
async def test_one_person_is_not_two(staff: Staff, made: Made) -> None:
    mine, too = await made(staff)
    for approvals in ((mine, too), (too, mine)):
        with pytest.raises(Forbidden, match="has approved already"):
            await staff.state_after(*approvals)
    assert await staff.state_after(mine, staff.two) == "live"


async def test_what_an_operator_issued_is_nobodys_and_the_first_one_approves_nothing(staff: Staff) -> None:
    kept = staff.kept
    nobodys = [staff.first, kept, await staff.issued(kept), await staff.rotated(kept)]
    nobodys.append(await staff.rotated(staff.first, by=kept))
    nobodys.append(await staff.rotated(staff.two, by=kept))
    for token in nobodys:
        with pytest.raises(Forbidden, match="of none of them"):
            await staff.state_after(token)
        with pytest.raises(Forbidden, match="of none of them"):
            await staff.grants.open(token, staff.customer, WHOLE, "unasked")
    assert {one.approvals for one in await staff.grants.list(staff.customer)} == {()}


async def test_tokens_that_were_issued_after_the_request_do_not_count(staff: Staff) -> None:
    grant = await staff.grants.ask(Actor("operator", "1001"), staff.customer, WHOLE, "why")
    await staff.grants.approve(staff.one, staff.customer, grant.id)
    staff.accounts.clock.now -= 3600  # as if they had been there before
    for late in (await staff.issued(staff.first), await staff.rotated(staff.two)):
        with pytest.raises(Forbidden, match="before the request"):
            await staff.grants.approve(late, staff.customer, grant.id)
    assert (await staff.grants.approve(staff.two, staff.customer, grant.id)).state == "live"


async def test_a_grant_that_is_opened_unasked_waits_for_a_second_person(staff: Staff) -> None:
    opened = await staff.grants.open(staff.one, staff.customer, WHOLE, "as agreed")
    assert (opened.state, opened.approvals) == ("pending", (staff.one.id,))
    successor = await staff.rotated(staff.one)
    with pytest.raises(Forbidden):
        await staff.grants.approve(successor, staff.customer, opened.id)
    assert (await staff.grants.approve(staff.two, staff.customer, opened.id)).state == "live"


async def test_a_token_of_recovery_stands_for_the_first_one(staff: Staff) -> None:
    await staff.accounts.customers.claim(staff.first, staff.customer)
    recovered = await staff.issued(OPERATOR, recovery=True)
    with pytest.raises(Forbidden, match="of none of them"):
        await staff.state_after(recovered)
    assert await staff.state_after(staff.one, await staff.issued(recovered)) == "live"


async def test_the_list_of_tokens_says_who_holds_which(staff: Staff) -> None:
    successor = await staff.rotated(staff.one)
    listed = {one.id: one.holder for one in await staff.accounts.tokens.list(staff.customer)}
    assert listed == {
        staff.first.id: "founder",
        staff.one.id: staff.one.id,
        staff.two.id: staff.two.id,
        successor.id: staff.one.id,
        staff.kept.id: None,
    }


def test_tokens_from_before_are_held_as_the_audit_log_tells() -> None:
    """Two customers; of the second the operator has issued one token more."""
    database, steps = apsw.Connection(":memory:"), shipped()
    migrate(database, [step for step in steps if step.number < 28])
    times = iter(range(1, 100))

    def add(customer: str, token: str, by: tuple[str, str], old: str | None = None) -> None:
        database.execute(
            "INSERT INTO tokens (id, customer, mac, scopes, created_at, rotated_from)"
            " VALUES (?, ?, zeroblob(32), 'admin infer', ?, ?)",
            (token, customer, next(times), old),
        )
        event = ("token.add", token, "{}")
        if old is not None:
            event = ("token.rotate", old, f'{{"successor":"{token}"}}')
        database.execute(
            "INSERT INTO audit (time, actor_kind, actor_id, event, subject, details)"
            " VALUES (0, ?, ?, ?, ?, ?)",
            (*by, *event),
        )

    for customer in ("zoo", "shop"):
        database.execute("INSERT INTO customers (id, name, created_at) VALUES (?1, ?1, 0)", (customer,))
        add(customer, f"{customer} first", ("operator", "0"))
        add(customer, f"{customer} successor", ("token", f"{customer} first"), f"{customer} first")
        add(customer, f"{customer} one", ("token", f"{customer} successor"))
        add(customer, f"{customer} ones", ("token", f"{customer} one"))
        add(customer, f"{customer} two", ("token", f"{customer} first"))
        add(customer, f"{customer} twos", ("token", f"{customer} two"), f"{customer} two")
    add("shop", "kept", ("operator", "0"))
    add("shop", "of the kept", ("token", "kept"))
    add("shop", "taken", ("token", "shop two"), "shop one")
    migrate(database, steps)
    held = dict(database.execute("SELECT id, holder FROM tokens WHERE customer = 'shop'"))
    assert held == {
        "shop first": "founder",
        "shop successor": "founder",
        "shop one": "shop one",
        "shop ones": "shop one",
        "shop two": "shop two",
        "shop twos": "shop two",
        "kept": None,
        "of the kept": None,
        "taken": None,
    }
    query = "SELECT count(holder) FROM tokens WHERE customer = 'zoo'"
    assert database.execute(query).get == 6
