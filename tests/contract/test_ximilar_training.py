"""The official client, endpoint changed and nothing else, from an upload to the end of its links."""

import base64
import io
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from ximilar.client import DetectionClient, RecognitionClient

from appliance.accounts.agreements import Kind
from tests.serving import ACTOR, Served, Tenant

SIZE = (640, 480)
COUNT = 200


@pytest.fixture(scope="module")
def clocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of the module's own: its clock is moved."""
    with Served(tmp_path_factory.mktemp("training")) as served:
        yield served


@pytest.fixture
def owner(clocked: Served) -> Tenant:
    """A new customer that has agreed."""
    tenant = clocked.tenant(f"owner {uuid.uuid4()}")
    clocked.run(clocked.parts.agreements.sign(ACTOR, tenant.id, Kind.TRAINING_DATA))
    return tenant


@pytest.fixture
def endpoint(clocked: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A connection to elsewhere fails the test, even a caught one."""
    escaped: list[object] = []
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if address[0] not in {"127.0.0.1", "::1"} or address[1] != clocked.site.port:
            escaped.append(address)
            raise OSError(f"connected to {address}")
        connect(self, address)

    monkeypatch.setenv("LD_LIBRARY_PATH", "")  # restored after OpenCV, which the client imports, changes it
    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield f"http://localhost:{clocked.site.port}/"
    assert escaped == []


@pytest.fixture
def client(owner: Tenant, endpoint: str) -> RecognitionClient:
    return RecognitionClient(owner.token, endpoint=endpoint)


def photograph(number: int) -> Image.Image:
    """Like no other: neither side is large enough for the client to scale it."""
    small = np.random.default_rng(number).integers(0, 255, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize(SIZE, Image.Resampling.BICUBIC)


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    photograph(number).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def record(number: int, folder: Path) -> dict[str, Any]:
    """The three forms that the client knows, in turn."""
    if number % 3 == 0:
        path = folder / f"{number}.jpg"
        path.write_bytes(jpeg(number))
        return {"_file": str(path)}
    if number % 3 == 1:
        return {"_img_data": np.asarray(photograph(number)), "_color_space": "RGB"}
    return {"_base64": base64.b64encode(jpeg(number))}


def every(client: Any, **filters: Any) -> list[str]:
    """All pages of a list, one image at a time, by their ids."""
    return [image.id for image in client.training_images_iter(**filters)]


def test_two_hundred_images_through_their_whole_life(
    clocked: Served, client: RecognitionClient, tmp_path: Path
) -> None:
    task, status = client.create_task("what it is", "a task", "multi_class")
    assert status["status"] == "OK"
    even, _ = client.create_label("even")
    third, _ = client.create_label("third", label_type="tag", output_name="3")
    for label in (even, third):
        task.add_label(label.id)
    assert [label.name for label in task.get_labels()[0]] == ["even", "third"]

    images = []
    for number in range(COUNT):
        labels = [one.id for one, of in ((even, 2), (third, 3)) if number % of == 0]
        more: dict[str, Any] = {"labels": labels, "meta_data": {"n": number}, "test_image": number % 4 == 0}
        if number % 5 == 0:
            more["real"] = True
        [image], status = client.upload_images([record(number, tmp_path) | more])
        assert status["status"] == "OK"
        images.append(image.id)

    lists(client, images, even.id, third.id)
    labels_tell_their_counts(client)
    links = download(client, images, tmp_path)
    twice, status = client.upload_images([record(2, tmp_path)])
    assert (twice[0].id, status["status"]) == (images[2], "exists")

    assert {requests.get(link, timeout=30).status_code for link in links} == {200}
    clocked.clock += 3601
    assert {requests.get(link, timeout=30).status_code for link in links} == {403}

    for image in images[:20]:
        assert client.remove_image(image).status_code == 204
    assert client.get_image(images[0]) == (None, {"status": "image with id not found"})
    left, _ = client.get_label(even.id)
    assert left.images_count == 90
    left.wipe()
    assert every(client) == [image for image in images[20:] if images.index(image) % 2]
    assert client.get_label(even.id)[0] is None
    third.remove()
    assert client.get_labels_by_substring("third")[0] is None
    client.remove_task(task.id)
    assert client.get_task(task.id)[0] is None


def lists(client: RecognitionClient, images: list[str], even: str, third: str) -> None:
    """Every filter of the client, each to its last page."""
    assert every(client) == images
    first, following, told = client.get_training_images()
    assert (len(first), told["count"]) == (20, COUNT)
    assert following.startswith("/recognition/v2/training-image/?page=2&after=")
    assert every(client, test=True) == images[::4]
    by_label = client.get_label(even)[0]
    assert every(by_label) == images[::2]
    found, _, told = by_label.get_training_images(not_label=True, test=False)
    assert ([image.id for image in found], told["count"]) == (images[1:41:2], 100)
    found, following, told = client.get_training_images(
        f"recognition/v2/training-image/?labels={even}&labels={third}"
    )
    assert ([image.id for image in found], told["count"]) == (images[0:120:6], 34)
    assert [image.id for image in client.get_training_images(following)[0]] == images[120::6]
    real, _, told = client.get_training_images(real=True)
    assert ([image.id for image in real], told["count"]) == (images[0:100:5], 40)
    assert client.get_training_images(real=False)[2]["count"] == 160
    assert client.get_training_images(verification=0)[2]["count"] == COUNT
    assert client.get_training_images(verification=1)[0] == []


def labels_tell_their_counts(client: RecognitionClient) -> None:
    labels, _ = client.get_all_labels()
    assert [(label.name, label.type, label.images_count, label.tasks_count) for label in labels] == [
        ("even", "category", 100, 1),
        ("third", "tag", 67, 1),
    ]
    assert labels[1].output_name == "3"
    assert client.get_labels_by_substring("VE")[0][0].name == "even"


def download(client: RecognitionClient, images: list[str], folder: Path) -> list[str]:
    """One image of each form, as it was sent; their links."""
    links = []
    for number in (0, 1, 2):
        image, _ = client.get_image(images[number])
        assert (image.img_width, image.img_height, image.meta_data) == (*SIZE, {"n": number})
        (folder / "out").mkdir(exist_ok=True)
        path = image.download(f"{folder}/out/")
        assert Path(path).name == f"{image.id}.jpg"
        with Image.open(path) as stored:
            difference = np.abs(np.asarray(stored, int) - np.asarray(photograph(number), int))
        assert difference.mean() < 4
        links += [image.img_path, image.thumb_img_path]
    return links


def test_what_is_written_about_an_image(client: RecognitionClient, tmp_path: Path) -> None:
    [image], _ = client.upload_images([record(0, tmp_path)])
    width, _ = client.create_label("width", label_type="category", description="in cm")
    image.add_label(width.id, 2.5)
    assert [(label.id, label.name) for label in image.get_labels()[0]] == [(width.id, "width")]
    for value, count in ((2.5, 1), (3, 0)):
        assert width.get_training_images(value=value)[2]["count"] == count
    image.update_label(width.id, 3)
    assert width.get_training_images(value=3)[2]["count"] == 1
    image.detach_label(width.id)
    assert client.get_image(image.id)[0].get_labels()[0] == []

    assert image.get_meta_data() == {}
    image.add_meta_data({"a": 1})
    image.add_meta_data({"b": [2]})
    assert client.get_image(image.id)[0].meta_data == {"a": 1, "b": [2]}
    image.clear_meta_data()
    assert image.get_meta_data() == {}

    image.set_test(True)
    image.set_real(True)
    assert client.get_image(image.id)[0].test_image is True
    assert client.get_training_images(real=True, test=True)[2]["count"] == 1
    image.set_test(False)
    assert client.get_training_images(test=True)[2]["count"] == 0
    client.modify_images(labels=[width.id], add_labels=[width.id])

    assert image.verify("anna")["user"] == "anna"
    image.verify("bert")
    assert [one["user"] for one in image.get_verifications()] == ["anna", "bert"]
    assert client.get_training_images(verification=2)[0][0].id == image.id
    image.unverify()
    assert image.get_verifications() == []

    point, _ = client.create_point(image.id, "eye", {"x": 1})
    assert point["data"] == {"x": 1}
    [got], _ = client.get_points(image.id)
    assert (got.name, got.data) == ("eye", {"x": 1})


def test_a_tagging_task_and_what_follows_a_label(client: RecognitionClient) -> None:
    task, _ = client.create_task("tags", task_type="multi_label")
    negative, _ = task.get_negative_label()
    assert negative.negative_for_task == task.id
    label, _ = client.create_label("car")
    label.add_annotate_task(task.id)
    [following], _ = label.get_annotate_tasks()
    assert following.id == task.id
    label.detach_annotate_task(task.id)
    assert label.get_annotate_tasks()[0] == []
    task.add_label(label.id)
    assert len(task.get_labels()[0]) == 2
    task.detach_label(label.id)
    assert len(task.get_labels()[0]) == 1
    assert client.get_tasks_by_name("tags")[0][0].production_version is None
    assert "not available" in task.train()["detail"]
    assert client.get_model(str(uuid.uuid4()))[0] is None
    assert client.get_task(str(uuid.uuid4())) == (None, {"status": "no such task"})


def test_objects(owner: Tenant, client: RecognitionClient, endpoint: str, tmp_path: Path) -> None:
    detection = DetectionClient(owner.token, endpoint=endpoint)
    task, _ = detection.create_task("cars", "on streets")
    car, _ = detection.create_label("car", color="#FF0000")
    truck, _ = detection.create_label("truck", output_name="lorry")
    task.add_label(car.id)
    assert [(label.name, label.color) for label in task.get_labels()[0]] == [("car", "#FF0000")]
    boxes = [{"detection_label": car.id, "data": [1, 2, 300, 400], "meta_data": {"n": 1}}]
    [image], _ = detection.upload_images([record(0, tmp_path) | {"objects": boxes}])
    [found], _ = detection.get_objects_of_image(image.id)
    assert (found.data, found.meta_data) == ([1, 2, 300, 400], {"n": 1})
    assert found.to_record() == {"id": found.id, "bound_box": [1, 2, 300, 400], "name": "car"}
    second, _ = detection.create_object(car.id, image.id, [0.5, 0, 10, 10.5])
    assert second.data == [0.5, 0, 10, 10.5]
    assert detection.create_object(car.id, image.id, [0, 0, 641, 10])[0] is None

    assert [one.id for one in car.get_images()[0]] == [image.id]
    assert car.get_training_images()[2]["count"] == 1
    red, _ = client.create_label("red", label_type="tag")
    found.add_recognition_label(red.id)
    found.update_label(red.id, 0.5)
    assert detection.get_object(found.id)[0].recognition_labels[0]["value"] == 0.5
    assert [one.id for one in detection.get_objects(object_label=red.id)[0]] == [found.id]
    assert len(detection.get_objects(detection_label=car.id)[0]) == 2
    found.detach_recognition_label(red.id)
    assert detection.get_objects(object_label=red.id)[0] == []
    found.change_label(truck.id, [5, 6, 7, 8])
    found, _ = detection.get_object(found.id)
    assert (found.detection_label["name"], found.data) == ("truck", [5, 6, 7, 8])
    found.add_meta_data({"m": 2})
    assert detection.get_object(found.id)[0].meta_data == {"n": 1, "m": 2}
    found.clear_meta_data()
    assert detection.get_object(found.id)[0].meta_data == {}

    colours, _ = client.create_task("colours")
    truck.add_recognition_task(colours.id)
    assert detection.get_label(truck.id)[0].recognition_tasks == [{"id": colours.id}]
    truck.detach_recognition_task(colours.id)
    assert task.add_negative_image(image.id)["negative_images_count"] == 1

    second.remove()
    assert len(detection.get_objects()[0]) == 1
    client.remove_image(image.id)
    assert detection.get_objects()[0] == []
    assert "detail" in detection.remove_object(found.id)
    truck.remove()
    assert [label.name for label in detection.get_all_labels()[0]] == ["car"]
    task.remove()
    assert detection.get_all_tasks()[0] == []


def test_workspaces(clocked: Served, owner: Tenant, endpoint: str, tmp_path: Path) -> None:
    other = clocked.run(clocked.parts.images.datasets.add(ACTOR, owner.id, "beside"))  # type: ignore[union-attr]
    default = RecognitionClient(owner.token, endpoint=endpoint)
    beside = RecognitionClient(owner.token, endpoint=endpoint, workspace=other.id)
    here, _ = default.create_label("here")
    there, _ = beside.create_label("there")
    assert (here.workspace, there.workspace) == (owner.id, other.id)
    assert [label.name for label in default.get_all_labels()[0]] == ["here"]
    assert [label.name for label in beside.get_all_labels()[0]] == ["there"]
    uploaded = [beside.upload_images([record(n, tmp_path) | {"labels": [there.id]}])[0][0] for n in range(3)]
    assert {image.workspace for image in uploaded} == {other.id}
    uploaded[0].set_test(True)
    assert default.get_training_images()[2]["count"] == 0
    assert every(beside, batch_size=1) == [image.id for image in uploaded]
    page, following, _ = beside.get_training_images("recognition/v2/training-image/?page=1&page_size=2")
    rest, end, _ = beside.get_training_images(following)
    assert [image.id for image in (*page, *rest)] == [image.id for image in uploaded]
    assert end is None
    there.add_annotate_task(beside.create_task("t")[0].id)
    detecting = DetectionClient(owner.token, endpoint=endpoint, workspace=other.id)
    car, _ = detecting.create_label("car")
    made, _ = detecting.create_object(car.id, uploaded[0].id, [0, 0, 5, 5])
    made.change_label(car.id, [0, 0, 6, 6])
    assert [one.data for one in detecting.get_objects()[0]] == [[0, 0, 6, 6]]
    there.wipe()
    assert every(beside) == []
    assert len(default.get_all_labels()[0]) == 1


def test_without_an_agreement_the_client_is_told(clocked: Served, endpoint: str, tmp_path: Path) -> None:
    stranger = clocked.tenant(f"stranger {uuid.uuid4()}")
    client = RecognitionClient(stranger.token, endpoint=endpoint)
    images, status = client.upload_images([record(0, tmp_path)])
    assert images == []
    assert status["status"].startswith("image not uploaded")


def test_images_sent_for_recognition_are_kept_where_the_client_asks_for_it(
    clocked: Served, client: RecognitionClient, owner: Tenant, endpoint: str, tmp_path: Path
) -> None:
    """In the client's own workspace, which it sends along."""
    shelves = clocked.run(clocked.images.datasets.add(ACTOR, owner.id, "shelves"))
    beside = RecognitionClient(owner.token, endpoint=endpoint, workspace=shelves.id)
    task, seen = clocked.bundle.task, []
    for asking in (client, beside):
        answer = asking.classify_on_task([record(n, tmp_path) for n in (0, 1)], task, store_images=True)
        seen.append([one["_stored_image_id"] for one in answer["records"]])
        asking.classify_on_task([record(3, tmp_path)], task)
        assert sorted(every(asking)) == sorted(seen[-1])
        image, _ = asking.get_image(seen[-1][0])
        assert Path(image.download(str(tmp_path))).stat().st_size > 1000
    assert not set(seen[0]) & set(seen[1])
