"""Clients that are slow on purpose, or never end: each loses its connection in time, and holds up nobody."""

import base64
import itertools
import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from appliance.api.server import Server
from tests import images
from tests.api.test_bodies import head, status_of
from tests.serving import Served, Site, Tenant
from tests.waiting import eventually

PATIENCE = 0.4
"""Seconds that the server under test gives heads, bodies, and those who do not take their answer."""
PACE = 0.02
MANY = 60  # connections; one address may have 64
ASK = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def hasty(served: Served) -> Iterator[tuple[Site, Server]]:
    with served.another(
        keep_alive_seconds=PATIENCE, body_seconds=PATIENCE, body_bytes_per_second=1_000_000
    ) as (site, server):
        yield site, server


def connect(site: Site) -> socket.socket:
    return socket.create_connection((site.host, site.port), timeout=10)


def said_until_the_end(connection: socket.socket) -> bytes:
    said = b""
    try:
        while piece := connection.recv(65536):
            said += piece
    except ConnectionResetError:
        pass
    return said


def dripped(connection: socket.socket, pieces: Iterator[bytes]) -> bytes:
    """Sends one piece after the other, each well within the server's patience, until it answers or has had
    enough.
    """
    deadline = time.monotonic() + 15
    for piece in pieces:
        assert time.monotonic() < deadline, "the server listens on and on"
        if select.select([connection], [], [], PACE)[0]:
            break
        try:
            connection.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            break
    return connection.recv(65536)


BEGUN = {
    "nothing": b"",
    "a letter": b"G",
    "a line": b"GET /healthz HTTP/1.1\r\n",
    "half a field": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Any: ",
    "an empty line": b"\r\n",
    "a request before": ASK + b"GET /hea",
}


@pytest.mark.parametrize("begun", BEGUN.values(), ids=BEGUN)
def test_a_head_that_does_not_come(hasty: tuple[Site, Server], begun: bytes) -> None:
    with connect(hasty[0]) as connection:
        connection.sendall(begun)
        assert said_until_the_end(connection).count(b"HTTP/1.1") == begun.startswith(ASK)


