"""Bodies on the wire: three forms, and the limits of size, time and encoding before anything is parsed."""

import base64
import json
import socket
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import images
from tests.serving import COLOURS, Reply, Served, Site, Tenant

CLASSIFY = "/recognition/v2/classify"
KNN = "/similarity/photos/v2/visualKNN"
INSERT = "/similarity/photos/v2/insert"
BOUNDARY = "7MA4YWxkTrZu0gW"


def picture(colour: str) -> bytes:
    return images.encoded(Image.new("RGB", (40, 30), colour), "PNG")


def multipart(parts: Mapping[str, bytes], **extra: str) -> bytes:
    lines = b""
    for name, content in parts.items():
        more = "".join(f"{key.replace('_', '-')}: {value}\r\n" for key, value in extra.items())
        head = (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n{more}\r\n'
        )
        lines += head.encode() + content + b"\r\n"
    return lines + f"--{BOUNDARY}--\r\n".encode()


def send(served: Served, tenant: Tenant, path: str, body: bytes, content_type: str, **headers: str) -> Reply:
    return served.site.call("POST", path, body, tenant.headers(content_type=content_type, **headers))


def send_parts(served: Served, tenant: Tenant, path: str, parts: Mapping[str, bytes], **extra: str) -> Reply:
    return send(served, tenant, path, multipart(parts, **extra), f"multipart/form-data; boundary={BOUNDARY}")


def best(document: Any) -> list[str]:
    return [one["best_label"]["name"] for one in document["records"]]


@pytest.fixture(scope="module")
def stocked(served: Served, tenant: Tenant) -> Tenant:
    """The tenant with one record of each colour."""
    records = [
        {"_id": colour, "n": n, "_base64": base64.b64encode(picture(colour)).decode()}
        for n, colour in enumerate(COLOURS)
    ]
    answer = send(served, tenant, INSERT, json.dumps({"records": records}).encode(), "application/json")
    assert answer.code == 210
    return tenant


def test_a_raw_image_with_its_record_in_a_header(served: Served, tenant: Tenant) -> None:
    path = f"{CLASSIFY}?task_id={served.bundle.task}"
    fields = json.dumps({"_id": "mine", "own": ["ž", 1], "_file": "/home/anna"})
    answer = send(served, tenant, path, picture("blue"), "image/png", x_record=fields)
    assert best(answer.document) == ["blue"]
    (seen,) = answer.document["records"]
    assert (seen["_id"], seen["own"], seen["_width"]) == ("mine", ["ž", 1], 40)
    assert "_file" not in seen


def test_a_raw_image_is_judged_by_its_content(served: Served, tenant: Tenant) -> None:
    path = f"{CLASSIFY}?task_id={served.bundle.task}"
    assert best(send(served, tenant, path, picture("red"), "image/heic").document) == ["red"]
    (seen,) = send(served, tenant, path, b"", "image/jpeg").document["records"]
    assert seen["_status"]["code"] == 400


def test_a_raw_image_as_query_with_fields_in_the_query_string(served: Served, stocked: Tenant) -> None:
    path = KNN + '?k=2&fields_to_return=["n"]&filter={"n":{"$in":[0,2]}}'.replace('"', "%22")
    answer = send(served, stocked, path, picture("blue"), "image/png").document
    assert answer["answer_records"] == [{"_id": "blue", "n": 2}, {"_id": "red", "n": 0}]
    everything = send(
        served, stocked, f"{KNN}?k=1&fields_to_return=n,x", picture("red"), "image/png"
    ).document
    assert everything["answer_records"] == [{"_id": "red", "n": 0}]


def test_a_raw_image_is_inserted(served: Served, tenant: Tenant) -> None:
    name = str(uuid.uuid4())
    record = json.dumps({"_id": name})
    assert send(served, tenant, INSERT, picture("red"), "image/png", x_record=record).code == 210


@pytest.mark.parametrize("record", ["{", "[]", "7", '{"a":NaN}', '{"a":' + "[" * 200 + "]" * 200 + "}"])
def test_a_record_header_that_is_no_object(served: Served, tenant: Tenant, record: str) -> None:
    answer = send(served, tenant, CLASSIFY, picture("red"), "image/png", x_record=record)
    assert answer.status == 400
    assert "X-Record" in answer.document["detail"]


