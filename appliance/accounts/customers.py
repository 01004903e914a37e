"""Customers: whose data and tokens everything else belongs to."""

import unicodedata
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NewType, Self

from appliance.accounts.audit import Actor, Event, record
from appliance.errors import Conflict, InvalidInput, NotFound
from appliance.ledger import Connection, Ledger

CustomerId = NewType("CustomerId", str)

_MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class Customer:
    """`id` is a random UUID, `name` is unique (NFC), `created_at` is unix milliseconds."""

    id: CustomerId
    name: str
    created_at: int


class Customers:
    """The customers of this appliance: the truth in the ledger, their ids also in memory."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._known: set[CustomerId] = set()

    async def __aenter__(self) -> Self:
        self._known = {customer.id for customer in await self.list()}
        return self

    async def __aexit__(self, *_: object) -> None:
        self._known.clear()

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

    async def list(self) -> list[Customer]:
        """All customers by name."""
        return await self._ledger.read(_all)

    async def get(self, customer: CustomerId) -> Customer:
        """Raises NotFound."""
        found = await self._ledger.read(lambda connection: _one(connection, customer))
        if found is None:
            raise NotFound("no such customer")
        return found

    def known(self, customer: CustomerId) -> bool:
        """Whether the id exists, from memory."""
        return customer in self._known


def _checked_name(name: str) -> str:
    cleaned = unicodedata.normalize("NFC", name).strip()
    if not 1 <= len(cleaned) <= _MAX_NAME or not cleaned.isprintable():
        raise InvalidInput(f"name: 1 to {_MAX_NAME} printable characters")
    return cleaned


def _all(connection: Connection) -> list[Customer]:
    rows = connection.execute("SELECT id, name, created_at FROM customers ORDER BY name")
    return [_customer(row) for row in rows]


def _one(connection: Connection, customer: CustomerId) -> Customer | None:
    rows = connection.execute("SELECT id, name, created_at FROM customers WHERE id = ?", (customer,))
    row = rows.fetchone()
    return None if row is None else _customer(row)


def _customer(row: tuple[Any, ...]) -> Customer:
    return Customer(CustomerId(row[0]), row[1], row[2])
