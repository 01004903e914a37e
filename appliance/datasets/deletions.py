"""What deleting an image takes once it is out of sight, and what becomes of it when that fails."""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from appliance.accounts.certificates import Certificates, Erased
from appliance.accounts.customers import CustomerId
from appliance.datasets import rows
from appliance.datasets.files import SealedFiles
from appliance.datasets.records import DatasetId, Image
from appliance.errors import StorageFailed, VolumeFull
from appliance.ledger import Connection, Ledger

_AT_ONCE = 500

_log = logging.getLogger(__name__)


class Deletions:
    """Ends deletions that have begun, also those that a run before had not ended; `clock` is unix seconds.

    One that fails is not forgotten: it is `unfinished` until a call of `finish_rest` ends it.
    """

    def __init__(
        self, ledger: Ledger, files: SealedFiles, certificates: Certificates, clock: Callable[[], float]
    ) -> None:
        self._ledger = ledger
        self._files = files
        self._certificates = certificates
        self._clock = clock
        self._rest: list[Image] = []

    async def resume(self) -> None:
        """Go on with those of a run before, before anything else is deleted. What fails is `unfinished`."""
        after = -1
        while images := await self._ledger.read(partial(rows.being_deleted, after=after, most=_AT_ONCE)):
            after = images[-1].key
            with suppress(StorageFailed, VolumeFull):
                await self.finish(images)

    async def finish(self, images: Sequence[Image]) -> None:
        """The files go, then the rows, then what the ledger's log holds of them.

        With the rows it is certified, one certificate for each dataset. Raises StorageFailed, VolumeFull.
        """
        try:
            await self._finish(images)
        except (StorageFailed, VolumeFull) as error:
            self._rest += images
            _log.error("images that were deleted are not gone yet: %s", error)
            raise

    async def finish_rest(self) -> None:
        """Try again what has failed, one after the other: one file that cannot go keeps no other."""
        for image in list(self._rest):
            with suppress(StorageFailed, VolumeFull):  # the log has said why
                await self._finish([image])
                self._rest.remove(image)

    def unfinished(self) -> str | None:
        """What a person has to know while something is out of sight and not gone."""
        if not self._rest:
            return None
        return f"{len(self._rest)} deleted images are not gone yet, and are tried again: the log says why"

    async def _finish(self, images: Sequence[Image]) -> None:
        await self._files.remove(image.name for image in images)
        now = int(self._clock() * 1000)

        def act(connection: Connection, some: Sequence[Image]) -> None:
            gone: dict[tuple[CustomerId, DatasetId], list[str]] = {}
            for image in rows.finish_deleting(connection, some, now):
                gone.setdefault((image.customer, image.dataset), []).append(image.id)
            for (customer, dataset), ids in gone.items():
                self._certificates.add(connection, now, Erased("image", customer, dataset, ids=ids))

        async for _ in self._ledger.write_parts(images, act):
            pass
        while not await self._ledger.empty_log():  # somebody who reads is in the way: a moment only
            pass
