"""Requests that two readers may take apart at different places, sent to a real daemon with another behind.

Whatever stands before the daemon, a second reader must not find a request in what the first took for a body.
Each is refused and its connection ends, or it is read as one: what was hidden in it is never answered.
"""

import socket
from typing import NamedTuple

import pytest

from tests.running import RunningAppliance

SECONDS = 20.0
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"  # 404 for whoever reads it
NEXT = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
REFUSED, ONE, LAST = [400], [200, 200], [200]
"""The answers: a refusal; the request's own and that of the next one; its own, which ends the connection."""


class Form(NamedTuple):
    """What is sent before NEXT, and the statuses of all answers until the connection ends."""

    name: str
    sent: bytes
    answers: list[int]


def get(*lines: bytes, top: bytes = b"GET /healthz HTTP/1.1", host: bytes = b"Host: x") -> bytes:
    return b"\r\n".join([top, *([host] if host else []), *lines]) + b"\r\n\r\n"


def length(value: bytes, name: bytes = b"Content-Length:") -> bytes:
    return get(name + value) + HIDDEN


def coding(value: bytes, name: bytes = b"Transfer-Encoding:", *more: bytes) -> bytes:
    return get(name + value, *more) + b"0\r\n\r\n" + HIDDEN


def chunks(framed: bytes) -> bytes:
    return get(b"Transfer-Encoding: chunked") + framed


SIZE = str(len(HIDDEN)).encode()
HEX = f"{len(HIDDEN):x}".encode()
CHUNKED = b"Transfer-Encoding: chunked"

LENGTHS = [
    Form("a body of its length", length(b" " + SIZE), ONE),
    Form("leading zeros", length(b" 000" + SIZE), ONE),
    Form("no blank before the value", length(SIZE), ONE),
    Form("blanks around the value", length(b" \t" + SIZE + b" \t"), ONE),
    Form("a plus", length(b" +" + SIZE), REFUSED),
    Form("a minus", length(b" -" + SIZE), REFUSED),
    Form("hexadecimal", length(b" 0x" + HEX), REFUSED),
    Form("a fraction", length(b" " + SIZE + b".0"), REFUSED),
    Form("two numbers", length(b" " + SIZE + b" " + SIZE), REFUSED),
    Form("a list", length(b" " + SIZE + b", " + SIZE), REFUSED),
    Form("no number", length(b""), REFUSED),
    Form("digits that are not ASCII", length(" ٣".encode()), REFUSED),
    Form("a vertical tab", length(b" \x0b" + SIZE), REFUSED),
    Form("beyond 64 bit", length(b" 18446744073709551617"), REFUSED),
    Form("twice", get(b"Content-Length: " + SIZE, b"Content-Length: " + SIZE) + HIDDEN, REFUSED),
    Form("twice, differing", get(b"Content-Length: 0", b"Content-Length: " + SIZE) + HIDDEN, REFUSED),
    Form("a blank before the colon", length(b" " + SIZE, b"Content-Length :"), REFUSED),
    Form("a folded line", length(b"\r\n " + SIZE), REFUSED),
    Form("a second, folded value", length(b" 0\r\n " + SIZE), REFUSED),
]

CODINGS = [
    Form("length and coding", get(b"Content-Length: 6", CHUNKED) + b"0\r\n\r\n" + HIDDEN, REFUSED),
    Form("coding and length", get(CHUNKED, b"Content-Length: 6") + b"0\r\n\r\n" + HIDDEN, REFUSED),
    Form("length 0 and coding", get(b"Content-Length: 0", CHUNKED) + b"0\r\n\r\n" + HIDDEN, REFUSED),
    Form("another word", coding(b" xchunked"), REFUSED),
    Form("identity", coding(b" identity"), REFUSED),
    Form("not chunked last", coding(b" chunked, identity"), REFUSED),
    Form("identity first", coding(b" identity, chunked"), [501]),
    Form("gzip first", coding(b" gzip, chunked"), [501]),
    Form("chunked twice", coding(b" chunked, chunked"), REFUSED),
    Form("in two lines", get(CHUNKED, CHUNKED) + b"0\r\n\r\n" + HIDDEN, REFUSED),
    Form("a parameter", coding(b" chunked;q=1"), REFUSED),
    Form("in quotes", coding(b' "chunked"'), REFUSED),
    Form("a vertical tab before", coding(b" \x0bchunked"), REFUSED),
    Form("a blank before the colon", coding(b" chunked", b"Transfer-Encoding :"), REFUSED),
    Form("folded", coding(b"\r\n chunked"), REFUSED),
    Form("in capitals", get(b"TRANSFER-ENCODING: CHUNKED") + b"0\r\n\r\n", LAST),
    Form("of HTTP/1.0", get(CHUNKED, top=b"GET /healthz HTTP/1.0") + b"0\r\n\r\n" + HIDDEN, REFUSED),
    Form(
        "of HTTP/1.0, kept alive",
        get(CHUNKED, b"Connection: keep-alive", top=b"GET /healthz HTTP/1.0") + b"0\r\n\r\n" + HIDDEN,
        REFUSED,
    ),
    Form(
        "an underscore, which some take for a hyphen",
        get(b"Transfer_Encoding: chunked", b"Content-Length: " + SIZE) + HIDDEN,
        ONE,
    ),
]

