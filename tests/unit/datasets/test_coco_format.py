"""COCO JSON as other programs write it, and what is refused of it."""

from collections import Counter

import msgspec
import pytest

from appliance.datasets.interchange.annotated import Annotated, Declared, Region, Size
from appliance.datasets.interchange.coco import Coco
from appliance.datasets.records import Box
from appliance.errors import InvalidInput

SIZE = Size(640, 480)


def document(**changes: object) -> bytes:
    return msgspec.json.encode(
        {
            "images": [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}],
            "annotations": [annotation()],
            "categories": [{"id": 7, "name": "cat"}],
            **changes,
        }
    )


def annotation(**changes: object) -> dict[str, object]:
    return {"id": 3, "image_id": 1, "category_id": 7, "bbox": [10, 20, 30, 40], **changes}


def read(content: bytes, *images: str, path: str = "instances.json", **files: bytes) -> list[Annotated]:
    return list(Coco().read({path: content, **files}, dict.fromkeys(images or ("a.jpg",), SIZE)))


def refusal(content: bytes, *images: str, path: str = "instances.json") -> str:
    with pytest.raises(InvalidInput) as caught:
        read(content, *images, path=path)
    return str(caught.value)


def test_roboflow_names_a_supercategory_that_is_no_class() -> None:
    content = msgspec.json.encode(
        {
            "info": {
                "year": "2024",
                "description": "Exported from roboflow.com",
                "date_created": "2024-05-01",
            },
            "licenses": [
                {"id": 1, "url": "https://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"}
            ],
            "categories": [
                {"id": 0, "name": "fruits", "supercategory": "none"},
                {"id": 1, "name": "apple", "supercategory": "fruits"},
            ],
            "images": [
                {
                    "id": 0,
                    "license": 1,
                    "file_name": "IMG_1_jpg.rf.b6f.jpg",
                    "height": 480,
                    "width": 640,
                    "date_captured": "2024-05-01T10:00:00+00:00",
                    "extra": {"name": "IMG_1.jpg"},
                }
            ],
            "annotations": [
                {
                    "id": 0,
                    "image_id": 0,
                    "category_id": 1,
                    "bbox": [222, 190, 101.5, 92],
                    "area": 9338,
                    "segmentation": [],
                    "iscrowd": 0,
                }
            ],
        }
    )
    path, image = "test/_annotations.coco.json", "test/IMG_1_jpg.rf.b6f.jpg"
    assert read(content, image, path=path) == [
        Annotated(image, SIZE, regions=(Region("apple", Box(222, 190, 323.5, 282)),), test=True)
    ]
    assert Coco().declared({path: content}) == Declared((), ("apple",))


def test_cvat_keeps_images_in_a_folder_beside_that_of_annotations() -> None:
    content = document(
        annotations=[annotation(segmentation={"counts": [3, 2], "size": [480, 640]}, iscrowd=1)],
        images=[{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480, "license": 0, "coco_url": ""}],
    )
    [one] = read(content, "images/default/a.jpg", path="annotations/instances_default.json")
    assert one.regions == (Region("cat", Box(10, 20, 40, 60)),)


def test_label_studio_writes_windows_paths_and_fractions() -> None:
    content = document(
        images=[{"id": 1, "file_name": r"images\0f1d-a.jpg", "width": 640, "height": 480}],
        annotations=[annotation(bbox=[10.25, 20.0, 30.5, 40.0], ignore=0, segmentation=[])],
    )
    [one] = read(content, "images/0f1d-a.jpg", path="result.json")
    assert one.regions == (Region("cat", Box(10.25, 20, 40.75, 60)),)
    assert isinstance(one.regions[0].box.ymin, int)


@pytest.mark.parametrize(
    ("written", "image"),
    [
        ("a.jpg", "data/a.jpg"),
        ("train/a.jpg", "data/train/a.jpg"),
        ("/home/jana/data/train/a.jpg", "train/a.jpg"),
        (r"C:\Users\jana\train\a.jpg", "train/a.jpg"),
        ("../images/a.jpg", "images/a.jpg"),
        ("caf\u00e9.jpg", "cafe\u0301.jpg"),
        ("sub/cafe\u0301.jpg", "data/sub/caf\u00e9.jpg"),
    ],
)
def test_an_image_is_found_by_the_end_of_its_path(written: str, image: str) -> None:
    content = document(images=[{"id": 1, "file_name": written}])
    [one] = read(content, image, "train/other.jpg", path="annotations/instances.json")
    assert one.name == image


@pytest.mark.parametrize(
    "written", ["../../../etc/passwd", "/etc/passwd", "..", "", "\0", "a.jpg/", "//", "\\"]
)
def test_a_name_of_no_image_fails_to_match(written: str) -> None:
    said = refusal(document(images=[{"id": 1, "file_name": written}]), "etc/group", "b.jpg")
    assert "no file_name of a COCO file is the path of an image that is here" in said


def test_a_name_that_is_costly_to_compare_is_not_compared() -> None:
    costly = "\u0300\u0316" * 500_000  # composing it takes the square of its length
    assert "no file_name" in refusal(document(images=[{"id": 1, "file_name": f"é{costly}"}]), "é.jpg")


