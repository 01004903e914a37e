"""The audit log: a row for every act, written in the act's own transaction and never changed."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from appliance.accounts.endings import IS_SUSPENDED
from appliance.errors import Forbidden, StorageFailed
from appliance.ledger import Connection, Ledger

ActorKind = Literal["token", "operator", "system"]

AUDITED = "(SELECT coalesce(max(seq), 0) FROM audit)"
"""SQL: how far the audit log goes. It tells what was there before what, whatever the clock was set to."""

SUSPENDED = "the customer is suspended: the operator of the appliance can resume it"


class Event(StrEnum):
    """What can be recorded. Values are stable: exports and dashboards match on them."""

    CUSTOMER_ADD = "customer.add"
    CUSTOMER_SUSPEND = "customer.suspend"
    CUSTOMER_RESUME = "customer.resume"
    CUSTOMER_ERASE = "customer.erase"
    CUSTOMER_EXPORT = "customer.export"
    CUSTOMER_LIMIT = "customer.limit"
    CUSTOMER_CLAIM = "customer.claim"
    TOKEN_ADD = "token.add"  # noqa: S105 - the name of an event
    TOKEN_REVOKE = "token.revoke"  # noqa: S105
    TOKEN_ROTATE = "token.rotate"  # noqa: S105
    TOKEN_LIMIT = "token.limit"  # noqa: S105
    TOKEN_DAMAGED = "token.damaged"  # noqa: S105
    AGREEMENT_SIGN = "agreement.sign"
    AGREEMENT_ACCEPT = "agreement.accept"
    AGREEMENT_DOCUMENT = "agreement.document"
    AGREEMENT_REVOKE = "agreement.revoke"
    GRANT_REQUEST = "grant.request"
    GRANT_OPEN = "grant.open"
    GRANT_APPROVE = "grant.approve"
    GRANT_DENY = "grant.deny"
    GRANT_REVOKE = "grant.revoke"
    COLLECTION_ADD = "collection.add"
    COLLECTION_RENAME = "collection.rename"
    COLLECTION_RECALL = "collection.recall"
    COLLECTION_EMPTY = "collection.empty"
    COLLECTION_REMOVE = "collection.remove"
    SNAPSHOT_ADD = "snapshot.add"
    SNAPSHOT_REMOVE = "snapshot.remove"
    SNAPSHOT_RESTORE = "snapshot.restore"
    ALIAS_SET = "alias.set"
    ALIAS_REMOVE = "alias.remove"
    SEARCH_INSERT = "search.insert"
    SEARCH_UPSERT = "search.upsert"
    SEARCH_UPDATE = "search.update"
    SEARCH_DELETE = "search.delete"
    SEARCH_DAMAGED = "search.damaged"
    SEARCH_IMPORT = "search.import"
    SEARCH_EXPORT = "search.export"
    FEED_SET = "feed.set"
    FEED_REMOVE = "feed.remove"
    FEED_RUN = "feed.run"
    FEED_CONFIRM = "feed.confirm"
    BUNDLE_INSTALL = "bundle.install"
    BUNDLE_ACTIVATE = "bundle.activate"
    BUNDLE_REMOVE = "bundle.remove"
    BUNDLE_DAMAGED = "bundle.damaged"
    REQUEST_ADD = "request.add"
    REQUEST_CANCEL = "request.cancel"
    DATASET_ADD = "dataset.add"
    DATASET_CHANGE = "dataset.change"
    DATASET_ERASE = "dataset.erase"
    DATASET_IMPORT = "dataset.import"
    DATASET_EXPORT = "dataset.export"
    IMAGE_OPEN = "image.open"  # by an operator, with a grant
    IMAGE_ADD = "image.add"
    IMAGE_UPDATE = "image.update"
    IMAGE_DELETE = "image.delete"
    IMAGE_DAMAGED = "image.damaged"
    IMAGE_RESTORED = "image.restored"
    KEY_ROTATE = "key.rotate"
    KEY_RETIRE = "key.retire"
    TASK_ADD = "task.add"
    TASK_CHANGE = "task.change"
    TASK_DELETE = "task.delete"
    LABEL_ADD = "label.add"
    LABEL_CHANGE = "label.change"
    LABEL_DELETE = "label.delete"
    LABEL_WIPE = "label.wipe"
    OBJECT_ADD = "object.add"
    OBJECT_CHANGE = "object.change"
    OBJECT_DELETE = "object.delete"
    VERIFICATION_ADD = "verification.add"
    VERIFICATION_DELETE = "verification.delete"
    POINT_ADD = "point.add"
    POINT_DELETE = "point.delete"
    ERASURE_CERTIFY = "erasure.certify"
    BACKUP_MAKE = "backup.make"
    BACKUP_RESTORE = "backup.restore"
    OUTBOUND_ALLOW = "outbound.allow"
    OUTBOUND_REFUSE = "outbound.refuse"
    RESIDENCY_BREAK = "residency.break"
    RESIDENCY_RESTORE = "residency.restore"
    AUDIT_OVERDUE = "audit.overdue"  # entries that a start found unsigned for too long
    LEDGER_ALTER = "ledger.alter"  # by something else than the appliance
    DAEMON_START = "daemon.start"
    DAEMON_RELOAD = "daemon.reload"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: a token (its public id), an operator (its uid, as text) or a part of the system (its name).

    `request` is the request id that the access log shows too, None outside a request.
    """

    kind: ActorKind
    id: str
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the log; `time` is unix milliseconds, `seq` rises without reuse."""

    seq: int
    time: int
    actor: Actor
    event: Event
    customer: str | None
    subject: str | None
    details: dict[str, object]


class EntryDamaged(StorageFailed):
    """A row of the log is nothing that was ever written: something else than the appliance has changed it."""

    def __init__(self, seq: int, reason: str) -> None:
        damaged = f"entry {seq} of the audit log is damaged"
        super().__init__(f"{damaged}: {reason}; see `appliance audit verify`", told=damaged)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which entries are meant: all of them, less what each field that is set leaves out.

    `since` and `until` are unix milliseconds; `until` itself is left out.
    """

    customer: str | None = None
    events: tuple[Event, ...] = ()
    subject: str | None = None
    since: int | None = None
    until: int | None = None

    def where(self) -> tuple[str, list[str | int]]:
        """The condition on rows of the table, and its bindings."""
        terms: list[str] = ["TRUE"]
        bindings: list[str | int] = []
        for term, value in (
            ("customer = ?", self.customer),
            ("subject = ?", self.subject),
            ("time >= ?", self.since),
            ("time < ?", self.until),
        ):
            if value is not None:
                terms.append(term)
                bindings.append(value)
        if self.events:
            terms.append(f"event IN ({', '.join('?' * len(self.events))})")
            bindings += [event.value for event in self.events]
        return " AND ".join(terms), bindings


