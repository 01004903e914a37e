"""Folders named after the labels of the images in them, as torchvision and Hugging Face read them.

`CLASS/x.jpg`, or `SPLIT/CLASS/x.jpg` with the splits train, val (valid, validation, dev) and test; images
directly in a split, or in no folder, have no label. In a split, the first folder is the class, elsewhere the
last one. The images of `test` are test images; the store knows no other split, and `val` survives as a part
of the image's name, which an export keeps.

`metadata.csv` or `metadata.jsonl` beside or above the images, with `file_name`, says what else there is: its
`label` stands instead of the folder's, other columns are meta data. Written is `metadata.jsonl`, and only
where an image has meta data: then it names all images below its folder, as Hugging Face demands.
"""

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from appliance.datasets.interchange import splits
from appliance.datasets.interchange.annotated import ABSENT, Annotated, Format, Size
from appliance.datasets.interchange.gathering import Gathering
from appliance.datasets.interchange.names import Names, flat, is_left_by_systems
from appliance.datasets.interchange.text import MOST_FIELD, Spool, decoded, unread
from appliance.errors import InvalidInput

_CSV, _JSON_LINES = "metadata.csv", "metadata.jsonl"
_FILE_NAME, _LABEL = "file_name", "label"


class _Layout(NamedTuple):
    """What the path of an image says; `base` is the folder of the split, or none."""

    label: str | None
    test: bool
    base: str


class ImageFolder(Format):
    """One label for an image at most, no values, no boxes."""

    def describes(self, path: str) -> bool:
        """`metadata.csv` and `metadata.jsonl`."""
        return path.rpartition("/")[2].lower() in {_CSV, _JSON_LINES}

    def read(
        self, files: Mapping[str, bytes], sizes: Mapping[str, Size], left_out: Counter[str] | None = None
    ) -> Iterable[Annotated]:
        """As `Format.read`; an image in a folder that is no split has that one's name as its label."""
        counts = Counter[str]() if left_out is None else left_out
        gathering, names = Gathering(sizes), Names(sizes)
        described = set[str]()
        for path, content in sorted(files.items()):
            for place, row in _rows(path, content):
                file_name = row.pop(_FILE_NAME, None)
                if not isinstance(file_name, str):
                    raise InvalidInput(f"{path}, {place}: file_name: the path of an image is expected")
                if (image := names.find(file_name, path, place)) is None:
                    counts[ABSENT] += 1
                    continue
                described.add(image)
                _say(gathering, f"{path}, {place}", image, row)
        for image in sizes:
            layout = _layout(image)
            if layout.test:
                gathering.test(image, image, test=True)
            if layout.label is not None and image not in described:
                gathering.label(image, image, layout.label)
        return gathering

    def check(self, annotated: Iterable[Annotated]) -> None:
        """Raises InvalidInput for boxes, values, a second label, one that cannot be a folder, and meta data
        under the keys file_name and label.
        """
        for one in annotated:
            if one.regions or len(one.labels) > 1 or any(value is not None for value in one.labels.values()):
                raise InvalidInput(
                    f"{one.name}: imagefolder has one label for an image, without a value, and no boxes: take"
                    " csv or coco"
                )
            if not all(map(_can_be_folder, one.labels)):
                raise InvalidInput(f"{one.name}: its label cannot be the name of a folder: take csv or coco")
            if {_FILE_NAME, _LABEL} & one.meta_data.keys():
                raise InvalidInput(
                    f"{one.name}: its meta data have a key file_name or label, which imagefolder has itself:"
                    " take csv or coco"
                )

    def place(self, annotated: Annotated) -> str:
        """Where it is when its folders say what is said of it, else `SPLIT/CLASS/`, or `SPLIT/`."""
        label = next(iter(annotated.labels), None)
        layout = _layout(annotated.name)
        if (layout.label, layout.test) == (label, annotated.test):
            return annotated.name
        folders = ["test" if annotated.test else "train", *([] if label is None else [label])]
        return "/".join([*folders, flat(annotated.name)])

    def write(
        self,
        annotated: Iterable[Annotated],
        labels: Collection[str],  # noqa: ARG002 - as all formats
        regions: Collection[str],  # noqa: ARG002 - as all formats
    ) -> Iterator[tuple[str, Iterator[bytes]]]:
        """As `Format.write`: `metadata.jsonl` for each split that has meta data, and nothing else."""
        spools: dict[str, Spool] = {}
        needed = set[str]()
        for one in annotated:
            path = self.place(one)
            base = _layout(path).base
            line = {_FILE_NAME: path.removeprefix(base)}
            if one.labels:
                line[_LABEL] = next(iter(one.labels))
            spools.setdefault(base, Spool()).write(msgspec.json.encode({**line, **one.meta_data}) + b"\n")
            if one.meta_data:
                needed.add(base)
        for base in sorted(needed):
            yield f"{base}{_JSON_LINES}", spools[base].pieces()


def _layout(path: str) -> _Layout:
    *folders, _ = path.split("/")
    inside = [index for index, folder in enumerate(folders) if splits.named(folder) is not None]
    with_class = [index for index in inside if index + 1 < len(folders)]
    if not inside:
        return _Layout(folders[-1] if folders else None, test=False, base="")
    index = with_class[-1] if with_class else inside[-1]
    return _Layout(
        folders[index + 1] if with_class else None,
        test=splits.named(folders[index]) == "test",
        base="/".join([*folders[: index + 1], ""]),
    )


def _say(gathering: Gathering, where: str, image: str, row: dict[str, Any]) -> None:
    label = row.pop(_LABEL, None)
    if isinstance(label, bool) or not isinstance(label, str | int | None):
        raise InvalidInput(f"{where}: label: a text or a number is expected")
    if label not in {None, ""}:
        gathering.label(where, image, str(label))
    if row:
        gathering.meta_data(where, image, row)


def _rows(path: str, content: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a metadata file with their places in it."""
    text = decoded(path, content)
    if path.lower().endswith(_CSV):
        yield from _of_csv(path, text)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                what = unread(error, "a JSON object is expected on each line")
                raise InvalidInput(f"{path}, line {number}: {what}") from None


def _of_csv(path: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(MOST_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if _FILE_NAME not in header or len(set(header)) < len(header):
            raise InvalidInput(
                f"{path}, line 1: columns with names of their own, file_name among them, are expected"
            )
        for cells in reader:
            if len(cells) > len(header):
                raise InvalidInput(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, the header names {len(header)}"
                )
            if any(cells):
                row = {name: cell for name, cell in zip(header, cells, strict=False) if cell}
                yield f"line {reader.line_num}", row
    except csv.Error as error:
        raise InvalidInput(f"{path}, line {reader.line_num}: {error}") from None


def _can_be_folder(label: str) -> bool:
    return (
        label.isprintable()
        and label.lower() not in {_CSV, _JSON_LINES}  # `write` may have a file of this name beside it
        and not is_left_by_systems(label)
        and not {"/", "\\"} & set(label)
        and len(label.encode()) <= 255
    )
