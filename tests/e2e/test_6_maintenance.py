"""What an operator changes over the years, and what goes wrong then: the data and the walls stay."""

import hashlib
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import report
from tests.e2e.client import Client, Load, Record
from tests.e2e.guest import Guest
from tests.e2e.playbook import GATEWAY, STATE, Playbook, Played, Variables
from tests.e2e.test_6_lifecycle import main_pid, wait

RELEASES = "/opt/appliance/releases"
OLDER = "appliance-0.0.1-000000000000-cpu-cp311-x86_64"
CREDENTIAL = "/etc/appliance/root.key.cred"


@dataclass(frozen=True)
class Inventory:
    """The right inventory of the guest, and the playbook with changes to it."""

    playbook: Playbook
    variables: Variables

    def play(self, **changes: object) -> Played:
        return self.playbook.run(self.variables | changes)


@pytest.fixture(scope="module")
def inventory(ansible: Playbook, variables: Variables) -> Inventory:
    return Inventory(ansible, variables)


@pytest.fixture(scope="module")
def next_archive(scenario: report.Scenario, folder: Path) -> Path:
    """Another release: the same software and one more file, so another digest and another name."""
    name, version, digest, *platform = scenario.archive.name.split("-")
    other = hashlib.sha256(digest.encode()).hexdigest()[:12]
    path = folder / "-".join([name, version, other, *platform])
    path.write_bytes(scenario.archive.read_bytes())
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("release-notes.txt"), io.BytesIO())
    return path


@pytest.fixture(scope="module")
def acknowledged(customer: Client) -> Mapping[str, Record]:
    """Photos from before anything was changed."""
    with Load(customer, "kept") as load:
        load.wait(4)
    return load.acknowledged


def served(guest: Guest) -> str:
    return guest.output("basename $(readlink /opt/appliance/current)")


def test_release_that_refuses_the_configuration_replaces_nothing(
    deployed: Guest, inventory: Inventory, customer: Client
) -> None:
    before = main_pid(deployed), deployed.output("sha256sum /etc/appliance/*.toml")
    played = inventory.play(appliance_settings={"search": {"colour": "blue"}})
    assert played.code != 0
    assert "search.colour" in played.output
    assert (main_pid(deployed), deployed.output("sha256sum /etc/appliance/*.toml")) == before
    assert customer.ready()


def test_interrupted_upgrade_leaves_the_old_release_serving(
    deployed: Guest,
    inventory: Inventory,
    customer: Client,
    acknowledged: Mapping[str, Record],
    next_archive: Path,
) -> None:
    before = main_pid(deployed), served(deployed)
    deployed.run(f"mkdir {RELEASES}/{OLDER} && touch {RELEASES}/{OLDER}/installed {RELEASES}/{OLDER}.tar")
    changed = inventory.variables | {"appliance_archive": str(next_archive)}
    inventory.playbook.interrupt(changed, "Make the release")
    assert (main_pid(deployed), served(deployed)) == before
    customer.assert_stored(acknowledged)


def test_upgrade_after_it_serves_what_was_stored_and_keeps_two_releases(
    deployed: Guest,
    inventory: Inventory,
    customer: Client,
    acknowledged: Mapping[str, Record],
    next_archive: Path,
) -> None:
    before, old = main_pid(deployed), served(deployed)
    inventory.play(appliance_archive=str(next_archive)).succeeded()
    assert served(deployed) == next_archive.stem
    assert main_pid(deployed) != before
    customer.assert_stored(acknowledged)
    folders = deployed.output(f"cd {RELEASES} && ls -d */").split()
    assert sorted(folders) == sorted([f"{old}/", f"{next_archive.stem}/"])


def test_client_that_is_taken_out_of_the_inventory_is_shut_out(
    deployed: Guest, inventory: Inventory, customer: Client, next_archive: Path
) -> None:
    residency = inventory.variables["appliance_residency"]
    assert isinstance(residency, dict)
    others = residency | {"clients": ["10.9.8.0/24"]}
    inventory.play(appliance_archive=str(next_archive), appliance_residency=others).succeeded()
    assert not customer.ready()
    rules = deployed.output("nft list table inet appliance")
    assert "10.9.8.0/24" in rules
    assert GATEWAY not in rules


def test_old_release_and_flushed_rules_come_back_with_the_next_run(
    deployed: Guest,
    inventory: Inventory,
    customer: Client,
    acknowledged: Mapping[str, Record],
    scenario: report.Scenario,
) -> None:
    deployed.run("nft flush ruleset")
    inventory.play().succeeded()
    assert served(deployed) == scenario.archive.stem
    assert GATEWAY in deployed.output("nft list table inet appliance")
    customer.wait_ready()
    customer.assert_stored(acknowledged)


def test_flushed_rules_alone_are_a_change_that_the_playbook_makes(
    deployed: Guest, inventory: Inventory
) -> None:
    before = main_pid(deployed)
    deployed.run("nft flush ruleset")
    assert inventory.play().succeeded().changed > 0
    assert GATEWAY in deployed.output("nft list table inet appliance")
    assert main_pid(deployed) == before


def test_without_its_key_it_neither_starts_nor_gets_a_new_one(
    deployed: Guest,
    inventory: Inventory,
    customer: Client,
    acknowledged: Mapping[str, Record],
) -> None:
    deployed.run(f"mv {CREDENTIAL} /root/kept.cred; systemctl restart appliance.service", check=False)
    try:
        assert not customer.ready()
        played = inventory.play()
        assert played.code != 0
        assert "set appliance_root_key to its key from your backup" in played.output
        assert deployed.run(f"test -e {CREDENTIAL}", check=False).code != 0
    finally:
        deployed.run(
            f"mv /root/kept.cred {CREDENTIAL}; systemctl reset-failed; systemctl restart appliance.service"
        )
    customer.wait_ready()
    customer.assert_stored(acknowledged)


def test_operator_without_a_daemon_is_told_to_start_it(deployed: Guest, customer: Client) -> None:
    deployed.run("systemctl stop appliance.service")
    try:
        told = deployed.run("appliance customer list", check=False)
        assert (told.code, told.out) == (69, "")
        assert "systemctl start appliance" in told.error
        assert deployed.output(f"find {STATE} ! -user appliance ! -name lost+found") == ""
    finally:
        deployed.run("systemctl start appliance.service")
    customer.wait_ready()


def test_full_volume_refuses_inserts_and_loses_nothing(
    deployed: Guest, customer: Client, acknowledged: Mapping[str, Record]
) -> None:
    filler = f"{STATE}/filler"
    deployed.run(f"dd if=/dev/zero of={filler} bs=1M status=none", check=False, seconds=1200)
    try:
        with Load(customer, "full") as load:
            wait("a refusal", lambda: any("507" in outcome for outcome in load.outcomes), 120)
        assert not load.wrong
        customer.assert_stored(dict(acknowledged) | load.acknowledged)  # reading goes on
    finally:
        deployed.run(f"rm -f {filler}")
    customer.wait_ready()
    customer.assert_stored(dict(acknowledged) | load.acknowledged)
    with Load(customer, "emptied", writers=1) as again:
        again.wait(1)
    assert not again.wrong
