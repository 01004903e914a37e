"""Access grants: a customer lets one operator see some of its images, for a while and for a reason.

The states and the answer within a day are those of approvals as cloud providers have them (Google's Access
Approval, Microsoft's Customer Lockbox); what they call an emergency, and let through unasked, does not exist
here. Without a live grant no permit is minted for an operator.

Each row carries a MAC over all that it says, its approvals included: one that something else than this module
has written or changed is no grant, whatever it says. One that the log tells was denied or revoked is so,
also when an older row is put back with the MAC that it had.
"""

import hmac
import json
import logging
import re
import unicodedata
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NewType

import msgspec

from appliance.accounts import holders
from appliance.accounts.audit import AUDITED, Actor, Event, record
from appliance.accounts.customers import CustomerId, Customers
from appliance.accounts.endings import CUSTOMER_SUSPENDED_AT, GRANT_CLOSED_BY
from appliance.accounts.seals import Seals
from appliance.errors import Conflict, Forbidden, InvalidInput, NotFound, SealBroken
from appliance.ledger import Connection, Ledger
from appliance.vault import Keyring, Keys

GrantId = NewType("GrantId", str)
State = Literal["pending", "live", "denied", "revoked", "expired"]
Closed = Literal["denied", "revoked"]

MAX_HOURS = 72
MAX_IMAGES = 100
ANSWER_HOURS = 24
"""A request that nobody has answered by then has expired."""

_MAX_REASON = 1000
_REASON = "grant"
_MAC = "grants"
_HOUR = 3_600_000
_OPERATOR = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_NO_GRANT = (
    "no live grant of the customer's lets you see this: ask for one (appliance grant request), which an admin"
    " token of the customer approves"
)


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Access:
    """What a grant allows: `operator` (a uid) reads a whole `dataset`, or the `images` of these ids, for
    `hours` from its approval. Nothing else: no change, no link, no key.

    Raises InvalidInput for another uid than digits, for both or neither, more than MAX_IMAGES, and hours
    outside 1 to MAX_HOURS.
    """

    operator: str
    hours: int
    dataset: str | None = None
    images: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _OPERATOR.fullmatch(self.operator):
            raise InvalidInput("operator: a uid is expected, as the audit log names operators")
        if (self.dataset is None) == (not self.images):
            raise InvalidInput("dataset or images: one of them is expected")
        if len(self.images) > MAX_IMAGES:
            raise InvalidInput(f"images: at most {MAX_IMAGES}; a grant may be for a whole dataset")
        if not 1 <= self.hours <= MAX_HOURS:
            raise InvalidInput(f"hours: 1 to {MAX_HOURS}; a grant is renewed by another one")


@dataclass(frozen=True, slots=True)
class Grant:
    """`id` is a random UUID, `approvals` are ids of tokens, times are unix milliseconds, None for not yet.

    `ends_at` is the end of a live grant, and of a pending one when it is too late to answer. `reason` is None
    once the customer's keys are destroyed.
    """

    id: GrantId
    customer: CustomerId
    access: Access
    reason: str | None
    asked_by: Literal["operator", "customer"]
    asked_at: int
    approvals: tuple[str, ...]
    opened_at: int | None
    ends_at: int
    state: State


