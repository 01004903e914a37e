"""Takes a dataset in as a tar, its members in any order: images as they come, what is said of them at last.

An import says how things are to be, so that the same one again goes on where the first ended: an image that
is there is not stored again, nor a label or a box put on it twice. A file without a byte stands for the image
that the dataset holds under its name; an archive without images speaks of all of them.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from dataclasses import dataclass, field

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId
from appliance.datasets.interchange.annotated import Format
from appliance.datasets.interchange.annotating import Annotating
from appliance.datasets.interchange.archive import Archive, Member, shown
from appliance.datasets.interchange.at_once import AtOnce
from appliance.datasets.interchange.formats import FORMATS, kind_of
from appliance.datasets.interchange.parsing import Held, Parsing
from appliance.datasets.records import Dataset, Image, ImageId
from appliance.datasets.sources import Source, Sources
from appliance.datasets.store import Store
from appliance.errors import AlreadyStored, Conflict, InvalidInput, NotFound, Overloaded, TooLarge
from appliance.ledger import Connection, Ledger

MOST_IMAGE = 64 << 20
MOST_ANNOTATIONS = 1 << 30  # bytes of all files that describe images, names too: `parsing` keeps less of them
MOST_NAMED = 1000  # refused images that the report names

_MOST_FOR_AN_IMAGE = 1 << 30  # what is larger is no image, and its bytes are not waited for
_PUTS = 16  # at once: small files share the syncs of their volume
_IMPORTS = 4  # at once, of different customers
_TRIES = 120  # a second or so apart, while the decoders have better things to do


@dataclass(slots=True)
class Report:
    """What an import has done: `images` stored, `present` before, `labels` and `objects` put on images,
    `ignored` files that are neither image nor annotation, and images `refused` with their reasons.
    """

    format: str | None = None
    images: int = 0
    present: int = 0
    labels: int = 0
    objects: int = 0
    ignored: int = 0
    refused: int = 0
    reasons: list[tuple[str, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def refuse(self, name: str, reason: str) -> None:
        """An image that is not stored; the first 1,000 are named."""
        self.refused += 1
        if len(self.reasons) < MOST_NAMED:
            self.reasons.append((name, reason))


class Importing:
    """Imports of all customers: one at a time of each, and few in all."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        sources: Sources,
        annotating: Annotating,
        clock: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._sources = sources
        self._annotating = annotating
        self._clock = clock
        self._under_way: set[CustomerId] = set()

    async def run(
        self,
        actor: Actor,
        dataset: Dataset,
        pieces: AsyncIterator[bytes],
        *,
        format_name: str,
        task: str | None,
    ) -> Report:
        """Take in the tar that `pieces` are, in the format of this name, or whichever it is with "auto".

        `task` is the name of a task that gathers the labels, found or made. Images are kept from when they
        are stored; what is said of them is applied when all is read, some hundred images in one transaction.
        Raises Forbidden without an agreement, Overloaded, InvalidInput for an archive or an annotation file
        that cannot be read (put it right and run the import again), TooLarge for annotation files of more
        than 1 GiB together or of which more than 256 MiB are kept, what `Store.put` raises beyond one image's
        own fault, and what `pieces` raises.
        """
        chosen = None if format_name == "auto" else format_name
        self._store.check_agreed(dataset)
        with self._only_one(dataset.customer):
            async with Parsing(chosen) as parsing:
                arrived = _Arrived(self._store, self._sources, actor, dataset, parsing)
                await arrived.receive(pieces, FORMATS.values() if chosen is None else [FORMATS[chosen]])
                report = arrived.report
                if arrived.described and not arrived.seen:
                    async for some in self._sources.all(dataset):
                        arrived.images |= {source.name: _held(image) for image, source in some}
                if arrived.images:
                    images = dict(sorted(arrived.images.items()))
                    arrived.images.clear()
                    parsed = await parsing.read(images)
                    put = await self._annotating.apply(actor, dataset, parsed, images, task)
                    report.format, report.left_out = parsed.format, parsed.left_out
                    report.ignored += parsed.ignored
                    report.labels, report.objects = put.labels, put.objects
            await self._ledger.write(lambda connection: self._record(connection, actor, dataset, report))
            return report

    @contextlib.contextmanager
    def _only_one(self, customer: CustomerId) -> Iterator[None]:
        if customer in self._under_way:
            raise Overloaded("an import of this customer is under way: wait for its end", retry_after=10)
        if len(self._under_way) >= _IMPORTS:
            raise Overloaded("as many imports are under way as there may be: try again", retry_after=60)
        self._under_way.add(customer)
        try:
            yield
        finally:
            self._under_way.remove(customer)

    def _record(self, connection: Connection, actor: Actor, dataset: Dataset, report: Report) -> None:
        details: dict[str, object] = {
            "images": report.images,
            "present": report.present,
            "refused": report.refused,
            "labels": report.labels,
            "objects": report.objects,
        }
        now = int(self._clock() * 1000)
        record(connection, now, actor, Event.DATASET_IMPORT, dataset.customer, dataset.id, details)


