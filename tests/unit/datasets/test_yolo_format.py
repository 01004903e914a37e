"""YOLO's texts and YAML as Ultralytics, Roboflow and Darknet write them, and what is refused of them."""

import itertools
from collections import Counter

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from appliance.datasets.interchange import class_names
from appliance.datasets.interchange.annotated import Annotated, Declared, Region, Size
from appliance.datasets.interchange.yolo import Yolo
from appliance.datasets.records import Box
from appliance.errors import InvalidInput

SIZE = Size(640, 480)
ULTRALYTICS = b"""# Ultralytics AGPL-3.0 License - https://ultralytics.com/license
# COCO8 dataset (first 8 images from COCO train2017) by Ultralytics

# Train/val/test sets as 1) dir: path/to/imgs, 2) file: path/to/imgs.txt, or 3) list: [path1, ...]
path: coco8 # dataset root dir
train: images/train # train images (relative to 'path') 4 images
val: images/val # val images (relative to 'path') 4 images
test: # test images (optional)

# Classes
names:
  0: person
  1: traffic light # red, too
  2: hot dog

# Download script/URL (optional)
download: https://github.com/ultralytics/assets/releases/download/v0.0.0/coco8.zip
"""
ROBOFLOW = b"""names:
- apple
- 'damaged: apple'
nc: 2
roboflow:
  license: CC BY 4.0
  project: fruits
  url: https://universe.roboflow.com/x/fruits/dataset/1
  version: 1
test: ../test/images
train: ../train/images
val: ../valid/images
"""
BRACKETS = b"""train: ../train/images
nc: 3
names: ['person', "hot \\"dog\\"", it's,  # three
        ]
"""


def read(files: dict[str, bytes], *images: str, left_out: Counter[str] | None = None) -> list[Annotated]:
    return list(Yolo().read(files, dict.fromkeys(images, SIZE), left_out))


def line_refused(line: bytes) -> str:
    with pytest.raises(InvalidInput) as caught:
        read({"data.yaml": ULTRALYTICS, "labels/train/a.txt": b"\n" + line}, "images/train/a.jpg")
    return str(caught.value)


def yaml_refused(content: bytes) -> str:
    with pytest.raises(InvalidInput) as caught:
        Yolo().declared({"data.yaml": content})
    return str(caught.value)


def test_ultralytics_has_folders_of_images_and_of_labels() -> None:
    files = {
        "coco8/coco8.yaml": ULTRALYTICS,
        "coco8/labels/train/1.txt": b"2 0.5 0.5 0.25 0.5\r\n0 0.1 0.1 0.1 0.1\r\n",
        "coco8/labels/test/2.txt": b"",
    }
    images = ("coco8/images/train/1.jpg", "coco8/images/test/2.jpg", "coco8/images/train/3.jpg")
    assert read(files, *images) == [
        Annotated(
            images[0],
            SIZE,
            regions=(Region("hot dog", Box(240, 120, 400, 360)), Region("person", Box(32, 24, 96, 72))),
        ),
        Annotated(images[1], SIZE, test=True),
    ]
    assert Yolo().declared(files) == Declared((), ("person", "traffic light", "hot dog"))


def test_roboflow_has_both_folders_in_each_split() -> None:
    files = {"data.yaml": ROBOFLOW, "valid/labels/a.rf.1.txt": b"1 0.5 0.5 1 1"}
    [one] = read(files, "valid/images/a.rf.1.jpg")
    assert one.regions == (Region("damaged: apple", Box(0, 0, 640, 480)),)
    assert not one.test
    assert Yolo().place(one) == one.name


@pytest.mark.parametrize("names", ["obj.names", "obj_train_data/classes.txt"])
def test_darknet_has_texts_beside_the_images(names: str) -> None:
    files = {names: "cat\ntraffic light\nkäse\n".encode(), "obj_train_data/a.txt": b"2 0.5 0.5 0.5 0.5"}
    [one] = read(files, "obj_train_data/a.jpg")
    assert one.regions == (Region("käse", Box(160, 120, 480, 360)),)


