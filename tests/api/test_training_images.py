"""Stored images on the wire: uploads in every form, what is refused and how, pages, links."""

import base64
import json
import re
import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from appliance.accounts.agreements import Kind
from appliance.accounts.compliance import Compliance
from appliance.accounts.rights import Scope
from appliance.residency import Facts, Finding
from appliance.volume import facts as volume_facts
from tests import images
from tests.api.test_bodies import BOUNDARY, multipart
from tests.hosts import Host
from tests.serving import ACTOR, Reply, Served, Site, Tenant

IMAGES = "/recognition/v2/training-image"
LABELS = "/recognition/v2/label"
UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@pytest.fixture
def owner(served: Served) -> Tenant:
    """A new customer that has agreed."""
    tenant = served.tenant(f"owner {uuid.uuid4()}")
    served.run(served.parts.agreements.sign(ACTOR, tenant.id, Kind.TRAINING_DATA))
    return tenant


def ask(
    served: Served, owner: Tenant, method: str, path: str, document: object = None, **headers: str
) -> Reply:
    body = None if document is None else json.dumps(document).encode()
    return served.site.call(method, path, body, owner.headers(**headers))


def upload(served: Served, owner: Tenant, content: bytes | None = None, **fields: object) -> Any:
    encoded = base64.b64encode(content or images.plain(uuid.uuid4().bytes)).decode()
    answer = ask(served, owner, "POST", IMAGES, {"base64": encoded, "noresize": False, **fields})
    assert answer.status == 201, answer.body
    return answer.document


def label(served: Served, owner: Tenant, name: str = "label", **fields: object) -> str:
    answer = ask(served, owner, "POST", f"{LABELS}/", {"name": name, **fields})
    assert answer.status == 201, answer.body
    return str(answer.document["id"])


def listed(served: Served, owner: Tenant, query: str) -> Any:
    answer = ask(served, owner, "GET", f"{IMAGES}/?{query}")
    assert answer.status == 200, answer.body
    return answer.document


def test_an_image_as_json(served: Served, owner: Tenant) -> None:
    image = upload(served, owner, images.plain("pixels"), test_image=True, meta_data={"own": 1})
    assert UUID4.fullmatch(image["id"])
    assert image["workspace"] == owner.id
    assert (image["test_image"], image["real"], image["verifyCount"]) == (True, False, 0)
    assert (image["meta_data"], image["labels"]) == ({"own": 1}, [])
    assert datetime.fromisoformat(image["created"]).timestamp() == served.clock
    again = ask(served, owner, "GET", f"{IMAGES}/{image['id']}/").document
    assert {key: again[key] for key in again.keys() - {"img_path", "thumb_img_path"}} == {
        key: image[key] for key in image.keys() - {"img_path", "thumb_img_path"}
    }


@pytest.mark.parametrize("name", ["base64", "_base64"])
@pytest.mark.parametrize("header", ["", "data:image/jpeg;base64,"])
def test_base64_by_either_name_with_and_without_a_header(
    served: Served, owner: Tenant, name: str, header: str
) -> None:
    encoded = header + base64.b64encode(images.plain(uuid.uuid4().bytes)).decode()
    sent = {name: encoded, "meta_data": None, "test_image": None, "_file": "/home/anna/x.jpg"}
    answer = ask(served, owner, "POST", IMAGES, sent)
    assert answer.status == 201
    assert "anna" not in answer.body.decode()
    assert answer.document["meta_data"] == {}


def test_a_raw_image_has_its_fields_in_the_query_and_in_a_header(served: Served, owner: Tenant) -> None:
    path = f"{IMAGES}?test_image=true&real=True"
    record = json.dumps({"meta_data": {"own": "ž"}, "_base64": "bm8=", "base64": "bm8="})
    headers = owner.headers(content_type="image/png", x_record=record)
    answer = served.site.call("POST", path, images.plain("raw"), headers)
    assert answer.status == 201, answer.body
    image = answer.document
    assert (image["test_image"], image["real"], image["meta_data"]) == (True, True, {"own": "ž"})
    assert served.site.call("GET", path_of(image["img_path"])).body == images.plain("raw")


def test_labels_of_an_upload_are_refused_and_nothing_is_stored(served: Served, owner: Tenant) -> None:
    content, given = images.plain("labelled"), {"labels": [label(served, owner)]}
    record = owner.headers(content_type="image/png", x_record=json.dumps(given))
    encoded = {"base64": base64.b64encode(content).decode(), **given}
    for answer in (
        served.site.call("POST", IMAGES, content, record),
        ask(served, owner, "POST", IMAGES, encoded),
    ):
        assert answer.status == 400
        assert "add-label" in answer.document["detail"]
    upload(served, owner, content, labels=[])


