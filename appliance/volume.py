"""Facts of the volume that data lies on, and durable changes to files and folders on it."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from appliance.errors import StorageFailed

# luks: every device below is a LUKS mapping; dm-crypt: encrypted without LUKS (swap under a random key);
# volatile: RAM; unknown: a filesystem or device this walk cannot judge, such as NFS, ZFS or btrfs.
Encryption = Literal["luks", "dm-crypt", "plain", "volatile", "unknown"]

_PROC = Path("/proc")
_SYS = Path("/sys")

# cryptsetup names a mapping CRYPT-<type>-<uuid without dashes>-<name>. LUKS2-OPAL (encryption by the drive,
# which nobody can see from here) must not pass for LUKS2.
_LUKS_MAPPING = re.compile(r"CRYPT-LUKS[12]-[0-9a-f]{32}-")
_WORST_FIRST: tuple[Encryption, ...] = ("plain", "unknown", "volatile", "dm-crypt", "luks")
_MAX_DEPTH = 16
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


def facts(path: Path, *, proc: Path = _PROC, sys: Path = _SYS) -> VolumeFacts:
    """The volume of `path`, or of its nearest ancestor that exists; needs no privileges, reads no device.

    Encryption is told from sysfs: through partitions, loop files, LVM and md, where every member must be
    encrypted. Raises StorageFailed when the path cannot be examined.
    """
    while not path.exists() and path != path.parent:
        path = path.parent
    real = os.path.realpath(path)
    try:
        space = os.statvfs(real)
        mount = _mount_of(real, _mounts(proc))
        return VolumeFacts(
            mount=Path(mount.folder),
            filesystem=mount.filesystem,
            encryption=_Walk(proc, sys).mount(mount),
            read_only=bool(space.f_flag & os.ST_RDONLY) or "ro" in mount.options | {*mount.super_options},
            free_bytes=space.f_bavail * space.f_frsize,
            total_bytes=space.f_blocks * space.f_frsize,
            free_inodes=space.f_favail,
        )
    except OSError as error:
        raise StorageFailed(f"{path}: {error.strerror}: {error.filename or real}") from error


def swaps(*, proc: Path = _PROC, sys: Path = _SYS) -> list[SwapFacts]:
    """Every active swap area. Raises StorageFailed when they cannot be listed (ProcSubset=pid hides them)."""
    try:
        lines = (proc / "swaps").read_text("utf-8", "surrogateescape").splitlines()[1:]
        walk = _Walk(proc, sys)
        return [SwapFacts(name, walk.swap(name)) for name in (_unescape(line.split()[0]) for line in lines)]
    except OSError as error:
        raise StorageFailed(f"swap areas cannot be listed: {error.strerror}: {error.filename}") from error


class _Walk:
    """From a mount down to the devices that hold its bytes."""

    def __init__(self, proc: Path, sys: Path) -> None:
        self._proc = proc
        self._sys = sys

    def mount(self, mount: _Mount, depth: int = 0) -> Encryption:
        if mount.filesystem in {"tmpfs", "ramfs"}:
            return "volatile"
        if mount.filesystem == "overlay":
            upper = next((o[9:] for o in mount.super_options if o.startswith("upperdir=")), "")
            return self.file(_unescape(upper), depth + 1)
        if mount.device.startswith("0:"):
            return "unknown"
        return self.device(self._sys / "dev/block" / mount.device, depth)

    def file(self, path: str, depth: int) -> Encryption:
        """Of the volume that holds a loop file, a swap file or an overlay's upper folder."""
        # A relative or vanished path belongs to another mount namespace or was deleted.
        if depth > _MAX_DEPTH or not path.startswith("/") or not Path(path).exists():
            return "unknown"
        return self.mount(_mount_of(os.path.realpath(path), _mounts(self._proc)), depth)

    def device(self, entry: Path, depth: int) -> Encryption:
        """Of a block device, by its folder in sysfs."""
        if depth > _MAX_DEPTH or not entry.exists():
            return "unknown"
        entry = entry.resolve()
        mapping = _text(entry / "dm/uuid")
        if _LUKS_MAPPING.match(mapping):
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
        verdicts = {self.device(member, depth + 1) for member in members}
        return next((verdict for verdict in _WORST_FIRST if verdict in verdicts), "plain")

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


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "surrogateescape").rstrip("\n")
    except OSError:
        return ""


def _unescape(text: str) -> str:
    """The kernel writes space, tab, newline and backslash as three octal digits."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace the content of `path`: after a crash there is the old content or the new, never a mixture.

    Durable on return. Raises StorageFailed, which leaves the old content.
    """
    draft = path.with_name(f".{path.name}.{os.urandom(6).hex()}.draft")
    with _failing_as_storage(path):
        try:
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            try:
                os.fchmod(fd, mode)  # whatever the umask is
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(fd, rest) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            draft.replace(path)
        except BaseException:
            with suppress(OSError):
                draft.unlink()
            raise
        sync_folder(path.parent)


def publish_tree(staged: Path, target: Path) -> None:
    """Make every file and folder of `staged` durable and give it the name `target`, on the same volume.

    After a crash `target` is either absent or whole. Raises StorageFailed when `target` exists, when the
    tree holds anything but files and folders, and for I/O errors; `staged` then stays where it is.
    """
    with _failing_as_storage(target):
        if target.exists() or target.is_symlink():
            raise StorageFailed(f"{target} exists already")
        for folder, _, _ in os.walk(staged, topdown=False, onerror=_raise):
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_file(follow_symlinks=False):
                        _sync(Path(entry))
                    elif not entry.is_dir(follow_symlinks=False):
                        raise StorageFailed(f"{entry.path} is neither a file nor a folder")
            sync_folder(Path(folder))
        staged.rename(target)
        sync_folder(target.parent)
        if staged.parent != target.parent:
            sync_folder(staged.parent)


def remove_tree(path: Path) -> None:
    """Remove a folder with all it holds; symbolic links go, what they point to stays. Absent: nothing to do.

    The tree first loses its name, durably, so that a crash cannot leave half of it under that name; what a
    crash leaves is called `.NAME.<random>.removed`. Raises StorageFailed.
    """
    doomed = path.with_name(f".{path.name}.{os.urandom(6).hex()}.removed")
    with _failing_as_storage(path):
        try:
            path.rename(doomed)
        except FileNotFoundError:
            return
        sync_folder(path.parent)
        for _, folders, names, fd in os.fwalk(doomed, topdown=False, onerror=_raise):
            for name in names:
                os.unlink(name, dir_fd=fd)
            for name in folders:
                try:
                    os.rmdir(name, dir_fd=fd)
                except NotADirectoryError:  # a symbolic link to a folder
                    os.unlink(name, dir_fd=fd)
        doomed.rmdir()
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable. Raises OSError."""
    _sync(folder)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _raise(error: OSError) -> None:
    raise error


@contextmanager
def _failing_as_storage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageFailed(f"{path}: {error.strerror}") from error
