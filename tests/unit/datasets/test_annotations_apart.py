"""Annotations are read in a process of their own, as they would be here, whatever they are."""

import os
import resource
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import psutil
import pytest

from appliance.api.payload import Form, parse
from appliance.datasets.interchange.annotated import Annotated, Region, Size
from appliance.datasets.interchange.formats import FORMATS
from appliance.datasets.interchange.parsing import MOST_KEPT, Held, Parsed, Parsing
from appliance.datasets.labels import MAX_LABELS
from appliance.datasets.records import Box
from appliance.datasets.words import checked_meta_data
from appliance.errors import InvalidInput, TooLarge, WorkerRefused

SIZES = {f"images/train/{name}.jpg": Size(640, 480) for name in ("one", "two", "žluť")}
BOXES = [
    Annotated(name, size, regions=(Region("worm", Box(1, 2, 3.5, 4)), Region("leaf", Box(0, 0, 640, 480))))
    for name, size in SIZES.items()
]
SAID = [
    Annotated(name, size, {"red": None, "weight": 1.5}, test=True, meta_data={"shelf": [1, {"a": None}]})
    for name, size in SIZES.items()
]


HELD: dict[str, Held] = {name: (number, *size) for number, (name, size) in enumerate(SIZES.items())}


async def read(format_name: str | None, files: dict[str, bytes]) -> tuple[Parsed, list[Annotated]]:
    async with Parsing(format_name) as parsing:
        for path, content in files.items():
            await parsing.add(path, pieces(content))
        parsed = await parsing.read(HELD)
        return parsed, [one async for batch in parsed.batches() for one in batch]


async def pieces(content: bytes) -> AsyncIterator[memoryview]:
    for start in range(0, len(content), 700_000):
        yield memoryview(content)[start : start + 700_000]


def written(format_name: str, said: list[Annotated]) -> dict[str, bytes]:
    files = FORMATS[format_name].write(said, ["red", "weight"], ["worm", "leaf"])
    return {path: b"".join(pieces) for path, pieces in files}


@pytest.mark.parametrize(
    ("format_name", "said"),
    [
        ("coco", BOXES),
        ("yolo", BOXES),
        ("csv", BOXES),
        ("coco", SAID),
        ("csv", SAID),
    ],
)
async def test_every_format_is_read_as_here(format_name: str, said: list[Annotated]) -> None:
    files = written(format_name, said)
    expected = list(FORMATS[format_name].read(files, SIZES, Counter()))
    assert expected
    parsed, found = await read(format_name, dict(files))
    assert found == expected
    sides = [repr(region.box) for one in found for region in one.regions]
    assert sides == [repr(region.box) for one in expected for region in one.regions]  # 1 is not 1.0
    declared = FORMATS[format_name].declared(files)
    assert parsed.labels[: len(declared.labels)] == [*declared.labels]
    if said is BOXES:
        assert parsed.regions == ["worm", "leaf"]
    assert parsed.several == (len(said[0].labels) > 1)


async def test_the_format_is_found_and_the_rest_ignored() -> None:
    files = written("coco", BOXES) | {"labels.csv": b"image,label\n"}
    parsed, found = await read(None, files)
    assert (parsed.format, parsed.ignored, len(found)) == ("coco", 1, 3)


async def test_files_of_any_number_and_size_are_put_together_again() -> None:
    texts = {f"labels/train/{name}.txt": b"0 0.5 0.5 0.1 0.1\n" for name in map(str, range(2500))}
    texts |= {"labels/train/one.txt": b"0 0.5 0.5 0.1 0.1\n" * 900 + b"\n" * 2_500_000}
    parsed, found = await read(None, {"data.yaml": b"names: [worm]", **texts})
    assert [(one.name, len(one.regions)) for one in found] == [("images/train/one.jpg", 900)]
    assert parsed.left_out == {"label files of images that are not there": 2500}


async def test_more_than_is_kept_is_refused_while_it_comes() -> None:
    async def endless() -> AsyncIterator[memoryview]:
        for _ in range(2 * MOST_KEPT >> 20):
            yield memoryview(bytes(1 << 20))
        raise AssertionError("it is read on")

    async with Parsing("csv") as parsing:
        with pytest.raises(TooLarge, match="256 MiB"):
            await parsing.add("labels.csv", endless())


async def test_a_parser_that_is_lost_is_not_taken_for_one_that_read_nothing() -> None:
    others = psutil.Process().children()
    async with Parsing("csv") as parsing:
        await parsing.add("labels.csv", pieces(b"image,label\none.jpg,red\n" + b"\n" * (1 << 20)))
        (child,) = (one for one in psutil.Process().children() if one not in others)
        child.kill()
        with pytest.raises(TooLarge, match="could not be read"):
            await parsing.read(HELD)


async def test_what_cannot_be_kept_is_counted() -> None:
    table = "image,label\nelsewhere.jpg,red\none.jpg,red\n".encode("utf-16")
    parsed, found = await read("csv", {"labels.csv": table})
    assert (sum(parsed.left_out.values()), len(found)) == (1, 1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b"{" * 100_000),
        ("a.json", b'{"images": ' + b"[" * 100_000),
        ("labels.csv", b"image,label\n\xff"),
        ("data.yaml", b"names: &a [*a]"),
    ],
)
async def test_what_cannot_be_read_is_refused_with_its_place(name: str, content: bytes) -> None:
    format_name = {"json": "coco", "csv": "csv", "yaml": "yolo"}[name.rpartition(".")[2]]
    with pytest.raises(InvalidInput, match=name):
        await read(format_name, {name: content})