class Grants:
    """The grants of all customers; the ledger is asked each time, so that what was revoked is so at once.

    `clock` gives unix seconds that never go back, see ForwardTime. With `four_eyes` a grant is live when two
    tokens of the customer have approved it that two people hold, see `holders`. That a dataset or an image is
    the customer's is the caller's to see to; one that is not is covered by no grant of this customer's.
    """

    def __init__(
        self,
        ledger: Ledger,
        keyring: Keyring,
        customers: Customers,
        clock: Callable[[], float],
        *,
        four_eyes: bool,
    ) -> None:
        self._ledger = ledger
        self._seals = Seals(keyring)
        self._keys = keyring.service
        self._customers = customers
        self._clock = clock
        self._needed = 2 if four_eyes else 1

    async def ask(self, actor: Actor, customer: CustomerId, access: Access, reason: str) -> Grant:
        """An operator's request, durably and audited: it allows nothing until the customer has approved it.

        Raises NotFound for the customer, InvalidInput for the reason.
        """
        drafted = await self._draft(customer, access, reason, "operator")

        def act(connection: Connection) -> GrantId:
            _insert(connection, self._keys, drafted)
            _record(connection, drafted.asked_at, actor, Event.GRANT_REQUEST, drafted)
            return drafted.id

        return await self._done(customer, act)

    async def open(self, actor: Actor, customer: CustomerId, access: Access, reason: str) -> Grant:
        """A grant that the customer opens unasked, durably and audited; with four eyes it is pending.

        Raises Forbidden for whoever is not the customer, and as `ask`.
        """
        _check_customer(actor)
        drafted = await self._draft(customer, access, reason, "customer")

        def act(connection: Connection) -> GrantId:
            inserted = _insert(connection, self._keys, drafted)
            until = self._approve(connection, drafted.asked_at, actor, inserted)
            _record(connection, drafted.asked_at, actor, Event.GRANT_OPEN, drafted, until=until)
            return drafted.id

        return await self._done(customer, act)

    async def renew(self, actor: Actor, customer: CustomerId, grant: GrantId, hours: int | None) -> Grant:
        """Another grant like this one of the customer's, as `open`; by default for as many hours.

        Raises NotFound for the grant, Conflict when its reason cannot be read, and as `open`.
        """
        found = await self._found(customer, grant)
        if found.reason is None:
            raise Conflict("the reason of this grant cannot be read any more: open another one")
        old = found.access
        access = Access(old.operator, old.hours if hours is None else hours, old.dataset, old.images)
        return await self.open(actor, customer, access, found.reason)

    async def approve(self, actor: Actor, customer: CustomerId, grant: GrantId) -> Grant:
        """One token's approval, which counts once; the grant is live for its hours when there are enough.

        Of a live grant it changes nothing, its end included. Raises Forbidden for whoever is not the
        customer, and with four eyes for a token that speaks for no person more, NotFound, also for another
        customer's, Conflict for one that is denied, revoked or expired.
        """
        _check_customer(actor)
        now = self._now()

        def act(connection: Connection) -> GrantId:
            found = _owned(connection, self._keys, customer, grant)
            state = _state(found, now)
            if state not in {"pending", "live"}:
                raise Conflict(f"the grant is {state}: nothing brings it back; open another one")
            if state == "pending" and actor.id not in found.approvals:
                until = self._approve(connection, now, actor, found)
                _record(connection, now, actor, Event.GRANT_APPROVE, found, until=until)
            return found.id

        return await self._done(customer, act)

    async def deny(self, actor: Actor, customer: CustomerId, grant: GrantId) -> Grant:
        """Refuse a pending request for good; a second time changes nothing.

        Raises as `approve`, and Conflict for a live one.
        """
        _check_customer(actor)
        now = self._now()

        def act(connection: Connection) -> GrantId:
            found = _owned(connection, self._keys, customer, grant)
            state = _state(found, now)
            if state not in {"pending", "denied"}:
                raise Conflict(f"the grant is {state}: only a pending one is denied, a live one revoked")
            if state == "pending":
                _close(connection, self._keys, now, found, "denied")
                _record(connection, now, actor, Event.GRANT_DENY, found)
            return found.id

        return await self._done(customer, act)

    async def revoke(self, actor: Actor, customer: CustomerId | None, grant: GrantId) -> None:
        """End a grant now: the next image is refused, also in the middle of an export.

        Of one that has ended it changes nothing. Raises NotFound when it does not exist or, with `customer`,
        belongs to another one.
        """
        now = self._now()

        def act(connection: Connection) -> None:
            found = _owned(connection, self._keys, customer, grant)
            if _state(found, now) in {"pending", "live"}:
                _close(connection, self._keys, now, found, "revoked")
                _record(connection, now, actor, Event.GRANT_REVOKE, found)

        await self._ledger.write(act)

    async def list(self, customer: CustomerId | None = None) -> list[Grant]:
        """The grants of one customer, or of all with None, oldest first, ended ones included."""
        now = self._now()
        rows = await self._ledger.read(lambda connection: _rows(connection, self._keys, customer))
        return [self._opened(row, now) for row in rows]

    async def reasons(self, customer: CustomerId, grants: Collection[str]) -> dict[str, str]:
        """Why each of these grants of the customer's was opened; those that cannot be read are left out."""
        if not grants:
            return {}
        rows = await self._ledger.read(lambda connection: _rows(connection, self._keys, customer))
        opened = [self._opened(row, self._now()) for row in rows if row.id in grants]
        return {one.id: one.reason for one in opened if one.reason is not None}

    async def see(self, actor: Actor, customer: CustomerId, dataset: str, image: str) -> GrantId:
        """Note in the customer's audit log that this operator opens this image; durable on return, and so
        before the image is opened. Which grant allows it. Raises Forbidden when none does now.
        """
        now = self._now()

        def act(connection: Connection) -> GrantId:
            grant = _admitting(connection, self._keys, now, actor, customer, dataset, image)
            details: dict[str, object] = {"grant": grant, "dataset": dataset}
            record(connection, now, actor, Event.IMAGE_OPEN, customer, image, details)
            return grant

        return await self._ledger.write(act)

    def over(self, actor: Actor, customer: CustomerId, dataset: str) -> Callable[[Connection], GrantId]:
        """Asks, inside an act of `Ledger.write`, which grant lets this operator read the whole dataset.

        What it returns raises Forbidden when none does at that moment.
        """
        return lambda connection: _admitting(
            connection, self._keys, self._now(), actor, customer, dataset, None
        )

    def _approve(self, connection: Connection, now: int, actor: Actor, found: "_Row") -> int | None:
        """Until when the grant is live by this approval, None while others are missing."""
        if self._needed > 1:
            holders.check_speaks(connection, self._keys, actor, found.id)
        approved = replace(found, approvals=_with_approval(connection, now, actor.id, found))
        until = None
        if len(approved.approvals) >= self._needed:
            until = now + found.access.hours * _HOUR
            approved = replace(approved, opened_at=now, ends_at=until)
        connection.execute(
            "UPDATE grants SET opened_at = ?, ends_at = ?, mac = ? WHERE id = ?",
            (approved.opened_at, approved.ends_at, _mac(self._keys, _columns(approved)), found.id),
        )
        return until

    async def _draft(
        self, customer: CustomerId, access: Access, reason: str, asked_by: Literal["operator", "customer"]
    ) -> "_Row":
        if not self._customers.known(customer):
            raise NotFound("no such customer")
        identity, now = GrantId(str(uuid.uuid4())), self._now()
        sealed = await self._seals.seal(customer, _REASON, _checked_reason(reason).encode(), identity)
        ends_at = now + ANSWER_HOURS * _HOUR
        return _Row(identity, customer, access, sealed, asked_by, now, None, ends_at, None, 0, ())

    async def _done(self, customer: CustomerId, act: Callable[[Connection], GrantId]) -> Grant:
        return await self._found(customer, await self._ledger.write(act))

    async def _found(self, customer: CustomerId, grant: GrantId) -> Grant:
        row = await self._ledger.read(lambda connection: _owned(connection, self._keys, customer, grant))
        return self._opened(row, self._now())

    def _opened(self, row: "_Row", now: int) -> Grant:
        try:
            reason = self._seals.unseal(row.customer, _REASON, row.sealed, row.id).decode()
        except (NotFound, SealBroken):  # the customer's keys are destroyed, or the row was written over
            reason = None
        return Grant(
            row.id,
            row.customer,
            row.access,
            reason,
            row.asked_by,
            row.asked_at,
            row.approvals,
            row.opened_at,
            row.ends_at,
            _state(row, now),
        )

    def _now(self) -> int:
        return int(self._clock() * 1000)


