"""Under which paths images were imported: customers' words, sealed, and found again by a keyed hash."""

import hashlib
import unicodedata
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from appliance.accounts.audit import Actor, Event, record
from appliance.datasets import rows
from appliance.datasets.catalogue import Datasets
from appliance.datasets.records import Dataset, Image, ImageId
from appliance.datasets.words import opened, sealed
from appliance.errors import Conflict
from appliance.ledger import Connection, Ledger
from appliance.vault import Container

_NOUN = "source"
_AT_ONCE = 5000


@dataclass(frozen=True, slots=True)
class Source:
    """The path of an image in the archive that it came in, and how many bytes it had there."""

    name: str
    size: int

    @property
    def digest(self) -> bytes:
        """SHA-256 of `size name`: tells whoever has the file that it is held; others could only guess."""
        return hashlib.sha256(f"{self.size} {self.name}".encode()).digest()


@dataclass(frozen=True, slots=True, repr=False)
class Named:
    """A source as the row of its image has it."""

    sealed: bytes
    mac: bytes

    @classmethod
    def of(cls, keys: Container, image: str, source: Source) -> "Named":
        return cls(sealed(keys, _NOUN, image, source), mac(keys, source.name))


def mac(keys: Container, name: str) -> bytes:
    """What a name is found by, however its letters are composed."""
    return keys.mac(_NOUN, unicodedata.normalize("NFC", name).encode())


def check_free(connection: Connection, dataset: int, named: Named | None) -> None:
    """Raises Conflict when another image of the dataset has this name."""
    if named is not None and rows.by_name(connection, dataset, named.mac) is not None:
        raise Conflict("another image of the dataset has this name")


class Sources:
    """The sources of all images."""

    def __init__(self, ledger: Ledger, datasets: Datasets, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._datasets = datasets
        self._clock = clock

    async def find(self, dataset: Dataset, name: str) -> Image | None:
        """The image that a dataset has under this name."""
        named = mac(self._datasets.keys(dataset), name)
        return await self._ledger.read(lambda connection: rows.by_name(connection, dataset.number, named))

    async def adopt(self, actor: Actor, dataset: Dataset, image: ImageId, source: Source) -> Image | None:
        """Give an image this name if it has none; one that has keeps it. None when it is gone.

        Raises Conflict when another image has the name.
        """
        named = Named.of(self._datasets.keys(dataset), image, source)

        def act(connection: Connection) -> Image | None:
            found = rows.image(connection, dataset.customer, image)
            if found is not None and rows.is_nameless(connection, found):
                check_free(connection, dataset.number, named)
                rows.set_name(connection, found, named.sealed, named.mac)
                details: dict[str, object] = {"dataset": dataset.id}
                now = int(self._clock() * 1000)
                record(connection, now, actor, Event.IMAGE_UPDATE, dataset.customer, image, details)
            return found

        return await self._ledger.write(act)

    async def all(self, dataset: Dataset) -> AsyncIterator[list[tuple[Image, Source]]]:
        """The images that have a source, some thousands at a time in order of upload. Raises SealBroken."""
        async for page in self.pages(dataset):
            yield [(image, source) for image, source in page if source is not None]

    async def pages(self, dataset: Dataset) -> AsyncIterator[Sequence[tuple[Image, Source | None]]]:
        """All images with their sources, some thousands at a time in order of upload. Raises SealBroken."""
        after = 0
        while page := await self._ledger.read(
            lambda connection, after=after: self.page(connection, dataset, after)  # type: ignore[misc]
        ):
            yield page
            after = page[-1][0].key

    def page(
        self, connection: Connection, dataset: Dataset, after: int
    ) -> Sequence[tuple[Image, Source | None]]:
        """Some thousands of images in order of upload, those with a key above `after`, each with its source.

        Raises SealBroken.
        """
        keys = self._datasets.keys(dataset)
        return [
            (image, None if blob is None else opened(keys, _NOUN, image.id, blob, Source))
            for image, blob in rows.images_and_sources(connection, dataset.number, after, _AT_ONCE)
        ]