@pytest.mark.parametrize("count", [MAX_LABELS + 1, 300_000])
async def test_more_declared_labels_than_a_dataset_has_are_refused(count: int) -> None:
    categories = [{"id": number, "name": f"c{number}"} for number in range(count)]
    document = {"images": [{"id": 1, "file_name": "one.jpg"}], "categories": categories}
    with pytest.raises(InvalidInput, match=f"at most {MAX_LABELS}"):
        await read("coco", {"x.json": msgspec.json.encode(document)})


async def test_as_many_declared_labels_as_a_dataset_has_are_read() -> None:
    names = b"\n".join(b"%d" % number for number in range(MAX_LABELS))
    parsed, _ = await read("yolo", {"classes.txt": names})
    assert len(parsed.regions) == MAX_LABELS


async def test_a_declared_label_without_a_name_is_refused() -> None:
    with pytest.raises(InvalidInput, match="a label whose name: 1 to 200 characters"):
        await read("yolo", {"data.yaml": b"names: [worm, '']"})


async def test_without_descriptors_annotations_are_refused_and_nothing_is_left() -> None:
    before, children = open_descriptors(), psutil.Process().children()
    refusals: list[WorkerRefused] = []
    for spare in range(20):
        try:
            with descriptors(spare):
                await read("csv", {"labels.csv": b"image,label\none.jpg,red\n"})
            break
        except WorkerRefused as refusal:
            refusals.append(refusal)
            assert open_descriptors() == before
            assert psutil.Process().children() == children
    else:
        pytest.fail("it is refused however many descriptors are left")
    assert len(refusals) > 5, "not all that takes one was met"
    assert {str(one) for one in refusals} == {"annotations cannot be read at present: Too many open files"}
    assert {one.told for one in refusals} == {
        "the appliance cannot read annotations at present: run the import again in a while"
    }


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@contextmanager
def descriptors(spare: int) -> Iterator[None]:
    """This process can have so many more than it has."""
    limits, held = resource.getrlimit(resource.RLIMIT_NOFILE), list[int]()
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, open_descriptors())) + spare + 1, limits[1]))
    try:
        with suppress(OSError):
            while True:
                held.append(os.dup(0))
        for _ in range(spare):
            os.close(held.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in held:
            os.close(fd)


async def test_reading_leaves_no_word_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    await read("csv", {"labels.csv": b"image,label\none.jpg,red\n"})
    assert caplog.text == ""


def nested(levels: int) -> str:
    """A value of so many levels, its innermost list included."""
    return "[" * levels + "]" * levels


TOO_MUCH = {"1" + "0" * 30: "an integer has more than 64 bit", nested(500): "nested deeper than 63 levels"}
OF_IMAGE = '{"images": [{"id": 1, "file_name": "one.jpg", "appliance": {"meta_data": {"x": VALUE}}}]}'
OF_BOX = """{"images": [{"id": 1, "file_name": "one.jpg"}], "categories": [{"id": 1, "name": "worm"}],
    "annotations": [{"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4],
                     "appliance": {"meta_data": {"x": VALUE}}}]}"""
LINES = '{"file_name": "two.jpg"}\n{"file_name": "one.jpg", "x": VALUE}'
TABLE = 'image,meta_data\none.jpg,"{""x"": VALUE}"\n'


@pytest.mark.parametrize(
    ("format_name", "content", "place"),
    [
        ("coco", OF_IMAGE, "x.json, image 1"),
        ("coco", OF_BOX, "x.json, annotation 5 of images/train/one.jpg"),
        ("imagefolder", LINES, "metadata.jsonl, line 2"),
        ("csv", TABLE, "x.csv, line 2"),
    ],
)
@pytest.mark.parametrize(("value", "why"), TOO_MUCH.items(), ids=["large", "deep"])
async def test_meta_data_that_could_not_be_read_again_is_refused_by_file_and_place(
    format_name: str, content: str, place: str, value: str, why: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await read(format_name, {place.partition(",")[0]: content.replace("VALUE", value).encode()})
    assert str(caught.value) == f"{place}: meta_data: {why}"


async def test_imports_take_the_meta_data_that_requests_take() -> None:
    integers = (1 << 64) - 1, 1 << 64, -(1 << 63), -(1 << 63) - 1
    taken = []
    for value in (*map(nested, range(60, 66)), *map(str, integers)):
        written = f'{{"x": {value}}}'
        try:
            await parse(f'{{"meta_data": {written}}}'.encode(), Form.FIELDS)
        except InvalidInput:
            with pytest.raises(InvalidInput):
                checked_meta_data(msgspec.json.decode(written))
        else:
            checked_meta_data(msgspec.json.decode(written))
            taken.append(value)
    assert taken == [nested(60), nested(61), nested(62), *map(str, integers[::2])]
