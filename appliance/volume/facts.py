"""Facts of the volume that data lies on: its mount, its space, and whether all below it is encrypted."""

import fcntl
import os
import re
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from appliance.errors import StorageFailed

# luks: every device below is a LUKS mapping; dm-crypt: encrypted without LUKS (swap under a random key);
# volatile: RAM; unknown: a filesystem or device this walk cannot judge, such as NFS, ZFS or a missing disk.
Encryption = Literal["luks", "dm-crypt", "plain", "volatile", "unknown"]

_PROC = Path("/proc")
_SYS = Path("/sys")

# cryptsetup names a mapping CRYPT-<type>-<uuid without dashes>-<name>. LUKS2-OPAL (encryption by the drive,
# which nobody can see from here) must not pass for LUKS2.
_LUKS_MAPPING = re.compile(r"CRYPT-LUKS[12]-([0-9a-f]{32})-")
_WORST_FIRST: tuple[Encryption, ...] = ("plain", "unknown", "volatile", "dm-crypt", "luks")
_MAX_DEPTH = 16

# btrfs has no block device of its own: it is asked for its id, which needs no privilege (BTRFS_IOC_FS_INFO;
# the 1024 bytes of struct btrfs_ioctl_fs_info_args begin with max_id, num_devices and fsid).
_BTRFS_FS_INFO = 0x8400941F
_BTRFS_FS_INFO_BYTES = 1024
_BTRFS_FS_INFO_HEAD = struct.Struct("=QQ16s")

Ioctl = Callable[[int, int, bytearray], object]
"""fcntl.ioctl with a buffer that it fills."""
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """The mounted filesystem that a path lies on; `mount` is where it is mounted."""

    mount: Path
    filesystem: str
    encryption: Encryption
    read_only: bool
    free_bytes: int  # for an unprivileged writer
    total_bytes: int
    free_inodes: int
    luks: tuple[str, ...] = ()  # the UUIDs of the LUKS headers that it lies on, sorted


@dataclass(frozen=True, slots=True)
class SwapFacts:
    """One active swap area: a device or a file."""

    name: str
    encryption: Encryption


@dataclass(frozen=True, slots=True)
class _Mount:
    number: int
    parent: int
    device: str  # MAJOR:MINOR
    folder: str
    options: frozenset[str]
    filesystem: str
    super_options: tuple[str, ...]


def facts(path: Path, *, proc: Path = _PROC, sys: Path = _SYS, ioctl: Ioctl = fcntl.ioctl) -> VolumeFacts:
    """The volume of `path`, or of its nearest ancestor that exists; needs no privileges, reads no device.

    Encryption is told from sysfs: through partitions, loop files, LVM, md and btrfs, where every member must
    be encrypted. Raises StorageFailed when the path cannot be examined.
    """
    try:
        while not path.exists() and path != path.parent:
            path = path.parent
        real = os.path.realpath(path)
        space = os.statvfs(real)
        mount = _mount_of(real, _mounts(proc))
        walk = _Walk(proc, sys, ioctl)
        encryption = walk.mount(mount, real)
        return VolumeFacts(
            mount=Path(mount.folder),
            filesystem=mount.filesystem,
            encryption=encryption,
            read_only=bool(space.f_flag & os.ST_RDONLY) or "ro" in mount.options | {*mount.super_options},
            free_bytes=space.f_bavail * space.f_frsize,
            total_bytes=space.f_blocks * space.f_frsize,
            free_inodes=space.f_favail,
            luks=tuple(sorted(walk.mappings)),
        )
    except OSError as error:
        raise StorageFailed(f"{path}: {error.strerror}: {error.filename or path}") from error


def swaps(*, proc: Path = _PROC, sys: Path = _SYS, ioctl: Ioctl = fcntl.ioctl) -> list[SwapFacts]:
    """Every active swap area. Raises StorageFailed when they cannot be listed (ProcSubset=pid hides them)."""
    try:
        lines = (proc / "swaps").read_text("utf-8", "surrogateescape").splitlines()[1:]
        walk = _Walk(proc, sys, ioctl)
        return [SwapFacts(name, walk.swap(name)) for name in (_unescape(line.split()[0]) for line in lines)]
    except OSError as error:
        raise StorageFailed(f"swap areas cannot be listed: {error.strerror}: {error.filename}") from error


def mounted_within(path: Path, *, proc: Path = _PROC) -> list[str]:
    """Where other mounts lie below the folder `path`, which must exist. Raises OSError."""
    real = os.path.realpath(path, strict=True)
    return [mount.folder for mount in _mounts(proc) if mount.folder != real and _covers(real, mount.folder)]


