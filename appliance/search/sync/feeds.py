"""The rows of feeds and of their runs: durable, audited, and sealed under the keys of their collections."""

import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId
from appliance.accounts.endings import SUSPENDED_CUSTOMERS
from appliance.errors import Conflict, NotFound, SealBroken
from appliance.ledger import Connection, Ledger
from appliance.search.entries import Entry, find_collection
from appliance.search.records import CollectionId
from appliance.search.seals import Seals
from appliance.search.sync import items
from appliance.search.sync.report import Report, Run, State
from appliance.search.sync.source import Source
from appliance.vault import Keyring

KEPT_RUNS = 20
_FORGOTTEN_AT_ONCE = 5000
_OPEN = (State.WAITING, State.RUNNING, State.NEEDS_CONFIRMATION)
_RUN = "id, state, asked, may_go, began_at, ended_at, report"
_ACTIVE = f"customer NOT IN ({SUSPENDED_CUSTOMERS})"
_SOURCE: msgspec.msgpack.Decoder[Source] = msgspec.msgpack.Decoder(Source)
_REPORT: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)
_KNOWN: msgspec.msgpack.Decoder[dict[str, str]] = msgspec.msgpack.Decoder(dict[str, str])
_encode = msgspec.msgpack.encode


@dataclass(frozen=True, slots=True)
class Following:
    """What a collection follows since when, and when it is due; times are unix milliseconds."""

    source: Source
    created_at: int
    due_at: int | None


@dataclass(frozen=True, slots=True)
class Begun:
    """A run that begins, or goes on; `known` is what the host knows the feed by that was applied whole."""

    run: Run
    collection: CollectionId
    customer: CustomerId
    backbone: str
    source: Source
    known: dict[str, str]


