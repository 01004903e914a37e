"""What people write about a customer's affairs, sealed under a key of that customer's."""

import asyncio
from uuid import UUID

from appliance.accounts.customers import CustomerId
from appliance.errors import Conflict, NotFound
from appliance.vault import Container, Keyring


class Seals:
    """Seals reasons, documents and results. Their key is a container of the customer's, with the customer's
    own id: it is made when something is first sealed, rotated as others are, and destroyed with the
    customer's keys.
    """

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    async def seal(self, customer: CustomerId, label: str, data: bytes, context: str) -> bytes:
        """`data` bound to its customer, `label` and `context`. Raises StorageFailed."""
        keys = await self.ready(customer)
        return await asyncio.to_thread(keys.seal, label, data, context.encode())

    def unseal(self, customer: CustomerId, label: str, sealed: bytes, context: str) -> bytes:
        """What `seal` was given. Raises NotFound once the key is destroyed, SealBroken for what changed."""
        return self.keys(customer).unseal(label, sealed, context.encode())

    def keys(self, customer: CustomerId) -> Container:
        """The customer's key. Raises NotFound once it is destroyed, and before anything was sealed."""
        owner = UUID(customer)
        return self._keyring.container(owner, owner)

    async def ready(self, customer: CustomerId) -> Container:
        """The customer's key, made where there is none. Raises StorageFailed."""
        try:
            return self.keys(customer)
        except NotFound:
            pass
        owner = UUID(customer)
        try:
            return await asyncio.to_thread(self._keyring.add, owner, owner, "document")
        except Conflict:  # another call has made it meanwhile
            return self.keys(customer)