def test_multipart(served: Served, owner: Tenant) -> None:
    parts = {"request": json.dumps({"meta_data": {"n": 1}}).encode(), "image-0": images.plain("part")}
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    answer = served.site.call("POST", IMAGES, multipart(parts), owner.headers(content_type=kind))
    assert answer.status == 201, answer.body
    assert answer.document["meta_data"] == {"n": 1}
    alone = served.site.call(
        "POST", IMAGES, multipart({"image-0": images.plain("alone")}), owner.headers(content_type=kind)
    )
    assert alone.status == 201
    for refused in (
        {"image-0": b"a", "image-1": b"b"},
        {"request": b'{"base64": "eA=="}', "image-0": b"c"},
        {"request": b"[]", "image-0": b"d"},
        {"request": b"{}"},
    ):
        answer = served.site.call("POST", IMAGES, multipart(refused), owner.headers(content_type=kind))
        assert answer.status == 400, answer.body


@pytest.fixture
def site(served: Served, host: Host) -> Iterator[Site]:
    with served.another(residency=host.residency) as (address, _):
        yield address


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as host:
        yield host


@pytest.mark.parametrize("name", ["url", "_url"])
def test_a_link_is_fetched_from_declared_hosts_alone(
    served: Served, site: Site, owner: Tenant, host: Host, name: str
) -> None:
    def sent(link: object) -> Reply:
        body = json.dumps({name: link, "workspace": owner.id}).encode()
        return site.call("POST", IMAGES, body, owner.headers())

    answer = sent(f"{host.address}/red")
    assert answer.status == 201, answer.body
    assert len(served.site.call("GET", path_of(answer.document["img_path"])).body) > 50
    for link in ("http://169.254.169.254/", "red", 5, f"http://127.0.0.1:{host.port}/red"):
        answer = sent(link)
        assert answer.status == 400, answer.body
        assert "_url" in answer.document["detail"]


@pytest.mark.parametrize(
    "document",
    [
        *({}, {"base64": None}, {"base64": ""}, {"base64": "?"}, {"base64": 5}, {"base64": ["eA=="]}),
        {"base64": base64.b64encode(b"broken").decode()},
        *({"base64": "eHg=", "test_image": "maybe"}, {"base64": "eHg=", "meta_data": [1]}),
        *({"base64": "eHg=", "meta_data": "x"}, {"base64": "eHg=", "workspace": 7}),
    ],
)
def test_what_is_no_upload_is_refused_in_both_shapes(served: Served, owner: Tenant, document: object) -> None:
    answer = ask(served, owner, "POST", IMAGES, document)
    assert answer.status == answer.code == 400, answer.body
    assert answer.document["detail"]
    assert listed(served, owner, "page=1")["count"] == 0


def test_too_much_metadata(served: Served, owner: Tenant) -> None:
    answer = ask(served, owner, "POST", IMAGES, {"base64": "eHg=", "meta_data": {"x": "x" * 70_000}})
    assert answer.status == 413


def test_without_an_agreement_nothing_is_stored(served: Served) -> None:
    stranger = served.tenant(f"stranger {uuid.uuid4()}")
    answer = ask(served, stranger, "POST", IMAGES, {"base64": "eHg="})
    assert answer.status == answer.code == 403
    assert "agreement" in answer.document["detail"]
    assert "agreement" in answer.document["status"]["text"]