class Feeds:
    """The feeds of all collections. Everything raises NotFound for another customer's, as for none."""

    def __init__(self, ledger: Ledger, keyring: Keyring, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._keyring = keyring
        self._clock = clock

    async def set(
        self, actor: Actor, customer: CustomerId, collection: CollectionId, source: Source
    ) -> Following:
        """Follow this source from now on, and no other; due at once or at its time, if it has a schedule."""

        def act(connection: Connection) -> Following:
            entry = find_collection(connection, customer, collection)
            now = self._now()
            due = source.next_due(now) if source.every_seconds is None else now
            sealed = self.seals(entry).seal_feed("source", _encode(source))
            connection.execute(
                "INSERT OR REPLACE INTO feeds (collection, source, created_at, due_at) VALUES (?, ?, ?, ?)",
                (entry.number, sealed, now, due),
            )
            self._close(connection, entry, "another source was set")
            record(connection, now, actor, Event.FEED_SET, customer, collection)
            return Following(source, now, due)

        return await self._ledger.write(act)

    async def get(self, customer: CustomerId, collection: CollectionId) -> Following:
        """Raises NotFound also where no feed is followed."""
        return await self._ledger.read(
            lambda connection: self._following(connection, find_collection(connection, customer, collection))
        )

    async def remove(self, actor: Actor, customer: CustomerId, collection: CollectionId) -> None:
        """Follow no feed: all records stay, and what is known of runs and items goes."""

        def act(connection: Connection) -> Entry:
            entry = find_collection(connection, customer, collection)
            self._require_followed(connection, entry)
            for table in ("feed_runs", "feeds"):
                connection.execute(f"DELETE FROM {table} WHERE collection = ?", (entry.number,))  # noqa: S608
            record(connection, self._now(), actor, Event.FEED_REMOVE, customer, collection)
            return entry

        entry = await self._ledger.write(act)
        forget = partial(items.forget_some, number=entry.number, limit=_FORGOTTEN_AT_ONCE)
        while not await self._ledger.write(forget):
            pass

    async def ask(self, actor: Actor, customer: CustomerId, collection: CollectionId) -> Run:
        """Have it run now. Raises Conflict while a run is under way."""

        def act(connection: Connection) -> Run:
            entry = find_collection(connection, customer, collection)
            self._require_followed(connection, entry)
            opened = self._open_run(connection, entry)
            if opened is not None and opened.state is not State.NEEDS_CONFIRMATION:
                raise Conflict("a run of this source is under way: see its runs")
            run = opened or self._add_run(connection, entry, State.WAITING)
            connection.execute("UPDATE feed_runs SET asked = 1, state = 'waiting' WHERE id = ?", (run.id,))
            self._due(connection, entry.number, self._now())
            record(connection, self._now(), actor, Event.FEED_RUN, customer, collection, {"run": run.id})
            return self._run(connection, entry, run.id)

        return await self._ledger.write(act)

    async def confirm(self, actor: Actor, customer: CustomerId, collection: CollectionId) -> Run:
        """Let the run that asks go on: as many items as it told of may go. Raises Conflict if none asks."""

        def act(connection: Connection) -> Run:
            entry = find_collection(connection, customer, collection)
            self._require_followed(connection, entry)
            run = self._open_run(connection, entry)
            if run is None or run.state is not State.NEEDS_CONFIRMATION:
                raise Conflict("no run of this source waits for a confirmation")
            now = self._now()
            connection.execute(
                "UPDATE feed_runs SET may_go = ?, asked = 1, state = 'waiting' WHERE id = ?",
                (run.report.missing, run.id),
            )
            self._due(connection, entry.number, now)
            details: dict[str, object] = {"run": run.id, "gone": run.report.missing}
            record(connection, now, actor, Event.FEED_CONFIRM, customer, collection, details)
            return self._run(connection, entry, run.id)

        return await self._ledger.write(act)

    async def runs(self, customer: CustomerId, collection: CollectionId) -> list[Run]:
        """The last KEPT_RUNS, the newest first."""

        def query(connection: Connection) -> list[Run]:
            entry = find_collection(connection, customer, collection)
            self._require_followed(connection, entry)
            found = connection.execute(
                f"SELECT {_RUN} FROM feed_runs WHERE collection = ? ORDER BY number DESC LIMIT ?",  # noqa: S608
                (entry.number, KEPT_RUNS),
            )
            return [self._opened(entry, row) for row in found]

        return await self._ledger.read(query)

    async def due(self, busy: Collection[CustomerId], most: int) -> list[tuple[CustomerId, CollectionId]]:
        """What is due, the longest first: one collection of each customer that is not `busy` or suspended."""
        marks = ", ".join("?" * len(busy))

        def query(connection: Connection) -> list[tuple[CustomerId, CollectionId]]:
            found = connection.execute(
                # SQLite takes the other columns from the row of the minimum.
                "SELECT customer, id, min(due_at) FROM feeds JOIN collections ON number = collection"  # noqa: S608
                f" WHERE due_at <= ? AND NOT removed AND customer NOT IN ({marks}) AND {_ACTIVE}"
                " GROUP BY customer ORDER BY min(due_at) LIMIT ?",
                (self._now(), *busy, most),
            )
            return [(CustomerId(customer), CollectionId(identity)) for customer, identity, _ in found]

        return await self._ledger.read(query)

    async def next_due(self) -> float | None:
        """Seconds until one more is due than are now, None for never."""
        soonest = await self._ledger.read(
            lambda connection: (
                connection.execute("SELECT min(due_at) FROM feeds WHERE due_at > ?", (self._now(),)).get
            )
        )
        return None if soonest is None else max(0.0, soonest / 1000 - self._clock())

    async def asking(self) -> int:
        """How many runs wait for a confirmation."""
        return await self._ledger.read(
            lambda connection: (
                connection.execute(
                    "SELECT count(*) FROM feed_runs JOIN collections ON collections.number = collection"
                    " WHERE state = 'needs_confirmation' AND NOT removed"
                ).get
            )
        )

    async def begin(self, collection: CollectionId) -> Begun | None:
        """A run, which is RUNNING from now on: the open one, else a new one; None when none is due."""

        def act(connection: Connection) -> Begun | None:
            entry = find_collection(connection, None, collection)
            following = self._following(connection, entry)
            if following.due_at is None or following.due_at > self._now():
                return None
            run = self._open_run(connection, entry) or self._add_run(connection, entry, State.RUNNING)
            connection.execute("UPDATE feed_runs SET state = 'running' WHERE id = ?", (run.id,))
            blob = connection.execute(
                "SELECT validators FROM feeds WHERE collection = ?", (entry.number,)
            ).get
            known = {} if blob is None else _KNOWN.decode(self.seals(entry).open_feed("validators", blob))
            run = self._run(connection, entry, run.id)
            return Begun(run, collection, entry.customer, entry.backbone, following.source, known)

        return await self._ledger.write(act)

    def save(self, connection: Connection, begun: Begun, report: Report) -> None:
        """What a run has done by now, within the transaction that does it. Raises NotFound when it was ended:
        nothing more may be done by it.
        """
        entry = find_collection(connection, begun.customer, begun.collection)
        blob = self.seals(entry).seal_feed("report", _encode(report), begun.run.id)
        connection.execute(
            "UPDATE feed_runs SET report = ? WHERE id = ? AND collection = ? AND state = 'running'",
            (blob, begun.run.id, entry.number),
        )
        if not connection.changes():
            raise NotFound("no such run")
        # Until it has ended well, no word of the host's says that there is nothing to do.
        connection.execute(
            "UPDATE feeds SET validators = NULL WHERE collection = ? AND validators IS NOT NULL",
            (entry.number,),
        )

    async def end(
        self, begun: Begun, state: State, report: Report, known: dict[str, str] | None = None
    ) -> None:
        """A run has come to an end, or asks; the schedule goes on.

        `known` is what the host knows a feed by of which nothing is left to do.
        """

        def act(connection: Connection) -> None:
            self.save(connection, begun, report)
            entry = find_collection(connection, begun.customer, begun.collection)
            now = self._now()
            ended = None if state in _OPEN else now
            connection.execute(
                "UPDATE feed_runs SET state = ?, ended_at = ?, may_go = 0 WHERE id = ?",
                (state, ended, begun.run.id),
            )
            self._due(connection, entry.number, begun.source.next_due(now))
            blob = self.seals(entry).seal_feed("validators", _encode(known)) if known else None
            connection.execute("UPDATE feeds SET validators = ? WHERE collection = ?", (blob, entry.number))

        await self._ledger.write(act)

    async def suspend(self, collection: CollectionId) -> None:
        """No schedule any more: what is kept of the source does not open. Somebody has to set it again."""

        def act(connection: Connection) -> None:
            self._due(connection, find_collection(connection, None, collection).number, None)

        await self._ledger.write(act)

    def seals(self, entry: Entry) -> Seals:
        return Seals(self._keyring, entry.customer, entry.container)

    def _require_followed(self, connection: Connection, entry: Entry) -> None:
        if not connection.execute("SELECT 1 FROM feeds WHERE collection = ?", (entry.number,)).get:
            raise NotFound("the collection follows no source")

    def _following(self, connection: Connection, entry: Entry) -> Following:
        row = connection.execute(
            "SELECT source, created_at, due_at FROM feeds WHERE collection = ?", (entry.number,)
        ).fetchone()
        if row is None:
            raise NotFound("the collection follows no source")
        return Following(_SOURCE.decode(self.seals(entry).open_feed("source", row[0])), row[1], row[2])

    def _add_run(self, connection: Connection, entry: Entry, state: State) -> Run:
        identity = str(uuid.uuid4())
        connection.execute(
            "INSERT INTO feed_runs (id, collection, state, asked, began_at) VALUES (?, ?, ?, 0, ?)",
            (identity, entry.number, state, self._now()),
        )
        connection.execute(
            "DELETE FROM feed_runs WHERE collection = ?1 AND number NOT IN"
            " (SELECT number FROM feed_runs WHERE collection = ?1 ORDER BY number DESC LIMIT ?2)",
            (entry.number, KEPT_RUNS),
        )
        return self._run(connection, entry, identity)

    def _open_run(self, connection: Connection, entry: Entry) -> Run | None:
        row = connection.execute(
            f"SELECT {_RUN} FROM feed_runs WHERE collection = ? AND state IN (?, ?, ?)",  # noqa: S608
            (entry.number, *_OPEN),
        ).fetchone()
        return None if row is None else self._opened(entry, row)

    def _run(self, connection: Connection, entry: Entry, identity: str) -> Run:
        query = f"SELECT {_RUN} FROM feed_runs WHERE id = ?"  # noqa: S608
        row: tuple[Any, ...] = connection.execute(query, (identity,)).fetchall()[0]
        return self._opened(entry, row)

    def _opened(self, entry: Entry, row: tuple[Any, ...]) -> Run:
        identity, state, asked, may_go, began_at, ended_at, blob = row
        report = Report()
        if blob is not None:
            try:
                report = _REPORT.decode(self.seals(entry).open_feed("report", blob, identity))
            except SealBroken:
                report = Report(reason="the report is damaged in the ledger")
        return Run(identity, State(state), bool(asked), may_go, began_at, ended_at, report)

    def _close(self, connection: Connection, entry: Entry, reason: str) -> None:
        """End the run that is open, if one is."""
        run = self._open_run(connection, entry)
        if run is not None:
            run.report.reason = reason
            blob = self.seals(entry).seal_feed("report", _encode(run.report), run.id)
            connection.execute(
                "UPDATE feed_runs SET state = 'failed', ended_at = ?, report = ? WHERE id = ?",
                (self._now(), blob, run.id),
            )

    def _due(self, connection: Connection, number: int, at: int | None) -> None:
        connection.execute("UPDATE feeds SET due_at = ? WHERE collection = ?", (at, number))

    def _now(self) -> int:
        return int(self._clock() * 1000)


def carry_over(connection: Connection, old: Entry, seals: Seals, new: Seals) -> None:
    """Have a collection that was emptied follow what it followed; `new` seals what is its own from now on.

    Runs and items stay with the old one, and go with it. So does a source that does not open.
    """
    row = connection.execute(
        "SELECT source, created_at, due_at FROM feeds WHERE collection = ?", (old.number,)
    ).fetchone()
    if row is None:
        return
    try:
        source = seals.open_feed("source", row[0])
    except SealBroken:
        return
    connection.execute("DELETE FROM feeds WHERE collection = ?", (old.number,))
    connection.execute(
        "INSERT INTO feeds (collection, source, created_at, due_at)"
        " SELECT number, ?, ?, ? FROM collections WHERE id = ?",
        (new.seal_feed("source", source), row[1], row[2], old.id),
    )
