"""The way to the folder of stored images: by its descriptor, and only while its volume is the one it was."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from appliance.errors import StorageFailed, VolumeFull, VolumeOffline
from appliance.volume.anchor import (
    find_sentinel,
    identity_at_hand,
    identity_of,
    judge,
    overwrite_probe,
    reach,
    read_sentinel,
    sentinel_at_hand,
)
from appliance.volume.at_hand import NotAtHand
from appliance.volume.ballast import FULL
from appliance.volume.condition import Condition, Verdict
from appliance.volume.durable import sync_filesystem, sync_folder
from appliance.volume.facts import VolumeFacts
from appliance.volume.facts import facts as facts_of

_SILENT_SECONDS = 30.0  # a sync behind a few GiB of other writes is slow and not dead

# The medium fails or the filesystem has found itself damaged: what it holds of the last writes nobody knows.
_BROKEN = frozenset(
    {errno.EIO, errno.ENXIO, errno.ENODEV, errno.EUCLEAN, errno.EBADMSG, errno.EREMOTEIO, errno.ESHUTDOWN}
)
# This process lacks something; that says nothing about the volume.
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

_ANOTHER = "leads to another folder or filesystem than the one that was opened"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def is_lack(error: BaseException | None) -> bool:
    """Whether this process lacked descriptors or memory, which says nothing of what it wanted to read."""
    return isinstance(error, OSError) and error.errno in _OURS


class DataFolder:
    """The folder of stored images, reached by one descriptor from `open` to `close`; usable from any thread.

    Whatever is read or written goes relative to the descriptor that `reading` and `writing` give, so that it
    cannot land in a folder that appears under the same path. The descriptor keeps the filesystem from going
    away, hence no other can take its device number: coming back means that very filesystem.

    Offline, every call raises VolumeOffline at once. It ends when `recheck` finds the same folder again, on a
    volume that is fit and takes a durable write. After a failed sync or a broken medium the folder is
    poisoned: the kernel has dropped what it could not write and would call the next sync a success, so
    nothing is tried again before a restart.

    Names in the folder that begin with a dot are the volume's own. All calls but `fault`, `condition` and
    `at_hand` block on the disk.
    """

    def __init__(
        self,
        path: Path,
        *,
        encrypted: bool,
        expected: str | None = None,
        silent_seconds: float = _SILENT_SECONDS,
        facts: Callable[[Path], VolumeFacts] = facts_of,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`encrypted` demands LUKS below; `expected` is the `id` that the folder had when it was last used.

        A `recheck` that takes longer than `silent_seconds` counts as offline until it ends.
        """
        self._path = path
        self._encrypted = encrypted
        self._expected = expected
        self._facts_of = facts
        self._fd = -1
        self._identity = (0, 0)
        self._mount = ""
        self._sentinel = b""
        self._facts: VolumeFacts | None = None
        self._verdict = Verdict(str(path), silent_seconds, clock)
        self._examining = threading.Lock()
        self._making = threading.Lock()
        self._durable: set[tuple[int, int]] = set()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def open(self) -> None:
        """Makes the folder where it is missing (its parent must be there), and its sentinel once.

        Raises VolumeOffline when the volume is read-only, is not encrypted though it must be, or is not the
        expected one; StorageFailed when it cannot be examined or fails. Nothing is open then.
        """
        try:
            # Before anything is made there.
            judge(self._path, self._facts_of(self._path), encrypted=self._encrypted)
            self._path.mkdir(mode=0o700, exist_ok=True)
            sync_folder(self._path.resolve().parent)
            reached = reach(self._path, self._facts_of, encrypted=self._encrypted)
            try:
                self._sentinel = find_sentinel(reached.fd, self._path, self._expected)
                overwrite_probe(reached.fd, self.sync)
            except BaseException:
                os.close(reached.fd)
                raise
        except OSError as error:
            raise StorageFailed(f"{self._path}: {error.strerror}") from error
        self._identity, self._mount, self._facts = reached.identity, reached.mount, reached.facts
        self._fd = reached.fd
        self._verdict.opened()

    def close(self) -> None:
        """Gives the volume free. Nothing may be under way in `reading` or `writing`."""
        self._verdict.closed()
        # A recheck that hangs on a dead disk still uses the descriptor: it then goes with the process.
        if self._fd >= 0 and self._examining.acquire(blocking=False):
            os.close(self._fd)
            self._fd = -1
            self._examining.release()

    @property
    def id(self) -> str:
        """The random id in the sentinel, 32 hexadecimal digits; empty before `open`."""
        return self._sentinel.decode().rstrip()

    @property
    def facts(self) -> VolumeFacts | None:
        """As `open` or the last `recheck` that reached the folder found them."""
        return self._facts

    @property
    def fault(self) -> str | None:
        """Why the folder cannot be used, or None; answers at once."""
        return self._verdict.reason

    @property
    def condition(self) -> Condition:
        """`fault` with its kind; answers at once."""
        return self._verdict.condition

    def check(self) -> None:
        """That the path still leads to the folder that was opened, its sentinel is there and it takes writes.

        Raises VolumeOffline, and the folder then is offline; StorageFailed when this process lacks
        descriptors or memory to look.
        """
        if (reason := self._verdict.reason) is not None:
            raise VolumeOffline(reason)
        if (reason := self._departed()) is not None:
            raise self._verdict.lose(reason)

    @contextmanager
    def writing(self) -> Iterator[int]:
        """The folder's descriptor, for `dir_fd=` of everything that is written within the block.

        Checked before and after: when the block ends without an error, all of it went to the volume that
        still is in place. Disk errors that leave the block become VolumeFull, VolumeOffline (and poison) as
        their kind asks for; others pass. Syncs belong to `sync`. Do not wait for a network within.
        """
        self.check()
        try:
            yield self._fd
        except OSError as error:
            if error.errno in FULL:
                raise VolumeFull(f"{self._path}: {error.strerror}") from error
            if error.errno in _BROKEN:
                raise self.poison(f"a write failed: {error.strerror}") from error
            if error.errno == errno.EROFS:
                raise self._verdict.lose(f"{self._path} is read-only") from error
            raise
        self.check()

    @contextmanager
    def reading(self) -> Iterator[int]:
        """The folder's descriptor, for `dir_fd=` of everything that is read within the block; checked before.

        A medium that fails here may have one bad sector or be dead: a durable write tells. The sector costs
        this read alone (StorageFailed), the dead one poisons (VolumeOffline). Other OSErrors pass.
        """
        self.check()
        try:
            yield self._fd
        except OSError as error:
            if error.errno not in _BROKEN:
                raise
            if (reason := self.recheck().reason) is not None:
                raise VolumeOffline(reason) from error
            raise StorageFailed(f"{self._path}: a read failed: {error.strerror}") from error

    def at_hand(self) -> int:
        """The descriptor as `reading` gives it, on the event loop as well: nothing here waits for the disk.

        Raises VolumeOffline where that is known, and NotAtHand where it takes `reading` to tell. That the
        volume has become read-only is left to `check`.
        """
        if (reason := self._verdict.reason) is not None:
            raise VolumeOffline(reason)
        try:
            in_place = identity_at_hand(self._path) == self._identity
            same = sentinel_at_hand(self._fd, len(self._sentinel)) == self._sentinel
        except OSError:
            raise NotAtHand from None
        if not (in_place and same):
            raise NotAtHand
        return self._fd

    @contextmanager
    def subfolder(self, folder: int, name: str, *, create: bool = False) -> Iterator[int]:
        """A descriptor of `name` directly in `folder`, which came from `reading` or `writing`.

        With `create` it is made where it is missing, and its name is durable. Raises VolumeOffline when
        another filesystem is mounted on it; FileNotFoundError, and NotADirectoryError for a symbolic link.
        """
        if "/" in name or name in {"", ".", ".."}:
            raise ValueError(f"{name!r} is not the name of a subfolder")
        fd = self._made(folder, name) if create else os.open(name, _FOLDER, dir_fd=folder)
        try:
            if os.fstat(fd).st_dev != self._identity[0]:
                raise self._verdict.lose(f"another filesystem is mounted on {self._path / name}")
            yield fd
        finally:
            os.close(fd)

    def sync(self, fd: int) -> None:
        """fsync(2); any error poisons. Raises VolumeOffline, without trying once the folder is poisoned."""
        if (error := self._verdict.poisoned) is not None:
            raise error
        try:
            os.fsync(fd)
        except OSError as failed:
            raise self.poison(f"a sync failed: {failed.strerror}") from failed

    def sync_all(self) -> None:
        """Everything that was written to the folder's filesystem so far, in one go. Raises as `sync`."""
        if (error := self._verdict.poisoned) is not None:
            raise error
        try:
            sync_filesystem(self._fd)
        except OSError as failed:
            raise self.poison(f"a sync failed: {failed.strerror}") from failed

    def poison(self, reason: str) -> VolumeOffline:
        """No use of the folder before a restart; the error to raise. The first reason stays."""
        return self._verdict.poison(reason)

    def recheck(self, *, write: bool = True) -> Condition:
        """Walks to the folder and down to its devices anew; what is found decides whether it is offline.

        With `write`, and always before it comes back, the volume must take a durable write. Raises nothing.
        """
        with self._examining:
            if self._fd >= 0 and self._verdict.poisoned is None:
                try:
                    with self._verdict.examination():
                        self._examine(write=write or self._verdict.offline)
                except Exception as error:  # noqa: BLE001 what cannot be examined is not trusted
                    self._examination_failed(error)
        return self.condition

    def _examine(self, *, write: bool) -> None:
        reached = reach(self._path, self._facts_of, encrypted=self._encrypted)
        try:
            if reached.identity != self._identity:
                raise VolumeOffline(f"{self._path} {_ANOTHER}")
            find_sentinel(reached.fd, self._path, self.id)
            if write:
                overwrite_probe(reached.fd, self.sync)
            if reached.mount != self._mount:
                # The same folder through another mount: the old one, detached, would be held for ever.
                os.dup2(reached.fd, self._fd, inheritable=False)
                self._mount = reached.mount
            self._facts = reached.facts
        finally:
            os.close(reached.fd)

    def _examination_failed(self, error: Exception) -> None:
        cause = error if isinstance(error, OSError) else error.__cause__
        number = cause.errno if isinstance(cause, OSError) else None
        if number in _BROKEN:
            self.poison(f"an examination failed: {error}")
        elif number not in _OURS:
            said = (isinstance(error, OSError) and error.strerror) or repr(error)
            self._verdict.lose(str(error) if isinstance(error, StorageFailed) else f"{self._path}: {said}")

    def _departed(self) -> str | None:
        try:
            if identity_of(self._path.stat()) != self._identity:
                return f"{self._path} {_ANOTHER}"
            if read_sentinel(self._fd) != self._sentinel:
                return f"the sentinel in {self._path} is another"
            if os.fstatvfs(self._fd).f_flag & os.ST_RDONLY:
                return f"{self._path} is read-only"
        except OSError as error:
            if error.errno in _OURS:
                raise StorageFailed(f"{self._path}: {error.strerror}") from error
            return f"{self._path}: {error.strerror}: {error.filename}"
        return None

    def _made(self, folder: int, name: str) -> int:
        """One at a time: whoever finds a subfolder may otherwise be done before its maker has synced it."""
        with self._making:
            new = False
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=folder)
                new = True  # its inode number may be that of one that was removed
            fd = os.open(name, _FOLDER, dir_fd=folder)
            try:
                if (identity := identity_of(os.fstat(fd))) not in self._durable or new:
                    self.sync(folder)
                    self._durable.add(identity)
            except BaseException:
                os.close(fd)
                raise
            return fd
