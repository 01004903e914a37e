"""Gives a dataset out as a tar in one of the formats: the same bytes for as long as nothing changes in it.

First the files that describe the images, then these in the order of their paths, and last, where images are
left out, a table of those. Everything but the images is known before the first byte goes out; then a piece of
one image is held at a time. Beside that a path and a few numbers an image are in memory, and the
descriptions, compressed.
"""

import asyncio
import csv
import io
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Self, TypeVar

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.grants import GrantId
from appliance.datasets import rows
from appliance.datasets.annotations import Annotations
from appliance.datasets.catalogue import Datasets
from appliance.datasets.interchange.annotated import Annotated, Format
from appliance.datasets.interchange.archive import END, header, padding
from appliance.datasets.interchange.formats import LEFT_OUT
from appliance.datasets.interchange.placing import fitting, settled
from appliance.datasets.interchange.reading import Reading
from appliance.datasets.interchange.text import Spool
from appliance.datasets.records import Dataset, Image, ReadPermit
from appliance.datasets.records import Format as Encoding
from appliance.datasets.sources import Sources
from appliance.datasets.store import Opened, Store
from appliance.datasets.threads import Threads
from appliance.errors import Conflict, Forbidden, NotFound, SealBroken, StorageFailed, VolumeOffline
from appliance.ledger import Connection, Ledger
from appliance.volume import is_lack

T = TypeVar("T")

_RESTRICTED = (
    "images of a restricted dataset leave sealed alone: fetch each with its key, or set the dataset's"
    " visibility to link before it is exported"
)
_PLANS_AT_ONCE = 2  # on threads of their own: a large dataset's takes a while, and uploads need the others
_IMAGES_AT_ONCE = 500
_SMALL = 256 << 10  # goes out in one piece with its header
_ENDINGS: dict[Encoding, tuple[str, ...]] = {
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "png": (".png",),
    "webp": (".webp",),
}

Permit = Callable[[Image], Awaitable[ReadPermit]]
"""Mints the right to see an image: whoever exports has to have it for each."""
Granted = Callable[[Connection], GrantId]
"""Which grant lets an operator export, asked within the act that is audited. Raises Forbidden for none."""


class _LeftAlone(Exception):
    """Nobody waits for the plan any more."""


class _Stored(NamedTuple):
    name: str
    size: int


class _Placed(NamedTuple):
    path: str
    key: int
    size: int


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    size: int
    content: Spool


