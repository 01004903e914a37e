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
from appliance.datasets.interchange.coco_rows import (
    AllLabels,
    Annotation,
    AnnotationObject,
    CategoryObject,
    Document,
    Id,
    Image,
    ImageObject,
    More,
    Rows,
)
from appliance.datasets.interchange.gathering import Gathering, check_boxes, check_size, on_grid
from appliance.datasets.interchange.names import Names
from appliance.datasets.interchange.text import Spool, number
from appliance.datasets.records import Box
from appliance.errors import InvalidInput

Content = bytes | Document

_Images = dict[Id, tuple[str | None, Size | None]]
"""The images of a file by their ids: the names of those that are there, and the sizes that are written."""

_SEPARATOR = b",\n"


class Coco(Format):
    """COCO JSON, which keeps all that is said about images."""

    def describes(self, path: str) -> bool:
        """Any JSON file."""
        return path.lower().endswith(".json")

    def begin(self, path: str) -> Document:  # noqa: ARG002 - as all formats
        """A file of which rows are kept."""
        return Document()

    def declared(self, files: Mapping[str, Content]) -> Declared:
        """All categories in the order of the files, and the recognition labels of an own export; a category
        that only annotations without a box have is a recognition label.
        """
        labels, regions = dict[str, None](), dict[str, None]()
        for _, document, _ in _documents(files, Counter()):
            labels |= dict.fromkeys(document.labels)
            above = {one.supercategory for one in document.categories}
            for category in document.categories:
                used = category.id in document.used
                if used and category.id not in document.boxed:
                    labels[category.name] = None
                elif used or category.name not in above:
                    regions[category.name] = None
        return Declared(tuple(labels), tuple(regions))

    def read(
        self, files: Mapping[str, Content], sizes: Mapping[str, Size], left_out: Counter[str] | None = None
    ) -> Iterable[Annotated]:
        """As `Format.read`; an image is a test image by the name of its JSON file or of a folder above that
        (`instances_test.json`, `test/_annotations.coco.json`), else by that of a folder of its own.
        """
        counts = Counter[str]() if left_out is None else left_out
        gathering, names = Gathering(sizes), Names(sizes)
        found = absent = 0
        for path, document, rows in _documents(files, counts):
            images = _images(path, rows, names)
            absent += sum(name is None for name, _ in images.values())
            found += len(images)
            gathering.begin_file()
            _Reading(path, document, gathering, counts).say(rows, images)
        if absent:
            counts[ABSENT] += absent
        if found and found == absent:
            raise InvalidInput(
                "no file_name of a COCO file is the path of an image that is here: compare the two"
            )
        return gathering

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
        image = ImageObject(
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
            annotation = AnnotationObject(
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
        categories = [CategoryObject(key, name) for name, key in self._categories.items()]
        yield b'],\n"categories":' + msgspec.json.encode(categories)
        yield b',\n"appliance":' + msgspec.json.encode(AllLabels(list(labels))) + b"}\n"


def _documents(
    files: Mapping[str, Content], left_out: Counter[str]
) -> Iterator[tuple[str, Document, Rows[Image]]]:
    """The files that are COCO, and their images. Raises InvalidInput for a broken one, and for none."""
    found = 0
    for path, content in sorted(files.items()):
        document = Document.of(content) if isinstance(content, bytes) else content
        if document.refusal is not None:
            raise InvalidInput(f"{path}: is no COCO file: {document.refusal}")
        if document.images is None:
            left_out[FOREIGN] += 1
            continue
        found += 1
        yield path, document, document.images
    if not found:
        raise InvalidInput(
            "no COCO file is here: a .json file with images, annotations and categories is expected; where"
            " the format is another one, name it"
        )


def _images(path: str, rows: Rows[Image], names: Names) -> _Images:
    images: _Images = {}
    taken = set[str]()
    for image in rows:
        where = f"image {_new(path, 'image', image.id, images)}"
        name = names.find(image.file_name, path, where)
        if name is not None and name in taken:
            raise InvalidInput(f"{path}, {where}: its file_name is that of another image of the file")
        images[image.id] = name, _written(image)
        if name is not None:
            taken.add(name)
    return images


class _Reading:
    """A file on its way into what is gathered."""

    def __init__(self, path: str, document: Document, gathering: Gathering, left_out: Counter[str]) -> None:
        self._path = path
        self._document = document
        self._gathering = gathering
        self._left_out = left_out

    def say(self, rows: Rows[Image], images: _Images) -> None:
        split = splits.of_path(self._path)
        for image, (name, _) in zip(rows, images.values(), strict=True):
            if name is not None:
                self._image(image, name, test=(split or splits.of_folders(name)) == "test")
        categories: dict[Id, str] = {}
        for category in self._document.categories:
            categories[_new(self._path, "category", category.id, categories)] = category.name
        for place, one in enumerate(self._document.annotations):
            _new(self._path, "annotation", one.id, (one.id,) if place == self._document.again else ())
            where = f"{self._path}, annotation {one.id}"
            if one.image_id not in images:
                raise InvalidInput(f"{where}: its image_id is that of no image of the file")
            name, size = images[one.image_id]
            if one.category_id is None:
                self._left_out["annotations without a category"] += 1
            elif one.category_id not in categories:
                raise InvalidInput(f"{where}: its category_id is that of no category of the file")
            elif name is None:
                self._left_out["annotations of images that are not there"] += 1
            else:
                label = categories[one.category_id]
                self._annotation(f"{where} of {name}", one, label, size, name)

    def _image(self, image: Image, name: str, *, test: bool) -> None:
        where = f"{self._path}, image {image.id}"
        self._gathering.test(where, name, test=test)
        if image.appliance is not None:
            for label, value in image.appliance.labels.items():
                self._gathering.label(where, name, label, value)
            self._gathering.meta_data(where, name, image.appliance.meta_data)

    def _annotation(
        self,
        where: str,
        one: Annotation,
        label: str,
        size: Size | None,
        name: str,
    ) -> None:
        if one.bbox and len(one.bbox) == 4 and 0 in one.bbox[2:]:  # COCO's own train2017 has one
            self._left_out["boxes without an area"] += 1
        elif one.bbox:
            if one.masked:
                self._left_out["masks, of which the boxes are kept"] += 1
            if size is not None:
                check_size(where, size, self._gathering.sizes[name])
            self._gathering.region(where, name, _region(where, label, one.bbox, one.appliance))
        elif one.masked:
            raise InvalidInput(f"{where}: a mask without a bbox, and only boxes can be kept: add the bbox")
        else:
            self._gathering.label(where, name, label)


def _new(path: str, noun: str, identity: Id, known: Container[Id]) -> Id:
    if isinstance(identity, int) and identity < 0:
        raise InvalidInput(f"{path}, {noun} {identity}: ids are whole numbers from 0")
    if identity in known:
        raise InvalidInput(f"{path}, {noun} {identity}: the id occurs twice")
    return identity


def _written(image: Image) -> Size | None:
    """The size that the file says, where it says one."""
    return Size(*map(round, (image.width, image.height))) if image.width and image.height else None


def _region(where: str, label: str, bbox: list[float], more: More | None) -> Region:
    if len(bbox) != 4:
        raise InvalidInput(f"{where}: bbox has {len(bbox)} numbers, [x, y, width, height] is expected")
    x, y, width, height = bbox
    if not (width > 0 and height > 0):
        raise InvalidInput(f"{where}: the box has no area: correct or remove it")
    box = on_grid(Box(x, y, x + width, y + height))
    return Region(label, box) if more is None else Region(label, box, more.labels, more.meta_data)


def _more(said: Annotated | Region) -> More | None:
    if not said.labels and not said.meta_data:
        return None
    labels = {name: value if value is None else number(value) for name, value in said.labels.items()}
    return More(labels, dict(said.meta_data))
