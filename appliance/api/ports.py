"""What recognition needs of the store, which it cannot import: handed in by the server."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from appliance.accounts.audit import Actor
from appliance.accounts.customers import CustomerId
from appliance.api.payload import Image

# Stores one encoded image and gives its id, or that of the one there is when the dataset has these bytes.
# Raises Forbidden, VolumeFull, StorageFailed, Overloaded, and InvalidInput for what cannot be kept.
Keep = Callable[[Image | memoryview], Awaitable[str]]


class TrainingSink(Protocol):
    """The one way from recognition to a file: opened for a call that asks for it, and for no other."""

    async def open(self, actor: Actor, customer: CustomerId, workspace: str) -> Keep:
        """What stores images in a dataset of the customer's, durably and audited.

        Raises Forbidden without an active training-data agreement, NotFound for the workspace.
        """
