"""COCO: a JSON file for each part of a dataset, as COCO itself, Roboflow, CVAT and Label Studio write it.

Written are `instances_train.json` and, for the images that are kept from training, `instances_test.json`,
with each image's path from the file's folder as its `file_name`. What COCO has no field for lies under the
key `appliance`, which other readers pass over: `{"labels": {name: value or null}, "meta_data": {...}}` in an
image or an annotation, and the names of all recognition labels, `{"labels": [...]}`, in the document. Boxes
are exact to a millionth of a pixel.

Read is any `*.json` with `images`. Masks and crowds cannot be kept: of these, the boxes are. An annotation of
a category without `bbox` and mask is a recognition label, as Datumaro writes them. A category that merely is
the supercategory of others, as Roboflow adds one, is none.
"""

from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from appliance.datasets.interchange import splits
from appliance.datasets.interchange.annotated import (
    ABSENT,
    FOREIGN,
    Annotated,
    Declared,
    Format,
    Region,
    Size,
)
from appliance.datasets.interchange.gathering import Gathering, check_boxes, check_size, on_grid
from appliance.datasets.interchange.names import Names
from appliance.datasets.interchange.text import Spool, number
from appliance.datasets.records import Box
from appliance.errors import InvalidInput

_BOM = b"\xef\xbb\xbf"

_Id = int | str  # COCO's are whole numbers; scripts number by file name


class _More(msgspec.Struct, omit_defaults=True):
    labels: dict[str, float | None] = {}
    meta_data: dict[str, Any] = {}


class _AllLabels(msgspec.Struct):
    labels: list[str] = []


class _Image(msgspec.Struct, omit_defaults=True, gc=False):
    id: _Id
    file_name: str
    width: float | None = None
    height: float | None = None
    appliance: _More | None = None


class _Category(msgspec.Struct):
    id: _Id
    name: str
    supercategory: str | None = ""


class _Annotation(msgspec.Struct, omit_defaults=True, gc=False):
    id: _Id
    image_id: _Id
    category_id: _Id | None = None
    bbox: list[float] | None = None
    area: float | None = None
    iscrowd: int | None = None
    segmentation: msgspec.Raw = msgspec.Raw()
    appliance: _More | None = None


class _Document(msgspec.Struct):
    images: list[_Image] | None = None
    annotations: list[_Annotation] = []
    categories: list[_Category] = []
    appliance: _AllLabels = msgspec.field(default_factory=_AllLabels)


_Images = dict[_Id, tuple[_Image, str | None]]  # with the names of those that are there

_DECODER = msgspec.json.Decoder(_Document)
_SEPARATOR = b",\n"
_NO_MASK = {b"", b"null", b"[]", b"{}", b"[[]]"}


class Coco(Format):
    """COCO JSON, which keeps all that is said about images."""

    def describes(self, path: str) -> bool:
        """Any JSON file."""
        return path.lower().endswith(".json")

    def declared(self, files: Mapping[str, bytes]) -> Declared:
        """All categories in the order of the files, and the recognition labels of an own export; a category
        that only annotations without a box have is a recognition label.
        """
        labels, regions = dict[str, None](), dict[str, None]()
        for _, document in _documents(files, Counter()):
            labels |= dict.fromkeys(document.appliance.labels)
            boxed = {one.category_id for one in document.annotations if one.bbox}
            used = {one.category_id for one in document.annotations}
            above = {one.supercategory for one in document.categories}
            for category in document.categories:
                if category.id in used and category.id not in boxed:
                    labels[category.name] = None
                elif category.id in used or category.name not in above:
                    regions[category.name] = None
        return Declared(tuple(labels), tuple(regions))

    def read(
        self, files: Mapping[str, bytes], sizes: Mapping[str, Size], left_out: Counter[str] | None = None
    ) -> Iterator[Annotated]:
        """As `Format.read`; an image is a test image by the name of its JSON file or of a folder above that
        (`instances_test.json`, `test/_annotations.coco.json`), else by that of a folder of its own.
        """
        counts = Counter[str]() if left_out is None else left_out
        gathering, names = Gathering(sizes), Names(sizes)
        found = absent = 0
        for path, document in _documents(files, counts):
            images = _images(path, document, names)
            absent += sum(name is None for _, name in images.values())
            found += len(images)
            _Reading(path, document, gathering, counts).say(images)
        if absent:
            counts[ABSENT] += absent
        if found and found == absent:
            raise InvalidInput(
                "no file_name of a COCO file is the path of an image that is here: compare the two"
            )
        return gathering.annotated()

    def check(self, annotated: Iterable[Annotated]) -> None:
        """Raises InvalidInput for a box of less than a millionth of a pixel, and for nothing else."""
        for one in annotated:
            check_boxes(one)

    def place(self, annotated: Annotated) -> str:
        """Where it is."""
        return annotated.name

    def write(
        self, annotated: Iterable[Annotated], labels: Collection[str], regions: Collection[str]
    ) -> Iterator[tuple[str, Iterator[bytes]]]:
        """As `Format.write`: a file for training, and one for test images if there are any."""
        categories = {name: key for key, name in enumerate(regions, 1)}
        parts = {False: _Part(categories), True: _Part(categories)}
        for one in annotated:
            parts[one.test].add(one)
        for test, part in parts.items():
            if part.images or not test:
                yield f"instances_{'test' if test else 'train'}.json", part.pieces(labels)


