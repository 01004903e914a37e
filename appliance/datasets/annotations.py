"""All that a customer writes about its images, as one part."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Self

from appliance.datasets.catalogue import Datasets
from appliance.datasets.gallery import Gallery
from appliance.datasets.labels import Labels
from appliance.datasets.notes import Notes
from appliance.datasets.objects import Objects
from appliance.datasets.store import Store
from appliance.datasets.tasks import Tasks
from appliance.ledger import Ledger


class Annotations:
    """Tasks, labels, objects and notes; `gallery` is the images with what they have of these.

    What is written is sealed under the key of its dataset and ends with it. Every act is one transaction of
    the ledger with its audit entry. Entering goes on with deletions that a stop interrupted.
    """

    def __init__(
        self, ledger: Ledger, datasets: Datasets, store: Store, *, clock: Callable[[], float]
    ) -> None:
        self.tasks = Tasks(ledger, datasets, clock)
        self.labels = Labels(ledger, datasets, store, clock)
        self.gallery = Gallery(ledger, datasets, self.labels, clock)
        self.objects = Objects(ledger, datasets, self.labels, self.gallery, clock)
        self.notes = Notes(ledger, datasets, clock)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self.objects.seal_boxes()
            await stack.enter_async_context(self.labels)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