CHUNKS = [
    Form("one chunk", chunks(HEX + b"\r\n" + HIDDEN + b"\r\n0\r\n\r\n"), LAST),
    Form("zeros before the size", chunks(b"000" + HEX + b"\r\n" + HIDDEN + b"\r\n0000\r\n\r\n"), LAST),
    Form("an extension", chunks(HEX + b';a="b;c"\r\n' + HIDDEN + b"\r\n0\r\n\r\n"), LAST),
    Form("an extension with a bare LF", chunks(b"1;a\nx\r\n1\r\n0\r\n\r\n" + HIDDEN), REFUSED),
    Form("an extension with a bare CR", chunks(b"1;a\rx\r\n1\r\n0\r\n\r\n" + HIDDEN), REFUSED),
    Form("a size beyond 64 bit", chunks(b"fffffffffffffffff\r\nx\r\n0\r\n\r\n" + HIDDEN), REFUSED),
    Form("0x before the size", chunks(b"0x1\r\nx\r\n0\r\n\r\n" + HIDDEN), REFUSED),
    Form("a sign before the size", chunks(b"+1\r\nx\r\n0\r\n\r\n" + HIDDEN), REFUSED),
    Form("a minus before the size", chunks(b"-1\r\nx\r\n0\r\n\r\n" + HIDDEN), REFUSED),
    Form("a blank before the size", chunks(b" 1\r\nx\r\n0\r\n\r\n" + HIDDEN), REFUSED),
    Form("a blank behind the size", chunks(b"1 \r\nx\r\n0\r\n\r\n" + HIDDEN), REFUSED),
    Form("no size", chunks(b"\r\nx\r\n0\r\n\r\n" + HIDDEN), REFUSED),
    Form("bare LF", chunks(b"1\nx\n0\n\n" + HIDDEN), REFUSED),
    Form("longer than its size", chunks(b"1\r\nxyz\r\n0\r\n\r\n" + HIDDEN), REFUSED),
    Form("a trailer", chunks(b"0\r\nX-Any: thing\r\n\r\n"), LAST),
    Form("a length in the trailer", chunks(b"0\r\nContent-Length: " + SIZE + b"\r\n\r\n" + HIDDEN), REFUSED),
    Form("a coding in the trailer", chunks(b"0\r\nTransfer-Encoding: chunked\r\n\r\n" + HIDDEN), REFUSED),
    Form("a trailer with a bare LF", chunks(b"0\r\nX: y\n\n" + HIDDEN), REFUSED),
]

