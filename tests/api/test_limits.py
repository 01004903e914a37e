"""Rates of tokens and quotas of customers: 429, when to come again, and why, in both error shapes."""

import base64
import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.accounts.agreements import Kind
from appliance.accounts.tokens import Principal
from appliance.api import asynchronous
from appliance.api.throttle import Throttle
from appliance.config import Api
from appliance.errors import Overloaded
from appliance.recognition import hashing
from tests import images
from tests.serving import ACTOR, Reply, Served, Tenant

V1 = "/appliance/v1"
PHOTOS = "/similarity/photos/v2"


class Seconds:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def own(served: Served) -> Tenant:
    """A customer of the test's own."""
    return served.tenant(str(uuid.uuid4()))


@pytest.fixture
def served_slowly(served: Served) -> Iterator[Any]:
    """A second server, where a token may send three requests a minute."""
    with served.another(requests_per_minute=3) as (site, server):
        yield site, server


def post(served: Served, tenant: Tenant, path: str, **document: Any) -> Reply:
    return served.site.call("POST", path, json.dumps(document).encode(), tenant.headers())


def limit(served: Served, tenant: Tenant, **most: int | None) -> dict[str, int]:
    answer = served.site.operate("PATCH", f"{V1}/customers/{tenant.id}/limits", most)
    assert answer.status == 200, answer.body
    return dict(answer.document)


def assert_quota(answer: Reply, what: str) -> None:
    assert answer.status == 429, answer.body
    assert int(answer.headers["retry-after"]) >= 1
    assert what in answer.document["detail"]
    if "status" in answer.document and isinstance(answer.document["status"], dict):
        assert answer.code == 429


def photo() -> str:
    return base64.b64encode(images.plain(uuid.uuid4().bytes)).decode()


def test_a_token_waits_as_long_as_it_is_told_and_others_do_not() -> None:
    clock = Seconds()
    throttle = Throttle(Api(requests_per_minute=2, bytes_per_minute=0), clock)

    def ask(token: str, **rates: int) -> int | None:
        principal = Principal(None, token, frozenset(), operator=False, **rates)  # type: ignore[arg-type]
        try:
            throttle.admit(principal, 0)
        except Overloaded as error:
            return error.retry_after
        return None

    assert [ask("a") for _ in range(3)] == [None, None, 30]
    assert ask("b") is None
    assert [ask("fast", requests_per_minute=4) for _ in range(5)] == [None] * 4 + [15]
    assert [ask("free", requests_per_minute=0) for _ in range(50)] == [None] * 50
    clock.now = 29
    assert ask("a") == 1
    clock.now = 30
    assert ask("a") is None


def test_a_large_body_is_paid_for_by_those_that_follow_and_what_did_not_come_is_given_back() -> None:
    clock = Seconds()
    throttle = Throttle(Api(bytes_per_minute=6000), clock)
    principal = Principal(None, "a", frozenset(), operator=False)
    throttle.admit(principal, 12_000)
    with pytest.raises(Overloaded, match="6000 bytes a minute") as refused:
        throttle.admit(principal, 1)
    assert refused.value.retry_after == 61
    throttle.settle(principal, -11_000)
    throttle.admit(principal, 0)
    throttle.settle(principal, 5000)  # in pieces, whose sum nobody told before
    with pytest.raises(Overloaded):
        throttle.admit(principal, 0)


def test_operators_and_links_have_no_rate() -> None:
    throttle = Throttle(Api(requests_per_minute=1), Seconds())
    for _ in range(5):
        throttle.admit(Principal(None, None, frozenset(), operator=True, uid=0), 10)


