"""openapi.yaml and the server say the same: the same routes, and answers as described, whatever is sent."""

import base64
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
import yaml
from openapi_spec_validator import validate
from PIL import Image
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from appliance.api.routes import ROUTES
from tests import images
from tests.callers import Caller, Case, Prey, route_of
from tests.serving import Served, Tenant
from tests.victims import serving

METHODS = {"get", "put", "post", "delete", "patch", "head", "options", "trace"}
DOCUMENT: dict[str, Any] = yaml.safe_load(files("appliance.api").joinpath("openapi.yaml").read_text("utf-8"))
CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]

for media in ("application/x-tar", "application/x-npy", "application/x-ndjson"):
    schemathesis.serializer.alias(media, "application/octet-stream")
schema = schemathesis.openapi.from_dict(DOCUMENT)
# The same path items and handlers as under similarity/photos: what is generated for one is for all.
SIBLINGS = (
    "^/(similarity/(products-new|custom|products)|photo/search)/v2/"
    "|^/image_matching/v2/(?!visual_hash|rank_images|remove_duplicates)"
)


def resolved(item: dict[str, Any]) -> dict[str, Any]:
    reference: str | None = item.get("$ref")
    return item if reference is None else DOCUMENT["components"]["pathItems"][reference.rsplit("/", 1)[1]]


def test_the_document_is_valid() -> None:
    validate(DOCUMENT)


def test_the_document_has_the_routes_of_the_table_and_no_others() -> None:
    documented = {
        (method.upper(), path)
        for path, item in DOCUMENT["paths"].items()
        for method in METHODS & resolved(item).keys()
    }
    assert documented == {(route.method, route.path) for route in ROUTES}


def test_siblings_are_described_as_one() -> None:
    siblings = [path for path in DOCUMENT["paths"] if re.search(SIBLINGS, path)]
    assert len(siblings) == 60
    for path in siblings:
        action = path.rsplit("/", 1)[1]
        assert DOCUMENT["paths"][path] == DOCUMENT["paths"][f"/similarity/photos/v2/{action}"]


def test_open_routes_are_open_in_the_document() -> None:
    unsigned = {
        path
        for path, item in DOCUMENT["paths"].items()
        if resolved(item).get("get", {}).get("security") == []
    }
    assert unsigned == {route.path for route in ROUTES if route.access.name == "OPEN"}


@pytest.fixture(scope="module")
def prey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prey]:
    """On a server of its own: an operator may do anything to it."""
    with serving(tmp_path_factory.mktemp("exposed")) as served:
        yield Prey(served)


def examples(number: int) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=number,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )


@schema.exclude(path_regex=SIBLINGS).parametrize()
@examples(6)
def test_generated_calls_are_answered_as_described(case: Case, prey: Prey) -> None:
    assert_answered(case, prey, prey.callers(case, everybody=False))


@pytest.mark.full
@pytest.mark.timeout(600)  # most is this process's own work: 12 s at the most alone, 40 s on half a core
@schema.exclude(path_regex=SIBLINGS).parametrize()
@examples(25)
def test_many_generated_calls_of_everybody_are(case: Case, prey: Prey) -> None:
    assert_answered(case, prey, prey.callers(case, everybody=True))


def assert_answered(case: Case, prey: Prey, callers: list[Caller]) -> None:
    """As described, and with what a scope allows to nobody who lacks it."""
    prey.aim(case)
    for caller in callers:
        response = prey.ask(case, caller)
        if response is None:
            continue
        case.validate_response(response, checks=CHECKS)
        assert response.headers["x-request-id"]
        if caller.lacks(route_of(case)):  # a generated path may be no route, a header no token
            assert response.status_code in {401, 403, 404, 405}, (sorted(caller.scopes), response.text)


def test_examples_of_the_wire_are_as_described(served: Served, tenant: Tenant) -> None:
    """What random calls hardly reach: full answers of recognition and search."""
    image = base64.b64encode(images.encoded(Image.new("RGB", (30, 20), "red"), "PNG")).decode()
    records = [{"_id": "a", "_base64": image, "n": 1}, {"_id": "b", "_base64": "?"}]
    task = served.bundle.task
    for path, document in (
        ("/recognition/v2/classify", {"records": records, "task_id": task}),
        ("/photo/tags/v2/tags", {"records": records}),
        ("/photo/v2/descriptor", {"records": records}),
        ("/dom_colors/generic/v2/dominantcolor", {"records": records}),
        ("/dom_colors/product/v2/dominantcolor", {"records": records}),
        ("/image_matching/v2/visual_hash", {"records": records}),
        ("/image_matching/v2/rank_images", {"query_record": records[0], "records": records}),
        ("/image_matching/v2/remove_duplicates", {"records": [*records, records[0]]}),
        ("/similarity/photos/v2/insert", {"records": records}),
        ("/similarity/photos/v2/insert", {"records": records[:1]}),
        ("/similarity/photos/v2/visualKNN", {"query_record": {"_id": "a"}, "fields_to_return": ["*"]}),
        ("/similarity/photos/v2/visualRankRecords", {"query_record": {"_id": "a"}, "records": records}),
        ("/similarity/photos/v2/nearDuplicates", {"query_record": {"_id": "a"}, "max_distance": 2}),
        ("/similarity/photos/v2/nearDuplicates", {}),
        ("/similarity/photos/v2/upsert", {"records": records[:1]}),
        ("/similarity/photos/v2/visualKNN", {"records": [{"_id": "a"}, {"_id": "z"}, *records]}),
        ("/similarity/photos/v2/deleteByFilter", {"filter": {"n": 7}}),
        ("/similarity/photos/v2/random", {"count": 1}),
        ("/similarity/photos/v2/allRecords", {}),
        ("/similarity/photos/v2/get", {"records": [{"_id": "a"}, {"_id": "z"}]}),
        ("/similarity/photos/v2/update", {"records": [{"_id": "a", "n": 2}]}),
        ("/similarity/photos/v2/delete", {"records": [{"_id": "a"}]}),
    ):
        url = f"http://{served.site.host}:{served.site.port}{path}"
        response = requests.post(url, json.dumps(document), headers=tenant.headers(), timeout=30)
        assert response.status_code in {200, 411}, response.text
        schema[path]["POST"].validate_response(response)
