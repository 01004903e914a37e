"""`store_images`: what is sent for recognition with the wish that it be kept, and what becomes of that."""

import base64
import io
import json
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from appliance.accounts.agreements import Kind
from appliance.accounts.audit import Event
from appliance.accounts.rights import Scope
from tests import bundles, images
from tests.api.test_asynchronous import ended
from tests.hosts import Host
from tests.serving import ACTOR, Reply, Served, Site, Tenant

CLASSIFY, DETECT = "/recognition/v2/classify", "/detection/v2/detect"
IMAGES, DATASETS = "/recognition/v2/training-image", "/appliance/v1/datasets"
LATER = "/account/v2/request"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of its own: a detector is installed in it."""
    folder = tmp_path_factory.mktemp("kept")
    with Served(folder) as served:
        served.install(bundles.detector(folder / "detector"))
        yield served


@pytest.fixture
def owner(served: Served) -> Tenant:
    """A new customer that has agreed."""
    tenant = served.tenant(f"owner {uuid.uuid4()}")
    served.run(served.parts.agreements.sign(ACTOR, tenant.id, Kind.TRAINING_DATA))
    return tenant


def picture(colour: str = "red") -> bytes:
    return images.encoded(Image.new("RGB", (40, 30), colour), "PNG")


def record(colour: str = "red", **fields: object) -> dict[str, object]:
    return {"_base64": base64.b64encode(picture(colour)).decode(), **fields}


def ask(site: Site, tenant: Tenant, path: str, document: object, **headers: str) -> Reply:
    return site.call("POST", path, json.dumps(document).encode(), tenant.headers(**headers))


def classify(served: Served, tenant: Tenant, *records: object, **fields: object) -> Any:
    document = {"records": records, "task_id": served.bundle.task, "store_images": True, **fields}
    answer = ask(served.site, tenant, CLASSIFY, document)
    assert answer.status == 200, answer.body
    assert answer.code == 200
    return answer.document["records"]


def stored(served: Served, tenant: Tenant, workspace: str = "Default") -> list[str]:
    listed = served.site.call("GET", f"{IMAGES}?workspace={workspace}", headers=tenant.headers())
    return [image["id"] for image in listed.document["results"]]


def test_what_was_classified_is_stored(served: Served, owner: Tenant) -> None:
    red, blue = classify(served, owner, record("red", _id="a"), record("blue", _id="b"))
    assert [one["best_label"]["name"] for one in (red, blue)] == ["red", "blue"]
    assert red["_status"]["code"] == blue["_status"]["code"] == 200
    kept = red["_stored_image_id"]
    assert sorted(stored(served, owner)) == sorted([kept, blue["_stored_image_id"]])
    image = served.site.call("GET", f"{IMAGES}/{kept}", headers=owner.headers()).document
    assert image["workspace"] == owner.id
    link = urlsplit(image["img_path"])
    content = served.site.call("GET", f"{link.path}?{link.query}").body
    assert Image.open(io.BytesIO(content)).getpixel((0, 0)) == (255, 0, 0)


def test_it_is_an_upload_to_the_audit_log(served: Served, owner: Tenant) -> None:
    document = {"records": [record()], "task_id": served.bundle.task, "store_images": True}
    answer = ask(served.site, owner, CLASSIFY, document)
    (entry,) = [one for one in served.audited(owner) if one.event is Event.IMAGE_ADD]
    assert entry.subject == answer.document["records"][0]["_stored_image_id"]
    assert entry.actor.request == answer.headers["x-request-id"]


def test_detections_are_stored_too(served: Served, owner: Tenant) -> None:
    task = next(bundle.task for bundle in served.parts.bundles.list() if bundle.kind == "detector")
    document = {"records": [record("#f80000")], "task_id": task, "store_images": True}
    (seen,) = ask(served.site, owner, DETECT, document).document["records"]
    assert seen["_objects"]
    assert stored(served, owner) == [seen["_stored_image_id"]]


@pytest.mark.parametrize("flag", [{}, {"store_images": False}, {"store_images": None}])
def test_without_the_flag_nothing_is(served: Served, owner: Tenant, flag: dict[str, object]) -> None:
    document = {"records": [record()], "task_id": served.bundle.task, "workspace": owner.id, **flag}
    (seen,) = ask(served.site, owner, CLASSIFY, document).document["records"]
    assert "_stored_image_id" not in seen
    assert stored(served, owner) == []


def test_a_workspace_selects_the_dataset(served: Served, owner: Tenant) -> None:
    made = ask(served.site, owner, DATASETS, {"name": "shelves"}).document["id"]
    (seen,) = classify(served, owner, record(), workspace=made)
    assert stored(served, owner, made) == [seen["_stored_image_id"]]
    assert stored(served, owner) == []
    other = served.tenant(str(uuid.uuid4()))
    for unknown in (str(uuid.uuid4()), other.id):
        document = {"records": [record()], "task_id": served.bundle.task, "store_images": True}
        answer = ask(served.site, owner, CLASSIFY, document | {"workspace": unknown})
        assert (answer.status, answer.document["detail"]) == (404, "no such dataset")


def test_raw_bodies_are_stored_as_they_came(served: Served, owner: Tenant) -> None:
    path = f"{CLASSIFY}?task_id={served.bundle.task}&store_images=true&workspace=Default"
    answer = served.site.call("POST", path, picture("blue"), owner.headers(content_type="image/png"))
    (seen,) = answer.document["records"]
    assert stored(served, owner) == [seen["_stored_image_id"]]


def test_links_are_stored_as_what_was_behind_them(served: Served, owner: Tenant) -> None:
    with Host() as host, served.another(residency=host.residency) as (site, _):
        # More than are fetched from one host at a time: none waits for another to be stored.
        links = [f"{host.address}/{number}" for number in range(10)]
        for number in range(10):
            host.pictures[f"/{number}"] = images.plain(f"behind {number}")
        document: dict[str, object] = {"task_id": served.bundle.task, "store_images": True}
        seen = ask(site, owner, CLASSIFY, document | {"records": [{"_url": link} for link in links]})
        records = seen.document["records"]
        assert [one["_url"] for one in records] == links
        assert {one["_status"]["code"] for one in records} == {200}
        assert {one["_stored_image_id"] for one in records} == set(stored(served, owner))
        beside = ask(site, owner, CLASSIFY, document | {"records": [{"_url": "http://elsewhere/"}, record()]})
        refused, good = beside.document["records"]
        assert refused["_status"]["code"] == 400
        assert "_stored_image_id" not in refused
        assert good["_stored_image_id"] in stored(served, owner)


def test_an_image_that_is_there_already_answers_its_id(served: Served, owner: Tenant) -> None:
    first, twin = classify(served, owner, record(), record())
    (again,) = classify(served, owner, record())
    ids = {one["_stored_image_id"] for one in (first, twin, again)}
    assert stored(served, owner) == [*ids]


def test_what_is_no_image_is_not_stored_and_stops_no_other(served: Served, owner: Tenant) -> None:
    broken = {"_base64": base64.b64encode(picture()[:60]).decode()}
    refused, empty, good = classify(served, owner, broken, {"_id": "nothing"}, record("blue"))
    assert [one["_status"]["code"] for one in (refused, empty, good)] == [400, 400, 200]
    assert stored(served, owner) == [good["_stored_image_id"]]


def test_a_full_volume_costs_the_storing_and_not_the_answer(
    served: Served, owner: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    (before,) = classify(served, owner, record("red"))
    monkeypatch.setattr(served.images.store._space, "_least_bytes", 1 << 60)
    known, new = classify(served, owner, record("red"), record("blue", _stored_image_id="of another answer"))
    assert (known["_status"]["code"], known["_stored_image_id"]) == (200, before["_stored_image_id"])
    assert (new["best_label"]["name"], new["_width"], new["_stored_image_id"]) == ("blue", 40, None)
    assert new["_status"]["code"] == 507
    assert new["_status"]["text"].startswith("the image was seen, but not stored: ")
    assert len(stored(served, owner)) == 1


def test_a_volume_that_is_out_of_reach_costs_the_storing_alone(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("offline")
    with Served(folder) as served:
        tenant = served.tenant("offline")
        served.run(served.parts.agreements.sign(ACTOR, tenant.id, Kind.TRAINING_DATA))
        (folder / "images").rename(folder / "away")
        (folder / "images").mkdir()
        (seen,) = classify(served, tenant, record("blue"))
        assert (seen["best_label"]["name"], seen["_status"]["code"]) == ("blue", 503)
        assert list((folder / "images").iterdir()) == []


def test_a_token_that_may_not_write_datasets_stores_nothing(served: Served, owner: Tenant) -> None:
    others = [scope for scope in Scope if scope is not Scope.DATASETS_WRITE]
    weak = {"authorization": f"Token {served.token(owner, *others)}"}
    document = {"records": [record()], "task_id": served.bundle.task}
    refused = ask(served.site, owner, CLASSIFY, document | {"store_images": True}, **weak)
    assert refused.status == refused.code == 403
    assert "datasets:write" in refused.document["detail"]
    assert stored(served, owner) == []
    assert ask(served.site, owner, CLASSIFY, document, **weak).status == 200


def later(served: Served, tenant: Tenant, **headers: str) -> Any:
    document = {"type": "custom-recognition", "task_id": served.bundle.task, "records": [record("blue")]}
    taken = ask(served.site, tenant, LATER, document | {"store_images": True}, **headers)
    assert taken.status == 201, taken.body
    return ended(served.site, tenant, f"{taken.document['id']}")


def test_what_is_seen_later_is_stored_then(served: Served, owner: Tenant) -> None:
    done = later(served, owner)
    (seen,) = done["response"]["records"]
    assert (done["status"], seen["best_label"]["name"]) == ("DONE", "blue")
    assert stored(served, owner) == [seen["_stored_image_id"]]
    (entry,) = [one for one in served.audited(owner) if one.event is Event.IMAGE_ADD]
    assert entry.actor.request == done["id"]


def test_what_may_not_be_stored_later_fails_then(served: Served, owner: Tenant) -> None:
    weak = later(served, owner, authorization=f"Token {served.token(owner, Scope.INFER)}")
    stranger = served.tenant(str(uuid.uuid4()))
    for tenant, failed in ((owner, weak), (stranger, later(served, stranger))):
        assert (failed["status"], failed["response"]["status"]["code"]) == ("FAILED", 403)
        assert stored(served, tenant) == []
