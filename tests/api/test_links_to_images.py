"""Records whose image is a link: fetched from hosts that are declared, refused for all others."""

import http.server
import json
import threading
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest
from PIL import Image

from appliance.residency import Destination, Residency
from tests import images
from tests.serving import Reply, Served, Site, Tenant


class Host(http.server.BaseHTTPRequestHandler):
    """Answers with a plain picture in the colour that the path names."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        colour = self.path[1:].partition("?")[0]
        body = images.encoded(Image.new("RGB", (60, 40), colour), "PNG")
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture(scope="module")
def host() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def site(served: Served, host: int) -> Iterator[Site]:
    declared = Destination.model_validate(
        {
            "name": "shop",
            "host": "photos.example",
            "cidrs": ["127.0.0.1/32"],
            "port": host,
            "country": "CZ",
            "purpose": "photos",
            "uses": ["images"],
            "tls": False,
        }
    )
    residency = Residency("Prague", "CZ", False, (declared,), (ip_network("127.0.0.0/8"),))
    with served.another(residency=residency) as (address, _):
        yield address


def post(site: Site, tenant: Tenant, path: str, document: object) -> Reply:
    return site.call("POST", path, json.dumps(document).encode(), tenant.headers())


def seen(site: Site, served: Served, tenant: Tenant, *records: object) -> Any:
    document = {"task_id": served.bundle.task, "records": records}
    answer = post(site, tenant, "/recognition/v2/classify", document)
    assert answer.status == 200, answer.body
    return answer.document["records"]


def test_a_link_to_a_declared_host_is_an_image(site: Site, served: Served, tenant: Tenant, host: int) -> None:
    link = f"http://photos.example:{host}/red?own=1"
    (record,) = seen(site, served, tenant, {"_url": link, "own": 7})
    assert record["best_label"]["name"] == "red"
    assert (record["_width"], record["_height"], record["own"], record["_url"]) == (60, 40, 7, link)


def test_other_links_are_refused_in_their_records(
    site: Site, served: Served, tenant: Tenant, host: int
) -> None:
    links = [f"http://127.0.0.1:{host}/red", f"https://photos.example:{host}/red", "http://x", "red", 5]
    *refused, good = seen(
        site,
        served,
        tenant,
        *({"_url": link} for link in links),
        {"_url": f"http://photos.example:{host}/blue"},
    )
    assert good["best_label"]["name"] == "blue"
    assert [record["_status"]["code"] for record in refused] == [400] * 5
    texts = [record["_status"]["text"] for record in refused]
    assert all(text.startswith("_url: ") for text in texts)
    assert f"http://127.0.0.1:{host} is no destination declared for images" in texts[0]


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


def test_links_are_searched_with_and_inserted(site: Site, tenant: Tenant, host: int) -> None:
    at = f"http://photos.example:{host}"
    records = [{"_id": colour, "_url": f"{at}/{colour}"} for colour in ("red", "blue")]
    inserted = post(site, tenant, "/similarity/photos/v2/insert", {"records": records}).document
    assert inserted["status"]["code"] == 210
    query = {"query_record": {"_url": f"{at}/blue"}, "k": 1, "fields_to_return": ["*"]}
    found = post(site, tenant, "/similarity/photos/v2/visualKNN", query).document
    assert found["answer_records"] == [records[1]]
    many = {"query_record": {"_id": "red"}, "records": [{"_url": f"{at}/blue"}] * 11}
    refused = post(site, tenant, "/similarity/photos/v2/visualRankRecords", many)
    assert (refused.status, "10" in refused.document["status"]["text"]) == (400, True)
