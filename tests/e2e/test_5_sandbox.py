"""What the unit forbids, tried from inside: a score does not know what systemd ignores in silence."""

import json
from pathlib import Path

import pytest

from tests.e2e.guest import Guest
from tests.e2e.playbook import STATE

PROBE = Path(__file__).with_name("sandbox_probe.py").read_text()
UNDECLARED = "10.0.2.9"
# The service's own unit with its drop-ins under another name; only what is started in it differs.
COPY = f"""
set -eu
cd /etc/systemd/system
cp appliance.service appliance-probe.service
cp -r appliance.service.d appliance-probe.service.d
cat >appliance-probe.service.d/zz-probe.conf <<'END'
[Service]
Type=oneshot
Restart=no
WatchdogSec=0
ExecStart=
ExecStart=/usr/bin/python3 -B /run/appliance/probe.py {STATE} {UNDECLARED}
StandardOutput=truncate:/run/probe.json
END
systemctl daemon-reload
systemctl start appliance-probe.service
cat /run/probe.json
rm -r appliance-probe.service appliance-probe.service.d /run/appliance/probe.py /run/probe.json
systemctl daemon-reload
"""
PERMITTED = {
    *(f"write {folder}" for folder in (STATE, "/run/appliance", "/dev/shm")),
    *("swap areas", "devices in sysfs", "lower its own priority", "credential"),
    # Children lock themselves in with these; @system-service of systemd 252 has neither.
    *("ask for seccomp", "ask for landlock"),
}
SEEN = {"other users' processes": "0 of others", "core dumps": "(0, 0)"}


@pytest.fixture(scope="module")
def outcomes(deployed: Guest) -> dict[str, str]:
    deployed.write("/run/appliance/probe.py", PROBE)
    found: dict[str, str] = json.loads(deployed.output(COPY))
    return found


def test_service_can_do_nothing_that_it_need_not(outcomes: dict[str, str]) -> None:
    forbidden = {what: how for what, how in outcomes.items() if what not in PERMITTED | SEEN.keys()}
    assert len(forbidden) > 40
    assert {what: how for what, how in forbidden.items() if not how.startswith("refused")} == {}


def test_service_can_do_what_it_needs(outcomes: dict[str, str]) -> None:
    assert {what: outcomes[what] for what in PERMITTED} == dict.fromkeys(PERMITTED, "allowed")


def test_service_sees_no_other_user_and_dumps_no_core(outcomes: dict[str, str]) -> None:
    assert {what: outcomes[what] for what in SEEN} == SEEN


def test_nothing_of_the_service_is_swapped_out(deployed: Guest) -> None:
    group = "/sys/fs/cgroup/system.slice/appliance.service"
    assert deployed.output(f"cat {group}/memory.swap.max") == "0"
