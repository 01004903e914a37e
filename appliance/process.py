"""What a process does with itself before it holds keys and pixels."""

import ctypes
import os
import pwd
import resource
from pathlib import Path

from appliance.errors import ApplianceError

PR_SET_DUMPABLE = 4  # <linux/prctl.h>
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # <malloc.h>


def harden() -> None:
    """Keep keys and pixels out of core dumps and from debuggers of the same user, and new files private."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise ApplianceError("prctl(PR_SET_DUMPABLE) is refused: the memory cannot be protected")
    os.umask(0o077)


def become_owner(state: Path) -> None:
    """Have root go on as the user whom the state folder belongs to.

    What root made there would not be the daemon's: it could not start again. Raises ApplianceError.
    """
    if os.geteuid() != 0 or not state.exists():
        return
    owner = state.stat()
    if owner.st_uid == 0:
        return
    try:
        try:
            os.initgroups(pwd.getpwuid(owner.st_uid).pw_name, owner.st_gid)
        except KeyError:
            os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)
    except PermissionError:
        reason = f"{state} belongs to uid {owner.st_uid}, whom this process may not become"
        raise ApplianceError(f"{reason}: run it as that user") from None
    harden()  # a change of users makes the kernel forget it


def give_memory_back() -> None:
    """Have what a large request held go back to the system when it is freed.

    Left alone, glibc takes the first large block it sees freed as a sign to keep such blocks from then on
    (mallopt(3), M_MMAP_THRESHOLD), and every thread keeps an arena of its own.
    """
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_THRESHOLD, 1 << 20)
    mallopt(M_ARENA_MAX, 2)


def trim_memory() -> None:
    """Give back now what lies freed between what stays: the C library keeps it. A millisecond at most."""
    ctypes.CDLL(None).malloc_trim(0)
