"""Agreements: what a customer has allowed to be done with what it sends, for as long as it allows it."""

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum
from typing import Any, Literal, NewType, Self

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.contracts import Contract, check_document
from appliance.accounts.customers import CustomerId, Customers
from appliance.accounts.endings import AGREEMENT_REVOKED_AT
from appliance.accounts.seals import Seals
from appliance.errors import Conflict, Forbidden, InvalidInput, NotFound, SealBroken
from appliance.ledger import Connection, Ledger
from appliance.vault import Keyring

AgreementId = NewType("AgreementId", str)

_PARTIES, _DOCUMENT = "parties", "document"


class Kind(StrEnum):
    """What is agreed to. Values are stable: they stand in the ledger and on the wire."""

    TRAINING_DATA = "training-data"  # images are stored, and models of the customer's own are made from them
    NDA = "nda"  # what the operator learns of the customer it keeps to itself
    DPA = "dpa"  # the operator processes personal data on the customer's behalf (GDPR, Art. 28)


@dataclass(frozen=True, slots=True)
class Agreement:
    """`id` is a random UUID; times are unix milliseconds, None for what has not happened.

    `expired`: it had ended by itself when it was read. The parties of its contract are None as well once the
    customer's keys are destroyed.
    """

    id: AgreementId
    customer: CustomerId
    kind: Kind
    signed_at: int
    active_at: int | None
    revoked_at: int | None
    contract: Contract = Contract()  # noqa: RUF009 - it is frozen
    has_document: bool = False
    expired: bool = False

    @property
    def state(self) -> Literal["pending", "active", "revoked", "expired"]:
        """Only an active one allows anything; a pending one waits for the customer to accept it."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expired:
            return "expired"
        return "pending" if self.active_at is None else "active"


class Agreements:
    """The agreements of all customers: the truth in the ledger, those not revoked also in memory.

    Of each kind a customer has at most one that is not revoked. With `require_acceptance` each is pending
    until the customer has accepted it.
    """

    def __init__(
        self,
        ledger: Ledger,
        keyring: Keyring,
        customers: Customers,
        clock: Callable[[], float],
        *,
        require_acceptance: bool = False,
    ) -> None:
        self._ledger = ledger
        self._seals = Seals(keyring)
        self._require_acceptance = require_acceptance
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
        self,
        actor: Actor,
        customer: CustomerId,
        kind: Kind,
        contract: Contract = Contract(),  # noqa: B008 - it is frozen
        *,
        await_acceptance: bool = False,
    ) -> Agreement:
        """Record a contract that both sides signed, durably and audited; active at once.

        With `await_acceptance` it is pending until the customer has accepted it. Raises NotFound for the
        customer, InvalidInput for a contract that has ended already, Conflict while the customer has one of
        this kind that is not revoked.
        """
        if not self._customers.known(customer):
            raise NotFound("no such customer")
        now, identity = self._now(), AgreementId(str(uuid.uuid4()))
        if contract.valid_until is not None and contract.valid_until <= now:
            raise InvalidInput("valid_until: must lie ahead; leave it out for until it is revoked")
        waits = await_acceptance or self._require_acceptance
        signed = Agreement(identity, customer, kind, now, None if waits else now, None, contract)
        parties = None
        if contract.parties is not None:
            parties = await self._seals.seal(customer, _PARTIES, contract.parties.encode(), identity)

        def act(connection: Connection) -> Agreement:
            standing = _standing(connection, customer, kind, now)
            if standing is not None:
                fix = "revoke it to sign another one"
                raise Conflict(f"the {kind} agreement {standing.id} is {standing.state} already: {fix}")
            _insert(connection, signed, parties)
            details: dict[str, object] = {"kind": kind.value, "await_acceptance": waits}
            record(connection, now, actor, Event.AGREEMENT_SIGN, customer, signed.id, details)
            return signed

        return await self._ledger.write(act, then=self._remember)

    async def accept(self, actor: Actor, customer: CustomerId, agreement_id: AgreementId) -> Agreement:
        """Make a pending agreement of this customer active; a second time changes nothing.

        That the customer itself asks is the caller's to see to. Raises NotFound when it does not exist or
        belongs to another customer, Conflict when it is revoked or has expired.
        """
        now = self._now()

        def act(connection: Connection) -> Agreement:
            found = _owned(connection, customer, agreement_id, now)
            if found.revoked_at is not None:
                raise Conflict("the agreement is revoked: an operator signs a new one")
            if found.expired:
                raise Conflict("the agreement has expired: an operator signs a new one")
            if found.active_at is not None:
                return found
            connection.execute("UPDATE agreements SET active_at = ? WHERE id = ?", (now, found.id))
            record(connection, now, actor, Event.AGREEMENT_ACCEPT, customer, found.id)
            return replace(found, active_at=now)

        await self._ledger.write(act, then=self._remember)
        return await self.get(customer, agreement_id)

    async def revoke(
        self,
        actor: Actor,
        customer: CustomerId | None,
        agreement_id: AgreementId,
        erase: Callable[[Connection], object] | None = None,
    ) -> None:
        """End an agreement now; a second time changes nothing.

        Raises NotFound when it does not exist or, with `customer`, belongs to another one. `erase` happens in
        the same transaction, also the second time, and has all go that it allowed to be stored: InvalidInput
        for one of another kind than training-data, Conflict when a later one stands by now.
        """
        now = self._now()

        def act(connection: Connection) -> Agreement | None:
            found = _owned(connection, customer, agreement_id, now)
            if erase is not None:
                _check_erasable(connection, found, now)
                erase(connection)
            if found.revoked_at is not None:
                return None
            connection.execute("UPDATE agreements SET revoked_at = ? WHERE id = ?", (now, found.id))
            record(connection, now, actor, Event.AGREEMENT_REVOKE, found.customer, found.id)
            return found

        await self._ledger.write(act, then=self._forget)

    async def list(self, customer: CustomerId | None = None) -> list[Agreement]:
        """The agreements of one customer, or of all with None, oldest first, revoked ones included."""
        now = self._now()
        listed = await self._ledger.read(lambda connection: _agreements(connection, customer, now))
        return [self._opened(*found) for found in listed]

    async def get(self, customer: CustomerId | None, agreement_id: AgreementId) -> Agreement:
        """The agreement of this id. Raises NotFound when there is none or, with `customer`, another's."""
        now = self._now()
        found = await self._ledger.read(lambda connection: _found(connection, customer, agreement_id, now))
        return self._opened(*found)

    async def attach(self, actor: Actor, agreement_id: AgreementId, document: bytes) -> None:
        """Keep the document that was signed, sealed, durably and audited; once more changes nothing.

        Raises NotFound, TooLarge, InvalidInput unless its SHA-256 is the contract's.
        """
        found = await self.get(None, agreement_id)
        await asyncio.to_thread(check_document, document, found.contract.text_sha256)
        sealed = await self._seals.seal(found.customer, _DOCUMENT, document, found.id)
        now = self._now()

        def act(connection: Connection) -> None:
            if _owned(connection, None, agreement_id, now).has_document:
                return
            connection.execute("UPDATE agreements SET document = ? WHERE id = ?", (sealed, found.id))
            record(connection, now, actor, Event.AGREEMENT_DOCUMENT, found.customer, found.id)

        await self._ledger.write(act)

    async def document(self, customer: CustomerId | None, agreement_id: AgreementId) -> bytes:
        """The document that was signed. Raises NotFound when there is none, and as `get`; SealBroken."""
        found = await self.get(customer, agreement_id)
        sealed = await self._ledger.read(
            lambda connection: (
                connection.execute("SELECT document FROM agreements WHERE id = ?", (found.id,)).get
            )
        )
        if sealed is None:
            raise NotFound("the agreement has no document")
        return await asyncio.to_thread(self._seals.unseal, found.customer, _DOCUMENT, sealed, found.id)

    def require(self, customer: CustomerId, kind: Kind) -> Agreement:
        """The customer's active agreement of this kind, from memory, without awaiting.

        Raises Forbidden, which says what is missing and who can change it. For what is stored this is only
        the early refusal: the transaction that stores asks `required`.
        """
        found, now = self._standing.get((customer, kind)), self._now()
        return _active(None if found is None else replace(found, expired=_ended(found.contract, now)), kind)

    def required(self, connection: Connection, customer: CustomerId, kind: Kind) -> Agreement:
        """As `require`, to be called inside `Ledger.write`.

        Acts run one after the other, so what is stored with this in its own transaction is stored before a
        revocation or not at all.
        """
        return _active(_standing(connection, customer, kind, self._now()), kind)

    def _opened(self, found: Agreement, sealed: bytes | None) -> Agreement:
        if sealed is None:
            return found
        try:
            parties = self._seals.unseal(found.customer, _PARTIES, sealed, found.id).decode()
        except (NotFound, SealBroken):  # the customer's keys are destroyed, or the row was written over
            return found
        return replace(found, contract=replace(found.contract, parties=parties))

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


