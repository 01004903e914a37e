"""The row of a token counts as the appliance wrote it, or its token is not taken."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import apsw
import pytest

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId
from appliance.accounts.grants import Access, Grants
from appliance.accounts.rights import Scope
from appliance.accounts.token_rows import COVERED, COVERED_SINCE, UNCOVERED, erase_some
from appliance.accounts.tokens import IssuedToken, Tokens
from appliance.accounts.transparency.rows import Written
from appliance.errors import Conflict, Forbidden, NotFound, Unauthenticated
from appliance.ledger import Connection
from appliance.ledger.migrations import migrate, shipped
from tests.unit.accounts.conftest import OPERATOR, Accounts

CHANGES = {
    "id": "'other67890'",
    "customer": "(SELECT id FROM customers WHERE name = 'Atelier')",
    "mac": "zeroblob(32)",
    "scopes": "'admin ' || scopes",
    "collections": "NULL",
    "tasks": "'a-task another'",
    "requests_per_minute": "0",
    "bytes_per_minute": "bytes_per_minute + 1",
    "client_subject": "NULL",
    "recovery": "1",
    "created_at": "created_at - 1",
    "expires_at": "NULL",
    "holder": "'founder'",
    "rotated_from": "(SELECT id FROM tokens WHERE id <> 'x' LIMIT 1)",
    "seq": "0",
}
UNSEEN = {"revoked_at"}
"""What ends a token is not found: it says of none that it may do more."""
TORN = ("scopes = CAST(x'ff' AS TEXT)", "holder = CAST(x'ff' AS TEXT)", "scopes = ''", "row_mac = x''")


@pytest.fixture
async def customer(accounts: Accounts) -> CustomerId:
    await accounts.customers.add(OPERATOR, "Atelier")
    return (await accounts.customers.add(OPERATOR, "Zoo")).id


@pytest.fixture
async def issued(accounts: Accounts, customer: CustomerId) -> IssuedToken:
    """One with all that a token can have, of a customer whose daemon has started."""
    await accounts.tokens.add(OPERATOR, customer)
    made = await accounts.tokens.add(
        OPERATOR,
        customer,
        {Scope.INFER},
        int(accounts.clock.now * 1000) + 86_400_000,
        collections=["a-collection"],
        tasks=["a-task"],
        client_subject="CN=till",
    )
    await accounts.tokens.limit(OPERATOR, made.id, {"bytes_per_minute": 7})
    await started(accounts)
    return made


async def started(accounts: Accounts, schema: int = COVERED_SINCE) -> None:
    def act(connection: Connection) -> None:
        record(connection, 0, Actor("system", "daemon"), Event.DAEMON_START, None, None, {"schema": schema})

    await accounts.ledger.write(act)


async def edited(accounts: Accounts, changes: str, token: str) -> None:
    """By somebody who can write the file of the ledger, and has no key."""

    def act(connection: Connection) -> None:
        connection.execute(f"UPDATE tokens SET {changes} WHERE id = ?", (token,))
        assert connection.changes() == 1

    await accounts.ledger.write(act)


@asynccontextmanager
async def restarted(accounts: Accounts) -> AsyncIterator[Tokens]:
    async with Tokens(accounts.ledger, accounts.keys, accounts.customers, accounts.clock) as tokens:
        yield tokens


async def told(accounts: Accounts) -> list[str | None]:
    """Which tokens the log says to be damaged."""
    return [entry.subject for entry in await accounts.log() if entry.event is Event.TOKEN_DAMAGED]


def test_the_mac_is_over_every_column_or_it_is_said_why_not() -> None:
    database = apsw.Connection(":memory:")
    migrate(database, shipped())
    columns = [row[0] for row in database.execute("SELECT name FROM pragma_table_info('tokens')")]
    assert sorted(columns) == sorted((*COVERED, *UNCOVERED))
    assert set(COVERED) == CHANGES.keys() | UNSEEN, "each is changed in a test"


@pytest.mark.parametrize("change", [*(f"{name} = {value}" for name, value in CHANGES.items()), *TORN])
async def test_a_row_that_was_changed_is_no_token(
    accounts: Accounts, customer: CustomerId, issued: IssuedToken, change: str
) -> None:
    other = await accounts.tokens.add(OPERATOR, customer, {Scope.INFER})
    assert accounts.tokens.verify(issued.token, "CN=till").token_id == issued.id
    await edited(accounts, change, issued.id)
    named = "other67890" if change.startswith("id ") else issued.id
    for _ in range(2):
        async with restarted(accounts) as tokens:
            assert tokens.damaged == [named]
            for subject in (None, "CN=till"):
                with pytest.raises(Unauthenticated, match="missing or not valid"):
                    tokens.verify(issued.token, subject)
            assert tokens.verify(other.token).token_id == other.id
            assert named not in [token.id for token in await tokens.list()]
    assert await told(accounts) == [named], "once"


async def test_when_it_was_used_is_shown_alone(accounts: Accounts, issued: IssuedToken) -> None:
    await edited(accounts, "last_used_at = 1", issued.id)
    async with restarted(accounts) as tokens:
        assert tokens.verify(issued.token, "CN=till").token_id == issued.id
    assert await told(accounts) == []


async def test_the_mac_of_another_row_is_none(
    accounts: Accounts, customer: CustomerId, issued: IssuedToken
) -> None:
    wide = await accounts.tokens.add(OPERATOR, customer, {Scope.ADMIN})
    columns = ("row_mac", *(name for name in COVERED if name not in {"id", "mac", "rotated_from"}))
    values = f"(SELECT {', '.join(columns)} FROM tokens WHERE id = '{wide.id}')"
    await edited(accounts, f"({', '.join(columns)}) = {values}", issued.id)
    async with restarted(accounts) as tokens:
        assert tokens.damaged == [issued.id]


async def test_what_the_appliance_changes_itself_counts(
    accounts: Accounts, customer: CustomerId, issued: IssuedToken
) -> None:
    await accounts.tokens.limit(OPERATOR, issued.id, {"requests_per_minute": 5, "bytes_per_minute": None})
    successor = await accounts.tokens.rotate(OPERATOR, customer, issued.id, 60)
    replaced = await accounts.tokens.rotate(OPERATOR, customer, successor.id, 0)
    async with restarted(accounts) as tokens:
        assert tokens.damaged == []
        for text in (issued.token, replaced.token):
            assert tokens.verify(text, "CN=till").requests_per_minute == 5
        with pytest.raises(Unauthenticated):
            tokens.verify(successor.token, "CN=till")
        assert len(await tokens.list(customer)) == 4
        await tokens.revoke(OPERATOR, customer, replaced.id)
        await tokens.erase(customer)
        assert await tokens.list(customer) == []
    assert await told(accounts) == []


async def triggered(accounts: Accounts, when: str, change: str) -> None:
    """Have a trigger change each row of a token that the appliance writes."""
    made = f"CREATE TRIGGER widens AFTER {when} ON tokens BEGIN UPDATE tokens SET {change}"
    await accounts.ledger.write(
        lambda connection: connection.execute(f"{made} WHERE id = new.id; END").fetchall()
    )


@pytest.mark.parametrize(
    ("act", "when"),
    [("add", "INSERT"), ("rotate", "UPDATE OF expires_at"), ("erase", "UPDATE OF rotated_from")],
)
async def test_a_trigger_has_no_say_in_what_counts(
    accounts: Accounts, customer: CustomerId, issued: IssuedToken, act: str, when: str
) -> None:
    accounts.clock.now += 1
    later = await accounts.tokens.rotate(OPERATOR, customer, issued.id, 60)
    changed = later.id
    await triggered(accounts, when, "scopes = 'admin'")
    match act:
        case "add":
            changed = (await accounts.tokens.add(OPERATOR, customer, {Scope.INFER})).id
        case "rotate":
            await accounts.tokens.rotate(OPERATOR, customer, changed, 60)
        case _:  # the two that are older are erased
            await accounts.ledger.write(lambda connection: erase_some(connection, accounts.keys, customer, 2))
    async with restarted(accounts) as tokens:
        assert tokens.damaged == [changed]


async def test_what_a_trigger_makes_of_a_change_is_refused(
    accounts: Accounts, customer: CustomerId, issued: IssuedToken
) -> None:
    await triggered(accounts, "UPDATE OF bytes_per_minute", "expires_at = NULL")
    with pytest.raises(Conflict, match="has changed the row"):
        await accounts.tokens.limit(OPERATOR, issued.id, {"bytes_per_minute": 1})
    async with restarted(accounts) as tokens:
        assert tokens.damaged == []


async def test_an_erasure_makes_no_token_of_a_row_that_was_changed(
    accounts: Accounts, customer: CustomerId, issued: IssuedToken
) -> None:
    """Another customer's, that says to be a successor of one that goes."""
    other = (await accounts.customers.add(OPERATOR, "Third")).id
    widened = await accounts.tokens.add(OPERATOR, other, {Scope.INFER})
    await edited(accounts, f"scopes = 'admin', rotated_from = '{issued.id}'", widened.id)
    await accounts.tokens.erase(customer)
    async with restarted(accounts) as tokens:
        assert tokens.damaged == [widened.id]