def test_multipart_pairs_images_with_records_in_order(served: Served, tenant: Tenant) -> None:
    request = {"task_id": served.bundle.task, "records": [{"n": n} for n in range(10)]}
    wanted = [COLOURS[n % 3] for n in range(10)]
    parts = {f"image-{n}": picture(colour) for n, colour in enumerate(wanted)}
    parts["request"] = json.dumps(request).encode()
    document = send_parts(served, tenant, CLASSIFY, parts).document
    assert best(document) == wanted
    assert [one["n"] for one in document["records"]] == list(range(10))


def test_multipart_without_records_makes_one_for_each_image(served: Served, tenant: Tenant) -> None:
    request = json.dumps({"task_id": served.bundle.task}).encode()
    parts = {"request": request, "image-0": picture("red"), "image-1": picture("blue")}
    assert best(send_parts(served, tenant, CLASSIFY, parts).document) == ["red", "blue"]


def test_multipart_query(served: Served, stocked: Tenant) -> None:
    for request in (b'{"k":1}', b'{"k":1,"query_record":{"own":1}}'):
        parts = {"request": request, "image-0": picture("green")}
        answer = send_parts(served, stocked, KNN, parts).document
        assert answer["answer_records"] == [{"_id": "green"}]
    parts = {
        "request": b'{"records":[{"_id":"red"},{"_id":"new"}]}',
        "image-0": picture("blue"),
        "image-2": picture("blue"),
    }
    ranked = send_parts(served, stocked, "/similarity/photos/v2/visualRankRecords", parts).document
    assert [one["_id"] for one in ranked["answer_records"]] == ["new", "red"]


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"image-1": b"x", "request": b'{"records":[{}]}'}, "image-1"),
        ({"image-10": b"x"}, "image-0 to image-9"),
        ({"photo": b"x"}, "image-0 to image-9"),
        ({"": b"x"}, "image-0 to image-9"),
        ({"request": b"{"}, "JSON"),
        ({"request": b'{"records":[{"_base64":"aGk="}]}', "image-0": b"x"}, "already"),
    ],
)
def test_multipart_that_does_not_fit(
    served: Served, tenant: Tenant, parts: dict[str, bytes], why: str
) -> None:
    answer = send_parts(served, tenant, CLASSIFY, parts)
    assert answer.status == answer.code == 400
    assert why in answer.document["detail"]


def test_multipart_parts_are_sent_as_they_are(served: Served, tenant: Tenant) -> None:
    parts = {"image-0": picture("red")}
    assert send_parts(served, tenant, CLASSIFY, parts, content_transfer_encoding="base64").status == 415
    assert send_parts(served, tenant, CLASSIFY, parts, content_encoding="gzip").status == 415
    nested = send_parts(served, tenant, CLASSIFY, parts, content_type="multipart/mixed; boundary=x")
    assert nested.status == 400


def test_the_same_part_twice(served: Served, tenant: Tenant) -> None:
    one = multipart({"image-0": b"x"})
    body = one[: -len(f"--{BOUNDARY}--\r\n")] + one
    answer = send(served, tenant, CLASSIFY, body, f"multipart/form-data; boundary={BOUNDARY}")
    assert answer.status == 400
    assert "twice" in answer.document["detail"]