def parse_kind(name: str) -> Kind:
    """The kind of this name. Raises InvalidInput listing what exists when there is none."""
    try:
        return Kind(name)
    except ValueError:
        raise InvalidInput(f"kind: one of {', '.join(Kind)} is expected") from None


def _ended(contract: Contract, now: int) -> bool:
    return contract.valid_until is not None and now >= contract.valid_until


def _active(found: Agreement | None, kind: Kind) -> Agreement:
    if found is None:
        fix = f"an operator records one that was signed (appliance agreement sign CUSTOMER {kind})"
        raise Forbidden(f"this needs an active {kind} agreement, and there is none: {fix}")
    if found.expired:
        fix = "an operator revokes it and records the next one"
        raise Forbidden(f"this needs an active {kind} agreement, and the one there is has expired: {fix}")
    if found.active_at is None:
        fix = (
            f"a token of the customer with the scope admin accepts it (POST .../agreements/{found.id}/accept)"
        )
        raise Forbidden(
            f"this needs an active {kind} agreement, and the one there is was not accepted: {fix}"
        )
    return found


def _check_erasable(connection: Connection, found: Agreement, now: int) -> None:
    """Whether all that a customer has stored was stored under this agreement, or earlier ones."""
    if found.kind is not Kind.TRAINING_DATA:
        raise InvalidInput("erase: nothing was stored under an agreement of this kind")
    standing = _standing(connection, found.customer, found.kind, now)
    if standing is not None and standing.id != found.id:
        raise Conflict("erase: images are stored under a later agreement by now: erase single datasets")


