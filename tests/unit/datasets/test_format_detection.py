"""Which format a tree of files has, by its paths alone."""

import pytest

from appliance.datasets.interchange.formats import detect
from appliance.errors import InvalidInput


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        (["cat/1.jpg", "dog/1.JPEG", "README.md"], "imagefolder"),
        (["1.heic"], "imagefolder"),
        (["train/1.png", "train/metadata.csv"], "imagefolder"),
        (
            ["train/1.jpg", "train/_annotations.coco.json", "README.dataset.txt", "README.roboflow.txt"],
            "coco",
        ),
        (["images/1.jpg", "annotations/instances_default.json"], "coco"),
        (["coco8/images/train/1.jpg", "coco8/labels/train/1.txt", "coco8/coco8.yaml", "LICENSE"], "yolo"),
        (["data.yaml", "train/images/1.jpg", "train/labels/1.txt", "results.csv"], "yolo"),
        (["obj_train_data/1.jpg", "obj_train_data/1.txt", "obj.names", "obj.data"], "yolo"),
        (["cat/1.jpg", "labels.csv"], "csv"),
        (["1.jpg", "labels.tsv", "__MACOSX/a.json", ".hidden/b.json", ".c.json"], "csv"),
    ],
)
def test_a_format_is_known_by_its_files(paths: list[str], name: str) -> None:
    assert detect(iter(paths)) == name


def test_two_formats_are_told_with_a_file_of_each() -> None:
    with pytest.raises(InvalidInput, match=r"^a/x.json is of coco, data.yaml of yolo: say which format"):
        detect(["1.jpg", "a/x.json", "data.yaml"])


@pytest.mark.parametrize("paths", [[], ["README.md"], [".DS_Store"], ["a/b.onnx"]])
def test_what_was_looked_for_is_said(paths: list[str]) -> None:
    with pytest.raises(InvalidInput, match=r"no known format: \.json files \(coco\), labels/\*\.txt"):
        detect(paths)
