"""States from before collections had keys: all in them is sealed by the next start, and nothing is lost."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import apsw
import pytest

from appliance.errors import StorageFailed
from appliance.ledger import Connection, Ledger
from appliance.ledger.database import open_writer
from appliance.ledger.migrations import migrate, shipped
from appliance.metrics import Registry
from appliance.search import clear
from appliance.search.clear import seal_clear_rows
from appliance.vault import Keyring, open_keyring
from tests.clear_collections import CUSTOMER, DIM, EMPTY, GONE, SHOES, check, files, old_state
from tests.searching import ACTOR, BACKBONE, ROOT, shelf


async def test_an_old_state_is_sealed_whole_and_nothing_is_left_in_plain(tmp_path: Path) -> None:
    plaintext = old_state(tmp_path)
    assert plaintext.places(files(tmp_path)) != []
    async with shelf(tmp_path):
        assert plaintext.places(files(tmp_path)) == []  # while it runs, its log included
    await check(tmp_path)
    assert plaintext.places(files(tmp_path)) == []


async def test_numbers_of_removed_collections_are_not_given_again(tmp_path: Path) -> None:
    old_state(tmp_path)
    async with shelf(tmp_path) as things:
        await things.collections.add(ACTOR, CUSTOMER, "new", BACKBONE, DIM)
        numbers = await things.ledger.read(
            lambda c: [row[0] for row in c.execute("SELECT number FROM collections ORDER BY number")]
        )
        assert numbers[-1] == 10


async def sealing(folder: Path, act: Callable[[Ledger, Keyring], Awaitable[None]]) -> None:
    async with Ledger(folder, Registry()) as ledger:
        keyring = await open_keyring(folder, ledger, bytearray(ROOT))
        try:
            await act(ledger, keyring)
        finally:
            keyring.wipe()


async def test_sealing_goes_on_after_every_step_that_it_was_stopped_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after one transaction, after two, and so on until it comes to its end."""
    plaintext = old_state(tmp_path)
    monkeypatch.setattr(clear, "_RECORDS", 100)
    stops = 0

    async def one_more(ledger: Ledger, keyring: Keyring) -> None:
        nonlocal stops
        written, write = 0, ledger.write

        async def counted(act: Callable[[Connection], object], **more: object) -> object:
            nonlocal written
            written += 1
            if written > 1 + stops:
                raise StorageFailed("stopped by the test")
            return await write(act, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(ledger, "write", counted)
        await seal_clear_rows(ledger, keyring)

    while True:
        try:
            await sealing(tmp_path, one_more)
            break
        except StorageFailed:
            stops += 1
    assert stops >= 5
    await check(tmp_path)
    assert plaintext.places(files(tmp_path)) == []


def test_the_migration_keeps_every_row_and_moves_what_is_in_clear(tmp_path: Path) -> None:
    old_state(tmp_path)
    connection = open_writer(tmp_path / "ledger.db")
    before = apsw_rows(connection, "SELECT * FROM records ORDER BY key")
    migrate(connection, shipped())
    assert apsw_rows(connection, "SELECT * FROM clear_records ORDER BY key") == before
    assert apsw_rows(connection, "SELECT number, id, name, removed FROM collections") == [
        (2, SHOES, None, 0),
        (4, GONE, None, 1),
        (5, EMPTY, None, 0),
    ]
    assert apsw_rows(connection, "SELECT count(*) FROM records") == [(0,)]
    assert apsw_rows(connection, "PRAGMA foreign_key_check") == []
    connection.close()


def apsw_rows(connection: apsw.Connection, query: str) -> list[tuple[object, ...]]:
    return connection.execute(query).fetchall()


async def test_replies_of_before_are_forgotten(tmp_path: Path) -> None:
    old_state(tmp_path)
    async with shelf(tmp_path) as things:

        def left(connection: Connection) -> tuple[object, object]:
            tables = "SELECT count(*) FROM sqlite_schema WHERE name = 'clear_replies'"
            rows = "SELECT count(*) FROM search_replies"
            return connection.execute(tables).get, connection.execute(rows).get

        assert await things.ledger.read(left) == (0, 0)
