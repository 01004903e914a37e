"""Agreements: what a customer has allowed to be done with what it sends, for as long as it allows it."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal, NewType, Self

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId, Customers
from appliance.errors import Conflict, Forbidden, InvalidInput, NotFound
from appliance.ledger import Connection, Ledger

AgreementId = NewType("AgreementId", str)


class Kind(StrEnum):
    """What is agreed to. Values are stable: they stand in the ledger and on the wire."""

    TRAINING_DATA = "training-data"  # images are stored, and models of the customer's own are made from them


@dataclass(frozen=True, slots=True)
class Agreement:
    """`id` is a random UUID; times are unix milliseconds, None for what has not happened."""

    id: AgreementId
    customer: CustomerId
    kind: Kind
    signed_at: int
    active_at: int | None
    revoked_at: int | None

    @property
    def state(self) -> Literal["pending", "active", "revoked"]:
        """Only an active one allows anything; a pending one waits for the customer to accept it."""
        if self.revoked_at is not None:
            return "revoked"
        return "pending" if self.active_at is None else "active"


class Agreements:
    """The agreements of all customers: the truth in the ledger, those not revoked also in memory.

    Of each kind a customer has at most one that is not revoked.
    """

    def __init__(self, ledger: Ledger, customers: Customers, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._customers = customers
        self._clock = clock
        self._standing: dict[tuple[CustomerId, Kind], Agreement] = {}

    async def __aenter__(self) -> Self:
        for agreement in await self.list():
            if agreement.revoked_at is None:
                self._remember(agreement)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._standing.clear()

    async def sign(
        self, actor: Actor, customer: CustomerId, kind: Kind, *, await_acceptance: bool = False
    ) -> Agreement:
        """Record a contract that both sides signed, durably and audited; active at once.

        With `await_acceptance` it is pending until the customer has accepted it. Raises NotFound for the
        customer, Conflict while it has one of this kind that is active or pending.
        """
        if not self._customers.known(customer):
            raise NotFound("no such customer")
        now = self._now()
        signed = Agreement(
            AgreementId(str(uuid.uuid4())), customer, kind, now, None if await_acceptance else now, None
        )

        def act(connection: Connection) -> Agreement:
            standing = _standing(connection, customer, kind)
            if standing is not None:
                fix = "revoke it to sign another one"
                raise Conflict(f"the {kind} agreement {standing.id} is {standing.state} already: {fix}")
            connection.execute(
                "INSERT INTO agreements (id, customer, kind, signed_at, active_at) VALUES (?, ?, ?, ?, ?)",
                (signed.id, customer, kind.value, now, signed.active_at),
            )
            details: dict[str, object] = {"kind": kind.value, "await_acceptance": await_acceptance}
            record(connection, now, actor, Event.AGREEMENT_SIGN, customer, signed.id, details)
            return signed

        return await self._ledger.write(act, then=self._remember)

    async def accept(self, actor: Actor, customer: CustomerId, agreement_id: AgreementId) -> Agreement:
        """Make a pending agreement of this customer active; a second time changes nothing.

        That the customer itself asks is the caller's to see to. Raises NotFound when it does not exist or
        belongs to another customer, Conflict when it is revoked.
        """
        now = self._now()

        def act(connection: Connection) -> Agreement:
            found = _owned(connection, customer, agreement_id)
            if found.revoked_at is not None:
                raise Conflict("the agreement is revoked: an operator signs a new one")
            if found.active_at is not None:
                return found
            connection.execute("UPDATE agreements SET active_at = ? WHERE id = ?", (now, found.id))
            record(connection, now, actor, Event.AGREEMENT_ACCEPT, customer, found.id)
            return replace(found, active_at=now)

        return await self._ledger.write(act, then=self._remember)

    async def revoke(self, actor: Actor, customer: CustomerId | None, agreement_id: AgreementId) -> None:
        """End an agreement now; a second time changes nothing.

        Raises NotFound when it does not exist or, with `customer`, belongs to another one.
        """
        now = self._now()

        def act(connection: Connection) -> Agreement | None:
            found = _owned(connection, customer, agreement_id)
            if found.revoked_at is not None:
                return None
            connection.execute("UPDATE agreements SET revoked_at = ? WHERE id = ?", (now, found.id))
            record(connection, now, actor, Event.AGREEMENT_REVOKE, found.customer, found.id)
            return found

        await self._ledger.write(act, then=self._forget)

    async def list(self, customer: CustomerId | None = None) -> list[Agreement]:
        """The agreements of one customer, or of all with None, oldest first, revoked ones included."""
        return await self._ledger.read(lambda connection: _agreements(connection, customer))

    def require(self, customer: CustomerId, kind: Kind) -> Agreement:
        """The customer's active agreement of this kind, from memory, without awaiting.

        Raises Forbidden, which says what is missing and who can change it. For what is stored this is only
        the early refusal: the transaction that stores asks `required`.
        """
        return _active(self._standing.get((customer, kind)), kind)

    def forget(self, customer: CustomerId) -> None:
        """Its erasure has begun: nothing that it agreed to stands any more. The rows go with its others."""
        for kind in Kind:
            self._standing.pop((customer, kind), None)

    def _now(self) -> int:
        return int(self._clock() * 1000)

    def _remember(self, agreement: Agreement) -> None:
        self._standing[agreement.customer, agreement.kind] = agreement

    def _forget(self, revoked: Agreement | None) -> None:
        if revoked is not None:
            self._standing.pop((revoked.customer, revoked.kind), None)


def required(connection: Connection, customer: CustomerId, kind: Kind) -> Agreement:
    """As `Agreements.require`, to be called inside `Ledger.write`.

    Acts run one after the other, so what is stored with this in its own transaction is stored before a
    revocation or not at all.
    """
    return _active(_standing(connection, customer, kind), kind)


def parse_kind(name: str) -> Kind:
    """The kind of this name. Raises InvalidInput listing what exists when there is none."""
    try:
        return Kind(name)
    except ValueError:
        raise InvalidInput(f"kind: one of {', '.join(Kind)} is expected") from None


def _active(found: Agreement | None, kind: Kind) -> Agreement:
    if found is None:
        fix = f"an operator records one that was signed (appliance agreement sign CUSTOMER {kind})"
        raise Forbidden(f"this needs an active {kind} agreement, and there is none: {fix}")
    if found.active_at is None:
        fix = (
            f"a token of the customer with the scope admin accepts it (POST .../agreements/{found.id}/accept)"
        )
        raise Forbidden(
            f"this needs an active {kind} agreement, and the one there is was not accepted: {fix}"
        )
    return found


_COLUMNS = "id, customer, kind, signed_at, active_at, revoked_at"


def _standing(connection: Connection, customer: CustomerId, kind: Kind) -> Agreement | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM agreements WHERE customer = ? AND kind = ? AND revoked_at IS NULL",  # noqa: S608
        (customer, kind.value),
    ).fetchone()
    return None if row is None else _agreement(row)


def _owned(connection: Connection, customer: CustomerId | None, agreement_id: AgreementId) -> Agreement:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM agreements WHERE id = ?",  # noqa: S608
        (agreement_id,),
    ).fetchone()
    if row is None or (customer is not None and row[1] != customer):
        raise NotFound("no such agreement")
    return _agreement(row)


def _agreements(connection: Connection, customer: CustomerId | None) -> list[Agreement]:
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM agreements WHERE ?1 IS NULL OR customer = ?1 ORDER BY signed_at, id",  # noqa: S608
        (customer,),
    )
    return [_agreement(row) for row in rows]


def _agreement(row: tuple[Any, ...]) -> Agreement:
    return Agreement(AgreementId(row[0]), CustomerId(row[1]), Kind(row[2]), row[3], row[4], row[5])
