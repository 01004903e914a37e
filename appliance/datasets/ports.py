"""What the store needs of recognition, which it cannot import: handed in by the composition root."""

from typing import Protocol

from appliance.datasets.records import Format

Encoded = bytes | bytearray | memoryview


class Ingested(Protocol):
    """An uploaded image as it is to rest, and the facts of it."""

    @property
    def image(self) -> bytes: ...
    @property
    def thumbnail(self) -> bytes: ...
    @property
    def format(self) -> Format: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...


class ImageCodec(Protocol):
    """Proves that bytes are an image, removes metadata, makes the thumbnail; in a process without keys."""

    async def ingest(self, data: Encoded, *, keep_metadata: bool, customer: str | None = None) -> Ingested:
        """`customer` is whose turn it takes. Raises InvalidImage, ImageFailed, TooLarge, Overloaded."""
