"""The rows of asynchronous requests: durable from their acceptance to the end of their time.

An image is in none of them, and what is in them of a caller's rests sealed under its customer's key. What
waited or ran when the daemon ended is lost with its images: it has failed at the next start, and says so.
"""

import uuid
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NewType, Self

import msgspec

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId
from appliance.accounts.endings import SUSPENDED_CUSTOMERS
from appliance.accounts.forward import RestTime, Untold, resting
from appliance.accounts.seals import Seals
from appliance.asynchronous.clear import seal_clear_requests
from appliance.asynchronous.seals import RequestSeals
from appliance.errors import Conflict, NotFound, SealBroken, VolumeFull
from appliance.ledger import Connection, Ledger
from appliance.vault import Keyring

RequestId = NewType("RequestId", str)

PAGE = 20
MOST_KEPT = 100_000
"""Of one customer, 7,000 a day for 14 days: beyond it the oldest that have ended are forgotten earlier."""
LONGEST_PAUSE_SECONDS = 86_400.0
"""A webhook that is due later than this was put off by a clock that was ahead: it is due now."""
_COLUMNS = "id, customer, type, status, created_at, finished_at, response"
_END = (
    f"UPDATE requests SET status = ?1, response = ?2, finished_at = ?3, rests_from = {resting('?4')},"  # noqa: S608
    " due_at = CASE WHEN webhook IS NULL THEN NULL ELSE ?3 END"
)
_KEPT = f"(rests_from IS NULL OR rests_from > {resting('?2')} - ?3)"
_TELLABLE = f"webhook IS NOT NULL AND customer NOT IN ({SUSPENDED_CUSTOMERS})"
_MOST_ATTEMPTS = 1000  # what is counted beyond is damage
_DAMAGED = "what the request was answered is damaged: send it again"
LOST = "the appliance stopped before this request ended: send it again"


class State(StrEnum):
    """The cloud's states, and CANCELLED."""

    CREATED = "CREATED"
    PROCESSING = "PROCESSING"
    RETRY = "RETRY"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def final(self) -> bool:
        return self in {State.DONE, State.FAILED, State.CANCELLED}


_STATES = frozenset(state.value for state in State)
_OPEN = tuple(state.value for state in State if not state.final)


@dataclass(frozen=True, slots=True)
class Request:
    """One request; `response` is JSON, there as soon as the state is final. Times are unix milliseconds."""

    id: RequestId
    customer: CustomerId
    type: str
    state: State
    created_at: int
    finished_at: int | None
    response: bytes | None


class Webhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whom to tell of the end, and the headers that the receiver wants to see."""

    endpoint: str
    headers: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Due:
    """A webhook to be called now, for the `attempts`-th time, with the request it tells of; None where what
    rests of them in the ledger is damaged.
    """

    request: Request
    webhook: Webhook | None
    attempts: int


class Requests:
    """The requests of all customers; `keep_seconds` after its end a request is forgotten.

    Of each customer the last `most` are kept, and older ones only while they run or their webhook is due.

    That goes by a time which no clock that is set moves, see `go_by`; before it is there, none is forgotten.
    """

    def __init__(
        self,
        ledger: Ledger,
        keyring: Keyring,
        clock: Callable[[], float],
        keep_seconds: float,
        most: int = MOST_KEPT,
    ) -> None:
        self._ledger = ledger
        self._keyring = keyring
        self._seals = Seals(keyring)
        self._clock = clock
        self._rest: RestTime = Untold()
        self._keep = int(keep_seconds * 1000)
        self._most = most
        self._left = 0  # the number of the last request of earlier runs

    def go_by(self, rest: RestTime) -> None:
        """What tells the time that requests rest by; call it before entering."""
        self._rest = rest

    async def __aenter__(self) -> Self:
        """Ends what an earlier run left, on a full volume with the first request that it takes again.

        Raises StorageFailed, and VolumeFull where rows of an older version have to be sealed.
        """
        await seal_clear_requests(self._ledger, self._keyring)
        self._left = await self._ledger.read(_newest)
        with suppress(VolumeFull):
            await self._ledger.write(self._end_left)
            self._left = 0
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is held."""

    async def add(
        self,
        actor: Actor,
        customer: CustomerId,
        kind: str,
        *,
        key: str | None = None,
        digest: bytes | None = None,
        webhook: Webhook | None = None,
    ) -> tuple[Request, bool]:
        """A new request, durably and audited, and True; or the one that has this idempotency `key` and False.

        A key is its actor's own: the same one of another actor is another key. What was lost when the daemon
        stopped gives its key to the new request. Raises Conflict when the one that has the key was sent with
        another content, which `digest` tells.
        """
        now = self._now()
        new = RequestId(str(uuid.uuid4()))
        await self._seals.ready(customer)
        seals = RequestSeals(self._seals, customer)
        sealed = webhook and seals.seal_webhook(new, msgspec.json.encode(webhook))
        handle = None if key is None else seals.handle(f"{actor.kind}/{actor.id}", key)
        content = None if digest is None else seals.digest(digest)
        token = actor.id if actor.kind == "token" else None

        def act(connection: Connection) -> tuple[Request, bool]:
            self._end_left(connection)
            if handle is not None:
                known = connection.execute(
                    f"SELECT digest, {_COLUMNS} FROM requests WHERE customer = ? AND handle = ?",  # noqa: S608
                    (customer, handle),
                ).fetchone()
                if known is not None:
                    if known[0] != content:
                        raise Conflict("Idempotency-Key: another request was sent with it")
                    if not _is_lost(known[1:]):
                        return self._request(known[1:]), False
                    connection.execute("UPDATE requests SET handle = NULL WHERE id = ?", (known[1],))
            connection.execute(
                "INSERT INTO requests"
                " (id, customer, token, type, status, created_at, handle, digest, webhook)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (new, customer, token, kind, State.CREATED, now, handle, content, sealed),
            )
            self._forget_oldest(connection, customer)
            record(connection, now, actor, Event.REQUEST_ADD, customer, new, {"type": kind})
            return Request(new, customer, kind, State.CREATED, now, None, None), True

        added = await self._ledger.write(act)
        self._left = 0
        return added

    async def get(self, customer: CustomerId, request: str, only: str | None = None) -> Request:
        """The request, where `only` is given if that token made it. Raises NotFound."""
        return await self._ledger.read(lambda connection: self._one(connection, customer, request, only))

    async def list(
        self,
        customer: CustomerId,
        page: int,
        *,
        kind: str | None = None,
        state: str | None = None,
        only: str | None = None,
    ) -> tuple[Sequence[Request], int]:
        """A page of PAGE requests, the newest first, and how many there are; `only` those of this token."""
        condition = f"customer = ?1 AND {_KEPT}"
        bound: list[object] = [customer, self._believed(), self._keep]
        for column, wanted in (("type", kind), ("status", state), ("token", only)):
            if wanted is not None:
                condition += f" AND {column} = ?"
                bound.append(wanted)

        def query(connection: Connection) -> tuple[Sequence[Request], int]:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM requests WHERE {condition} ORDER BY number DESC LIMIT ? OFFSET ?",  # noqa: S608
                (*bound, PAGE, (page - 1) * PAGE),
            )
            found = [self._request(row) for row in rows]
            count = connection.execute(f"SELECT count(*) FROM requests WHERE {condition}", bound).get  # noqa: S608
            return found, count

        return await self._ledger.read(query)

    async def move(self, request: RequestId, state: State) -> None:
        """To PROCESSING or RETRY; nothing happens to a request that has ended."""

        def act(connection: Connection) -> None:
            connection.execute(
                "UPDATE requests SET status = ? WHERE id = ? AND status IN (?, ?, ?)",
                (state, request, *_OPEN),
            )

        await self._ledger.write(act)

    async def finish(self, request: RequestId, state: State, response: bytes) -> None:
        """To DONE or FAILED, and the webhook is due; nothing happens to a request that has ended."""
        now, rests_from = self._now(), self._rests_from()

        def act(connection: Connection) -> None:
            customer = connection.execute(
                "SELECT customer FROM requests WHERE id = ? AND status IN (?, ?, ?)", (request, *_OPEN)
            ).get
            if customer is None:
                return
            try:
                sealed = self._of(customer).seal_response(request, response)
            except (NotFound, SealBroken):  # the customer is being erased, and its requests go next
                return
            connection.execute(f"{_END} WHERE id = ?5", (state, sealed, now, rests_from, request))

        await self._ledger.write(act)

    async def cancel(
        self, actor: Actor, customer: CustomerId, request: str, only: str | None = None
    ) -> Request:
        """To CANCELLED, durably and audited; no webhook tells of it.

        Raises NotFound as `get`, and Conflict when it has ended.
        """
        now, rests_from = self._now(), self._rests_from()

        def act(connection: Connection) -> Request:
            found = self._one(connection, customer, request, only)
            if found.state.final:
                raise Conflict(f"the request has ended already: {found.state}")
            connection.execute(
                f"UPDATE requests SET status = ?1, finished_at = ?2, rests_from = {resting('?3')},"  # noqa: S608
                " webhook = NULL WHERE id = ?4",
                (State.CANCELLED, now, rests_from, found.id),
            )
            record(connection, now, actor, Event.REQUEST_CANCEL, customer, found.id, {"type": found.type})
            return self._one(connection, customer, request)

        return await self._ledger.write(act)

    async def due(
        self, most: int, *, besides: Collection[RequestId] = (), customers: Collection[CustomerId] = ()
    ) -> Sequence[Due]:
        """The webhooks whose time has come, of each customer the one that is due the longest.

        Neither those of the requests `besides`, nor any of these `customers` or of suspended ones.
        """
        now, (condition, bound) = self._now(), _others(besides, customers)
        latest = now + int(LONGEST_PAUSE_SECONDS * 1000)

        def query(connection: Connection) -> Sequence[Due]:
            rows = connection.execute(
                # SQLite takes the other columns from the row of the minimum.
                f"SELECT webhook, attempts, {_COLUMNS}, min(due_at) FROM requests"  # noqa: S608
                f" WHERE (due_at <= ? OR due_at > ?) AND {condition}"
                " GROUP BY customer ORDER BY min(due_at) LIMIT ?",
                (now, latest, *bound, most),
            )
            return [self._due(row[:-1]) for row in rows]

        return await self._ledger.read(query)

    async def next_due(
        self, *, besides: Collection[RequestId] = (), customers: Collection[CustomerId] = ()
    ) -> float | None:
        """Seconds until a webhook is due, None while there is none; of the same ones as `due`."""
        condition, bound = _others(besides, customers)
        soonest = await self._ledger.read(
            lambda connection: (
                connection.execute(
                    f"SELECT min(due_at) FROM requests WHERE {condition}",  # noqa: S608
                    bound,
                ).get
            )
        )
        return None if soonest is None else max(0.0, soonest / 1000 - self._clock())

    async def told(self, request: RequestId, again_in_seconds: float | None) -> None:
        """The webhook was called: once more after so long, a day at most, or, with None, never again."""
        due = None if again_in_seconds is None else self._now() + int(again_in_seconds * 1000)

        def act(connection: Connection) -> None:
            connection.execute(
                "UPDATE requests SET attempts = min(max(attempts, 0), ?) + 1, due_at = ?,"
                " webhook = CASE WHEN ? IS NULL THEN NULL ELSE webhook END WHERE id = ?",
                (_MOST_ATTEMPTS, due, due, request),
            )

        await self._ledger.write(act)

    def _one(
        self, connection: Connection, customer: CustomerId, request: str, only: str | None = None
    ) -> Request:
        row = connection.execute(
            f"SELECT {_COLUMNS} FROM requests WHERE customer = ?1 AND {_KEPT}"  # noqa: S608
            " AND id = ?4 AND (?5 IS NULL OR token = ?5)",
            (customer, self._believed(), self._keep, request, only),
        ).fetchone()
        if row is None:
            raise NotFound("no such request")
        return self._request(row)

    def _due(self, row: tuple[Any, ...]) -> Due:
        sealed, attempts, *rest = row
        request, attempts = self._request(tuple(rest)), min(max(attempts, 0), _MOST_ATTEMPTS) + 1
        if rest[3] != request.state:
            return Due(request, None, attempts)
        try:
            opened = self._of(request.customer).open_webhook(request.id, sealed)
        except (NotFound, SealBroken):
            return Due(request, None, attempts)
        return Due(request, msgspec.json.decode(opened, type=Webhook), attempts)

    def _request(self, row: tuple[Any, ...]) -> Request:
        """One whose state or response is damaged has failed: it must not stand in the way of others.

        It has failed without a response when nothing had ended it at a start.
        """
        number, customer, kind, given, created_at, finished_at, sealed = row
        state = State(given) if given in _STATES else State.FAILED
        response = None
        if sealed is not None:
            try:
                response = self._of(customer).open_response(number, sealed)
            except (NotFound, SealBroken):
                state, response = State.FAILED, _failure(500, _DAMAGED)
        elif state is State.FAILED:
            response = _failure(503, LOST)
        return Request(
            RequestId(number), CustomerId(customer), kind, state, created_at, finished_at, response
        )

    def _of(self, customer: str) -> RequestSeals:
        return RequestSeals(self._seals, CustomerId(customer))

    def _end_left(self, connection: Connection) -> None:
        """End what an earlier run left, and forget what has ended long ago."""
        self._forget(connection)
        if self._left:
            connection.execute(
                f"{_END} WHERE status IN (?5, ?6, ?7) AND number <= ?8",
                (State.FAILED, None, self._now(), self._rests_from(), *_OPEN, self._left),
            )

    def _forget(self, connection: Connection) -> None:
        connection.execute(
            f"DELETE FROM requests WHERE rests_from <= {resting('?1')} - ?2",  # noqa: S608
            (self._believed(), self._keep),
        )

    def _forget_oldest(self, connection: Connection, customer: CustomerId) -> None:
        connection.execute(
            "DELETE FROM requests WHERE customer = ?1 AND finished_at IS NOT NULL AND due_at IS NULL"
            " AND number <= (SELECT number FROM requests WHERE customer = ?1"
            " ORDER BY number DESC LIMIT 1 OFFSET ?2)",
            (customer, self._most),
        )

    def _believed(self) -> int:
        return int(self._rest.believed() * 1000)

    def _rests_from(self) -> int:
        """Of what ends now."""
        return int(self._rest.rests_from() * 1000)

    def _now(self) -> int:
        return int(self._clock() * 1000)


def _is_lost(row: tuple[Any, ...]) -> bool:
    """Whether a start ended it: it has failed, and nothing was answered."""
    *_, state, _, _, sealed = row
    return state == State.FAILED and sealed is None


def _newest(connection: Connection) -> int:
    found: int = connection.execute("SELECT coalesce(max(number), 0) FROM requests").get
    return found


def _others(
    requests: Collection[RequestId], customers: Collection[CustomerId]
) -> tuple[str, tuple[str, ...]]:
    def marks(values: Collection[str]) -> str:
        return ", ".join("?" * len(values))

    condition = f"id NOT IN ({marks(requests)}) AND customer NOT IN ({marks(customers)}) AND {_TELLABLE}"
    return condition, (*requests, *customers)


def _failure(code: int, text: str) -> bytes:
    """A response as a wire route refuses."""
    return msgspec.json.encode({"detail": text, "status": {"code": code, "text": text}})
