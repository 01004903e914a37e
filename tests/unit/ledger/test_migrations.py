"""The schema: numbered steps, all or nothing, never backwards."""

from pathlib import Path

import apsw
import pytest

from appliance.accounts.forward import resting
from appliance.errors import StorageFailed
from appliance.ledger.migrations import APPLICATION_ID, Migration, migrate, shipped

FIRST = Migration(1, "001_a", "CREATE TABLE a (x TEXT) STRICT; CREATE TABLE b (x TEXT) STRICT;")
SECOND = Migration(2, "002_c", "CREATE TABLE c (x TEXT) STRICT; INSERT INTO c VALUES ('one; two');")


@pytest.fixture
def connection(tmp_path: Path) -> apsw.Connection:
    return apsw.Connection(str(tmp_path / "ledger.db"))


def tables(connection: apsw.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT name FROM sqlite_schema ORDER BY name")]


def test_steps_are_applied_once_in_order(connection: apsw.Connection) -> None:
    migrate(connection, [FIRST])
    assert connection.pragma("user_version") == 1
    assert connection.pragma("application_id") == APPLICATION_ID
    migrate(connection, [FIRST, SECOND])
    migrate(connection, [FIRST, SECOND])
    assert connection.pragma("user_version") == 2
    assert tables(connection) == ["a", "b", "c"]
    assert connection.execute("SELECT x FROM c").fetchall() == [("one; two",)]


def test_a_failing_step_leaves_nothing(connection: apsw.Connection) -> None:
    broken = Migration(2, "002_broken", "CREATE TABLE c (x TEXT) STRICT; INSERT INTO nowhere VALUES (1);")
    with pytest.raises(apsw.SQLError, match="nowhere"):
        migrate(connection, [FIRST, broken])
    assert tables(connection) == []
    assert connection.pragma("user_version") == 0


@pytest.mark.parametrize("statement", ["COMMIT;", "commit;", "  ROLLBACK;", "END TRANSACTION;"])
def test_a_step_may_not_end_the_transaction(connection: apsw.Connection, statement: str) -> None:
    step = Migration(1, "001_sly", f"CREATE TABLE a (x TEXT) STRICT;\n{statement}\n")
    with pytest.raises(ValueError, match="001_sly"):
        migrate(connection, [step])
    assert tables(connection) == []


def test_a_newer_schema_is_refused_with_the_way_out(connection: apsw.Connection) -> None:
    migrate(connection, [FIRST, SECOND])
    with pytest.raises(StorageFailed, match=r"schema 2, this version knows up to 1: .*newer version"):
        migrate(connection, [FIRST])
    assert tables(connection) == ["a", "b", "c"]


def test_another_applications_database_is_refused(connection: apsw.Connection) -> None:
    connection.execute("CREATE TABLE theirs (x)")
    with pytest.raises(StorageFailed, match="not a ledger"):
        migrate(connection, [FIRST])
    assert tables(connection) == ["theirs"]


def test_the_shipped_steps_are_numbered_without_gaps() -> None:
    steps = shipped()
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert steps[0].name == "001_accounts"


def test_two_steps_with_one_number_are_refused(tmp_path: Path) -> None:
    (tmp_path / "001_a.sql").touch()
    (tmp_path / "001_b.sql").touch()
    with pytest.raises(ValueError, match="001_a"):
        shipped(tmp_path)


def test_every_shipped_table_is_strict(connection: apsw.Connection) -> None:
    migrate(connection, shipped())
    rows = connection.execute("SELECT name, strict FROM pragma_table_list WHERE type = 'table'").fetchall()
    assert [name for name, strict in rows if not strict and not str(name).startswith("sqlite_")] == []
    assert {"audit", "customers", "tokens"} <= {name for name, _ in rows}


def test_boxes_leave_the_rows_of_their_objects(connection: apsw.Connection) -> None:
    steps = shipped()
    migrate(connection, steps[:10])
    connection.execute(
        "INSERT INTO objects (key, id, dataset, image, label, xmin, ymin, xmax, ymax, words, created_at)"
        " VALUES ((7 << 32) + 1, 'an id', 7, 1, 2, 10, 20, 110.5, 220, x'00', 3)"
    )
    migrate(connection, steps)
    key = (7 << 32) + 1
    assert connection.execute("SELECT * FROM clear_boxes").fetchall() == [(key, 10, 20, 110.5, 220)]
    assert connection.execute("SELECT * FROM objects").fetchall() == [(key, "an id", 7, 1, 2, b"\0", 3)]


def test_customers_that_used_a_token_are_claimed_and_agreements_stay(connection: apsw.Connection) -> None:
    steps = shipped()
    migrate(connection, [step for step in steps if step.number < 21])
    for name in ("used", "unused"):
        connection.execute("INSERT INTO customers (id, name, created_at) VALUES (?1, ?1, 1)", (name,))
        connection.execute(
            "INSERT INTO agreements (id, customer, kind, signed_at, active_at) VALUES (?1, ?1, ?2, 2, 3)",
            (name, "training-data"),
        )
        for time, kind in ((4, "operator"), (5, "token" if name == "used" else "system"), (6, "operator")):
            connection.execute(
                "INSERT INTO audit (time, actor_kind, actor_id, event, customer, details)"
                " VALUES (?, ?, 'x', 'x', ?, '{}')",
                (time, kind, name),
            )
    migrate(connection, steps)
    assert connection.execute("SELECT id, claimed_at FROM customers ORDER BY id").fetchall() == [
        ("unused", None),
        ("used", 5),
    ]
    kept = "SELECT id, kind, signed_at, active_at, revoked_at, document FROM agreements ORDER BY id"
    assert connection.execute(kept).fetchall() == [
        (name, "training-data", 2, 3, None, None) for name in ("unused", "used")
    ]


@pytest.mark.parametrize("reached", [None, 1800])
def test_what_was_answered_before_is_as_old_as_it_was(
    connection: apsw.Connection, reached: int | None
) -> None:
    """The clock stood at 1500 when it was set ahead by 300: what was stamped until then rests from later."""
    steps, day = shipped(), 86_400_000
    migrate(connection, [step for step in steps if step.number < 34])
    connection.execute("INSERT INTO customers (id, name, created_at) VALUES ('c', 'c', 1)")
    connection.execute("INSERT INTO clock_corrections VALUES (1500, 300, ?)", (reached,))
    for number, ended in enumerate((1400, 1900, None)):
        connection.execute(
            "INSERT INTO requests (id, customer, type, status, created_at, finished_at)"
            " VALUES (?1, 'c', 'x', iif(?2 IS NULL, 'CREATED', 'DONE'), 1, ?2)",
            (str(number), ended),
        )
        connection.execute(
            "INSERT INTO search_replies VALUES (?1, 'c', randomblob(32), 1, x'', 200, x'', ?2)",
            (number, (ended or 2000) + day),
        )
    migrate(connection, steps)
    now = 2000
    resting_now = connection.execute(f"SELECT {resting('?1')}", (now,)).get
    ages = connection.execute("SELECT ? - rests_from FROM requests ORDER BY number", (resting_now,))
    assert [row[0] for row in ages] == [now - 1700, now - 1900, None]
    left = connection.execute("SELECT until - ? FROM search_replies ORDER BY number", (resting_now,))
    assert [row[0] for row in left] == [1700 + day - now, 1900 + day - now, day]
