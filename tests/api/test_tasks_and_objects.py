"""Tasks, labels, objects, verifications and points on the wire: what is refused, and how."""

import json
import uuid
from typing import Any

import pytest

from appliance.accounts.agreements import Kind
from tests.api.test_training_images import IMAGES, LABELS, ask, label, upload
from tests.serving import ACTOR, Served, Tenant

TASKS = "/recognition/v2/task"
BOX_TASKS, BOX_LABELS, OBJECTS = "/detection/v2/task", "/detection/v2/label", "/detection/v2/object"
VERIFICATIONS, POINTS = "/annotate/v2/verification", "/annotate/v2/point"


@pytest.fixture
def owner(served: Served) -> Tenant:
    """A new customer that has agreed."""
    tenant = served.tenant(f"owner {uuid.uuid4()}")
    served.run(served.parts.agreements.sign(ACTOR, tenant.id, Kind.TRAINING_DATA))
    return tenant


def made(served: Served, owner: Tenant, path: str, document: object) -> Any:
    answer = ask(served, owner, "POST", path, document)
    assert answer.status == 201, answer.body
    return answer.document


def test_a_task_as_the_client_makes_it(served: Served, owner: Tenant) -> None:
    sent = {"name": "fruit", "type": "multi_class", "description": None}
    task = made(served, owner, f"{TASKS}/", sent)
    assert (task["production_version"], task["last_train_status"], task["workspace"]) == (
        None,
        None,
        owner.id,
    )
    assert ask(served, owner, "GET", f"{TASKS}/{task['id']}").document == task
    boxes = made(served, owner, BOX_TASKS, {"name": "boxes", "description": "x"})
    assert "type" not in boxes
    assert [one["id"] for one in ask(served, owner, "GET", BOX_TASKS).document["results"]] == [boxes["id"]]
    for path in (f"{TASKS}/{boxes['id']}", f"{BOX_TASKS}/{task['id']}"):
        assert ask(served, owner, "GET", path).document["detail"] == "no such task"
    for path in (f"{TASKS}/{task['id']}/", f"{BOX_TASKS}/{boxes['id']}"):
        assert ask(served, owner, "DELETE", path).status == 204
        assert ask(served, owner, "DELETE", path).status == 404


@pytest.mark.parametrize("path", [TASKS, LABELS])
@pytest.mark.parametrize(
    "document",
    [
        *({}, {"name": None}, {"name": 5}, {"name": ""}, {"name": " "}, {"name": "x" * 201}),
        *({"name": "x", "type": "colour"}, {"name": "x", "type": 5}, {"name": "x", "description": []}),
    ],
)
def test_what_is_neither_task_nor_label(served: Served, owner: Tenant, path: str, document: object) -> None:
    before = ask(served, owner, "GET", path).document["count"]
    answer = ask(served, owner, "POST", path, document)
    assert answer.status == answer.code == 400
    assert answer.document["detail"]
    assert ask(served, owner, "GET", path).document["count"] == before


def test_texts_that_are_too_long(served: Served, owner: Tenant) -> None:
    for path, field in ((TASKS, "description"), (LABELS, "description"), (BOX_LABELS, "output_name")):
        assert ask(served, owner, "POST", path, {"name": "x", field: "x" * 4001}).status == 413


@pytest.mark.parametrize(
    "name", ['"', "\\", "\u0000x", "ž" * 200, "<b>", "'; DROP TABLE labels; --", "%", "_"]
)
def test_any_name_comes_back_as_it_was(served: Served, owner: Tenant, name: str) -> None:
    made(served, owner, LABELS, {"name": "another"})
    assert made(served, owner, LABELS, {"name": name})["name"] == name
    headers = owner.headers()
    query = "".join(f"%{byte:02x}" for byte in name.encode())
    found = served.site.call("GET", f"{LABELS}/?search={query}", headers=headers).document
    assert [one["name"] for one in found["results"]] == [name]


def test_training_says_that_it_is_not_there(served: Served, owner: Tenant) -> None:
    for path in (TASKS, BOX_TASKS):
        task = made(served, owner, path, {"name": "x"})
        for document in (None, {}, {"workspace": owner.id}):
            answer = ask(served, owner, "POST", f"{path}/{task['id']}/train/", document)
            assert answer.status == 409
            assert "not available" in answer.document["detail"]
        assert ask(served, owner, "POST", f"{path}/{uuid.uuid4()}/train").status == 404
    for method in ("GET", "DELETE"):
        answer = ask(served, owner, method, f"/recognition/v2/model/{uuid.uuid4()}")
        assert (answer.status, answer.document["detail"]) == (404, "no such model")


