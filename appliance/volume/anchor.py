"""What a folder is known again by: its device and inode, and a sentinel file with a random id, made once."""

import errno
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import VolumeOffline
from appliance.volume.at_hand import open_at_hand, read_at_hand
from appliance.volume.facts import VolumeFacts, mounted_within

SENTINEL = ".volume"
PROBE = ".probe"
_DRAFT = ".volume.draft"
_ID = re.compile(rb"[0-9a-f]{32}\n")
_LONGEST = 64
# A pipe or a link in the sentinel's place must neither hold the caller nor lead it elsewhere.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_HERE = -100  # AT_FDCWD: a path is absolute, or relative to where the process is


@dataclass(frozen=True, slots=True)
class Reached:
    """What a path led to: an open descriptor, (st_dev, st_ino), the id of the mount, the volume below."""

    fd: int
    identity: tuple[int, int]
    mount: str
    facts: VolumeFacts


def reach(path: Path, facts_of: Callable[[Path], VolumeFacts], *, encrypted: bool) -> Reached:
    """Opens the folder and judges its volume; the caller closes the descriptor.

    Raises VolumeOffline when the volume is not fit, StorageFailed when it cannot be examined, OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        identity = identity_of(os.fstat(fd))
        facts = facts_of(path)
        judge(path, facts, encrypted=encrypted)
        _expect_alone(path, identity)
        return Reached(fd, identity, _mount_of(fd), facts)
    except BaseException:
        os.close(fd)
        raise


def judge(path: Path, facts: VolumeFacts, *, encrypted: bool) -> None:
    """Raises VolumeOffline for a volume that is read-only, or is not on LUKS where that is demanded."""
    where = f"{path} lies on {facts.mount} ({facts.filesystem})"
    if facts.read_only:
        raise VolumeOffline(f"{where}, which is read-only")
    if encrypted and facts.encryption != "luks":
        raise VolumeOffline(f"{where}, which is {facts.encryption}: images are kept on a LUKS volume alone")


def _expect_alone(path: Path, identity: tuple[int, int]) -> None:
    if within := mounted_within(path):
        raise VolumeOffline(f"another filesystem is mounted on {within[0]}, within the images")
    if identity_of(path.stat()) != identity:  # the facts could be another volume's
        raise VolumeOffline(f"{path} was replaced while it was examined")


def identity_of(stat: os.stat_result) -> tuple[int, int]:
    """What no other folder has while this one is held open."""
    return stat.st_dev, stat.st_ino


def read_sentinel(folder: int) -> bytes:
    """What the sentinel in the folder of this descriptor contains. Raises OSError."""
    fd = os.open(SENTINEL, _READ, dir_fd=folder)
    try:
        return os.read(fd, _LONGEST)
    finally:
        os.close(fd)


def identity_at_hand(path: Path) -> tuple[int, int]:
    """`identity_of` what `path` leads to, without waiting for a disk. Raises as `open_at_hand`."""
    fd = open_at_hand(str(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, _HERE)
    try:
        return identity_of(os.fstat(fd))
    finally:
        os.close(fd)


def sentinel_at_hand(folder: int, size: int) -> bytes:
    """As `read_sentinel`, without waiting for a disk; empty when it has another size than this one.

    Raises as `open_at_hand`, and NotAtHand.
    """
    fd = open_at_hand(SENTINEL, _READ | os.O_NOATIME, folder)
    try:
        return bytes(read_at_hand(fd, size, 0)) if os.fstat(fd).st_size == size else b""
    finally:
        os.close(fd)


def find_sentinel(folder: int, path: Path, expected: str | None) -> bytes:
    """The content of the folder's sentinel, which is made, durably, where there is none and none is expected.

    `path` is the folder's name in messages. Raises VolumeOffline when the sentinel is not the expected one or
    none of ours, OSError.
    """
    try:
        content = read_sentinel(folder)
    except FileNotFoundError:
        if expected is not None:
            raise VolumeOffline(f"{path / SENTINEL} is missing: {expected} is expected there") from None
        content = f"{secrets.token_hex(16)}\n".encode()
        _create(folder, content)
    if not _ID.fullmatch(content):
        raise VolumeOffline(f"{path / SENTINEL} is damaged")
    if expected is not None and (found := content.decode().rstrip()) != expected:
        raise VolumeOffline(f"{path / SENTINEL} says {found}: {expected} is expected there")
    return content


def overwrite_probe(folder: int, sync: Callable[[int], None]) -> None:
    """A durable write that needs no more space from the second time on; a full volume is taken for able.

    Raises what `sync` raises, OSError.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(PROBE, flags, 0o600, dir_fd=folder)
        try:
            os.pwrite(fd, secrets.token_bytes(16), 0)
            sync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise


def _create(folder: int, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(_DRAFT, flags, 0o600, dir_fd=folder)
    try:
        os.write(fd, content)  # a short write is a damaged sentinel at the next start, not a wrong one
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(_DRAFT, SENTINEL, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def _mount_of(fd: int) -> str:
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text("ascii").splitlines()
    return next((line for line in lines if line.startswith("mnt_id:")), "")