def test_a_polygon_becomes_its_bounding_box() -> None:
    left_out = Counter[str]()
    files = {"data.yaml": BRACKETS, "labels/a.txt": b"1 0.25 0.5 0.5 0.25 0.75 0.75"}
    [one] = read(files, "images/a.jpg", left_out=left_out)
    assert one.regions == (Region('hot "dog"', Box(160, 120, 480, 360)),)
    assert left_out == {"polygons, of which the bounding boxes are kept": 1}


def test_keypoints_are_left_out() -> None:
    left_out = Counter[str]()
    files = {"data.yaml": b"kpt_shape: [2, 2]\nnames: {0: a}", "labels/a.txt": b"0 .5 .5 .5 .5 .1 .1 .9 .9"}
    [one] = read(files, "images/a.jpg", left_out=left_out)
    assert one.regions[0].box == Box(160, 120, 480, 360)
    assert left_out == {"keypoints": 1}


def test_names_match_however_their_letters_are_composed() -> None:
    files = {"data.yaml": BRACKETS, "labels/caf\u00e9.txt": b"0 .5 .5 .5 .5"}
    assert len(read(files, "images/cafe\u0301.jpg")) == 1


def test_label_files_of_no_image_are_counted_and_all_of_them_refused() -> None:
    left_out = Counter[str]()
    files = {"data.yaml": BRACKETS, "labels/a.txt": b"", "labels/b.txt": b"9 9 9 9 9"}
    read(files, "images/a.jpg", left_out=left_out)
    assert left_out == {"label files of images that are not there": 1}
    with pytest.raises(InvalidInput, match="no label file belongs to an image that is here"):
        read(files, "images/c.jpg")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"3 .5 .5 .5 .5", "the class is none of those that are named"),
        (b"-1 .5 .5 .5 .5", "the class is none of those that are named"),
        (b"0.5 .5 .5 .5 .5", "the class is none of those that are named"),
        (b"nan .5 .5 .5 .5", "the class is none of those that are named"),
        (b"0 nan .5 .5 .5", "a value is no number"),
        (b"0 inf .5 .5 .5", "a value is no number"),
        (b"cat .5 .5 .5 .5", "numbers are expected"),
        (b"0 .5 .5 .5", "3 numbers follow the class"),
        (b"0 .5 .5 .5 .5 .9", "5 numbers follow the class"),
        (b"0", "0 numbers follow the class"),
        (b"0 .5 .5 0 .5", "the box has no area"),
        (b"0 .5 .5 -.5 .5", "the box has no area"),
        (b"0 .9 .5 .5 .5", "the box is not within the image of 640 x 480 px"),
        (b"0 320 240 64 48", "the box is not within the image of 640 x 480 px"),
        (b"0 .5 .5 .5 .5 .5 .5", "the box has no area"),
    ],
)
def test_a_line_is_refused_by_file_and_number(line: bytes, said: str) -> None:
    refused = line_refused(line)
    assert refused.startswith("labels/train/a.txt, line 2: ")
    assert said in refused


def test_bytes_that_are_no_text_are_refused() -> None:
    assert line_refused(b"0 .5 \xff") == "labels/train/a.txt: is no UTF-8 text at byte 6: save it as UTF-8"


@pytest.mark.parametrize(
    "names",
    [
        b"names: *anchor",
        b"names: coco.names",
        b"names: [a, b",
        b"names: [a] b",
        b"names: [[a]]",
        b"names: {a: b}",
        b"names: >\n  a",
        b"names:\n  - a\n  0: b",
        b"names:\n  - {a: b}",
        b"names:\n  - a: b",
        b"names:\n  0: 'a",
        b'names:\n  0: "\\ud800"',
        b'names:\n  0: "\\q"',
        b"names:\n  zero: a",
    ],
)
def test_what_is_no_list_of_names_is_refused(names: bytes) -> None:
    refused = yaml_refused(b"nc: 1\n" + names)
    assert refused.startswith(("data.yaml: names is expected as a list", "data.yaml, line "))


