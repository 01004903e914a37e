"""The store of training images: the one place where an image may rest.

Nothing is put without an active agreement, nothing is opened without a permit. An upload is acknowledged when
its sealed file, its row and its audit entry are durable; one that was not leaves nothing.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self, TypeVar

from prometheus_client import Counter

from appliance.accounts.agreements import Agreements, Kind
from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId
from appliance.accounts.quotas import Quotas
from appliance.datasets import rows
from appliance.datasets.catalogue import Datasets
from appliance.datasets.deletions import Deletions
from appliance.datasets.files import OpenFile, SealedFiles
from appliance.datasets.leaps import Leaps
from appliance.datasets.ports import Encoded, ImageCodec
from appliance.datasets.records import Dataset, Image, ImageId, ReadPermit, Variant, facet
from appliance.datasets.sources import Named, Source, check_free
from appliance.errors import (
    AlreadyStored,
    ApplianceError,
    NotFound,
    QuotaReached,
    SealBroken,
    StorageFailed,
    VolumeFull,
    may_be_kept,
)
from appliance.ledger import Connection, Ledger
from appliance.metrics import Registry
from appliance.vault import sealed_size
from appliance.volume import Space

T = TypeVar("T")

_RETENTION = Actor("system", "retention")
_EXPIRED_AT_ONCE = 200
_READ_AT_ONCE = 256 << 10

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """An image or its thumbnail that is being read, or, `sealed`, its file as it lies there; to be closed.

    Bytes are proven as they are read, those of a sealed file by whoever has its key.
    """

    image: Image
    variant: Variant | Literal["sealed"]
    _file: OpenFile
    _note_damage: Callable[[Image, SealBroken], Awaitable[None]]

    @property
    def etag(self) -> str:
        """A strong entity tag without its quotes: the same for as long as the bytes are."""
        return f"{self._file.etag}-{self.variant}"

    @property
    def length(self) -> int:
        """Bytes in all."""
        if self.variant == "sealed":
            return self._file.size
        return self.image.size if self.variant == "image" else self.image.thumbnail

    @property
    def key(self) -> bytes:
        """What opens this one file: the AES-256 key, 32 bytes, and the base nonce, 12 bytes."""
        return self._file.key

    async def read(self, start: int, stop: int) -> AsyncIterator[memoryview]:
        """The bytes from `start` up to `stop`, 256 KiB at once. Raises SealBroken, StorageFailed."""
        fetch = self._file.fetch_sealed if self.variant == "sealed" else self._file.fetch
        offset = self.image.size if self.variant == "thumbnail" else 0
        for at in range(start, stop, _READ_AT_ONCE):
            end = min(at + _READ_AT_ONCE, stop)
            try:
                yield await fetch(offset + at, offset + end)
            except SealBroken as error:
                await self._note_damage(self.image, error)
                raise

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


@dataclass(frozen=True, slots=True, repr=False)
class _Draft:
    """An image on its way to the disk: its parts in the file's order, and the keyed hash of the upload."""

    dataset: Dataset
    image: Image
    rests_from: int
    parts: tuple[bytes, bytes]
    content: bytes
    meta_data: bytes | None
    named: Named | None


