"""Reads what an archive says of its images in a process of its own, which is locked in and then ends.

Annotations are a stranger's text, of up to hundreds of megabytes: a parser that works on one holds its
interpreter for a second and more, and must not hold the one that serves everybody else.
"""

import asyncio
import codecs
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any

import msgspec

from appliance.channel import MESSAGE_BYTES, Channel, Limits
from appliance.datasets.interchange.annotated import Annotated, Format, Region, Size
from appliance.datasets.records import Box
from appliance.errors import InvalidInput, TooLarge, WorkerLost
from appliance.workers import Memory, Worker

SECONDS = 600.0

_AT_ONCE = 200  # images that are told of in one answer
_NAMES_AT_ONCE = 2000
_PIECE = 1 << 20
# Python with its libraries; of every byte of a file what parsers make of it; of every image its names.
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


class _Files(msgspec.Struct, array_like=True, tag=1):
    """The files in the shared memory, one behind the other, with their lengths; None finds the format."""

    format: str | None
    files: list[tuple[str, int]]


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


_REQUEST: msgspec.msgpack.Decoder[_Images | _Files | _More] = msgspec.msgpack.Decoder(
    _Images | _Files | _More
)
_BEGUN, _SOME = msgspec.msgpack.Decoder(_Begun), msgspec.msgpack.Decoder(_Some)
_encode = msgspec.msgpack.encode


class Parsed:
    """What was read, as it is asked for.

    `labels` and `regions` are the names that occur, those that are declared first, and `several` whether an
    image has more than one label. `ignored` files are of another format; what cannot be kept is counted in
    `left_out`.
    """

    def __init__(self, worker: Worker, begun: _Begun, images: Mapping[str, Held]) -> None:
        self._worker = worker
        self._images = images
        self.format = begun.format
        self.labels = begun.labels
        self.regions = begun.regions
        self.several = begun.several
        self.ignored = begun.ignored
        self.left_out = Counter[str]()

    async def batches(self) -> AsyncIterator[list[Annotated]]:
        """All that is said, in the order of the images, some hundred at a time."""
        while (some := _SOME.decode(await self._worker.call(_encode(_More()), SECONDS))).said:
            self.left_out = Counter(some.left_out)
            yield [_annotated(one, self._images[one.name]) for one in some.said]


@asynccontextmanager
async def parsing(
    chosen: str | None, files: dict[str, bytes], images: Mapping[str, Held]
) -> AsyncIterator[Parsed]:
    """Reads what `files`, which are emptied, say of `images`, given by their names in order.

    `chosen` is the name of a format, None finds it. Raises InvalidInput as the formats do, TooLarge for what
    needs more memory or time than there is; all of that before anything is said.
    """
    memory = Memory(max(1, sum(map(len, files.values()))))
    limits = Limits(
        address_space_bytes=_BASE_BYTES + _COPIES * memory.size + _IMAGE_BYTES * len(images),
        file_bytes=0,
        nice=5,
        confined=True,
    )
    lengths = [(path, len(content)) for path, content in files.items()]
    try:
        await asyncio.to_thread(_fill, memory, files)
        async with Worker("annotations", f"{__name__}:main", {}, memories=(memory,), limits=limits) as worker:
            names = iter(images.items())
            while some := list(islice(names, _NAMES_AT_ONCE)):
                await worker.call(_encode(_Images(some)), SECONDS)
            begun = _BEGUN.decode(await worker.call(_encode(_Files(chosen, lengths)), SECONDS))
            yield Parsed(worker, begun, images)
    except (WorkerLost, msgspec.MsgspecError):
        raise TooLarge(
            "the annotations could not be read in the time and memory that there is: import in several parts"
        ) from None
    finally:
        memory.close()


def _fill(memory: Memory, files: dict[str, bytes]) -> None:
    at = 0
    while files:
        content = files.pop(next(iter(files)))
        for start in range(0, len(content), _PIECE):
            piece = content[start : start + _PIECE]
            memory.view[at : at + len(piece)] = piece
            at += len(piece)


