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

# Whatever opens a connection to somewhere else or starts a process that might, by import or by call.
CLIENTS = {
    "ftplib", "http.client", "httpx", "imaplib", "multiprocessing", "paramiko", "poplib", "pty", "requests",
    "smtplib", "subprocess", "telnetlib", "urllib.request", "urllib3", "websockets", "xmlrpc.client",
}  # fmt: skip
CALLS = {
    "ClientSession", "TCPConnector", "create_connection", "create_datagram_endpoint", "getaddrinfo",
    "gethostbyname", "open_connection", "sendto", "sock_connect", "urlopen", "connect", "connect_ex",
    "open_unix_connection", "UnixConnector", "socket", "socketpair", "create_unix_connection",
}  # fmt: skip
# Whatever starts a process, which might connect in our place.
STARTS = {
    "Popen", "check_call", "check_output", "create_subprocess_exec", "create_subprocess_shell", "execl",
    "execle", "execlp", "execv", "execve", "execvp", "execvpe", "fork", "forkpty", "getoutput", "popen",
    "posix_spawn", "posix_spawnp", "spawnl", "spawnv", "spawnve", "subprocess_exec", "subprocess_shell",
    "system",
}  # fmt: skip

# The exceptions, each with what it reaches.
ALLOWED = {
    ("appliance/cli/client.py", "ClientSession"): "the daemon's operator socket, over a Unix connector",
    ("appliance/cli/client.py", "connect"): "the same Unix socket, to see whether a daemon answers",
    ("appliance/cli/client.py", "UnixConnector"): "the same",
    ("appliance/cli/client.py", "open_unix_connection"): "the same",
    ("appliance/cli/client.py", "socket"): "the same",
    ("appliance/api/server.py", "socket"): "the operator socket, a Unix one that listens",
    ("appliance/channel.py", "socket"): "a child's end of its socket pair, which it inherits",
    ("appliance/outbound/way.py", "ClientSession"): "the gate: declared destinations alone",
    ("appliance/outbound/way.py", "TCPConnector"): "the same",
    ("appliance/outbound/way.py", "socket"): "the same: one for each address, which is checked first",
    ("appliance/systemd.py", "connect"): "the service manager's Unix datagram socket",
    ("appliance/systemd.py", "socket"): "the same",
    ("appliance/workers.py", "subprocess"): "for the next",
    ("appliance/workers.py", "Popen"): "children of the daemon, which run modules of ours",
    ("appliance/workers.py", "create_unix_connection"): "the daemon's end of such a pair",
    ("appliance/workers.py", "connect"): "the greeting of a child on its own socket pair",
    ("appliance/workers.py", "socketpair"): "between the daemon and its child",
}


def outward(place: str, text: str) -> set[tuple[str, str]]:
    """(place, name) of each import of a client and each call by a name that connects or starts a process."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {(place, alias.name) for alias in node.names if alias.name in CLIENTS}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            found |= {(place, name) for name in names & CLIENTS}
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in CALLS | STARTS:
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
        "socket.socket().bind(('', 0))",
        "subprocess.Popen(['curl', 'example.org'])",
        "os.system('curl example.org')",
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
