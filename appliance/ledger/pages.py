"""A database whose pages lie wherever the caller keeps them: the copy of a ledger, and a sealed one read.

SQLite reaches them through a VFS of the connection's own, so that no copy in clear has to lie on a disk.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import apsw

Connection = apsw.Connection

PAGE_BYTES = 4096

_NAME = "ledger"
_PAGES_AT_ONCE = 256
# Offsets 18 and 19 of the file tell how it is written and read (https://sqlite.org/fileformat.html#file_format_version_numbers):
# a write-ahead log needs shared memory beside the file, which a copy does not have.
_FORMAT, _ROLLBACK = slice(18, 20), b"\x01\x01"
_CACHE_KIB = 512


class Pages(Protocol):
    """Where a database lies; for one thread at a time."""

    @property
    def size(self) -> int:
        """Bytes in all, a multiple of PAGE_BYTES."""

    def read(self, offset: int, size: int) -> bytes:
        """The bytes at `offset`, fewer where the database ends."""

    def write(self, offset: int, page: bytes) -> None:
        """One page, in any order, some of them twice."""


def copy(source: Connection, target: Pages) -> None:
    """The database as the open transaction of `source` sees it; others may write meanwhile. Blocks.

    Raises apsw.Error, and what `target` raises.
    """
    with (
        _opened(target, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE) as copied,
        copied.backup("main", source, "main") as backup,
    ):
        while not backup.done:
            backup.step(_PAGES_AT_ONCE)


@contextmanager
def reading(source: Pages) -> Iterator[Connection]:
    """A connection that reads what `copy` has written, of one thread, until the block ends.

    Its statements raise apsw.Error, and what `source` raises.
    """
    with _opened(source, apsw.SQLITE_OPEN_READONLY) as connection:
        yield connection


@contextmanager
def _opened(pages: Pages, flags: int) -> Iterator[Connection]:
    vfs = _Vfs(f"pages-{os.urandom(8).hex()}", pages)
    try:
        connection = Connection(_NAME, flags=flags, vfs=vfs.name)
        try:
            for pragma in ("temp_store = 2", "trusted_schema = 0", f"cache_size = -{_CACHE_KIB}"):
                connection.execute(f"PRAGMA {pragma}")
            if flags & apsw.SQLITE_OPEN_CREATE:
                # A copy that was interrupted is thrown away: nothing has to lead back to what was before.
                connection.execute("PRAGMA journal_mode = OFF").fetchall()
                connection.execute("PRAGMA synchronous = OFF")
            else:
                connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
                connection.execute("PRAGMA query_only = 1")
            yield connection
        finally:
            connection.close(True)
    finally:
        vfs.unregister()


class _Vfs(apsw.VFS):
    """Knows one file."""

    def __init__(self, name: str, pages: Pages) -> None:
        self.name = name
        self._pages = pages
        super().__init__(name, "")

    def xOpen(self, name: object, flags: list[int]) -> "_File":  # type: ignore[override]  # noqa: ARG002, N802
        if not flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            raise apsw.CantOpenError("a copy of the ledger has no second file")
        return _File(self._pages)

    def xAccess(self, pathname: str, flags: int) -> bool:  # noqa: ARG002, N802
        return False

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        """There is no second file."""

    def xFullPathname(self, name: str) -> str:  # noqa: N802
        return name


class _File:
    """What SQLite asks of a file; nobody shares it, so locks have nothing to do."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        return self._pages.read(offset, amount) if offset < self._pages.size else b""

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        if offset == 0:
            first = bytearray(data)
            first[_FORMAT] = _ROLLBACK
            data = bytes(first)
        self._pages.write(offset, bytes(data))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        """A copy is only ever written from nothing."""

    def xSync(self, flags: int) -> None:  # noqa: N802
        """Whoever keeps the pages makes them durable."""

    def xFileSize(self) -> int:  # noqa: N802
        return self._pages.size

    def xLock(self, level: int) -> None:  # noqa: N802
        """Nobody else has it open."""

    def xUnlock(self, level: int) -> None:  # noqa: N802
        """Nobody else has it open."""

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return False

    def xClose(self) -> None:  # noqa: N802
        """The pages are the caller's."""

    def xFileControl(self, op: int, ptr: int) -> bool:  # noqa: ARG002, N802
        return False

    def xSectorSize(self) -> int:  # noqa: N802
        return PAGE_BYTES

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return 0
