"""CSV: a row for each label of an image and for each box on it, under a header that names the columns.

Written are `image, label, value, box_label, xmin, ymin, xmax, ymax, test, meta_data` (a JSON object, in the
first row of an image). Read is also what TensorFlow's tools, Roboflow and spreadsheets write: `filename` or
`path`, `class`, `split`, `width` and `height`; `;` or tabs between the cells; UTF-16. In a row with a box and
no `box_label`, `label` is the name of the box. Columns of other names are left out.

Cells hold the very words, also those that begin with = + - @, which a spreadsheet takes for a formula unless
it is told to import text: to write them otherwise would change what is read again.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from appliance.datasets.interchange import splits
from appliance.datasets.interchange.annotated import ABSENT, FOREIGN, Annotated, Format, Region, Size
from appliance.datasets.interchange.gathering import Gathering, check_size
from appliance.datasets.interchange.names import Names
from appliance.datasets.interchange.text import MOST_FIELD, decoded, number, unread
from appliance.datasets.records import Box
from appliance.errors import InvalidInput

_WRITTEN = ("image", "label", "value", "box_label", "xmin", "ymin", "xmax", "ymax", "test", "meta_data")
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_ALIASES = {
    **{name: name for name in (*_WRITTEN, "width", "height")},
    **dict.fromkeys(
        ("filename", "file_name", "file", "path", "filepath", "image_path", "image_name"), "image"
    ),
    **dict.fromkeys(("class", "class_name", "category", "label_name"), "label"),
    **dict.fromkeys(("split", "set", "ml_use"), "test"),
    "x_min": "xmin",
    "y_min": "ymin",
    "x_max": "xmax",
    "y_max": "ymax",
    "metadata": "meta_data",
    "x1": "xmin",
    "y1": "ymin",
    "x2": "xmax",
    "y2": "ymax",
}
_TEST = {
    **dict.fromkeys(("true", "1", "yes", "test", "testing"), True),
    **dict.fromkeys(("false", "0", "no", "train", "training"), False),
    **dict.fromkeys(("val", "valid", "validation", "unassigned"), False),
}
_PIECE = 64 << 10

Row = Mapping[str, str]


class Csv(Format):
    """Labels with values, boxes, test images and meta data; of boxes, no more than their name."""

    def describes(self, path: str) -> bool:
        """Any `.csv` or `.tsv`."""
        return path.lower().endswith((".csv", ".tsv"))

    def read(
        self, files: Mapping[str, bytes], sizes: Mapping[str, Size], left_out: Counter[str] | None = None
    ) -> Iterable[Annotated]:
        """As `Format.read`; where no column says so, an image is a test image by the name of the CSV file or
        of a folder above that, else of one of its own.
        """
        counts = Counter[str]() if left_out is None else left_out
        gathering, names = Gathering(sizes), Names(sizes)
        tables = rows = found = 0
        for path, content in sorted(files.items()):
            table = _rows(path, content, counts)
            if table is None:
                counts[FOREIGN] += 1
                continue
            tables += 1
            for line, row in table:
                rows += 1
                image = _image(names, path, line, row)
                if image is None:
                    counts[ABSENT] += 1
                    continue
                found += 1
                _say(gathering, path, f"{path}, line {line}", image, row)
        if not tables:
            raise InvalidInput("no CSV file is here whose first line names a column image, filename or path")
        if rows and not found:
            raise InvalidInput("no image of a CSV file is here: compare its paths with those of the images")
        return gathering

    def check(self, annotated: Iterable[Annotated]) -> None:
        """Raises InvalidInput for labels and meta data of boxes."""
        for one in annotated:
            if any(region.labels or region.meta_data for region in one.regions):
                raise InvalidInput(f"{one.name}: csv keeps no labels or meta data of boxes: take coco")

    def place(self, annotated: Annotated) -> str:
        """Where it is."""
        return annotated.name

    def write(
        self,
        annotated: Iterable[Annotated],
        labels: Collection[str],  # noqa: ARG002 - as all formats
        regions: Collection[str],  # noqa: ARG002 - as all formats
    ) -> Iterator[tuple[str, Iterator[bytes]]]:
        """As `Format.write`: one file, `annotations.csv`."""
        yield "annotations.csv", _written(annotated)


def _written(annotated: Iterable[Annotated]) -> Iterator[bytes]:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _WRITTEN)
    writer.writeheader()
    for one in annotated:
        first: dict[str, object] = {"image": one.name, "test": "true" if one.test else "false"}
        more = {"meta_data": msgspec.json.encode(one.meta_data).decode()} if one.meta_data else {}
        for said in _said(one):
            writer.writerow(first | more | said)
            more = {}
        if text.tell() >= _PIECE:
            yield text.getvalue().encode()
            text.seek(0)
            text.truncate()
    yield text.getvalue().encode()


def _said(annotated: Annotated) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [
        {"label": label, "value": "" if value is None else number(value)}
        for label, value in annotated.labels.items()
    ]
    for region in annotated.regions:
        sides = (number(getattr(region.box, side)) for side in _SIDES)
        rows.append({"box_label": region.label, **dict(zip(_SIDES, sides, strict=True))})
    return rows or [{}]


def _rows(path: str, content: bytes, left_out: Counter[str]) -> Iterator[tuple[int, Row]] | None:
    """The rows by the lines in which they end, None if no column is that of images."""
    text = decoded(path, content)
    head = next(iter(io.StringIO(text, newline="")), "")
    columns: list[str | None] = []
    delimiter, spaced = ",", False
    for candidate in ",;\t":
        cells = _cells(head, candidate)
        known = [_ALIASES.get(cell.strip().lower().replace(" ", "_")) for cell in cells]
        if "image" in known and len(known) > len(columns):
            columns, delimiter, spaced = known, candidate, any(cell.startswith(" ") for cell in cells)
    if not columns:
        return None
    for name in _ALIASES.values():
        if columns.count(name) > 1:
            raise InvalidInput(f"{path}, line 1: two columns say the same ({name}): keep one of them")
    if not {"label", "box_label", "test", "meta_data"}.intersection(columns):
        raise InvalidInput(
            f"{path}, line 1: a column label is expected, with a row for each label of an image"
        )
    if unknown := columns.count(None):
        left_out["columns of other names"] += unknown
    return _of_columns(path, text, columns, delimiter, spaced=spaced)


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []


def _of_columns(
    path: str, text: str, columns: list[str | None], delimiter: str, *, spaced: bool
) -> Iterator[tuple[int, Row]]:
    lines = io.StringIO(text, newline="")
    csv.field_size_limit(MOST_FIELD)
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=spaced, strict=True)
    try:
        next(reader)
        for cells in reader:
            if not any(cells):
                continue
            if len(cells) > len(columns):
                raise InvalidInput(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, the header names {len(columns)}: a"
                    " cell that contains the delimiter is put in quotes"
                )
            row = {name: cell for name, cell in zip(columns, cells, strict=False) if name and cell}
            yield reader.line_num, row
    except csv.Error as error:
        raise InvalidInput(f"{path}, line {reader.line_num}: {error}") from None


def _image(names: Names, path: str, line: int, row: Row) -> str | None:
    place = f"line {line}"
    written = row.get("image", "")
    if not written.strip():
        raise InvalidInput(f"{path}, {place}: the row names no image")
    return names.find(written, path, place) or names.find(written.strip(), path, place)


def _say(gathering: Gathering, path: str, where: str, image: str, row: Row) -> None:
    label, value = row.get("label"), row.get("value")
    box_label = row.get("box_label")
    box = _box(where, row)
    if box is not None and box_label is None:
        box_label, label = label, None
    if (box is None) != (box_label is None):
        raise InvalidInput(
            f"{where}: a box needs a label and all of {', '.join(_SIDES)}, and its label a box"
        )
    if value is not None and label is None:
        raise InvalidInput(f"{where}: a value without a label")
    if label is not None:
        gathering.label(where, image, label, None if value is None else _number(where, "value", value))
    if box is not None and box_label is not None:
        size = gathering.sizes[image]
        if "width" in row and "height" in row:
            sides = (_number(where, side, row[side]) for side in ("width", "height"))
            check_size(where, Size(*map(round, sides)), size)
        gathering.region(where, image, Region(box_label, box))
    test = row.get("test")
    if test is None:
        part = splits.of_path(path) or splits.of_folders(image)
        gathering.test(where, image, test=part == "test")
    elif (known := _TEST.get(test.strip().lower())) is not None:
        gathering.test(where, image, test=known)
    else:
        raise InvalidInput(f"{where}: test: true or false, or the name of a split, is expected")
    if (meta_data := row.get("meta_data")) is not None:
        gathering.meta_data(where, image, _object(where, meta_data))


def _box(where: str, row: Row) -> Box | None:
    given = [row[side] for side in _SIDES if side in row]
    if not given:
        return None
    if len(given) < len(_SIDES):
        raise InvalidInput(f"{where}: a box has {', '.join(_SIDES)}: one of them is missing")
    return Box(*(_number(where, side, row[side]) for side in _SIDES))


def _number(where: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidInput(f"{where}: {name}: a number with a point is expected")
    return value


def _object(where: str, text: str) -> Mapping[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{where}: meta_data: {unread(error, 'a JSON object is expected')}") from None