def test_labels_are_listed_by_task_type_and_name(served: Served, owner: Tenant) -> None:
    task = made(served, owner, TASKS, {"name": "t"})["id"]
    names = [
        label(served, owner, f"label {number}", type="tag" if number % 2 else "category")
        for number in range(45)
    ]
    ask(served, owner, "POST", f"{TASKS}/{task}/add-label/", {"label_id": names[3]})

    def found(query: str) -> list[str]:
        document = ask(served, owner, "GET", f"{LABELS}/?{query}").document
        listed = [one["id"] for one in document["results"]]
        while document["next"] is not None:
            document = ask(served, owner, "GET", document["next"]).document
            listed += [one["id"] for one in document["results"]]
        assert document["count"] == len(listed)
        return listed

    assert found("") == found("page=1&page_size=100") == names
    assert found(f"task={task}") == [names[3]]
    assert found("type=tag") == names[1::2]
    assert found("search=LABEL%204") == [names[4], *names[40:]]
    assert found("search=label&page_size=7") == names
    assert ask(served, owner, "GET", f"{LABELS}/?type=x").status == 400
    assert ask(served, owner, "GET", f"{LABELS}/?task={uuid.uuid4()}").status == 404


def test_a_wipe_takes_the_images_along_and_a_deletion_does_not(served: Served, owner: Tenant) -> None:
    names = [label(served, owner), label(served, owner)]
    images = [upload(served, owner)["id"] for _ in range(2)]
    for image, name in zip(images, names, strict=True):
        ask(served, owner, "POST", f"{IMAGES}/{image}/add-label", {"label_id": name})
    assert ask(served, owner, "DELETE", f"{LABELS}/{names[0]}/wipe").status == 204
    assert ask(served, owner, "DELETE", f"{LABELS}/{names[1]}").status == 204
    assert ask(served, owner, "GET", IMAGES).document["count"] == 1
    for path in (f"{LABELS}/{names[0]}/wipe", f"{LABELS}/{names[1]}"):
        assert ask(served, owner, "DELETE", path).status == 404


def test_objects_as_the_client_makes_and_changes_them(served: Served, owner: Tenant) -> None:
    image = upload(served, owner)["id"]
    car = made(served, owner, BOX_LABELS, {"name": "car", "color": None})
    assert car["color"] == "#FFFFFF"
    sent = {"detection_label": car["id"], "image": image, "data": [1, 2, 3.5, 4], "meta_data": None}
    thing = made(served, owner, f"{OBJECTS}/", sent)
    assert b"[1,2,3.5,4]" in ask(served, owner, "GET", f"{OBJECTS}/{thing['id']}").body
    assert thing["image"]["id"] == image
    assert thing["meta_data"] == {}
    at = f"{OBJECTS}/{thing['id']}"
    whole = {"detection_label": thing["detection_label"], "image": thing["image"], "data": [0, 0, 9, 9]}
    assert ask(served, owner, "PUT", at, whole).document["data"] == [0, 0, 9, 9]
    assert ask(served, owner, "PUT", at, {"meta_data": {"x": 1}}).document["meta_data"] == {"x": 1}
    assert ask(served, owner, "PUT", at, {}).document["data"] == [0, 0, 9, 9]
    for refused, status in (
        ({"data": [0, 0, 641, 9]}, 400),
        ({"data": [0, 0, 9]}, 400),
        ({"data": [0, 0, 9, "9"]}, 400),
        ({"data": [False, 0, 9, 9]}, 400),
        ({"data": [0, 0, 10**30, 9]}, 400),
        ({"data": {"xmin": 0}}, 400),
        ({"meta_data": []}, 400),
        ({"image": 7}, 400),
        ({"detection_label": []}, 400),
        ({"image": upload(served, owner)["id"]}, 400),
        ({"image": str(uuid.uuid4())}, 404),
        ({"detection_label": str(uuid.uuid4())}, 404),
    ):
        assert ask(served, owner, "PUT", at, refused).status == status, refused
    for missing in ("detection_label", "image", "data"):
        assert ask(served, owner, "POST", OBJECTS, {**sent, missing: None}).status == 400
    assert ask(served, owner, "GET", f"{OBJECTS}/?image={image}").document["count"] == 1
    assert ask(served, owner, "GET", f"{OBJECTS}/?object_labels={','.join('abcdefghijk')}").status == 400
    assert ask(served, owner, "GET", f"{OBJECTS}/?object_detection_label=x").status == 404
    assert ask(served, owner, "DELETE", at).status == 204
    assert ask(served, owner, "DELETE", at).status == 404


