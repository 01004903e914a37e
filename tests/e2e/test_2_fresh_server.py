"""What stops a deployment before anything is touched, and the check mode of a first one."""

import copy
from pathlib import Path

import pytest

from tests.e2e.guest import Guest
from tests.e2e.playbook import DEVICE, OCCUPIED, Playbook, Variables

LISTING = Path(__file__).with_name("listing.py").read_text()


def listed(guest: Guest) -> list[str]:
    return guest.python(LISTING, DEVICE, OCCUPIED).splitlines()


@pytest.fixture(scope="module")
def untouched(guest: Guest, ansible: Playbook) -> list[str]:
    """The server before the first playbook. Connecting once leaves what a connection leaves."""
    guest.run("sync")
    return listed(guest)


def refused(guest: Guest, ansible: Playbook, variables: Variables, untouched: list[str]) -> str:
    """What the playbook said when it stopped; fails when it did not, or had touched anything."""
    played = ansible.run(variables)
    assert played.code != 0, played.output[-3000:]
    assert_untouched(guest, untouched)
    assert played.changed == 0
    return played.output


def assert_untouched(guest: Guest, untouched: list[str]) -> None:
    now = listed(guest)
    assert sorted(set(now) ^ set(untouched)) == []


def test_without_a_residency_nothing_is_touched(
    guest: Guest, ansible: Playbook, variables: Variables, untouched: list[str]
) -> None:
    wrong = {name: value for name, value in variables.items() if name != "appliance_residency"}
    assert "appliance_residency" in refused(guest, ansible, wrong, untouched)


def test_in_a_country_outside_the_eu_nothing_is_touched(
    guest: Guest, ansible: Playbook, variables: Variables, untouched: list[str]
) -> None:
    wrong = copy.deepcopy(variables)
    assert isinstance(wrong["appliance_residency"], dict)
    wrong["appliance_residency"]["country"] = "US"
    said = refused(guest, ansible, wrong, untouched)
    assert "US" in said
    assert "country" in said


def test_on_a_device_that_holds_a_filesystem_nothing_is_touched(
    guest: Guest, ansible: Playbook, variables: Variables, untouched: list[str]
) -> None:
    said = refused(guest, ansible, variables | {"luks_volume_device": OCCUPIED}, untouched)
    assert OCCUPIED in said
    assert "ext4" in said
    assert guest.output(f"mount -o ro {OCCUPIED} /mnt && cat /mnt/file && umount /mnt") == "dear"


def test_on_a_server_with_a_plain_volume_nothing_is_touched(
    guest: Guest, ansible: Playbook, variables: Variables, untouched: list[str]
) -> None:
    """The operator says to have made the volume, and it is a plain filesystem."""
    wrong = {name: value for name, value in variables.items() if name != "luks_volume_device"}
    guest.run(f"mkdir -p /var/lib/appliance && mount -o ro {OCCUPIED} /var/lib/appliance")
    try:
        mounted = listed(guest)
        assert "LUKS" in refused(guest, ansible, wrong, mounted)
    finally:
        guest.run("umount /var/lib/appliance && rmdir /var/lib/appliance")


def test_without_any_volume_nothing_is_touched(guest: Guest, ansible: Playbook, variables: Variables) -> None:
    """No device is named and nothing is mounted: the state would lie on the root disk."""
    wrong = {name: value for name, value in variables.items() if name != "luks_volume_device"}
    assert "LUKS" in refused(guest, ansible, wrong, listed(guest))


def test_check_mode_foresees_changes_and_makes_none(
    guest: Guest, ansible: Playbook, variables: Variables
) -> None:
    before = listed(guest)
    played = ansible.run(variables, "--check", "--diff").succeeded()
    assert played.changed > 5
    assert_untouched(guest, before)
