"""The rendered rules in a kernel: two machines joined by a cable, each a network namespace of this test."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance import config, firewall, residency

SERVER, DECLARED, UNDECLARED = "10.99.0.1", "10.99.0.2", "10.99.0.3"
SERVER6, DECLARED6, UNDECLARED6 = "fd99::1", "fd99::2", "2001:db8::3"
PUBLIC, OTHER, SYSLOG = 8443, 8444, 6514
USER = "nobody"
RESIDENCY = f"""
site = "here"
country = "CZ"
[[clients]]
cidr = "{DECLARED}/32"
[[clients]]
cidr = "10.98.0.0/16"
[[clients]]
cidr = "10.98.7.0/24"
[[clients]]
cidr = "fd00::/8"
[[destinations]]
name = "log }} host"
host = "log.example.cz"
cidrs = ["{DECLARED}/32", "{DECLARED6}/128"]
port = {SYSLOG}
country = "CZ"
purpose = "log forwarding"
"""
# Prints what became of a connection from argv[1] to argv[2]:argv[3].
CONNECT = """
import errno, socket, sys
try:
    socket.create_connection((sys.argv[2], int(sys.argv[3])), 1.5, (sys.argv[1], 0)).close()
except TimeoutError:
    print("timeout")
except OSError as error:
    print(errno.errorcode[error.errno])
else:
    print("connected")
