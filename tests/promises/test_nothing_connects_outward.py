"""Everything stays inside: no part but the gate connects outward, and no library under it reports home."""

import ast
import ipaddress
import json
import time
from pathlib import Path

import pytest

import appliance
from tests import images
from tests.tracing import Traced, addresses

SOURCES = sorted(Path(appliance.__file__).parent.rglob("*.py"))

# Whatever opens a connection to somewhere else, by import or by call.
CLIENTS = {
    "ftplib", "http.client", "httpx", "imaplib", "paramiko", "poplib", "requests", "smtplib", "telnetlib",
    "urllib.request", "urllib3", "websockets", "xmlrpc.client",
}  # fmt: skip
CALLS = {
    "ClientSession", "TCPConnector", "create_connection", "create_datagram_endpoint", "getaddrinfo",
    "gethostbyname", "open_connection", "sendto", "sock_connect", "urlopen", "connect", "connect_ex",
}  # fmt: skip

# The exceptions, each with what it reaches.
ALLOWED = {
    ("appliance/cli/client.py", "ClientSession"): "the daemon's operator socket, over a Unix connector",
    ("appliance/cli/client.py", "connect"): "the same Unix socket, to see whether a daemon answers",
    ("appliance/outbound.py", "ClientSession"): "the gate: declared destinations alone, each address checked",
    ("appliance/outbound.py", "TCPConnector"): "the same",
    ("appliance/systemd.py", "connect"): "the service manager's Unix datagram socket",
    ("appliance/workers.py", "connect"): "the greeting of a child on its own socket pair",
}


def outward(place: str, text: str) -> set[tuple[str, str]]:
    """(place, name) of each import of a client and each call by a name that connects."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {(place, alias.name) for alias in node.names if alias.name in CLIENTS}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            found |= {(place, name) for name in names & CLIENTS}
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in CALLS:
                found.add((place, name))
    return found


def test_no_module_holds_an_outbound_client() -> None:
    root = Path(appliance.__file__).parent.parent
    found = {one for source in SOURCES for one in outward(str(source.relative_to(root)), source.read_text())}
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    "line",
    [
        "import requests",
        "from urllib.request import urlopen",
        "from http import client",
        "aiohttp.ClientSession()",
        "await asyncio.open_connection('example.org', 443)",
        "socket.create_connection(('example.org', 443))",
    ],
)
def test_the_rule_sees_a_client(line: str) -> None:
    assert outward("planted.py", f"async def act():\n    {line}\n")


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.full)])
def test_a_serving_daemon_connects_to_loopback_only(traced: Traced, seconds: float) -> None:
    """While it recognises, inserts, searches and idles: no address but loopback, no file under HOME."""
    running = traced.appliance
    until = time.monotonic() + seconds
    number = 0
    while time.monotonic() < until:
        number += 1
        headers = running.headers(
            content_type="image/jpeg", x_record=json.dumps({"_id": f"outward {seconds} {number}"})
        )
        answer = running.call(
            "POST", "/similarity/photos/v2/insert", images.jpeg(seed=number), headers=headers
        )
        assert answer.status == 200, answer.body[:300]
        found = running.post(
            "/similarity/photos/v2/visualKNN", {"query_record": {"_id": f"outward {seconds} 1"}}
        )
        assert found.status == 200, found.body[:300]
        assert running.call("GET", "/metrics", headers={}).status == 404
    elsewhere = {one for one in addresses(traced.calls()) if not ipaddress.ip_address(one).is_loopback}
    assert elsewhere == set()
    assert list(traced.home.rglob("*")) == []
    assert any("openat(" in call for call in traced.calls()), "strace saw nothing"


def test_the_search_sees_an_address() -> None:
    calls = [
        '77 connect(5<TCP:[1]>, {sa_family=AF_INET, sin_addr=inet_addr("9.9.9.1")}, 16) = 0',
        '77 connect(5, {inet_pton(AF_INET6, "2606:2800::1", &sin6_addr)}, 28) = -1 EAGAIN',
        '77 sendto(3, ""..., 30, 0, {sa_family=AF_INET, sin_addr=inet_addr("9.9.9.9")}, 16 <unfinished ...>',
    ]
    assert addresses(calls) == {"9.9.9.1", "2606:2800::1", "9.9.9.9"}
