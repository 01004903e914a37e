"""Folders of images as torchvision and Hugging Face read them, and what they cannot say."""

from collections import Counter

import pytest

from appliance.datasets.interchange.annotated import Annotated, Region, Size
from appliance.datasets.interchange.image_folder import ImageFolder
from appliance.datasets.records import Box
from appliance.errors import InvalidInput

SIZE = Size(640, 480)


def read(*images: str, **files: bytes) -> dict[str, tuple[str | None, bool]]:
    """Label and test flag of each image about which something is said."""
    found = ImageFolder().read(files, dict.fromkeys(images, SIZE))
    return {one.name: (next(iter(one.labels), None), one.test) for one in found}


def test_a_folder_is_a_label() -> None:
    assert read("cat/1.jpg", "dog/1.jpg", "animals/cat/2.jpg", "3.jpg") == {
        "cat/1.jpg": ("cat", False),
        "dog/1.jpg": ("dog", False),
        "animals/cat/2.jpg": ("cat", False),
    }


def test_folders_of_splits_are_no_labels() -> None:
    assert read("train/cat/1.jpg", "x/test/cat/1.jpg", "val/cat/1.jpg", "test/2.jpg", "train/2.jpg") == {
        "train/cat/1.jpg": ("cat", False),
        "x/test/cat/1.jpg": ("cat", True),
        "val/cat/1.jpg": ("cat", False),
        "test/2.jpg": (None, True),
    }


def test_in_a_split_the_first_folder_is_the_label() -> None:
    assert read("train/n01443537/images/n01443537_0.JPEG", "train/train/1.jpg") == {
        "train/n01443537/images/n01443537_0.JPEG": ("n01443537", False),
        "train/train/1.jpg": ("train", False),
    }


def test_hugging_face_puts_columns_beside_the_images() -> None:
    files = {
        "train/metadata.csv": "file_name,label,text\n1.jpg,cat,a cat\nsub/2.jpg,,\n".encode("utf-8-sig"),
        "test/metadata.jsonl": b'{"file_name": "1.jpg", "label": 3, "objects": {"bbox": [[1, 2, 3, 4]]}}\n\n',
    }
    images = dict.fromkeys(("train/1.jpg", "train/sub/2.jpg", "train/sub/3.jpg", "test/1.jpg"), SIZE)
    assert list(ImageFolder().read(files, images)) == [
        Annotated("train/1.jpg", SIZE, {"cat": None}, meta_data={"text": "a cat"}),
        Annotated("train/sub/3.jpg", SIZE, {"sub": None}),
        Annotated(
            "test/1.jpg", SIZE, {"3": None}, test=True, meta_data={"objects": {"bbox": [[1, 2, 3, 4]]}}
        ),
    ]


def test_rows_of_no_image_are_counted() -> None:
    left_out = Counter[str]()
    files = {"metadata.csv": b"file_name\n../../etc/passwd\nb.jpg\n"}
    assert not list(ImageFolder().read(files, {"a.jpg": SIZE}, left_out))
    assert left_out == {"images that are not there": 2}


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        ("metadata.csv", b"name,label\n", "line 1: columns with names of their own, file_name among them"),
        ("metadata.csv", b"", "line 1: columns with names of their own"),
        ("metadata.csv", b"file_name,x,x\n", "line 1: columns with names of their own"),
        ("metadata.csv", b"file_name\na.jpg,b\n", "line 2: 2 cells, the header names 1"),
        ("metadata.csv", b'file_name\n"a.jpg', "line 2: unexpected end of data"),
        ("metadata.jsonl", b'{"file_name": "a.jpg"}\n{', "line 2: a JSON object is expected on each line"),
        ("metadata.jsonl", b'{"file_name": "a.jpg", "a": 1e400}', "line 1: a number is out of range"),
        ("metadata.jsonl", b"[1]", "line 1: a JSON object is expected on each line"),
        ("metadata.jsonl", b'{"a":' + b"[" * 100_000, "line 1: a JSON object is expected on each line"),
        ("metadata.jsonl", b'{"file_name": 1}', "line 1: file_name: the path of an image is expected"),
        ("metadata.jsonl", b'{"file_name": "a.jpg", "label": ["x"]}', "line 1: label: a text or a number"),
        ("metadata.jsonl", b"\xff", "is no UTF-8 text at byte 0"),
    ],
)
def test_a_row_is_refused_by_file_and_line(path: str, content: bytes, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        list(ImageFolder().read({path: content}, {"a.jpg": SIZE}))
    assert str(caught.value).startswith(path)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "image",
    [
        Annotated("a.jpg", SIZE, {"cat": None, "dog": None}),
        Annotated("a.jpg", SIZE, {"cat": 1.0}),
        Annotated("a.jpg", SIZE, regions=(Region("cat", Box(1, 1, 2, 2)),)),
        Annotated("a.jpg", SIZE, meta_data={"label": "x"}),
        *(
            Annotated("a.jpg", SIZE, {name: None})
            for name in ("a/b", "..", ".x", "a\\b", "a\0", "a\n", "é" * 128, "metadata.jsonl", "__MACOSX")
        ),
    ],
)
def test_what_folders_cannot_say_is_refused(image: Annotated) -> None:
    with pytest.raises(InvalidInput, match="take csv or coco"):
        ImageFolder().check([image])


def test_a_label_that_cannot_be_a_folder_is_told_by_its_image() -> None:
    with pytest.raises(InvalidInput, match=r"^a.jpg: its label cannot be the name of a folder"):
        ImageFolder().check([Annotated("a.jpg", SIZE, {"a/b": None})])


@pytest.mark.parametrize(
    ("image", "place"),
    [
        (Annotated("cat/1.jpg", SIZE, {"cat": None}), "cat/1.jpg"),
        (Annotated("val/cat/1.jpg", SIZE, {"cat": None}), "val/cat/1.jpg"),
        (Annotated("1.jpg", SIZE), "1.jpg"),
        (Annotated("1.jpg", SIZE, {"cat": None}), "train/cat/1.jpg"),
        (Annotated("train/dog/1.jpg", SIZE, {"cat": None}), "train/cat/train_dog_1.jpg"),
        (Annotated("cat/1.jpg", SIZE, {"cat": None}, test=True), "test/cat/cat_1.jpg"),
        (Annotated("cat/1.jpg", SIZE), "train/cat_1.jpg"),
    ],
)
def test_an_image_is_placed_by_its_label(image: Annotated, place: str) -> None:
    assert ImageFolder().place(image) == place


def test_metadata_is_written_for_a_whole_split_or_not_at_all() -> None:
    images = [
        Annotated("train/cat/1.jpg", SIZE, {"cat": None}, meta_data={"text": "a cat"}),
        Annotated("train/dog/2.jpg", SIZE, {"dog": None}),
        Annotated("test/dog/3.jpg", SIZE, {"dog": None}, test=True),
    ]
    files = {path: b"".join(content) for path, content in ImageFolder().write(images, ["cat", "dog"], [])}
    assert files == {
        "train/metadata.jsonl": b'{"file_name":"cat/1.jpg","label":"cat","text":"a cat"}\n'
        b'{"file_name":"dog/2.jpg","label":"dog"}\n'
    }
