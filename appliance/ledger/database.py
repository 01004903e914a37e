"""Connections to the ledger file: opened with every safety setting set, read back and compared."""

import ctypes
import os
from pathlib import Path

import apsw

from appliance.errors import StorageFailed
from appliance.volume import FULL

Connection = apsw.Connection

# The WAL-reset bug of 3.7.0 to 3.51.2 can corrupt a database that has more than one connection
# (https://sqlite.org/wal.html#walresetbug). The interpreter's own sqlite3 module is not used for that reason.
_OLDEST_SQLITE = (3, 51, 3)

BUSY_MILLISECONDS = 5000

LOG_BYTES = 4 << 20
"""What the log has of the volume at least: about as much as it grows to between two checkpoints."""
_CHUNK_BYTES = 1 << 20  # the database grows by so much at once, so that a few new pages have room already

# Setting -> value that must be read back: SQLite answers a refused setting with the old value, not an error.
_PRAGMAS: dict[str, int | str] = {
    "journal_mode": "wal",
    "synchronous": 2,  # FULL: the WAL is synced at each commit
    "secure_delete": 1,  # deleted rows are overwritten
    "foreign_keys": 1,
    "recursive_triggers": 1,  # INSERT OR REPLACE fires the delete triggers that keep the audit log whole
    "trusted_schema": 0,
    "cell_size_check": 1,
    "temp_store": 2,  # MEMORY: nothing leaves for /tmp
    "mmap_size": 0,
    "journal_size_limit": 64 << 20,
    "wal_autocheckpoint": 0,  # the writer checkpoints itself: SQLite's own swallows I/O errors
    "busy_timeout": BUSY_MILLISECONDS,
}
_READER_PRAGMAS: dict[str, int | str] = {"query_only": 1}

# What SQLite raises when the disk, the file or the memory under it fails, as opposed to a wrong statement.
STORAGE_ERRORS = (
    apsw.IOError,
    apsw.FullError,
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.CantOpenError,
    apsw.ReadOnlyError,
    apsw.NoMemError,
    apsw.BusyError,
    apsw.ProtocolError,
    apsw.NoLFSError,
    apsw.PermissionsError,
)


def open_writer(path: Path) -> Connection:
    """The one connection that writes; creates the file with mode 0600. Raises StorageFailed."""
    _refuse_old_sqlite(apsw.sqlite_lib_version())
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        raise StorageFailed(f"{path}: {error.strerror}") from error
    connection = _open(path, apsw.SQLITE_OPEN_READWRITE, _PRAGMAS)
    chunk = ctypes.c_int(_CHUNK_BYTES)
    connection.file_control("main", apsw.SQLITE_FCNTL_CHUNK_SIZE, ctypes.addressof(chunk))
    return connection


def keep_log_room(path: Path) -> None:
    """Have the log of the database at `path` keep LOG_BYTES of the volume, unless that is too full.

    After a checkpoint SQLite writes the log from its start, over what is there, and it reads it up to the
    first frame that is not of this round (https://sqlite.org/fileformat2.html#walformat); zeros are none. So
    commits find room where nobody else does. Closing a descriptor ends no lock of SQLite's: they are on other
    files. Raises OSError.
    """
    fd = os.open(path.with_name(path.name + "-wal"), os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if os.fstat(fd).st_size < LOG_BYTES:
            try:
                os.posix_fallocate(fd, 0, LOG_BYTES)
            except OSError as error:
                if error.errno in FULL:
                    return
                raise
            os.fdatasync(fd)
    finally:
        os.close(fd)


def open_reader(path: Path) -> Connection:
    """A connection that cannot write; the writer must be open, it owns the WAL. Raises StorageFailed."""
    return _open(path, apsw.SQLITE_OPEN_READONLY, _PRAGMAS | _READER_PRAGMAS)


def _open(path: Path, flags: int, pragmas: dict[str, int | str]) -> Connection:
    connection: Connection | None = None
    try:
        connection = Connection(str(path), flags=flags)
        connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
        connection.config(apsw.SQLITE_DBCONFIG_DQS_DML, 0)
        connection.config(apsw.SQLITE_DBCONFIG_DQS_DDL, 0)
        for name, value in pragmas.items():
            _set(connection, name, value)
    except BaseException as error:
        if connection is not None:
            connection.close(True)
        if isinstance(error, STORAGE_ERRORS):
            raise StorageFailed(f"{path}: {error}") from error
        raise
    return connection


def _set(connection: Connection, pragma: str, value: int | str) -> None:
    connection.execute(f"PRAGMA {pragma} = {value}").fetchall()
    effective = connection.execute(f"PRAGMA {pragma}").get
    if effective != value:
        raise StorageFailed(f"{connection.filename}: PRAGMA {pragma} is {effective!r} instead of {value!r}")


def _refuse_old_sqlite(version: str) -> None:
    if tuple(int(part) for part in version.split(".")[:3]) < _OLDEST_SQLITE:
        raise StorageFailed(f"SQLite {version} has the WAL-reset corruption bug: apsw >= 3.51.3 is needed")