class Store:
    """The images of all datasets."""

    def __init__(
        self,
        ledger: Ledger,
        datasets: Datasets,
        files: SealedFiles,
        deletions: Deletions,
        *,
        codec: ImageCodec,
        agreements: Agreements,
        space: Space,
        clock: Callable[[], float],
        leaps: Leaps,
        registry: Registry,
        on_damage: Callable[[], None],
        quotas: Quotas | None = None,
        may_store: Callable[[], None] = lambda: None,
    ) -> None:
        """Without `quotas` there is no limit but the volume.

        `may_store` raises where nothing may be stored at present; it is asked before every upload.
        """
        self._ledger = ledger
        self._datasets = datasets
        self._on_damage = on_damage
        self._may_store = may_store
        self._files = files
        self._deletions = deletions
        self._codec = codec
        self._agreements = agreements
        self._quotas = quotas
        self._space = space
        self._clock = clock
        self._leaps = leaps
        self._looked_at = 0  # the key up to which retention has looked through all images
        self._acknowledged = 0  # the audit entry of the last image that is durable in file and row
        self._under_way: set[asyncio.Task[Any]] = set()
        self._stored = Counter("appliance_store_images_stored", "Images stored", registry=registry)
        self._deleted = Counter("appliance_store_images_deleted", "Images deleted", registry=registry)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*self._under_way, return_exceptions=True)
        with contextlib.suppress(StorageFailed, VolumeFull):  # the volume is gone or full, and says so itself
            self._files.note(acknowledged=self._acknowledged)
            await self._files.witness()

    async def put(
        self,
        actor: Actor,
        dataset: Dataset,
        data: Encoded,
        meta_data: bytes | None = None,
        *,
        test: bool = False,
        real: bool = False,
        name: str | None = None,
    ) -> Image:
        """Store an uploaded image with its caller's metadata (JSON); durable and audited on return.

        `name` is the path under which it is imported. Raises Forbidden without an active agreement,
        AlreadyStored when the dataset has these bytes already, Conflict when another image has the name,
        QuotaReached when the customer would have more than it may, ResidencyBroken while the machine is not
        what was declared, VolumeFull, StorageFailed, VolumeOffline, and what the codec raises. A caller who
        goes away meanwhile stops nothing: the image is stored or not, as if he had waited.
        """
        self.check_agreed(dataset)
        self._may_store()
        keys = self._datasets.keys(dataset)
        identity = ImageId(str(uuid.uuid4()))
        named = None if name is None else Named.of(keys, identity, Source(name, len(data)))
        content = await asyncio.to_thread(keys.mac, "content", data)
        await self._ledger.read(partial(self._check, dataset=dataset, content=content, named=named))
        ingested = await self._codec.ingest(
            data, keep_metadata=dataset.keep_metadata, customer=dataset.customer
        )
        created_at, rests_from = self._leaps.stamp()
        image = Image(
            key=0,
            id=identity,
            dataset=dataset.id,
            customer=dataset.customer,
            created_at=int(created_at * 1000),
            format=ingested.format,
            width=ingested.width,
            height=ingested.height,
            size=len(ingested.image),
            thumbnail=len(ingested.thumbnail),
            damaged=False,
            facet=facet(test=test, real=real),
        )
        parts = ingested.image, ingested.thumbnail
        draft = _Draft(dataset, image, int(rests_from * 1000), parts, content, meta_data, named)
        return await self._uninterrupted(self._write(actor, draft))

    def check_agreed(self, dataset: Dataset) -> None:
        """Raises Forbidden unless the customer has agreed that images are stored."""
        self._agreements.require(dataset.customer, Kind.TRAINING_DATA)

    async def get(self, customer: CustomerId | None, image: str) -> Image:
        """The image of this id, anybody's with None. Raises NotFound, also for another customer's."""
        found = await self._ledger.read(lambda connection: rows.image(connection, customer, image))
        if found is None:
            raise NotFound("no such image")
        return found

    async def list(self, dataset: Dataset, after: int = 0, most: int = 100) -> Sequence[Image]:
        """Images in order of upload, those with a key above `after`, at most `most`."""
        return await self._ledger.read(
            lambda connection: rows.images(connection, dataset.number, after, most)
        )

    async def open(self, permit: ReadPermit, variant: Variant | Literal["sealed"] = "image") -> Opened:
        """The image that the permit is for, or its sealed file, to be closed.

        Raises NotFound when it is not there any more, SealBroken, StorageFailed, VolumeOffline.
        """
        image = await self.get(permit.customer, permit.image)
        if image.dataset != permit.dataset:
            raise NotFound("no such image")
        ahead = 0 if variant == "sealed" else _READ_AT_ONCE
        keys = self._datasets.keys_at(image)
        try:
            file = await self._files.load(image.name, keys, ahead)
        except (SealBroken, NotFound) as error:
            await self._note_damage(image, error)
            raise
        if file.length != image.size + image.thumbnail:
            file.close()
            other = SealBroken(f"object {image.id}: its row speaks of another length")
            await self._note_damage(image, other)
            raise other
        return Opened(image, variant, file, self._note_damage)

    async def delete(self, actor: Actor, image: Image) -> None:
        """Delete an image for good; when this returns its file is gone and its row is in no file any more.

        Twice is as good as once. Raises StorageFailed, VolumeOffline, VolumeFull: what is out of sight all
        the same is tried again within minutes, and at the next start.
        """
        await self.delete_all(actor, [image])

    async def delete_all(self, actor: Actor, images: Sequence[Image]) -> None:
        """As `delete`, of several that then go together; on a full volume some after others."""
        await self._uninterrupted(self._delete(actor, images))

    async def expire(self) -> int:
        """Delete images that have rested for as long as their datasets say, the oldest first; how many.

        A time that is not believed does not count. At most some hundreds at a time: call again while it is
        not 0, and now and then. Raises as `delete`.
        """
        now = int(self._leaps.believed() * 1000)
        expired, self._looked_at = await self._ledger.read(
            lambda connection: rows.expired(connection, now, _EXPIRED_AT_ONCE, self._looked_at)
        )
        if expired:
            await self.delete_all(_RETENTION, expired)
        return len(expired)

    async def _write(self, actor: Actor, draft: _Draft) -> Image:
        # The ledger's thread holds an act until the next one comes: the image must not be in it.
        dataset, image, content, named = draft.dataset, draft.image, draft.content, draft.named
        rests_from = draft.rests_from
        if self._ledger.failure is not None:  # no file either: it would lie there until a restart
            raise StorageFailed(self._ledger.failure)
        self._may_store()
        keys = self._datasets.keys(dataset)
        meta_data = None
        if draft.meta_data is not None:
            meta_data = keys.seal("meta_data", draft.meta_data, image.id.encode())
        async with self._room(sealed_size(image.size + image.thumbnail)):
            # A clock that was set is known to the disk before an image is acknowledged that was stored then.
            self._files.note(acknowledged=self._acknowledged, belief=self._leaps.belief())
            await self._files.write(image.name, keys, draft.parts)

        now = self._now()

        def act(connection: Connection) -> tuple[Image, int]:
            self._agreements.required(connection, dataset.customer, Kind.TRAINING_DATA)
            rows.check_living(connection, dataset)
            self._check(connection, dataset, content, named, image.size)
            key = rows.add_image(connection, dataset.number, image, content, meta_data, rests_from=rests_from)
            added = replace(image, key=key)
            if named is not None:
                rows.set_name(connection, added, named.sealed, named.mac)
            details: dict[str, object] = {"dataset": dataset.id}
            record(connection, now, actor, Event.IMAGE_ADD, image.customer, image.id, details)
            return added, connection.last_insert_rowid()

        try:
            stored, entry = await self._ledger.write(act)
        except ApplianceError as error:
            if not may_be_kept(error):  # else the next start tells, and the file goes or stays
                await self._files.remove([image.name])
            raise
        self._acknowledged = max(self._acknowledged, entry)
        self._stored.inc()
        return stored

    def _check(
        self, connection: Connection, dataset: Dataset, content: bytes, named: Named | None, size: int = 1
    ) -> None:
        """Raises AlreadyStored, Conflict, QuotaReached."""
        _refuse_second(connection, dataset, content, named)
        if self._quotas is None:
            return
        quota, (images, taken) = self._quotas.of(dataset.customer), rows.usage(connection, dataset.customer)
        if images >= quota.images:
            raise QuotaReached(quota.images, "stored images")
        if taken + size > quota.bytes:
            raise QuotaReached(quota.bytes, "bytes of stored images")

    @contextlib.asynccontextmanager
    async def _room(self, size: int) -> AsyncIterator[None]:
        """As `Space.room`, whose look at the volume may take its time."""
        room = self._space.room(size)
        await asyncio.to_thread(room.__enter__)
        try:
            yield
        finally:
            room.__exit__(None, None, None)

    async def _delete(self, actor: Actor, images: Sequence[Image]) -> None:
        await asyncio.to_thread(self._space.before_deletion)
        now = self._now()

        def act(connection: Connection, some: Sequence[Image]) -> list[Image]:
            begun = [image for image in some if rows.begin_deleting(connection, image, now)]
            for image in begun:
                details: dict[str, object] = {"dataset": image.dataset}
                record(connection, now, actor, Event.IMAGE_DELETE, image.customer, image.id, details)
            return begun

        async for begun in self._ledger.write_parts(images, act):
            if begun:
                self._deleted.inc(len(begun))
                await self._deletions.finish(begun)

    async def _note_damage(self, image: Image, error: SealBroken | NotFound) -> None:
        """Once for each image. A ledger that takes no write says so itself."""
        now = self._now()
        with contextlib.suppress(StorageFailed, VolumeFull):
            if await self._ledger.write(lambda connection: rows.note_damage(connection, image, now)):
                _log.error("damaged: %s", error)
                self._on_damage()

    async def _uninterrupted(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        try:
            return await asyncio.shield(task)
        finally:
            del task  # its error holds this frame: an image would stay until the collector comes

    def _now(self) -> int:
        return int(self._clock() * 1000)


def _refuse_second(connection: Connection, dataset: Dataset, content: bytes, named: Named | None) -> None:
    image = rows.by_content(connection, dataset.number, content)
    if image is not None:
        raise AlreadyStored(image)
    check_free(connection, dataset.number, named)
