"""A backup where it is to rest: written under a draft's name, read again, and only then given its own.

A draft of an interrupted backup is told by its name, and by its lock that no process holds any more: the next
backup removes it.
"""

import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from appliance.backup.contents import (
    BUNDLES,
    IMAGES,
    KEYRING,
    LEDGER,
    MANIFEST,
    TOMBSTONES,
    Absent,
    File,
    Header,
    Listing,
    last_line,
)
from appliance.backup.integrity import compare
from appliance.errors import BackupInvalid, Conflict, StorageFailed
from appliance.vault import identity_of
from appliance.volume import (
    create,
    failing_as_storage,
    remove_tree,
    sync_filesystem,
    sync_folder,
    write_atomically,
    write_whole,
)

_PATH = re.compile(
    rf"{LEDGER}|{TOMBSTONES}|{BUNDLES}/[0-9a-f]{{32}}|{IMAGES}/[0-9a-f]{{32}}/[0-9a-f]{{32}}", re.ASCII
)
_DRAFT = re.compile(r"\.+[0-9]{8}T[0-9]{6}Z-[0-9]+\.[0-9a-f]{12}\.draft(\.[0-9a-f]{12}\.removed)*")
_KEYRING = re.compile(rf"{KEYRING}-(([0-9]{{8}}T[0-9]{{6}}Z)-[0-9]+)")
_APART_DRAFT = re.compile(
    rf"\.({KEYRING}|{TOMBSTONES})-[0-9]{{8}}T[0-9]{{6}}Z-[0-9]+\.([0-9a-f]{{12}}\.)?draft"
)
_LARGEST_KEYRING = 1 << 30


@dataclass(slots=True)
class _Writing:
    path: str
    fds: list[int]
    size: int
    running: "hashlib._Hash"


