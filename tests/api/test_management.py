"""`/appliance/v1` for customers over TCP and for operators over the Unix socket."""

import json
import socket
import uuid
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import urlsplit

import pytest

from appliance.accounts.audit import Event
from appliance.accounts.rights import Scope
from tests import images
from tests.serving import DIM, Reply, Served, Tenant
from tests.shop import Shop, code, ids, record

V1 = "/appliance/v1"


def admin(served: Served, tenant: Tenant, method: str, path: str, document: object = None) -> Reply:
    body = None if document is None else json.dumps(document).encode()
    return served.site.call(method, V1 + path, body, tenant.headers())


def operate(served: Served, method: str, path: str, document: object = None) -> Any:
    answer = served.site.operate(method, V1 + path, document)
    assert answer.status < 300, answer.body
    return answer.document if answer.body else None


def unique(prefix: str = "x") -> str:
    return f"{prefix} {uuid.uuid4()}"


def test_an_operator_manages_from_nothing_to_a_search(served: Served) -> None:
    customer = operate(served, "POST", "/customers", {"name": unique("bank")})
    assert set(customer) == {"id", "name", "created_at", "suspended_at", "claimed_at"}
    assert datetime.fromisoformat(customer["created_at"]).timestamp() == served.clock
    issued = operate(served, "POST", "/tokens", {"customer": customer["id"], "scopes": ["search:read"]})
    assert set(issued) == {"id", "token"}
    assert issued["token"].startswith("xapp_")
    assert len(issued["token"]) < 70
    collection = operate(served, "POST", "/collections", {"customer": customer["id"], "name": "photos"})
    assert collection["backbone"] == "colours@1"
    assert (collection["dim"], collection["count"]) == (DIM, 0)
    headers = {"authorization": f"Token {issued['token']}", "collection-id": collection["id"]}
    assert served.site.call("POST", "/similarity/photos/v2/random", None, headers).status == 200

    (token,) = operate(served, "GET", f"/tokens?customer={customer['id']}")["tokens"]
    assert token["scopes"] == ["search:read"]
    assert token["expires_at"] is token["revoked_at"] is None
    assert issued["token"] not in json.dumps(token)
    refused = served.site.operate("DELETE", f"{V1}/tokens/{issued['id']}")
    assert (refused.status, "revokes them itself" in refused.document["detail"]) == (403, True)
    assert served.site.call("POST", "/similarity/photos/v2/random", None, headers).status == 200
    assert operate(served, "DELETE", f"/collections/{collection['id']}") is None
    assert operate(served, "GET", f"/collections?customer={customer['id']}") == {
        "collections": [],
        "next": None,
    }


def test_a_suspended_customer_gets_nothing_until_it_is_resumed(served: Served) -> None:
    tenant = served.tenant(unique())
    other = served.tenant(unique())
    operate(served, "POST", "/agreements", {"customer": tenant.id, "kind": "training-data"})
    headers = tenant.headers(content_type="image/png")
    upload = served.site.call("POST", "/recognition/v2/training-image", images.plain("held"), headers)
    link = urlsplit(upload.document["img_path"])
    file = f"{link.path}?{link.query}"

    def seen() -> list[int]:
        search = served.site.call("POST", "/similarity/photos/v2/random", None, tenant.headers())
        own = served.site.call("GET", file, None, {"authorization": f"Token {tenant.token}"})
        status = [search.status, admin(served, tenant, "GET", "/tokens").status, own.status]
        return [*status, served.site.call("GET", file, None, {}).status]

    path = f"/customers/{tenant.id}"
    assert seen() == [200, 200, 200, 200]
    assert operate(served, "POST", f"{path}/suspend")["suspended_at"] is not None
    assert seen() == [403, 403, 403, 403]
    assert admin(served, tenant, "POST", f"{path}/resume").status == 403
    assert "suspended" in admin(served, tenant, "GET", "/tokens").document["detail"]
    assert served.site.call("POST", "/similarity/photos/v2/random", None, other.headers()).status == 200
    assert operate(served, "POST", f"{path}/resume")["suspended_at"] is None
    assert seen() == [200, 200, 200, 200]