HEADS = [
    Form("bare LF", b"GET /healthz HTTP/1.1\nHost: x\n\n" + HIDDEN, REFUSED),
    Form("bare LF behind a field", get(b"X: y\nContent-Length: " + SIZE) + HIDDEN, REFUSED),
    Form("bare CR in a field", get(b"X: y\rContent-Length: " + SIZE) + HIDDEN, REFUSED),
    Form("two CR", b"GET /healthz HTTP/1.1\r\r\nHost: x\r\r\n\r\r\n" + HIDDEN, REFUSED),
    Form("NUL in a name", get(b"X\0: y") + HIDDEN, REFUSED),
    Form("NUL in a value", get(b"X: y\0z") + HIDDEN, REFUSED),
    Form("a control character in a value", get(b"X: y\x01z") + HIDDEN, REFUSED),
    Form("a field without a colon", get(b"Content-Length " + SIZE) + HIDDEN, REFUSED),
    Form("a field without a name", get(b": y") + HIDDEN, REFUSED),
    Form("a name with a blank", get(b"X Y: z") + HIDDEN, REFUSED),
    Form("a name that is not ASCII", get("Ž: z".encode()) + HIDDEN, REFUSED),
    Form("a blank before the first field", get(b"X: y", host=b" Host: x") + HIDDEN, REFUSED),
    Form("an empty line before", b"\r\n" + get(), ONE),
    Form("no host", get(host=b"") + HIDDEN, REFUSED),
    Form("two hosts", get(b"Host: y") + HIDDEN, REFUSED),
    Form("another version", get(top=b"GET /healthz HTTP/1.2") + HIDDEN, REFUSED),
    Form("a version in small letters", get(top=b"GET /healthz http/1.1") + HIDDEN, REFUSED),
    Form("two versions", get(top=b"GET /healthz HTTP/1.1 HTTP/1.1") + HIDDEN, REFUSED),
    Form("HTTP/0.9", b"GET /healthz\r\n\r\n" + HIDDEN, REFUSED),
    Form("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN, REFUSED),
    Form("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" + HIDDEN, REFUSED),
    Form("tabs between the words", get(top=b"GET\t/healthz\tHTTP/1.1") + HIDDEN, REFUSED),
    Form("two blanks between the words", get(top=b"GET  /healthz HTTP/1.1"), ONE),
    Form("NUL in the target", get(top=b"GET /healthz\0 HTTP/1.1") + HIDDEN, REFUSED),
    Form("a whole URL", get(top=b"GET http://x/healthz HTTP/1.1") + HIDDEN, REFUSED),
    Form("a whole URL of somebody else", get(top=b"GET http://y/healthz HTTP/1.1") + HIDDEN, REFUSED),
    Form("no path", get(top=b"GET healthz HTTP/1.1") + HIDDEN, REFUSED),
    Form("a tunnel", get(top=b"CONNECT x:443 HTTP/1.1") + HIDDEN, REFUSED),
    Form("the whole server", get(top=b"OPTIONS * HTTP/1.1") + HIDDEN, REFUSED),
    Form("a method in small letters", get(top=b"get /healthz HTTP/1.1") + HIDDEN, REFUSED),
    Form("a packed body", get(b"Content-Encoding: gzip", b"Content-Length: " + SIZE) + HIDDEN, [415]),
    Form("an unknown expectation", get(b"Expect: 200-ok", b"Content-Length: " + SIZE) + HIDDEN, [417]),
    Form(
        "HTTP/2 by an upgrade",
        get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"),
        LAST,
    ),
    Form(
        "an upgrade with a body",
        get(b"Connection: Upgrade", b"Upgrade: websocket", b"Content-Length: " + SIZE) + HIDDEN,
        LAST,
    ),
    Form("a field too many", get(*[b"X: y"] * 200) + HIDDEN, REFUSED),
    Form("a field too long", get(b"X: " + b"y" * 10_000) + HIDDEN, REFUSED),
    Form("a target too long", get(top=b"GET /" + b"y" * 10_000 + b" HTTP/1.1") + HIDDEN, REFUSED),
]


def answers(port: int, sent: bytes) -> list[tuple[int, bytes]]:
    """Statuses and bodies of all that is answered to these bytes until the connection ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
        connection.sendall(sent)
        said = b""
        try:
            while piece := connection.recv(65536):
                said += piece
        except ConnectionResetError:  # the end, where something was left unread
            pass
    found = []
    while said:
        head, _, rest = said.partition(b"\r\n\r\n")
        (size,) = [
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        ]
        found.append((int(head.split(b" ", 2)[1]), rest[:size]))
        said = rest[size:]
    return found


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param(form.sent, form.answers, id=f"{table}: {form.name}")
        for table, forms in (
            ("length", LENGTHS),
            ("coding", CODINGS),
            ("chunk", CHUNKS),
            ("head", HEADS),
        )
        for form in forms
    ],
)
def test_it_is_refused_or_read_as_one(appliance: RunningAppliance, sent: bytes, expected: list[int]) -> None:
    found = answers(appliance.port, sent + NEXT)
    assert [status for status, _ in found] == expected, found


def test_a_trailer_is_no_header_of_the_request_behind(appliance: RunningAppliance) -> None:
    """Whoever shares a connection with others, as clients of a proxy do, must not lend them a token."""
    ask = b"GET /account/v2/user HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    lent = b"Authorization: Token " + appliance.token.encode()
    found = answers(appliance.port, chunks(b"0\r\n" + lent + b"\r\n\r\n") + ask)
    assert [status for status, _ in found] == LAST


def test_what_follows_a_refusal_is_not_read(appliance: RunningAppliance) -> None:
    for form in (*LENGTHS, *HEADS):
        if form.answers == REFUSED:
            assert len(answers(appliance.port, form.sent + HIDDEN * 20)) == 1, form.name
