"""The writer thread: queued acts share one durable commit, and a failed one fails them all."""

import asyncio
import contextlib
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import apsw
from prometheus_client import Counter, Gauge, Histogram

from appliance.errors import ApplianceError, LedgerAltered, StorageFailed, VolumeFull
from appliance.ledger.alteration import Schema
from appliance.ledger.database import BUSY_MILLISECONDS, STORAGE_ERRORS, Connection, keep_log_room
from appliance.metrics import Registry

T = TypeVar("T")

_ACTS_PER_COMMIT = 256
_READER_MILLISECONDS = 20
_CHECKPOINT_PAGES = 1000  # of 4 KiB, SQLite's own default: bounds the WAL and the time of a checkpoint

_log = logging.getLogger(__name__)


class _Entry:
    """One queued act and, once it ran, its outcome."""

    __slots__ = ("act", "alone", "error", "future", "result", "then")

    def __init__(
        self,
        act: Callable[[Connection], Any] | None,  # None: empty the log
        then: Callable[[Any], None] | None,
        future: asyncio.Future[Any],
        *,
        alone: bool = False,  # in a commit of its own, with all of the log's room
    ) -> None:
        self.act = act
        self.then = then
        self.future = future
        self.alone = alone
        self.result: Any = None
        self.error: BaseException | None = None


