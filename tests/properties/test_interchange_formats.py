"""Formats of datasets: what is written is read again, twice is the same bytes, and no bytes do harm."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from appliance.datasets.interchange.annotated import Annotated, Declared, Region, Size
from appliance.datasets.interchange.archive import MOST_PART
from appliance.datasets.interchange.formats import FORMATS, detect
from appliance.datasets.interchange.placing import fitting, settled
from appliance.datasets.records import Box
from appliance.errors import InvalidInput

NAMES = sorted(FORMATS)
SIZE = Size(100, 50)
LONG = "é" * 120

letters = st.characters(exclude_categories=["Cs"])
# What archives let through as a part of a path.
part = st.one_of(
    st.sampled_from(["train", "test", "val", "images", "labels", "a", "é", "e\u0301", LONG]),
    st.sampled_from(["x.jpg", "x.png", "classes.jpg"]),
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=8),
).filter(lambda one: one not in {".", ".."})
paths = st.lists(part, min_size=1, max_size=4).map("/".join)
label_names = st.one_of(
    st.sampled_from(["cat", "train", "test", "=1+1", "a;b,c", " 'x", "- y: #", "1", "null", "a\x85b", "{"]),
    st.text(letters, min_size=1, max_size=12).filter(str.strip),
)
values = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))
labels = st.dictionaries(label_names, values, max_size=2)
anything = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.floats(-1e300, 1e300),
    st.text(letters, max_size=8),
    st.sampled_from([None, True, {}, [], {"a": [1, {"b": None}]}, [[0.5]], "=1"]),
)
meta_data = st.dictionaries(
    st.one_of(st.sampled_from(["label", "a"]), st.text(letters)), anything, max_size=2
)


@st.composite
def sides(draw: st.DrawFn, length: int) -> tuple[float, float]:
    side = st.one_of(st.integers(0, length), st.floats(0, length, allow_subnormal=False))
    low, high = sorted((draw(side), draw(side)))
    assume(low < high)
    return low, high


@st.composite
def images(draw: st.DrawFn, name: str) -> Annotated:
    size = Size(draw(st.integers(1, 70_000)), draw(st.integers(1, 70_000)))
    rich = draw(st.booleans())
    regions = []
    for _ in range(draw(st.integers(0, 3))):
        (xmin, xmax), (ymin, ymax) = draw(sides(size.width)), draw(sides(size.height))
        region = Region(draw(label_names), Box(xmin, ymin, xmax, ymax))
        regions.append(replace(region, labels=draw(labels), meta_data=draw(meta_data)) if rich else region)
    said: dict[str, float | None] = draw(labels) if rich else {}
    if not regions:
        said = draw(labels) if draw(st.booleans()) else {draw(label_names): None}
    noted = draw(meta_data) if draw(st.booleans()) else {}
    return Annotated(name, size, said, tuple(regions), draw(st.booleans()), noted)


@st.composite
def datasets(draw: st.DrawFn) -> list[Annotated]:
    return [draw(images(name)) for name in draw(st.lists(paths, unique=True, max_size=4))]


def declared(dataset: list[Annotated]) -> Declared:
    regions = [region for one in dataset for region in one.regions]
    names = [name for one in dataset for name in one.labels] + [
        name for one in regions for name in one.labels
    ]
    return Declared(tuple(dict.fromkeys([*names, "of none"])), tuple({one.label: None for one in regions}))


def placed(name: str, dataset: list[Annotated]) -> list[Annotated]:
    """The images under the names that they have in the tree, without what is not admitted there."""
    one = FORMATS[name]
    admitted = list[Annotated]()
    for image in dataset:
        with contextlib.suppress(InvalidInput):
            one.check([image])
            admitted.append(replace(image, name=fitting(image.name, (".jpg", ".png"), one.describes)))
    paths = settled([one.place(image) for image in admitted], one.files_of)
    return [replace(image, name=path) for image, path in zip(admitted, paths, strict=True)]


def written(name: str, dataset: list[Annotated], names: Declared) -> dict[str, bytes]:
    files = FORMATS[name].write(iter(dataset), names.labels, names.regions)
    return {path: b"".join(content) for path, content in files}


def read(name: str, files: Mapping[str, bytes], dataset: list[Annotated]) -> list[Annotated]:
    """All images, with nothing said about those that the files are silent about."""
    found = {one.name: one for one in FORMATS[name].read(files, {one.name: one.size for one in dataset})}
    return [found.get(one.name, Annotated(one.name, one.size)) for one in dataset]


def near(one: Annotated) -> Annotated:
    """With boxes to a millionth of a pixel."""
    regions = (
        replace(region, box=Box(*(round(getattr(region.box, side), 6) for side in Box.__slots__)))
        for region in one.regions
    )
    return replace(one, regions=tuple(regions))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(dataset=datasets())
def test_what_is_written_is_read_again_and_written_alike(name: str, dataset: list[Annotated]) -> None:
    dataset = placed(name, dataset)
    assert all(len(part.encode()) <= MOST_PART for one in dataset for part in one.name.split("/"))
    assert all(FORMATS[name].place(one) == one.name for one in dataset)
    names = declared(dataset)
    files = written(name, dataset, names)
    again = read(name, files, dataset)
    assert again == ([near(one) for one in dataset] if name in {"coco", "yolo"} else dataset)
    assert written(name, again, names) == files
    assert all(FORMATS[name].describes(path) for path in files)
    if name in {"coco", "yolo"}:
        assert FORMATS[name].declared(files) == (names if name == "coco" else Declared((), names.regions))


def tree(name: str) -> tuple[dict[str, Size], dict[str, bytes]]:
    """A small dataset that says all that its format can."""
    cat, dog = Region("cat", Box(1, 2, 30.5, 40)), Region("dog \U0001f415", Box(0, 0, 100, 50))
    boxes = (cat, dog)
    label: dict[str, float | None] = {"é": None}
    one = {
        "coco": Annotated("a.jpg", SIZE, {"é": 0.5}, (cat, replace(dog, labels=label)), meta_data={"a": [1]}),
        "csv": Annotated("a.jpg", SIZE, {"é": 0.5}, boxes, meta_data={"a": [1]}),
        "imagefolder": Annotated("a.jpg", SIZE, label, meta_data={"a": [1]}),
        "yolo": Annotated("a.jpg", SIZE, regions=boxes),
    }[name]
    dataset = placed(name, [one, replace(one, name="b.jpg", test=True)])
    assert len(dataset) == 2
    return {one.name: one.size for one in dataset}, written(name, dataset, declared(dataset))


TREES = {name: tree(name) for name in NAMES}
PIECES = [
    b"NaN",
    b"1e999",
    b"-1",
    b"null",
    b"[",
    b"{",
    b'"',
    b"\n",
    b"\r",
    b",",
    b"\0",
    b"../",
    b"9" * 5000,
    b": ",
]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=200, derandomize=True)
@given(data=st.data())
def test_changed_bytes_are_read_or_refused(name: str, data: st.DataObject) -> None:
    sizes, files = TREES[name]
    path = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[path])
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(start + 4, len(content))))
        content[start:end] = data.draw(st.one_of(st.binary(max_size=4), st.sampled_from(PIECES)))
    with contextlib.suppress(InvalidInput):
        FORMATS[name].declared({**files, path: bytes(content)})
        for one in FORMATS[name].read({**files, path: bytes(content)}, sizes):
            assert one.size == sizes[one.name]
            assert all(0 <= region.box.xmin < region.box.xmax <= 100 for region in one.regions)
            assert all(0 <= region.box.ymin < region.box.ymax <= 50 for region in one.regions)


@pytest.mark.parametrize("name", NAMES)
@given(content=st.one_of(st.binary(), st.text(letters).map(str.encode)))
def test_any_bytes_are_read_or_refused(name: str, content: bytes) -> None:
    files = dict.fromkeys(("data.yaml", "labels/x.txt", "x.json", "x.csv", "metadata.jsonl"), content)
    for path in files:
        with contextlib.suppress(InvalidInput):
            list(FORMATS[name].read({path: content}, {"images/x.jpg": Size(10, 10)}))


@given(st.lists(paths))
def test_any_tree_has_a_format_or_is_refused(paths: list[str]) -> None:
    with contextlib.suppress(InvalidInput):
        assert detect(paths) in NAMES