def _annotated(said: _Said, image: Held) -> Annotated:
    regions = tuple(Region(one.label, Box(*one.box), one.labels, one.meta_data) for one in said.regions)
    return Annotated(said.name, Size(*image[1:]), said.labels, regions, said.test, said.meta_data)


def main(channel: Channel, settings: dict[str, Any]) -> None:  # noqa: ARG001 - every child is called so
    """The child: it is told of the images and the files, and answers piece by piece."""
    # Before the lock: what Python would look for on the disk when it is first used.
    from appliance.datasets.interchange.formats import FORMATS, detect  # noqa: PLC0415

    for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"):
        codecs.lookup(encoding)
    images: dict[str, Held] = {}
    said: Iterator[Annotated] = iter(())
    left_out = Counter[str]()
    channel.ready({})
    while (request := channel.receive()) is not None:
        identifier, body = request
        try:
            match _REQUEST.decode(body):
                case _Images(some):
                    images |= dict(some)
                    channel.send(identifier, b"")
                case _Files(chosen, lengths):
                    name = chosen or detect([*images, *(path for path, _ in lengths)])
                    files = _files(channel.memories[0], lengths, FORMATS[name])
                    sizes = {image: Size(*held[1:]) for image, held in images.items()}
                    declared = FORMATS[name].declared(files)
                    whole = list(FORMATS[name].read(files, sizes, left_out))
                    begun = _Begun(
                        name,
                        _distinct(declared.labels, (label for one in whole for label in _recognised(one))),
                        _distinct(declared.regions, (on.label for one in whole for on in one.regions)),
                        _have_several(whole, images),
                        len(lengths) - len(files),
                    )
                    said = iter(whole)
                    channel.send(identifier, _encode(begun))
                case _More():
                    channel.send(identifier, _some(said, left_out))
        except InvalidInput as refusal:
            channel.refuse(identifier, refusal)
        except MemoryError:
            channel.refuse(identifier, TooLarge("the annotations need more memory than there is"))


def _files(memory: memoryview, lengths: list[tuple[str, int]], chosen: Format) -> dict[str, bytes]:
    """The files that the format has to do with, in the order of their paths."""
    files, at = dict[str, bytes](), 0
    for path, length in lengths:
        if chosen.describes(path):
            files[path] = bytes(memory[at : at + length])
        at += length
    return dict(sorted(files.items()))


def _some(said: Iterator[Annotated], left_out: Counter[str]) -> bytes:
    """As many images as fit into an answer, at most some hundred; none at the end."""
    pieces = [
        _Said(
            one.name,
            dict(one.labels),
            [_region(region) for region in one.regions],
            one.test,
            dict(one.meta_data),
        )
        for one in islice(said, _AT_ONCE)
    ]
    encoded = _encode(_Some(pieces, dict(left_out)))
    if len(encoded) > MESSAGE_BYTES - 64:
        raise InvalidInput("the images have too much meta data: import in several parts")
    return encoded


def _region(region: Region) -> _Region:
    box = region.box
    sides = (box.xmin, box.ymin, box.xmax, box.ymax)
    return _Region(region.label, sides, dict(region.labels), dict(region.meta_data))


def _distinct(first: Iterable[str], then: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*first, *then]))


def _recognised(one: Annotated) -> Iterator[str]:
    """The names of the recognition labels of an image and of what is on it."""
    yield from one.labels
    for region in one.regions:
        yield from region.labels


def _have_several(said: Iterable[Annotated], images: Mapping[str, Held]) -> bool:
    """Whether an image has more than one label, by one of its names or by several."""
    of_image: dict[int, str] = {}
    for one in said:
        for name in one.labels:
            if of_image.setdefault(images[one.name][0], name) != name:
                return True
    return False
