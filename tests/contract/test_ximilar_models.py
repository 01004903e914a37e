"""Models of other makers, each installed by one command, asked through the official client."""

import base64
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ximilar.client import DetectionClient, FashionTaggingClient, RecognitionClient
from ximilar.client.asyncr import AsyncRClient

from tests import bundles, images
from tests.exports import hugging_face, yolo
from tests.running import CopyState, RunningAppliance


@dataclass(frozen=True)
class Models:
    """A daemon and the tasks that were installed into it."""

    running: RunningAppliance
    tasks: dict[str, str]

    @property
    def endpoint(self) -> str:
        return f"http://localhost:{self.running.port}/"


@pytest.fixture(scope="module")
def models(copy_state: CopyState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    folder = tmp_path_factory.mktemp("models")
    raw = np.array([[32, 32, 20, 10, 0.2, 0.7], [10, 12, 4, 8, 0.9, 0.1]], np.float32).T
    state = copy_state()
    paths = {
        "classifier": hugging_face(folder / "colours"),
        "detector": yolo(folder / "cups.onnx", raw),
        "one at a time": yolo(folder / "one.onnx", raw, batch=1),
        "open candidates": yolo(folder / "open.onnx", raw, said=(6, "anchors")),
        "tagger": bundles.tagger(folder / "tagger"),
    }
    with RunningAppliance(state, state.port) as running:
        tasks = {name: state.ask("bundle", "install", str(path))["task"] for name, path in paths.items()}
        yield Models(running, tasks)


def picture(tmp_path: Path, colour: str, size: tuple[int, int] = (128, 64)) -> dict[str, str]:
    path = tmp_path / f"{colour}.png"
    path.write_bytes(images.encoded(Image.new("RGB", size, colour), "PNG"))
    return {"_file": str(path)}


def test_a_hugging_face_export_classifies(models: Models, tmp_path: Path) -> None:
    client = RecognitionClient(models.running.token, endpoint=models.endpoint)
    colours = ["red", "lime", "blue"]
    records = [picture(tmp_path, colour) for colour in colours]
    answer = client.classify_on_task(records, task_id=models.tasks["classifier"])
    best = [record["best_label"] for record in answer["records"]]
    assert [label["name"] for label in best] == ["red", "green", "blue"]
    assert all(label["prob"] > 0.99 for label in best)
    assert [len(record["labels"]) for record in answer["records"]] == [3, 3, 3]


@pytest.mark.parametrize("task", ["detector", "one at a time", "open candidates"])
def test_a_yolo_detector_detects(models: Models, tmp_path: Path, task: str) -> None:
    """The picture is twice as large as the input, with 16 rows of grey above and below."""
    client = DetectionClient(models.running.token, endpoint=models.endpoint)
    records = [picture(tmp_path, colour) for colour in ("red", "blue")]
    answer = client.detect_on_task(records, task_id=models.tasks[task])
    for record in answer["records"]:
        (found,) = record["_objects"]  # the other one lies in the grey
        assert (found["name"], found["bound_box"]) == ("plate", [44, 22, 84, 42])
        assert found["prob"] == pytest.approx(0.7, abs=1e-3)


def test_a_tagger_behind_its_route_tags(models: Models) -> None:
    client = FashionTaggingClient(models.running.token, endpoint=models.endpoint)
    encoded = images.encoded(Image.new("RGB", (40, 40), "yellow"), "PNG")
    answer = client.tags([{"_base64": base64.b64encode(encoded).decode()}])
    (record,) = answer["records"]
    assert {tag["name"] for tag in record["_tags"]} == {"red", "green"}


def test_a_task_is_fetched_and_classifies(models: Models, tmp_path: Path) -> None:
    """The way of the client's own README."""
    client = RecognitionClient(models.running.token, endpoint=models.endpoint)
    task, told = client.get_task(models.tasks["classifier"])
    assert (told["status"], task.name, task.type, task.production_version) == (
        "OK",
        "colours",
        "multi_class",
        1,
    )
    (record,) = task.classify([picture(tmp_path, "blue")])["records"]
    assert record["best_label"]["name"] == "blue"
    names = {label.id: label.name for label in task.get_labels()[0]}
    assert names[record["best_label"]["id"]] == "blue"
    assert {"colours", "fashion"} <= {one.name for one in client.get_all_tasks()[0]}
    (found,), _ = client.get_tasks_by_name("colours")
    assert found.id == task.id


def test_a_task_is_fetched_and_detects(models: Models, tmp_path: Path) -> None:
    client = DetectionClient(models.running.token, endpoint=models.endpoint)
    task, _ = client.get_task(models.tasks["detector"])
    (record,) = task.detect([picture(tmp_path, "red")])["records"]
    assert [one["name"] for one in record["_objects"]] == ["plate"]
    assert [label.name for label in task.get_labels()[0]] == ["cup", "plate"]
    assert {one.name for one in client.get_all_tasks()[0]} == {"cups", "one", "open"}


def test_an_installed_task_is_changed_by_nobody(models: Models) -> None:
    client = RecognitionClient(models.running.token, endpoint=models.endpoint)
    task, _ = client.get_task(models.tasks["classifier"])
    for answer in (task.train(), task.add_label("3")):
        assert answer["detail"].startswith("an installed model answers this task")
    client.remove_task(task.id)
    assert client.get_task(task.id)[0].name == "colours"


def test_what_an_export_becomes_is_named(models: Models) -> None:
    listed = models.running.state.ask("bundle", "list")["bundles"]
    kinds = {bundle["name"]: bundle["kind"] for bundle in listed}
    assert kinds.items() >= {"colours": "classifier", "cups": "detector", "fashion": "tagger"}.items()


def test_a_request_is_answered_later(models: Models, tmp_path: Path) -> None:
    client = AsyncRClient(models.running.token, endpoint=models.endpoint)
    encoded = base64.b64encode(images.encoded(Image.new("RGB", (64, 64), "blue"), "PNG")).decode()
    body = {"records": [{"_id": "mine", "_base64": encoded}], "task_id": models.tasks["classifier"]}
    request = client.submit(body, "custom-recognition")
    until = time.monotonic() + 30
    while not request.update():
        assert time.monotonic() < until
    assert request.status == "DONE"
    (record,) = request.response["records"]
    assert (record["_id"], record["best_label"]["name"]) == ("mine", "blue")
    listed, following, told = client.get_requests(type="custom-recognition", status="DONE")
    assert ([one.id for one in listed], following, told["count"]) == ([request.id], None, 1)
    assert client.get_requests(status="FAILED")[0] == []
