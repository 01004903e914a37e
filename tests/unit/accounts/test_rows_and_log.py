"""Rows of tokens, agreements and grants that a hand has changed are found by what the log tells of them."""

import asyncio
from collections import defaultdict
from pathlib import Path

import apsw
import pytest

from appliance.accounts.agreements import Agreements, Kind
from appliance.accounts.audit import Actor
from appliance.accounts.customers import CustomerId, Customers
from appliance.accounts.grants import Access, Grants
from appliance.accounts.rights import Scope
from appliance.accounts.tokens import Tokens
from appliance.accounts.transparency import verification
from appliance.errors import AuditBroken
from appliance.ledger.migrations import migrate, shipped
from tests.auditing import copy, edit, opened
from tests.unit.accounts.conftest import OPERATOR, Clock


async def lived(state: Path) -> dict[str, str]:
    """A closed state in which all of it has happened; the ids of its tokens by name."""
    clock = Clock()
    async with (
        opened(state) as log,
        Customers(log.ledger, clock) as customers,
        Tokens(log.ledger, log.keyring.service, customers, clock) as tokens,
        Agreements(log.ledger, log.keyring, customers, clock) as agreements,
    ):
        zoo, other = [(await customers.add(OPERATOR, name)).id for name in ("Zoo", "Atelier")]
        made: dict[str, str] = {"other": other}

        async def issue(name: str, by: Actor, **asked: object) -> Actor:
            made[name] = (await tokens.add(by, zoo, **asked)).id  # type: ignore[arg-type]
            return Actor("token", made[name])

        async def rotate(name: str, by: Actor, overlap_seconds: int) -> Actor:
            issued = await tokens.rotate(by, zoo, made[name], overlap_seconds)
            made[f"{name} later"] = issued.id
            return Actor("token", issued.id)

        first = await issue("first", OPERATOR)
        await issue("kept", OPERATOR, scopes={Scope.ADMIN})
        await customers.claim(first, zoo)
        first = await rotate("first", first, 0)
        anna = await issue("anna", first, scopes={Scope.ADMIN})
        bert = await issue("bert", first, scopes={Scope.ADMIN})
        await issue("child", anna, scopes={Scope.INFER}, tasks=["fruit", "trees"], client_subject="CN=till")
        await issue("gone", anna, scopes={Scope.INFER})
        await issue("taken", first, scopes={Scope.INFER})
        await rotate("child", anna, 60)
        await rotate("taken", bert, 60)
        await tokens.revoke(anna, zoo, made["gone"])
        await tokens.revoke(anna, zoo, made["kept"])
        await tokens.revoke(anna, zoo, made["first later"])
        await issue("recovered", OPERATOR, recovery=True)
        signed = await agreements.sign(OPERATOR, zoo, Kind.TRAINING_DATA)
        await agreements.revoke(anna, zoo, signed.id)
        grants = Grants(log.ledger, log.keyring, customers, clock, four_eyes=True)
        for end in (grants.revoke, grants.deny):
            grant = await grants.ask(Actor("operator", "1001"), zoo, Access("1001", 1, "winter"), "why")
            await end(anna, zoo, grant.id)
        await log.tree.publish()
        return made


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    state = tmp_path_factory.mktemp("rows") / "state"
    return state, asyncio.run(lived(state))


def found(state: Path) -> list[str]:
    try:
        verification.verify(state)
    except AuditBroken as broken:
        return broken.findings
    return []


def test_rows_as_they_were_written_are_no_finding(closed: tuple[Path, dict[str, str]]) -> None:
    assert found(closed[0]) == []


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ("tokens SET revoked_at = NULL WHERE id = '{gone}'", "it ended token {gone}"),
        ("tokens SET revoked_at = NULL WHERE id = '{first}'", "it ended token {first}"),
        ("tokens SET expires_at = NULL WHERE id = '{child}'", "it ended token {child}"),
        ("tokens SET expires_at = expires_at + 1 WHERE id = '{child}'", "it ended token {child}"),
        ("agreements SET revoked_at = NULL", "it ended agreement"),
        ("grants SET closed = NULL, closed_at = NULL WHERE closed = 'denied'", "it ended grant"),
        ("grants SET closed = NULL, closed_at = NULL WHERE closed = 'revoked'", "it ended grant"),
        ("tokens SET scopes = 'datasets:read' WHERE id = '{child}'", "token {child} was issued for else"),
        ("tokens SET tasks = NULL WHERE id = '{child}'", "token {child} was issued for else"),
        ("tokens SET tasks = 'fruit' WHERE id = '{child}'", "token {child} was issued for else"),
        ("tokens SET client_subject = NULL WHERE id = '{child}'", "token {child} was issued for else"),
        ("tokens SET scopes = 'admin' WHERE id = '{child later}'", "token {child later} was issued for else"),
        ("tokens SET customer = '{other}' WHERE id = '{anna}'", "token {anna} was issued for else"),
        ("tokens SET holder = id WHERE id = '{child}'", "token {child} is another one's"),
        ("tokens SET holder = id WHERE id = '{taken later}'", "token {taken later} is another one's"),
        ("tokens SET holder = 'founder' WHERE id = '{kept}'", "token {kept} is another one's"),
        ("tokens SET holder = 'founder' WHERE id = '{anna}'", "token {anna} is another one's"),
        ("tokens SET seq = 1 WHERE id = '{anna}'", "token {anna} is of then"),
        ("tokens SET seq = 0 WHERE id = '{anna}'", "token {anna} is of then"),
    ],
)
def test_a_row_that_says_else_than_the_log_is_found(
    closed: tuple[Path, dict[str, str]], change: str, finding: str
) -> None:
    state, made = closed
    changed = copy(state, "changed")
    edit(changed, f"UPDATE {change.format(**made)}")
    assert any(finding.format(**made) in one for one in found(changed)), found(changed)