class Destination:
    """The folder of backups and the one of keyrings, which must not be the same, while one is written.

    All calls block on the disk. Leaving without `publish` removes what was written.
    """

    def __init__(self, folder: Path, keyrings: Path, header: Header) -> None:
        """Raises Conflict when a backup of this name is there, StorageFailed."""
        self._folder, self._keyrings = folder, keyrings
        self.header = header
        self.target = folder / header.name
        self.keyring = keyrings / f"{KEYRING}-{header.name}"
        self.tombstones = keyrings / f"{TOMBSTONES}-{header.name}"
        self.files = self.bytes = 0
        self.absent: list[str] = []
        self._draft = folder / f".{header.name}.{os.urandom(6).hex()}.draft"
        self._open: _Writing | None = None
        self._keyring: bytearray | None = None
        self._keyring_open = False
        self._listing = Listing(header)
        self._made: set[str] = set()

    def __enter__(self) -> Self:
        with ExitStack() as stack, failing_as_storage(self._folder):
            if self.target.exists():
                raise Conflict(f"{self.target} exists already")
            if not _claimed(stack, self._keyrings):
                raise Conflict(f"another backup is being written that has its keyring in {self._keyrings}")
            for leftover in _abandoned(self._folder):
                remove_tree(leftover)
            for draft in self._keyrings.glob(".*.draft"):
                if _APART_DRAFT.fullmatch(draft.name):
                    draft.unlink()
            self._draft.mkdir(mode=0o700)
            _claimed(stack, self._draft)
            self._manifest = create(self._draft / MANIFEST)
            stack.callback(os.close, self._manifest)
            write_whole(self._manifest, self._listing.start)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        if self._open is not None:
            for fd in self._open.fds:
                os.close(fd)
        with self._stack, suppress(StorageFailed, OSError):
            self._partial.unlink(missing_ok=True)
            remove_tree(self._draft)

    def file(self, path: str) -> None:
        """What comes next belongs to this file of the backup. Raises BackupInvalid, StorageFailed."""
        self._end_file()
        if not _PATH.fullmatch(path):
            raise BackupInvalid([f"the daemon sends a file of a name that backups do not have: {path!r}"])
        with failing_as_storage(self._draft / path):
            folder = path.rpartition("/")[0]
            if folder not in self._made:
                (self._draft / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
                self._made.add(folder)
            fds = [create(self._draft / path)]
            if path == TOMBSTONES:
                self._partial.unlink(missing_ok=True)
                fds.append(create(self._partial))
        self._open = _Writing(path, fds, 0, hashlib.sha256())

    def apart(self, name: str) -> None:
        """What comes next belongs beside the backup: the keyring. Raises BackupInvalid, StorageFailed."""
        self._end_file()
        if name != KEYRING:
            raise BackupInvalid([f"the daemon sends something that is no keyring: {name!r}"])
        self._keyring, self._keyring_open = bytearray(), True

    def data(self, content: bytes) -> None:
        """The next bytes. Raises StorageFailed."""
        if self._keyring is not None and self._keyring_open:
            self._keyring += content
            if len(self._keyring) > _LARGEST_KEYRING:
                raise BackupInvalid(["the daemon sends a keyring without an end"])
            return
        writing = self._open
        if writing is None:
            raise BackupInvalid(["the daemon sends bytes of no file"])
        with failing_as_storage(self._draft / writing.path):
            for fd in writing.fds:
                write_whole(fd, content)
        writing.running.update(content)
        writing.size += len(content)
        self.bytes += len(content)

    def leave_out(self, entry: Absent) -> None:
        """An image that the appliance could not give. Raises StorageFailed."""
        self._end_file()
        self.absent.append(f"{entry.reason}: {entry.path}")
        with failing_as_storage(self._draft):
            write_whole(self._manifest, self._listing.line(entry))

    def end(self, digest: bytes, mac: bytes) -> None:
        """All has come. Raises BackupInvalid unless it is what was sent, StorageFailed."""
        self._end_file()
        if digest != self._listing.digest:
            raise BackupInvalid(["what arrived is not what the daemon sent: make the backup again"])
        with failing_as_storage(self._draft):
            write_whole(self._manifest, last_line(mac))

    def publish(self, keep_days: float, progress: Callable[[str], None]) -> list[Path]:
        """Read everything again, then give keyring, tombstones and backup their names, durably.

        Returns the keyrings that were removed: of the others only those younger than `keep_days` stay, by the
        time that the appliance believes. While it doubts its clock, or that was ahead, more stay.
        Raises BackupInvalid for what did not reach the disk as it was sent, StorageFailed.
        """
        progress("reading it again")
        with failing_as_storage(self._draft):
            sync_filesystem(self._draft)
        if problems := compare(self._draft, self.header.name):
            raise BackupInvalid(problems)
        if self._keyring is None:
            raise BackupInvalid(["the daemon sent no keyring"])
        progress("making it durable")
        write_atomically(self.keyring, bytes(self._keyring))
        with failing_as_storage(self.tombstones):
            self._partial.replace(self.tombstones)
            sync_folder(self._keyrings)
        with failing_as_storage(self.target):
            self._draft.rename(self.target)
            sync_folder(self._folder)
        return self._remove_old(keep_days)

    @property
    def _partial(self) -> Path:
        return self._keyrings / f".{TOMBSTONES}-{self.header.name}.draft"

    def _end_file(self) -> None:
        writing, self._open, self._keyring_open = self._open, None, False
        if writing is None:
            return
        with failing_as_storage(self._draft / writing.path):
            for fd in writing.fds[1:]:
                os.fsync(fd)
            for fd in writing.fds:
                os.close(fd)
            entry = File(writing.path, writing.size, writing.running.digest())
            write_whole(self._manifest, self._listing.line(entry))
        self.files += 1

    def _remove_old(self, keep_days: float) -> list[Path]:
        """Old keyrings of this appliance with their tombstones; those of others are not ours to remove."""
        believed = datetime.fromtimestamp(self.header.believed_at / 1000, UTC)
        removed = []
        with failing_as_storage(self._keyrings):
            for path in sorted(self._keyrings.iterdir()):
                found = _KEYRING.fullmatch(path.name)
                if found is None or path == self.keyring:
                    continue
                age = believed - datetime.strptime(found[2], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
                own = identity_of(path.read_bytes()) == bytes.fromhex(self.header.keyring)
                if age > timedelta(days=keep_days) and own:
                    path.unlink()
                    path.with_name(f"{TOMBSTONES}-{found[1]}").unlink(missing_ok=True)
                    removed.append(path)
            sync_folder(self._keyrings)
        return removed


def check_apart(folder: Path, keyrings: Path, state: Path) -> bool:
    """Whether both lie on one filesystem, which is worth a word.

    Raises StorageFailed when a folder is none, and when one of them lies in the other or in the state.
    """
    for path in (folder, keyrings):
        if not path.is_dir():
            raise StorageFailed(f"{path} is not a folder: make it first, on the medium that it is to be on")
    backups, keys, own = folder.resolve(), keyrings.resolve(), state.resolve()
    if backups == keys or backups in keys.parents or keys in backups.parents:
        reason = "whoever copies the one has the other, and a keyring is kept apart from what it opens"
        raise StorageFailed(f"{keyrings} is no other place than {folder}: {reason}")
    for path in (backups, keys):
        if path == own or own in path.parents:
            raise StorageFailed(f"{path} lies in the state folder {own}, which it is to outlive")
    return folder.stat().st_dev == keyrings.stat().st_dev


def _claimed(stack: ExitStack, folder: Path) -> bool:
    """Whether this process alone writes there, until the stack ends: also where nobody can tell."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network filesystems have no locks
        return True
    return True


def _abandoned(folder: Path) -> Iterator[Path]:
    """Drafts that nobody writes any more."""
    for path in sorted(folder.iterdir()):
        if _DRAFT.fullmatch(path.name) and not path.is_symlink():
            with ExitStack() as stack:
                if _claimed(stack, path):
                    yield path
