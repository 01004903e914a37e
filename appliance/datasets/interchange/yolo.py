"""YOLO as Ultralytics, Roboflow and Darknet lay it out: a text beside each image, a line for each box.

A line is `class x y width height`, the centre and the size of a box in parts of the upright image, or a
polygon, of which its bounding box is kept, or with `kpt_shape` in data.yaml a box and keypoints, which are
left out. The text of `.../images/.../x.jpg` is `.../labels/.../x.txt`, else it lies beside the image. Names
of classes are in a YAML file under `names`, or in `classes.txt` or `obj.names`.

Written are `data.yaml`, `images/train`, `images/test` and their labels; images that lie in the folders of one
of the two layouts stay where they are, so `val` survives there: the store knows test images alone. Boxes are
exact to a millionth of a pixel.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from appliance.datasets.interchange import class_names, splits
from appliance.datasets.interchange.annotated import Annotated, Declared, Format, Region, Size
from appliance.datasets.interchange.class_names import Classes
from appliance.datasets.interchange.gathering import Gathering, check_boxes, on_grid
from appliance.datasets.interchange.names import flat
from appliance.datasets.interchange.text import decoded
from appliance.datasets.records import Box
from appliance.errors import InvalidInput

_YAML = (".yaml", ".yml")
_LISTS = {"classes.txt", "obj.names"}
# Texts that say nothing about one image: lists of files, words for people.
_OTHER = {"train.txt", "val.txt", "valid.txt", "test.txt", "license.txt", "requirements.txt"}

_DIGITS = 12  # of a part of the image: the grid survives them in images of up to 500,000 px


class Yolo(Format):
    """Boxes alone: no recognition labels, no meta data."""

    def describes(self, path: str) -> bool:
        """Texts, YAML files and `obj.names`."""
        name = path.rpartition("/")[2].lower()
        if name.endswith(".txt"):
            return "labels" in path.split("/")[:-1] or not (name in _OTHER or name.startswith("readme"))
        return name.endswith(_YAML) or name in _LISTS

    def declared(self, files: Mapping[str, bytes]) -> Declared:
        """All classes by their numbers."""
        classes = _classes(files)
        return Declared(regions=tuple(dict.fromkeys(name for _, name in sorted(classes.names.items()))))

    def read(
        self, files: Mapping[str, bytes], sizes: Mapping[str, Size], left_out: Counter[str] | None = None
    ) -> Iterable[Annotated]:
        """As `Format.read`; an image is a test image by the name of a folder that it is in."""
        counts = Counter[str]() if left_out is None else left_out
        classes, gathering = _classes(files), Gathering(sizes)
        normal = {_normal(path): path for path in files if not path.isascii()}
        texts = {path for path in files if path.lower().endswith(".txt") and not _is_list(path)}
        read = set[str]()
        for image, size in sizes.items():
            if splits.of_folders(image) == "test":
                gathering.test(image, image, test=True)
            for path in dict.fromkeys((_label_path(image), _beside(image))):
                text = path if path in texts else normal.get(_normal(path))
                if text in texts:
                    read.add(text)
                    for where, region in _regions(text, files[text], size, classes, counts):
                        gathering.region(where, image, region)
                    break
        if texts and not read:
            raise InvalidInput(
                "no label file belongs to an image that is here: for images/x.jpg, labels/x.txt is expected"
            )
        if absent := len(texts) - len(read):
            counts["label files of images that are not there"] += absent
        return gathering

    def check(self, annotated: Iterable[Annotated]) -> None:
        """Raises InvalidInput for recognition labels and meta data, and for a box of less than a millionth of
        a pixel.
        """
        for one in annotated:
            if (
                one.labels
                or one.meta_data
                or any(region.labels or region.meta_data for region in one.regions)
            ):
                raise InvalidInput(
                    f"{one.name}: yolo has boxes alone, no labels of images and no meta data: take coco"
                )
            check_boxes(one)

    def place(self, annotated: Annotated) -> str:
        """Where it is in `images/SPLIT` or `SPLIT/images` of the right split, else `images/SPLIT`."""
        if _home(annotated.name, test=annotated.test) is not None:
            return annotated.name
        name = flat(annotated.name)
        own = "_" if _is_list(_beside(name)) else ""  # its label file would be taken for the names of classes
        return f"images/{'test' if annotated.test else 'train'}/{own}{name}"

    def files_of(self, path: str) -> tuple[str, ...]:
        """Its own, and its label file's: images that differ in their endings alone would share it."""
        return path, _label_path(path), _beside(path)

    def write(
        self,
        annotated: Iterable[Annotated],
        labels: Collection[str],  # noqa: ARG002 - as all formats
        regions: Collection[str],
    ) -> Iterator[tuple[str, Iterator[bytes]]]:
        """As `Format.write`: a label file for each image with boxes, and in the end `data.yaml`."""
        numbers = {name: number for number, name in enumerate(regions)}
        homes: dict[splits.Split, dict[str, None]] = {"train": {}, "val": {}, "test": {}}
        for one in annotated:
            path = self.place(one)
            home = _home(path, test=one.test)
            assert home is not None
            homes[splits.of_folders(path) or "train"][home] = None
            if one.regions:
                rows = (_row(numbers[region.label], region.box, one.size) for region in one.regions)
                yield _label_path(path), iter(["".join(rows).encode()])
        yield "data.yaml", iter([_yaml(homes, regions).encode()])


