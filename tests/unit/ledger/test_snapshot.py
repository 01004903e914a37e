"""Copies of an open ledger: of one state, into pages that need be no file, while others go on."""

import asyncio
import threading
from pathlib import Path

import apsw
import pytest

from appliance.errors import SealBroken, StorageFailed
from appliance.ledger import PAGE_BYTES, Connection, Ledger, reading
from appliance.metrics import Registry

ROW = "INSERT INTO audit (time, actor_kind, actor_id, event, details) VALUES (0, 'system', ?, 'x', '{}')"


class Memory:
    """Pages in a dictionary."""

    def __init__(self) -> None:
        self.pages: dict[int, bytes] = {}

    @property
    def size(self) -> int:
        return max(self.pages, default=-PAGE_BYTES) + PAGE_BYTES

    def read(self, offset: int, size: int) -> bytes:
        start = offset - offset % PAGE_BYTES
        whole = b"".join(self.pages[at] for at in range(start, offset + size, PAGE_BYTES))
        return whole[offset - start :][:size]

    def write(self, offset: int, page: bytes) -> None:
        assert len(page) == PAGE_BYTES
        self.pages[offset] = page


def entries(connection: Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM audit").get)


def add(connection: Connection, count: int = 1) -> None:
    connection.executemany(ROW, [("x" * 200,)] * count)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_a_copy_is_of_one_state_while_others_write(tmp_path: Path) -> None:
    copied = Memory()
    async with Ledger(tmp_path, Registry()) as ledger:
        await ledger.write(lambda connection: add(connection, 3000))
        began, written = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def query(connection: Connection) -> int:
            found = entries(connection)
            loop.call_soon_threadsafe(began.set)
            written.wait(10)
            return found

        copying = asyncio.ensure_future(asyncio.to_thread(ledger.snapshot, copied, query))
        await began.wait()
        await ledger.write(add)  # neither waits for the copy nor gets into it
        written.set()
        while not copying.done():
            await ledger.write(add)
        assert await copying == 3000
        assert await ledger.read(entries) > 3000
        assert await ledger.empty_log()
    assert names(tmp_path) <= {"ledger.db", "ledger.db-wal", "ledger.db-shm"}
    with reading(copied) as connection:
        assert entries(connection) == 3000
        assert connection.execute("PRAGMA integrity_check").get == "ok"
        with pytest.raises(apsw.ReadOnlyError):
            add(connection)


async def test_a_copy_is_a_database_file_once_it_is_written_to_one(tmp_path: Path) -> None:
    copied = Memory()
    (tmp_path / "a").mkdir()
    async with Ledger(tmp_path / "a", Registry()) as ledger:
        await ledger.write(add)
        ledger.snapshot(copied, entries)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "ledger.db").write_bytes(copied.read(0, copied.size))
    async with Ledger(tmp_path / "b", Registry()) as again:
        assert await again.read(entries) == 1
        await again.write(add)


async def test_what_the_pages_raise_is_told(tmp_path: Path) -> None:
    class Full(Memory):
        def write(self, offset: int, page: bytes) -> None:
            if offset:
                raise StorageFailed("no room")
            super().write(offset, page)

    class Broken(Memory):
        broken = False

        def read(self, offset: int, size: int) -> bytes:
            if self.broken:
                raise SealBroken("changed")
            return super().read(offset, size)

    async with Ledger(tmp_path, Registry()) as ledger:
        await ledger.write(lambda connection: add(connection, 3000))
        with pytest.raises(StorageFailed, match="no room"):
            ledger.snapshot(Full(), entries)
        copied = Broken()
        ledger.snapshot(copied, entries)
        await ledger.write(add)
    with reading(copied) as connection:
        copied.broken = True
        with pytest.raises(SealBroken, match="changed"):
            entries(connection)


async def test_a_closed_ledger_is_not_copied(tmp_path: Path) -> None:
    async with Ledger(tmp_path, Registry()) as ledger:
        pass
    with pytest.raises(StorageFailed, match="closed"):
        ledger.snapshot(Memory(), entries)