class _Part:
    """A file as it is written: images and annotations grow together, and follow one another in the end."""

    def __init__(self, categories: Mapping[str, int]) -> None:
        self._categories = categories
        self._spooled = Spool(), Spool()
        self.images = 0
        self._annotations = 0

    def add(self, annotated: Annotated) -> None:
        images, annotations = self._spooled
        image = _Image(
            id=self.images + 1,
            file_name=annotated.name,
            width=annotated.size.width,
            height=annotated.size.height,
            appliance=_more(annotated),
        )
        images.write(_SEPARATOR[: 2 * bool(self.images)] + msgspec.json.encode(image))
        self.images += 1
        for region in annotated.regions:
            box = on_grid(region.box)
            extent = on_grid(Box(0, 0, box.xmax - box.xmin, box.ymax - box.ymin))
            width, height = extent.xmax, extent.ymax
            annotation = _Annotation(
                id=self._annotations + 1,
                image_id=self.images,
                category_id=self._categories[region.label],
                bbox=[number(side) for side in (box.xmin, box.ymin, width, height)],
                area=number(width * height),
                iscrowd=0,
                appliance=_more(region),
            )
            annotations.write(_SEPARATOR[: 2 * bool(self._annotations)] + msgspec.json.encode(annotation))
            self._annotations += 1

    def pieces(self, labels: Collection[str]) -> Iterator[bytes]:
        images, annotations = self._spooled
        yield b'{"info":{},"licenses":[],"images":['
        yield from images.pieces()
        yield b'],\n"annotations":['
        yield from annotations.pieces()
        categories = [_Category(key, name) for name, key in self._categories.items()]
        yield b'],\n"categories":' + msgspec.json.encode(categories)
        yield b',\n"appliance":' + msgspec.json.encode(_AllLabels(list(labels))) + b"}\n"


