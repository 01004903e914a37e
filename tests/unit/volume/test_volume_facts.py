"""The walk from a path down to its devices, on made /proc and /sys trees and on this machine."""

import errno
import os
import struct
import uuid
from collections.abc import Iterable
from pathlib import Path

import pytest

from appliance.errors import StorageFailed
from appliance.volume import Encryption, facts, swaps
from appliance.volume.facts import mounted_within

LUKS = "CRYPT-LUKS2-0123456789abcdef0123456789abcdef-data"


class Machine:
    """A /proc and a /sys that say what a test wants; paths in them are real folders below `root`."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.sys = folder / "sys"
        self.root = folder / "root"
        self._lines: list[str] = []
        self._devices = 0
        self._btrfs: dict[Path, tuple[uuid.UUID, int]] = {}
        (self.proc / "self").mkdir(parents=True)
        self.root.mkdir()
        for name in ("dev/block", "class/block", "devices", "fs/btrfs"):
            (self.sys / name).mkdir(parents=True)
        self.mount("/", "rootfs", "0:1")

    def mount(
        self,
        folder: str | Path,
        filesystem: str,
        device: str,
        *,
        parent: int = 1,
        options: str = "rw",
        above: str = "rw",
    ) -> int:
        """Add a mount under the mount `parent`; the number of the new one."""
        number = len(self._lines) + 1
        escaped = str(folder).replace("\\", r"\134").replace(" ", r"\040")
        if number == 1:
            parent = 0
        self._lines.append(
            f"{number} {parent} {device} / {escaped} {options} shared:1 - {filesystem} source {above}"
        )
        (self.proc / "self/mountinfo").write_text("\n".join(self._lines) + "\n")
        return number

    def device(
        self, name: str, *, uuid: str = "", slaves: Iterable[str] = (), within: str = "", backing: str = ""
    ) -> str:
        """Add a block device; its MAJOR:MINOR. `within`: the disk it is a partition of."""
        self._devices += 1
        number = f"8:{self._devices}"
        entry = self.sys / "devices" / within / name
        (entry / "slaves").mkdir(parents=True)
        for slave in slaves:
            (entry / "slaves" / slave).symlink_to((self.sys / "class/block" / slave).resolve())
        if within:
            (entry / "partition").write_text("1\n")
        if uuid:
            (entry / "dm").mkdir()
            (entry / "dm/uuid").write_text(uuid + "\n")
            (entry / "dm/name").write_text(f"mapper-{name}\n")
        if backing:
            (entry / "loop").mkdir()
            (entry / "loop/backing_file").write_text(backing + "\n")
        (self.sys / "class/block" / name).symlink_to(entry)
        (self.sys / "dev/block" / number).symlink_to(entry)
        return number

    def volume(self, device: str, filesystem: str = "ext4") -> Path:
        """A folder on which `device` is mounted."""
        folder = self.root / f"volume-{device.replace(':', '-')}"
        folder.mkdir()
        self.mount(folder, filesystem, device)
        return folder

    def btrfs(self, *members: str, missing: int = 0) -> Path:
        """A folder on which a btrfs over these devices is mounted; sysfs hides those that are missing."""
        fsid = uuid.uuid4()
        folder = self.volume(f"0:{100 + len(self._btrfs)}", "btrfs")
        self._btrfs[folder] = (fsid, len(members) + missing)
        devices = self.sys / "fs/btrfs" / str(fsid) / "devices"
        devices.mkdir(parents=True)
        for member in members:
            (devices / member).symlink_to(self.sys / "devices" / member)
        return folder

    def ioctl(self, fd: int, request: int, answer: bytearray) -> int:
        """What a btrfs says to BTRFS_IOC_FS_INFO on the descriptor of a folder, and any other filesystem."""
        at = Path(f"/proc/self/fd/{fd}").readlink()
        for folder, (fsid, devices) in self._btrfs.items():
            if at.is_relative_to(folder):
                assert request == 2 << 30 | len(answer) << 16 | 0x94 << 8 | 31  # _IOR(0x94, 31, 1024 bytes)
                struct.pack_into("=QQ16s", answer, 0, devices, devices, fsid.bytes)
                return 0
        raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")

    def encryption(self, path: Path) -> Encryption:
        return facts(path, proc=self.proc, sys=self.sys, ioctl=self.ioctl).encryption

    def swap(self, *names: str) -> list[Encryption]:
        lines = ["Filename Type Size Used Priority", *(f"{name} partition 1 0 -2" for name in names)]
        (self.proc / "swaps").write_text("\n".join(lines) + "\n")
        found = swaps(proc=self.proc, sys=self.sys, ioctl=self.ioctl)
        assert [item.name for item in found] == [name.replace(r"\040", " ") for name in names]
        return [item.encryption for item in found]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_plain_disk_and_a_plain_partition(machine: Machine) -> None:
    assert machine.encryption(machine.volume(machine.device("vda"))) == "plain"
    assert machine.encryption(machine.volume(machine.device("vda1", within="vda"))) == "plain"


@pytest.mark.parametrize("version", ["LUKS1", "LUKS2"])
def test_luks_on_a_partition(machine: Machine, version: str) -> None:
    machine.device("sda")
    machine.device("sda2", within="sda")
    crypt = machine.device("dm-0", uuid=LUKS.replace("LUKS2", version), slaves=["sda2"])
    assert machine.encryption(machine.volume(crypt)) == "luks"


def test_a_partition_of_a_luks_mapped_disk(machine: Machine) -> None:
    machine.device("dm-0", uuid=LUKS)
    assert machine.encryption(machine.volume(machine.device("dm-0p1", within="dm-0"))) == "luks"


def test_lvm_on_luks(machine: Machine) -> None:
    machine.device("sda")
    machine.device("dm-0", uuid=LUKS, slaves=["sda"])
    volume = machine.device("dm-1", uuid="LVM-abc", slaves=["dm-0"])
    assert machine.encryption(machine.volume(volume)) == "luks"


def test_luks_on_lvm_on_md(machine: Machine) -> None:
    machine.device("sda")
    machine.device("sdb")
    machine.device("md0", slaves=["sda", "sdb"])
    machine.device("dm-0", uuid="LVM-abc", slaves=["md0"])
    assert machine.encryption(machine.volume(machine.device("dm-1", uuid=LUKS, slaves=["dm-0"]))) == "luks"


def test_every_member_of_an_array_counts(machine: Machine) -> None:
    machine.device("sda")
    machine.device("sdb")
    machine.device("dm-0", uuid=LUKS, slaves=["sda"])
    machine.device("dm-1", uuid=LUKS, slaves=["sdb"])
    whole = machine.device("md0", slaves=["dm-0", "dm-1"])
    half = machine.device("md1", slaves=["dm-0", "sdb"])
    assert machine.encryption(machine.volume(whole)) == "luks"
    assert machine.encryption(machine.volume(half)) == "plain"


def test_lvm_across_luks_and_a_plain_disk(machine: Machine) -> None:
    machine.device("sda")
    machine.device("dm-0", uuid=LUKS)
    assert machine.encryption(
        machine.volume(machine.device("dm-1", uuid="LVM-x", slaves=["dm-0", "sda"]))
    ) == ("plain")


@pytest.mark.parametrize(
    ("uuid", "verdict"),
    [
        ("CRYPT-INTEGRITY-0123456789abcdef0123456789abcdef-x", "plain"),
        ("CRYPT-VERITY-0123456789abcdef0123456789abcdef-x", "plain"),
        ("CRYPT-LUKS2-OPAL-0123456789abcdef0123456789abcdef-x", "unknown"),
        ("CRYPT-PLAIN-x", "dm-crypt"),
        ("LVM-CRYPT-LUKS2-0123456789abcdef0123456789abcdef-x", "plain"),
        ("mpath-x", "plain"),
    ],
)
def test_other_mappings_do_not_pass_for_luks(machine: Machine, uuid: str, verdict: Encryption) -> None:
    machine.device("sda")
    assert machine.encryption(machine.volume(machine.device("dm-0", uuid=uuid, slaves=["sda"]))) == verdict


def test_a_loop_file_is_as_safe_as_the_volume_it_lies_on(machine: Machine) -> None:
    machine.device("sda")
    safe = machine.volume(machine.device("dm-0", uuid=LUKS, slaves=["sda"]))
    plain = machine.volume(machine.device("sdb"))
    for folder, verdict in ((safe, "luks"), (plain, "plain")):
        image = folder / "disk.img"
        image.touch()
        loop = machine.device(f"loop-{verdict}", backing=str(image))
        assert machine.encryption(machine.volume(loop)) == verdict


def test_a_deleted_loop_file_is_unknown(machine: Machine) -> None:
    loop = machine.device("loop0", backing="/nowhere/disk.img (deleted)")
    assert machine.encryption(machine.volume(loop)) == "unknown"


def test_a_loop_file_that_this_process_may_not_see_is_unknown(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, exists = Path("/root/disk.img"), Path.exists

    def refusing(path: Path) -> bool:
        if path == hidden:
            raise PermissionError(13, "Permission denied")
        return exists(path)

    monkeypatch.setattr(Path, "exists", refusing)
    loop = machine.device("loop0", backing=str(hidden))
    assert machine.encryption(machine.volume(loop)) == "unknown"


def test_a_loop_that_holds_itself_ends(machine: Machine) -> None:
    folder = machine.root / "knot"
    folder.mkdir()
    (folder / "disk.img").touch()
    machine.mount(folder, "ext4", machine.device("loop0", backing=str(folder / "disk.img")))
    assert machine.encryption(folder) == "unknown"


def test_an_overlay_is_as_safe_as_its_upper_folder(machine: Machine) -> None:
    upper = machine.volume(machine.device("dm-0", uuid=LUKS)) / "upper"
    upper.mkdir()
    merged, lost = machine.root / "merged", machine.root / "lost"
    merged.mkdir()
    lost.mkdir()
    machine.mount(merged, "overlay", "0:50", above=f"rw,lowerdir=/a,upperdir={upper},workdir=/w")
    machine.mount(lost, "overlay", "0:51", above="rw,lowerdir=/a,upperdir=/var/lib/other-namespace")
    assert machine.encryption(merged) == "luks"
    assert machine.encryption(lost) == "unknown"


def test_every_device_of_a_btrfs_counts(machine: Machine) -> None:
    machine.device("sda")
    machine.device("dm-0", uuid=LUKS)
    machine.device("dm-1", uuid=LUKS.replace("0", "1"))
    assert machine.encryption(machine.btrfs("dm-0")) == "luks"
    assert machine.encryption(machine.btrfs("dm-0", "dm-1") / "not-there-yet") == "luks"
    assert machine.encryption(machine.btrfs("dm-0", "sda")) == "plain"


def test_a_partition_and_a_volume_as_devices_of_a_btrfs(machine: Machine) -> None:
    machine.device("dm-0", uuid=LUKS)
    machine.device("dm-1", uuid="LVM-abc", slaves=["dm-0"])
    machine.device("dm-2", uuid=LUKS)
    assert machine.encryption(machine.btrfs("dm-1", "dm-2")) == "luks"
    machine.device("sda")
    machine.device("dm-3", uuid="LVM-def", slaves=["sda", "dm-0"])
    assert machine.encryption(machine.btrfs("dm-3", "dm-2")) == "plain"


def test_a_missing_device_of_a_btrfs_is_unknown(machine: Machine) -> None:
    machine.device("sda")
    machine.device("dm-0", uuid=LUKS)
    assert machine.encryption(machine.btrfs("dm-0", missing=1)) == "unknown"
    assert machine.encryption(machine.btrfs("dm-0", "gone")) == "unknown"
    assert machine.encryption(machine.btrfs("sda", missing=1)) == "plain"
    assert machine.encryption(machine.btrfs()) == "unknown"


def test_a_btrfs_that_sysfs_does_not_show_or_that_gives_no_answer_is_unknown(machine: Machine) -> None:
    machine.device("dm-0", uuid=LUKS)
    hidden = machine.btrfs("dm-0")
    assert machine.encryption(hidden) == "luks"
    (next((machine.sys / "fs/btrfs").iterdir()) / "devices").rename(machine.sys / "elsewhere")
    assert machine.encryption(hidden) == "unknown"
    assert machine.encryption(machine.volume("0:99", "btrfs")) == "unknown"


def test_files_on_a_btrfs(machine: Machine) -> None:
    machine.device("sda")
    machine.device("dm-0", uuid=LUKS)
    safe, plain = machine.btrfs("dm-0"), machine.btrfs("sda")
    for folder in (safe, plain):
        (folder / "swapfile").touch()
        (folder / "upper").mkdir()
    assert machine.swap(str(safe / "swapfile"), str(plain / "swapfile")) == ["luks", "plain"]
    for upper, verdict in ((safe / "upper", "luks"), (plain / "upper", "plain")):
        merged = machine.root / verdict
        merged.mkdir()
        machine.mount(merged, "overlay", f"0:5{len(verdict)}", above=f"rw,lowerdir=/a,upperdir={upper}")
        assert machine.encryption(merged) == verdict


def test_memory_is_volatile(machine: Machine) -> None:
    assert machine.encryption(machine.volume("0:60", "tmpfs")) == "volatile"
    assert machine.encryption(machine.volume(machine.device("zram1"))) == "volatile"


@pytest.mark.parametrize("filesystem", ["nfs4", "zfs", "fuse.sshfs", "9p", "btrfs"])
def test_what_the_walk_cannot_judge_is_unknown(machine: Machine, filesystem: str) -> None:
    assert machine.encryption(machine.volume("0:70", filesystem)) == "unknown"


def test_a_device_hidden_from_sysfs_is_unknown(machine: Machine) -> None:
    assert machine.encryption(machine.volume("8:99")) == "unknown"


def test_the_deepest_mount_counts(machine: Machine) -> None:
    outer = machine.volume(machine.device("dm-0", uuid=LUKS))
    inner = outer / "inner"
    inner.mkdir()
    machine.mount(inner, "ext4", machine.device("sdb"), parent=2)
    assert machine.encryption(outer) == "luks"
    assert machine.encryption(inner / "not-there-yet") == "plain"
    beside = outer / "inner-two"
    beside.mkdir()
    assert machine.encryption(beside) == "luks"


def test_a_later_mount_covers_earlier_ones(machine: Machine) -> None:
    folder = machine.root / "data"
    (folder / "state").mkdir(parents=True)
    lower = machine.mount(folder, "ext4", machine.device("sda"))
    machine.mount(folder / "state", "ext4", machine.device("sdb"), parent=lower)
    machine.mount(folder, "ext4", machine.device("dm-0", uuid=LUKS), parent=lower)
    assert machine.encryption(folder) == "luks"
    assert machine.encryption(folder / "state") == "luks"


def test_mounts_within_a_folder(machine: Machine) -> None:
    outer = machine.volume(machine.device("dm-0", uuid=LUKS))
    inner, beside = outer / "in side", machine.root / (outer.name + "-two")
    for folder in (inner, beside):
        folder.mkdir()
        machine.mount(folder, "ext4", machine.device(f"sd-{folder.name}"), parent=2)
    link = machine.root / "link"
    link.symlink_to(outer)
    for path in (outer, link):
        assert mounted_within(path, proc=machine.proc) == [str(inner)]
    assert mounted_within(inner, proc=machine.proc) == []


def test_names_with_spaces_and_links(machine: Machine) -> None:
    folder = machine.root / "my data\\here"
    folder.mkdir()
    machine.mount(folder, "ext4", machine.device("dm-0", uuid=LUKS))
    link = machine.root / "link"
    link.symlink_to(folder)
    assert machine.encryption(link) == "luks"


@pytest.mark.parametrize(("options", "above"), [("ro,nosuid", "rw"), ("rw", "ro,errors=remount-ro")])
def test_read_only_by_mount_or_by_filesystem(machine: Machine, options: str, above: str) -> None:
    folder = machine.root / "fixed"
    folder.mkdir()
    machine.mount(folder, "ext4", machine.device("sda"), options=options, above=above)
    assert facts(folder, proc=machine.proc, sys=machine.sys).read_only
    assert not facts(machine.root, proc=machine.proc, sys=machine.sys).read_only


def test_swap_devices(machine: Machine) -> None:
    machine.device("sda1", within="sda")
    machine.device("dm-0", uuid="CRYPT-PLAIN-swap", slaves=["sda1"])
    machine.device("dm-1", uuid=LUKS, slaves=["sda1"])
    machine.device("zram0")
    assert machine.swap() == []
    assert machine.swap("/dev/sda1", "/dev/dm-0", "/dev/mapper/mapper-dm-1", "/dev/zram0", "/dev/gone") == [
        "plain",
        "dm-crypt",
        "luks",
        "volatile",
        "unknown",
    ]


def test_zram_that_writes_back_is_judged_by_its_disk(machine: Machine) -> None:
    machine.device("sda")
    machine.device("zram0")
    backing = machine.sys / "devices/zram0/backing_dev"
    backing.write_text("/dev/sda\n")
    assert machine.swap("/dev/zram0") == ["plain"]
    backing.write_text("none\n")
    assert machine.swap("/dev/zram0") == ["volatile"]


def test_swap_files(machine: Machine) -> None:
    safe = machine.volume(machine.device("dm-0", uuid=LUKS)) / "swap file"
    plain = machine.volume(machine.device("sda")) / "swapfile"
    for file in (safe, plain):
        file.touch()
    assert machine.swap(str(safe).replace(" ", r"\040"), str(plain)) == ["luks", "plain"]


def test_swap_that_cannot_be_listed_is_not_no_swap(machine: Machine) -> None:
    with pytest.raises(StorageFailed, match="swap areas cannot be listed"):
        swaps(proc=machine.proc, sys=machine.sys)


def test_a_path_that_cannot_be_examined(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="File name too long"):
        facts(tmp_path / ("x" * 300))


def test_this_machine(tmp_path: Path) -> None:
    found = facts(tmp_path)
    space = os.statvfs(tmp_path)
    assert tmp_path.is_relative_to(found.mount)
    assert found.mount.is_mount()
    assert found.total_bytes == space.f_blocks * space.f_frsize
    assert not found.read_only
    assert found.encryption in {"luks", "plain", "volatile", "unknown"}
    assert len(swaps()) == len(Path("/proc/swaps").read_text().splitlines()) - 1


def test_this_machines_memory() -> None:
    assert facts(Path("/dev/shm")).encryption == "volatile"
    assert facts(Path("/proc/self")).encryption == "unknown"


def test_the_luks_headers_that_a_volume_lies_on_are_named(machine: Machine) -> None:
    other = LUKS.replace("0123", "ffff")
    machine.device("dm-0", uuid=LUKS)
    machine.device("dm-1", uuid=other)
    array = machine.volume(machine.device("md0", slaves=["dm-0", "dm-1"]))
    found = facts(array, proc=machine.proc, sys=machine.sys, ioctl=machine.ioctl)
    assert found.luks == (
        "01234567-89ab-cdef-0123-456789abcdef",
        "ffff4567-89ab-cdef-ffff-456789abcdef",
    )
    plain = machine.volume(machine.device("vda"))
    assert facts(plain, proc=machine.proc, sys=machine.sys, ioctl=machine.ioctl).luks == ()
