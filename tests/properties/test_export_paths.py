"""Whatever names imports have brought, in every format they become one tree that archives can hold."""

import asyncio
import unicodedata
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.datasets.interchange.annotated import Annotated, Region, Size
from appliance.datasets.interchange.archive import END, MOST_NAME, Archive, checked, header
from appliance.datasets.interchange.formats import FORMATS, LEFT_OUT, kind_of
from appliance.datasets.interchange.placing import fitting, settled
from appliance.datasets.records import Box

SIZE = Size(100, 50)
ENDINGS = ((".jpg", ".jpeg", ".jpe", ".jfif"), (".png",), (".webp",))
A, LONG = "a" * 251, "é" * 124

folder = st.one_of(
    st.sampled_from(["train", "test", "images", "labels", "a", "b", "é", "e\u0301", LONG, "d" * 255]),
    st.sampled_from(["a.jpg", "a-2.jpg", "a_b.jpg", "é.jpg", "e\u0301.jpg", "a.txt", f"{A}.jpg"]),
    st.sampled_from(["annotations.csv", "instances_train.json", "data.yaml", "metadata.jsonl", LEFT_OUT]),
)
file = st.one_of(
    st.sampled_from(["a.jpg", "a.png", "a.bmp", "A.JPG", "a-2.jpg", "b.jpg", "a_b.jpg", "a.jpg.png"]),
    st.sampled_from([f"{A}.jpg", f"{A}.bmp", f"{LONG}.jpeg", "é.jpg", "e\u0301.jpg", "classes.jpg"]),
)
path = st.builds(lambda folders, file: "/".join([*folders, file]), st.lists(folder, max_size=5), file)
names = st.lists(
    path.filter(lambda one: len(one.encode()) <= MOST_NAME),
    max_size=8,
    unique_by=lambda one: unicodedata.normalize("NFC", one),
)


@st.composite
def datasets(draw: st.DrawFn, format_name: str) -> list[tuple[Annotated, tuple[str, ...]]]:
    """Images with something said about them, and what their names may end with as they are stored."""
    found = []
    for name in draw(names):
        assert checked(name) == name
        assert kind_of(name) == "image"
        one = Annotated(name, SIZE, test=draw(st.booleans()))
        if format_name != "yolo":
            labels = st.sampled_from([{}, {"train": None}, {"a": None}, {"a.jpg": None}, {LEFT_OUT: None}])
            one = replace(one, labels=draw(labels), meta_data=draw(st.sampled_from([{}, {"x": 1}])))
        if format_name != "imagefolder":
            box = Region("thing", Box(1, 2, 3, draw(st.integers(4, 50))))
            one = replace(one, regions=(box,) * draw(st.integers(0, 1)))
        found.append((one, draw(st.sampled_from(ENDINGS))))
    return found


def arranged(format_name: str, dataset: list[tuple[Annotated, tuple[str, ...]]]) -> list[Annotated]:
    """As an export puts them."""
    chosen = FORMATS[format_name]
    fit = [replace(one, name=fitting(one.name, endings, chosen.describes)) for one, endings in dataset]
    paths = settled([chosen.place(one) for one in fit], chosen.files_of)
    return [replace(one, name=path) for one, path in zip(fit, paths, strict=True)]


async def taken(paths: Iterable[str]) -> list[str]:
    """What the strict reader finds in a tar of these files, all without a byte."""

    async def pieces() -> AsyncIterator[bytes]:
        for path in paths:
            yield header(path, 0)
        yield END

    return [member.name async for member in Archive(pieces())]


@pytest.mark.parametrize("format_name", sorted(FORMATS))
@settings(max_examples=100, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_dataset_can_be_exported_and_is_the_same_again(format_name: str, data: st.DataObject) -> None:
    exported_and_read_again(format_name, data.draw(datasets(format_name)))


@pytest.mark.parametrize("format_name", sorted(FORMATS))
def test_names_that_get_into_each_others_way(format_name: str) -> None:
    names = ["\u00e9.jpg/x.jpg", "e\u0301.jpg", f"{A}.jpg/x.jpg", f"{A}.jpg", f"c/{A}.bmp", "a.png", "a.jpg"]
    names += ["a/b.jpg", "a_b.jpg", "images/train/a_b.jpg", "images/train/a_b-2.jpg/q.jpg"]
    names += ["\u00e9/b.jpg", "e\u0301_b.jpg", "/".join(["d" * 200] * 5 + ["e" * 13, "y.bmp"])]
    names += ["train/images/labels/x.jpg", "train/images/images/x.jpg"]
    dataset = [Annotated(name, SIZE) for name in names]
    if format_name != "imagefolder":  # each has something that is its own
        dataset = [
            replace(one, regions=(Region("thing", Box(0, 0, number, 1)),))
            for number, one in enumerate(dataset[:-2], 1)
        ] + [dataset[-2], replace(dataset[-1], regions=(Region("thing", Box(0, 0, 90, 1)),))]
    exported_and_read_again(format_name, [(one, ENDINGS[one.name.endswith("png")]) for one in dataset])


def exported_and_read_again(format_name: str, dataset: list[tuple[Annotated, tuple[str, ...]]]) -> None:
    chosen = FORMATS[format_name]
    chosen.check([one for one, _ in dataset])
    images = arranged(format_name, dataset)
    files = {path: b"".join(text) for path, text in chosen.write(images, ["a", "train"], ["thing"])}
    tree = [*files, LEFT_OUT, *(one.name for one in images)]
    assert asyncio.run(taken(tree)) == tree
    assert all(kind_of(one.name) == "image" for one in images)
    # Imported again, the images say the same, and stay where they are.
    read = {one.name: one for one in chosen.read(files, {one.name: one.size for one in images})}
    again = [read.get(one.name, Annotated(one.name, SIZE)) for one in images]
    assert again == images
    assert arranged(format_name, [(one, sum(ENDINGS, ())) for one in reversed(again)]) == again[::-1]


def test_thousands_of_names_that_become_one_take_their_time_once() -> None:
    """Each looks at a few paths, however many had the same name before it, also after their ends are cut."""
    looked = 0

    def files_of(path: str) -> tuple[str, ...]:
        nonlocal looked
        looked += 1
        return (path,)

    stems = [f"{A[:245]}{number:03}" for number in range(200)]  # which are alike where a number is put
    wanted = ["x/a.jpg"] * 3000 + [f"x/a-{number}.jpg" for number in range(1000)]
    wanted += [f"{stem}.jpg" for stem in stems for _ in range(10)]
    assert len(set(settled(wanted, files_of))) == len(wanted)
    assert looked < 5 * len(wanted)