@dataclass(frozen=True, slots=True)
class _Row:
    id: GrantId
    customer: CustomerId
    access: Access
    sealed: bytes  # the reason
    asked_by: Literal["operator", "customer"]
    asked_at: int
    opened_at: int | None
    ends_at: int
    closed: Closed | None
    seq: int  # how far the audit log went when it was asked for
    approvals: tuple[str, ...]


def close_all(connection: Connection, keys: Keys, now: int) -> None:
    """End every grant, within an act of `Ledger.write`: those of a ledger that was put back may have been
    revoked since. `keys` are the appliance's own, `now` in unix milliseconds.
    """
    for row in _rows(connection, keys, None):
        if row.closed is None and row.ends_at > now:
            _close(connection, keys, now, row, "revoked")


def _state(row: _Row, now: int) -> State:
    if row.closed is not None:
        return row.closed
    if now >= row.ends_at:
        return "expired"
    return "pending" if row.opened_at is None else "live"


def _check_customer(actor: Actor) -> None:
    if actor.kind != "token":
        raise Forbidden("the customer itself decides, with a token of its own that has the scope admin")


def _checked_reason(reason: str) -> str:
    cleaned = unicodedata.normalize("NFC", reason).strip()
    if not 1 <= len(cleaned) <= _MAX_REASON or not cleaned.isprintable():
        raise InvalidInput(f"reason: 1 to {_MAX_REASON} printable characters")
    return cleaned


