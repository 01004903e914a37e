"""Reads what an archive says of its images in a process of its own, which is locked in and then ends.

Annotations are a stranger's text, of up to hundreds of megabytes: a parser that works on one holds its
interpreter for a second and more, and must not hold the one that serves everybody else. They go there as they
come, and what their format keeps of them waits there for the end of the archive.
"""

import codecs
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from appliance.channel import MESSAGE_BYTES, Channel, Limits
from appliance.datasets.interchange.annotated import Annotated, Declared, Format, Incoming, Region, Size
from appliance.datasets.interchange.formats import FORMATS, detect
from appliance.datasets.labels import MAX_LABELS
from appliance.datasets.records import Box
from appliance.datasets.words import checked_name
from appliance.errors import InvalidInput, TooLarge, WorkerLost, WorkerRefused
from appliance.workers import Memory, Worker

SECONDS = 600.0
MOST_KEPT = 256 << 20  # bytes, of all files together and their names

_AT_ONCE = 200  # images that are told of in one answer
_REGIONS_AT_ONCE = 2000
_NAMES_AT_ONCE = 2000
_PIECE = 1 << 20  # of files, in the shared memory
_FILES_AT_ONCE = 1000
_BUSY = "the appliance cannot read annotations at present: run the import again in a while"
_ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be")
# Python with its libraries; of every byte that is kept what parsers make of it; of every image its names.
_BASE_BYTES, _COPIES, _IMAGE_BYTES = 1 << 30, 24, 8 << 10

Held = tuple[int, int, int]
"""An image that is stored: its key, width and height."""

_Values = dict[str, float | None]
_Side = int | float


class _Region(msgspec.Struct, array_like=True):
    label: str
    box: tuple[_Side, _Side, _Side, _Side]  # whole numbers stay whole
    labels: _Values
    meta_data: dict[str, object]


class _Said(msgspec.Struct, array_like=True):
    name: str
    labels: _Values
    regions: list[_Region]
    test: bool
    meta_data: dict[str, object]


class _Images(msgspec.Struct, array_like=True, tag=0):
    """Some of the images that may be spoken of, by their names."""

    images: list[tuple[str, Held]]


class _Pieces(msgspec.Struct, array_like=True, tag=1):
    """Pieces of files in the shared memory, one behind the other, with their lengths."""

    pieces: list[tuple[str, int]]


class _Read(msgspec.Struct, array_like=True, tag=3):
    """All is told."""


class _More(msgspec.Struct, array_like=True, tag=2):
    """Some more of what is said."""


class _Begun(msgspec.Struct, array_like=True):
    format: str
    labels: list[str]
    regions: list[str]
    several: bool
    ignored: int


class _Some(msgspec.Struct, array_like=True):
    said: list[_Said]
    left_out: dict[str, int]


_REQUEST: msgspec.msgpack.Decoder[_Images | _Pieces | _Read | _More] = msgspec.msgpack.Decoder(
    _Images | _Pieces | _Read | _More
)
_COUNT = msgspec.msgpack.Decoder(int)
_BEGUN, _SOME = msgspec.msgpack.Decoder(_Begun), msgspec.msgpack.Decoder(_Some)
_encode = msgspec.msgpack.encode

Told = TypeVar("Told")


class Parsed:
    """What was read, as it is asked for.

    `labels` and `regions` are the names that occur, those that are declared first, and `several` whether an
    image has more than one label. `ignored` files are of another format; what cannot be kept is counted in
    `left_out`.
    """

    def __init__(self, parser: "_Parser", begun: _Begun, images: Mapping[str, Held]) -> None:
        self._parser = parser
        self._images = images
        self.format = begun.format
        self.labels = begun.labels
        self.regions = begun.regions
        self.several = begun.several
        self.ignored = begun.ignored
        self.left_out = Counter[str]()

    async def batches(self) -> AsyncIterator[list[Annotated]]:
        """All that is said, in the order of the images, some hundred at a time. Raises TooLarge."""
        while (some := await self._parser.ask(_More(), _SOME)).said:
            self.left_out = Counter(some.left_out)
            yield [_annotated(one, self._images[one.name]) for one in some.said]


