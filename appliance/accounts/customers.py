"""Customers: whose data and tokens everything else belongs to."""

import unicodedata
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NewType, Self

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.endings import (
    CUSTOMER_CLAIMED_AT,
    CUSTOMER_ERASED_AT,
    CUSTOMER_RESUMED_AT,
    CUSTOMER_SUSPENDED_AT,
    SUSPENDED_CUSTOMERS,
)
from appliance.errors import Conflict, InvalidInput, NotFound
from appliance.ledger import Connection, Ledger

CustomerId = NewType("CustomerId", str)

HAS_CLAIMED = (
    "EXISTS (SELECT 1 FROM audit WHERE audit.customer = customers.id"
    " AND (event = 'customer.claim' OR actor_kind = 'token'))"
)
"""Of a row of customers, as an expression of SQL: whether the audit log says so."""

_MAX_NAME = 200
_COLUMNS = f"id, name, created_at, {CUSTOMER_SUSPENDED_AT}, {CUSTOMER_CLAIMED_AT}, {CUSTOMER_RESUMED_AT}"
_LIVING = f"SELECT {_COLUMNS} FROM customers WHERE {CUSTOMER_ERASED_AT} IS NULL"  # noqa: S608


@dataclass(frozen=True, slots=True)
class Customer:
    """`id` is a random UUID, `name` is unique (NFC); times are unix milliseconds, None for never.

    It is claimed at the first use of one of its tokens, whoever issued that.
    """

    id: CustomerId
    name: str
    created_at: int
    suspended_at: int | None = None
    claimed_at: int | None = None
    resumed_at: int | None = None


