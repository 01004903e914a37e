"""What somebody does to the schema of a ledger that is open: nothing is written until it is undone."""

import asyncio
from pathlib import Path

import apsw
import pytest

from appliance.errors import LedgerAltered
from appliance.ledger import Connection, Ledger
from appliance.metrics import Registry

ADD = "INSERT INTO customers (id, name, created_at) VALUES (hex(randomblob(8)), hex(randomblob(8)), 0)"
TRIGGER = "CREATE TRIGGER t1 AFTER INSERT ON customers BEGIN UPDATE customers SET name = 'x' || id; END"
NOTE = (
    "INSERT INTO audit (time, actor_kind, actor_id, event, details)"
    " VALUES (0, 'system', 'ledger', 'ledger.alter', '{}')"
)


def by_hand(folder: Path, *statements: str) -> None:
    """As somebody does who can write the file."""
    connection = apsw.Connection(str(folder / "ledger.db"))
    for statement in statements:
        connection.execute(statement)
    connection.close()


def count(folder: Path) -> int:
    connection = apsw.Connection(str(folder / "ledger.db"))
    found = connection.execute("PRAGMA schema_version").get
    connection.close()
    return int(found)


def add(connection: Connection) -> None:
    connection.execute(ADD)


def note(connection: Connection) -> None:
    connection.execute(NOTE)


def customers(connection: Connection) -> list[str]:
    return [str(row[0]) for row in connection.execute("SELECT name FROM customers")]


def noted(connection: Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM audit WHERE event = 'ledger.alter'").get)


@pytest.mark.parametrize(
    ("done", "undone", "difference"),
    [
        (TRIGGER, "DROP TRIGGER t1", "trigger t1 is none of its"),
        ("CREATE VIEW v1 AS SELECT 1", "DROP VIEW v1", "view v1 is none of its"),
        ("CREATE INDEX i1 ON tokens (scopes)", "DROP INDEX i1", "index i1 is none of its"),
        ("CREATE TABLE t2 (x)", "DROP TABLE t2", "table t2 is none of its"),
        (
            "DROP INDEX audit_of_starts",
            "CREATE INDEX audit_of_starts ON audit (seq) WHERE event = 'daemon.start'",
            "index audit_of_starts is missing",
        ),
    ],
)
async def test_nothing_is_written_until_it_is_undone(
    tmp_path: Path, done: str, undone: str, difference: str
) -> None:
    async with Ledger(tmp_path, Registry()) as ledger:
        await ledger.write(add)
        before = await ledger.read(customers)
        by_hand(tmp_path, done)
        writes = await asyncio.gather(*(ledger.write(add) for _ in range(5)), return_exceptions=True)
        for refused in writes:
            assert isinstance(refused, LedgerAltered)
            assert difference in str(refused)
            assert "ledger.db" not in refused.told
        assert difference in str(ledger.alteration)
        assert await ledger.read(customers) == before
        by_hand(tmp_path, undone)
        await ledger.write(add)
        assert ledger.alteration is None
        assert ledger.failure is None
        assert len(await ledger.read(customers)) == 2


async def test_a_read_by_what_was_taken_away_is_refused_for_that(tmp_path: Path) -> None:
    def starts(connection: Connection) -> int:
        by = "audit INDEXED BY audit_of_starts WHERE event = 'daemon.start'"
        return int(connection.execute(f"SELECT count(*) FROM {by}").get)

    def nonsense(connection: Connection) -> None:
        connection.execute("SELECT nothing FROM nowhere")

    async with Ledger(tmp_path, Registry()) as ledger:
        with pytest.raises(apsw.SQLError):
            await ledger.read(nonsense)
        by_hand(tmp_path, "DROP INDEX audit_of_starts")
        with pytest.raises(LedgerAltered, match="index audit_of_starts is missing"):
            await ledger.read(starts)
        by_hand(tmp_path, "CREATE INDEX audit_of_starts ON audit (seq) WHERE event = 'daemon.start'")
        assert await ledger.read(starts) == 0


@pytest.mark.parametrize("statements", [["ANALYZE"], ["VACUUM"], [TRIGGER, "DROP TRIGGER t1"]])
async def test_what_leaves_the_schema_as_it_was_is_no_alteration(
    tmp_path: Path, statements: list[str]
) -> None:
    async with Ledger(tmp_path, Registry()) as ledger:
        await ledger.write(add)
        before = count(tmp_path)
        by_hand(tmp_path, *statements)
        assert count(tmp_path) != before
        await ledger.write(add)
        assert ledger.alteration is None


async def test_what_the_appliance_changes_itself_is_none(tmp_path: Path) -> None:
    async with Ledger(tmp_path, Registry()) as ledger:
        await ledger.write(lambda connection: connection.execute("DROP TABLE clear_requests").fetchall())
        await ledger.write(add)
    async with Ledger(tmp_path, Registry()) as ledger:
        await ledger.write(add)


async def test_a_count_of_changes_that_is_set_back_hides_nothing(tmp_path: Path) -> None:
    async with Ledger(tmp_path, Registry()) as ledger:
        await ledger.write(add)
        before = count(tmp_path)
        by_hand(tmp_path, TRIGGER)
        with pytest.raises(LedgerAltered):
            await ledger.write(add)
        by_hand(tmp_path, f"PRAGMA schema_version = {before}")
        with pytest.raises(LedgerAltered):
            await ledger.write(add)


async def test_a_hidden_change_of_before_the_first_write_does_nothing(tmp_path: Path) -> None:
    async with Ledger(tmp_path, Registry()) as ledger:
        before = count(tmp_path)
        by_hand(tmp_path, TRIGGER, f"PRAGMA schema_version = {before}")
        await ledger.write(add)
        assert not [name for name in await ledger.read(customers) if name.startswith("x")]


async def test_it_is_noted_once_and_no_trigger_sees_that(tmp_path: Path) -> None:
    eraser = "CREATE TRIGGER t1 AFTER INSERT ON audit BEGIN UPDATE customers SET name = 'x' || id; END"
    async with Ledger(tmp_path, Registry(), altered=note) as ledger:
        await ledger.write(add)
        for times in (1, 2):
            by_hand(tmp_path, eraser)
            for _ in range(3):
                with pytest.raises(LedgerAltered):
                    await ledger.write(add)
            assert await ledger.read(noted) == times
            by_hand(tmp_path, "DROP TRIGGER t1")
            await ledger.write(add)
        assert not [name for name in await ledger.read(customers) if name.startswith("x")]
        with pytest.raises(Exception, match="append-only"):  # the appliance's own triggers are back
            await ledger.write(lambda connection: connection.execute("DELETE FROM audit").fetchall())


async def test_one_that_cannot_be_noted_is_refused_all_the_same(tmp_path: Path) -> None:
    async with Ledger(tmp_path, Registry(), altered=note) as ledger:
        by_hand(tmp_path, "CREATE UNIQUE INDEX i1 ON audit (time)", NOTE)
        for _ in range(2):
            with pytest.raises(LedgerAltered, match="index i1"):
                await ledger.write(add)
        by_hand(tmp_path, "DROP INDEX i1")
        await ledger.write(add)
        assert ledger.failure is None
