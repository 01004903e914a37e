"""What an operator and a customer do with an appliance from day to day, where there is no network.

`test_works_without_a_network.py` runs it inside a namespace, behind the journeys of the official client;
pytest does not find it by itself.
"""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.outbound.gate import UNDECLARED
from tests import images
from tests.backing import Shelf
from tests.datasets import folders
from tests.running import RunningAppliance
from tests.waiting import eventually


def ask(appliance: RunningAppliance, *words: object) -> Any:
    return appliance.state.ask(*map(str, words))


def records(*seeds: int) -> list[dict[str, str]]:
    return [
        {"_id": f"cut off {seed}", "_base64": base64.b64encode(images.jpeg(seed=seed)).decode()}
        for seed in seeds
    ]


@pytest.mark.parametrize(
    "path",
    [
        "/recognition/v2/classify",
        "/photo/tags/v2/tags",
        "/dom_colors/generic/v2/dominantcolor",
        "/photo/v2/descriptor",
        "/image_matching/v2/visual_hash",
        "/image_matching/v2/remove_duplicates",
    ],
)
def test_images_are_recognised_and_compared(appliance: RunningAppliance, path: str) -> None:
    answer = appliance.post(path, {"task_id": appliance.task, "records": records(1, 2)})
    assert answer.status == 200, answer.body[:300]


def test_a_request_is_answered_later(appliance: RunningAppliance) -> None:
    asked = {"type": "custom-recognition", "task_id": appliance.task, "records": records(3)}
    request = appliance.post("/account/v2/request", asked)
    assert request.status == 201, request.body
    path = f"/account/v2/request/{request.document['id']}"
    eventually(lambda: appliance.call("GET", path).document["status"] == "DONE", "it is done")


def test_a_collection_goes_in_and_out_and_back(appliance: RunningAppliance, tmp_path: Path) -> None:
    collection, inserted = appliance.add_collection(), {"records": records(4, 5, 6)}
    assert appliance.post("/similarity/photos/v2/insert", inserted, collection_id=collection).status == 200
    asked = {"query_record": {"_id": "cut off 4"}, "k": 3}
    found = appliance.post("/similarity/photos/v2/visualKNN", asked, collection_id=collection).document
    assert found["answer_records"][0]["_id"] == "cut off 4"
    snapshot = ask(appliance, "collection", "snapshot", "add", collection)["id"]
    ask(appliance, "collection", "snapshot", "restore", collection, snapshot)
    described = appliance.call("GET", f"/appliance/v1/collections/{collection}").document
    vectors, words = tmp_path / "vectors.npy", ("--backbone", described["backbone"])
    np.save(vectors, np.eye(8, described["dim"], dtype=np.float32))
    assert ask(appliance, "collection", "import", collection, vectors, *words)["inserted"] == 8
    target, token = tmp_path / "all.zip", appliance.state.token_file
    ask(appliance, "collection", "export", collection, target, "--token-file", token)
    brought = ask(appliance, "collection", "import", appliance.add_collection(), target, *words)
    assert brought["inserted"] == 11


def test_images_are_stored_and_given_back(appliance: RunningAppliance, tmp_path: Path) -> None:
    ask(appliance, "agreement", "sign", "demo", "training-data")
    source = tmp_path / "source"
    for name, content in folders().items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    assert ask(appliance, "dataset", "import", "demo", source, "--task", "fruit")["images"] == len(folders())
    stored = appliance.call("GET", "/recognition/v2/training-image").document["results"]
    link = "/" + stored[0]["img_path"].split("/", 3)[3]
    assert appliance.call("GET", link, headers={}).status == 200
    words = ("--format", "coco", "--token-file", appliance.state.token_file)
    ask(appliance, "dataset", "export", "Default", tmp_path / "coco.zip", *words)


def test_an_operator_does_the_rest(appliance: RunningAppliance, tmp_path: Path) -> None:
    shelf = Shelf.under(tmp_path)
    made = ask(appliance, "backup", "--to", shelf.backups, "--keyring-to", shelf.keyrings)
    again = ("--from", made["backup"], "--keyring", made["keyring"], "--verify-only")
    assert ask(appliance, "restore", *again)["files"] == made["files"]
    ask(appliance, "report", "--out", tmp_path / "report.html")
    assert "Records of processing" in (tmp_path / "report.html").read_text()
    token = ("--token-file", appliance.state.token_file)
    ask(appliance, "customer", "export", "demo", *token, "--out", tmp_path / "all.zip")
    ask(appliance, "audit", "verify")
    ask(appliance, "key", "rotate", "customer", ask(appliance, "customer", "list")["customers"][0]["id"])
    ask(appliance, "residency", "report", "--out", tmp_path / "report.json")
    ask(appliance, "residency", "verify", tmp_path / "report.json", tmp_path / "report.json.pub")
    assert ask(appliance, "status")["state"] in {"ready", "degraded"}


def test_nothing_was_tried(appliance: RunningAppliance) -> None:
    """By the daemon's own counters, after all of the above and what ran before it."""
    statement = appliance.call("GET", "/appliance/v1/residency").document
    predicate = json.loads(base64.b64decode(statement["payload"]))["predicate"]
    (undeclared,) = predicate["connections"]["by_destination"]
    assert (undeclared["destination"], undeclared["allowed"], undeclared["refused"]) == (UNDECLARED, 0, 0)
