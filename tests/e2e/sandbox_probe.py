"""Runs inside the service's sandbox, by the guest's Python: tries what must not work there, and what must.

Prints one JSON object: each attempt with "allowed", "refused: ERRNO", or what it saw.
"""

import ctypes
import errno
import json
import mmap
import os
import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x00020000  # <linux/sched.h>
# <asm/unistd_64.h>
PERSONALITY, PTRACE, SETTIMEOFDAY, MOUNT, SETHOSTNAME, KEXEC_LOAD, BPF = 135, 101, 164, 165, 170, 246, 321
INIT_MODULE, REBOOT, SETUID, SECCOMP, LANDLOCK_CREATE_RULESET = 175, 169, 105, 317, 444
SCHED_FIFO, LANDLOCK_VERSION, SECCOMP_GET_ACTION_AVAIL, SECCOMP_RET_KILL = 1, 1, 2, 0


def attempt(act: Callable[[], object]) -> str:
    try:
        act()
    except OSError as error:
        return f"refused: {errno.errorcode.get(error.errno or 0, str(error))}"
    return "allowed"


def syscall(*arguments: object) -> Callable[[], None]:
    def act() -> None:
        if LIBC.syscall(*arguments) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    return act


def call(name: str, *arguments: object) -> Callable[[], None]:
    def act() -> None:
        if getattr(LIBC, name)(*arguments) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    return act


def writing(folder: str) -> Callable[[], None]:
    def act() -> None:
        path = Path(folder) / "probe"
        path.write_bytes(b"probe")
        path.unlink()

    return act


def opening(path: str) -> Callable[[], None]:
    return lambda: os.close(os.open(path, os.O_RDONLY))


def listing(folder: str) -> str:
    try:
        return "nothing" if not os.listdir(folder) else "something"  # noqa: PTH208 - as plain as the question
    except OSError as error:
        return f"refused: {errno.errorcode.get(error.errno or 0)}"


def connecting(address: str) -> Callable[[], None]:
    return lambda: socket.create_connection((address, 9), timeout=3).close()


def executable_memory() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def setuid_file(state: str) -> None:
    path = Path(state) / "probe"
    path.write_bytes(b"")
    try:
        path.chmod(0o4755)
    finally:
        path.unlink()


def running(state: str) -> None:
    """Executes a file that the service wrote itself."""
    path = Path(state) / "probe"
    path.write_bytes(b"#!/bin/sh\nexit 0\n")
    try:
        path.chmod(0o700)
        os.posix_spawn(str(path), [str(path)], {})
    finally:
        path.unlink()


def foreign_processes() -> str:
    own = os.getuid()
    foreign = [
        entry for entry in Path("/proc").iterdir() if entry.name.isdigit() and entry.stat().st_uid != own
    ]
    return f"{len(foreign)} of others"


def main(state: str, undeclared: str) -> None:
    real_time = ctypes.byref(ctypes.c_int(1))
    outcomes = {
        **{
            f"write {folder}": attempt(writing(folder))
            for folder in ("/", "/etc", "/etc/appliance", "/usr/bin")
        },
        **{
            f"write {folder}": attempt(writing(folder))
            for folder in ("/opt/appliance", "/tmp", "/var/tmp", "/var")
        },
        **{f"write {folder}": attempt(writing(folder)) for folder in (state, "/run/appliance", "/dev/shm")},
        **{
            f"list {folder}": listing(folder)
            for folder in ("/home", "/root", "/var/log", "/boot", "/etc/ssh")
        },
        **{f"open {path}": attempt(Path(path).read_bytes) for path in ("/etc/shadow", "/etc/machine-id")},
        **{
            f"device {path}": attempt(opening(path))
            for path in (
                "/dev/vda",
                "/dev/mem",
                "/dev/kmsg",
                "/dev/mapper/control",
                "/dev/rtc0",
                "/dev/net/tun",
            )
        },
        "file with the setuid bit": attempt(lambda: setuid_file(state)),
        "run a file of its own": attempt(lambda: running(state)),
        "executable memory": attempt(executable_memory),
        "user namespace": attempt(call("unshare", CLONE_NEWUSER)),
        "mount namespace": attempt(call("unshare", CLONE_NEWNS)),
        "mount": attempt(syscall(MOUNT, b"none", b"/dev/shm", b"tmpfs", 0, None)),
        "packet socket": attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()),
        "netlink socket": attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()),
        "raw socket": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()),
        "trace a process": attempt(syscall(PTRACE, 16, os.getppid(), None, None)),
        "another personality": attempt(syscall(PERSONALITY, 0x0008)),
        "set the clock": attempt(syscall(SETTIMEOFDAY, None, None)),
        "set the host name": attempt(syscall(SETHOSTNAME, b"x", 1)),
        "load a kernel": attempt(syscall(KEXEC_LOAD, 0, 0, None, 0)),
        "load a module": attempt(syscall(INIT_MODULE, None, 0, None)),
        "load a BPF program": attempt(syscall(BPF, 0, None, 0)),
        "reboot": attempt(syscall(REBOOT, 0, 0, 0, None)),
        "another user": attempt(syscall(SETUID, 0)),
        "give a file away": attempt(lambda: os.chown("/run/appliance", 0, 0)),
        "real-time scheduling": attempt(call("sched_setscheduler", 0, SCHED_FIFO, real_time)),
        "the kernel's log": attempt(call("klogctl", 3, ctypes.create_string_buffer(64), 64)),
        "a kernel tunable": attempt(lambda: Path("/proc/sys/kernel/domainname").write_text("x")),
        "a control group": attempt(lambda: Path("/sys/fs/cgroup/cgroup.procs").write_text("0")),
        "connect to an undeclared address": attempt(connecting(undeclared)),
        "other users' processes": foreign_processes(),
        "core dumps": str(resource.getrlimit(resource.RLIMIT_CORE)),
        "swap areas": attempt(Path("/proc/swaps").read_bytes),
        "devices in sysfs": attempt(
            lambda: next(iter(Path("/sys/dev/block").iterdir())).resolve(strict=True)
        ),
        "lower its own priority": attempt(lambda: os.setpriority(os.PRIO_PROCESS, 0, 5)),
        "ask for seccomp": attempt(
            syscall(SECCOMP, SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(ctypes.c_uint32(SECCOMP_RET_KILL)))
        ),
        "ask for landlock": attempt(syscall(LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_VERSION)),
        "credential": attempt(Path(os.environ["CREDENTIALS_DIRECTORY"], "root.key").read_bytes),
    }
    print(json.dumps(outcomes, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
