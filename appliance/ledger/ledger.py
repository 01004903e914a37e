"""Durable writes and consistent reads for the event loop: one writer thread, a few reader threads."""

import asyncio
import math
import os
import queue
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self, TypeVar

import apsw

from appliance.errors import StorageFailed, VolumeFull
from appliance.ledger.alteration import Schema, require_sound
from appliance.ledger.database import (
    STORAGE_ERRORS,
    Connection,
    keep_log_room,
    open_reader,
    open_writer,
)
from appliance.ledger.migrations import migrate, shipped
from appliance.ledger.pages import Pages, copy
from appliance.ledger.schema import check
from appliance.ledger.writer import Writer
from appliance.metrics import Registry
from appliance.volume import sync_folder

S = TypeVar("S")
T = TypeVar("T")

_READERS = 2
_OPENING_BYTES = 8 << 20
"""Of a volume that takes a start: an index of the log, its room, a migration of a few rows."""


@contextmanager
def looking_into(folder: Path) -> Iterator[Connection]:
    """The ledger of a folder at one moment, whether a daemon has it open or not; it cannot be written.

    Raises StorageFailed, also for what its statements raise within the block.
    """
    path = folder / "ledger.db"
    connection = open_reader(path)
    try:
        connection.execute("BEGIN")
        yield connection
    except STORAGE_ERRORS as error:
        raise StorageFailed(f"{path}: {error}") from error
    finally:
        connection.close(True)


