"""Free space on the volume of images: what uploads must leave, and a ballast so that deleting works."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from appliance.errors import VolumeFull
from appliance.volume.guard import DataFolder

BALLAST = ".ballast"
_DRAFT = ".ballast.draft"


class Space:
    """Keeps uploads from filling the volume of a data folder; usable from any thread, blocks on the disk.

    Uploads leave `fraction` of the volume free, and at least `least_bytes`. A volume that others have filled
    all the same can take no deletion, because a deletion is itself a few durable writes: the ballast, a file
    of `ballast_bytes`, is given back for them, and before them, since a ledger refuses what finds no room.
    """

    def __init__(
        self,
        folder: DataFolder,
        *,
        fraction: float = 0.05,
        least_bytes: int = 20 << 30,
        ballast_bytes: int = 256 << 20,
    ) -> None:
        self._folder = folder
        self._fraction = fraction
        self._least_bytes = least_bytes
        self._ballast_bytes = ballast_bytes
        self._promised = 0
        self._counting = threading.Lock()

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
                raise VolumeFull(f"{free >> 20} MiB are free on the volume of images: {wanted}")
            self._promised += size
        try:
            yield
        finally:
            with self._counting:
                self._promised -= size

    def before_deletion(self) -> bool:
        """Frees the ballast when less than its size is free; whether it did. Raises VolumeOffline."""
        return self._measure()[0] < self._ballast_bytes and self.release_ballast()

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

        Raises VolumeOffline, VolumeFull when the room went to somebody else meanwhile.
        """
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
