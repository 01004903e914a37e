"""A name in the place of a collection's id, on every route of search."""

import json
import uuid

import numpy as np

from appliance.accounts.audit import Event
from appliance.accounts.rights import Scope
from tests.searching import unit
from tests.serving import DIM, Reply, Served, Tenant
from tests.shop import Shop, code, record

ALIASES = "/appliance/v1/aliases"
VECTORS = unit(np.random.default_rng(4), 5, DIM)


def put(served: Served, tenant: Tenant, name: str, document: object) -> Reply:
    return served.site.call("PUT", f"{ALIASES}/{name}", json.dumps(document).encode(), tenant.headers())


def test_an_alias_is_taken_wherever_a_collection_is(shop: Shop, served: Served, tenant: Tenant) -> None:
    name = f"alias-{uuid.uuid4()}"
    made = put(served, tenant, name, {"collection": shop.collection})
    assert (made.status, made.document["collection"]) == (200, shop.collection)
    for named in (name, made.document["id"]):
        other = Shop(served, tenant, named)
        other.insert(record(named, 40))
        assert code(other.post("get", {"records": [{"_id": named}]})) == 205
        headers = tenant.headers()
        del headers["collection-id"]
        body = json.dumps({"collection_id": named, "query_record": {"_id": named}}).encode()
        assert served.site.call("POST", "/photo/search/v2/visualKNN", body, headers).code == 200
    assert shop.post("ping", {}, collection_id=name)["collection_size"] == 2
    listed = served.site.call("GET", ALIASES, None, tenant.headers()).document["aliases"]
    assert made.document in listed
    assert served.site.call("DELETE", f"{ALIASES}/{name}", None, tenant.headers()).status == 204
    assert shop.ask("ping", {}, collection_id=name).status == 404
    events = [row.event for row in served.audited(tenant)]
    assert {Event.ALIAS_SET, Event.ALIAS_REMOVE} <= set(events)


def test_a_name_that_none_can_have_is_refused_as_a_name(shop: Shop, served: Served, tenant: Tenant) -> None:
    for name in ("a%20b", "%C3%A9", "a" * 300, "%00", "a_b"):
        refused = put(served, tenant, name, {"collection": shop.collection})
        assert refused.status == 400, name
        assert refused.document["detail"].startswith("name: 1 to 64 letters, digits, dots and hyphens"), name


def test_who_may_not_change_names_learns_nothing_of_what_one_can_be(served: Served, tenant: Tenant) -> None:
    infers = served.token(tenant, Scope.INFER)
    for token, status in ((infers, 403), (infers[:-1], 401)):
        headers = tenant.headers(authorization=f"Token {token}")
        assert served.site.call("PUT", f"{ALIASES}/%C3%A9", b"{}", headers).status == status


def test_a_new_version_of_a_backbone_is_brought_in_beside_the_old_one(served: Served, tenant: Tenant) -> None:
    """The old collection answers until the new one is full; then, in one step, the new one does."""
    name, pins = "photos-in-use", (served.bundle.pin, "colours@next")
    shop = Shop(served, tenant, name)
    old, new = (filled(served, tenant, pin) for pin in pins)
    for collection, pin in ((old, pins[0]), (new, pins[1])):
        assert put(served, tenant, name, {"collection": collection}).status == 200
        query = {"query_record": {"_id": "r0"}, "fields_to_return": ["made_by"]}
        assert shop.post("visualKNN", query)["answer_records"][0] == {"_id": "r0", "made_by": pin}
    removed = served.site.call("DELETE", f"/appliance/v1/collections/{new}", None, tenant.headers())
    assert removed.status == 204
    answer = shop.ask("ping", {})
    assert (answer.status, new in answer.document["detail"]) == (404, True)


def filled(served: Served, tenant: Tenant, pin: str) -> str:
    """A collection of vectors that this model made."""
    made = served.run(served.collection(tenant.id, str(uuid.uuid4()), pin))
    lines = [
        json.dumps({"_id": f"r{n}", "_vector": vector.tolist(), "made_by": pin})
        for n, vector in enumerate(VECTORS)
    ]
    path = f"/appliance/v1/collections/{made}/import?backbone={pin}"
    headers = tenant.headers(content_type="application/x-ndjson")
    taken = served.site.call("POST", path, "\n".join(lines).encode(), headers)
    assert taken.document["inserted"] == len(VECTORS)
    return made


def test_a_name_is_its_customers_alone(shop: Shop, served: Served, tenant: Tenant) -> None:
    assert put(served, tenant, "mine", {"collection": shop.collection}).status == 200
    other = served.tenant(f"other {uuid.uuid4()}")
    assert Shop(served, other, "mine").ask("ping", {}).status == 404
    assert put(served, other, "mine", {"collection": shop.collection}).status == 404
    assert put(served, other, "mine", {"collection": other.collection}).status == 200
    assert Shop(served, tenant, "mine").post("ping", {})["collection_size"] == 0
    assert put(served, tenant, "mine", {"collection": shop.collection, "more": 1}).status == 400
    assert put(served, tenant, shop.collection, {"collection": shop.collection}).status == 400
    reading = {"authorization": f"Token {served.token(tenant, Scope.SEARCH_WRITE)}"}
    assert served.site.call("DELETE", f"{ALIASES}/mine", None, reading).status == 403


def test_operators_name_the_customer_to_forget_a_name(shop: Shop, served: Served, tenant: Tenant) -> None:
    name = f"{ALIASES}/by-operator"
    made = served.site.operate("PUT", name, {"collection": shop.collection})
    assert (made.status, made.document["customer"]) == (200, tenant.id)
    assert served.site.operate("DELETE", name).status == 400
    assert served.site.operate("DELETE", f"{name}?customer={tenant.id}").status == 204
