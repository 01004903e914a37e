"""Everything stays inside: no part but the gate connects outward, and no library under it reports home."""

import ast
import base64
import json
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest

import appliance
from tests import images
from tests.hosts import Host
from tests.running import RunningAppliance
from tests.tracing import Traced, reached, tracer
from tests.waiting import eventually

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


# Unix sockets that a library may ask, each with what for; the daemon's own ones are pairs without a name.
ASKED = {
    "/var/run/nscd/socket": "glibc, for the group of operators and the names of users",
    "/run/nscd/socket": "the same",
}


def seconds_of_load(running: RunningAppliance, host: Host, seconds: float) -> None:
    """Every way that leads out, declared and not, between those that lead nowhere."""
    until, mark = time.monotonic() + seconds, secrets.token_hex(4)
    number = 0
    while time.monotonic() < until or number < 2:
        number += 1
        photo = images.jpeg(seed=number)
        headers = running.headers(content_type="image/jpeg", x_record=json.dumps({"_id": f"{mark} {number}"}))
        for path in ("/similarity/photos/v2/insert", "/photo/tags/v2/tags"):
            answer = running.call("POST", path, photo, headers=headers)
            assert answer.status == 200, answer.body[:300]
        found = running.post("/similarity/photos/v2/visualKNN", {"query_record": {"_id": f"{mark} 1"}})
        assert found.status == 200, found.body[:300]
        assert upload(running, mark, number) == 201
        assert fetched(running, f"{host.address}/red?{number}") == 200
        for elsewhere in (
            "http://169.254.169.254/a.png",
            f"http://127.0.0.1:{running.port}/",
            "http://[::1]/",
        ):
            assert fetched(running, elsewhere) == 400
        follow(running, host, f"/feed-{number}")
        call_back(running, host)
        assert running.call("GET", "/metrics", headers={}).status == 404


def upload(running: RunningAppliance, mark: str, number: int) -> int:
    content = base64.b64encode(images.plain(f"{mark} {number}")).decode()
    return running.post("/recognition/v2/training-image", {"base64": content}).status


def fetched(running: RunningAppliance, url: str) -> int:
    """What is said of a photo behind a link."""
    asked = {"task_id": running.task, "records": [{"_url": url}]}
    answer = running.post("/recognition/v2/classify", asked)
    return int(answer.document["records"][0]["_status"]["code"])


def follow(running: RunningAppliance, host: Host, path: str) -> None:
    """A run of a feed with one item, whose image is fetched too."""
    host.pictures[path] = json.dumps({"id": "1", "image": f"{host.address}/blue"}).encode()
    source = f"/appliance/v1/collections/{running.add_collection()}/source"
    body = json.dumps({"url": host.address + path}).encode()
    assert running.call("PUT", source, body).status == 200
    assert running.call("POST", f"{source}/run").status == 202

    def added() -> bool:
        run = running.call("GET", f"{source}/runs").document["runs"][0]
        return run["ended_at"] is not None and run["report"]["added"] == 1

    eventually(added, "the run of the feed")


def call_back(running: RunningAppliance, host: Host) -> None:
    """An asynchronous request that tells the host of its end."""
    record = {"_base64": base64.b64encode(images.jpeg()).decode()}
    asked = {"type": "custom-recognition", "task_id": running.task, "records": [record]}
    told = {"webhook": {"endpoint": f"{host.address}/told"}}
    assert running.post("/account/v2/request", asked | told).status == 201
    assert json.loads(host.told.get(timeout=60).body)["status"] == "DONE"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.full)])
def test_a_serving_daemon_reaches_declared_destinations_only(
    traced: Traced, host: Host, seconds: float
) -> None:
    """The daemon and its children, by every address that any of them connects or sends to."""
    traced.appliance.state.ask("agreement", "sign", "demo", "training-data")
    seconds_of_load(traced.appliance, host, seconds)
    places = reached(traced.calls())
    assert f"127.0.0.1 {host.port}" in places
    assert places - {f"127.0.0.1 {host.port}", *ASKED} == set()
    assert list(traced.home.rglob("*")) == []
    assert any("openat(" in call for call in traced.calls()), "strace saw nothing"


def test_the_search_sees_an_address() -> None:
    calls = [
        '77 connect(5<TCP>, {sa_family=AF_INET, sin_port=htons(443), sin_addr=inet_addr("9.9.9.1")}, 16) = 0',
        '77 connect(5, {sa_family=AF_INET6, sin6_port=htons(53), inet_pton(AF_INET6, "2606:28::1", &s)}, 28)',
        '77 sendto(3, "", 3, 0, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("9.9.9.9")}, 16',
        '77 connect(3, {sa_family=AF_UNIX, sun_path="/run/x"}, 110) = -1 ENOENT (No such file or directory)',
        '77 sendmsg(3, {msg_name={sa_family=AF_UNIX, sun_path=@"y"}, msg_namelen=4}, 0) = 1',
        "77 sendto(3, [{nlmsg_len=20}], 20, 0, {sa_family=AF_NETLINK, nl_pid=0}, 12) = 20",
        '77 sendto(9<TCP:[2]>, ""..., 30, MSG_NOSIGNAL, NULL, 0) = 30',
    ]
    inet = {"9.9.9.1 443", "2606:28::1 53", "9.9.9.9 53"}
    assert reached(calls) == inet | {"/run/x", "@y", "NETLINK"}


STRAY = """
import socket, subprocess, sys
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, "child"], check=True)
elif len(sys.argv) == 2:
    socket.socket().connect_ex(("127.0.0.2", 9))
    socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.3", 9))
    socket.socket(socket.AF_UNIX).connect_ex("/nowhere")
"""


def test_the_trace_sees_what_a_child_connects_to(tmp_path: Path) -> None:
    program, log = tmp_path / "stray.py", tmp_path / "calls"
    program.write_text(STRAY)
    subprocess.run([*tracer(log), sys.executable, str(program)], check=True, timeout=60)
    assert {"127.0.0.2 9", "127.0.0.3 9", "/nowhere"} <= reached(log.read_text().splitlines())
