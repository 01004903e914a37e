"""A real daemon and bad input: an answer in the wire's error shape, never a 500 or a hang, no memory kept."""

import base64
import json
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests import images
from tests.running import Answer, RunningAppliance

PHOTOS = "/similarity/photos/v2"
SECONDS = 20.0  # an answer that takes longer is a hang

REFUSED: dict[str, Callable[[], bytes]] = {
    "truncated": images.truncated,
    "not an image": lambda: b"just some words, over and over " * 40,
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
    "no bytes": lambda: b"",
    "20,000 x 20,000": lambda: images.blank_png(20_000),
    "60 KB that unpack to more than 1 GB": lambda: images.blank_png(22_000),
}
SERVED: dict[str, Callable[[], bytes]] = {
    "animated": images.animated,
    "cmyk": images.cmyk,
    "16 bit": images.sixteen_bit,
    "palette": images.palette,
    "alpha": images.alpha,
    "1 x 1": lambda: images.jpeg(1),
}


def text(encoded: bytes) -> str:
    return base64.b64encode(encoded).decode()


def a_record(name: str = "good", **more: object) -> dict[str, object]:
    return {"_id": name, "_base64": text(images.jpeg()), **more}


def refusal(answer: Answer, *codes: int) -> str:
    """Assert a refusal of the whole call in the wire's shape with one of `codes`; returns its text."""
    assert answer.status in codes, (answer.status, answer.body[:300])
    assert answer.headers["content-type"] == "application/json"
    status = answer.document["status"]
    assert status["code"] == answer.status
    assert status["text"]
    assert answer.document["detail"]
    return str(status["text"])


def insert(appliance: RunningAppliance, collection: str, *records: object) -> Any:
    """Insert and return the document of an answer that served at least one record."""
    answer = appliance.post(f"{PHOTOS}/insert", {"records": records}, collection_id=collection)
    assert answer.status == 200, answer.body[:300]
    return answer.document


def stored(appliance: RunningAppliance, collection: str) -> list[str]:
    answer = appliance.post(f"{PHOTOS}/allRecords", {"fields_to_return": ["_id"]}, collection_id=collection)
    return sorted(record["_id"] for record in answer.document["answer_records"])


@pytest.fixture
def collection(appliance: RunningAppliance) -> str:
    return appliance.add_collection()


@pytest.mark.parametrize("kind", REFUSED)
def test_a_bad_image_is_refused_alone(appliance: RunningAppliance, collection: str, kind: str) -> None:
    bad = text(REFUSED[kind]())
    inserted = insert(appliance, collection, {"_id": "bad", "_base64": bad}, a_record())
    assert [record["_id"] for record in inserted["answer_records"]] == ["good"]
    (skipped,) = inserted["skipped_records"]
    assert skipped["_id"] == "bad"
    assert skipped["_reason"]["status"]["code"] in {400, 413}
    assert "_base64" not in skipped
    assert stored(appliance, collection) == ["good"]

    answer = appliance.post(
        "/recognition/v2/classify",
        {"task_id": appliance.task, "records": [{"_base64": bad, "own": 7}, a_record()]},
    )
    first, second = answer.document["records"]
    assert answer.document["status"]["code"] == 200
    assert first["_status"]["code"] in {400, 413}
    assert first["own"] == 7
    assert second["_status"]["code"] == 200
    assert second["best_label"]


@pytest.mark.parametrize("kind", SERVED)
def test_an_odd_image_is_served(appliance: RunningAppliance, collection: str, kind: str) -> None:
    encoded = SERVED[kind]()
    inserted = insert(appliance, collection, {"_id": kind, "_base64": text(encoded)})
    assert inserted["skipped_records"] == []
    found = appliance.post(
        f"{PHOTOS}/visualKNN", {"query_record": {"_base64": text(encoded)}, "k": 1}, collection_id=collection
    ).document
    assert found["answer_records"][0]["_id"] == kind
    assert found["answer_distances"][0] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("junk", ["!!!!", "a", "data:image/jpeg;base64,", "\x00", 7, None, ["x"], {}])
def test_base64_with_junk(appliance: RunningAppliance, collection: str, junk: object) -> None:
    inserted = insert(appliance, collection, {"_id": "bad", "_base64": junk}, a_record())
    assert [record["_id"] for record in inserted["skipped_records"]] == ["bad"]
    assert 400 <= inserted["skipped_records"][0]["_reason"]["status"]["code"] < 500
    assert stored(appliance, collection) == ["good"]


