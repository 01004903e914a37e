"""What the volume's role takes for an empty device, tried on loop devices that are read-only."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy.playing import Played, play

SIZE = 64 << 20
TOOLS = ("losetup", "cryptsetup", "mkfs.ext4", "mkswap", "blkid", "lsblk")
PASSPHRASE = b"twenty characters and more"
# A partition table of one Linux partition from sector 2048 on, as an MBR says it.
TABLE = bytes(446) + bytes([0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0]) + bytes(48) + b"\x55\xaa"


def run(*words: str | Path, text: bytes = b"") -> str:
    done = subprocess.run(words, input=text, capture_output=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr.decode()}"
    return done.stdout.decode().strip()


def luks(file: Path, label: str, *more: str) -> None:
    quick = ("--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--batch-mode", f"--label={label}", *more)
    run("cryptsetup", "luksFormat", *quick, "--key-file=-", file, text=PASSPHRASE)


def write(file: Path, offset: int, content: bytes = b"\x01") -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(content)


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Loop devices by what they hold."""
    if os.geteuid() != 0 or not all(map(shutil.which, TOOLS)):
        pytest.skip(f"needs root and {', '.join(TOOLS)}")
    folder = tmp_path_factory.mktemp("devices")
    kinds = ("empty", "ext4", "swap", "table", "begin", "end", "luks", "ours", "ours-other-key", "luks1")
    for kind in kinds:
        with (folder / kind).open("wb") as file:
            file.truncate(SIZE)
    run("mkfs.ext4", "-q", "-L", "photos", folder / "ext4")
    run("mkswap", folder / "swap")
    write(folder / "table", 0, TABLE)
    write(folder / "begin", 5 << 20)
    write(folder / "end", SIZE - 1)
    luks(folder / "luks", "backup")
    luks(folder / "ours", "appliance")
    luks(folder / "ours-other-key", "appliance")
    luks(folder / "luks1", "", "--type=luks1")
    attached: dict[str, str] = {}
    try:
        for kind in kinds:
            tried = subprocess.run(
                ["losetup", "--find", "--show", "--read-only", folder / kind],
                capture_output=True,
                text=True,
                check=False,
            )
            if tried.returncode:
                pytest.skip(f"there are no loop devices here: {tried.stderr}")
            attached[kind] = tried.stdout.strip()
        yield attached
    finally:
        for device in attached.values():
            subprocess.run(["losetup", "--detach", device], check=False)


@pytest.fixture(scope="module")
def examined(devices: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Played:
    """The role's examination of each, as of the only device of a server."""
    folder = tmp_path_factory.mktemp("examined")
    key = folder / "key"
    key.write_bytes(PASSPHRASE)
    wrong_key = folder / "wrong"
    wrong_key.write_bytes(b"x" * 64)
    file = folder / "file"
    file.touch()
    hosts = {
        kind: {"luks_volume_device": device, "luks_volume_key_file": str(folder / "none")}
        for kind, device in devices.items()
    }
    hosts["ours"]["luks_volume_key_file"] = str(key)
    hosts["ours-other-key"]["luks_volume_key_file"] = str(wrong_key)
    hosts["ours-no-key"] = hosts["ours"] | {"luks_volume_key_file": str(folder / "none")}
    hosts["file"] = {"luks_volume_device": str(file)}
    hosts["nothing"] = {"luks_volume_device": "/dev/disk/by-id/there-is-no-such-disk"}
    hosts["short"] = hosts["empty"] | {"luks_volume_recovery_passphrase": "qwertyuiop"}
    role = {"ansible.builtin.include_role": {"name": "luks_volume", "tasks_from": "examine"}}
    book = folder / "examine.yml"
    book.write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": [role]}]))
    return play(folder, {name: {**variables} for name, variables in hosts.items()}, book, "--forks=4")


@pytest.mark.parametrize("kind", ["empty", "ours"])
def test_an_empty_device_and_the_own_volume_are_taken(examined: Played, kind: str) -> None:
    assert examined.said_of(kind) == ""
    assert f"ok: [{kind}]" in examined.output
    assert examined.changed == {0}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("ext4", 'holds ext4 "photos"'),
        ("swap", "holds swap"),
        ("table", "partition table: dos"),
        ("begin", "holds data of no known kind"),
        ("end", "holds data of no known kind"),
        ("luks", 'holds crypto_LUKS "backup"'),
        ("luks1", "holds crypto_LUKS"),
    ],
)
def test_a_device_that_holds_anything_is_refused_with_what_it_is_and_what_to_do(
    devices: dict[str, str], examined: Played, kind: str, reason: str
) -> None:
    said = examined.said_of(kind)
    assert reason in said, examined.output[-9000:]
    assert devices[kind] in said
    assert f"wipefs --all {devices[kind]}; blkdiscard {devices[kind]}" in said


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("ours-other-key", "does not open"),
        ("ours-no-key", "is gone: restore it"),
        ("file", "is not a block device of this server"),
        ("nothing", "is not a block device of this server"),
        ("short", "luks_volume_recovery_passphrase is shorter than 20 characters"),
    ],
)
def test_what_would_fail_later_is_refused_now(examined: Played, kind: str, reason: str) -> None:
    assert reason in examined.said_of(kind), examined.output[-9000:]
