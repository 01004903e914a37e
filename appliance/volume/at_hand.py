"""What the kernel has in memory: opened and read without waiting for a disk, on the event loop as well."""

import ctypes
import errno
import fcntl
import os

_OPENAT2 = 437  # on every architecture
_RESOLVE_CACHED = 0x20  # Linux 5.12, openat2(2)
# Keeps the interpreter: it waits for nothing, and to give the interpreter up costs more than the call.
_libc = ctypes.PyDLL(None, use_errno=True)


class NotAtHand(Exception):
    """It may be on the disk: wait for it on another thread."""


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_at_hand(path: str, flags: int, dir_fd: int) -> int:
    """As os.open. Raises FileNotFoundError, and NotAtHand where the way there is not in memory.

    Whatever else is wrong, and a kernel or a filter of system calls that does not know the call, is NotAtHand
    as well: whoever opens it by waiting is told.
    """
    how = _How(flags=flags, resolve=_RESOLVE_CACHED)
    fd: int = _libc.syscall(_OPENAT2, dir_fd, path.encode(), ctypes.byref(how), ctypes.sizeof(how))
    if fd >= 0:
        return fd
    if (number := ctypes.get_errno()) == errno.ENOENT:
        raise FileNotFoundError(number, os.strerror(number), path)
    raise NotAtHand


def read_at_hand(fd: int, size: int, offset: int) -> bytearray:
    """`size` bytes from `offset` on. Raises NotAtHand unless all of them are in the page cache, and the file
    was opened with O_NOATIME: to note the time of a read, the kernel waits for the disk's journal.
    """
    if not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NOATIME:
        raise NotAtHand
    data = bytearray(size)
    try:
        read = os.preadv(fd, [data], offset, os.RWF_NOWAIT)
    except OSError:  # also on a filesystem that cannot tell
        raise NotAtHand from None
    if read < size:
        raise NotAtHand
    return data
