"""Free space on a volume: what must stay free when data comes in, and a ballast so that deleting works."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

from appliance.errors import VolumeFull

BALLAST = ".ballast"
_DRAFT = ".ballast.draft"


class Folder(Protocol):
    """Where the ballast lies: a `DataFolder`, or a `HeldFolder`."""

    def reading(self) -> AbstractContextManager[int]: ...
    def writing(self) -> AbstractContextManager[int]: ...
    def sync(self, fd: int) -> None: ...


class Space:
    """Keeps what comes in from filling the volume of a folder; usable from any thread, blocks on the disk.

    It leaves `fraction` of the volume free, and at least `least_bytes`. A volume that others have filled
    all the same can take no deletion, because a deletion is itself a few durable writes: the ballast, a file
    of `ballast_bytes`, is given back for them, and before them, since a ledger refuses what finds no room.
    """

    def __init__(
        self,
        folder: Folder,
        *,
        fraction: float = 0.05,
        least_bytes: int = 20 << 30,
        ballast_bytes: int = 256 << 20,
        ledger: "Space | None" = None,
    ) -> None:
        """`ledger` is the space of the ledger's volume where that is another one: a deletion needs both."""
        self._folder = folder
        self._ledger = ledger
        self._fraction = fraction
        self._least_bytes = least_bytes
        self._ballast_bytes = ballast_bytes
        self._promised = 0
        self._counting = threading.Lock()

    def on(self, folder: Folder) -> "Space":
        """This, where `folder` is on the same volume; or else the space of that one, with the same sizes.

        Raises what `folder` does.
        """
        other = Space(
            folder,
            fraction=self._fraction,
            least_bytes=self._least_bytes,
            ballast_bytes=self._ballast_bytes,
            ledger=self,
        )
        with self._folder.reading() as mine, folder.reading() as theirs:
            if os.fstat(mine).st_dev != os.fstat(theirs).st_dev:
                return other
        other.release_ballast()  # there is one for a volume
        return self

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Within the block `size` bytes may be written; what other blocks may still write is counted too.

        Raises VolumeFull when less than the reserve would stay free, VolumeOffline.
        """
        with self._counting:
            free, total = self._measure()
            reserve = max(int(total * self._fraction), self._least_bytes)
            if free - self._promised - size < reserve:
                wanted = f"{size} bytes more would leave less than {reserve >> 20} MiB"
                raise VolumeFull(f"{free >> 20} MiB are free on the volume: {wanted}")
            self._promised += size
        try:
            yield
        finally:
            with self._counting:
                self._promised -= size

    def before_deletion(self) -> bool:
        """Frees the ballast when less than its size is free; whether it did.

        Raises VolumeOffline, StorageFailed.
        """
        freed = self._ledger is not None and self._ledger.before_deletion()
        return (self._measure()[0] < self._ballast_bytes and self.release_ballast()) or freed

    def release_ballast(self) -> bool:
        """Frees the ballast, durably; False when it was gone.

        Raises VolumeOffline.
        """
        with self._folder.writing() as folder:
            try:
                os.unlink(BALLAST, dir_fd=folder)
            except FileNotFoundError:
                return False
            self._folder.sync(folder)  # the blocks are free for others only once this is on the disk
        return True

    def restore_ballast(self) -> bool:
        """Makes the ballast where it is missing; False while there is not twice the room that it needs.

        Raises VolumeOffline, StorageFailed, VolumeFull when the room went to somebody else meanwhile.
        """
        if self._ledger is not None:
            self._ledger.restore_ballast()
        with self._folder.writing() as folder:
            if _size(folder, BALLAST) == self._ballast_bytes:
                return True
            with suppress(FileNotFoundError):  # of another size, or left by a crash
                os.unlink(_DRAFT, dir_fd=folder)
            free, _ = self._measure()
            if free + _size(folder, BALLAST) < 2 * self._ballast_bytes:
                return False
            self._allocate(folder)
        return True

    def _measure(self) -> tuple[int, int]:
        with self._folder.reading() as folder:
            space = os.fstatvfs(folder)
        return space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize

    def _allocate(self, folder: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with suppress(FileNotFoundError):
            os.unlink(BALLAST, dir_fd=folder)
        fd = os.open(_DRAFT, flags, 0o600, dir_fd=folder)
        try:
            os.posix_fallocate(fd, 0, self._ballast_bytes)
            self._folder.sync(fd)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                os.unlink(_DRAFT, dir_fd=folder)
            raise
        finally:
            os.close(fd)
        os.rename(_DRAFT, BALLAST, src_dir_fd=folder, dst_dir_fd=folder)
        self._folder.sync(folder)


def _size(folder: int, name: str) -> int:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0
