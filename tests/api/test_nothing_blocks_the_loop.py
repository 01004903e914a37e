"""While requests are answered, no module of ours waits for a file, a lock or a socket on the event loop."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockbuster import BlockingError, blockbuster_ctx

from appliance import volume
from tests import images
from tests.serving import Served, Tenant

PHOTOS = "/similarity/photos/v2"


@pytest.fixture(autouse=True)
def blocking_raises(served: Served) -> Iterator[None]:
    """In a handler the error becomes an answer 500."""
    with blockbuster_ctx("appliance"):
        yield


def ask(served: Served, tenant: Tenant, method: str, path: str, document: object = None) -> dict[str, object]:
    body = None if document is None else json.dumps(document).encode()
    answer = served.site.call(method, path, body, tenant.headers())
    assert answer.status in {200, 201, 204}, (path, answer.body[:300])
    return answer.document if answer.body else {}


def test_every_family_answers_without_blocking(served: Served, tenant: Tenant) -> None:
    image = base64.b64encode(images.jpeg(200)).decode()
    records = [{"_id": str(number), "_base64": image, "n": number} for number in range(5)]
    ids = [{"_id": "1"}, {"_id": "2"}]
    query = {"_base64": image}
    ask(served, tenant, "POST", f"{PHOTOS}/insert", {"records": records})
    ask(served, tenant, "POST", f"{PHOTOS}/visualKNN", {"query_record": query, "k": 3, "filter": {"n": 2}})
    ask(served, tenant, "POST", f"{PHOTOS}/visualRankRecords", {"query_record": query, "records": ids})
    ask(served, tenant, "POST", f"{PHOTOS}/update", {"records": [{"_id": "1", "n": 9}]})
    ask(served, tenant, "POST", f"{PHOTOS}/get", {"records": ids})
    ask(served, tenant, "POST", f"{PHOTOS}/random", {"count": 2})
    ask(served, tenant, "POST", f"{PHOTOS}/allRecords?size=2&page=1", {})
    ask(served, tenant, "POST", f"{PHOTOS}/delete", {"records": ids})
    ask(served, tenant, "POST", f"{PHOTOS}/ping")
    ask(served, tenant, "POST", "/photo/tags/v2/tags", {"records": records})
    classify = {"records": records, "task_id": served.bundle.task}
    ask(served, tenant, "POST", "/recognition/v2/classify", classify)
    ask(served, tenant, "POST", "/photo/v2/descriptor", {"records": records})
    ask(served, tenant, "POST", "/dom_colors/generic/v2/dominantcolor", {"records": records})
    ask(served, tenant, "POST", "/dom_colors/product/v2/dominantcolor", {"records": records})
    encoded = {"name": "encoded", "datatype": "BYTES", "shape": [1], "data": [image]}
    for more in ({}, {"parameters": {"binary_data_output": True}}):
        body = json.dumps({"inputs": [encoded], **more}).encode()
        answer = served.site.call("POST", "/v2/models/colours/infer", body, tenant.headers())
        assert answer.status == 200, answer.body[:300]
    for path in ("/v2", "/v2/models/colours", "/v2/models/colours/ready"):
        ask(served, tenant, "GET", path)
    ask(served, tenant, "GET", "/account/v2/details")


def test_management_answers_without_blocking(served: Served, tenant: Tenant) -> None:
    token = ask(served, tenant, "POST", "/appliance/v1/tokens", {})
    ask(served, tenant, "GET", "/appliance/v1/tokens")
    ask(served, tenant, "DELETE", f"/appliance/v1/tokens/{token['id']}")
    collection = ask(served, tenant, "POST", "/appliance/v1/collections", {"name": "quick"})
    ask(served, tenant, "GET", "/appliance/v1/collections")
    ask(served, tenant, "DELETE", f"/appliance/v1/collections/{collection['id']}")
    for path in ("/healthz", "/readyz", "/metrics"):
        assert served.site.call("GET", path, operator=True).status == 200


def test_the_guard_sees_a_blocking_call(served: Served, tmp_path: Path) -> None:
    async def block() -> None:
        volume.write_atomically(tmp_path / "file", b"")

    with pytest.raises(BlockingError):
        served.run(block())