async def test_an_erasure_that_a_stop_interrupts_leaves_rows_that_count(
    accounts: Accounts, customer: CustomerId, issued: IssuedToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        issued = await accounts.tokens.rotate(OPERATOR, customer, issued.id, 60)
    monkeypatch.setattr("appliance.accounts.tokens._ERASED_AT_ONCE", 2)
    write, calls = accounts.ledger.write, iter(range(10))

    async def once(*given: object, **others: object) -> object:
        return await write(*given, **others) if next(calls) == 0 else []  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(accounts.ledger, "write", once)
        await accounts.tokens.erase(customer)
    async with restarted(accounts) as tokens:
        assert len(await tokens.list(customer)) == 3
        assert tokens.damaged == []


async def test_rows_from_before_get_their_macs_at_the_first_start_alone(
    accounts: Accounts, customer: CustomerId, issued: IssuedToken
) -> None:
    await edited(accounts, "row_mac = x''", issued.id)
    async with restarted(accounts) as tokens:
        assert tokens.damaged == [issued.id]


@pytest.mark.parametrize("schema", [None, COVERED_SINCE - 1])
async def test_rows_from_before_are_taken_as_they_are(
    accounts: Accounts, customer: CustomerId, schema: int | None
) -> None:
    made = [await accounts.tokens.add(OPERATOR, customer) for _ in range(3)]
    ids = [one.id for one in made]
    if schema is not None:
        await started(accounts, schema)
    for one in made:
        await edited(accounts, "row_mac = x''", one.id)
    async with restarted(accounts) as tokens:
        assert [tokens.verify(one.token).token_id for one in made] == ids
    await edited(accounts, "scopes = 'admin'", ids[1])
    await started(accounts)
    async with restarted(accounts) as tokens:
        assert tokens.damaged == [ids[1]]


async def test_a_token_of_recovery_of_before_that_the_log_knows_otherwise_gets_none(
    accounts: Accounts, customer: CustomerId
) -> None:
    first = await accounts.tokens.add(OPERATOR, customer)
    await accounts.tokens.note_use(accounts.tokens.verify(first.token), "req-1")
    recovered = await accounts.tokens.add(OPERATOR, customer, recovery=True)
    await edited(accounts, "row_mac = x''", first.id)
    await edited(accounts, "row_mac = x'', recovery = 0", recovered.id)
    async with restarted(accounts) as tokens:
        assert tokens.damaged == [recovered.id]
        assert tokens.verify(first.token).token_id == first.id


async def test_a_damaged_token_is_changed_by_nobody_and_ended_by_an_operator(
    accounts: Accounts, customer: CustomerId, issued: IssuedToken
) -> None:
    await accounts.customers.claim(OPERATOR, customer)
    await edited(accounts, "expires_at = NULL", issued.id)
    other = (await accounts.customers.add(OPERATOR, "Third")).id
    async with restarted(accounts) as tokens:
        me = Actor("token", (await tokens.list(customer))[0].id)
        with pytest.raises(Conflict, match="has changed the row"):
            await tokens.limit(OPERATOR, issued.id, {"requests_per_minute": 1})
        with pytest.raises(Conflict, match="revoke it, and issue another"):
            await tokens.rotate(me, customer, issued.id)
        with pytest.raises(NotFound):
            await tokens.revoke(OPERATOR, other, issued.id)
        for _ in range(2):
            await tokens.revoke(OPERATOR, None, issued.id)
        assert tokens.damaged == []
    log = await accounts.log()
    assert [entry.event for entry in log].count(Event.TOKEN_REVOKE) == 1
    async with restarted(accounts) as tokens:
        assert tokens.damaged == []
        assert issued.id not in [token.id for token in await tokens.list()], "nobody knows what it was"


async def test_a_row_that_is_changed_while_it_runs_acts_no_more(
    accounts: Accounts, customer: CustomerId
) -> None:
    first, second = [await accounts.tokens.add(OPERATOR, customer, {Scope.ADMIN}) for _ in range(2)]
    await edited(accounts, "client_subject = NULL, holder = NULL, scopes = 'admin infer'", first.id)
    actor = Actor("token", first.id)
    with pytest.raises(Unauthenticated):
        await accounts.tokens.add(actor, customer)
    with pytest.raises(Unauthenticated):
        await accounts.tokens.rotate(actor, customer, second.id)


@pytest.mark.parametrize("whose", ["that approves", "that has approved"])
async def test_a_row_that_was_changed_is_of_no_second_person(
    accounts: Accounts, customer: CustomerId, whose: str
) -> None:
    """One person has both tokens; the row of one is changed to say otherwise."""
    first = Actor("token", (await accounts.tokens.add(OPERATOR, customer)).id)
    one = Actor("token", (await accounts.tokens.add(first, customer, {Scope.ADMIN})).id)
    too = Actor("token", (await accounts.tokens.add(one, customer, {Scope.ADMIN})).id)
    grants = Grants(accounts.ledger, accounts.keyring, accounts.customers, accounts.clock, four_eyes=True)
    grant = await grants.ask(Actor("operator", "1001"), customer, Access("1001", 1, "winter"), "why")
    await grants.approve(one, customer, grant.id)
    await edited(accounts, "holder = 'nobody'", too.id if whose == "that approves" else one.id)
    refusal = Unauthenticated if whose == "that approves" else Forbidden
    with pytest.raises(refusal, match="has changed the row"):
        await grants.approve(too, customer, grant.id)


async def test_verify_goes_by_what_the_daemon_has_found(
    accounts: Accounts, customer: CustomerId, issued: IssuedToken
) -> None:
    async def findings() -> list[str]:
        rule = Written()
        for entry in await accounts.log():
            rule.see(entry)  # type: ignore[arg-type]
        return await accounts.ledger.read(lambda connection: list(rule.judge(connection).findings))

    assert await findings() == []
    await edited(accounts, "expires_at = NULL", issued.id)
    async with restarted(accounts) as tokens:
        (finding,) = await findings()
        assert f"the row of token {issued.id} was not as the appliance had written it" in finding
        await tokens.revoke(OPERATOR, None, issued.id)
        assert await findings() == []