def _admitting(  # noqa: PLR0917 - whoever wants to see what
    connection: Connection,
    keys: Keys,
    now: int,
    actor: Actor,
    customer: CustomerId,
    dataset: str,
    image: str | None,
) -> GrantId:
    """The grant, of those that are live the one that ends last. Of a suspended customer, which can revoke
    nothing, there is none.
    """
    live = connection.execute(
        f"SELECT {_HELD} FROM grants"  # noqa: S608 - a constant
        " WHERE customer = ?1 AND operator = ?2 AND ?3 = 'operator'"
        " AND opened_at IS NOT NULL AND closed IS NULL AND ends_at > ?4"
        f" AND (SELECT {CUSTOMER_SUSPENDED_AT} IS NULL FROM customers WHERE id = grants.customer)"
        " ORDER BY ends_at DESC",
        (customer, actor.id, actor.kind, now),
    ).fetchall()
    for row in _genuine(keys, live):
        if row.closed is None and (row.access.dataset == dataset or image in row.access.images):
            return row.id
    raise Forbidden(_NO_GRANT)


def _record(
    connection: Connection, now: int, actor: Actor, event: Event, found: _Row, *, until: int | None = None
) -> None:
    """What is asked for and opened goes with the rows that tell of it: reads are held against these."""
    access = found.access
    details: dict[str, object] = {"operator": access.operator}
    if event in {Event.GRANT_REQUEST, Event.GRANT_OPEN, Event.GRANT_APPROVE}:
        what = {"images": access.images} if access.dataset is None else {"dataset": access.dataset}
        details |= {**what, "hours": access.hours, "until": until}
    record(connection, now, actor, event, found.customer, found.id, details)


_COLUMNS = (
    "id, customer, operator, hours, dataset, images, reason, asked_by, asked_at, opened_at, ends_at, closed,"
    " seq, (SELECT json_group_array(token) FROM"
    " (SELECT token FROM grant_approvals WHERE grant_id = grants.id ORDER BY approved_at, token))"
)
_CLOSED_BY: dict[str | None, Closed] = {
    Event.GRANT_REVOKE.value: "revoked",
    Event.GRANT_DENY.value: "denied",
}
_HELD = f"{_COLUMNS}, mac, {GRANT_CLOSED_BY}"


