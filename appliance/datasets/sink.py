"""Where images go that were sent for recognition with the wish that they be kept as training images."""

from collections.abc import Awaitable, Callable
from functools import partial

from appliance.accounts.agreements import Agreements, Kind
from appliance.accounts.audit import Actor
from appliance.accounts.customers import CustomerId
from appliance.datasets.catalogue import Datasets
from appliance.datasets.ports import Encoded
from appliance.datasets.records import Dataset, ImageId
from appliance.datasets.store import Store
from appliance.errors import AlreadyStored


class Sink:
    """What recognition is handed of the store: it takes images in, and nothing comes out of it but ids."""

    def __init__(self, datasets: Datasets, store: Store, agreements: Agreements) -> None:
        self._datasets = datasets
        self._store = store
        self._agreements = agreements

    async def open(
        self, actor: Actor, customer: CustomerId, workspace: str
    ) -> Callable[[Encoded], Awaitable[ImageId]]:
        """What puts images into this dataset, see `Datasets.get`.

        For each it gives its id, or that of the image of the same bytes which the dataset has; it raises what
        else `Store.put` does. Raises Forbidden without an active agreement, NotFound.
        """
        self._agreements.require(customer, Kind.TRAINING_DATA)
        return partial(self._put, actor, await self._datasets.get(customer, workspace))

    async def _put(self, actor: Actor, dataset: Dataset, data: Encoded) -> ImageId:
        try:
            return (await self._store.put(actor, dataset, data)).id
        except AlreadyStored as known:
            return ImageId(known.image)
