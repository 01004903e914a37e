"""A folder that is held open: another filesystem on its path is not mistaken for it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import StorageFailed, VolumeFull, VolumeOffline
from appliance.volume.anchor import identity_of
from appliance.volume.ballast import FULL


class HeldFolder:
    """The folder that `path` leads to now, by its descriptor, until `close`; usable from any thread.

    A filesystem may be mounted over the path later, or be taken away from it: what goes relative to `fd`
    still goes to this folder. Whatever cannot go that way asks `check` before.
    """

    def __init__(self, path: Path) -> None:
        """Raises StorageFailed."""
        self._path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StorageFailed(f"{path}: {error.strerror}") from error

    def check(self) -> None:
        """That the path still leads here. Blocks on the disk. Raises VolumeOffline."""
        try:
            if identity_of(self._path.stat()) == identity_of(os.fstat(self.fd)):
                return
            found = "it leads to another folder or filesystem than at the start"
        except OSError as error:
            found = str(error.strerror)
        raise VolumeOffline(f"{self._path}: {found}; mount its volume there again, or restart")

    @contextmanager
    def reading(self) -> Iterator[int]:
        """The descriptor, for `dir_fd=` of what is read within the block. Raises StorageFailed."""
        try:
            yield self.fd
        except OSError as error:
            raise StorageFailed(f"{self._path}: {error.strerror}") from error

    @contextmanager
    def writing(self) -> Iterator[int]:
        """As `reading`, of what is written. Raises VolumeFull, StorageFailed."""
        try:
            yield self.fd
        except OSError as error:
            kind = VolumeFull if error.errno in FULL else StorageFailed
            raise kind(f"{self._path}: {error.strerror}") from error

    def sync(self, fd: int) -> None:
        """fsync(2), within `writing`."""
        os.fsync(fd)

    def close(self) -> None:
        """Gives the volume free; twice is as good as once."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
