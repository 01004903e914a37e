"""What several files, or several rows of one, say about the same images, put together and held to limits."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from appliance.datasets import gallery
from appliance.datasets.interchange.annotated import Annotated, Region, Size
from appliance.datasets.interchange.text import number
from appliance.datasets.labels import MAX_LABELS
from appliance.datasets.objects import MAX_OBJECTS
from appliance.datasets.records import Box
from appliance.datasets.words import checked_meta_data, checked_name
from appliance.errors import InvalidInput

_GRID = 6  # digits behind the point of a pixel
_LONG_SIDE = 1_000_000  # px, of no image that is stored: a number of JSON may have 300 digits
_ROUNDING = 1.0  # px that a box may stick out of its image


_NEXT = b"\n"


class _Region(msgspec.Struct, array_like=True, gc=False):
    """A region as it is kept, a line of JSON."""

    label: int
    xmin: int | float
    ymin: int | float
    xmax: int | float
    ymax: int | float
    labels: dict[str, float | None] = {}
    meta_data: dict[str, Any] = {}


_LINES = msgspec.json.Decoder(_Region)


@dataclass(slots=True)
class _Said:
    labels: dict[str, float | None] = field(default_factory=dict)
    regions: bytearray = field(default_factory=bytearray)
    boxes: int = 0
    before: int = 0
    """Where in `regions` those end that other files have said."""
    test: bool | None = None
    meta_data: Mapping[str, object] | None = None


class Gathering(Iterable[Annotated]):
    """What is said about the images of `sizes`: an iteration gives those that something was said about, in
    their order. A box takes some thirty bytes of memory.

    Every method takes `where`, file and place in it, and raises InvalidInput with it for what is over a limit
    of a dataset or contradicts what was said before.
    """

    def __init__(self, sizes: Mapping[str, Size]) -> None:
        self.sizes = sizes
        self._said: dict[str, _Said] = {}
        self._labels: dict[str, int] = {}
        self._regions: dict[str, int] = {}

    def label(self, where: str, image: str, name: str, value: float | None = None) -> None:
        """The image has this recognition label."""
        _numbered(where, name, self._labels)
        labels = self._of(image).labels
        if value is not None and not math.isfinite(value):
            raise InvalidInput(f"{where}: the value of a label is no number")
        if labels.setdefault(name, value) != value:
            raise InvalidInput(f"{where}: the image has this label with another value: keep one of them")
        if len(labels) > gallery.MAX_LABELS:
            raise InvalidInput(f"{where}: an image has at most {gallery.MAX_LABELS} labels")

    def begin_file(self) -> None:
        """From now on `region` passes over what is said already, by its name and box."""
        for said in self._said.values():
            said.before = len(said.regions)

    def region(self, where: str, image: str, region: Region) -> None:
        """This is on the image; a box that sticks out by one pixel at most is cut."""
        number = _numbered(where, region.label, self._regions)
        for label in region.labels:
            _numbered(where, label, self._labels)
        _check_meta_data(where, region.meta_data)
        box = _within(where, region.box, self.sizes[image])
        said = self._of(image)
        row: tuple[object, ...] = (number, box.xmin, box.ymin, box.xmax, box.ymax)
        key = _NEXT + msgspec.json.encode(row)[:-1]
        if any(said.regions.find(key + end, 0, said.before) >= 0 for end in (b"]", b",") if said.before):
            return
        if region.labels or region.meta_data:
            row = (*row, dict(region.labels), dict(region.meta_data))
        said.regions += _NEXT + msgspec.json.encode(row)
        said.boxes += 1
        if said.boxes > MAX_OBJECTS:
            raise InvalidInput(f"{where}: an image has at most {MAX_OBJECTS} boxes")

    def test(self, where: str, image: str, *, test: bool) -> None:
        """The image is kept from training, or is not."""
        said = self._of(image)
        if said.test not in {None, test}:
            raise InvalidInput(f"{where}: the image is in a test part and in another: keep it in one")
        said.test = test

    def meta_data(self, where: str, image: str, meta_data: Mapping[str, object]) -> None:
        """What the customer notes beside the image."""
        _check_meta_data(where, meta_data)
        said = self._of(image)
        if said.meta_data is not None and said.meta_data != meta_data:
            raise InvalidInput(f"{where}: the image has other meta data too: keep one of them")
        said.meta_data = meta_data

    def __iter__(self) -> Iterator[Annotated]:
        names = list(self._regions)
        for name, size in self.sizes.items():
            if (said := self._said.get(name)) is not None:
                regions = tuple(_region(names, row) for row in _LINES.decode_lines(said.regions))
                yield Annotated(name, size, said.labels, regions, said.test or False, said.meta_data or {})

    def _of(self, image: str) -> _Said:
        said = self._said.get(image)
        if said is None:
            said = self._said[image] = _Said()
        return said


def _region(names: Sequence[str], row: _Region) -> Region:
    label, box = names[row.label], Box(row.xmin, row.ymin, row.xmax, row.ymax)
    if row.labels or row.meta_data:
        return Region(label, box, row.labels, row.meta_data)
    return Region(label, box)


def on_grid(box: Box) -> Box:
    """The box to a millionth of a pixel, where sums and parts of its sides are read again as they were."""
    return Box(*(round(side, _GRID) for side in (box.xmin, box.ymin, box.xmax, box.ymax)))


def check_boxes(annotated: Annotated) -> None:
    """Raises InvalidInput for a box that has no area on the grid."""
    for region in annotated.regions:
        box = on_grid(region.box)
        if not (box.xmin < box.xmax and box.ymin < box.ymax):
            raise InvalidInput(
                f"{annotated.name}: a box is smaller than a millionth of a pixel: remove it, or take csv"
            )


def check_size(where: str, written: Size, size: Size) -> None:
    """Raises InvalidInput where boxes were drawn on an image of another size than the stored one."""
    if written == size:
        return
    said = " x ".join(str(side) if abs(side) < _LONG_SIDE else "a million or more" for side in written)
    says = f"{where}: says {said} px, the image has {size.width} x {size.height}"
    if (written.height, written.width) == size:
        raise InvalidInput(
            f"{says} when turned upright, as it is stored: whether the boxes are of the turned one cannot be"
            " told: draw them on the upright image, and write its width and height"
        )
    raise InvalidInput(f"{says}: its boxes are of another image, or of a scaled one")


def _numbered(where: str, name: str, known: dict[str, int]) -> int:
    """How many names were known before this one."""
    if (number := known.get(name)) is not None:
        return number
    try:
        checked = checked_name(name)
    except InvalidInput as refusal:
        raise InvalidInput(f"{where}: a label's {refusal}") from None
    number = known[checked] = len(known)
    if len(known) > MAX_LABELS:
        raise InvalidInput(f"{where}: a dataset has at most {MAX_LABELS} labels")
    return number


def _check_meta_data(where: str, meta_data: Mapping[str, object]) -> None:
    if meta_data:
        try:
            checked_meta_data(dict(meta_data))
        except InvalidInput as refusal:
            raise InvalidInput(f"{where}: {refusal}") from None


def _within(where: str, box: Box, size: Size) -> Box:
    """The box cut at the borders of its image, whole numbers without a point."""
    xmin, ymin, xmax, ymax = box.xmin, box.ymin, box.xmax, box.ymax
    if not all(map(math.isfinite, (xmin, ymin, xmax, ymax))):
        raise InvalidInput(f"{where}: the sides of a box are no numbers")
    if 0 <= xmin < xmax <= size.width and 0 <= ymin < ymax <= size.height:
        return Box(number(xmin), number(ymin), number(xmax), number(ymax))
    image = f"the image of {size.width} x {size.height} px"
    if min(xmin, ymin) < -_ROUNDING or xmax > size.width + _ROUNDING or ymax > size.height + _ROUNDING:
        raise InvalidInput(f"{where}: the box is not within {image}")
    cut = Box(
        number(max(xmin, 0)),
        number(max(ymin, 0)),
        number(min(xmax, size.width)),
        number(min(ymax, size.height)),
    )
    if not (cut.xmin < cut.xmax and cut.ymin < cut.ymax):
        raise InvalidInput(f"{where}: the box has no area within {image}: correct or remove it")
    return cut
