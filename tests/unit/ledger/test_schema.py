"""A ledger that something else has built on is not opened, and says what is to be done."""

import asyncio
import shutil
import sqlite3
from pathlib import Path

import pytest

from appliance.errors import StorageFailed
from appliance.ledger import Connection, Ledger
from appliance.ledger.migrations import shipped
from appliance.metrics import Registry

PARTIAL = (
    "audit_of_recoveries",
    "audit_of_revoked_tokens",
    "audit_of_revoked_agreements",
    "audit_of_closed_grants",
    "audit_of_starts",
    "audit_of_damaged_tokens",
    "audit_of_customers",
    "audit_of_claims",
)
ENTRY = (
    "INSERT INTO audit (time, actor_kind, actor_id, event, customer, subject, details)"
    " VALUES (?, 'operator', '0', ?, 'zoo', ?, ?)"
)
TOLD = (
    ("token.add", "recovered", '{"recovery":true}'),
    ("token.add", "ordinary", "{}"),
    ("token.rotate", "rotated", '{"overlap_seconds":0,"successor":"x"}'),
    ("token.revoke", "revoked", "{}"),
    ("agreement.revoke", "signed", "{}"),
    ("grant.deny", "denied", "{}"),
    ("daemon.start", None, '{"schema":31}'),
    ("token.damaged", "changed", "{}"),
    ("customer.claim", "zoo", "{}"),
    ("customer.suspend", "zoo", "{}"),
    ("customer.resume", "zoo", "{}"),
    ("customer.erase", "zoo", "{}"),
)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asyncio.run(filled(tmp_path_factory.mktemp("ledger")))


@pytest.fixture
def folder(lived: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lived, tmp_path / "ledger"))


async def filled(folder: Path) -> Path:
    def fill(connection: Connection) -> None:
        for time, entry in enumerate(TOLD):
            connection.execute(ENTRY, (time, *entry))

    async with Ledger(folder, Registry()) as ledger:
        await ledger.write(fill)
    return folder


def by_hand(folder: Path, *statements: str) -> None:
    connection = sqlite3.connect(folder / "ledger.db", isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def hollow(folder: Path, index: str, made: str) -> None:
    """Have an index hold what one `made` so would, and the schema say that it is as it was."""
    connection = sqlite3.connect(folder / "ledger.db", isolation_level=None)
    (honest,) = connection.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (index,)).fetchone()
    connection.execute(f"DROP INDEX {index}")
    connection.execute(f"CREATE INDEX {index} {made}")
    connection.execute("PRAGMA writable_schema = 1")
    connection.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (honest, index))
    connection.close()


async def refused(folder: Path) -> str:
    with pytest.raises(StorageFailed) as raised:
        async with Ledger(folder, Registry()):
            pass
    return str(raised.value)


async def starts(folder: Path) -> bool:
    async with Ledger(folder, Registry()) as ledger:
        return await ledger.read(
            lambda connection: bool(connection.execute("SELECT count(*) FROM audit").get)
        )


async def test_a_ledger_as_it_was_made_is_opened(folder: Path) -> None:
    assert await starts(folder)


async def test_the_statistics_that_sqlite_makes_are_no_difference(folder: Path) -> None:
    by_hand(folder, "ANALYZE")
    assert await starts(folder)


async def test_what_the_appliance_drops_itself_may_be_gone(folder: Path) -> None:
    by_hand(folder, "DROP TABLE clear_records", "DROP TABLE clear_requests")
    assert await starts(folder)


@pytest.mark.parametrize(
    ("statements", "difference"),
    [
        (
            ["CREATE TRIGGER t1 AFTER INSERT ON tokens BEGIN UPDATE tokens SET expires_at = NULL; END"],
            "trigger t1 is none of its",
        ),
        (["CREATE VIEW v1 AS SELECT * FROM tokens"], "view v1 is none of its"),
        (["CREATE TABLE more (x)"], "table more is none of its"),
        (["CREATE INDEX more ON tokens (scopes)"], "index more is none of its"),
        (["ALTER TABLE tokens ADD COLUMN more TEXT"], "table tokens is another"),
        (["DROP TRIGGER audit_rows_never_go"], "trigger audit_rows_never_go is missing"),
        (
            [
                "DROP TRIGGER audit_rows_never_go",
                "CREATE TRIGGER audit_rows_never_go BEFORE DELETE ON audit BEGIN SELECT 1; END",
            ],
            "trigger audit_rows_never_go is another",
        ),
        (["DROP INDEX audit_of_starts"], "index audit_of_starts is missing"),
    ],
)
async def test_what_differs_from_what_was_made_is_named(
    folder: Path, statements: list[str], difference: str
) -> None:
    by_hand(folder, *statements)
    told = await refused(folder)
    assert difference in told
    assert "restore a backup" in told


async def test_nothing_is_migrated_of_a_ledger_that_differs(folder: Path) -> None:
    before = shipped()[-2].number
    by_hand(folder, "CREATE VIEW v1 AS SELECT 1", f"PRAGMA user_version = {before}")
    assert "view v1 is none of its" in await refused(folder)
    connection = sqlite3.connect(folder / "ledger.db")
    assert connection.execute("PRAGMA user_version").fetchone() == (before,)
    connection.close()


def test_all_indices_over_some_entries_are_tried_here(folder: Path) -> None:
    connection = sqlite3.connect(folder / "ledger.db")
    query = "SELECT name FROM pragma_index_list('audit') WHERE partial"
    assert {row[0] for row in connection.execute(query)} == set(PARTIAL)
    connection.close()


@pytest.mark.parametrize("index", PARTIAL)
async def test_an_index_that_hides_entries_behind_its_honest_text_is_found(folder: Path, index: str) -> None:
    column = "seq" if index == "audit_of_starts" else "subject"
    hollow(folder, index, f"ON audit ({column}) WHERE event = 'nothing'")
    assert index in await refused(folder)


async def test_an_index_that_hides_what_became_of_customers_is_found(folder: Path) -> None:
    hollow(folder, "audit_by_customer", "ON audit (customer, seq) WHERE event <> 'customer.erase'")
    assert "audit_by_customer" in await refused(folder)


@pytest.mark.parametrize(
    "made",
    [
        "ON audit (subject, time) WHERE event IN ('token.damaged', 'token.rotate')",
        "ON audit (actor_id, time) WHERE event IN ('token.revoke', 'token.rotate')",
        "ON audit (subject, time) WHERE event IN ('token.revoke', 'token.rotate', 'grant.deny')",
        "ON audit (subject DESC, time) WHERE event IN ('token.revoke', 'token.rotate')",
    ],
)
async def test_an_index_with_as_many_entries_or_more_but_others_is_found(folder: Path, made: str) -> None:
    hollow(folder, "audit_of_revoked_tokens", made)
    assert "audit_of_revoked_tokens" in await refused(folder)


async def test_an_index_with_its_entries_in_another_order_is_found(folder: Path) -> None:
    """The last one of a customer counts."""
    events = "event IN ('customer.suspend', 'customer.resume', 'customer.erase')"
    hollow(folder, "audit_of_customers", f"ON audit (subject, time DESC) WHERE {events}")
    assert "audit_of_customers" in await refused(folder)


async def test_indices_that_are_written_anew_are_taken_again(folder: Path) -> None:
    hollow(folder, "audit_of_revoked_tokens", "ON audit (subject, time) WHERE event = 'nothing'")
    by_hand(folder, "REINDEX")
    assert await starts(folder)
