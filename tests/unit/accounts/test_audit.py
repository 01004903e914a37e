"""The audit log: append-only, one transaction with the act, readable by customer."""

from functools import partial

import apsw
import pytest

from appliance.accounts.audit import Actor, Entry, EntryDamaged, Event, Selection, entries, record, selected
from appliance.errors import Conflict
from appliance.ledger import Connection
from tests.unit.accounts.conftest import Accounts


async def add(accounts: Accounts, customer: str | None, subject: str) -> None:
    await accounts.ledger.write(
        lambda connection: record(
            connection,
            7,
            accounts.actor,
            Event.COLLECTION_ADD,
            customer,
            subject,
            {"b": 1, "a": [True, None]},
        )
    )


async def test_an_entry_comes_back_whole(accounts: Accounts) -> None:
    await add(accounts, "c", "s")
    assert await accounts.log() == [
        Entry(1, 7, accounts.actor, Event.COLLECTION_ADD, "c", "s", {"a": [True, None], "b": 1})
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET time = 0",
        "DELETE FROM audit",
        "REPLACE INTO audit SELECT seq, 0, actor_kind, actor_id, NULL, event, NULL, NULL, details FROM audit",
    ],
)
async def test_rows_neither_change_nor_go(accounts: Accounts, statement: str) -> None:
    await add(accounts, "c", "s")
    before = await accounts.log()
    with pytest.raises(apsw.ConstraintError, match="append-only"):
        await accounts.ledger.write(lambda connection: connection.execute(statement).get)
    assert await accounts.log() == before


async def test_a_refused_act_leaves_no_row(accounts: Accounts) -> None:
    def act(connection: Connection) -> None:
        record(connection, 7, accounts.actor, Event.COLLECTION_ADD, "c", "s")
        raise Conflict("no")

    with pytest.raises(Conflict):
        await accounts.ledger.write(act)
    assert await accounts.log() == []


async def test_a_row_that_cannot_be_written_undoes_the_act(accounts: Accounts) -> None:
    nobody = Actor("stranger", "x")  # type: ignore[arg-type]
    with pytest.raises(apsw.ConstraintError, match="actor_kind"):
        await accounts.customers.add(nobody, "Zoo")
    assert await accounts.customers.list() == []


async def test_reading_by_customer_and_in_pages(accounts: Accounts) -> None:
    for number in range(6):
        await add(accounts, "even" if number % 2 == 0 else None, str(number))
    read = accounts.ledger.read
    assert [entry.subject for entry in await read(lambda c: entries(c, "even"))] == ["0", "2", "4"]
    first = await read(lambda c: entries(c, limit=4))
    rest = await read(lambda c: entries(c, after=first[-1].seq, limit=4))
    assert [entry.subject for entry in first + rest] == [str(number) for number in range(6)]


async def test_details_must_be_json(accounts: Accounts) -> None:
    with pytest.raises(ValueError, match="JSON"):
        await accounts.ledger.write(
            lambda connection: record(
                connection, 7, accounts.actor, Event.COLLECTION_ADD, None, None, {"x": float("nan")}
            )
        )


async def test_entries_are_chosen_by_all_that_is_asked_for(accounts: Accounts) -> None:
    for number in range(6):
        await add(accounts, "even" if number % 2 == 0 else "odd", str(number % 3))
    read = accounts.ledger.read
    assert [one.seq for one in await read(lambda c: selected(c, Selection("even", subject="1")))] == [5]
    adds, signs = (Event.COLLECTION_ADD,), (Event.AGREEMENT_SIGN, Event.TOKEN_ADD)
    assert len(await read(lambda c: selected(c, Selection(events=adds, since=7, until=8)))) == 6
    for nothing in (Selection(events=signs), Selection(since=8), Selection(until=7), Selection("nobody")):
        assert await read(partial(selected, chosen=nothing)) == []


@pytest.mark.parametrize(
    ("event", "details"),
    [("'token.add'", "'{'"), ("'what never was'", "'{}'"), ("CAST(x'ff' AS TEXT)", "'{}'")],
)
async def test_a_damaged_row_is_named_and_costs_the_others_nothing(
    accounts: Accounts, event: str, details: str
) -> None:
    await add(accounts, "c", "s")
    await accounts.ledger.write(
        lambda connection: (
            connection.execute(
                "INSERT INTO audit (time, actor_kind, actor_id, event, details)"
                f" VALUES (0, 'system', 'test', {event}, {details})"
            ).get
        )
    )
    with pytest.raises(EntryDamaged, match=r"entry 2 .*audit verify"):
        await accounts.log()
    assert len(await accounts.ledger.read(lambda c: entries(c, limit=1))) == 1