def test_eleven_records(appliance: RunningAppliance, collection: str) -> None:
    records = [a_record(str(number)) for number in range(11)]
    answer = appliance.post(f"{PHOTOS}/insert", {"records": records}, collection_id=collection)
    assert "10" in refusal(answer, 400, 413)
    assert stored(appliance, collection) == []


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
def test_a_body_of_100_mb(appliance: RunningAppliance, framing: str) -> None:
    """The answer comes without the whole body having been taken in."""
    head = f"POST {PHOTOS}/insert HTTP/1.1\r\nHost: x\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in appliance.headers().items()
    )
    head += (
        "Content-Length: 100000000\r\n\r\n"
        if framing == "content-length"
        else "Transfer-Encoding: chunked\r\n\r\n"
    )
    piece = b" " * 1_000_000
    framed = piece if framing == "content-length" else f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
    with socket.create_connection(("127.0.0.1", appliance.port), timeout=SECONDS) as connection:
        connection.sendall(head.encode())
        try:
            for _ in range(100):
                connection.sendall(framed)
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            said = connection.recv(65536)
        except ConnectionResetError:
            said = b""
    assert said == b"" or said.startswith(b"HTTP/1.1 413")
    assert appliance.call("GET", "/healthz", headers={}).status == 200


def test_a_body_of_100_mb_is_refused_by_its_declared_length(appliance: RunningAppliance) -> None:
    with socket.create_connection(("127.0.0.1", appliance.port), timeout=SECONDS) as connection:
        head = f"POST {PHOTOS}/insert HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in appliance.headers().items())
        connection.sendall(head.encode() + b"\r\n")
        said = connection.recv(65536)
    assert said.startswith(b"HTTP/1.1 413")
    assert b'"code":413' in said.replace(b" ", b"")


@pytest.mark.parametrize("opening", [b"[", b'{"records":'])
def test_deeply_nested_json(appliance: RunningAppliance, opening: bytes) -> None:
    answer = appliance.call("POST", f"{PHOTOS}/insert", opening * 100_000, headers=appliance.headers())
    refusal(answer, 400)