_COLUMNS = (
    f"id, customer, kind, signed_at, active_at, {AGREEMENT_REVOKED_AT}, valid_until, signed_on, text_sha256,"
    " document IS NOT NULL, parties"
)


def _insert(connection: Connection, signed: Agreement, parties: bytes | None) -> None:
    contract = signed.contract
    # One that the log alone still says is revoked leaves its place too.
    connection.execute(
        f"UPDATE agreements SET revoked_at = {AGREEMENT_REVOKED_AT}"  # noqa: S608
        " WHERE customer = ? AND kind = ? AND revoked_at IS NULL",
        (signed.customer, signed.kind.value),
    )
    connection.execute(
        "INSERT INTO agreements"
        " (id, customer, kind, signed_at, active_at, valid_until, signed_on, text_sha256, parties)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            signed.id,
            signed.customer,
            signed.kind.value,
            signed.signed_at,
            signed.active_at,
            contract.valid_until,
            None if contract.signed_on is None else contract.signed_on.isoformat(),
            contract.text_sha256,
            parties,
        ),
    )


def _standing(connection: Connection, customer: CustomerId, kind: Kind, now: int) -> Agreement | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM agreements"  # noqa: S608
        f" WHERE customer = ? AND kind = ? AND revoked_at IS NULL AND {AGREEMENT_REVOKED_AT} IS NULL",
        (customer, kind.value),
    ).fetchone()
    return None if row is None else _agreement(row, now)[0]


def _owned(
    connection: Connection, customer: CustomerId | None, agreement_id: AgreementId, now: int
) -> Agreement:
    return _found(connection, customer, agreement_id, now)[0]


def _found(
    connection: Connection, customer: CustomerId | None, agreement_id: AgreementId, now: int
) -> tuple[Agreement, bytes | None]:
    """With its sealed parties. Raises NotFound."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM agreements WHERE id = ?",  # noqa: S608
        (agreement_id,),
    ).fetchone()
    if row is None or (customer is not None and row[1] != customer):
        raise NotFound("no such agreement")
    return _agreement(row, now)


def _agreements(
    connection: Connection, customer: CustomerId | None, now: int
) -> list[tuple[Agreement, bytes | None]]:
    """Each with its sealed parties."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM agreements WHERE ?1 IS NULL OR customer = ?1 ORDER BY signed_at, id",  # noqa: S608
        (customer,),
    )
    return [_agreement(row, now) for row in rows]


def _agreement(row: tuple[Any, ...], now: int) -> tuple[Agreement, bytes | None]:
    identity, customer, kind, signed_at, active_at, revoked_at, *rest = row
    valid_until, signed_on, digest, has_document, parties = rest
    day = None if signed_on is None else date.fromisoformat(signed_on)
    contract = Contract(None, digest, day, valid_until)
    found = Agreement(
        identity,
        customer,
        Kind(kind),
        signed_at,
        active_at,
        revoked_at,
        contract,
        bool(has_document),
        _ended(contract, now),
    )
    return found, parties
