"""A host of a customer on loopback, declared: images and feeds are fetched from it, webhooks go to it."""

import http.server
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Self

from PIL import Image

from appliance.residency import Destination, Residency
from tests import images

NAME = "host.example"


@dataclass(frozen=True)
class Told:
    """One POST that came."""

    path: str
    headers: Mapping[str, str]
    body: bytes


class Host:
    """Answers GET with `pictures[path]`, or with a plain picture in the colour that the path names.

    A path of `redirects` leads elsewhere. What is posted comes through `told`; each answer has the next
    status of `answers`, then 204. Whoever asks for a path of `held` is put into `waiting` and answered when
    the event is set. With `parting` every answer ends its connection.
    """

    def __init__(self) -> None:
        self.pictures: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.told: queue.Queue[Told] = queue.Queue()
        self.answers: list[int] = []
        self.parting = False
        self.held: dict[str, threading.Event] = {}
        self.waiting: queue.Queue[str] = queue.Queue()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.host = self
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.port = int(self._server.server_address[1])
        self.address = f"http://{NAME}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def declaration(self) -> dict[str, object]:
        """What the residency file says of this host."""
        return {
            "name": "a host",
            "host": NAME,
            "local": True,
            "cidrs": ["127.0.0.1/32"],
            "port": self.port,
            "country": "CZ",
            "purpose": "photos and news",
            "uses": ["images", "webhooks", "feeds"],
            "tls": False,
        }

    @property
    def residency(self) -> Residency:
        """This host declared, and clients on loopback."""
        declared = Destination.model_validate(self.declaration)
        return Residency("Prague", "CZ", False, (declared,), (ip_network("127.0.0.0/8"),))


class _Server(http.server.ThreadingHTTPServer):
    host: Host


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self._hold(path)
        if (target := self.server.host.redirects.get(path)) is not None:
            self._answer(302, b"", Location=target)
            return
        body = self.server.host.pictures.get(path)
        if body is None:
            body = images.encoded(Image.new("RGB", (60, 40), path[1:]), "PNG")
        self._answer(200, body)

    def do_POST(self) -> None:
        host = self.server.host
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._hold(self.path)
        self._answer(host.answers.pop(0) if host.answers else 204, b"")
        host.told.put(Told(self.path, headers, body))

    def _hold(self, path: str) -> None:
        host = self.server.host
        if (event := host.held.get(path)) is not None:
            host.waiting.put(path)
            assert event.wait(60)

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(body)))
        if self.server.host.parting:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""