def test_deeply_nested_metadata(appliance: RunningAppliance, collection: str) -> None:
    nested: object = 1
    for _ in range(300):
        nested = [nested]
    document = {"records": [{"_id": "deep", "_base64": text(images.jpeg()), "nested": nested}]}
    answer = appliance.post(f"{PHOTOS}/insert", document, collection_id=collection)
    assert answer.status in {200, 400}, answer.body[:300]
    assert answer.status == 400 or stored(appliance, collection) == ["deep"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_have(appliance: RunningAppliance, collection: str, number: str) -> None:
    body = json.dumps({"records": [a_record(weight="?")]}).replace('"?"', number).encode()
    answer = appliance.call(
        "POST", f"{PHOTOS}/insert", body, headers=appliance.headers(collection_id=collection)
    )
    if answer.status == 200:  # 1e999 is grammatical; whatever was stored must be readable again
        (skipped,) = answer.document["skipped_records"]
        assert 400 <= skipped["_reason"]["status"]["code"] < 500
    else:
        refusal(answer, 400)
    assert stored(appliance, collection) == []


@pytest.mark.parametrize(
    "body", [b"", b"null", b"7", b"[]", b"{}", b'{"records":7}', b'{"records":[7]}', b"\xff\xfe{"]
)
@pytest.mark.parametrize("path", ["insert", "update", "delete", "get", "visualKNN", "visualRankRecords"])
def test_bodies_of_another_shape(appliance: RunningAppliance, path: str, body: bytes) -> None:
    answer = appliance.call("POST", f"{PHOTOS}/{path}", body, headers=appliance.headers(), seconds=SECONDS)
    assert answer.headers["content-type"] == "application/json"
    assert isinstance(answer.document["status"]["code"], int)
    assert answer.status < 500, answer.body[:300]


def test_ids(appliance: RunningAppliance, collection: str) -> None:
    slashes = "../../etc/passwd?x=1#y/ž 雪"
    inserted = insert(
        appliance,
        collection,
        a_record("nul\x00inside"),
        a_record(slashes),
        a_record("x" * 10_240),
        a_record(""),
        {"_id": 17, "_base64": text(images.jpeg())},
        {"_id": ["list"], "_base64": text(images.jpeg())},
        a_record("twice"),
        a_record("twice"),
    )
    kept = [record["_id"] for record in inserted["answer_records"]]
    assert slashes in kept
    assert kept.count("twice") == 1
    assert "nul\x00inside" not in kept
    assert not any(len(str(one)) > 10_000 for one in kept)
    for skipped in inserted["skipped_records"]:
        assert 200 < skipped["_reason"]["status"]["code"] < 500
    assert stored(appliance, collection) == sorted(kept)
    second = appliance.post(f"{PHOTOS}/insert", {"records": [a_record(slashes)]}, collection_id=collection)
    assert second.document["status"]["code"] == 411
    got = appliance.post(f"{PHOTOS}/get", {"records": [{"_id": slashes}]}, collection_id=collection)
    assert got.document["answer_records"][0]["_id"] == slashes


def test_tokens_that_do_not_open(appliance: RunningAppliance) -> None:
    def add(document: dict[str, object]) -> dict[str, str]:
        answer = appliance.post("/appliance/v1/tokens", document)
        assert answer.status == 201, answer.body
        issued: dict[str, str] = answer.document
        return issued

    revoked = add({})
    assert appliance.call(
        "DELETE", f"/appliance/v1/tokens/{revoked['id']}", headers=appliance.headers()
    ).status in {200, 204}
    expiring = add({"expires_at": (datetime.now(UTC) + timedelta(seconds=1)).isoformat()})
    good = appliance.token
    tokens = {
        "missing": None,
        "empty": "",
        "no scheme": good,
        "wrong": f"Token {good[:-10]}{'0' * 10}",
        "long": f"Token {'x' * 5000}",
        "not ascii": "Token \u00e9\u00e9",
        "revoked": f"Token {revoked['token']}",
    }
    body = json.dumps({"query_record": {"_id": "x"}}).encode()

    def ask(authorization: str | None) -> Answer:
        headers = appliance.headers()
        del headers["authorization"]
        if authorization is not None:
            headers["authorization"] = authorization
        return appliance.call("POST", f"{PHOTOS}/visualKNN", body, headers=headers)

    texts = {refusal(ask(authorization), 401) for authorization in tokens.values()}
    deadline = time.monotonic() + 10
    while ask(f"Token {expiring['token']}").status != 401:
        assert time.monotonic() < deadline, "the token outlives its expiry"
    texts.add(refusal(ask(f"Token {expiring['token']}"), 401))
    assert len(texts) == 1, "the answer tells what kind of wrong the token is"


def test_another_customers_collection_is_one_that_does_not_exist(appliance: RunningAppliance) -> None:
    customer = appliance.state.ask("customer", "add", "other")["id"]
    token = appliance.state.ask("token", "add", customer)["token"]
    body = {"query_record": {"_id": "x"}}
    theirs = appliance.post(f"{PHOTOS}/visualKNN", body, authorization=f"Token {token}")
    nobodys = appliance.post(
        f"{PHOTOS}/visualKNN", body, collection_id="b4b1d1a4-0000-4000-8000-000000000000"
    )
    assert refusal(theirs, 404).replace(appliance.collection, "") == refusal(nobodys, 404).replace(
        "b4b1d1a4-0000-4000-8000-000000000000", ""
    )


def test_content_encoding_is_refused(appliance: RunningAppliance) -> None:
    answer = appliance.call(
        "POST", f"{PHOTOS}/insert", b"\x1f\x8b", headers=appliance.headers(content_encoding="gzip")
    )
    refusal(answer, 415)


def test_an_address_instead_of_an_image(appliance: RunningAppliance, collection: str) -> None:
    inserted = insert(
        appliance, collection, {"_id": "far", "_url": "http://169.254.169.254/latest"}, a_record()
    )
    (skipped,) = inserted["skipped_records"]
    assert "_url" in skipped["_reason"]["status"]["text"]
    assert stored(appliance, collection) == ["good"]


def test_memory_is_back_where_it_was(appliance: RunningAppliance, collection: str) -> None:
    """The same volley of hostile input a second time leaves the processes no larger than the first did."""
    hostile = [text(make()) for make in (*REFUSED.values(), *SERVED.values())]
    large = text(images.encoded(images.noise(1800), "BMP"))
    hostile.append(text(images.blank_png(7000)))  # within the limits: 147 MB when unpacked

    def volley() -> int:
        for encoded in [*hostile, large, large]:
            appliance.post(
                "/recognition/v2/classify", {"task_id": appliance.task, "records": [{"_base64": encoded}]}
            )
        appliance.call("POST", f"{PHOTOS}/insert", b"[" * 2_000_000, headers=appliance.headers())
        return appliance.resident_bytes()

    volley()
    first = volley()
    again = [volley() for _ in range(3)]
    assert min(again) < first + (16 << 20), (first, again)


def test_an_upload_that_breaks_off_leaves_nothing_in_memory(appliance: RunningAppliance) -> None:
    headers = f"Authorization: Token {appliance.token}\r\n"

    def broken_off(kind: str, start: bytes) -> None:
        with socket.create_connection(("127.0.0.1", appliance.port)) as connection:
            head = f"POST /photo/tags/v2/tags HTTP/1.1\r\nHost: x\r\n{headers}"
            connection.sendall(f"{head}Content-Type: {kind}\r\nContent-Length: 60000000\r\n\r\n".encode())
            connection.sendall(start + bytes(20_000_000))

    part = b'--b\r\nContent-Disposition: form-data; name="image-0"; filename="a"\r\n\r\n'
    before = appliance.resident_bytes()
    for _ in range(5):
        broken_off("image/png", b"")
        broken_off("multipart/form-data; boundary=b", part)
    deadline = time.monotonic() + 20
    while (after := appliance.resident_bytes()) > before + (40 << 20) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert after <= before + (40 << 20), (before, after)