def test_a_full_volume_takes_nothing_more_and_gives_what_it_has(
    served: Served, owner: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = upload(served, owner)
    monkeypatch.setattr(served.images.store._space, "_least_bytes", 1 << 60)
    for kind, body in (
        (
            "application/json",
            json.dumps({"base64": base64.b64encode(images.plain("more")).decode()}).encode(),
        ),
        ("image/png", images.plain("more")),
    ):
        answer = served.site.call("POST", IMAGES, body, owner.headers(content_type=kind))
        assert answer.status == 507
        assert "has no room for more" in answer.document["status"]["text"]
    assert served.site.call("GET", path_of(kept["img_path"])).status == 200
    assert listed(served, owner, "")["count"] == 1
    assert ask(served, owner, "DELETE", f"{IMAGES}/{kept['id']}").status == 204


def test_a_machine_that_is_not_what_was_declared_stores_nothing_and_gives_what_it_has(
    served: Served, owner: Tenant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = upload(served, owner)
    found = Finding("refuse", "swap", "/var/my swap is plain")
    machine = Compliance(lambda _: [found], served.ledger, lambda: served.clock)
    machine.judge(Facts(volume_facts(served.parts.config.state), (), 0))
    monkeypatch.setattr(served.images.store, "_may_store", machine.require)
    content = base64.b64encode(images.plain("more")).decode()
    answer = ask(served, owner, "POST", IMAGES, {"base64": content})
    assert answer.status == answer.code == 503
    assert answer.document["detail"] == "no image is stored until this is put right: swap"
    assert "until this is put right: swap: /var/my swap is plain" in caplog.text, "the rest is for operators"
    assert answer.headers["retry-after"]
    assert served.site.call("GET", path_of(kept["img_path"])).status == 200
    assert listed(served, owner, "")["count"] == 1
    assert ask(served, owner, "DELETE", f"{IMAGES}/{kept['id']}").status == 204
    monkeypatch.undo()
    upload(served, owner, images.plain("more"))


def test_the_same_bytes_twice_are_told_with_the_id(served: Served, owner: Tenant) -> None:
    image = upload(served, owner, images.plain("twins"))
    answer = ask(served, owner, "POST", IMAGES, {"base64": base64.b64encode(images.plain("twins")).decode()})
    assert answer.status == 409
    assert "already exists" in answer.document["detail"]
    assert f"image ID: {image['id']}" in answer.document["detail"]


def path_of(link: str) -> str:
    parts = urlsplit(link)
    return f"{parts.path}?{parts.query}"


def test_links_are_absolute_and_made_afresh(served: Served, owner: Tenant) -> None:
    image = upload(served, owner, images.plain("linked"))
    own = f"http://{served.site.host}:{served.site.port}/files/{image['id']}"
    assert image["img_path"].startswith(f"{own}.jpg?exp={int(served.clock) + 3600}&sig=")
    assert image["thumb_img_path"].startswith(f"{own}-thumb.jpg?exp=")
    behind = ask(served, owner, "GET", f"{IMAGES}/{image['id']}", host="vision.bank.example:8443").document
    assert behind["img_path"].startswith("http://vision.bank.example:8443/files/")
    for host in ("a b", "a/b", "a\\b", "x@y", "[::1", "a:b", "a" * 300, "x?y"):
        answer = ask(served, owner, "GET", f"{IMAGES}/{image['id']}", host=host)
        assert answer.status == 400, host
    for host in ("[::1]:80", "localhost", "10.0.0.1:1"):
        assert ask(served, owner, "GET", f"{IMAGES}/{image['id']}", host=host).status == 200
    with served.another(public_url="https://vision.example/base") as (site, _):
        shown = site.call("GET", f"{IMAGES}/{image['id']}", headers=owner.headers(host="other")).document
        assert shown["img_path"].startswith("https://vision.example/base/files/")


def test_links_of_a_public_and_of_a_restricted_dataset(served: Served, owner: Tenant) -> None:
    for visibility, end in (("public", r"\?sig=[A-Za-z0-9_-]{43}"), ("restricted", "")):
        made = ask(
            served, owner, "POST", "/appliance/v1/datasets", {"name": visibility, "visibility": visibility}
        )
        image = upload(served, owner, workspace=made.document["id"])
        assert image["workspace"] == made.document["id"]
        assert re.search(rf"/files/{image['id']}\.jpg{end}$", image["img_path"])


def test_pages_go_on_from_next_whatever_happens_meanwhile(served: Served, owner: Tenant) -> None:
    images = [upload(served, owner)["id"] for _ in range(7)]
    first = listed(served, owner, "page=1&page_size=3")
    assert [image["id"] for image in first["results"]] == images[:3]
    assert (first["count"], first["previous"]) == (7, None)
    assert first["next"].startswith(f"{IMAGES}/?page=2&after=")
    assert ask(served, owner, "DELETE", f"{IMAGES}/{images[2]}").status == 204
    second = ask(served, owner, "GET", first["next"]).document
    assert [image["id"] for image in second["results"]] == images[3:6]
    assert second["count"] == 6
    assert second["previous"] == f"{IMAGES}/?page=1&page_size=3"
    last = ask(served, owner, "GET", f"/localhost{second['next']}").document
    assert ([image["id"] for image in last["results"]], last["next"]) == (images[6:], None)
    by_number = listed(served, owner, "page=2&page_size=3")
    assert [image["id"] for image in by_number["results"]] == images[4:]
    assert listed(served, owner, "page=9")["results"] == []


def test_next_keeps_the_filters_and_takes_what_clients_append(served: Served, owner: Tenant) -> None:
    name = label(served, owner)
    for number in range(4):
        image = upload(served, owner, test_image=number % 2 == 0)["id"]
        ask(served, owner, "POST", f"{IMAGES}/{image}/add-label", {"label_id": name})
    first = listed(served, owner, f"labels={name}&verified=0&page_size=1&test=true&not_labels=")
    query = dict(parse_qsl(urlsplit(first["next"]).query))
    assert (query["labels"], query["verified"], query["test"]) == (name, "0", "true")
    second = ask(served, owner, "GET", f"{first['next']}&verified=0&test=true").document
    assert (second["count"], len(second["results"]), second["next"]) == (2, 1, None)


def test_a_count_that_was_work_goes_along(served: Served, owner: Tenant) -> None:
    one, other = label(served, owner, "one"), label(served, owner, "other")
    for _ in range(3):
        image = upload(served, owner)["id"]
        for name in (one, other):
            ask(served, owner, "POST", f"{IMAGES}/{image}/add-label", {"label_id": name})
    first = listed(served, owner, f"labels={one}&labels={other}&page_size=2")
    assert "counted=3" in first["next"]
    assert ask(served, owner, "GET", first["next"]).document["count"] == 3
    assert listed(served, owner, f"labels={one},{other}")["count"] == 3
    assert "counted" not in listed(served, owner, "page_size=2")["next"]


@pytest.mark.parametrize(
    "query",
    [
        *("page=0", "page=x", "page=-1", "page=99999999999", "page_size=0", "page_size=101", "after=-1"),
        *("after=x", "counted=x", "verified=x", "verified=-1", "verified=101", "real=maybe", "test=2"),
        *("label_value_x__gte=1", f"label_value_{uuid.UUID(int=0)}__gte=x", "label_value_", "real="),
        f"label_value_{uuid.UUID(int=0)}__between=1",
    ],
)
def test_what_is_no_query(served: Served, owner: Tenant, query: str) -> None:
    answer = ask(served, owner, "GET", f"{IMAGES}/?{query}")
    assert answer.status == 400, answer.body


def test_odd_numbers_in_a_query_find_nothing_and_break_nothing(served: Served, owner: Tenant) -> None:
    name = label(served, owner)
    image = upload(served, owner)["id"]
    ask(served, owner, "POST", f"{IMAGES}/{image}/add-label", {"label_id": name, "value": 1e300})
    for bound in ("nan", "inf", "-inf", "1e400", "-0", "1_0"):
        answer = ask(served, owner, "GET", f"{IMAGES}/?label_value_{name}__gte={bound}")
        assert answer.status in {200, 400}, answer.body
    assert listed(served, owner, f"label_value_{name}__gte=1e299&label_value_{name}__lte=1e301")["count"] == 1


def test_labels_and_values(served: Served, owner: Tenant) -> None:
    name, image = label(served, owner), upload(served, owner)["id"]
    at = f"{IMAGES}/{image}"
    added = ask(served, owner, "POST", f"{at}/add-label/", {"label_id": name, "value": 2}).document
    assert [(one["id"], one["value"]) for one in added["labels"]] == [(name, 2.0)]
    assert ask(served, owner, "GET", f"{LABELS}/{name}").document["images_count"] == 1
    for value in ("x", True, [1], 1e301):
        answer = ask(served, owner, "POST", f"{at}/update-label", {"label_id": name, "value": value})
        assert answer.status == 400, value
    changed = ask(served, owner, "POST", f"{at}/update-label", {"label_id": name, "value": None}).document
    assert changed["labels"][0]["value"] is None
    removed = ask(served, owner, "POST", f"{at}/remove-label", {"label_id": name}).document
    assert removed["labels"] == []
    for verb in ("add-label", "update-label", "remove-label"):
        for document, status in (({}, 400), ({"label_id": 5}, 400), ({"label_id": str(uuid.uuid4())}, 404)):
            assert ask(served, owner, "POST", f"{at}/{verb}", document).status == status


def test_many_images_at_once(served: Served, owner: Tenant) -> None:
    name, images = label(served, owner), [upload(served, owner)["id"] for _ in range(3)]
    change = {
        "images": images[:2],
        "labels": [],
        "labels-add": [name],
        "labels-remove": [],
        "mark-test": True,
    }
    answer = ask(served, owner, "POST", f"{IMAGES}/update", change | {"workspace": "Default"})
    assert answer.document == {"count": 2}
    assert listed(served, owner, "test=True")["count"] == 2
    change = {"labels": [name], "unmark-test": True, "mark-real": True, "labels-remove": [name]}
    assert ask(served, owner, "POST", f"{IMAGES}/update", change).document == {"count": 2}
    assert [
        listed(served, owner, query)["count"] for query in ("test=true", "real=true", f"labels={name}")
    ] == [
        0,
        2,
        0,
    ]
    refusals: list[tuple[dict[str, object], int]] = [
        ({}, 400),
        ({"images": images, "labels": [name]}, 400),
        ({"images": "x"}, 400),
        ({"images": [1]}, 400),
        ({"images": ["x"] * 1001}, 400),
        ({"images": images, "mark-test": True, "unmark-test": True}, 400),
        ({"images": images, "mark-test": "?"}, 400),
        ({"images": [*images, str(uuid.uuid4())]}, 404),
        ({"labels": [str(uuid.uuid4())]}, 404),
        ({"images": images, "labels-add": [str(uuid.uuid4())]}, 404),
    ]
    for refused, status in refusals:
        assert ask(served, owner, "POST", f"{IMAGES}/update", refused).status == status, refused


def test_metadata_is_put_whole(served: Served, owner: Tenant) -> None:
    image = upload(served, owner, meta_data={"a": 1})["id"]
    put = ask(served, owner, "PUT", f"{IMAGES}/{image}", {"meta_data": {"b": {"c": [1, None]}}})
    assert put.document["meta_data"] == {"b": {"c": [1, None]}}
    assert ask(served, owner, "PUT", f"{IMAGES}/{image}", {"meta_data": None}).document["meta_data"] == {}
    refusals: list[dict[str, object]] = [{}, {"meta_data": []}, {"meta_data": "x"}]
    for refused in refusals:
        assert ask(served, owner, "PUT", f"{IMAGES}/{image}", refused).status == 400


def test_a_deleted_image_is_gone(served: Served, owner: Tenant) -> None:
    image = upload(served, owner)
    deleted = ask(served, owner, "DELETE", f"{IMAGES}/{image['id']}")
    assert (deleted.status, deleted.body) == (204, b"")
    assert ask(served, owner, "DELETE", f"{IMAGES}/{image['id']}").status == 404
    assert ask(served, owner, "GET", f"{IMAGES}/{image['id']}").document["detail"] == "no such image"
    assert served.site.call("GET", path_of(image["img_path"])).status == 403
    events = [entry.event.value for entry in served.audited(owner)]
    assert [event for event in events if event.startswith("image.")][-2:] == ["image.add", "image.delete"]


def test_reading_and_writing_are_scopes_of_their_own(served: Served, owner: Tenant) -> None:
    image = upload(served, owner)["id"]
    reads = {"authorization": f"Token {served.token(owner, Scope.DATASETS_READ)}"}
    writes = {"authorization": f"Token {served.token(owner, Scope.DATASETS_WRITE)}"}
    assert ask(served, owner, "GET", f"{IMAGES}/{image}", **reads).status == 200
    assert ask(served, owner, "GET", f"{IMAGES}/{image}", **writes).status == 403
    assert ask(served, owner, "DELETE", f"{IMAGES}/{image}", **reads).status == 403
    assert ask(served, owner, "DELETE", f"{IMAGES}/{image}", **writes).status == 204


def test_workspaces_are_listed_for_those_who_may_use_them(served: Served, owner: Tenant) -> None:
    ask(served, owner, "POST", "/appliance/v1/datasets", {"name": "Shelves"})
    found = ask(served, owner, "GET", "/account/v2/workspace/").document
    assert [(one["name"], one["is_default"], one["owner"]) for one in found] == [
        ("Default", True, owner.id),
        ("Shelves", False, owner.id),
    ]
    named = ask(served, owner, "GET", "/account/v2/workspace/?search=SHEL").document
    assert [one["name"] for one in named] == ["Shelves"]
    seeing = {"authorization": f"Token {served.token(owner, Scope.INFER)}"}
    assert len(ask(served, owner, "GET", "/account/v2/workspace", **seeing).document) == 1


def test_a_workspace_that_is_not_there(served: Served, owner: Tenant) -> None:
    for path in (f"{IMAGES}/?workspace=", f"{LABELS}/?workspace="):
        assert ask(served, owner, "GET", f"{path}{uuid.uuid4()}").status == 404
        assert ask(served, owner, "GET", f"{path}Default").status == 200
        assert ask(served, owner, "GET", f"{path}{owner.id}").status == 200
    sent = {"base64": "eHg=", "workspace": str(uuid.uuid4())}
    assert ask(served, owner, "POST", IMAGES, sent).status == 404