class Parsing:
    """Files about images on their way to what they say. `chosen` is the name of their format, None finds it.

    `async with` ends the process, which begins when it is needed. Everything raises TooLarge for what needs
    more memory or time than there is, and WorkerRefused where the process cannot be started.
    """

    def __init__(self, chosen: str | None) -> None:
        self._chosen = chosen
        self._ends = AsyncExitStack()
        self._parser: _Parser | None = None
        self._pieces: list[tuple[str, int]] = []
        self._filled = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._ends.aclose()

    async def add(self, path: str, content: AsyncIterable[memoryview]) -> None:
        """Take a file to its end, and hold no more of it than a megabyte."""
        parser = await self._begun()
        self._pieces.append((path, 0))
        async for piece in content:
            while piece:
                some, piece = piece[: _PIECE - self._filled], piece[_PIECE - self._filled :]  # noqa: PLW2901
                parser.memory.view[self._filled : self._filled + len(some)] = some
                self._filled += len(some)
                self._pieces[-1] = path, self._pieces[-1][1] + len(some)
                if self._filled == _PIECE:
                    await self._hand_over()
                    self._pieces.append((path, 0))
        if len(self._pieces) >= _FILES_AT_ONCE:
            await self._hand_over()

    async def read(self, images: Mapping[str, Held]) -> Parsed:
        """What the files say of `images`, given by their names in order. Raises InvalidInput as the formats
        do, all of that before anything is said.
        """
        parser = await self._begun()
        kept = await self._hand_over()
        parser.limit(_BASE_BYTES + _COPIES * kept + _IMAGE_BYTES * len(images))
        names = iter(images.items())
        while some := list(islice(names, _NAMES_AT_ONCE)):
            await parser.ask(_Images(some), _COUNT)
        return Parsed(parser, await parser.ask(_Read(), _BEGUN), images)

    async def _begun(self) -> "_Parser":
        if self._parser is None:
            self._parser = await self._ends.enter_async_context(_Parser(self._chosen))
        return self._parser

    async def _hand_over(self) -> int:
        """Let the parser have what is in the shared memory; how many bytes it keeps by then."""
        parser = await self._begun()
        kept = await parser.ask(_Pieces(self._pieces), _COUNT)
        self._pieces, self._filled = [], 0
        if kept > MOST_KEPT:
            raise TooLarge(
                f"what is kept of the files that describe images, their names included, is more than"
                f" {MOST_KEPT >> 20} MiB: import in several parts"
            )
        return kept


class _Parser:
    """The process, and the memory that is shared with it."""

    def __init__(self, chosen: str | None) -> None:
        self._chosen = chosen

    async def __aenter__(self) -> Self:
        try:
            async with AsyncExitStack() as ends:
                self.memory = Memory(_PIECE)
                ends.callback(self.memory.close)
                limits = Limits(file_bytes=0, nice=5, confined=True)
                settings, memories = {"format": self._chosen}, (self.memory,)
                worker = Worker("annotations", f"{__name__}:main", settings, memories=memories, limits=limits)
                self._worker = await ends.enter_async_context(worker)
                self.limit(_BASE_BYTES + 2 * MOST_KEPT)
                self._ends = ends.pop_all()
        except OSError as error:
            raise WorkerRefused(
                f"annotations cannot be read at present: {error.strerror}", told=_BUSY
            ) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._ends.aclose()

    def limit(self, size: int) -> None:
        """It maps no more than so many bytes from now on."""
        self._worker.limit_address_space(size)

    async def ask(
        self, request: _Images | _Pieces | _Read | _More, decoder: msgspec.msgpack.Decoder[Told]
    ) -> Told:
        """Its answer. Raises InvalidInput and TooLarge."""
        try:
            answer = decoder.decode(await self._worker.call(_encode(request), SECONDS))
        except (WorkerLost, msgspec.MsgspecError):
            raise _lost() from None
        if self._worker.restarts:  # it was lost meanwhile, and with it all that it was told
            raise _lost()
        return answer


def _lost() -> TooLarge:
    return TooLarge(
        "the annotations could not be read in the time and memory that there is: import in several parts"
    )


def _annotated(said: _Said, image: Held) -> Annotated:
    regions = tuple(Region(one.label, Box(*one.box), one.labels, one.meta_data) for one in said.regions)
    return Annotated(said.name, Size(*image[1:]), said.labels, regions, said.test, said.meta_data)