def test_broken_multipart_bodies_are_refused_and_nothing_else(served: Served, tenant: Tenant) -> None:
    draw = np.random.default_rng(1)
    request = json.dumps({"task_id": served.bundle.task, "records": [{}, {}]}).encode()
    whole = multipart({"request": request, "image-0": picture("red"), "image-1": b"\r\n--" * 20})
    kinds = [
        f"multipart/form-data; boundary={BOUNDARY}",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        f"multipart/form-data; boundary={'x' * 100}",
        'multipart/form-data; boundary="',
    ]
    for turn in range(150):
        body = bytearray(whole)
        for _ in range(draw.integers(4)):
            place = int(draw.integers(len(body)))
            match int(draw.integers(3)):
                case 0:
                    body[place] = int(draw.integers(256))
                case 1:
                    del body[place:]
                case _:
                    body[place:place] = [b"\r\n", b"--", BOUNDARY.encode(), b"\0", b":"][draw.integers(5)]
            if not body:
                break
        answer = send(served, tenant, CLASSIFY, bytes(body), kinds[max(0, turn - 120) % 5])
        assert answer.status in {200, 400, 404, 415}, (turn, answer.body)


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/octet-stream", "x", ""]
)
def test_other_media_types_are_refused(served: Served, tenant: Tenant, content_type: str) -> None:
    answer = send(served, tenant, CLASSIFY, b"{}", content_type)
    assert answer.status == answer.code == 415
    assert "multipart/form-data" in answer.document["detail"]


def test_images_are_refused_where_none_belong(served: Served, tenant: Tenant) -> None:
    answer = send(served, tenant, "/similarity/photos/v2/get", picture("red"), "image/png")
    assert answer.status == 415


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8"])
def test_an_empty_json_body_is_an_empty_object(served: Served, tenant: Tenant, content_type: str) -> None:
    assert send(served, tenant, "/similarity/photos/v2/ping", b"", content_type).status == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "x"])
def test_content_encodings_are_refused(served: Served, tenant: Tenant, encoding: str) -> None:
    answer = send(served, tenant, CLASSIFY, b"\x1f\x8b", "application/json", content_encoding=encoding)
    assert answer.status == answer.code == 415


def head(tenant: Tenant, path: str = CLASSIFY, version: str = "1.1", **headers: str) -> bytes:
    lines = {"Host": "x", **tenant.headers(**headers)}
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/{version}\r\n{text}\r\n".encode()


def status_of(said: bytes) -> int:
    return int(said.split(b" ", 2)[1])


def document_of(said: bytes) -> Any:
    return json.loads(said.partition(b"\r\n\r\n")[2])


def ask_raw(site: Site, sent: bytes) -> bytes:
    """One answer to these bytes; the connection may stay open."""
    with socket.create_connection((site.host, site.port), timeout=20) as connection:
        connection.sendall(sent)
        said = b""
        while b"\r\n\r\n" not in said:
            said += connection.recv(65536)
        top, _, rest = said.partition(b"\r\n\r\n")
        (length,) = [
            int(line.split(b":")[1])
            for line in top.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        ]
        while len(rest) < length:
            rest += connection.recv(65536)
        return top + b"\r\n\r\n" + rest


def test_too_large_is_said_before_a_byte_of_the_body_is_sent(served: Served, tenant: Tenant) -> None:
    with served.another(max_body_bytes=100_000) as (site, _):
        for extra in ({}, {"expect": "100-continue"}):
            said = ask_raw(site, head(tenant, content_length="100001", **extra))
            assert status_of(said) == document_of(said)["status"]["code"] == 413
        said = ask_raw(
            site, head(tenant, "/similarity/photos/v2/ping", content_length="100000") + b" " * 100_000
        )
        assert status_of(said) == 400


def test_a_chunked_body_is_cut_off_at_the_limit(served: Served, tenant: Tenant) -> None:
    with served.another(max_body_bytes=100_000) as (site, _):
        chunks = b"%x\r\n%s\r\n" % (60_000, b" " * 60_000)
        said = ask_raw(site, head(tenant, transfer_encoding="chunked") + chunks * 2)
        assert status_of(said) == 413
        parts = f"multipart/form-data; boundary={BOUNDARY}"
        body = multipart({"image-0": b"x" * 120_000})
        chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        said = ask_raw(site, head(tenant, transfer_encoding="chunked", content_type=parts) + chunked)
        assert status_of(said) == 413


def test_a_chunked_body_within_the_limit_is_served(served: Served, tenant: Tenant) -> None:
    chunks = b"2\r\n{ \r\n1\r\n}\r\n0\r\n\r\n"
    said = ask_raw(
        served.site, head(tenant, "/similarity/photos/v2/ping", transfer_encoding="chunked") + chunks
    )
    assert status_of(said) == 200


