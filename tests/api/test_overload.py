"""Too much at once: refused before the body is read, and nobody works for callers that have left."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psutil
import pytest
from PIL import Image

from appliance.config import Recognition
from appliance.recognition.session import CPU_BATCH
from tests import images
from tests.serving import Served, Site, Tenant

PNG = images.encoded(Image.new("RGB", (30, 30), "red"), "PNG")
SLOTS = 2 * CPU_BATCH  # of the device: two batches


@pytest.fixture
def stuck(served: Served) -> Iterator[psutil.Process]:
    """The device does not answer within the block."""
    engine = served.parts.engine
    assert engine is not None
    process = psutil.Process(engine._devices[0].worker.pid)
    process.suspend()
    yield process
    process.resume()
    until(lambda: queued(served) == 0)


def queued(served: Served) -> int:
    assert served.parts.engine is not None
    return sum(device.queued for device in served.parts.engine.devices())


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end


def head(served: Served, tenant: Tenant, length: int, *more: str) -> bytes:
    lines = [
        f"POST /recognition/v2/classify?task_id={served.bundle.task} HTTP/1.1",
        "Host: x",
        f"Authorization: Token {tenant.token}",
        "Content-Type: image/png",
        f"Content-Length: {length}",
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def connect(stack: ExitStack, site: Site) -> socket.socket:
    return stack.enter_context(socket.create_connection((site.host, site.port), timeout=20))


def test_a_full_queue_refuses_before_the_body_is_read(
    served: Served, tenant: Tenant, stuck: psutil.Process
) -> None:
    sections = {"recognition": Recognition(queue=3)}
    with ExitStack() as stack:
        site, server = stack.enter_context(served.another(sections=sections))
        waiting = [connect(stack, site) for _ in range(3)]
        for connection in waiting:
            connection.sendall(head(served, tenant, len(PNG)) + PNG)
        until(lambda: queued(served) == 3)
        refused = connect(stack, site)
        refused.sendall(head(served, tenant, 60 << 20, "Expect: 100-continue"))
        answer = refused.recv(65536)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"\r\nretry-after: 1\r\n" in answer.lower()
        assert b"as many as the queue holds" in answer
        # What needs no device is served meanwhile.
        assert site.call("GET", "/account/v2/user", headers=tenant.headers()).status == 200
        stuck.resume()
        for connection in waiting:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        last = connect(stack, site)
        last.sendall(head(served, tenant, len(PNG)) + PNG)
        assert last.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert server.held_bytes == 0


def test_what_a_head_declares_takes_its_place_before_the_body_comes(served: Served, tenant: Tenant) -> None:
    sections = {"recognition": Recognition(queue_bytes=4 << 20)}
    with ExitStack() as stack:
        site, _ = stack.enter_context(served.another(sections=sections))
        first = connect(stack, site)
        first.sendall(head(served, tenant, 3 << 20, "Expect: 100-continue"))
        assert first.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        refused = connect(stack, site)
        refused.sendall(head(served, tenant, 2 << 20, "Expect: 100-continue"))
        answer = refused.recv(65536)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"\r\nretry-after: 1\r\n" in answer.lower()
        # What has no images, and what finds room, is served meanwhile.
        assert site.call("GET", "/account/v2/user", headers=tenant.headers()).status == 200
        small = connect(stack, site)
        small.sendall(head(served, tenant, len(PNG)) + PNG)
        assert small.recv(65536).startswith(b"HTTP/1.1 200 ")
        first.sendall(bytes(3 << 20))
        assert first.recv(65536).startswith(b"HTTP/1.1 200 ")
        last = connect(stack, site)
        last.sendall(head(served, tenant, 4 << 20, "Expect: 100-continue"))
        assert last.recv(65536).startswith(b"HTTP/1.1 100 ")


def test_nobody_works_for_callers_that_have_left(
    served: Served, tenant: Tenant, stuck: psutil.Process
) -> None:
    with ExitStack() as stack:
        callers = [connect(stack, served.site) for _ in range(SLOTS + 6)]
        for connection in callers:
            connection.sendall(head(served, tenant, len(PNG)) + PNG)
        until(lambda: queued(served) == SLOTS + 6)
        for connection in callers:
            connection.close()
        until(lambda: queued(served) == SLOTS)  # what the device has keeps its slot
        assert stuck.status() == psutil.STATUS_STOPPED
        until(lambda: served.server.held_bytes == 0)


def test_an_insert_goes_on_when_its_caller_leaves(
    served: Served, tenant: Tenant, stuck: psutil.Process
) -> None:
    record = json.dumps({"_id": "left alone"})
    with ExitStack() as stack:
        connection = connect(stack, served.site)
        lines = [
            "POST /similarity/photos/v2/insert HTTP/1.1",
            "Host: x",
            f"Authorization: Token {tenant.token}",
            f"collection-id: {tenant.collection}",
            "Content-Type: image/png",
            f"X-Record: {record}",
            f"Content-Length: {len(PNG)}",
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + PNG)
        until(lambda: queued(served) == 1)
    stuck.resume()
    query = json.dumps({"records": [{"_id": "left alone"}]}).encode()
    until(lambda: served.site.call("POST", "/similarity/photos/v2/get", query, tenant.headers()).code == 205)