@pytest.mark.parametrize(
    ("path", "document"),
    [
        (f"{V1}/tokens", {}),
        ("/recognition/v2/label", {"name": "too late"}),
        ("/account/v2/request/", {"type": "dominant-colors-generic", "records": [record("r")]}),
        ("/similarity/photos/v2/delete", {"records": [{"_id": "r"}]}),
    ],
)
def test_a_call_that_began_before_a_suspension_changes_nothing_after_it(
    served: Served, path: str, document: object
) -> None:
    tenant = served.tenant(unique())
    entries = len(operate(served, "GET", f"/audit?customer={tenant.id}")["entries"])
    body = json.dumps(document).encode()
    headers = tenant.headers(expect="100-continue", content_length=str(len(body)))
    top = [f"POST {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers.items())]
    with socket.create_connection((served.site.host, served.site.port), timeout=20) as connection:
        connection.sendall("\r\n".join([*top, "", ""]).encode())
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        operate(served, "POST", f"/customers/{tenant.id}/suspend")
        connection.sendall(body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 403 ")
    found = operate(served, "GET", f"/audit?customer={tenant.id}")["entries"]
    events = {entry["event"] for entry in found[entries:]}
    assert events - {Event.DATASET_ADD} == {Event.CUSTOMER_SUSPEND}, "the default dataset makes itself"


def test_an_operator_sees_all_and_a_customer_its_own(served: Served, tenant: Tenant) -> None:
    other = served.tenant(unique())
    everybody = {row["id"] for row in operate(served, "GET", "/customers")["customers"]}
    assert {tenant.id, other.id} <= everybody
    assert [row["id"] for row in admin(served, tenant, "GET", "/customers").document["customers"]] == [
        tenant.id
    ]
    owners = {row["customer"] for row in operate(served, "GET", "/collections")["collections"]}
    assert {tenant.id, other.id} <= owners
    mine = admin(served, tenant, "GET", "/collections").document["collections"]
    assert {row["customer"] for row in mine} == {tenant.id}
    assert admin(served, tenant, "GET", f"/customers/{tenant.id}").document["id"] == tenant.id


def test_an_admin_token_manages_its_own_customer(served: Served) -> None:
    tenant = served.tenant(unique())
    issued = admin(served, tenant, "POST", "/tokens", {}).document
    (row,) = [
        t for t in admin(served, tenant, "GET", "/tokens").document["tokens"] if t["id"] == issued["id"]
    ]
    assert "admin" not in row["scopes"]
    rotated = admin(served, tenant, "POST", f"/tokens/{issued['id']}/rotate", {"overlap_seconds": 60})
    assert rotated.status == 201
    assert rotated.document["id"] != issued["id"]
    again = admin(served, tenant, "POST", f"/tokens/{issued['id']}/rotate")
    assert again.status == 409
    assert admin(served, tenant, "DELETE", f"/tokens/{issued['id']}").status == 204
    collection = admin(served, tenant, "POST", "/collections", {"name": "mine"})
    assert collection.status == 201
    assert admin(served, tenant, "POST", "/collections", {"name": "mine"}).status == 409
    path = f"/collections/{collection.document['id']}"
    assert admin(served, tenant, "GET", path).document == collection.document
    assert admin(served, tenant, "DELETE", path).status == 204
    assert admin(served, tenant, "GET", path).status == 404
    events = [row.event for row in served.audited(tenant) if row.actor.kind == "token"]
    assert events == [
        Event.TOKEN_ADD,
        Event.TOKEN_ROTATE,
        Event.TOKEN_REVOKE,
        Event.COLLECTION_ADD,
        Event.COLLECTION_REMOVE,
    ]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/customers"), ("GET", "/status"), ("GET", "/bundles"), ("POST", "/bundles")],
)
def test_what_is_for_operators_only(served: Served, tenant: Tenant, method: str, path: str) -> None:
    answer = admin(served, tenant, method, path, {} if method == "POST" else None)
    assert answer.status == 403
    assert "operator" in answer.document["detail"]


def test_management_needs_the_admin_scope(served: Served, tenant: Tenant) -> None:
    token = served.token(tenant, *(scope for scope in Scope if scope is not Scope.ADMIN))
    answer = served.site.call("GET", f"{V1}/tokens", headers=tenant.headers(authorization=f"Token {token}"))
    assert answer.status == 403
    assert "admin" in answer.document["detail"]


def test_a_token_expires(served: Served, tenant: Tenant) -> None:
    prague = timezone(timedelta(hours=1))
    moment = datetime.fromtimestamp(served.clock + 60, prague).isoformat()
    issued = admin(served, tenant, "POST", "/tokens", {"expires_at": moment}).document
    headers = {"authorization": f"Token {issued['token']}"}
    assert served.site.call("GET", "/account/v2/user", headers=headers).status == 200
    served.clock += 60
    try:
        assert served.site.call("GET", "/account/v2/user", headers=headers).status == 401
    finally:
        served.clock -= 60


@pytest.mark.parametrize(
    ("path", "document", "why"),
    [
        ("/customers", {}, "name"),
        ("/customers", {"name": 5}, "name"),
        ("/customers", {"name": ""}, "name"),
        ("/customers", {"name": "x", "nmae": "y"}, "nmae"),
        ("/tokens", {}, "customer"),
        ("/tokens", {"customer": "CUSTOMER", "scopes": ["root"]}, "scopes"),
        ("/tokens", {"customer": "CUSTOMER", "scopes": []}, "scopes"),
        ("/tokens", {"customer": "CUSTOMER", "expires_at": "tomorrow"}, "expires_at"),
        ("/tokens", {"customer": "CUSTOMER", "expires_at": "2099-01-01T00:00:00"}, "time zone"),
        ("/tokens", {"customer": "CUSTOMER", "expires_at": "1999-01-01T00:00:00Z"}, "expires_at"),
        ("/collections", {"customer": "CUSTOMER"}, "name"),
        ("/collections", {"name": "x"}, "customer"),
    ],
)
def test_bodies_that_are_refused(
    served: Served, tenant: Tenant, path: str, document: dict[str, object], why: str
) -> None:
    if document.get("customer") == "CUSTOMER":
        document = document | {"customer": tenant.id}
    answer = served.site.operate("POST", V1 + path, document)
    assert answer.status == 400, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    assert why in answer.document["detail"]


def test_ids_that_do_not_exist(served: Served) -> None:
    nobody = str(uuid.uuid4())
    for method, path, document in (
        ("GET", f"/customers/{nobody}", None),
        ("GET", f"/tokens?customer={nobody}", None),
        ("GET", f"/collections?customer={nobody}", None),
        ("GET", "/tokens?customer=", None),
        ("GET", f"/collections/{nobody}", None),
        ("DELETE", f"/collections/{nobody}", None),
        ("DELETE", "/tokens/0123456789", None),
        ("POST", "/tokens/0123456789/rotate", {}),
        ("POST", "/tokens", {"customer": nobody}),
        ("POST", "/collections", {"customer": nobody, "name": "x"}),
    ):
        assert served.site.operate(method, V1 + path, document).status == 404, path


def test_status(served: Served) -> None:
    assert operate(served, "GET", "/status") == {"state": "ready"}


def test_collections_come_in_pages_and_by_name(served: Served) -> None:
    tenant, stranger = served.tenant(unique()), served.tenant(unique())
    for number in range(4):
        admin(served, tenant, "POST", "/collections", {"name": f"shelf {number}"})
    whole = admin(served, tenant, "GET", "/collections").document
    assert (len(whole["collections"]), whole["next"]) == (5, None)
    page = admin(served, tenant, "GET", "/collections?limit=2").document
    seen = page["collections"]
    while page["next"]:
        page = admin(served, tenant, "GET", f"/collections?limit=2&after={page['next']}").document
        seen += page["collections"]
    assert seen == whole["collections"]
    (third,) = admin(served, tenant, "GET", "/collections?name=shelf%202").document["collections"]
    assert third == whole["collections"][3]
    named = operate(served, "GET", f"/collections?customer={tenant.id}&name=shelf%202")
    assert named["collections"] == [third]
    nothing: dict[str, object] = {"collections": [], "next": None}
    assert admin(served, tenant, "GET", "/collections?name=shelf").document == nothing
    assert admin(served, stranger, "GET", "/collections?name=shelf%202").document == nothing
    for bad in ("limit=0", "limit=1001", "limit=x", "after=nobody", f"limit=2&after={stranger.collection}"):
        assert admin(served, tenant, "GET", f"/collections?{bad}").status == 400, bad
    refused = served.site.operate("GET", f"{V1}/collections?name=x")
    assert (refused.status, refused.document["detail"][:5]) == (400, "name:")


def test_a_collection_is_renamed(served: Served) -> None:
    tenant = served.tenant(unique())
    path = f"/collections/{tenant.collection}"
    before = admin(served, tenant, "GET", path).document
    renamed = admin(served, tenant, "PATCH", path, {"name": " Shoes "})
    assert renamed.document == before | {"name": "Shoes"}
    assert admin(served, tenant, "GET", path).document == renamed.document
    assert admin(served, tenant, "PATCH", path, {"name": "Shoes"}).status == 200
    admin(served, tenant, "POST", "/collections", {"name": "photos"})
    assert admin(served, tenant, "PATCH", path, {"name": "photos"}).status == 409
    for bad in ({"name": ""}, {"name": 5}, {}, {"name": "x", "dim": 5}):
        assert admin(served, tenant, "PATCH", path, bad).status == 400
    stranger = served.tenant(unique())
    assert admin(served, stranger, "PATCH", path, {"name": "mine"}).status == 404
    assert operate(served, "PATCH", path, {"name": "Boots"})["name"] == "Boots"
    rows = [row for row in served.audited(tenant) if row.event is Event.COLLECTION_RENAME]
    assert [row.subject for row in rows] == [tenant.collection] * 3
    assert "Shoes" not in str(rows)


def test_a_collection_is_emptied_and_goes_on(served: Served) -> None:
    tenant = served.tenant(unique())
    shop = Shop(served, tenant, tenant.collection)
    path = f"/collections/{tenant.collection}"
    shop.insert(*(record(str(n), n, part=n % 2) for n in range(10)))
    assert shop.post("allRecords", {"filter": {"part": 1}})["answer_count"] == 5
    before = admin(served, tenant, "GET", path).document
    assert before["count"] == 10
    stranger = served.tenant(unique())
    assert admin(served, stranger, "POST", f"{path}/empty").status == 404
    emptied = admin(served, tenant, "POST", f"{path}/empty")
    assert emptied.status == 200
    assert emptied.document == before | {"count": 0}
    assert shop.stored() == []
    assert admin(served, tenant, "GET", "/collections").document["collections"] == [emptied.document]
    assert code(shop.insert(record("0", 0))) == 210
    assert ids(shop.post("visualKNN", {"query_record": {"_id": "0"}})) == ["0"]
    (row,) = [row for row in served.audited(tenant) if row.event is Event.COLLECTION_EMPTY]
    assert row.subject == tenant.collection
    assert row.details == {"records": 10, "container": tenant.collection}


def test_a_collection_tells_how_it_is_searched(served: Served) -> None:
    tenant = served.tenant(unique())
    path = f"/collections/{tenant.collection}/stats"
    usual = {"dim": DIM, "backbone": "colours@1", "damaged": 0}
    nothing = {"graph": False, "graph_records": 0, "graph_share": 0.0, "segments": []}
    nothing |= {"recall": 0.95, "ef": None, "measured_recall": None}
    assert admin(served, tenant, "GET", path).document == usual | nothing | {"count": 0, "tail_records": 0}
    Shop(served, tenant, tenant.collection).insert(record("a"))
    assert operate(served, "GET", path) == usual | nothing | {"count": 1, "tail_records": 1}
    assert admin(served, served.tenant(unique()), "GET", path).status == 404


def test_a_collections_recall_is_chosen_and_changed(served: Served) -> None:
    tenant = served.tenant(unique())
    made = admin(served, tenant, "POST", "/collections", {"name": "x", "metric": "cosine", "recall": 0.99})
    assert (made.status, made.document["recall"], made.document["metric"]) == (201, 0.99, "cosine")
    path = f"/collections/{made.document['id']}"
    assert admin(served, tenant, "PATCH", path, {"recall": 0.9}).document["recall"] == 0.9
    both = admin(served, tenant, "PATCH", path, {"recall": 0.8, "name": "y"}).document
    assert (both["recall"], both["name"]) == (0.8, "y")
    assert admin(served, tenant, "GET", path).document == both
    assert [row.details for row in served.audited(tenant) if row.event is Event.COLLECTION_RECALL] == [
        {"recall": 0.9},
        {"recall": 0.8},
    ]
    for wrong, why in (
        ({"recall": 1}, "0.8 to 0.999"),
        ({"name": "z", "recall": 0.5}, "0.8 to 0.999"),
        ({"recall": "high"}, "recall"),
        ({}, "name or recall"),
    ):
        refused = admin(served, tenant, "PATCH", path, wrong)
        assert (refused.status, why in refused.document["detail"]) == (400, True), wrong
    assert admin(served, tenant, "GET", path).document == both
    refused = admin(served, tenant, "POST", "/collections", {"name": "z", "metric": "euclidean"})
    assert refused.status == 400
    assert "the order is the same" in refused.document["detail"]
