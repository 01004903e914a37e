"""Records whose image is a link: fetched from hosts that are declared, refused for all others."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from tests import images
from tests.hosts import NAME, Host
from tests.serving import Reply, Served, Site, Tenant


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as host:
        yield host


@pytest.fixture
def site(served: Served, host: Host) -> Iterator[Site]:
    with served.another(residency=host.residency) as (address, _):
        yield address


def post(site: Site, tenant: Tenant, path: str, document: object) -> Reply:
    return site.call("POST", path, json.dumps(document).encode(), tenant.headers())


def seen(site: Site, served: Served, tenant: Tenant, *records: object) -> Any:
    document = {"task_id": served.bundle.task, "records": records}
    answer = post(site, tenant, "/recognition/v2/classify", document)
    assert answer.status == 200, answer.body
    return answer.document["records"]


def test_a_link_to_a_declared_host_is_an_image(
    site: Site, served: Served, tenant: Tenant, host: Host
) -> None:
    link = f"{host.address}/red?own=1"
    (record,) = seen(site, served, tenant, {"_url": link, "own": 7})
    assert record["best_label"]["name"] == "red"
    assert (record["_width"], record["_height"], record["own"], record["_url"]) == (60, 40, 7, link)


def test_other_links_are_refused_in_their_records(
    site: Site, served: Served, tenant: Tenant, host: Host
) -> None:
    links = [f"http://127.0.0.1:{host.port}/red", f"https://{NAME}:{host.port}/red", "http://x", "red", 5]
    *refused, good = seen(
        site,
        served,
        tenant,
        *({"_url": link} for link in links),
        {"_url": f"{host.address}/blue"},
    )
    assert good["best_label"]["name"] == "blue"
    assert [record["_status"]["code"] for record in refused] == [400] * 5
    texts = [record["_status"]["text"] for record in refused]
    assert all(text.startswith("_url: ") for text in texts)
    assert f"http://127.0.0.1:{host.port} is no destination declared for images" in texts[0]


def test_an_image_that_came_along_is_preferred_to_its_link(
    site: Site, served: Served, tenant: Tenant
) -> None:
    raw = images.encoded(Image.new("RGB", (30, 30), "blue"), "PNG")
    headers = tenant.headers(
        content_type="image/png", x_record=json.dumps({"_url": "http://169.254.169.254/"})
    )
    path = f"/recognition/v2/classify?task_id={served.bundle.task}"
    (record,) = site.call("POST", path, raw, headers).document["records"]
    assert record["best_label"]["name"] == "blue"


def test_links_are_searched_with_and_inserted(site: Site, tenant: Tenant, host: Host) -> None:
    at = host.address
    records = [{"_id": colour, "_url": f"{at}/{colour}"} for colour in ("red", "blue")]
    inserted = post(site, tenant, "/similarity/photos/v2/insert", {"records": records}).document
    assert inserted["status"]["code"] == 210
    query = {"query_record": {"_url": f"{at}/blue"}, "k": 1, "fields_to_return": ["*"]}
    found = post(site, tenant, "/similarity/photos/v2/visualKNN", query).document
    assert found["answer_records"] == [records[1]]
    many = {"query_record": {"_id": "red"}, "records": [{"_url": f"{at}/blue"}] * 11}
    refused = post(site, tenant, "/similarity/photos/v2/visualRankRecords", many)
    assert (refused.status, "10" in refused.document["status"]["text"]) == (400, True)