def test_a_trigger_that_is_none_of_the_appliances_is_found(closed: tuple[Path, dict[str, str]]) -> None:
    changed = copy(closed[0], "changed")
    edit(changed, "CREATE TRIGGER t1 AFTER INSERT ON tokens BEGIN UPDATE tokens SET expires_at = NULL; END")
    assert found(changed) == ["the ledger is not built as the appliance builds it: trigger t1 is none of its"]


@pytest.mark.parametrize("index", ["audit_of_revoked_tokens", "audit_by_customer"])
def test_an_index_that_hides_entries_is_found(closed: tuple[Path, dict[str, str]], index: str) -> None:
    changed = copy(closed[0], "changed")
    edit(
        changed,
        f"CREATE TEMP TABLE kept AS SELECT sql FROM sqlite_schema WHERE name = '{index}'",
        f"DROP INDEX {index}",
        f"CREATE INDEX {index} ON audit (customer) WHERE event = 'nothing'",
        "PRAGMA writable_schema = 1",
        f"UPDATE sqlite_schema SET sql = (SELECT sql FROM kept) WHERE name = '{index}'",
        "PRAGMA writable_schema = 0",
    )
    assert any(f"index {index}" in one for one in found(changed)), found(changed)


def of_before_holders(state: Path) -> None:
    """A ledger of schema 27: Zoo's first admin token was revoked before its customer had used one, and of two
    that Atelier was given in one millisecond the log has the one first that comes later by its id.
    """
    state.mkdir()
    database = apsw.Connection(str(state / "ledger.db"))
    migrate(database, [step for step in shipped() if step.number < 28])
    clock = iter(range(1, 100))

    def tell(event: str, customer: str, subject: str, details: str = "{}", time: int | None = None) -> int:
        now = next(clock) if time is None else time
        database.execute(
            "INSERT INTO audit (time, actor_kind, actor_id, event, customer, subject, details)"
            " VALUES (?, 'operator', '0', ?, ?, ?, ?)",
            (now, event, customer, subject, details),
        )
        return now

    def add(customer: str, token: str, time: int | None = None) -> None:
        now = tell("token.add", customer, token, '{"scopes":["admin"]}', time)
        database.execute(
            "INSERT INTO tokens (id, customer, mac, scopes, created_at) VALUES (?, ?, ?, 'admin', ?)",
            (token, customer, token.encode().ljust(32), now),
        )

    for customer in ("zoo", "atelier"):
        database.execute("INSERT INTO customers (id, name, created_at) VALUES (?1, ?1, 0)", (customer,))
        tell("customer.add", customer, customer)
    add("zoo", "revoked")
    now = tell("token.revoke", "zoo", "revoked")
    database.execute("UPDATE tokens SET revoked_at = ? WHERE id = 'revoked'", (now,))
    add("zoo", "second")
    add("atelier", "b", 50)
    add("atelier", "a", 50)
    database.close()


async def goes_on(state: Path) -> dict[str | None, list[str | None]]:
    """What the next version makes of it: who holds what, by who issued it."""
    clock, held = Clock(), defaultdict[str | None, list[str | None]](list)
    async with (
        opened(state) as log,
        Customers(log.ledger, clock) as customers,
        Tokens(log.ledger, log.keyring.service, customers, clock) as tokens,
    ):
        made: dict[str, str] = {}
        third = (await tokens.add(OPERATOR, CustomerId("zoo"), {Scope.ADMIN})).id
        for issuer, customer in (("second", "zoo"), (third, "zoo"), ("a", "atelier"), ("b", "atelier")):
            actor = Actor("token", issuer)
            await customers.claim(actor, CustomerId(customer))
            issued = await tokens.add(actor, CustomerId(customer), {Scope.ADMIN})
            await tokens.rotate(actor, CustomerId(customer), issued.id, 60)
            made[issuer] = issued.id
        holders = {token.id: token.holder for token in await tokens.list()}
        for issuer, token in made.items():
            held[holders[issuer]].append("its own" if holders[token] == token else holders[token])
        await log.tree.publish()
    return held


def test_tokens_of_before_there_were_holders_are_asked_as_the_upgrade_did_it(tmp_path: Path) -> None:
    of_before_holders(tmp_path / "state")
    held = asyncio.run(goes_on(tmp_path / "state"))
    assert held == {"founder": ["its own", "its own"], None: [None, None]}
    assert found(tmp_path / "state") == []
    edit(tmp_path / "state", "UPDATE tokens SET holder = 'founder' WHERE id = 'second'")
    assert found(tmp_path / "state") == [
        "token second is another one's than its row says, by the log: that was changed"
    ]