"""
LISTEN = """
import socket, sys
both = {"family": socket.AF_INET6, "dualstack_ipv6": True}
held = [socket.create_server(("::", int(port)), **both) for port in sys.argv[1:]]
print("listening", flush=True)
sys.stdin.read()
"""
AS_USER = ("setpriv", f"--reuid={USER}", "--clear-groups")


def run(*words: str, text: str = "") -> str:
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout.strip()


@dataclass(frozen=True)
class Cable:
    """The namespaces of the server and of the machine at the other end."""

    server: str
    outside: str

    def load(self, rules: str) -> None:
        run("ip", "netns", "exec", self.server, "nft", "--file", "-", text=rules)

    def from_server(self, port: int, *, user: bool, address: str = DECLARED) -> str:
        sources = {"127.0.0.1": "127.0.0.1", DECLARED6: SERVER6, UNDECLARED6: SERVER6}
        prefix = AS_USER if user else ()
        words = (*prefix, sys.executable, "-c", CONNECT, sources.get(address, SERVER), address, str(port))
        return run("ip", "netns", "exec", self.server, *words)

    def to_server(self, port: int, *, source: str) -> str:
        address = SERVER6 if ":" in source else SERVER
        words = (sys.executable, "-c", CONNECT, source, address, str(port))
        return run("ip", "netns", "exec", self.outside, *words)


@pytest.fixture(scope="module")
def wired() -> Iterator[Cable]:
    assert os.geteuid() == 0, "network namespaces need root"
    mark = secrets.token_hex(3)
    cable = Cable(f"server-{mark}", f"outside-{mark}")
    listening: list[subprocess.Popen[str]] = []
    try:
        for name in (cable.server, cable.outside):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        peer = (f"o{mark}", "netns", cable.outside)
        run("ip", "link", "add", f"s{mark}", "netns", cable.server, "type", "veth", "peer", *peer)
        for name, device, addresses in (
            (cable.server, f"s{mark}", (SERVER, SERVER6, "2001:db8::1")),
            (cable.outside, f"o{mark}", (DECLARED, UNDECLARED, DECLARED6, UNDECLARED6)),
        ):
            for address in addresses:
                prefix = f"{address}/{64 if ':' in address else 24}"
                run("ip", "-n", name, "addr", "add", prefix, "dev", device, "nodad")
            run("ip", "-n", name, "link", "set", device, "up")
        for name, user in ((cable.server, AS_USER), (cable.outside, ())):
            ports = [str(port) for port in (PUBLIC, OTHER, SYSLOG)]
            words = ["ip", "netns", "exec", name, *user, sys.executable, "-c", LISTEN, *ports]
            child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            listening.append(child)
            assert child.stdout is not None
            assert child.stdout.readline() == "listening\n"
        yield cable
    finally:
        for child in listening:
            child.communicate("")
        for name in (cable.server, cable.outside):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def settings(*listeners: str) -> config.Config:
    return config.Config(api=config.Api(listen=listeners))


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> residency.Residency:
    path: Path = tmp_path_factory.mktemp("residency") / "residency.toml"
    path.write_text(RESIDENCY)
    return residency.load(path)


@pytest.fixture(scope="module")
def walled(wired: Cable, declared: residency.Residency) -> Cable:
    """The rules are in force. Before them everything is reached: the cable is not what refuses."""
    assert wired.from_server(OTHER, user=True) == "connected"
    assert wired.to_server(PUBLIC, source=UNDECLARED) == "connected"
    assert wired.to_server(PUBLIC, source=UNDECLARED6) == "connected"
    wired.load(firewall.nftables(settings(f"0.0.0.0:{PUBLIC}"), declared, USER))
    return wired


@pytest.mark.parametrize("address", [DECLARED, DECLARED6])
def test_service_reaches_a_declared_destination(walled: Cable, address: str) -> None:
    assert walled.from_server(SYSLOG, user=True, address=address) == "connected"


@pytest.mark.parametrize("port", [OTHER, PUBLIC])
def test_service_is_refused_another_port_of_it_at_once(walled: Cable, port: int) -> None:
    assert walled.from_server(port, user=True) == "EHOSTUNREACH"
    assert walled.from_server(port, user=True, address=DECLARED6) == "ECONNREFUSED"


def test_service_is_refused_another_address_at_once(walled: Cable) -> None:
    assert walled.from_server(SYSLOG, user=True, address=UNDECLARED) == "EHOSTUNREACH"
    assert walled.from_server(SYSLOG, user=True, address=UNDECLARED6) == "ECONNREFUSED"


def test_service_is_refused_loopback_too(walled: Cable) -> None:
    assert walled.from_server(OTHER, user=True, address="127.0.0.1") == "EHOSTUNREACH"


def test_other_users_connect_as_before(walled: Cable) -> None:
    assert walled.from_server(OTHER, user=False) == "connected"


@pytest.mark.parametrize("source", [DECLARED, DECLARED6])
def test_declared_client_reaches_the_public_port(walled: Cable, source: str) -> None:
    """And is answered: what the service sends on an accepted connection is not a new one."""
    assert walled.to_server(PUBLIC, source=source) == "connected"


@pytest.mark.parametrize("source", [UNDECLARED, UNDECLARED6])
def test_undeclared_client_is_dropped_at_the_public_port_alone(walled: Cable, source: str) -> None:
    assert walled.to_server(PUBLIC, source=source) == "timeout"
    assert walled.to_server(OTHER, source=source) == "connected"


def test_server_itself_reaches_the_public_port(walled: Cable) -> None:
    assert walled.from_server(PUBLIC, user=False, address="127.0.0.1") == "connected"


def test_loading_again_replaces_what_was_there(walled: Cable, declared: residency.Residency) -> None:
    walled.load("table inet foreign {\n}\n")
    walled.load(firewall.nftables(settings(f"0.0.0.0:{PUBLIC}"), declared, USER))
    tables = run("ip", "netns", "exec", walled.server, "nft", "list", "tables").splitlines()
    assert sorted(tables) == ["table inet appliance", "table inet foreign"]
    listed = run("ip", "netns", "exec", walled.server, "nft", "list", "table", "inet", "appliance")
    assert listed.count("skuid") == 1


def test_daemon_on_loopback_has_no_rule_for_clients(declared: residency.Residency) -> None:
    assert "input" not in firewall.nftables(settings("127.0.0.1:8080", "[::1]:8080"), declared, USER)


def test_destination_s_name_cannot_become_a_rule(wired: Cable, tmp_path: Path) -> None:
    path = tmp_path / "residency.toml"
    path.write_text(RESIDENCY.replace("log } host", "log\\n        accept\\u2028accept"))
    rules = firewall.nftables(settings(f"0.0.0.0:{PUBLIC}"), residency.load(path), USER)
    assert [line for line in rules.splitlines() if line.strip() == "accept"] == []
    run("ip", "netns", "exec", wired.server, "nft", "--check", "--file", "-", text=rules)


def test_both_families_are_in_the_drop_in_without_overlap(declared: residency.Residency) -> None:
    lines = firewall.systemd(declared).splitlines()
    assert lines[1:] == [
        "[Service]",
        "IPAddressAllow=10.98.0.0/16",
        f"IPAddressAllow={DECLARED}/32",
        "IPAddressAllow=fd00::/8",
    ]


def test_user_may_be_a_number(wired: Cable, declared: residency.Residency) -> None:
    rules = firewall.nftables(settings(f"0.0.0.0:{PUBLIC}"), declared, "4711")
    run("ip", "netns", "exec", wired.server, "nft", "--check", "--file", "-", text=rules)


def test_a_wide_network_around_special_addresses_is_taken_by_the_kernel(wired: Cable, tmp_path: Path) -> None:
    path = tmp_path / "residency.toml"
    wide = '"100.64.0.0/10", "192.0.0.0/8", "fd00::/16", "2001::/16"'
    path.write_text(RESIDENCY.replace(f'"{DECLARED}/32", "{DECLARED6}/128"', wide))
    rules = firewall.nftables(settings(f"0.0.0.0:{PUBLIC}"), residency.load(path), USER)
    assert "100.100.100.200/" not in rules
    run("ip", "netns", "exec", wired.server, "nft", "--check", "--file", "-", text=rules)


def test_a_name_server_is_reached_over_udp_too() -> None:
    declared = residency.Destination.model_validate(
        {
            "name": "dns",
            "host": "10.0.0.53",
            "cidrs": ["10.0.0.53/32"],
            "port": 53,
            "country": "CZ",
            "purpose": "x",
        }
    )
    rules = firewall.nftables(
        config.Config(), residency.Residency("x", "CZ", False, (declared,), ()), "appliance"
    )
    for protocol in ("tcp", "udp"):
        assert f"ip daddr {{ 10.0.0.53/32 }} {protocol} dport 53 accept" in rules
