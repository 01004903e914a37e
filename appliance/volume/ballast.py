"""A file that holds room on a volume, to be given back for what has to find it."""

import errno
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the kernel says of a volume, or of a user's part of it, that has no room."""


class Folder(Protocol):
    """Where a ballast lies: a `DataFolder`, or a `HeldFolder`."""

    def reading(self) -> AbstractContextManager[int]: ...
    def writing(self) -> AbstractContextManager[int]: ...
    def sync(self, fd: int) -> None: ...


class Ballast:
    """The file `name` of a folder, `size` bytes that are really there; usable from any thread.

    All calls block on the disk, and raise what the folder does.
    """

    def __init__(self, folder: Folder, name: str, size: int) -> None:
        self._folder = folder
        self._name = name
        self._draft = f"{name}.draft"
        self.size = size

    def release(self) -> bool:
        """Frees its room, durably; False when it was gone."""
        with self._folder.writing() as folder:
            try:
                os.unlink(self._name, dir_fd=folder)
            except FileNotFoundError:
                return False
            self._folder.sync(folder)  # the blocks are free for others only once this is on the disk
        return True

    def restore(self, leaving: int = 0) -> bool:
        """Makes it where it is missing or of another size; False where less than `leaving` would stay free.

        Raises VolumeFull when the room went to somebody else meanwhile.
        """
        with self._folder.writing() as folder:
            if (held := _size(folder, self._name)) == self.size:
                return True
            with suppress(FileNotFoundError):  # left by a crash
                os.unlink(self._draft, dir_fd=folder)
            volume = os.fstatvfs(folder)
            if volume.f_bavail * volume.f_frsize + held < self.size + leaving:
                return False
            self._allocate(folder)
        return True

    def _allocate(self, folder: int) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._name, dir_fd=folder)
        with self._drafted(folder) as fd:
            os.posix_fallocate(fd, 0, self.size)
            self._folder.sync(fd)
        os.rename(self._draft, self._name, src_dir_fd=folder, dst_dir_fd=folder)
        self._folder.sync(folder)

    @contextmanager
    def _drafted(self, folder: int) -> Iterator[int]:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._draft, flags, 0o600, dir_fd=folder)
        try:
            yield fd
        except OSError as error:
            if error.errno in FULL:
                os.unlink(self._draft, dir_fd=folder)
            raise
        finally:
            os.close(fd)


def _size(folder: int, name: str) -> int:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0
