"""Rotations: keys replaced by new ones as an operator asks, and the record of it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId, Customers
from appliance.errors import InvalidInput, NotFound
from appliance.ledger import Ledger
from appliance.vault import KEY_BYTES, Generations, Keyring


@dataclass(frozen=True, slots=True)
class Overview:
    """What an operator may know of the keyring: `number` rises with every change, `rotation` is what comes
    next in a rotation of the root."""

    number: int
    rotation: Literal["restart", "retire"] | None
    customers: list[Generations]


class Rotations:
    """Changes of the keyring by operators.

    The keyring is a file of its own beside the ledger. It is changed first, durably; when the row of the
    audit log cannot follow (StorageFailed), the change stands, and the next row's `number` tells of one more.
    """

    def __init__(
        self, ledger: Ledger, keyring: Keyring, customers: Customers, clock: Callable[[], float]
    ) -> None:
        self._ledger = ledger
        self._keyring = keyring
        self._customers = customers
        self._clock = clock

    @property
    def rotation(self) -> Literal["restart", "retire"] | None:
        """What comes next in a rotation of the root, as `Keyring.rotation`."""
        return self._keyring.rotation

    async def overview(self) -> Overview:
        """Every customer and container that has keys; no key is in it."""
        customers = await asyncio.to_thread(self._keyring.generations)
        return Overview(self._keyring.number, self._keyring.rotation, customers)

    async def rotate_customer(self, actor: Actor, customer: CustomerId) -> None:
        """Wrap the keys of a customer's containers under a new key. Raises NotFound when it has none."""
        owner = self._owner(customer)
        await asyncio.to_thread(self._keyring.rotate_customer, owner)
        await self._record(actor, Event.KEY_ROTATE, "customer", customer, customer)

    async def rotate_container(self, actor: Actor, customer: CustomerId, container: str) -> None:
        """Seal what is new in a container under a new key. Raises NotFound, also for another customer's."""
        owner = self._owner(customer)
        try:
            named = UUID(container)
        except ValueError:
            raise NotFound("there is no key of this container") from None
        await asyncio.to_thread(self._keyring.rotate_container, owner, named)
        await self._record(actor, Event.KEY_ROTATE, "container", customer, str(named))

    async def rotate_root(self, actor: Actor, root: bytes | bytearray) -> None:
        """Have a new root key open the keyring too, as `Keyring.rotate_root`, which says what it raises.

        Raises InvalidInput for what has another length than a root key.
        """
        if len(root) != KEY_BYTES:
            raise InvalidInput(f"a root key has {KEY_BYTES} bytes, not {len(root)}")
        if await asyncio.to_thread(self._keyring.rotate_root, root):
            await self._record(actor, Event.KEY_ROTATE, "root", None, None)

    async def retire_root(self, actor: Actor) -> bool:
        """End a rotation of the root: the old one opens nothing any more. Returns False when there is none.

        Raises Conflict while the appliance runs with the old one.
        """
        retired = await asyncio.to_thread(self._keyring.retire_root)
        if retired:
            await self._record(actor, Event.KEY_RETIRE, "root", None, None)
        return retired

    def _owner(self, customer: CustomerId) -> UUID:
        if not self._customers.known(customer):
            raise NotFound("no such customer")
        return UUID(customer)

    async def _record(
        self, actor: Actor, event: Event, key: str, customer: CustomerId | None, subject: str | None
    ) -> None:
        now, details = int(self._clock() * 1000), {"key": key, "number": self._keyring.number}
        await self._ledger.write(
            lambda connection: record(connection, now, actor, event, customer, subject, details)
        )