def test_expectations(served: Served, tenant: Tenant) -> None:
    wrong = {"authorization": "Token nobody", "content_length": "10", "expect": "100-continue"}
    assert status_of(ask_raw(served.site, head(tenant, **wrong))) == 401
    assert status_of(ask_raw(served.site, head(tenant, content_length="2", expect="200-ok"))) == 417
    asked = head(tenant, "/similarity/photos/v2/ping", content_length="2", expect="100-continue")
    with socket.create_connection((served.site.host, served.site.port), timeout=20) as connection:
        connection.sendall(asked)
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"{}")
        assert status_of(connection.recv(1000)) == 200


def test_a_body_that_does_not_come_is_given_up(served: Served, tenant: Tenant) -> None:
    with served.another(body_seconds=0.3) as (site, server):
        for sent in (
            head(tenant, content_length="1000"),
            head(tenant, content_length="1000") + b"{",
            head(tenant, transfer_encoding="chunked") + b"1\r\n{\r\n",
            head(tenant, content_length="1000", content_type=f"multipart/form-data; boundary={BOUNDARY}")
            + b"--",
        ):
            said = ask_raw(site, sent)
            assert status_of(said) == document_of(said)["status"]["code"] == 408
            assert b"Connection: close" in said
        assert server.held_bytes == 0


def test_what_has_come_buys_time(served: Served, tenant: Tenant) -> None:
    """4,000 bytes a second are promised: with 0.2 s and 40,000 bytes here, 10.2 s are left for the rest."""
    path = "/similarity/photos/v2/ping"
    with (
        served.another(body_seconds=0.2, body_bytes_per_second=4000) as (site, _),
        socket.create_connection((site.host, site.port), timeout=20) as connection,
    ):
        connection.sendall(head(tenant, path, content_length="40002") + b" " * 40_000)
        connection.settimeout(1.0)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(20)
        connection.sendall(b"{}")
        assert status_of(connection.recv(65536)) == 200


def test_bodies_in_flight_are_bounded_in_sum(served: Served, tenant: Tenant) -> None:
    with served.another(max_body_bytes=1024) as (site, server):
        waiting = [socket.create_connection((site.host, site.port), timeout=20) for _ in range(16)]
        try:
            for connection in waiting:
                connection.sendall(head(tenant, content_length="1024") + b" " * 1023)
            for _ in range(2000):
                if server.held_bytes == 16 * 1023:
                    break
                served.site.call("GET", "/healthz")
            assert server.held_bytes == 16 * 1023
            said = ask_raw(site, head(tenant, content_length="1024"))
            assert status_of(said) == 429
            assert b"Retry-After: 1" in said
        finally:
            for connection in waiting:
                connection.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET http://x/healthz HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"POST /healthz HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nSecret : x\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nSecret: " + b"x" * 9000 + b"\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n" + b"A: b\r\n" * 1000 + b"\r\n", 400),
        (b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ],
)
def test_hostile_http_is_a_json_refusal(served: Served, sent: bytes, status: int) -> None:
    said = ask_raw(served.site, sent)
    assert status_of(said) == status
    assert document_of(said)["status"]["code"] == status
    assert b"xxx" not in said
    assert b"Secret" not in said
    assert b"aiohttp" not in said


def test_a_broken_chunk_is_a_refusal(served: Served, tenant: Tenant) -> None:
    said = ask_raw(served.site, head(tenant, transfer_encoding="chunked") + b"zz\r\n{}\r\n0\r\n\r\n")
    assert status_of(said) == 400


@pytest.mark.parametrize("broken", [b"-5\r\nabcde\r\n0\r\n\r\n", b"2\r\n{}\r\nzz\r\n\r\n"])
def test_a_broken_chunk_that_comes_later_is_refused_as_soon(
    served: Served, tenant: Tenant, broken: bytes
) -> None:
    with socket.create_connection((served.site.host, served.site.port), timeout=3) as connection:
        asked = head(tenant, transfer_encoding="chunked", expect="100-continue")
        connection.sendall(asked)
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"  # the body is being read now
        connection.sendall(broken)
        assert status_of(connection.recv(65536)) == 400