def test_the_part_that_a_file_names_tells_images_of_one_name_apart() -> None:
    images = ("images/train/1.jpg", "images/test/1.jpg")
    content = document(images=[{"id": 1, "file_name": "1.jpg"}])
    [one] = read(content, *images, path="annotations/instances_test.json")
    assert (one.name, one.test) == ("images/test/1.jpg", True)
    said = refusal(content, *images, path="annotations/instances.json")
    assert said.startswith("annotations/instances.json, image 1: the name fits several images")
    assert "no file_name" in refusal(content, images[0], path="annotations/instances_test.json")


def test_several_files_say_the_same_of_an_image_once() -> None:
    keypoints = document(annotations=[annotation(keypoints=[1, 2, 2]), annotation(id=4, bbox=[1, 1, 2, 2])])
    captions = document(annotations=[{"id": 1, "image_id": 1, "caption": "a cat"}])
    left_out = Counter[str]()
    files = {
        "annotations/instances_train2017.json": document(),
        "annotations/person_keypoints_train2017.json": keypoints,
        "annotations/captions_train2017.json": captions,
        "package.json": b'{"name": "x"}',
        "classes.json": b'["cat"]',
    }
    [one] = Coco().read(files, {"train2017/a.jpg": SIZE}, left_out)
    assert [region.box for region in one.regions] == [Box(10, 20, 40, 60), Box(1, 1, 3, 3)]
    assert left_out == {"annotations without a category": 1, "files of another kind": 2}


def test_meta_data_that_look_like_a_box_hide_none_of_another_file() -> None:
    like = {"meta_data": {"x": [0, 10, 20, 40, 60]}}
    files = {
        "a.json": document(annotations=[annotation(bbox=[1, 1, 2, 2], appliance=like)]),
        "b.json": document(annotations=[annotation(appliance={"labels": {"red": 1}}), annotation(id=4)]),
        "c.json": document(
            annotations=[annotation(bbox=[10, 20, 30, 400]), annotation(bbox=[10, 20, 30, 40], id=4)]
        ),
    }
    [one] = Coco().read(files, {"a.jpg": SIZE})
    first, again, longer = Box(1, 1, 3, 3), Box(10, 20, 40, 60), Box(10, 20, 40, 420)
    assert [region.box for region in one.regions] == [first, again, again, longer]
    assert [dict(region.labels) for region in one.regions] == [{}, {"red": 1}, {}, {}]


def test_what_is_left_out_is_counted() -> None:
    content = document(
        images=[{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "gone.jpg"}],
        annotations=[annotation(segmentation=[[1, 1, 2, 2, 3, 1]]), annotation(id=4, image_id=2)],
    )
    left_out = Counter[str]()
    list(Coco().read({"x.json": content}, {"a.jpg": SIZE}, left_out))
    assert left_out == {
        "images that are not there": 1,
        "annotations of images that are not there": 1,
        "masks, of which the boxes are kept": 1,
    }


def test_a_category_without_box_and_mask_is_a_label() -> None:
    content = document(annotations=[{"id": 1, "image_id": 1, "category_id": 7}])
    assert read(content) == [Annotated("a.jpg", SIZE, {"cat": None})]
    assert Coco().declared({"x.json": content}) == Declared(("cat",), ())


def test_scripts_number_images_by_name() -> None:
    content = document(images=[{"id": "a", "file_name": "a.jpg"}], annotations=[annotation(image_id="a")])
    assert len(read(content)[0].regions) == 1


def test_a_box_that_sticks_out_by_rounding_is_cut() -> None:
    [one] = read(document(annotations=[annotation(bbox=[-0.4, 0, 640.9, 480.5])]))
    assert one.regions[0].box == Box(0, 0, 640, 480)


