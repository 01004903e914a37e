"""Nothing is needed from outside: all journeys where the network has no way out, and nothing is tried.

There is the loopback interface and no route: an attempt to reach anything else fails at once, and the kernel
counts it.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPERATOR = "tests/promises/journeys_cut_off.py"
CUSTOMER = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("tests/contract/test_ximilar_*.py"))]
INSIDE = """
ip link set lo up || exit 99
"$@"
code=$?
cat /proc/net/snmp /proc/net/snmp6 > "$COUNTERS"
exit $code
"""
STRAY = """
import socket
for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
    socket.socket(family).connect_ex((address, 443))
    socket.socket(family, socket.SOCK_DGRAM).connect_ex((address, 53))
"""
LOOKUP = "import socket; socket.getaddrinfo('example.org', 443)"


@dataclass(frozen=True)
class Done:
    """How a command ended in a namespace of its own, and what that namespace's kernel has counted."""

    code: int
    said: str
    counters: dict[str, int]

    @property
    def tried(self) -> int:
        """Connections and packets without a way, and datagrams of any kind: names are asked for in such."""
        names = ("IpOutNoRoutes", "Ip6OutNoRoutes", "UdpOutDatagrams", "Udp6OutDatagrams")
        return sum(self.counters[name] for name in names)


def cut_off(folder: Path, *words: str) -> Done:
    """Run these words where there is no network; needs root, or user namespaces."""
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    counters = folder / "counters"
    done = subprocess.run(
        ["unshare", *own, "--net", "sh", "-c", INSIDE, "sh", *words],
        cwd=ROOT,
        env={**os.environ, "COUNTERS": str(counters), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert counters.exists(), f"network namespaces need root or user namespaces: {done.stdout}"
    return Done(done.returncode, done.stdout, counted(counters.read_text()))


def counted(text: str) -> dict[str, int]:
    """The counters of /proc/net/snmp (two lines for a protocol) and of /proc/net/snmp6 (one for each)."""
    lines = [line.split() for line in text.splitlines()]
    found = {name: int(value) for name, value in (line for line in lines if not line[0].endswith(":"))}
    tables = [line for line in lines if line[0].endswith(":")]
    for names, values in zip(tables[::2], tables[1::2], strict=True):
        found |= {names[0][:-1] + name: int(value) for name, value in zip(names[1:], values[1:], strict=True)}
    return found


def journeys(folder: Path, *files: str) -> Done:
    words = ("-p", "no:cacheprovider", "-p", "no:randomly", "--timeout", "600", "-q")
    return cut_off(folder, sys.executable, "-m", "pytest", *words, *files)


@pytest.mark.timeout(1200)
def test_an_appliance_without_a_network_lacks_nothing(tmp_path: Path) -> None:
    done = journeys(tmp_path, OPERATOR)
    assert done.code == 0, done.said[-5000:]
    assert "passed" in done.said
    assert done.tried == 0


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_every_journey_of_the_official_client_goes_without_a_network(tmp_path: Path) -> None:
    done = journeys(tmp_path, *CUSTOMER, OPERATOR)
    assert done.code == 0, done.said[-5000:]
    assert done.tried == 0


def test_the_kernel_counts_every_attempt(tmp_path: Path) -> None:
    done = cut_off(tmp_path, sys.executable, "-c", STRAY)
    assert done.code == 0, done.said
    assert done.tried == 4
    assert (done.counters["IpOutNoRoutes"], done.counters["Ip6OutNoRoutes"]) == (2, 2)
    assert cut_off(tmp_path, "true").tried == 0


def test_a_name_that_is_asked_for_is_an_attempt(tmp_path: Path) -> None:
    assert cut_off(tmp_path, sys.executable, "-c", LOOKUP).tried > 0