class Writer:
    """Owns the writing connection from `adopt` on; `submit` from the event loop, the rest is its thread's."""

    def __init__(self, path: Path, registry: Registry, altered: Callable[[Connection], None] | None) -> None:
        """`altered` as Ledger takes it."""
        self._path = path
        self._altered = altered
        self._noted: str | None = None
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._connection: Connection | None = None
        self._schema: Schema | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wal_pages = 0
        self._close_error: StorageFailed | None = None
        self._full = False
        self.closed = True
        self.failure: str | None = None
        self.size_bytes = 0
        self._acts = Counter("appliance_ledger_acts", "Acts that were committed", registry=registry)
        self._seconds = Histogram(
            "appliance_ledger_commit_seconds",
            "Time of one durable commit",
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3),
            registry=registry,
        )
        self._failed = Gauge("appliance_ledger_failed", "1 after a storage error", registry=registry)

    def adopt(self, connection: Connection, schema: Schema) -> None:
        """Take over the connection, on any thread, before `start`."""
        connection.set_wal_hook(self._note_wal)
        self._connection, self._schema = connection, schema
        self._measure()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Accept acts; results are delivered on `loop`."""
        self._loop = loop
        self.closed = False
        self._thread.start()

    async def submit(
        self, act: Callable[[Connection], T], then: Callable[[T], None] | None, *, alone: bool = False
    ) -> T:
        """See Ledger.write; `alone` the act shares neither its commit nor the room of the log."""
        if self.closed or self._loop is None:
            raise StorageFailed(f"{self._path} is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(_Entry(act, then, future, alone=alone))
        return await future

    async def empty_log(self) -> bool:
        """See Ledger.empty_log."""
        if self.closed or self._loop is None:
            raise StorageFailed(f"{self._path} is closed")
        future: asyncio.Future[bool] = self._loop.create_future()
        self._queue.put(_Entry(None, None, future))
        return await future

    @property
    def alteration(self) -> str | None:
        """See Ledger.alteration."""
        return None if self._schema is None else self._schema.alteration

    def refuse_more(self) -> None:
        """End the queue: what is in it is finished, later acts are refused. Called on the loop."""
        self.closed = True
        self._queue.put(None)

    def join(self) -> None:
        """Wait for the thread, which closes the connection; raises what the final checkpoint raised."""
        self._thread.join()
        if self._close_error is not None:
            raise self._close_error

    def _run(self) -> None:
        ending = False
        while not ending:
            batch, ending = self._next_batch()
            acts = [entry for entry in batch if entry.act is not None]
            for together in _commits(acts):
                if together[0].alone and self.failure is None:
                    self._checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE)
                self._commit(together)
                self._deliver(together)
            if len(acts) < len(batch):
                others = [entry for entry in batch if entry.act is None]
                self._truncate(others)
                self._deliver(others)
            elif self._wal_pages >= _CHECKPOINT_PAGES:
                self._checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE)
        self._finish()

    def _next_batch(self) -> tuple[list[_Entry], bool]:
        batch: list[_Entry] = []
        entry = self._queue.get()
        while entry is not None:
            if not entry.future.cancelled():
                batch.append(entry)
            if len(batch) == _ACTS_PER_COMMIT:
                return batch, False
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _commit(self, batch: list[_Entry]) -> None:
        """Run the acts and commit; every entry then has its result or its error."""
        if self.failure is not None:
            _fail(batch, StorageFailed(self.failure))
            return
        connection, schema = self._connection, self._schema
        assert connection is not None
        assert schema is not None
        started = time.perf_counter()
        try:
            connection.execute("BEGIN IMMEDIATE")
            schema.require(connection)
            for entry in batch:
                _run_act(connection, entry, alone=len(batch) == 1)
            if connection.in_transaction:
                schema.keep(connection)
                connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - a dead thread would leave every later caller waiting
            undone = _roll_back(connection)
            if isinstance(error, LedgerAltered) and undone:
                _fail(batch, error)
                self._note_alteration(str(error))
            elif isinstance(error, apsw.FullError) and undone:
                self._refuse_full(batch)
            else:
                self._poison(error)
                _fail(batch, StorageFailed(f"{self._path}: {error}"))
            return
        self._full, self._noted = False, None
        self._seconds.observe(time.perf_counter() - started)
        self._acts.inc(sum(entry.error is None for entry in batch))
        self._measure()

    def _deliver(self, batch: list[_Entry]) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(_resolve, batch)

    def _checkpoint(self, mode: int) -> bool:
        assert self._connection is not None
        try:
            self._connection.wal_checkpoint(mode=mode)
        except apsw.FullError:
            return False  # the log holds all of it, and is read on; the next commit that fits tries again
        except apsw.Error as error:
            # The kernel reports a failed write-back once; a later checkpoint would seem to succeed and
            # reset the only good copy, the WAL.
            self._poison(error)
            return False
        self._wal_pages = 0
        self._measure()
        return True

    def _truncate(self, batch: list[_Entry]) -> None:
        """Empty the log, unless a reader still looks at what is in it: then nothing is changed."""
        assert self._connection is not None
        if self.failure is not None:
            _fail(batch, StorageFailed(self.failure))
            return
        self._connection.set_busy_timeout(_READER_MILLISECONDS)
        try:
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            keep_log_room(self._path)
        except apsw.BusyError:
            emptied = False
        except apsw.FullError:
            self._refuse_full(batch)
            return
        except (apsw.Error, OSError) as error:
            self._poison(error)
            _fail(batch, StorageFailed(f"{self._path}: {error}"))
            return
        else:
            emptied, self._wal_pages = True, 0
        finally:
            self._connection.set_busy_timeout(BUSY_MILLISECONDS)
        self._measure()
        for entry in batch:
            entry.result = emptied

    def _finish(self) -> None:
        assert self._connection is not None
        if self.failure is None and not self._checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE):
            self._close_error = StorageFailed(f"{self._path}: the last checkpoint failed; the log was kept")
        if self.failure is None and self._close_error is None:
            try:
                keep_log_room(self._path)
            except OSError as error:
                self._close_error = StorageFailed(f"{self._path}: {error}; all is in the database")
        # Closing would remove the log and its index, and a start on a full volume has no room for others;
        # after an error it would checkpoint again, which waits for the next start.
        self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        with contextlib.suppress(apsw.Error):
            self._connection.close(True)

    def _poison(self, error: BaseException) -> None:
        self.failure = f"{self._path}: {error}; no further write is accepted until a restart"
        self._failed.set(1)
        _log.critical("ledger failed: %s", self.failure)

    def _refuse_full(self, batch: list[_Entry]) -> None:
        """SQLite has undone the acts: a write that found no room has lost nothing, unlike a failed sync."""
        reason = f"{self._path}: its volume is full; nothing is written until there is room"
        if not self._full:
            _log.error("%s", reason)
        self._full = True
        _fail(batch, VolumeFull(reason))

    def _note_alteration(self, reason: str) -> None:
        """Once for each, where nobody else's trigger has a say."""
        connection = self._connection
        assert connection is not None
        if self._altered is None or self._noted == reason:
            return
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
        try:
            connection.execute("BEGIN IMMEDIATE")
            self._altered(connection)
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - as in _commit
            undone = _roll_back(connection)
            _log.error("that the ledger was changed is not in it: %s", error)
            if isinstance(error, STORAGE_ERRORS) and not (isinstance(error, apsw.FullError) and undone):
                self._poison(error)
        else:
            self._noted = reason
        finally:
            connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 1)

    def _note_wal(self, _connection: Connection, _schema: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _measure(self) -> None:
        size = 0
        for path in (self._path, self._path.with_name(self._path.name + "-wal")):
            with contextlib.suppress(OSError):
                size += path.stat().st_size
        self.size_bytes = size


class _TransactionLost(Exception):
    """SQLite, or a misbehaving act, ended the transaction that the whole batch shares."""


def _commits(acts: list[_Entry]) -> Iterator[list[_Entry]]:
    """Those that share one, in their order."""
    for alone, entries in itertools.groupby(acts, attrgetter("alone")):
        if alone:
            yield from ([entry] for entry in entries)
        else:
            yield list(entries)


def _run_act(connection: Connection, entry: _Entry, *, alone: bool) -> None:
    """One that raises undoes what it did; `alone` that is the whole transaction, and needs no savepoint.

    Under one, every statement costs with all that came before it.
    """
    if not alone:
        connection.execute("SAVEPOINT act")
    try:
        entry.result = entry.act(connection) if entry.act is not None else None
    except STORAGE_ERRORS:
        raise
    except BaseException as error:  # noqa: BLE001 - it belongs to the caller, who waits on the loop
        entry.error = error
    if not connection.in_transaction:
        raise _TransactionLost("the transaction ended within an act")
    if entry.error is not None:
        connection.execute("ROLLBACK" if alone else "ROLLBACK TO act")
    if not alone:
        connection.execute("RELEASE act")


def _roll_back(connection: Connection) -> bool:
    """Whether nothing of the transaction is left."""
    with contextlib.suppress(apsw.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return not connection.in_transaction


def _fail(batch: list[_Entry], error: ApplianceError) -> None:
    for entry in batch:
        # One for each: it is raised with a traceback of its own.
        entry.error = type(error)(str(error), told=error.told)


def _resolve(batch: list[_Entry]) -> None:
    for entry in batch:
        if entry.error is None and entry.then is not None:
            try:
                entry.then(entry.result)
            except Exception as error:  # noqa: BLE001 - raised to the caller below
                entry.error = error
        if entry.future.cancelled():
            continue
        if entry.error is not None:
            entry.future.set_exception(entry.error)
        else:
            entry.future.set_result(entry.result)