def test_a_head_that_drips(hasty: tuple[Site, Server]) -> None:
    with connect(hasty[0]) as connection:
        letters = itertools.chain(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ", itertools.repeat(0x79))
        assert dripped(connection, (bytes([letter]) for letter in letters)) == b""


@pytest.mark.parametrize("line", [b"X: y\r\n", b"\r\n"])
def test_a_head_without_end(hasty: tuple[Site, Server], line: bytes) -> None:
    with connect(hasty[0]) as connection:
        connection.sendall(b"" if line == b"\r\n" else b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        said = dripped(connection, itertools.repeat(line * 50))
        assert said == b"" if line == b"\r\n" else status_of(said) == 400


CHUNKED = {
    "nothing": (b"", b""),
    "small chunks": (b"", b"1\r\n \r\n"),
    "an extension": (b"1;", b"a" * 500),
    "a size": (b"", b"0"),
    "a trailer": (b"0\r\nX: ", b"y"),
    "trailers": (b"0\r\n", b"X: y\r\n"),
}
BODIES = ["/similarity/photos/v2/ping", "/appliance/v1/collections/{}/diff"]
"""A body that is held whole, and one that is read as it comes."""


@pytest.mark.parametrize(("once", "again"), CHUNKED.values(), ids=CHUNKED)
@pytest.mark.parametrize("path", BODIES)
def test_a_chunked_body_without_end(
    hasty: tuple[Site, Server], tenant: Tenant, path: str, once: bytes, again: bytes
) -> None:
    with connect(hasty[0]) as connection:
        asked = head(tenant, path.format(tenant.collection), transfer_encoding="chunked")
        connection.sendall(asked + once)
        assert status_of(dripped(connection, itertools.repeat(again))) in {400, 408}
    assert hasty[1].held_bytes == 0


@pytest.mark.parametrize("path", BODIES)
def test_a_body_that_drips(hasty: tuple[Site, Server], tenant: Tenant, path: str) -> None:
    with connect(hasty[0]) as connection:
        connection.sendall(head(tenant, path.format(tenant.collection), content_length="100000"))
        assert status_of(dripped(connection, itertools.repeat(b" "))) == 408
    assert hasty[1].held_bytes == 0


def fill(connection: socket.socket, sent: bytes) -> None:
    """Sends on until nothing is taken any more."""
    connection.setblocking(False)
    while select.select([], [connection], [], 10 * PACE)[1]:
        try:
            connection.send(sent)
        except BlockingIOError:
            continue
        except (BrokenPipeError, ConnectionResetError):
            return


@contextmanager
def reluctant(site: Site) -> Iterator[socket.socket]:
    """A connection whose client takes little at a time."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10)
        connection.connect((site.host, site.port))
        yield connection


def test_answers_that_nobody_takes(hasty: tuple[Site, Server]) -> None:
    """Requests without end, and not one answer read."""
    with reluctant(hasty[0]) as connection:
        fill(connection, ASK * 100)
        eventually(lambda: hasty[1].open_connections == 0, "the connection is cut")


@pytest.fixture(scope="module")
def long(served: Served, tenant: Tenant) -> bytes:
    """A request whose answer is more than the systems at both ends hold for each other."""
    picture = base64.b64encode(images.jpeg()).decode()
    records = [{"_id": f"{number}", "_base64": picture, "words": "x" * 60_000} for number in range(10)]
    body = json.dumps({"records": records}).encode()
    assert served.site.call("POST", "/similarity/photos/v2/insert", body, tenant.headers()).code == 210
    asked = b'{"fields_to_return":["*"]}'
    path = "/similarity/photos/v2/allRecords"
    return head(tenant, path, content_length=f"{len(asked)}") + asked


def test_a_long_answer_that_nobody_takes(hasty: tuple[Site, Server], long: bytes) -> None:
    with reluctant(hasty[0]) as connection:
        connection.sendall(long)
        eventually(lambda: hasty[1].open_connections > 0, "the connection is there")
        eventually(lambda: hasty[1].open_connections == 0, "the connection is cut")


def test_one_that_reads_slowly_gets_all_of_it(served: Served, long: bytes) -> None:
    """It has longer the more there is: as the sender of a body has."""
    with (
        served.another(body_seconds=PATIENCE, body_bytes_per_second=4000) as (site, _),
        reluctant(site) as connection,
    ):
        connection.sendall(long)
        began, said = time.monotonic(), b""
        while len(said) < 600_000:
            select.select([], [], [], PACE)
            piece = connection.recv(16_384)
            assert piece, f"cut after {len(said)} bytes"
            said += piece
        assert time.monotonic() - began > 2 * PATIENCE


Hold = Callable[[Tenant], bytes]
HOLDS: dict[str, Hold] = {
    "heads": lambda tenant: b"GET /healthz HTTP/1.1\r\n",
    "bodies": lambda tenant: head(tenant, content_length="100000") + b"{",
    "images": lambda tenant: head(tenant, content_length="100000", content_type="image/png") + b"\x89PNG",
    "chunks": lambda tenant: head(tenant, transfer_encoding="chunked") + b"1;",
}


@pytest.mark.parametrize("hold", HOLDS.values(), ids=HOLDS)
def test_many_of_them_hold_up_nobody(served: Served, tenant: Tenant, hold: Hold) -> None:
    picture = images.jpeg()
    with served.another() as (site, server), ExitStack() as stack:  # as patient as it is by default
        for _ in range(MANY):
            connection = stack.enter_context(connect(site))
            connection.sendall(hold(tenant))
        eventually(lambda: server.open_connections == MANY, "all of them are in")
        path = f"/recognition/v2/classify?task_id={served.bundle.task}"
        answer = site.call("POST", path, picture, tenant.headers(content_type="image/jpeg"))
        assert answer.code == 200
        assert site.call("GET", "/readyz").status == 200