def main(channel: Channel, settings: dict[str, Any]) -> None:
    """The child: it is told of the files and the images, and answers piece by piece."""
    for encoding in _ENCODINGS:  # before the lock: what Python would look for on the disk
        codecs.lookup(encoding)
    chosen: str | None = settings["format"]
    work = _Work(FORMATS if chosen is None else {chosen: FORMATS[chosen]})
    channel.ready({})
    while (request := channel.receive()) is not None:
        identifier, body = request
        try:
            match _REQUEST.decode(body):
                case _Images(some):
                    work.images |= dict(some)
                    channel.send(identifier, _encode(len(work.images)))
                case _Pieces(pieces):
                    channel.send(identifier, _encode(work.take(channel.memories[0], pieces)))
                case _Read():
                    channel.send(identifier, _encode(work.read()))
                case _More():
                    channel.send(identifier, work.some())
        except InvalidInput as refusal:
            channel.refuse(identifier, refusal)
        except RecursionError:
            channel.refuse(identifier, InvalidInput("the annotations are nested too deeply"))
        except MemoryError:
            channel.refuse(identifier, TooLarge("the annotations need more memory than there is"))


class _Work:
    """What the child knows of one archive, in one of these formats."""

    def __init__(self, formats: Mapping[str, Format]) -> None:
        self._formats = formats
        self._files: dict[str, Incoming] = {}
        self._kept = 0
        self._said: Iterator[Annotated] = iter(())
        self._left_out = Counter[str]()
        self.images: dict[str, Held] = {}

    def take(self, memory: memoryview, pieces: list[tuple[str, int]]) -> int:
        """Some more of the files; how many bytes are kept of them."""
        at = 0
        for path, length in pieces:
            file = self._files.get(path)
            if file is None:
                format_of = next(one for one in self._formats.values() if one.describes(path))
                file = self._files[path] = format_of.begin(path)
                self._kept += len(path.encode())
            before = file.size
            file.add(bytes(memory[at : at + length]))
            self._kept += file.size - before
            at += length
        return self._kept

    def read(self) -> _Begun:
        name = self._named()
        chosen, ignored = self._formats[name], 0
        files = {}
        while self._files:
            path, file = self._files.popitem()
            if chosen.describes(path):
                files[path] = file.end()
            else:
                ignored += 1
        files = dict(sorted(files.items()))
        sizes = {image: Size(*held[1:]) for image, held in self.images.items()}
        declared = chosen.declared(files)
        for label in (*declared.labels, *declared.regions):
            try:
                checked_name(label)
            except InvalidInput as refusal:
                raise InvalidInput(f"the annotations declare a label whose {refusal}") from None
        whole = chosen.read(files, sizes, self._left_out)
        self._said = iter(whole)
        return self._begun(name, declared, whole, ignored)

    def _begun(self, name: str, declared: Declared, whole: Iterable[Annotated], ignored: int) -> _Begun:
        labels, regions = dict.fromkeys(declared.labels), dict.fromkeys(declared.regions)
        of_image: dict[int, str] = {}  # which may have several names
        several = False
        for one in whole:
            for label in one.labels:
                labels[label] = None
                several |= of_image.setdefault(self.images[one.name][0], label) != label
            for region in one.regions:
                regions[region.label] = None
                labels |= dict.fromkeys(region.labels)
        if len(labels) + len(regions) > MAX_LABELS:
            raise InvalidInput(f"the annotations name more labels than a dataset has, at most {MAX_LABELS}")
        return _Begun(name, list(labels), list(regions), several, ignored)

    def _named(self) -> str:
        if len(self._formats) == 1:
            return next(iter(self._formats))
        return detect([*self.images, *self._files])

    def some(self) -> bytes:
        """As many images as fit into an answer, at most some hundred; none at the end."""
        said, regions = list[_Said](), 0
        for one in islice(self._said, _AT_ONCE):
            said.append(_packed(one))
            regions += len(one.regions)
            if regions >= _REGIONS_AT_ONCE:
                break
        encoded = _encode(_Some(said, dict(self._left_out)))
        if len(encoded) > MESSAGE_BYTES - 64:
            raise InvalidInput("the images have too much meta data: import in several parts")
        return encoded


def _packed(one: Annotated) -> _Said:
    regions = [_region(region) for region in one.regions]
    return _Said(one.name, dict(one.labels), regions, one.test, dict(one.meta_data))


def _region(region: Region) -> _Region:
    box = region.box
    sides = (box.xmin, box.ymin, box.xmax, box.ymax)
    return _Region(region.label, sides, dict(region.labels), dict(region.meta_data))