def _classes(files: Mapping[str, bytes]) -> Classes:
    """The classes, the same from every file that names some. Raises InvalidInput."""
    found: dict[str, Classes] = {}
    for path, content in sorted(files.items()):
        if _is_list(path):
            found[path] = class_names.from_list(path, content)
        elif path.lower().endswith(_YAML) and (classes := class_names.from_yaml(path, content)) is not None:
            found[path] = classes
    if not found:
        raise InvalidInput(
            "no names of classes are here: data.yaml with names, classes.txt or obj.names is expected"
        )
    first, *others = found
    for path in others:
        if found[path].names != found[first].names:
            raise InvalidInput(f"{path}: its names of classes are not those of {first}: keep one of the two")
    return next((one for one in found.values() if one.pose), found[first])


def _is_list(path: str) -> bool:
    return path.rpartition("/")[2].lower() in _LISTS


def _label_path(image: str) -> str:
    """Where Ultralytics looks: `labels` for the last folder `images`, the ending replaced."""
    parts = _beside(image).split("/")
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return "/".join(parts)


def _beside(image: str) -> str:
    folder, slash, name = image.rpartition("/")
    stem, dot, _ = name.rpartition(".")
    return f"{folder}{slash}{stem if stem and dot else name}.txt"


def _home(path: str, *, test: bool) -> str | None:
    """The folder of all images like this one: `images/SPLIT` or `SPLIT/images`, None if it lies in none."""
    split = splits.of_folders(path)
    if split is None or (split == "test") != test or _is_list(_beside(path)):
        return None
    folders = path.split("/")[:-1]
    for end in range(len(folders), 1, -1):
        if splits.named(folders[end - 2]) == split and folders[end - 1] == "images":
            return "/".join(folders[:end])
        if splits.named(folders[end - 1]) == split and folders[end - 2] == "images":
            return "/".join(folders[:end])
    return None


def _regions(
    path: str, content: bytes, size: Size, classes: Classes, left_out: Counter[str]
) -> Iterator[tuple[str, Region]]:
    for line, row in enumerate(decoded(path, content).split("\n"), 1):
        if not (fields := row.split()):
            continue
        where = f"{path}, line {line}"
        try:
            number, *values = map(float, fields)
        except ValueError:
            raise InvalidInput(f"{where}: numbers are expected: class x y width height") from None
        if not (all(map(math.isfinite, values)) and number in classes.names):
            raise InvalidInput(f"{where}: the class is none of those that are named, or a value is no number")
        box = _box(where, values, size, left_out, pose=classes.pose)
        yield where, Region(classes.names[int(number)], on_grid(box))


def _box(where: str, values: list[float], size: Size, left_out: Counter[str], *, pose: bool) -> Box:
    if pose and len(values) > 4:
        left_out["keypoints"] += 1
        values = values[:4]
    if len(values) == 4:
        x, y, width, height = values
        if not (width > 0 and height > 0):
            raise InvalidInput(f"{where}: the box has no area: correct or remove it")
        left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    elif len(values) >= 6 and len(values) % 2 == 0:
        left_out["polygons, of which the bounding boxes are kept"] += 1
        xs, ys = values[::2], values[1::2]
        left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
    else:
        raise InvalidInput(
            f"{where}: {len(values)} numbers follow the class: x y width height, or the points of a polygon,"
            " are expected"
        )
    return Box(left * size.width, top * size.height, right * size.width, bottom * size.height)


def _row(number: int, box: Box, size: Size) -> str:
    box = on_grid(box)
    x, width = (box.xmin + box.xmax) / 2 / size.width, (box.xmax - box.xmin) / size.width
    y, height = (box.ymin + box.ymax) / 2 / size.height, (box.ymax - box.ymin) / size.height
    return f"{number} {_part(x)} {_part(y)} {_part(width)} {_part(height)}\n"


def _part(value: float) -> str:
    return f"{value:.{_DIGITS}f}".rstrip("0").rstrip(".")


def _yaml(homes: Mapping[splits.Split, Collection[str]], regions: Collection[str]) -> str:
    """data.yaml. Ultralytics demands `val`: where no images are called so, it judges by the test images."""
    train = homes["train"] or homes["val"] or homes["test"]
    folders = {"train": train, "val": homes["val"] or homes["test"] or train, "test": homes["test"]}
    lines = [
        f"{split}: [{', '.join(map(class_names.quoted, some))}]" for split, some in folders.items() if some
    ]
    names = [f"  {number}: {class_names.quoted(name)}" for number, name in enumerate(regions)]
    return "\n".join([*lines, f"nc: {len(names)}", "names:" if names else "names: []", *names, ""])


def _normal(path: str) -> str:
    return unicodedata.normalize("NFC", path)
