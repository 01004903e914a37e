"""The source of a collection over HTTP: from a declared host, through the real model, into searches."""

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from appliance.accounts.audit import Event
from tests import images
from tests.hosts import Host
from tests.serving import Reply, Served, Tenant
from tests.shop import PHOTOS

SECRET = "swordfish"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as host:
        yield host


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, host: Host) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("feeds"), host.residency) as served:
        yield served


def ask(served: Served, tenant: Tenant, method: str, what: str = "", document: object = None) -> Reply:
    path = f"/appliance/v1/collections/{tenant.collection}/source{what}"
    body = None if document is None else json.dumps(document).encode()
    return served.site.call(method, path, body, tenant.headers())


def ended(served: Served, tenant: Tenant) -> Any:
    """The newest run when it is over."""
    deadline = time.monotonic() + 30
    while True:
        run = ask(served, tenant, "GET", "/runs").document["runs"][0]
        if run["state"] not in {"waiting", "running"}:
            return run
        assert time.monotonic() < deadline, run
        time.sleep(0.02)


def offer(host: Host, *colours: str) -> None:
    items = "".join(
        f"<item><g:id>{colour}</g:id><g:price>9.50 EUR</g:price>"
        f"<g:image_link>{host.address}/{colour}</g:image_link></item>"
        for colour in colours
    )
    host.pictures["/feed.xml"] = f"<rss><channel>{items}</channel></rss>".encode()


def test_a_collection_follows_a_feed_and_is_searched(served: Served, host: Host) -> None:
    tenant = served.tenant("follower")
    offer(host, "red", "green", "blue", "nothing-like-a-colour")
    host.pictures["/nothing-like-a-colour"] = b"no image"
    source = {
        "url": f"{host.address}/feed.xml?key={SECRET}",
        "headers": {"Authorization": f"Bearer {SECRET}"},
        "mapping": {"metadata": {"price": "price"}, "numbers": ["price"]},
        "daily_at": "04:00",
    }
    told = ask(served, tenant, "PUT", document=source)
    assert told.status == 200, told.body
    assert told.document["host"] == host.address
    assert told.document["headers"] == ["Authorization"]
    assert told.document["due_at"] is not None
    assert ask(served, tenant, "GET").document == told.document

    asked = ask(served, tenant, "POST", "/run")
    assert (asked.status, asked.document["state"]) == (202, "waiting")
    run = ended(served, tenant)
    assert (run["id"], run["state"], run["asked"]) == (asked.document["id"], "done", True)
    assert (run["report"]["added"], run["report"]["failed"]) == (3, 1)
    assert run["report"]["failures"][0]["id"] == "nothing-like-a-colour"

    picture = base64.b64encode(images.encoded(Image.new("RGB", (60, 40), "green"), "PNG")).decode()
    query: dict[str, object] = {"query_record": {"_base64": picture}, "k": 1, "fields_to_return": ["*"]}
    query["filter"] = {"price": {"$lt": 10}}
    found = served.site.call("POST", f"{PHOTOS}/visualKNN", json.dumps(query).encode(), tenant.headers())
    assert found.document["answer_records"] == [{"_id": "green", "price": 9.5}]

    offer(host, "red")
    ask(served, tenant, "POST", "/run")
    run = ended(served, tenant)
    assert (run["state"], run["report"]["missing"]) == ("needs_confirmation", 2)
    assert ask(served, tenant, "POST", "/confirm").document["id"] == run["id"]
    assert ended(served, tenant)["report"]["gone_ids"] == ["green", "blue"]

    assert ask(served, tenant, "DELETE").status == 204
    for again in ("GET ", "DELETE ", "GET /runs", "POST /run", "POST /confirm"):
        gone = ask(served, tenant, *again.split(" "))
        assert (gone.status, gone.document["detail"]) == (404, "the collection follows no source")
    audited = [(one.event, one.details.get("gone")) for one in served.audited(tenant) if "feed." in one.event]
    assert audited == [
        (Event.FEED_SET, None),
        (Event.FEED_RUN, None),
        (Event.FEED_RUN, None),
        (Event.FEED_CONFIRM, 2),
        (Event.FEED_REMOVE, None),
    ]


def test_secrets_of_a_source_come_back_nowhere(
    served: Served, host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    tenant = served.tenant("secretive")
    host.pictures[f"/{SECRET}"] = b"no feed"
    source = {"url": f"{host.address}/{SECRET}?{SECRET}", "headers": {"X-Key": SECRET}}
    answers = [ask(served, tenant, "PUT", document=source), ask(served, tenant, "POST", "/run")]
    ended(served, tenant)
    answers += [ask(served, tenant, "GET"), ask(served, tenant, "GET", "/runs")]
    for field in ("headers", "mapping"):
        answers.append(ask(served, tenant, "PUT", document=source | {field: {"x": {SECRET: SECRET}}}))
    answers.append(ask(served, tenant, "PUT", document={"url": f"http://169.254.169.254/{SECRET}"}))
    assert [answer.status for answer in answers] == [200, 202, 200, 200, 400, 400, 400]
    assert not any(SECRET in answer.body.decode() for answer in answers)
    assert SECRET not in caplog.text
    assert SECRET not in json.dumps([one.details for one in served.audited(tenant)])


def test_perceptual_hashes_follow_a_feed_too(served: Served, host: Host) -> None:
    tenant = served.tenant("hasher")
    headers = tenant.headers()
    body = json.dumps({"name": "hashes", "backbone": "phash"}).encode()
    made = served.site.call("POST", "/appliance/v1/collections", body, headers).document
    hashed = Tenant(tenant.id, tenant.token, made["id"])
    offer(host, "red", "blue")
    ask(served, hashed, "PUT", document={"url": f"{host.address}/feed.xml"})
    ask(served, hashed, "POST", "/run")
    assert ended(served, hashed)["report"]["added"] == 2


def test_a_collection_of_a_bundle_that_is_gone_says_so(served: Served, host: Host) -> None:
    tenant = served.tenant("outdated")
    other = Tenant(tenant.id, tenant.token, served.run(served.collection(tenant.id, "old", "colours@0")))
    offer(host, "red")
    ask(served, other, "PUT", document={"url": f"{host.address}/feed.xml"})
    ask(served, other, "POST", "/run")
    run = ended(served, other)
    assert run["state"] == "failed"
    assert "colours@0" in run["report"]["reason"]


def test_a_difference_is_told_of_json_and_of_lines(served: Served, host: Host) -> None:
    tenant = served.tenant("differing")
    offer(host, "red", "blue")
    ask(served, tenant, "PUT", document={"url": f"{host.address}/feed.xml"})
    ask(served, tenant, "POST", "/run")
    ended(served, tenant)
    path = f"/appliance/v1/collections/{tenant.collection}/diff?hash_field=price"
    expected = {"insert": ["green"], "update": ["red"], "delete": ["blue"], "unchanged": 0}
    desired = [{"id": "red", "hash": "8.00 EUR"}, {"id": "green"}]
    lines = b"\n".join(json.dumps(one).encode() for one in desired)
    for body, media in ((json.dumps(desired).encode(), "application/json"), (lines, "application/x-ndjson")):
        told = served.site.call("POST", path, body, tenant.headers(content_type=media))
        assert (told.status, told.document) == (200, expected)
    assert served.site.call("POST", path, b"id", tenant.headers(content_type="text/csv")).status == 415
    assert served.site.call("POST", path, b"[", tenant.headers()).status == 400