class _Walk:
    """From a mount down to the devices that hold its bytes; `mappings` are the LUKS UUIDs met on the way."""

    def __init__(self, proc: Path, sys: Path, ioctl: Ioctl) -> None:
        self._proc = proc
        self._sys = sys
        self._ioctl = ioctl
        self.mappings: set[str] = set()

    def mount(self, mount: _Mount, path: str, depth: int = 0) -> Encryption:
        """Of the filesystem mounted there; `path` lies on it and has no symbolic links."""
        if mount.filesystem in {"tmpfs", "ramfs"}:
            return "volatile"
        if mount.filesystem == "overlay":
            upper = next((o[9:] for o in mount.super_options if o.startswith("upperdir=")), "")
            return self.file(_unescape(upper), depth + 1)
        if mount.filesystem == "btrfs":
            return self.btrfs(mount, path, depth)
        if mount.device.startswith("0:"):
            return "unknown"
        return self.device(self._sys / "dev/block" / mount.device, depth)

    def file(self, path: str, depth: int) -> Encryption:
        """Of the volume that holds a loop file, a swap file or an overlay's upper folder."""
        # A relative or vanished path belongs to another mount namespace or was deleted.
        if depth > _MAX_DEPTH or not path.startswith("/") or not _seen(path):
            return "unknown"
        real = os.path.realpath(path)
        return self.mount(_mount_of(real, _mounts(self._proc)), real, depth)

    def btrfs(self, mount: _Mount, path: str, depth: int) -> Encryption:
        """Of all devices of a btrfs; one that is missing may come back as anything."""
        if (found := self._btrfs_info(mount, path)) is None:
            return "unknown"
        count, name = found
        try:
            members = sorted((self._sys / "fs/btrfs" / name / "devices").iterdir())
        except OSError:
            return "unknown"
        verdicts = {self.device(member, depth + 1) for member in members}
        if len(members) < max(count, 1):
            verdicts.add("unknown")
        return _worst(verdicts)

    def _btrfs_info(self, mount: _Mount, path: str) -> tuple[int, str] | None:
        """The number of devices and the name in sysfs, asked of the nearest folder that may be read."""
        for folder in (Path(path), *Path(path).parents):
            if not _covers(mount.folder, str(folder)):
                break
            answer = bytearray(_BTRFS_FS_INFO_BYTES)
            try:
                fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:  # a file, or a folder of somebody else
                continue
            try:
                self._ioctl(fd, _BTRFS_FS_INFO, answer)
            except OSError:
                return None
            finally:
                os.close(fd)
            _, count, fsid = _BTRFS_FS_INFO_HEAD.unpack_from(answer)
            return count, str(uuid.UUID(bytes=fsid))
        return None

    def device(self, entry: Path, depth: int) -> Encryption:
        """Of a block device, by its folder in sysfs."""
        if depth > _MAX_DEPTH or not entry.exists():
            return "unknown"
        entry = entry.resolve()
        mapping = _text(entry / "dm/uuid")
        if (found := _LUKS_MAPPING.match(mapping)) is not None:
            self.mappings.add(str(uuid.UUID(found[1])))
            return "luks"
        if mapping.startswith("CRYPT-PLAIN-"):
            return "dm-crypt"
        if "OPAL" in mapping:
            return "unknown"
        if (entry / "partition").exists():
            return self.device(entry.parent, depth + 1)
        backing = _text(entry / "loop/backing_file")
        if backing:
            return self.file(backing, depth + 1)
        if entry.name.startswith("zram"):
            written_to = _text(entry / "backing_dev")
            return "volatile" if written_to in {"", "none"} else self.node(written_to, depth + 1)
        if entry.name.startswith("ram"):
            return "volatile"
        members = sorted((entry / "slaves").iterdir()) if (entry / "slaves").is_dir() else []
        return _worst({self.device(member, depth + 1) for member in members})

    def node(self, path: str, depth: int) -> Encryption:
        """Of a block device, by its name under /dev; the node itself may be hidden (PrivateDevices=)."""
        name = os.path.realpath(path).rpartition("/")[2]
        found = self._sys / "class/block" / name
        return self.device(found, depth) if found.exists() else self._mapper(path, depth)

    def _mapper(self, path: str, depth: int) -> Encryption:
        wanted = path.removeprefix("/dev/mapper/")
        for entry in sorted((self._sys / "class/block").glob("dm-*")):
            if _text(entry / "dm/name") == wanted:
                return self.device(entry, depth)
        return "unknown"

    def swap(self, name: str) -> Encryption:
        if name.startswith("/dev/"):
            return self.node(name, 0)
        return self.file(name, 0)


def _worst(verdicts: set[Encryption]) -> Encryption:
    return next((verdict for verdict in _WORST_FIRST if verdict in verdicts), "plain")


def _mounts(proc: Path) -> list[_Mount]:
    """The mounts this process sees; fields of /proc/self/mountinfo as in proc_pid_mountinfo(5)."""
    found = []
    for line in (proc / "self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        number, parent, device, _root, folder, options, *_ = left.split(" ")
        filesystem, _source, super_options = right.split(" ", 2)
        found.append(
            _Mount(
                number=int(number),
                parent=int(parent),
                device=device,
                folder=_unescape(folder),
                options=frozenset(options.split(",")),
                filesystem=filesystem,
                super_options=tuple(super_options.split(",")),
            )
        )
    return found


def _mount_of(path: str, mounts: list[_Mount]) -> _Mount:
    """The mount that the kernel reaches when it walks to `path`: from the root, child by child.

    The longest matching folder would be wrong where a later mount covers an earlier, deeper one.
    """
    numbers = {mount.number for mount in mounts}
    on_path = [mount for mount in mounts if _covers(mount.folder, path)]
    reached: _Mount | None = None
    children = [mount for mount in on_path if mount.parent not in numbers or mount.parent == mount.number]
    while children:
        reached = min(children, key=lambda mount: len(mount.folder))  # the folder that the walk meets first
        children = [m for m in on_path if m.parent == reached.number and m.number != reached.number]
    if reached is None:
        raise StorageFailed(f"{path} lies on no mount of this process")
    return reached


def _covers(folder: str, path: str) -> bool:
    return folder in {"/", path} or path.startswith(folder + "/")


def _seen(path: str) -> bool:
    """Whether there is such a file, and this process may know it."""
    try:
        return Path(path).exists()
    except PermissionError:
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "surrogateescape").rstrip("\n")
    except OSError:
        return ""


def _unescape(text: str) -> str:
    """The kernel writes space, tab, newline and backslash as three octal digits."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
