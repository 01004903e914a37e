"""The service's sandbox and the walls around its network, each tried by its effect."""

import json
from collections.abc import Iterator

import pytest

from tests.e2e.client import Client
from tests.e2e.guest import Guest
from tests.e2e.playbook import PORT

INSIDE, OUTSIDE, OPEN_PORT = "192.0.2.1", "192.0.2.2", 9999
CGROUP = "/sys/fs/cgroup/system.slice/appliance.service/cgroup.procs"
# Prints what became of a connection, and after how long.
CONNECT = """
import errno, json, socket, sys, time
began = time.monotonic()
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=6).close()
    outcome = "connected"
except TimeoutError:
    outcome = "timeout"
except OSError as error:
    outcome = errno.errorcode.get(error.errno, str(error))
print(json.dumps([outcome, time.monotonic() - began]))
"""


@pytest.fixture(scope="module")
def outside(deployed: Guest) -> Iterator[Guest]:
    """A machine beside the server, on a network that no residency file declares; something listens there."""
    deployed.write("/root/connect.py", CONNECT)
    deployed.run(
        "ip netns add outside && ip link add inner type veth peer name outer netns outside"
        f" && ip addr add {INSIDE}/24 dev inner && ip link set inner up"
        f" && ip -n outside addr add {OUTSIDE}/24 dev outer && ip -n outside link set outer up"
        f" && systemd-run --quiet --unit=outside ip netns exec outside python3 -m http.server {OPEN_PORT}"
    )
    listening = f"ip netns exec outside ss -Hltn sport = :{OPEN_PORT}"
    deployed.run(f'for _ in $(seq 100); do [ -n "$({listening})" ] && exit 0; sleep 0.2; done; exit 1')
    yield deployed
    deployed.run("systemctl stop outside; ip netns delete outside; rm -f /root/connect.py")


def connecting(guest: Guest, prefix: str, address: str, port: int) -> tuple[str, float]:
    outcome, seconds = json.loads(guest.output(f"{prefix} python3 - {address} {port} </root/connect.py"))
    return outcome, seconds


def test_service_user_is_refused_at_once(outside: Guest) -> None:
    outcome, seconds = connecting(
        outside, "setpriv --reuid=appliance --regid=appliance --clear-groups", OUTSIDE, OPEN_PORT
    )
    assert outcome in {"EHOSTUNREACH", "EACCES", "ECONNREFUSED", "ENETUNREACH"}
    assert seconds < 2


def test_service_user_is_refused_on_loopback_too(outside: Guest) -> None:
    """The service opens no connection at all unless it is declared: not to its own operator port either."""
    outcome, _ = connecting(
        outside, "setpriv --reuid=appliance --regid=appliance --clear-groups", "127.0.0.1", 9464
    )
    assert outcome in {"EHOSTUNREACH", "EACCES", "ECONNREFUSED", "ENETUNREACH"}


def test_root_is_not_behind_the_wall(outside: Guest) -> None:
    assert connecting(outside, "", OUTSIDE, OPEN_PORT)[0] == "connected"


def test_second_wall_holds_whatever_the_user_is(outside: Guest) -> None:
    """In the unit's control group even root, whom the packet filter lets pass, reaches nothing undeclared."""
    outcome, _ = connecting(outside, f"echo $$ >{CGROUP} && exec", OUTSIDE, OPEN_PORT)
    assert outcome in {"timeout", "EPERM", "EHOSTUNREACH"}


def test_undeclared_client_does_not_get_through(outside: Guest) -> None:
    """Its connection is dropped at the public port, and at no other."""
    assert connecting(outside, "ip netns exec outside", INSIDE, PORT)[0] == "timeout"
    assert connecting(outside, "ip netns exec outside", INSIDE, 22)[0] == "connected"


def test_operator_port_is_for_loopback_alone(outside: Guest) -> None:
    fetch = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9464/metrics').read().decode())"
    assert "# TYPE" in outside.python(fetch)
    assert connecting(outside, "ip netns exec outside", INSIDE, 9464)[0] == "ECONNREFUSED"


def test_walls_stand_again_after_debian_s_firewall_is_restarted(outside: Guest, anyone: Client) -> None:
    """Debian's nftables.service flushes every table when it starts.

    The daemon is stopped before and started after, never without its wall; `start` waits for that.
    """
    outside.run("systemctl restart nftables.service && systemctl start appliance.service")
    anyone.wait_ready()
    prefix = "setpriv --reuid=appliance --regid=appliance --clear-groups"
    assert connecting(outside, prefix, OUTSIDE, OPEN_PORT)[0] != "connected"
    assert connecting(outside, "ip netns exec outside", INSIDE, PORT)[0] == "timeout"


def test_exposure_is_low_for_the_running_unit(deployed: Guest) -> None:
    said = deployed.run("systemd-analyze security --no-pager --threshold=15 appliance.service", check=False)
    assert said.code == 0, said.out[-1500:]


def test_no_client_is_lost_behind_the_walls(anyone: Client) -> None:
    assert anyone.ready()
