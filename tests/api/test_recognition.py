"""Classification, tags and descriptors over HTTP."""

import base64
import json
import uuid
from typing import Any

import numpy as np
import pytest
from PIL import Image

from appliance.accounts.rights import Scope
from tests import images
from tests.serving import COLOURS, DIM, Reply, Served, Tenant

CLASSIFY = "/recognition/v2/classify"


def picture(colour: str, width: int = 40, height: int = 30, kind: str = "PNG") -> bytes:
    return images.encoded(Image.new("RGB", (width, height), colour), kind)


def record(colour: str = "red", **fields: object) -> dict[str, object]:
    return {"_base64": base64.b64encode(picture(colour)).decode(), **fields}


def post(served: Served, tenant: Tenant, path: str, document: object, **headers: str) -> Reply:
    return served.site.call("POST", path, json.dumps(document).encode(), tenant.headers(**headers))


def classify(served: Served, tenant: Tenant, *records: object, **fields: object) -> Any:
    answer = post(served, tenant, CLASSIFY, {"records": records, "task_id": served.bundle.task, **fields})
    assert answer.status == 200, answer.body
    return answer.document


def test_a_classification_has_the_clouds_shape(served: Served, tenant: Tenant) -> None:
    sent = record("#a01010", own={"id": 7}, _id="mine", _file="/home/anna/cat.jpg")
    document = classify(served, tenant, sent, version=None, pricing=True)
    (seen,) = document["records"]
    assert seen["_status"] == document["status"]
    assert document["status"]["code"] == 200
    assert document["status"]["text"] == "OK"
    assert (seen["_id"], seen["own"], seen["_width"], seen["_height"]) == ("mine", {"id": 7}, 40, 30)
    assert "_base64" not in seen
    assert "_file" not in seen
    assert seen["labels"][0]["name"] == "red"
    assert seen["best_label"] == seen["labels"][0]
    assert set(seen["best_label"]) == {"id", "name", "prob"}
    assert uuid.UUID(seen["best_label"]["id"]).version == 4
    assert sum(label["prob"] for label in seen["labels"]) == pytest.approx(1)
    assert document["pricing"] is True
    assert document["statistics"]["processing time"] > 0


def test_ten_records_come_back_in_their_order(served: Served, tenant: Tenant) -> None:
    wanted = [COLOURS[n % 3] for n in range(10)]
    document = classify(served, tenant, *(record(colour, n=n) for n, colour in enumerate(wanted)))
    assert [seen["n"] for seen in document["records"]] == list(range(10))
    assert [seen["best_label"]["name"] for seen in document["records"]] == wanted


def test_a_record_without_id_gets_a_random_one(served: Served, tenant: Tenant) -> None:
    records = classify(served, tenant, record(), record(_id=None), record(_id=5))["records"]
    assert uuid.UUID(records[0]["_id"]).version == uuid.UUID(records[1]["_id"]).version == 4
    assert records[2]["_id"] == 5


def test_one_bad_record_says_why_and_the_others_are_served(served: Served, tenant: Tenant) -> None:
    bad: list[dict[str, object]] = [
        {"_base64": base64.b64encode(b"no image").decode()},
        {"_base64": ""},
        {"_base64": "!!!"},
        {"_base64": 5},
        {"_url": "http://169.254.169.254/x.jpg"},
        {"_id": "no image at all"},
    ]
    document = classify(served, tenant, *bad, record("blue"))
    *refused, good = document["records"]
    assert document["status"]["code"] == 200
    assert good["best_label"]["name"] == "blue"
    assert [seen["_status"]["code"] for seen in refused] == [400] * 6
    assert "_base64" in refused[2]["_status"]["text"]
    assert "_url" in refused[4]["_status"]["text"]
    assert all("labels" not in seen and "_width" not in seen for seen in refused)


def test_the_size_is_that_of_the_upright_image(served: Served, tenant: Tenant) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = images.encoded(Image.new("RGB", (40, 30), "red"), "JPEG", exif=exif)
    (seen,) = classify(served, tenant, {"_base64": base64.b64encode(encoded).decode()})["records"]
    assert (seen["_width"], seen["_height"]) == (30, 40)


@pytest.mark.parametrize(
    ("fields", "status", "why"),
    [
        ({}, 400, "task_id"),
        ({"task_id": 5}, 400, "task_id"),
        ({"task_id": "00000000-0000-4000-8000-000000000000"}, 404, "no such task"),
        ({"task_id": "TASK", "version": 9}, 404, "version"),
        ({"task_id": "TASK", "store_images": True}, 403, "training-data agreement"),
        ({"task_id": "TASK", "store_images": "yes"}, 400, "store_images"),
        ({"task_id": "TASK", "records": []}, 400, "records"),
        ({"task_id": "TASK", "records": None}, 400, "records"),
        ({"task_id": "TASK", "records": [{}] * 11}, 400, "1 to 10"),
    ],
)
def test_calls_that_are_refused_whole(
    served: Served, tenant: Tenant, fields: dict[str, object], status: int, why: str
) -> None:
    task = {"task_id": served.bundle.task} if fields.get("task_id") == "TASK" else {}
    answer = post(served, tenant, CLASSIFY, {"records": [record()], **fields, **task})
    assert answer.status == answer.code == status
    assert why in answer.document["status"]["text"]
    assert answer.document["detail"] == answer.document["status"]["text"]


@pytest.mark.parametrize("version", [None, 1, "1"])
@pytest.mark.parametrize("name", ["task_id", "task"])
def test_versions_and_the_older_name_of_the_task(
    served: Served, tenant: Tenant, name: str, version: object
) -> None:
    document = {"records": [record("green")], name: served.bundle.task, "version": version}
    answer = post(served, tenant, CLASSIFY, document)
    assert answer.document["records"][0]["best_label"]["name"] == "green"


def test_tags(served: Served, tenant: Tenant) -> None:
    answer = post(served, tenant, "/photo/tags/v2/tags", {"records": [record("blue", n=1)]})
    (seen,) = answer.document["records"]
    assert seen["_tags"][0]["name"] == "blue"
    assert set(seen["_tags"][0]) == {"name", "prob", "id"}
    assert seen["n"] == 1


@pytest.mark.parametrize("path", ["/photo/v2/descriptor", "/similarity/training/v2/descriptor"])
def test_descriptors_have_length_one(served: Served, tenant: Tenant, path: str) -> None:
    for task in ({}, {"task_id": served.bundle.task, "version": None}):
        answer = post(served, tenant, path, {"records": [record("red"), record("blue")], **task})
        vectors = [np.array(seen["_descriptor"]) for seen in answer.document["records"]]
        assert [vector.shape for vector in vectors] == [(DIM,)] * 2
        assert [np.linalg.norm(vector) for vector in vectors] == pytest.approx([1, 1])
        assert not np.allclose(vectors[0], vectors[1])
    assert post(served, tenant, path, {"records": [record()], "task_id": "other"}).status == 404


def test_recognition_needs_its_scope(served: Served, tenant: Tenant) -> None:
    token = served.token(tenant, Scope.SEARCH_READ)
    document = {"records": [record()], "task_id": served.bundle.task}
    answer = post(served, tenant, CLASSIFY, document, authorization=f"Token {token}")
    assert answer.status == answer.code == 403
    assert "infer" in answer.document["detail"]