def _insert(connection: Connection, keys: Keys, drafted: _Row) -> _Row:
    """A new grant, as it stands in the ledger then."""
    row = replace(drafted, seq=int(connection.execute(f"SELECT {AUDITED}").get))
    *columns, _ = _columns(row)
    connection.execute(
        "INSERT INTO grants (id, customer, operator, hours, dataset, images, reason, asked_by, asked_at,"
        " opened_at, ends_at, closed, seq, mac) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*columns, _mac(keys, _columns(row))),
    )
    return row


def _close(connection: Connection, keys: Keys, now: int, found: _Row, how: Closed) -> None:
    connection.execute(
        "UPDATE grants SET closed = ?, closed_at = ?, mac = ? WHERE id = ?",
        (how, now, _mac(keys, _columns(replace(found, closed=how))), found.id),
    )


def _with_approval(connection: Connection, now: int, token: str, found: _Row) -> tuple[str, ...]:
    """Who has approved it, one more by now, in the order that they are read in."""
    query = "SELECT approved_at, token FROM grant_approvals WHERE grant_id = ?"
    before = [(at, one) for at, one in connection.execute(query, (found.id,)) if one in found.approvals]
    connection.execute(
        "INSERT INTO grant_approvals (grant_id, token, approved_at) VALUES (?, ?, ?)", (found.id, token, now)
    )
    return tuple(one for _, one in sorted([*before, (now, token)]))


def _columns(row: _Row) -> tuple[Any, ...]:
    """What _COLUMNS are to say. The MAC is over this, and never over what a row says once it is written: a
    trigger that somebody has put into the ledger would have the last word in it.
    """
    access = row.access
    return (
        row.id,
        row.customer,
        access.operator,
        access.hours,
        access.dataset,
        json.dumps(access.images) if access.images else None,
        row.sealed,
        row.asked_by,
        row.asked_at,
        row.opened_at,
        row.ends_at,
        row.closed,
        row.seq,
        json.dumps(row.approvals, separators=(",", ":")),  # as SQLite writes it
    )


def _owned(connection: Connection, keys: Keys, customer: CustomerId | None, grant: GrantId) -> _Row:
    found = connection.execute(
        f"SELECT {_HELD} FROM grants WHERE id = ?1 AND (?2 IS NULL OR customer = ?2)",  # noqa: S608
        (grant, customer),
    ).fetchall()
    for row in _genuine(keys, found):
        return row
    raise NotFound("no such grant")


def _rows(connection: Connection, keys: Keys, customer: CustomerId | None) -> list[_Row]:
    found = connection.execute(
        f"SELECT {_HELD} FROM grants WHERE ?1 IS NULL OR customer = ?1 ORDER BY asked_at, id",  # noqa: S608
        (customer,),
    )
    return list(_genuine(keys, found))


def _genuine(keys: Keys, rows: Iterable[tuple[Any, ...]]) -> Iterator[_Row]:
    """Of rows with their MACs those that are as this module has left them, closed where the log says so."""
    for *columns, mac, closed_by in rows:
        if hmac.compare_digest(_mac(keys, columns), mac):
            yield _row(columns, _CLOSED_BY.get(closed_by))
        else:
            _log.error("the row of grant %s is not as it was written, and allows nothing", columns[0])


def _mac(keys: Keys, columns: Sequence[Any]) -> bytes:
    return keys.mac(_MAC, msgspec.json.encode(columns))


def _row(columns: Sequence[Any], told: Closed | None) -> _Row:
    identity, customer, operator, hours, dataset, images, sealed, asked_by, asked_at, *rest = columns
    access = Access(operator, hours, dataset, tuple(json.loads(images)) if images else ())
    opened_at, ends_at, closed, seq, approvals = rest
    approved, closed = tuple(json.loads(approvals)), closed or told
    return _Row(
        *(identity, customer, access, sealed, asked_by, asked_at), opened_at, ends_at, closed, seq, approved
    )