class AuditLog:
    """The log as it is read; it is written by each act for itself."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def entries(self, chosen: Selection, *, after: int = 0, limit: int = 1000) -> list[Entry]:
        """As the function `selected`, within one snapshot of the ledger."""
        return await self._ledger.read(
            lambda connection: selected(connection, chosen, after=after, limit=limit)
        )


# As bytes: see `rows`.
_COLUMNS = (
    "seq, time, CAST(actor_kind AS BLOB), CAST(actor_id AS BLOB), CAST(request AS BLOB), CAST(event AS BLOB),"
    " CAST(customer AS BLOB), CAST(subject AS BLOB), CAST(details AS BLOB)"
)
_LEDGER = Actor("system", "ledger")


def record(  # noqa: PLR0917 - the columns of the row, in their order
    connection: Connection,
    clock_ms: int,
    actor: Actor,
    event: Event,
    customer: str | None,
    subject: str | None,
    details: dict[str, object] | None = None,
) -> None:
    """Append a row; to be called inside `Ledger.write`, so that act and row are durable together.

    `details` is JSON-able and holds ids, counts and scopes only: the log outlives an erased customer, so
    names, metadata and record contents have no place in it. Raises Forbidden when the act is a token's of a
    customer that is suspended by now: the call may have begun before.
    """
    if actor.kind == "token" and connection.execute(IS_SUSPENDED, (customer,)).get:
        raise Forbidden(SUSPENDED)
    text = json.dumps(details or {}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    connection.execute(
        "INSERT INTO audit (time, actor_kind, actor_id, request, event, customer, subject, details)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (clock_ms, actor.kind, actor.id, actor.request, event.value, customer, subject, text),
    )


def recording_alterations(clock: Callable[[], float]) -> Callable[[Connection], None]:
    """What `Ledger` calls when something else has changed its schema while it was open."""

    def act(connection: Connection) -> None:
        record(connection, int(clock() * 1000), _LEDGER, Event.LEDGER_ALTER, None, None)

    return act


def entries(
    connection: Connection, customer: str | None = None, *, after: int = 0, limit: int = 1000
) -> list[Entry]:
    """Rows with seq > `after`, ascending, at most `limit`; of one customer, or of all with None."""
    return selected(connection, Selection(customer), after=after, limit=limit)


def selected(connection: Connection, chosen: Selection, *, after: int = 0, limit: int = 1000) -> list[Entry]:
    """As `entries`, of those that are chosen. Raises EntryDamaged."""
    return [_entry(row) for row in rows(connection, chosen, after=after, limit=limit)]


def rows(connection: Connection, chosen: Selection, *, after: int, limit: int) -> Iterator[tuple[Any, ...]]:
    """The columns seq, time, actor_kind, actor_id, request, event, customer, subject and details.

    Texts come as bytes: what a damaged disk made of one need not be a text. `limit` is -1 for all.
    """
    where, bindings = chosen.where()
    return connection.execute(
        f"SELECT {_COLUMNS} FROM audit WHERE seq > ? AND {where} ORDER BY seq LIMIT ?",  # noqa: S608
        (after, *bindings, limit),
    )


def _entry(row: tuple[Any, ...]) -> Entry:
    seq, time, kind, actor_id, request, event, customer, subject, details = row
    try:
        return Entry(
            seq=seq,
            time=time,
            actor=Actor(kind.decode(), actor_id.decode(), text(request)),
            event=Event(event.decode()),
            customer=text(customer),
            subject=text(subject),
            details=json.loads(details),
        )
    except ValueError:
        raise EntryDamaged(seq, "it is nothing that was ever written") from None


def text(column: bytes | None) -> str | None:
    """Of a column that may be NULL. Raises UnicodeDecodeError."""
    return None if column is None else column.decode()
