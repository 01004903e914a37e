"""The playbook on a fresh server, and what stands there after it."""

import json

from tests.e2e.client import Client
from tests.e2e.guest import Guest
from tests.e2e.playbook import DEVICE, STATE, Playbook, Variables


def test_playbook_deploys_with_the_network_closed(deployed: Guest) -> None:
    assert (
        deployed.output("systemctl is-active appliance.service appliance-firewall.service")
        == "active\nactive"
    )


def test_second_run_changes_nothing(deployed: Guest, ansible: Playbook, variables: Variables) -> None:
    before = deployed.output("systemctl show --property=MainPID --value appliance.service")
    played = ansible.run(variables).succeeded()
    assert played.changed == 0, played.output[-6000:]
    assert deployed.output("systemctl show --property=MainPID --value appliance.service") == before


def test_check_mode_after_it_foresees_no_change(
    deployed: Guest, ansible: Playbook, variables: Variables
) -> None:
    played = ansible.run(variables, "--check").succeeded()
    assert played.changed == 0, played.output[-6000:]


def test_volume_is_luks2_and_mounted_as_it_should_be(deployed: Guest) -> None:
    assert "Version:       \t2" in deployed.output(f"cryptsetup luksDump {DEVICE}")
    source, kind, options = deployed.output(
        f"findmnt --noheadings --output SOURCE,FSTYPE,OPTIONS {STATE}"
    ).split()
    assert (source, kind) == ("/dev/mapper/appliance", "ext4")
    assert {"nodev", "nosuid", "noexec", "noatime"} <= set(options.split(","))
    assert deployed.output(f"stat -c '%U %a' {STATE}") == "appliance 700"


def test_status_sees_the_volume_and_finds_nothing_wrong(deployed: Guest) -> None:
    status = json.loads(deployed.output("appliance status --json"))
    assert status["profile"] == "production"
    assert status["state"] == "ready"
    assert status["findings"] == []
    assert (status["volume"]["mount"], status["volume"]["encryption"]) == (STATE, "luks")


def test_unit_runs_as_its_user_and_the_key_lies_nowhere_in_the_clear(deployed: Guest) -> None:
    show = deployed.output("systemctl show --property=User,NRestarts,Result,SubState appliance.service")
    assert set(show.splitlines()) == {"User=appliance", "NRestarts=0", "Result=success", "SubState=running"}
    listed = deployed.output("ls -l --time-style=+ /etc/appliance | awk 'NR>1 {print $NF, $1, $3, $4}'")
    modes = {line.split()[0]: line.split()[1:] for line in listed.splitlines()}
    assert modes["root.key.cred"] == ["-rw-------", "root", "root"]
    assert modes["tls.key"] == ["-rw-r-----", "root", "appliance"]
    assert modes["firewall.nft"] == ["-rw-------", "root", "root"]
    assert "root.key" not in modes


def test_no_software_came_from_elsewhere_than_the_archive(deployed: Guest) -> None:
    """Everything under /opt is root's and not writable by the service."""
    assert deployed.output("find /opt/appliance ! -user root -o -perm /022 ! -type l") == ""
    assert deployed.output("readlink /opt/appliance/current").startswith("releases/appliance-") or (
        deployed.output("readlink /opt/appliance/current").startswith("/opt/appliance/releases/appliance-")
    )


def test_ready_over_https_with_the_certificate_of_the_test_ca(anyone: Client) -> None:
    assert anyone.ready()
