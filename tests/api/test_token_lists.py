"""Lists of a token: what it may ask about is served, of all else it does not learn that it exists."""

import base64
import json
import uuid
from typing import Any

from PIL import Image

from appliance.accounts.rights import Scope
from appliance.api.answers import moment
from appliance.search.records import CollectionId
from tests import images
from tests.serving import ACTOR, Reply, Served, Tenant

V1 = "/appliance/v1"
PHOTO = base64.b64encode(images.encoded(Image.new("RGB", (30, 20), "red"), "PNG")).decode()


def issue(served: Served, tenant: Tenant, **asked: Any) -> Reply:
    body = json.dumps({"scopes": ["infer", "search:read", "search:write"]} | asked).encode()
    return served.site.call("POST", f"{V1}/tokens", body, tenant.headers())


def post(served: Served, tenant: Tenant, token: str, path: str, **document: Any) -> Reply:
    headers = tenant.headers(authorization=f"Token {token}", **document.pop("headers", {}))
    return served.site.call("POST", path, json.dumps(document).encode(), headers)


def test_a_token_searches_the_collections_of_its_list_also_by_an_alias(served: Served) -> None:
    tenant = served.tenant(str(uuid.uuid4()))
    other = served.run(served.collection(tenant.id, "other"))
    for name, collection in (("mine", tenant.collection), ("theirs", other)):
        pointing = served.parts.collections.aliases.point(ACTOR, tenant.id, name, CollectionId(collection))
        served.run(pointing)
    token = issue(served, tenant, collections=[tenant.collection]).document["token"]

    def ping(named: str) -> int:
        path = "/similarity/photos/v2/ping"
        return post(served, tenant, token, path, headers={"collection_id": named}).status

    served_ones = [ping(named) for named in (tenant.collection, "mine")]
    assert served_ones == [200, 200]
    assert [ping(named) for named in (other, "theirs", str(uuid.uuid4()), "nobody")] == [404] * 4


def test_a_token_asks_the_tasks_of_its_list(served: Served) -> None:
    tenant = served.tenant(str(uuid.uuid4()))
    task = served.bundle.task
    token = issue(served, tenant, tasks=[task]).document["token"]
    adding = served.parts.tokens.add(ACTOR, tenant.id, {Scope.INFER}, tasks=[str(uuid.uuid4())])
    without = served.run(adding).token
    asked = {"task_id": task, "records": [{"_base64": PHOTO}]}
    for path in ("/recognition/v2/classify", "/photo/tags/v2/tags", "/photo/v2/descriptor"):
        assert post(served, tenant, token, path, **asked).status == 200, path
        assert post(served, tenant, without, path, **asked).status == 404, path
    models = [post(served, tenant, one, "/v2/repository/index").document for one in (token, without)]
    assert served.bundle.name in {model["name"] for model in models[0]}
    assert models[1] == []


def test_a_token_with_tasks_uses_no_other_inference(served: Served) -> None:
    tenant = served.tenant(str(uuid.uuid4()))
    adding = served.parts.tokens.add(ACTOR, tenant.id, {Scope.INFER}, tasks=[str(uuid.uuid4())])
    token = served.run(adding).token
    asked: dict[str, Any] = {"records": [{"_base64": PHOTO}]}
    services = ("photo/v2/descriptor", "similarity/training/v2/descriptor", "photo/tags/v2/tags")
    colours = [f"dom_colors/{kind}/v2/dominantcolor" for kind in ("generic", "product")]
    for path in (*services, *colours):
        assert post(served, tenant, tenant.token, f"/{path}", **asked).status == 200, path
    for path, status in (*((one, 404) for one in services), *((one, 403) for one in colours)):
        answer = post(served, tenant, token, f"/{path}", **asked)
        assert answer.status == status, (path, answer.body)
    for kind in ("dominant-colors-generic", "dominant-colors-product"):
        assert post(served, tenant, token, "/account/v2/request", type=kind, **asked).status == 403
        answer = post(served, tenant, token, "/authorization/v2/authorize", service=kind)
        assert (answer.status, "user_id" in answer.document) == (403, False)
    assert served.run(served.parts.requests.list(tenant.id, 1)) == ([], 0)