def test_verifications(served: Served, owner: Tenant) -> None:
    image = upload(served, owner)["id"]
    first = made(served, owner, f"{VERIFICATIONS}/", {"user": "anna", "image_id": image})
    assert made(served, owner, VERIFICATIONS, {"user": "anna", "image_id": image}) == first
    made(served, owner, VERIFICATIONS, {"user": 7, "image_id": image})
    found = ask(served, owner, "GET", f"{VERIFICATIONS}/?image={image}").document
    assert ([one["user"] for one in found["results"]], found["next"]) == (["anna", 7], None)
    assert ask(served, owner, "GET", f"{IMAGES}/{image}").document["verifyCount"] == 2
    assert ask(served, owner, "DELETE", f"{VERIFICATIONS}/{first['id']}").status == 204
    assert ask(served, owner, "DELETE", f"{VERIFICATIONS}/{first['id']}").status == 404
    for refused, status in (
        ({}, 400),
        ({"user": "anna"}, 400),
        ({"user": None, "image_id": image}, 400),
        ({"user": True, "image_id": image}, 400),
        ({"user": "", "image_id": image}, 400),
        ({"user": "x" * 1000, "image_id": image}, 400),
        ({"user": "anna", "image_id": str(uuid.uuid4())}, 404),
    ):
        assert ask(served, owner, "POST", VERIFICATIONS, refused).status == status, refused
    assert ask(served, owner, "GET", VERIFICATIONS).status == 400
    assert ask(served, owner, "GET", f"{VERIFICATIONS}/?image={uuid.uuid4()}").status == 404


def test_points(served: Served, owner: Tenant) -> None:
    image = upload(served, owner)["id"]
    point = made(served, owner, f"{POINTS}/", {"image": image, "name": "eye", "data": [[1, 2]]})
    made(served, owner, POINTS, {"image": None, "name": None, "data": None})
    assert ask(served, owner, "GET", f"{POINTS}/?image={image}").document["results"] == [point]
    assert ask(served, owner, "GET", POINTS).document["count"] == 2
    for refused, status in (
        ({}, 400),
        ({"data": 1, "name": 5}, 400),
        ({"data": 1, "name": ""}, 400),
        ({"data": 1, "image": 5}, 400),
        ({"data": 1, "image": str(uuid.uuid4())}, 404),
        ({"data": "x" * 70_000}, 413),
    ):
        assert ask(served, owner, "POST", POINTS, refused).status == status, refused
    assert ask(served, owner, "DELETE", f"{POINTS}/{point['id']}").status == 204
    assert ask(served, owner, "DELETE", f"{POINTS}/{point['id']}").status == 404


def test_every_act_is_in_the_customers_log_and_says_no_word(served: Served, owner: Tenant) -> None:
    image = upload(served, owner, meta_data={"x": "a secret"})["id"]
    task = made(served, owner, TASKS, {"name": "a secret"})["id"]
    name = label(served, owner, "a secret")
    car = made(served, owner, BOX_LABELS, {"name": "a secret"})["id"]
    thing = made(served, owner, OBJECTS, {"detection_label": car, "image": image, "data": [0, 0, 1, 1]})["id"]
    ask(served, owner, "POST", f"{TASKS}/{task}/add-label", {"label_id": name})
    ask(served, owner, "POST", f"{IMAGES}/{image}/add-label", {"label_id": name})
    verified = made(served, owner, VERIFICATIONS, {"user": "a secret", "image_id": image})["id"]
    point = made(served, owner, POINTS, {"name": "a secret", "data": "a secret"})["id"]
    for path in (
        f"{VERIFICATIONS}/{verified}",
        f"{POINTS}/{point}",
        f"{OBJECTS}/{thing}",
        f"{LABELS}/{name}/wipe",
    ):
        assert ask(served, owner, "DELETE", path).status == 204
    entries = [entry for entry in served.audited(owner) if entry.actor.kind == "token"]
    assert [entry.event.value for entry in entries if entry.event.value != "agreement.sign"] == [
        *("image.add", "task.add", "label.add", "label.add", "object.add", "task.change", "image.update"),
        *("verification.add", "point.add", "verification.delete", "point.delete", "object.delete"),
        *("label.wipe", "image.delete"),
    ]
    assert "secret" not in json.dumps([entry.details for entry in entries])
    assert {entry.customer for entry in entries} == {owner.id}