@pytest.mark.parametrize("path", ["/account/v2/user", f"{V1}/collections"])
def test_the_rate_is_answered_in_the_shape_of_the_route(
    served: Served, own: Tenant, served_slowly: Any, path: str
) -> None:
    site, server = served_slowly
    answers = [site.call("GET", path, headers=own.headers()) for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    refused = answers[-1]
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert "3 requests a minute" in refused.document["detail"]
    assert refused.headers["content-type"].startswith("application/problem+json") == path.startswith(V1)
    if not path.startswith(V1):
        assert refused.code == 429
    assert site.call("GET", "/healthz").status == 200
    served.run(server.apply(served.parts.config.api))
    assert site.call("GET", path, headers=own.headers()).status == 200


def test_an_operator_sets_the_rate_of_one_token_and_the_token_sees_it(served: Served, own: Tenant) -> None:
    (token,) = served.run(served.parts.tokens.list(own.id))
    path = f"{V1}/tokens/{token.id}/limits"
    rates: dict[str, int | None] = {"requests_per_minute": 2, "bytes_per_minute": None}
    assert served.site.operate("PATCH", path, {"requests_per_minute": 2}).document == rates
    assert served.site.call("GET", f"{V1}/usage", headers=own.headers()).document["rates"] == rates
    assert served.site.call("GET", "/account/v2/user", headers=own.headers()).status == 200
    assert served.site.call("GET", "/account/v2/user", headers=own.headers()).status == 429
    assert served.site.operate("PATCH", path, {"requests_per_minute": None}).status == 200
    assert served.site.call("GET", "/account/v2/user", headers=own.headers()).status == 200
    for bad in ({"requests_per_minute": -1}, {"requests_per_minute": True}, {"images": 1}):
        assert served.site.operate("PATCH", path, bad).status == 400, bad
    assert served.site.operate("PATCH", f"{V1}/tokens/nobody/limits", {}).status == 404
    tried = served.site.call("PATCH", path, b'{"requests_per_minute": 0}', own.headers())
    assert tried.status == 403


def test_bodies_of_any_form_count_against_the_bytes(served: Served, own: Tenant) -> None:
    (token,) = served.run(served.parts.tokens.list(own.id))
    path = f"{V1}/tokens/{token.id}/limits"
    assert served.site.operate("PATCH", path, {"bytes_per_minute": 1000}).status == 200
    body = json.dumps({"x": "y" * 1100})
    chunks = f"{len(body):x}\r\n{body}\r\n0\r\n\r\n"
    head = (
        f"POST {PHOTOS}/ping HTTP/1.1\r\nHost: x\r\nAuthorization: Token {own.token}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    assert b" 200 " in served.site.raw((head + chunks).encode()).partition(b"\r\n")[0]
    refused = post(served, own, f"{PHOTOS}/ping")
    assert_quota(refused, "1000 bytes a minute")


def test_collections(served: Served, own: Tenant) -> None:
    limit(served, own, collections=1)
    refused = post(served, own, f"{V1}/collections", name="one more")
    assert_quota(refused, "1 collections")
    assert refused.headers["content-type"].startswith("application/problem+json")
    limit(served, own, collections=None)
    assert post(served, own, f"{V1}/collections", name="one more").status == 201


def test_vectors(served: Served, own: Tenant) -> None:
    limit(served, own, vectors=2)
    records = [{"_id": str(number), "_base64": photo()} for number in range(3)]
    some = post(served, own, f"{PHOTOS}/insert", records=records)
    assert some.code == 211
    assert [one["_status"]["code"] for one in some.document["skipped_records"]] == [412]
    none = post(served, own, f"{PHOTOS}/insert", records=records[2:])
    assert_quota(none, "2 records")
    again = post(served, own, f"{PHOTOS}/upsert", records=[{"_id": "0", "_base64": photo()}])
    assert again.status == 200, "what is replaced needs no room"
    limit(served, own, vectors=3)
    assert post(served, own, f"{PHOTOS}/insert", records=records[2:]).code == 210


def test_images_and_their_bytes(served: Served, own: Tenant) -> None:
    agreed = served.parts.agreements.sign(ACTOR, own.id, Kind.TRAINING_DATA)
    served.run(agreed)
    upload = "/recognition/v2/training-image"
    limit(served, own, images=1)
    assert post(served, own, upload, base64=photo()).status in {200, 201}
    assert_quota(post(served, own, upload, base64=photo()), "1 stored images")
    used = served.site.call("GET", f"{V1}/usage", headers=own.headers()).document["quotas"]
    assert used["images"] == {"used": 1, "limit": 1}
    size = used["bytes"]["used"]
    assert size > 0
    limit(served, own, images=10, bytes=size + 1)
    assert_quota(post(served, own, upload, base64=photo()), f"{size + 1} bytes")
    limit(served, own, bytes=None)
    assert post(served, own, upload, base64=photo()).status in {200, 201}


def test_jobs(served: Served, own: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asynchronous, "WORKERS", 0)
    other = served.tenant(str(uuid.uuid4()))
    request = {"type": "dominant-colors-generic", "records": [{"_base64": photo()}]}
    limit(served, own, jobs=1)
    with served.another() as (site, _):

        def ask(tenant: Tenant) -> Reply:
            return site.call("POST", "/account/v2/request", json.dumps(request).encode(), tenant.headers())

        first = ask(own)
        assert first.status == 201
        assert_quota(ask(own), "1 requests")
        assert ask(other).status == 201
        cancel = f"/account/v2/request/{first.document['id']}/cancel"
        assert site.call("POST", cancel, headers=own.headers()).status == 200
        assert ask(own).status == 201


def test_a_customer_sees_what_it_has_and_may_have_and_nobody_elses(served: Served, own: Tenant) -> None:
    assert limit(served, own, jobs=7)["jobs"] == 7
    usage = served.site.call("GET", f"{V1}/usage", headers=own.headers()).document
    assert usage["customer"] == own.id
    assert usage["quotas"]["collections"] == {"used": 1, "limit": 10_000}
    assert usage["quotas"]["vectors"] == {"used": 0, "limit": 100_000_000}
    assert usage["quotas"]["jobs"] == {"used": 0, "limit": 7}
    assert usage["rates"] == {"requests_per_minute": None, "bytes_per_minute": None}
    assert served.site.operate("GET", f"{V1}/usage?customer={own.id}").document["quotas"] == usage["quotas"]
    assert served.site.operate("GET", f"{V1}/usage").status == 400
    stranger = served.tenant(str(uuid.uuid4()))
    asked = served.site.call("GET", f"{V1}/usage?customer={own.id}", headers=stranger.headers())
    assert asked.status == 404
    raised = served.site.call("PATCH", f"{V1}/customers/{own.id}/limits", b'{"jobs": 9}', own.headers())
    assert raised.status == 403
    for bad in ({"jobs": -1}, {"jobs": "9"}, {"records": 1}):
        assert served.site.operate("PATCH", f"{V1}/customers/{own.id}/limits", bad).status == 400, bad
    beyond = served.site.operate("PATCH", f"{V1}/customers/{own.id}/limits", {"vectors": 2**63})
    assert (beyond.status, beyond.document["detail"]) == (
        400,
        f"vectors: an integer from 0 to {2**50} is expected, or null",
    )
    assert served.site.operate("PATCH", f"{V1}/customers/{uuid.uuid4()}/limits", {"jobs": 9}).status == 404


def test_one_customers_waiting_requests_leave_room_for_anothers(
    served: Served, own: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asynchronous, "WORKERS", 0)
    other = served.tenant(str(uuid.uuid4()))
    limits = served.parts.config.requests.model_copy(update={"pending": 4})
    request = {"type": "dominant-colors-generic", "records": [{"_base64": photo()}]}
    with served.another(sections={"requests": limits}) as (site, _):
        asked = [own] * 5 + [other] * 3
        statuses = [
            site.call("POST", "/account/v2/request", json.dumps(request).encode(), tenant.headers()).status
            for tenant in asked
        ]
    assert statuses == [201] * 4 + [429] + [201] * 2 + [429]


def test_hashes_need_no_room_of_others(served: Served, own: Tenant) -> None:
    """A quota is a customer's: a collection of hashes counts as any other."""
    limit(served, own, vectors=1)
    hashes = served.run(served.parts.collections.add(ACTOR, own.id, "hashes", hashing.PIN, hashing.BITS)).id
    headers = own.headers(collection_id=hashes)
    body = json.dumps({"records": [{"_id": "a", "_base64": photo()}]}).encode()
    assert served.site.call("POST", "/image_matching/v2/insert", body, headers).code == 210
    assert_quota(
        post(served, own, f"{PHOTOS}/insert", records=[{"_id": "b", "_base64": photo()}]), "1 records"
    )