class _Arrived:
    """What came of one archive: images, which are stored by now, by their names; files go on."""

    def __init__(
        self, store: Store, sources: Sources, actor: Actor, dataset: Dataset, parsing: Parsing
    ) -> None:
        self._store = store
        self._sources = sources
        self._actor = actor
        self._dataset = dataset
        self._parsing = parsing
        self._size = 0
        self.images: dict[str, Held] = {}
        self.described = False
        """Whether a file says something about images."""
        self.seen = 0
        """How many images the archive has, refused ones as well."""
        self.report = Report()

    async def receive(self, pieces: AsyncIterator[bytes], formats: Collection[Format]) -> None:
        """Read the archive to its end and store its images."""
        async with AtOnce(_PUTS, MOST_IMAGE) as puts:
            async for member in Archive(pieces):
                match kind_of(member.name, formats):
                    case "image":
                        self.seen += 1
                        await self._take_image(member, puts)
                    case "annotation":
                        await self._take_annotation(member)
                    case "other":
                        self.report.ignored += 1

    async def _take_annotation(self, member: Member) -> None:
        self._size += member.size + len(member.name.encode())
        if self._size > MOST_ANNOTATIONS:
            raise TooLarge(
                f"{shown(member.name)}: the files that describe images, their names included, have more than"
                f" {MOST_ANNOTATIONS >> 20} MiB together: import in several parts"
            )
        self.described = True
        await self._parsing.add(member.name, member.pieces())

    async def _take_image(self, member: Member, puts: AtOnce) -> None:
        if member.size > _MOST_FOR_AN_IMAGE:
            raise TooLarge(f"{shown(member.name)}: {member.size} bytes are announced, which no image has")
        if member.size > MOST_IMAGE:
            self.report.refuse(member.name, f"an image has at most {MOST_IMAGE >> 20} MiB")
            return
        await puts.room(member.size)
        if member.size:
            puts.start(member.size, self._put(member.name, await member.read()))
        else:
            puts.start(0, self._find(member.name))

    async def _find(self, name: str) -> None:
        image = await self._sources.find(self._dataset, name)
        if image is None:
            self.report.refuse(name, "the file is empty, and the dataset holds no image of this name")
        else:
            self._note(name, image)

    async def _put(self, name: str, data: bytearray) -> None:
        for last in (False,) * _TRIES + (True,):
            try:
                image = await self._store.put(self._actor, self._dataset, data, name=name)
            except Overloaded as error:
                if last:
                    raise
                await asyncio.sleep(error.retry_after)
            except AlreadyStored as error:
                await self._adopt(name, len(data), ImageId(error.image))
                return
            except (InvalidInput, Conflict) as error:
                self.report.refuse(name, str(error))
                return
            else:
                self.images[name] = _held(image)
                self.report.images += 1
                return

    async def _adopt(self, name: str, size: int, image: ImageId) -> None:
        try:
            found = await self._sources.adopt(self._actor, self._dataset, image, Source(name, size))
        except Conflict as error:
            self.report.refuse(name, str(error))
            return
        if found is None:
            raise NotFound("an image was deleted while it was imported: run the import again")
        self._note(name, found)

    def _note(self, name: str, image: Image) -> None:
        self.images[name] = _held(image)
        self.report.present += 1


def _held(image: Image) -> Held:
    return image.key, image.width, image.height
