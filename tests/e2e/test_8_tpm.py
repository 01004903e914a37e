"""A volume that the server's own TPM opens, on a second guest that has one and gets the volume alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.guest import Guest, Hardware
from tests.e2e.playbook import DEVICE, STATE, Playbook
from tests.e2e.report import Scenario

PASSPHRASE = "correct horse battery staple, kept in a safe"
PLAY = Path(__file__).with_name("volume.yml")


@pytest.fixture(scope="module")
def with_tpm(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A second guest, its volume made by the role."""
    folder = tmp_path_factory.mktemp("tpm")
    hardware = Hardware(memory_mib=1536, tpm=True, disks={"data": "1G"})
    with Guest(scenario.image, folder / "guest", hardware) as guest:
        yield guest


def mounted(guest: Guest) -> bool:
    return guest.run(f"mountpoint -q {STATE}", check=False).code == 0


def settled(guest: Guest) -> None:
    """The boot is over: a volume that may be missing (nofail) is waited for by nobody, ssh included."""
    guest.run("timeout 150 systemctl is-system-running --wait", check=False)


def test_volume_is_made_for_the_tpm_and_a_passphrase(with_tpm: Guest, tmp_path: Path) -> None:
    variables: dict[str, object] = {
        "luks_volume_device": DEVICE,
        "luks_volume_unlock": "tpm2",
        "luks_volume_recovery_passphrase": PASSPHRASE,
    }
    played = Playbook(with_tpm, tmp_path).run(variables, file=PLAY).succeeded()
    assert PASSPHRASE not in played.output
    assert mounted(with_tpm)
    assert "systemd-tpm2" in with_tpm.output(f"cryptsetup luksDump {DEVICE}")
    again = Playbook(with_tpm, tmp_path).run(variables, file=PLAY).succeeded()
    assert again.changed == 0, again.output[-6000:]


def test_tpm_opens_the_volume_at_boot(with_tpm: Guest) -> None:
    with_tpm.run(f"echo kept >{STATE}/file && sync")
    with_tpm.reboot()
    settled(with_tpm)
    assert with_tpm.output(f"cat {STATE}/file") == "kept"


def test_another_tpm_does_not_open_it_and_the_passphrase_does(with_tpm: Guest) -> None:
    with_tpm.shut_down()
    with_tpm.forget_tpm()
    with_tpm.boot()
    settled(with_tpm)
    assert not mounted(with_tpm)
    with_tpm.run(f"cryptsetup open {DEVICE} recovered", text=PASSPHRASE)
    assert with_tpm.output("mount /dev/mapper/recovered /mnt && cat /mnt/file") == "kept"