class Exporting:
    """Exports of all customers, begun between `async with`."""

    def __init__(  # noqa: PLR0917 - its neighbours
        self,
        ledger: Ledger,
        datasets: Datasets,
        store: Store,
        sources: Sources,
        annotations: Annotations,
        clock: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._datasets = datasets
        self._store = store
        self._sources = sources
        self._annotations = annotations
        self._clock = clock
        self._planning = Threads(_PLANS_AT_ONCE, "exporting")

    async def __aenter__(self) -> Self:
        self._planning.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._planning.close()

    async def begin(
        self,
        actor: Actor,
        dataset: Dataset,
        chosen: Format,
        permit: Permit,
        *,
        granted: Granted | None = None,
        skip_damaged: bool = False,
    ) -> "Export":
        """An export of the dataset as it is now, audited; to be closed. An operator's has to be `granted`.

        An image is where it was imported to, as far as the format lets it and one tree can hold all names;
        one that came by another way is called by its id. Raises Forbidden for a restricted dataset, and where
        `granted` does, InvalidInput for what the format cannot express, Conflict when images are damaged
        unless these are left out.
        """
        if dataset.visibility == "restricted":
            raise Forbidden(_RESTRICTED)
        if granted is not None:  # what is planned holds labels and names: it is not begun in vain
            await self._ledger.read(granted)
        left = threading.Event()
        try:
            planned = self._planning.run(self._planned, dataset, chosen, skip_damaged, left)
            files, images, damaged = await planned
        finally:
            left.set()

        def act(connection: Connection) -> None:
            details: dict[str, object] = {"images": len(images)}
            if granted is not None:
                details["grant"] = granted(connection)
            now = int(self._clock() * 1000)
            record(connection, now, actor, Event.DATASET_EXPORT, dataset.customer, dataset.id, details)

        await self._ledger.write(act)
        return Export(self._ledger, self._store, dataset, permit, files, images, damaged)

    def _planned(
        self, dataset: Dataset, chosen: Format, skip_damaged: bool, left: threading.Event
    ) -> tuple[list[_File], list[_Placed], list[str]]:
        """The files that describe the images, these in the order of their paths, and those left out."""
        with self._ledger.reading() as connection:
            stored, damaged = self._stored(connection, dataset, chosen, left)
            if damaged and not skip_damaged:
                raise Conflict(
                    f"{len(damaged)} images of the dataset are damaged: with skip_damaged=true the others are"
                    f" exported, and {LEFT_OUT} names these"
                )
            reading = Reading(connection, self._datasets, self._annotations, dataset)
            wanted: dict[int, str] = {}

            def said() -> Iterator[Annotated]:
                names = [(key, one.name) for key, one in stored.items()]
                for key, one in _unless(left, reading.annotated(names)):
                    wanted[key] = chosen.place(one)
                    yield one

            every = said()
            chosen.check(every)
            for _ in every:  # the rest, however far the check went
                pass
            paths = _unless(left, settled([*wanted.values()], chosen.files_of))
            images = sorted(
                _Placed(path, key, stored[key].size) for key, path in zip(wanted, paths, strict=True)
            )
            described = reading.annotated([(one.key, one.path) for one in images])
            again = (one for _, one in _unless(left, described))
            files = [_spooled(path, pieces) for path, pieces in chosen.write(again, *reading.declared)]
            return files, images, damaged

    def _stored(
        self, connection: Connection, dataset: Dataset, chosen: Format, left: threading.Event
    ) -> tuple[dict[int, _Stored], list[str]]:
        """The images by their keys, in order of upload, and the names of those that are damaged."""
        stored, damaged, after = dict[int, _Stored](), list[str](), 0
        while page := self._sources.page(connection, dataset, after):
            for image, source in _unless(left, page):
                name = image.id if source is None else source.name
                name = fitting(name, _ENDINGS[image.format], chosen.describes)
                if image.damaged:
                    damaged.append(name)
                else:
                    stored[image.key] = _Stored(name, image.size)
            after = page[-1][0].key
        return stored, damaged


class Export:
    """An export that is ready to go: its `pieces` are gone through once; to be closed.

    `left_out` are the names of images that are not in it, each with the reason: all of them when the last
    piece is out.
    """

    def __init__(  # noqa: PLR0917 - its neighbours
        self,
        ledger: Ledger,
        store: Store,
        dataset: Dataset,
        permit: Permit,
        files: Sequence[_File],
        images: Sequence[_Placed],
        damaged: Iterable[str],
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._dataset = dataset
        self._permit = permit
        self._files = files
        self._images = images
        self._opened: Opened | None = None
        self.left_out = [(name, "damaged") for name in damaged]

    async def pieces(self) -> AsyncIterator[bytes]:
        """The tar. An image that cannot be read, or is gone since it was begun, is left out, and named.

        Raises StorageFailed where that says nothing of one image, VolumeOffline, Forbidden from when the
        dataset is restricted, and what the permit does: what came then is no whole tar.
        """
        for file in self._files:
            yield header(file.path, file.size)
            for piece in file.content.pieces():
                yield piece
            yield padding(file.size)
        for start in range(0, len(self._images), _IMAGES_AT_ONCE):
            some = self._images[start : start + _IMAGES_AT_ONCE]
            found = await self._found(some)
            for placed in some:
                if placed.key not in found:
                    self.left_out.append((placed.path, "deleted"))
                    continue
                async for piece in self._image(placed, found[placed.key]):
                    yield piece
        if self.left_out:
            table = _table(self.left_out)
            yield b"".join([header(LEFT_OUT, len(table)), table, padding(len(table))])
        yield END

    def close(self) -> None:
        """Give back what is open."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    async def _found(self, images: Sequence[_Placed]) -> dict[int, Image]:
        """Those that are still there, by their keys."""
        keys = [one.key for one in images]
        found = await self._ledger.read(lambda connection: rows.described(connection, keys))
        return {key: image for key, (image, _, _) in found.items()}

    async def _image(self, placed: _Placed, image: Image) -> AsyncIterator[bytes]:
        """Its header, which nobody could take back, goes out when each byte behind it was proven."""
        before, after = header(placed.path, placed.size), padding(placed.size)
        if await self._ledger.read(partial(rows.is_restricted, dataset=self._dataset.number)):
            raise Forbidden(_RESTRICTED)
        permit = await self._permit(image)
        try:
            try:
                self._opened = await self._store.open(permit)
                whole = await _proven(self._opened, placed.size)
            except (NotFound, SealBroken, StorageFailed) as error:
                self.left_out.append((placed.path, await self._reason(placed, error)))
                return
            if whole is not None:
                yield b"".join([before, whole, after])
                return
            yield before
            async for piece in self._opened.read(0, placed.size):
                yield bytes(piece)
            yield after
        finally:
            self.close()

    async def _reason(self, placed: _Placed, error: NotFound | SealBroken | StorageFailed) -> str:
        """Why an image is left out. Raises an error that says nothing of it."""
        if isinstance(error, VolumeOffline) or is_lack(error.__cause__):
            raise error
        if isinstance(error, StorageFailed):
            return "unreadable"
        return "damaged" if await self._found([placed]) else "deleted"


async def _proven(opened: Opened, size: int) -> bytes | None:
    """Have every byte of an image proven; these where they are few. Raises as `Opened.read`."""
    pieces = opened.read(0, size)
    if size <= _SMALL:
        return b"".join([piece async for piece in pieces])
    async for _ in pieces:
        await asyncio.sleep(0)  # what is at hand comes without a pause: others get their turn
    return None


def _unless(left: threading.Event, things: Iterable[T]) -> Iterator[T]:
    """The same, for as long as somebody waits for what comes of them."""
    for one in things:
        if left.is_set():
            raise _LeftAlone
        yield one


def _spooled(path: str, pieces: Iterable[bytes]) -> _File:
    spool, size = Spool(), 0
    for piece in pieces:
        spool.write(piece)
        size += len(piece)
    return _File(path, size, spool)


def _table(left_out: Iterable[tuple[str, str]]) -> bytes:
    """Images that are left out, and why, in the order of their names."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(["image", "reason"])
    writer.writerows(sorted(left_out))
    return written.getvalue().encode()