def test_a_token_with_tasks_gets_no_hash_of_an_image_that_is_in_no_collection(served: Served) -> None:
    tenant = served.tenant(str(uuid.uuid4()))
    token = issue(served, tenant, tasks=[served.bundle.task]).document["token"]
    asked: dict[str, Any] = {"records": [{"_base64": PHOTO}], "query_record": {"_base64": PHOTO}}
    for action in ("visual_hash", "rank_images", "remove_duplicates"):
        path = f"/image_matching/v2/{action}"
        assert post(served, tenant, tenant.token, path, **asked).status == 200, action
        assert post(served, tenant, token, path, **asked).status == 403, action


def test_a_token_with_tasks_is_told_that_it_searches(served: Served) -> None:
    """Searches are bounded by a list of collections, and the backbone's own task need not be in the other."""
    tenant = served.tenant(str(uuid.uuid4()))
    scopes = {Scope.INFER, Scope.SEARCH_WRITE}
    adding = served.parts.tokens.add(ACTOR, tenant.id, scopes, tasks=[str(uuid.uuid4())])
    token = served.run(adding).token
    path = "/similarity/photos/v2/insert"
    assert post(served, tenant, token, path, records=[{"_id": "1", "_base64": PHOTO}]).code == 210
    authorize = "/authorization/v2/authorize"
    for service, status in (("photo-search", 200), ("image-matching", 200), ("generic-tagging", 404)):
        answer = post(served, tenant, token, authorize, service=service)
        assert (answer.status, "user_id" in answer.document) == (status, status == 200), service


def test_a_token_that_asks_some_tasks_sees_its_own_requests_alone(served: Served) -> None:
    tenant = served.tenant(str(uuid.uuid4()))
    token = issue(served, tenant, tasks=[served.bundle.task]).document["token"]
    request = {"type": "custom-recognition", "task_id": served.bundle.task, "records": [{"_base64": PHOTO}]}
    key = {"headers": {"idempotency_key": "once"}}
    path = "/account/v2/request"
    others = post(served, tenant, tenant.token, path, **request, **key).document["id"]
    made = post(served, tenant, token, path, **request, **key)
    own = made.document["id"]
    assert (made.status, own != others) == (201, True)

    def shown(by: str) -> list[str]:
        headers = tenant.headers(authorization=f"Token {by}")
        return sorted(one["id"] for one in served.site.call("GET", path, headers=headers).document["results"])

    assert shown(token) == [own]
    assert shown(tenant.token) == sorted([own, others])
    headers = tenant.headers(authorization=f"Token {token}")
    for one, status in ((own, 200), (others, 404)):
        for end in ("", "/status"):
            assert served.site.call("GET", f"{path}/{one}{end}", headers=headers).status == status
    assert served.site.call("POST", f"{path}/{others}/cancel", headers=headers).status == 404


def test_lists_and_the_last_use_are_shown_and_mistyped_ids_are_told(served: Served) -> None:
    tenant, stranger = served.tenant(str(uuid.uuid4())), served.tenant(str(uuid.uuid4()))
    issued = issue(served, tenant, collections=[tenant.collection], tasks=[served.bundle.task]).document
    post(served, tenant, issued["token"], "/similarity/photos/v2/ping")
    listed = served.site.call("GET", f"{V1}/tokens", headers=tenant.headers()).document["tokens"]
    shown = {token["id"]: token for token in listed}[issued["id"]]
    assert shown["collections"] == [tenant.collection]
    assert shown["tasks"] == [served.bundle.task]
    assert shown["last_used_at"] == moment(int(served.clock * 1000))
    for asked, status in (
        ({"collections": [stranger.collection]}, 404),
        ({"tasks": [str(uuid.uuid4())]}, 404),
        ({"collections": []}, 400),
        ({"collections": [tenant.collection], "scopes": ["admin"]}, 400),
        ({"tasks": [served.bundle.task], "scopes": ["datasets:read"]}, 400),
    ):
        assert issue(served, tenant, **asked).status == status, asked


def test_a_token_with_a_list_does_not_learn_how_much_there_is(served: Served) -> None:
    tenant = served.tenant(str(uuid.uuid4()))
    for lists in ({"collections": [tenant.collection]}, {"tasks": [served.bundle.task]}):
        token = issue(served, tenant, **lists).document["token"]
        answer = served.site.call(
            "GET", f"{V1}/usage", headers=tenant.headers(authorization=f"Token {token}")
        )
        assert (answer.status, "quotas" in answer.document) == (403, False)
    assert "quotas" in served.site.call("GET", f"{V1}/usage", headers=tenant.headers()).document
