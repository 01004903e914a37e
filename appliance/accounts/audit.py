"""The audit log: a row for every act, written in the act's own transaction and never changed."""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, cast

from appliance.errors import Forbidden
from appliance.ledger import Connection, Ledger

ActorKind = Literal["token", "operator", "system"]

SUSPENDED = "the customer is suspended: the operator of the appliance can resume it"


class Event(StrEnum):
    """What can be recorded. Values are stable: exports and dashboards match on them."""

    CUSTOMER_ADD = "customer.add"
    CUSTOMER_SUSPEND = "customer.suspend"
    CUSTOMER_RESUME = "customer.resume"
    CUSTOMER_CLAIM = "customer.claim"
    TOKEN_ADD = "token.add"  # noqa: S105 - the name of an event
    TOKEN_REVOKE = "token.revoke"  # noqa: S105
    TOKEN_ROTATE = "token.rotate"  # noqa: S105
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
    BACKUP_MAKE = "backup.make"
    BACKUP_RESTORE = "backup.restore"
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


class AuditLog:
    """The log as it is read; it is written by each act for itself."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def entries(self, customer: str | None = None, *, after: int = 0, limit: int = 1000) -> list[Entry]:
        """As the function `entries`, within one snapshot of the ledger."""
        return await self._ledger.read(
            lambda connection: entries(connection, customer, after=after, limit=limit)
        )


_IS_SUSPENDED = "SELECT suspended_at IS NOT NULL FROM customers WHERE id = ?"


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
    if actor.kind == "token" and connection.execute(_IS_SUSPENDED, (customer,)).get:
        raise Forbidden(SUSPENDED)
    text = json.dumps(details or {}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    connection.execute(
        "INSERT INTO audit (time, actor_kind, actor_id, request, event, customer, subject, details)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (clock_ms, actor.kind, actor.id, actor.request, event.value, customer, subject, text),
    )


def entries(
    connection: Connection, customer: str | None = None, *, after: int = 0, limit: int = 1000
) -> list[Entry]:
    """Rows with seq > `after`, ascending, at most `limit`; of one customer, or of all with None."""
    rows = connection.execute(
        "SELECT seq, time, actor_kind, actor_id, request, event, customer, subject, details FROM audit"
        " WHERE seq > ?1 AND (?2 IS NULL OR customer = ?2) ORDER BY seq LIMIT ?3",
        (after, customer, limit),
    )
    return [_entry(row) for row in rows]


def _entry(row: tuple[object, ...]) -> Entry:
    seq, time, kind, actor_id, request, event, customer, subject, details = row
    return Entry(
        seq=cast("int", seq),
        time=cast("int", time),
        actor=Actor(cast("ActorKind", kind), cast("str", actor_id), cast("str | None", request)),
        event=Event(cast("str", event)),
        customer=cast("str | None", customer),
        subject=cast("str | None", subject),
        details=json.loads(cast("str", details)),
    )