def test_a_box_without_an_area_is_left_out_and_counted() -> None:
    left_out = Counter[str]()
    content = document(annotations=[annotation(bbox=[10, 20, 30, 0]), annotation(id=4)])
    [one] = Coco().read({"instances.json": content}, {"a.jpg": SIZE}, left_out)
    assert len(one.regions) == 1
    assert left_out == {"boxes without an area": 1}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"bbox": [600, 20, 42, 40]},
            "annotation 3 of a.jpg: the box is not within the image of 640 x 480 px",
        ),
        ({"bbox": [-2, 20, 30, 40]}, "annotation 3 of a.jpg: the box is not within the image"),
        ({"bbox": [10, 20, -30, 40]}, "annotation 3 of a.jpg: the box has no area"),
        ({"bbox": [640.5, 20, 0.2, 40]}, "annotation 3 of a.jpg: the box has no area within the image"),
        ({"bbox": [1e308, 0, 1e308, 1]}, "annotation 3 of a.jpg: the sides of a box are no numbers"),
        ({"bbox": [10, 20, 30]}, "annotation 3 of a.jpg: bbox has 3 numbers"),
        ({"bbox": ["10", 20, 30, 40]}, "Expected `float`, got `str` - at `$.annotations[0].bbox[0]`"),
        ({"bbox": None, "segmentation": [[1, 2, 3, 4, 5, 6]]}, "a mask without a bbox"),
        ({"image_id": 9}, "annotation 3: its image_id is that of no image of the file"),
        ({"category_id": 9}, "annotation 3: its category_id is that of no category of the file"),
        ({"id": -1}, "annotation -1: ids are whole numbers from 0"),
        ({"id": 1.5}, "is no COCO file"),
    ],
)
def test_an_annotation_is_refused_by_file_and_id(changes: dict[str, object], said: str) -> None:
    refused = refusal(document(annotations=[annotation(**changes)]))
    assert refused.startswith("instances.json")
    assert said in refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"annotations": [annotation(), annotation()]}, "annotation 3: the id occurs twice"),
        ({"categories": [{"id": 7, "name": "a"}, {"id": 7, "name": "b"}]}, "category 7: the id occurs twice"),
        ({"categories": [{"id": 7, "name": "n" * 201}]}, "a label's name: 1 to 200 characters"),
        ({"images": [{"id": 1, "file_name": "a.jpg"}] * 2}, "image 1: the id occurs twice"),
        (
            {"images": [{"id": id_, "file_name": "a.jpg"} for id_ in (1, 2)]},
            "image 2: its file_name is that of another image",
        ),
        ({"annotations": [annotation(id=id_) for id_ in range(1001)]}, "an image has at most 1000 boxes"),
        (
            {"images": [{"id": 1, "file_name": "a.jpg", "width": 480, "height": 640}]},
            "whether the boxes are of the turned one cannot be told",
        ),
        ({"images": [{"id": 1, "file_name": "a.jpg", "width": 320, "height": 240}]}, "says 320 x 240 px"),
        (
            {"images": [{"id": 1, "file_name": "a.jpg", "width": 1e308, "height": 240}]},
            "says a million or more x 240 px",
        ),
        (
            {"images": [{"id": 1, "file_name": "a.jpg", "appliance": {"meta_data": {"a": "x" * 70_000}}}]},
            "image 1: meta_data: at most 65536 bytes",
        ),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(changes: dict[str, object], said: str) -> None:
    refused = refusal(document(**changes))
    assert refused.startswith("instances.json")
    assert said in refused


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no COCO file is here"),
        (b"[]", "no COCO file is here"),
        (b'{"images": [', "x.json: is no COCO file: Input data was truncated"),
        (document().replace(b"30", b"NaN"), "x.json: is no COCO file: JSON is malformed"),
        (document().replace(b"30", b"1e999"), "x.json: is no COCO file: Number out of range"),
        (document().replace(b'"cat"', b'"\xff"'), "x.json: is no COCO file: its text is not UTF-8"),
        (document().decode().encode("utf-16"), "no COCO file is here"),
        (b'{"images": [], "info": ' + b"[" * 100_000, "its brackets are nested too deeply"),
    ],
)
def test_what_is_no_coco_file_is_refused_by_its_name(content: bytes, said: str) -> None:
    assert said in refusal(content, path="x.json")


def test_a_test_file_and_another_do_not_share_an_image() -> None:
    with pytest.raises(InvalidInput, match="is in a test part and in another"):
        read(document(), path="instances_train.json", **{"instances_test.json": document()})


def test_a_mark_of_utf_8_is_passed_over() -> None:
    assert len(read(b"\xef\xbb\xbf" + document())) == 1


def test_no_word_of_a_label_is_in_a_refusal() -> None:
    content = document(categories=[{"id": 7, "name": "secret" * 50}])
    assert "secret" not in refusal(content)


def test_a_box_of_no_pixel_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"^a.jpg: a box is smaller than a millionth of a pixel"):
        Coco().check([Annotated("a.jpg", SIZE, regions=(Region("a", Box(1, 1, 1 + 1e-8, 2)),))])


def test_sums_of_fractions_are_read_as_they_were_meant() -> None:
    [one] = read(document(annotations=[annotation(bbox=[10.1, 20.2, 20.2, 0.1])]))
    assert one.regions[0].box == Box(10.1, 20.2, 30.3, 20.3)


def test_other_readers_find_standard_fields() -> None:
    images = [
        Annotated(
            "x/a.jpg", SIZE, {"sharp": 0.5}, (Region("cat", Box(10, 20.5, 40, 60)),), meta_data={"k": 1}
        ),
        Annotated("b.jpg", SIZE, test=True),
    ]
    files = {path: b"".join(content) for path, content in Coco().write(images, ["sharp"], ["dog", "cat"])}
    assert list(files) == ["instances_train.json", "instances_test.json"]
    train = msgspec.json.decode(files["instances_train.json"])
    assert train["images"] == [
        {
            "id": 1,
            "file_name": "x/a.jpg",
            "width": 640,
            "height": 480,
            "appliance": {"labels": {"sharp": 0.5}, "meta_data": {"k": 1}},
        }
    ]
    assert train["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [10, 20.5, 30, 39.5], "area": 1185, "iscrowd": 0}
    ]
    assert [one["name"] for one in train["categories"]] == ["dog", "cat"]
    assert b'"bbox":[10,20.5,30,39.5]' in files["instances_train.json"]