def _documents(files: Mapping[str, bytes], left_out: Counter[str]) -> Iterator[tuple[str, _Document]]:
    """The files that are COCO. Raises InvalidInput for one that is broken, and where there is none."""
    found = 0
    for path, content in sorted(files.items()):
        document = None
        if content.removeprefix(_BOM).lstrip()[:1] == b"{":
            try:
                document = _DECODER.decode(content.removeprefix(_BOM))
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise InvalidInput(f"{path}: is no COCO file: {_reason(error)}") from None
        if document is None or document.images is None:
            left_out[FOREIGN] += 1
            continue
        found += 1
        yield path, document
    if not found:
        raise InvalidInput(
            "no COCO file is here: a .json file with images, annotations and categories is expected; where"
            " the format is another one, name it"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "its brackets are nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "its text is not UTF-8"
    return str(error)


def _images(path: str, document: _Document, names: Names) -> _Images:
    """The images of a file by their ids, with the names of those that are there."""
    images: _Images = {}
    taken = set[str]()
    for image in document.images or ():
        where = f"image {_new(path, 'image', image.id, images)}"
        name = names.find(image.file_name, path, where)
        if name is not None and name in taken:
            raise InvalidInput(f"{path}, {where}: its file_name is that of another image of the file")
        images[image.id] = image, name
        if name is not None:
            taken.add(name)
    return images


class _Reading:
    """A file on its way into what is gathered."""

    def __init__(self, path: str, document: _Document, gathering: Gathering, left_out: Counter[str]) -> None:
        self._path = path
        self._document = document
        self._gathering = gathering
        self._left_out = left_out
        self._before: dict[str, Collection[tuple[str, Box]]] = {}  # by other files, which may say the same

    def say(self, images: _Images) -> None:
        split = splits.of_path(self._path)
        for image, name in images.values():
            if name is not None:
                self._before[name] = self._gathering.boxes(name)
                self._image(image, name, test=(split or splits.of_folders(name)) == "test")
        categories: dict[_Id, str] = {}
        for category in self._document.categories:
            categories[_new(self._path, "category", category.id, categories)] = category.name
        seen = set[_Id]()
        for one in self._document.annotations:
            seen.add(_new(self._path, "annotation", one.id, seen))
            where = f"{self._path}, annotation {one.id}"
            if one.image_id not in images:
                raise InvalidInput(f"{where}: its image_id is that of no image of the file")
            image, name = images[one.image_id]
            if one.category_id is None:
                self._left_out["annotations without a category"] += 1
            elif one.category_id not in categories:
                raise InvalidInput(f"{where}: its category_id is that of no category of the file")
            elif name is None:
                self._left_out["annotations of images that are not there"] += 1
            else:
                label = categories[one.category_id]
                self._annotation(f"{where} of {name}", one, label, image, name)

    def _image(self, image: _Image, name: str, *, test: bool) -> None:
        where = f"{self._path}, image {image.id}"
        self._gathering.test(where, name, test=test)
        if image.appliance is not None:
            for label, value in image.appliance.labels.items():
                self._gathering.label(where, name, label, value)
            self._gathering.meta_data(where, name, image.appliance.meta_data)

    def _annotation(
        self,
        where: str,
        one: _Annotation,
        label: str,
        image: _Image,
        name: str,
    ) -> None:
        masked = bytes(one.segmentation) not in _NO_MASK
        if one.bbox and len(one.bbox) == 4 and 0 in one.bbox[2:]:  # COCO's own train2017 has one
            self._left_out["boxes without an area"] += 1
        elif one.bbox:
            if masked:
                self._left_out["masks, of which the boxes are kept"] += 1
            check_size(where, _written(image, self._gathering.sizes[name]), self._gathering.sizes[name])
            self._gathering.region(
                where, name, _region(where, label, one.bbox, one.appliance), self._before[name]
            )
        elif masked:
            raise InvalidInput(f"{where}: a mask without a bbox, and only boxes can be kept: add the bbox")
        else:
            self._gathering.label(where, name, label)


def _new(path: str, noun: str, identity: _Id, known: Container[_Id]) -> _Id:
    if isinstance(identity, int) and identity < 0:
        raise InvalidInput(f"{path}, {noun} {identity}: ids are whole numbers from 0")
    if identity in known:
        raise InvalidInput(f"{path}, {noun} {identity}: the id occurs twice")
    return identity


def _written(image: _Image, size: Size) -> Size:
    """The size that the file says, where it says one."""
    if not image.width or not image.height:
        return size
    return Size(*map(round, (image.width, image.height)))


def _region(where: str, label: str, bbox: list[float], more: _More | None) -> Region:
    if len(bbox) != 4:
        raise InvalidInput(f"{where}: bbox has {len(bbox)} numbers, [x, y, width, height] is expected")
    x, y, width, height = bbox
    if not (width > 0 and height > 0):
        raise InvalidInput(f"{where}: the box has no area: correct or remove it")
    box = on_grid(Box(x, y, x + width, y + height))
    return Region(label, box) if more is None else Region(label, box, more.labels, more.meta_data)


def _more(said: Annotated | Region) -> _More | None:
    if not said.labels and not said.meta_data:
        return None
    labels = {name: value if value is None else number(value) for name, value in said.labels.items()}
    return _More(labels, dict(said.meta_data))
