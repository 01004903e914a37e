"""One process at a time on a state folder.

The lock is an open file description lock (fcntl(2), F_OFD_SETLK) on STATE/lock. Like flock(2) it ends with
the process however it dies; unlike flock(2) it can be queried without being taken, so that asking who holds
the folder never makes somebody else's start fail.
"""

import contextlib
import fcntl
import os
import struct
from pathlib import Path

from appliance.errors import StateInUse
from appliance.volume import FULL

_FLOCK = struct.Struct("hhqqi0q")  # struct flock: type, whence, start, len (0: to the end), pid (0 for OFD)


class StateLock:
    """The exclusive claim on one state folder; the file STATE/lock contains the holder's pid.

    The folder must exist. `release` may be called twice.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock or raise StateInUse, whose message names the folder and the holder's pid."""
        fd = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except BlockingIOError:
            pid = _recorded(fd)
            os.close(fd)
            holder_name = f"the process with pid {pid}" if pid else "a process that is just starting"
            fix = "wait for its end, or stop it (a daemon: systemctl stop appliance)"
            raise StateInUse(f"state folder {self._folder} is held by {holder_name}: {fix}") from None
        try:
            _note(fd, f"{os.getpid()}\n".encode())
        except OSError as error:
            if error.errno not in FULL:  # the lock is taken: who holds it cannot be said, and that is all
                os.close(fd)
                raise
        self._fd = fd

    def release(self) -> None:
        """Take the pid out of the file and give the folder free."""
        if self._fd is not None:
            with contextlib.suppress(OSError):  # the disk may be gone; the lock goes with the descriptor
                _note(self._fd, b"\n")
            os.close(self._fd)
            self._fd = None


def holder(folder: Path) -> int | None:
    """The pid that holds the folder, None when it is free, 0 when the holder has not written its pid yet."""
    try:
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        found: int = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
        return None if found == fcntl.F_UNLCK else _recorded(fd)
    finally:
        os.close(fd)


def _note(fd: int, text: bytes) -> None:
    """In place: cut to nothing, the file would have to find a block again, and a full volume has none."""
    os.pwrite(fd, text, 0)
    os.ftruncate(fd, len(text))


def _recorded(fd: int) -> int:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else 0
