"""Writes that are durable on return, reads of one snapshot, settings that are really in force."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest
from blockbuster import blockbuster_ctx

from appliance.errors import Conflict, StorageFailed
from appliance.ledger import Connection, Ledger, database
from appliance.ledger.migrations import APPLICATION_ID
from appliance.metrics import Registry
from tests.ledgers import log_is_empty


def insert(connection: Connection, name: str) -> str:
    connection.execute("INSERT INTO customers (id, name, created_at) VALUES (?, ?, 0)", (name, name))
    return name


def inserting(name: str) -> Callable[[Connection], str]:
    return lambda connection: insert(connection, name)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


def names(connection: Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT name FROM customers ORDER BY name")]


def opened(folder: Path) -> Ledger:
    return Ledger(folder, Registry())


async def test_a_write_is_seen_by_the_next_read_and_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        assert await ledger.write(inserting("a")) == "a"
        assert await ledger.read(names) == ["a"]
    async with opened(tmp_path) as ledger:
        assert await ledger.read(names) == ["a"]


async def test_an_act_that_raises_undoes_only_itself(tmp_path: Path) -> None:
    def refused(connection: Connection) -> None:
        insert(connection, "half")
        raise Conflict("no")

    async with opened(tmp_path) as ledger:
        results = await asyncio.gather(
            ledger.write(inserting("before")),
            ledger.write(refused),
            ledger.write(inserting("before")),
            ledger.write(inserting("later")),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [str, Conflict, apsw.ConstraintError, str]
        assert await ledger.read(names) == ["before", "later"]
        assert ledger.failure is None


async def test_queued_acts_share_a_commit(tmp_path: Path) -> None:
    registry = Registry()
    gate = threading.Event()
    async with Ledger(tmp_path, registry) as ledger:
        first = asyncio.ensure_future(ledger.write(lambda connection: gate.wait(30)))
        rest = [asyncio.ensure_future(ledger.write(inserting(f"n{i}"))) for i in range(50)]
        await asyncio.sleep(0)
        gate.set()
        assert await first
        await asyncio.gather(*rest)
        assert len(await ledger.read(names)) == 50
    assert registry.get_sample_value("appliance_ledger_acts_total") == 51
    commits = registry.get_sample_value("appliance_ledger_commit_seconds_count")
    assert commits is not None
    assert commits <= 3


async def test_acts_run_in_the_order_they_were_handed_in(tmp_path: Path) -> None:
    ran: list[int] = []

    def appending(number: int) -> Callable[[Connection], None]:
        return lambda _: ran.append(number)

    async with opened(tmp_path) as ledger:
        await asyncio.gather(*(ledger.write(appending(number)) for number in range(600)))
    assert ran == list(range(600))


async def test_then_runs_on_the_loop_after_the_commit(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    async with opened(tmp_path) as ledger:
        await ledger.write(
            inserting("a"),
            then=lambda name: seen.append((name, threading.get_ident())),
        )
        assert seen == [("a", threading.get_ident())]


async def test_then_runs_for_a_caller_that_was_cancelled(tmp_path: Path) -> None:
    started, gate, remembered = threading.Event(), threading.Event(), asyncio.Event()

    def act(connection: Connection) -> str:
        started.set()
        gate.wait(30)
        return insert(connection, "a")

    async with opened(tmp_path) as ledger:
        task = asyncio.ensure_future(ledger.write(act, then=lambda _: remembered.set()))
        await asyncio.to_thread(started.wait, 30)
        task.cancel()
        gate.set()
        await asyncio.wait_for(remembered.wait(), 30)
        assert await ledger.read(names) == ["a"]
        assert task.cancelled()


async def test_then_is_not_run_for_a_refused_act(tmp_path: Path) -> None:
    def refused(connection: Connection) -> None:
        raise Conflict("no")

    called: list[None] = []
    async with opened(tmp_path) as ledger:
        with pytest.raises(Conflict):
            await ledger.write(refused, then=called.append)
    assert called == []


async def test_an_error_of_then_reaches_the_caller(tmp_path: Path) -> None:
    def failing(name: str) -> None:
        raise KeyError(name)

    async with opened(tmp_path) as ledger:
        with pytest.raises(KeyError):
            await ledger.write(inserting("a"), then=failing)
        assert await ledger.read(names) == ["a"]


async def test_an_act_cancelled_in_the_queue_is_not_run(tmp_path: Path) -> None:
    started, gate = threading.Event(), threading.Event()

    def blocking(connection: Connection) -> None:
        started.set()
        gate.wait(30)

    async with opened(tmp_path) as ledger:
        first = asyncio.ensure_future(ledger.write(blocking))
        await asyncio.to_thread(started.wait, 30)
        second = asyncio.ensure_future(ledger.write(inserting("a")))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        gate.set()
        await first
        assert await ledger.read(names) == []


async def test_what_is_queued_at_the_end_is_still_written(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    async with ledger:
        writes = [asyncio.ensure_future(ledger.write(inserting(f"n{i}"))) for i in range(20)]
        await asyncio.sleep(0)
    assert len(await asyncio.gather(*writes)) == 20
    for refused in (ledger.write(names), ledger.read(names)):
        with pytest.raises(StorageFailed, match="closed"):
            await refused
    async with opened(tmp_path) as again:
        assert len(await again.read(names)) == 20


async def test_closing_leaves_an_empty_log_and_all_in_one_file(tmp_path: Path) -> None:
    files = {"ledger.db": 0o600, "ledger.db-wal": 0o600, "ledger.db-shm": 0o600}
    async with opened(tmp_path) as ledger:
        await ledger.write(inserting("a"))
        assert modes(tmp_path) == files
        assert ledger.size_bytes() == sum(
            (tmp_path / name).stat().st_size for name in ("ledger.db", "ledger.db-wal")
        )
    assert modes(tmp_path) == files
    assert log_is_empty(tmp_path)
    for name in ("ledger.db-wal", "ledger.db-shm"):
        (tmp_path / name).unlink()
    async with opened(tmp_path) as ledger:
        assert await ledger.read(names) == ["a"]


async def test_the_log_keeps_its_room_on_the_volume(tmp_path: Path) -> None:
    """Also once it is emptied, and from run to run: on a full volume others would have it."""

    def room() -> int:
        return (tmp_path / "ledger.db-wal").stat().st_blocks * 512

    for name in ("a", "b"):
        async with opened(tmp_path) as ledger:
            assert room() >= database.LOG_BYTES
            await ledger.write(inserting(name))
            assert await ledger.empty_log()
            assert room() >= database.LOG_BYTES
        assert room() >= database.LOG_BYTES
    async with opened(tmp_path) as ledger:
        assert await ledger.read(names) == ["a", "b"]


async def test_a_read_sees_one_snapshot_and_cannot_write(tmp_path: Path) -> None:
    reading, written = threading.Event(), threading.Event()

    def twice(connection: Connection) -> tuple[list[str], list[str]]:
        before = names(connection)
        reading.set()
        written.wait(30)
        return before, names(connection)

    async with opened(tmp_path) as ledger:
        query = asyncio.ensure_future(ledger.read(twice))
        await asyncio.to_thread(reading.wait, 30)
        await ledger.write(inserting("a"))
        assert await ledger.read(names) == ["a"]
        written.set()
        assert await query == ([], [])
        with pytest.raises(StorageFailed, match="readonly"):
            await ledger.read(inserting("b"))
        assert ledger.failure is None
        assert await ledger.read(names) == ["a"]


async def test_a_statement_that_is_never_ended_shows_nobody_else_an_old_state(tmp_path: Path) -> None:
    kept: list[object] = []

    def abandoned(connection: Connection) -> None:
        rows = connection.execute("SELECT name FROM customers")
        kept.append(rows)
        next(rows)
        raise TypeError("in the middle of the rows")

    async with opened(tmp_path) as ledger:
        for name in ("a", "b"):
            await ledger.write(inserting(name))
        for _ in range(10):
            with pytest.raises(TypeError):
                await ledger.read(abandoned)
        await ledger.write(inserting("c"))
        for _ in range(10):
            assert await ledger.read(names) == ["a", "b", "c"]
        assert await ledger.empty_log()


async def test_an_act_that_ends_the_transaction_fails_the_ledger(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        with pytest.raises(StorageFailed, match="transaction ended within an act"):
            await ledger.write(lambda connection: connection.execute("COMMIT").get)
        with pytest.raises(StorageFailed, match="no further write is accepted until a restart"):
            await ledger.write(inserting("a"))


SETTINGS = {
    "journal_mode": "wal",
    "synchronous": 2,
    "secure_delete": 1,
    "foreign_keys": 1,
    "recursive_triggers": 1,
    "trusted_schema": 0,
    "cell_size_check": 1,
    "temp_store": 2,
    "mmap_size": 0,
    "wal_autocheckpoint": 0,
    "application_id": APPLICATION_ID,
}


async def test_the_settings_are_in_force_on_every_connection(tmp_path: Path) -> None:
    def settings(connection: Connection) -> dict[str, object]:
        return {name: connection.execute(f"PRAGMA {name}").get for name in SETTINGS}

    async with opened(tmp_path) as ledger:
        assert await ledger.write(settings) == SETTINGS
        assert await ledger.read(settings) == SETTINGS


async def test_a_setting_that_does_not_take_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SQLite does not refuse what it does not know, as it does not refuse a WAL it cannot have.
    monkeypatch.setitem(database._PRAGMAS, "synchronous", 17)
    with pytest.raises(StorageFailed, match="PRAGMA synchronous is"):
        async with opened(tmp_path):
            pass


def test_an_sqlite_with_the_wal_bug_is_refused() -> None:
    for version in ("3.40.1", "3.51.2", "3.7.0"):
        with pytest.raises(StorageFailed, match="corruption"):
            database._refuse_old_sqlite(version)
    for version in ("3.51.3", "3.53.0", "4.0.0", apsw.sqlite_lib_version()):
        database._refuse_old_sqlite(version)


async def test_deleted_rows_leave_no_bytes_behind(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        await ledger.write(inserting("ERASED-MARKER"))
        await ledger.write(lambda connection: connection.execute("DELETE FROM customers").get)
    assert b"ERASED-MARKER" not in (tmp_path / "ledger.db").read_bytes()


async def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StorageFailed, match=r"ledger\.db: .*not a database"):
        async with opened(tmp_path):
            pass


async def test_a_link_or_a_missing_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").symlink_to(tmp_path / "elsewhere")
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(StorageFailed):
            async with opened(folder):
                pass
    assert not (tmp_path / "elsewhere").exists()


async def test_nothing_blocks_the_event_loop(tmp_path: Path) -> None:
    with blockbuster_ctx("appliance"):
        async with opened(tmp_path) as ledger:
            await asyncio.gather(*(ledger.write(inserting(f"n{i}")) for i in range(20)))
            assert len(await ledger.read(names)) == 20
            assert ledger.size_bytes() > 0


async def test_what_was_deleted_is_in_no_file_once_the_log_is_empty(tmp_path: Path) -> None:
    secret = "a very secret name " * 3

    def on_disk() -> bytes:
        return b"".join(path.read_bytes() for path in tmp_path.iterdir())

    async with opened(tmp_path) as ledger:
        await ledger.write(inserting(secret))
        await ledger.write(lambda connection: connection.execute("DELETE FROM customers").get)
        assert secret.encode() in on_disk()
        assert await ledger.empty_log()
        assert secret.encode() not in on_disk()
        await ledger.write(inserting("later"))
        assert await ledger.read(names) == ["later"]


async def test_a_reader_keeps_the_log_and_nothing_else_waits(tmp_path: Path) -> None:
    reading, done = threading.Event(), threading.Event()

    def slowly(connection: Connection) -> list[str]:
        before = names(connection)
        reading.set()
        done.wait(30)
        return before

    async with opened(tmp_path) as ledger:
        await ledger.write(inserting("a"))
        slow = asyncio.ensure_future(ledger.read(slowly))
        await asyncio.to_thread(reading.wait, 30)
        await ledger.write(inserting("b"))
        assert not await ledger.empty_log()
        await ledger.write(inserting("c"))
        assert ledger.failure is None
        done.set()
        assert await slow == ["a"]
        assert await ledger.empty_log()


async def test_an_act_costs_what_it_does_and_not_what_it_has_done(tmp_path: Path) -> None:
    """Under a savepoint every statement costs with all that came before it: 5,000 took seconds."""
    async with Ledger(tmp_path, Registry()) as ledger:
        await ledger.write(
            lambda connection: connection.execute(
                "CREATE TABLE counts (number INTEGER); INSERT INTO counts VALUES (0);"
                "CREATE TABLE many (id TEXT UNIQUE, words BLOB);"
                "CREATE TRIGGER counted AFTER INSERT ON many"
                " BEGIN UPDATE counts SET number = number + 1; END;"
                "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)"
                " INSERT INTO many SELECT hex(randomblob(16)), zeroblob(120) FROM n"
            ).fetchall()
        )

        def insert(connection: Connection) -> None:
            for _ in range(5_000):
                connection.execute("INSERT INTO many VALUES (hex(randomblob(16)), zeroblob(120))")

        before = time.process_time()
        await ledger.write(insert)
        assert time.process_time() - before < 1.0