class Ledger:
    """The file FOLDER/ledger.db, open between `async with`; the folder must exist and be ours (StateLock).

    After the first storage error the ledger refuses every further write: the kernel may have dropped dirty
    pages, so only a restart, which reads the disk again, can tell what is there. A full volume is none: it
    refuses what finds no room, as VolumeFull, and writes go on when there is room again. So they do when a
    schema is put right that something else has changed while it was open; until then they raise
    LedgerAltered, a StorageFailed. Reads always go on.
    The log keeps some room of its own, from run to run, which a deletion finds when nothing else does.
    """

    def __init__(
        self, folder: Path, registry: Registry, *, altered: Callable[[Connection], None] | None = None
    ) -> None:
        """`altered` is an act that notes such a change of the schema; no trigger sees what it writes."""
        self._folder = folder
        self._path = folder / "ledger.db"
        self._writer = Writer(self._path, registry, altered)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="ledger-reader")
        self._idle: queue.LifoQueue[Connection] = queue.LifoQueue()

    async def __aenter__(self) -> Self:
        """Open, migrate and sync the folder. Raises StorageFailed, also for a ledger that something else has
        built or changed, and VolumeFull; both leave nothing open.
        """
        try:
            await asyncio.to_thread(self._open_with_room)
        except BaseException:
            self._readers.shutdown()
            raise
        self._writer.start(asyncio.get_running_loop())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Finish what was queued, checkpoint, close. Raises StorageFailed when the checkpoint failed."""
        self._writer.refuse_more()
        await asyncio.to_thread(self._close)

    async def write(self, act: Callable[[Connection], T], *, then: Callable[[T], None] | None = None) -> T:
        """Run `act` on the writer thread and return its result once that is durable on disk.

        Acts queued at the same time share one commit, each in a savepoint of its own: an exception of `act`
        undoes only its own changes and is raised here. `act` must neither begin nor end a transaction.
        `then` runs on the event loop with the result right after the commit, even when the caller has been
        cancelled meanwhile, so that memory follows the disk. VolumeFull: nothing of the act was kept.
        StorageFailed: neither, or (after a failed sync) nobody can say before the next start.
        """
        return await self._writer.submit(act, then)

    async def write_parts(
        self, things: Sequence[S], act: Callable[[Connection, Sequence[S]], T]
    ) -> AsyncIterator[T]:
        """`write` of one act for all of these things; on a full volume of one for each part of them.

        A deletion overwrites what it deletes, and takes as much of the log: that of a few rows fits into the
        room which the log keeps. Each result comes when it is durable, before the next part is begun: what
        the caller does then may make room for that. Raises as `write`, VolumeFull where one thing alone
        finds no room: the parts before it are done. The act may be run more than once.
        """
        waiting = [things]
        while waiting:
            some = waiting.pop()
            try:
                done = await self._write_with_all_room(act, some)
            except VolumeFull:
                if len(some) <= 1:
                    raise
                middle = len(some) // 2
                waiting += [some[middle:], some[:middle]]
            else:
                yield done

    async def write_on(self, act: Callable[[Connection, int], bool], most: int) -> None:
        """`write` of an act again and again, for as long as it says that there is more to do.

        It does so with `most` rows at a time, fewer from when the volume is full. Raises as `write_parts`.
        """
        more = True
        while more:
            try:
                more = await self._write_with_all_room(act, most)
            except VolumeFull:
                if most == 1:
                    raise
                most //= 2

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run `query` on a reader thread within one snapshot of the database; it cannot write.

        Every write that returned before this call is visible. Raises StorageFailed for I/O errors, and
        LedgerAltered where something else has taken from the schema what the query asks by.
        """
        if self._writer.closed:
            raise StorageFailed(f"{self._path} is closed")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._query, query)

    def snapshot(self, target: Pages, query: Callable[[Connection], T]) -> T:
        """Copy the database into `target` as it is now, and answer `query` from that very state.

        Blocks, on any thread; writes and reads go on meanwhile, only the log is not emptied before it ends.
        Raises StorageFailed, and what `target` raises.
        """
        if self._writer.closed:
            raise StorageFailed(f"{self._path} is closed")
        try:
            connection = open_reader(self._path)
            try:
                connection.execute("BEGIN")
                answer = query(connection)
                copy(connection, target)
                return answer
            finally:
                connection.close(True)
        except STORAGE_ERRORS as error:
            raise StorageFailed(f"{self._path}: {error}") from error

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for one thread that reads for long, each statement the newest state; it cannot write.

        Raises StorageFailed, also for what its statements raise within the block.
        """
        if self._writer.closed:
            raise StorageFailed(f"{self._path} is closed")
        connection = open_reader(self._path)
        try:
            yield connection
        except STORAGE_ERRORS as error:
            raise StorageFailed(f"{self._path}: {error}") from error
        finally:
            connection.close(True)

    async def empty_log(self) -> bool:
        """Cut the write-ahead log to nothing, so that what was deleted before is in no file any more.

        False when a reader was in the way for too long: try again. Raises VolumeFull, StorageFailed.
        """
        return await self._writer.empty_log()

    def size_bytes(self) -> int:
        """Size of the database and its write-ahead log after the last commit; does not touch the disk."""
        return self._writer.size_bytes

    @property
    def failure(self) -> str | None:
        """Why writes are refused since a storage error, None while the ledger is sound."""
        return self._writer.failure

    @property
    def alteration(self) -> str | None:
        """How something else has changed the schema, for which writes are refused; None while it is sound."""
        return self._writer.alteration

    async def _write_with_all_room(self, act: Callable[[Connection, S], T], of: S) -> T:
        """As `write`; what finds no room beside others is tried once more with all that the log has."""

        def run(connection: Connection) -> T:
            return act(connection, of)

        try:
            return await self.write(run)
        except VolumeFull:
            return await self._writer.submit(run, None, alone=True)

    def _open(self) -> tuple[Connection, Schema]:
        connection = open_writer(self._path)
        try:
            steps = shipped()
            connection.execute("BEGIN IMMEDIATE")  # nobody changes in between what is found sound
            check(connection, steps)
            migrate(connection, steps)
            schema = Schema(connection)
            connection.execute("COMMIT")
            with suppress(apsw.FullError):  # what a crash left in the log goes first: it is written over
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            keep_log_room(self._path)
            # SQLite ignores a failed sync of the folder; a commit in a file without a durable name is none.
            sync_folder(self._folder)
            for _ in range(_READERS):
                self._idle.put(open_reader(self._path))
        except BaseException as error:
            while not self._idle.empty():
                self._idle.get_nowait().close()
            connection.close(True)
            if isinstance(error, (OSError, *STORAGE_ERRORS)):
                raise StorageFailed(f"{self._path}: {error}") from error
            raise
        return connection, schema

    def _open_with_room(self) -> None:
        """Whoever reads that a start found no room has to know what may go."""
        try:
            connection, schema = self._open()
        except StorageFailed as error:
            if _free(self._folder) >= _OPENING_BYTES:
                raise
            raise VolumeFull(
                f"{error}: its volume is full. Free {_OPENING_BYTES >> 20} MiB there and start again: of what"
                f" is not the appliance's, or of {self._folder / 'graphs'}, which is made anew"
            ) from error
        self._writer.adopt(connection, schema)

    def _query(self, query: Callable[[Connection], T]) -> T:
        connection = self._idle.get_nowait()  # as many connections as threads: one is always idle
        try:
            connection.execute("BEGIN")
            try:
                return query(connection)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except apsw.SQLError:
            require_sound(connection)
            raise
        except STORAGE_ERRORS as error:
            raise StorageFailed(f"{self._path}: {error}") from error
        finally:
            self._idle.put(self._rested(connection))

    def _rested(self, connection: Connection) -> Connection:
        """The reader for the next query: a new one where a statement that never ended holds its snapshot."""
        if connection.txn_state() == apsw.SQLITE_TXN_NONE:
            return connection
        try:
            fresh = open_reader(self._path)
        except StorageFailed:
            return connection
        connection.close(True)
        return fresh

    def _close(self) -> None:
        self._readers.shutdown()
        while not self._idle.empty():
            self._idle.get_nowait().close()
        self._writer.join()


def _free(folder: Path) -> float:
    """Bytes on its volume; without end where it does not say."""
    try:
        volume = os.statvfs(folder)
    except OSError:
        return math.inf
    return volume.f_bavail * volume.f_frsize