def test_names_are_texts_whatever_yaml_takes_them_for() -> None:
    content = b"names: [no, 1.0, ~, !!python/object:os.system x, 2026-01-01]"
    declared = Yolo().declared({"data.yaml": content})
    assert declared.regions == ("no", "1.0", "~", "x", "2026-01-01")


def test_names_are_needed() -> None:
    assert "no names of classes are here" in yaml_refused(b"train: images")
    with pytest.raises(InvalidInput, match=r"^data.yaml: its names of classes are not those of classes.txt"):
        Yolo().declared({"classes.txt": b"a", "data.yaml": b"names: [b]"})


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), max_size=5))
def test_yaml_is_read_as_pyyaml_writes_it(names: list[str]) -> None:
    shapes = ({"names": names}, {"names": dict(enumerate(names))})
    for shape, flow in itertools.product(shapes, (False, None)):
        text = yaml.safe_dump(shape, default_flow_style=flow, width=1 << 20)
        classes = class_names.from_yaml("x.yaml", text.encode())
        assert classes is not None
        assert list(classes.names.values()) == names


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), unique=True, max_size=4))
def test_pyyaml_reads_what_is_written(names: list[str]) -> None:
    images = [
        Annotated("a.jpg", SIZE),
        Annotated("b.jpg", SIZE, test=True),
        Annotated("valid/images/c.jpg", SIZE),
    ]
    [(path, content)] = Yolo().write(images, [], names)
    assert path == "data.yaml"
    assert yaml.safe_load(b"".join(content)) == {
        "train": ["images/train"],
        "val": ["valid/images"],
        "test": ["images/test"],
        "nc": len(names),
        "names": dict(enumerate(names)) or [],
    }


def test_an_image_called_classes_is_not_taken_for_their_names() -> None:
    image = Annotated("images/train/classes.jpg", SIZE, regions=(Region("a", Box(1, 2, 3, 4)),))
    place = Yolo().place(image)
    files = {path: b"".join(content) for path, content in Yolo().write([image], [], ["a"])}
    [one] = read(files, place)
    assert one.regions == image.regions


def test_whole_pixels_stay_whole() -> None:
    image = Annotated("images/train/a.jpg", Size(997, 991), regions=(Region("a", Box(1, 2, 600, 700)),))
    files = {path: b"".join(content) for path, content in Yolo().write([image], [], ["a"])}
    [one] = Yolo().read(files, {image.name: image.size})
    assert one == image
    assert isinstance(one.regions[0].box.xmax, int)


@pytest.mark.parametrize(
    "images",
    [
        [Annotated("a.jpg", SIZE, {"cat": None})],
        [Annotated("a.jpg", SIZE, meta_data={"a": 1})],
        [Annotated("a.jpg", SIZE, regions=(Region("a", Box(1, 1, 2, 2), {"b": None}),))],
        [Annotated("a.jpg", SIZE, meta_data={"a": 1}), Annotated("b.jpg", SIZE)],
    ],
)
def test_what_yolo_cannot_express_is_refused(images: list[Annotated]) -> None:
    with pytest.raises(InvalidInput, match="take coco"):
        Yolo().check(images)


@pytest.mark.parametrize(
    ("path", "describes"),
    [
        ("labels/train.txt", True),
        ("data.yaml", True),
        ("obj.names", True),
        ("a/b.TXT", True),
        ("train.txt", False),
        ("README.roboflow.txt", False),
        ("images/a.jpg", False),
    ],
)
def test_texts_for_people_say_nothing_about_images(path: str, *, describes: bool) -> None:
    assert Yolo().describes(path) == describes
