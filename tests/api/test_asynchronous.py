"""`account/v2/request`: taken in, seen later, fetched, listed, cancelled, told of by webhooks."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from PIL import Image

from appliance.accounts.audit import Event
from appliance.api import asynchronous
from appliance.asynchronous import webhooks
from appliance.asynchronous.requests import RequestId, State
from appliance.asynchronous.webhooks import AT_ONCE, EACH_AT_ONCE
from appliance.config import Requests
from appliance.errors import ApplianceError, LedgerAltered, StorageFailed, VolumeFull
from appliance.ledger import Connection
from tests import images
from tests.hosts import Host
from tests.serving import Reply, Served, Site, Tenant

PATH = "/account/v2/request/"


@pytest.fixture
def receiver() -> Iterator[Host]:
    with Host() as host:
        yield host


def record(colour: str = "red", **fields: object) -> dict[str, object]:
    encoded = images.encoded(Image.new("RGB", (60, 40), colour), "PNG")
    return {"_base64": base64.b64encode(encoded).decode(), **fields}


def ask(
    site: Site, tenant: Tenant, method: str, path: str = PATH, document: object = None, **more: str
) -> Reply:
    body = None if document is None else json.dumps(document).encode()
    return site.call(method, path, body, tenant.headers(**more))


def classification(served: Served, *records: object, **fields: object) -> dict[str, object]:
    listed = records or (record(),)
    return {"type": "custom-recognition", "task_id": served.bundle.task, "records": listed, **fields}


def ended(site: Site, tenant: Tenant, request: str) -> Any:
    until = time.monotonic() + 30
    while True:
        found = ask(site, tenant, "GET", PATH + request).document
        if found["status"] in {"DONE", "FAILED", "CANCELLED"}:
            return found
        assert time.monotonic() < until, found


def test_a_request_is_taken_in_seen_and_fetched(served: Served, tenant: Tenant) -> None:
    document = classification(served, record("red", own=7), record("blue", _id="b"))
    answer = ask(served.site, tenant, "POST", PATH, document)
    assert answer.status == 201
    taken = answer.document
    assert (taken["type"], taken["status"]) == ("custom-recognition", "CREATED")
    assert "response" not in taken
    done = ended(served.site, tenant, taken["id"])
    assert done["status"] == "DONE"
    red, blue = done["response"]["records"]
    assert (red["best_label"]["name"], red["own"]) == ("red", 7)
    assert (blue["best_label"]["name"], blue["_id"]) == ("blue", "b")
    assert "_base64" not in json.dumps(done)
    assert done["response"]["status"]["code"] == 200
    assert "type" not in done["response"]
    status = ask(served.site, tenant, "GET", f"{PATH}{taken['id']}/status").document
    assert status == {"id": taken["id"], "status": "DONE"}
    (event,) = [one for one in served.audited(tenant) if one.event is Event.REQUEST_ADD]
    assert (event.subject, event.details) == (taken["id"], {"type": "custom-recognition"})


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("generic-tagging", "_tags"),
        ("dominant-colors-generic", "_dominant_colors"),
        ("dominant-colors-product", "_dominant_colors"),
        ("descriptor", "_descriptor"),
    ],
)
def test_what_can_be_asked_for(served: Served, tenant: Tenant, kind: str, key: str) -> None:
    raw = base64.b64decode(str(record()["_base64"]))
    path = f"{PATH}?type={kind}"
    answer = served.site.call("POST", path, raw, tenant.headers(content_type="image/png"))
    assert answer.status == 201, answer.body
    (seen,) = ended(served.site, tenant, answer.document["id"])["response"]["records"]
    assert seen[key]


@pytest.mark.parametrize(
    ("changed", "status", "why"),
    [
        ({"type": None}, 400, "type"),
        ({"type": 5}, 400, "type"),
        ({"type": "card-grader"}, 404, "service not installed"),
        ({"type": "fashion-tagging"}, 404, "service not installed"),
        ({"records": []}, 400, "records"),
        ({"records": [{}] * 11}, 400, "records"),
        ({"webhook": "http://x"}, 400, "webhook"),
        ({"webhook": {"endpoint": "http://169.254.169.254/"}}, 400, "webhook: "),
        ({"webhook": {"endpoint": "http://x", "secret": "y"}}, 400, "webhook"),
    ],
)
def test_what_is_not_taken_in(served: Served, changed: dict[str, object], status: int, why: str) -> None:
    tenant = served.tenant(f"who is refused: {changed}")
    answer = ask(served.site, tenant, "POST", PATH, classification(served) | changed)
    assert (answer.status, answer.code) == (status, status)
    assert why in answer.document["status"]["text"] + answer.document["detail"]
    assert ask(served.site, tenant, "GET").document["count"] == 0


def test_what_waits_to_be_tried_again_is_in_nobodys_way(served: Served, tenant: Tenant) -> None:
    """Its customer has to wait with the model for a minute."""
    many = served.tenant("whose images end workers")
    engine = served.parts.engine
    assert engine is not None
    engine._penalties.add(many.id, f"{served.bundle.name}@{served.bundle.version}")
    taken = [ask(served.site, many, "POST", PATH, classification(served)).document["id"] for _ in range(4)]
    request = ask(served.site, tenant, "POST", PATH, classification(served)).document["id"]
    assert ended(served.site, tenant, request)["status"] == "DONE"

    for one in taken:
        until = time.monotonic() + 30
        while ask(served.site, many, "GET", PATH + one).document["status"] != "RETRY":
            assert time.monotonic() < until
    for one in taken:
        assert ask(served.site, many, "POST", f"{PATH}{one}/cancel").document["status"] == "CANCELLED"
    assert ask(served.site, many, "GET", f"{PATH}?status=CANCELLED").document["count"] == len(taken)


def test_what_cannot_be_seen_has_failed_and_says_why(served: Served, tenant: Tenant) -> None:
    answer = ask(served.site, tenant, "POST", PATH, classification(served, task_id="nobody"))
    failed = ended(served.site, tenant, answer.document["id"])
    assert (failed["status"], failed["response"]["status"]["code"]) == ("FAILED", 404)
    bad = {"_base64": base64.b64encode(b"no image").decode()}
    answer = ask(served.site, tenant, "POST", PATH, classification(served, bad))
    done = ended(served.site, tenant, answer.document["id"])
    assert (done["status"], done["response"]["records"][0]["_status"]["code"]) == ("DONE", 400)


def test_an_address_that_no_parser_takes_is_the_fault_of_its_record(served: Served, tenant: Tenant) -> None:
    for url in ("http://xn--a/", "http://[h]@"):
        document = classification(served, record(), {"_url": url})
        answer = ask(served.site, tenant, "POST", PATH, document)
        found = ended(served.site, tenant, answer.document["id"])
        first, second = found["response"]["records"]
        assert (first["_status"]["code"], second["_status"]["code"]) == (200, 400)


def test_a_handler_that_breaks_fails_its_request_and_no_other(
    served: Served, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "of this image"

    def broken(*_: object) -> None:
        raise RuntimeError(secret)

    with monkeypatch.context() as patch:
        patch.setattr("appliance.api.recognition.images", broken)
        for _ in range(2 * asynchronous.WORKERS):
            answer = ask(served.site, tenant, "POST", PATH, classification(served))
            found = ended(served.site, tenant, answer.document["id"])
            assert found["status"] == "FAILED"
            assert found["response"]["status"]["code"] == 500
    assert secret not in caplog.text
    answer = ask(served.site, tenant, "POST", PATH, classification(served))
    assert ended(served.site, tenant, answer.document["id"])["status"] == "DONE"


@pytest.mark.parametrize("refusal", [VolumeFull, LedgerAltered])
@pytest.mark.parametrize("full_at", [State.PROCESSING, State.DONE])
def test_a_ledger_that_takes_nothing_for_a_while_delays_a_request_and_loses_none(  # noqa: PLR0917
    served: Served,
    tenant: Tenant,
    receiver: Host,
    monkeypatch: pytest.MonkeyPatch,
    full_at: State,
    refusal: type[ApplianceError],
) -> None:
    monkeypatch.setattr(asynchronous, "FULL_SECONDS", 0.0)
    name = "finish" if full_at.final else "move"
    write, refused = getattr(served.parts.requests, name), list[State]()

    async def full_twice(request: RequestId, state: State, *response: bytes) -> None:
        if len(refused) < 2:
            refused.append(state)
            raise refusal("the volume of the ledger is full, or something else has changed it")
        await write(request, state, *response)

    monkeypatch.setattr(served.parts.requests, name, full_twice)
    with served.another(residency=receiver.residency) as (site, _):
        hook = {"endpoint": f"{receiver.address}/"}
        request = ask(site, tenant, "POST", PATH, classification(served, webhook=hook)).document["id"]
        assert receiver.told.get(timeout=30).headers["webhook-id"] == request
        assert ended(site, tenant, request)["status"] == "DONE"
    assert refused == [full_at, full_at]


def test_a_webhook_whose_address_was_tampered_with_is_given_up(
    served: Served, tenant: Tenant, receiver: Host, caplog: pytest.LogCaptureFixture
) -> None:
    with served.another(residency=receiver.residency) as (site, _):
        hook = {"endpoint": f"{receiver.address}/"}
        slow = classification(served, {"_url": f"{receiver.address}/held"}, webhook=hook)
        released = receiver.held["/held"] = threading.Event()
        request = ask(site, tenant, "POST", PATH, slow).document["id"]
        receiver.waiting.get(timeout=30)
        served.run(tampered(served, request))
        released.set()
        assert served.run(due_in(served, request, attempts=1)) is None
        request = ask(site, tenant, "POST", PATH, classification(served, webhook=hook)).document["id"]
        assert receiver.told.get(timeout=30).headers["webhook-id"] == request
    assert "its row is damaged, given up" in caplog.text


async def tampered(served: Served, request: str) -> None:
    def act(connection: Connection) -> None:
        connection.execute("UPDATE requests SET webhook = zeroblob(100) WHERE id = ?", (request,)).fetchall()

    await served.ledger.write(act)


def test_lists_have_pages_and_filters(served: Served) -> None:
    tenant = served.tenant("who has many")
    for _ in range(22):
        asked = {"type": "dominant-colors-generic", "records": [record()]}
        ended(served.site, tenant, ask(served.site, tenant, "POST", PATH, asked).document["id"])
    other = ask(served.site, tenant, "POST", PATH, classification(served)).document["id"]
    ended(served.site, tenant, other)
    first = ask(served.site, tenant, "GET", PATH + "?page=1").document
    assert (first["count"], len(first["results"]), first["previous"]) == (23, 20, None)
    assert first["results"][0]["id"] == other
    assert not any("response" in one for one in first["results"])
    second = ask(served.site, tenant, "GET", first["next"]).document
    assert (len(second["results"]), second["next"]) == (3, None)
    chosen = ask(served.site, tenant, "GET", PATH + "?page=1&type=custom-recognition&status=DONE").document
    assert [one["id"] for one in chosen["results"]] == [other]
    assert ask(served.site, tenant, "GET", PATH + "?page=0").status == 400


def test_the_address_of_the_next_page_says_the_same(served: Served) -> None:
    tenant = served.tenant("of odd filters")
    query = urlencode({"page": 2, "type": "a&page=7", "status": "\r\n"})
    previous = ask(served.site, tenant, "GET", f"{PATH}?{query}").document["previous"]
    expected = {"page": ["1"], "type": ["a&page=7"], "status": ["\r\n"]}
    assert parse_qs(urlsplit(previous).query) == expected


def test_another_customer_sees_nothing_of_it(served: Served, tenant: Tenant) -> None:
    request = ask(served.site, tenant, "POST", PATH, classification(served)).document["id"]
    stranger = served.tenant(f"stranger to {request}")
    for method, path in (("GET", ""), ("GET", "/status"), ("POST", "/cancel")):
        assert ask(served.site, stranger, method, PATH + request + path).status == 404
    assert ask(served.site, stranger, "GET").document["results"] == []
    assert ended(served.site, tenant, request)["status"] == "DONE"


def test_the_same_idempotency_key_is_the_same_request(served: Served, tenant: Tenant) -> None:
    document = classification(served, record("red"))

    def submit(document: object, key: str) -> Reply:
        return ask(served.site, tenant, "POST", PATH, document, idempotency_key=key)

    first = submit(document, "order 7")
    again = submit(document, "order 7")
    assert (first.status, again.status) == (201, 200)
    assert first.document["id"] == again.document["id"]
    assert submit(classification(served, record("blue")), "order 7").status == 409
    assert submit(document | {"keep": 1}, "order 7").status == 409
    assert submit(document, "order 8").document["id"] != first.document["id"]
    for key in ("", "x" * 256, "é"):
        assert submit(document, key).status == 400
    stranger = served.tenant("another with the same key")
    theirs = ask(served.site, stranger, "POST", PATH, document, idempotency_key="order 7")
    assert theirs.status == 201


def test_a_cancelled_request_is_never_seen(
    served: Served, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asynchronous, "WORKERS", 0)
    with served.another() as (site, _):
        request = ask(site, tenant, "POST", PATH, classification(served)).document["id"]
        cancelled = ask(site, tenant, "POST", f"{PATH}{request}/cancel")
        assert (cancelled.status, cancelled.document["status"]) == (200, "CANCELLED")
        assert ask(site, tenant, "POST", f"{PATH}{request}/cancel").status == 409
        assert "response" not in ask(site, tenant, "GET", PATH + request).document
    done = ask(served.site, tenant, "POST", PATH, classification(served)).document["id"]
    ended(served.site, tenant, done)
    assert ask(served.site, tenant, "POST", f"{PATH}{done}/cancel").status == 409
    (event,) = [one for one in served.audited(tenant) if one.event is Event.REQUEST_CANCEL]
    assert event.subject == request


def test_a_request_under_way_does_not_keep_the_daemon_from_stopping(
    served: Served, tenant: Tenant, receiver: Host
) -> None:
    released = receiver.held["/held"] = threading.Event()
    slow = classification(served, {"_url": f"{receiver.address}/held"})
    try:
        with served.another(residency=receiver.residency) as (site, _):
            requests = [ask(site, tenant, "POST", PATH, slow).document["id"] for _ in range(8)]
            receiver.waiting.get(timeout=30)
        found = [ask(served.site, tenant, "GET", PATH + request).document["status"] for request in requests]
        assert not {"DONE", "FAILED"} & set(found)
    finally:
        released.set()


def test_only_so_much_waits(served: Served, tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asynchronous, "WORKERS", 0)
    noise = images.encoded(images.noise(700), "PNG")
    big = {"_base64": base64.b64encode(noise).decode()}
    assert len(noise) > 1 << 20
    limits = Requests(pending=4, pending_bytes=2 * len(noise) + 1000)
    with served.another(sections={"requests": limits}) as (site, _):
        for image, expected in (
            (big, 201),
            (big, 201),
            (big, 429),
            (record(), 201),
            (record(), 201),
            (record(), 429),
        ):
            answer = ask(site, tenant, "POST", PATH, classification(served, image))
            assert answer.status == expected
            assert ("retry-after" in answer.headers) == (expected == 429)


def test_a_webhook_tells_of_the_end_and_is_signed(served: Served, tenant: Tenant, receiver: Host) -> None:
    with served.another(residency=receiver.residency) as (site, _):
        secret = ask(site, tenant, "GET", "/appliance/v1/webhook-secret").document["secret"]
        endpoint = f"{receiver.address}/told?of=it"
        hook = {"endpoint": endpoint, "headers": {"Authorization": "Bearer mine", "X-Own": "1"}}
        request = ask(site, tenant, "POST", PATH, classification(served, webhook=hook)).document["id"]
        told = receiver.told.get(timeout=30)
    assert told.path == "/told?of=it"
    assert (told.headers["authorization"], told.headers["x-own"]) == ("Bearer mine", "1")
    assert tenant.token not in str(told)
    document = json.loads(told.body)
    assert (document["id"], document["status"], document["type"]) == (request, "DONE", "custom-recognition")
    assert document["response"]["records"][0]["best_label"]["name"] == "red"
    assert "_base64" not in told.body.decode()
    # As a receiver verifies it: Standard Webhooks 1.0.
    signed = f"{told.headers['webhook-id']}.{told.headers['webhook-timestamp']}.".encode() + told.body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert told.headers["webhook-signature"] == f"v1,{expected}"
    assert told.headers["webhook-id"] == request
    assert abs(int(told.headers["webhook-timestamp"]) - served.clock) < 2
    stranger = served.tenant("another with webhooks")
    theirs = ask(served.site, stranger, "GET", "/appliance/v1/webhook-secret").document["secret"]
    assert theirs != secret


def test_a_webhook_that_fails_is_called_again_when_its_time_comes(
    served: Served, tenant: Tenant, receiver: Host
) -> None:
    receiver.answers[:] = [503, 302, 200]
    began = served.clock
    try:
        with served.another(residency=receiver.residency) as (site, _):
            hook = {"endpoint": f"{receiver.address}/"}
            request = ask(site, tenant, "POST", PATH, classification(served, webhook=hook)).document["id"]
            first = receiver.told.get(timeout=30)
            assert served.run(due_in(served, request, attempts=1)) == 5
            assert receiver.told.empty()
        served.clock += 5
        with served.another(residency=receiver.residency):  # another run of the daemon goes on with it
            second = receiver.told.get(timeout=30)
            assert served.run(due_in(served, request, attempts=2)) == 300
        served.clock += 300
        with served.another(residency=receiver.residency):
            third = receiver.told.get(timeout=30)
            assert served.run(due_in(served, request, attempts=3)) is None
    finally:
        served.clock = began
    assert first.body == second.body == third.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.headers["webhook-timestamp"] != second.headers["webhook-timestamp"]


def test_a_dead_receiver_of_one_customer_keeps_no_other_waiting(
    served: Served, tenant: Tenant, receiver: Host
) -> None:
    released = receiver.held["/dead"] = threading.Event()
    other = served.tenant("whose receiver lives")
    try:
        with served.another(residency=receiver.residency) as (site, _):
            dead = {"endpoint": f"{receiver.address}/dead"}
            for _ in range(2 * AT_ONCE):
                ask(site, tenant, "POST", PATH, classification(served, task_id="nobody", webhook=dead))
            for _ in range(EACH_AT_ONCE):
                receiver.waiting.get(timeout=30)
            alive = {"endpoint": f"{receiver.address}/alive"}
            ask(site, other, "POST", PATH, classification(served, task_id="nobody", webhook=alive))
            assert receiver.told.get(timeout=30).path == "/alive"
            assert receiver.waiting.empty(), "no more than its share at once"
            released.set()
            assert {receiver.told.get(timeout=30).path for _ in range(2 * AT_ONCE)} == {"/dead"}
    finally:
        released.set()


def test_a_fault_of_the_ledger_does_not_end_webhooks(
    served: Served, tenant: Tenant, receiver: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "_FAULT_SECONDS", 0.0)
    failed, told = set[RequestId](), served.parts.requests.told

    async def failing_once(request: RequestId, again_in_seconds: float | None) -> None:
        if request not in failed:
            failed.add(request)
            raise StorageFailed("a passing fault of the disk")
        await told(request, again_in_seconds)

    monkeypatch.setattr(served.parts.requests, "told", failing_once)
    with served.another(residency=receiver.residency) as (site, _):
        hook = {"endpoint": f"{receiver.address}/"}
        request = ask(site, tenant, "POST", PATH, classification(served, webhook=hook)).document["id"]
        first, second = receiver.told.get(timeout=30), receiver.told.get(timeout=30)
        assert first.headers["webhook-id"] == second.headers["webhook-id"] == request
        assert served.run(due_in(served, request, attempts=1)) is None


def test_a_webhook_that_meets_what_nobody_foresaw_is_left_and_the_others_are_told(
    served: Served, tenant: Tenant, receiver: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    met, told = list[RequestId](), served.parts.requests.told

    async def unforeseen(request: RequestId, again_in_seconds: float | None) -> None:
        if not met or request in met:
            met.append(request)
            raise ZeroDivisionError
        await told(request, again_in_seconds)

    monkeypatch.setattr(served.parts.requests, "told", unforeseen)
    with served.another(residency=receiver.residency) as (site, _):
        hook = {"endpoint": f"{receiver.address}/"}
        requests = [
            ask(site, tenant, "POST", PATH, classification(served, webhook=hook)).document["id"]
            for _ in range(4)
        ]
        called = [receiver.told.get(timeout=30).headers["webhook-id"] for _ in range(4)]
        assert sorted(called) == sorted(requests)
        for request in {*requests} - {*met}:
            assert served.run(due_in(served, request, attempts=1)) is None
        assert receiver.told.empty()
    assert len(met) == 1
    monkeypatch.setattr(served.parts.requests, "told", told)
    with served.another(residency=receiver.residency):
        assert receiver.told.get(timeout=30).headers["webhook-id"] == met[0]
        assert served.run(due_in(served, met[0], attempts=1)) is None


async def due_in(served: Served, request: str, attempts: int) -> float | None:
    """Seconds until the next attempt, once there have been so many; None: never."""

    def query(connection: Connection) -> tuple[int, int | None]:
        row: tuple[int, int | None] | None = connection.execute(
            "SELECT attempts, due_at FROM requests WHERE id = ?", (request,)
        ).fetchone()
        assert row is not None
        return row

    while (row := await served.ledger.read(query))[0] < attempts:
        pass
    return None if row[1] is None else round(row[1] / 1000 - served.clock)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "x"},
        {"webhook-id": "x"},
        {"Content-Length": "5"},
        {"Transfer-Encoding": "chunked"},
        {"bad name": "x"},
        {"X": "a\r\nB: c"},
        {"X": "é"},
        {"X": "x" * 2000},
        {f"X{number}": "" for number in range(17)},
    ],
)
def test_headers_that_a_webhook_cannot_have(
    served: Served, tenant: Tenant, receiver: Host, headers: dict[str, str]
) -> None:
    with served.another(residency=receiver.residency) as (site, _):
        hook = {"endpoint": f"{receiver.address}/", "headers": headers}
        answer = ask(site, tenant, "POST", PATH, classification(served, webhook=hook))
        assert (answer.status, "webhook" in answer.document["detail"]) == (400, True)
