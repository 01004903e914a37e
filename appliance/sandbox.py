"""Locks a child process in: from then on it computes in its own memory and answers its daemon, nothing else.

Two locks of the kernel, neither of which can be opened again. Seccomp (seccomp(2), a classic BPF program)
lets through the few system calls that computing and answering need and refuses all others with EPERM.
Landlock (landlock(7)) takes away the file system, TCP and signals to other processes; it is left out where
the kernel has none, since seccomp lets no call through that it would judge.
"""

import ctypes
import errno
import platform
import struct
from pathlib import Path

from appliance.errors import WorkerRefused

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_PROT_EXEC = 4

# <asm/unistd_64.h> of x86-64. Nothing here opens, connects, starts, signals or maps a file that is not open.
_ALLOWED = {
    "read": 0,
    "write": 1,
    "close": 3,
    "poll": 7,
    "munmap": 11,
    "brk": 12,
    "rt_sigaction": 13,
    "rt_sigprocmask": 14,
    "rt_sigreturn": 15,
    "sched_yield": 24,
    "mremap": 25,
    "madvise": 28,
    "getpid": 39,
    "sendto": 44,
    "recvfrom": 45,
    "exit": 60,
    "gettimeofday": 96,
    "gettid": 186,
    "futex": 202,
    "sched_getaffinity": 204,
    "restart_syscall": 219,
    "set_robust_list": 273,
    "clock_gettime": 228,
    "clock_nanosleep": 230,
    "exit_group": 231,
    "getrandom": 318,
    "rseq": 334,
}
# Allowed unless their third argument makes memory executable.
_ALLOWED_WITHOUT_EXEC = {"mmap": 9, "mprotect": 10}
# Threads are under the same locks as who starts them, and libheif decodes in one. The flags of clone3 lie in
# memory, where no filter reads them: without it the C library takes clone.
_CLONE, _CLONE3 = 56, 435
_CLONE_THREAD = 0x10000

_AUDIT_ARCH_X86_64 = 0xC000003E
_X32_BIT = 0x40000000
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_UNKNOWN = 0x00050000 | errno.ENOSYS
# Offsets in struct seccomp_data.
_NR, _ARCH, _FIRST_ARGUMENT, _THIRD_ARGUMENT = 0, 4, 16, 32
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06

_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_LANDLOCK_VERSION = 1
# Every right that each version of the interface knows: handled and never granted.
_FILE_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}
_TCP_RIGHTS, _SCOPES = 0x3, 0x3


def confine() -> str:
    """Locks this process in and returns by what: "seccomp" or "seccomp, landlock N".

    What it has open stays usable; what it has not imported it can import no more. `no_new_privs` must be set,
    and no other thread may run yet; those that it starts from then on are locked in with it. Raises
    WorkerRefused where that cannot be, or the kernel or processor has no seccomp filter: it never goes on
    unlocked.
    """
    if platform.machine() != "x86_64":
        raise WorkerRefused(f"the sandbox is made for x86_64, this is {platform.machine()}")
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise WorkerRefused(f"{threads} threads run: each of the locks would hold one alone")
    locked = _landlock()
    _seccomp()
    return f"seccomp, landlock {locked}" if locked else "seccomp"


def _landlock() -> int:
    """The version of the interface that is in force now, 0 where there is none."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    version = int(syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION))
    if version < 1:
        return 0
    files = _FILE_RIGHTS[min(version, max(_FILE_RIGHTS))]
    attributes = struct.pack("QQQ", files, _TCP_RIGHTS, _SCOPES)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = syscall(_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    if ruleset < 0 or syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) != 0:
        raise WorkerRefused(f"landlock cannot be put in force: errno {ctypes.get_errno()}")
    return version


def _seccomp() -> None:
    program = _program()
    instructions = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0) != 0:
        raise WorkerRefused(f"the seccomp filter is refused: errno {ctypes.get_errno()}")


def _program() -> bytes:
    """struct sock_filter[]: another architecture dies, the allowed pass, all else is refused."""
    lines = [
        _instruction(_LOAD, _ARCH),
        _instruction(_JUMP_EQUAL, _AUDIT_ARCH_X86_64, 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NR),
        _instruction(_JUMP_AT_LEAST, _X32_BIT, 0, 1),
        _instruction(_RETURN, _KILL),
    ]
    for number in _ALLOWED.values():
        lines += [_instruction(_JUMP_EQUAL, number, 0, 1), _instruction(_RETURN, _ALLOW)]
    for number in _ALLOWED_WITHOUT_EXEC.values():
        lines += [
            _instruction(_JUMP_EQUAL, number, 0, 4),
            _instruction(_LOAD, _THIRD_ARGUMENT),
            _instruction(_JUMP_ANY_BIT, _PROT_EXEC, 0, 1),
            _instruction(_RETURN, _REFUSE),
            _instruction(_RETURN, _ALLOW),
        ]
    lines += [
        _instruction(_JUMP_EQUAL, _CLONE3, 0, 1),
        _instruction(_RETURN, _UNKNOWN),
        _instruction(_JUMP_EQUAL, _CLONE, 0, 3),
        _instruction(_LOAD, _FIRST_ARGUMENT),
        _instruction(_JUMP_ANY_BIT, _CLONE_THREAD, 0, 1),
        _instruction(_RETURN, _ALLOW),
    ]
    return b"".join([*lines, _instruction(_RETURN, _REFUSE)])


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)