class Customers:
    """The customers of this appliance: the truth in the ledger, their ids also in memory.

    What the audit log has told of one stays so, whatever a hand has made of its row: see `endings`.
    """

    def __init__(self, ledger: Ledger, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._known: set[CustomerId] = set()
        self._suspended: set[CustomerId] = set()
        self._claimed: set[CustomerId] = set()
        self._resumed: dict[CustomerId, int] = {}

    async def __aenter__(self) -> Self:
        customers = await self.list()
        self._known = {customer.id for customer in customers}
        self._suspended = set(await self._ledger.read(_suspended))
        self._claimed = {customer.id for customer in customers if customer.claimed_at is not None}
        self._resumed = {one.id: one.resumed_at for one in customers if one.resumed_at is not None}
        return self

    async def __aexit__(self, *_: object) -> None:
        self._known.clear()
        self._suspended.clear()
        self._claimed.clear()
        self._resumed.clear()

    async def add(self, actor: Actor, name: str) -> Customer:
        """Create a customer, durably and audited. Raises InvalidInput for the name, Conflict when taken."""
        now = int(self._clock() * 1000)
        customer = Customer(CustomerId(str(uuid.uuid4())), _checked_name(name), now)

        def act(connection: Connection) -> Customer:
            if connection.execute("SELECT 1 FROM customers WHERE name = ?", (customer.name,)).get:
                raise Conflict("a customer of this name exists already")
            connection.execute(
                "INSERT INTO customers (id, name, created_at) VALUES (?, ?, ?)",
                (customer.id, customer.name, customer.created_at),
            )
            record(connection, now, actor, Event.CUSTOMER_ADD, customer.id, customer.id)
            return customer

        return await self._ledger.write(act, then=lambda added: self._known.add(added.id))

    async def suspend(self, actor: Actor, customer: CustomerId) -> Customer:
        """Take none of its tokens and none of its links from now on, durably and audited.

        A call that a token began before changes nothing any more: see `record`.

        Nothing is lost by it; what an operator does for the customer is done. A second time changes nothing.
        Raises NotFound.
        """
        now = int(self._clock() * 1000)
        return await self._set_suspended(actor, customer, now, Event.CUSTOMER_SUSPEND)

    async def resume(self, actor: Actor, customer: CustomerId) -> Customer:
        """Take its tokens and links again, as far as they have not ended meanwhile. Raises NotFound."""
        return await self._set_suspended(actor, customer, None, Event.CUSTOMER_RESUME)

    async def _set_suspended(
        self, actor: Actor, customer: CustomerId, suspended_at: int | None, event: Event
    ) -> Customer:
        now = int(self._clock() * 1000)

        def act(connection: Connection) -> Customer:
            changed = _existing(connection, customer)
            if (changed.suspended_at is None) != (suspended_at is None):
                resumed_at = now if suspended_at is None else changed.resumed_at
                changed = replace(changed, suspended_at=suspended_at, resumed_at=resumed_at)
                record(connection, now, actor, event, customer, customer)
            # Also where nothing changes: so a row that a hand has changed is put right.
            connection.execute(
                "UPDATE customers SET suspended_at = ?, resumed_at = ? WHERE id = ?",
                (changed.suspended_at, changed.resumed_at, customer),
            )
            return changed

        return await self._ledger.write(act, then=self._note_suspended)

    async def claim(self, actor: Actor, customer: CustomerId) -> None:
        """Note that the customer has used a token, durably and audited: from now on it alone issues them.

        A second time changes nothing.
        """
        now = int(self._clock() * 1000)

        def act(connection: Connection) -> None:
            connection.execute(
                "UPDATE customers SET claimed_at = ? WHERE id = ? AND claimed_at IS NULL", (now, customer)
            )
            if connection.changes():
                record(connection, now, actor, Event.CUSTOMER_CLAIM, customer, customer)

        await self._ledger.write(act, then=lambda _: self._claimed.add(customer))

    def forget(self, customer: CustomerId) -> None:
        """Its erasure has begun: it is known no more, and none of its tokens is taken."""
        self._known.discard(customer)

    async def list(self) -> list[Customer]:
        """All customers by name, without those whose erasure has begun."""
        return await self._ledger.read(_all)

    async def get(self, customer: CustomerId) -> Customer:
        """Raises NotFound, also for one whose erasure has begun."""
        return await self._ledger.read(lambda connection: _existing(connection, customer))

    def known(self, customer: CustomerId) -> bool:
        """Whether the id exists, from memory."""
        return customer in self._known

    def suspended(self, customer: CustomerId) -> bool:
        """Whether none of its tokens is taken, from memory; of one that is not known none is."""
        return customer in self._suspended or customer not in self._known

    def claimed(self, customer: CustomerId) -> bool:
        """Whether it has used a token, from memory."""
        return customer in self._claimed

    def resumed_at(self, customer: CustomerId) -> int:
        """When it was last resumed, from memory: unix milliseconds, 0 for never."""
        return self._resumed.get(customer, 0)

    def _note_suspended(self, changed: Customer) -> None:
        if changed.suspended_at is not None:
            self._suspended.add(changed.id)
            return
        self._suspended.discard(changed.id)
        if changed.resumed_at is not None:
            self._resumed[changed.id] = changed.resumed_at


def is_claimed(connection: Connection, customer: CustomerId) -> bool:
    """Whether a customer has used a token: by its row or, where a hand has changed that, by the audit log."""
    query = f"SELECT claimed_at IS NOT NULL OR {HAS_CLAIMED} FROM customers WHERE id = ?"  # noqa: S608
    return bool(connection.execute(query, (customer,)).get)


def check_living(connection: Connection, customer: CustomerId) -> None:
    """Within an act that makes something for a customer. Raises NotFound, also once its erasure has begun."""
    living = f"SELECT 1 FROM customers WHERE id = ? AND {CUSTOMER_ERASED_AT} IS NULL"  # noqa: S608
    if not connection.execute(living, (customer,)).get:
        raise NotFound("no such customer")


def _checked_name(name: str) -> str:
    cleaned = unicodedata.normalize("NFC", name).strip()
    if not 1 <= len(cleaned) <= _MAX_NAME or not cleaned.isprintable():
        raise InvalidInput(f"name: 1 to {_MAX_NAME} printable characters")
    return cleaned


def _all(connection: Connection) -> list[Customer]:
    return [_customer(row) for row in connection.execute(f"{_LIVING} ORDER BY name")]


def _suspended(connection: Connection) -> list[CustomerId]:
    return [CustomerId(row[0]) for row in connection.execute(SUSPENDED_CUSTOMERS)]


def _existing(connection: Connection, customer: CustomerId) -> Customer:
    row = connection.execute(f"{_LIVING} AND id = ?", (customer,)).fetchone()
    if row is None:
        raise NotFound("no such customer")
    return _customer(row)


def _customer(row: tuple[Any, ...]) -> Customer:
    return Customer(CustomerId(row[0]), *row[1:])
