"""A decoder in a stranger's hands: it does what the bytes of an image say, behind the real decoder's lock."""

import ctypes
import errno
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.channel import Channel
from appliance.errors import InvalidImage
from appliance.recognition import decode, decoder
from appliance.recognition.ingest import Ingested
from appliance.recognition.preprocessing import Preprocessing

_decode, _ingest = decode.decode, decode.ingest
_libc = ctypes.CDLL(None, use_errno=True)
PTRACE_ATTACH, SYS_PROCESS_VM_READV, SYS_IO_URING_SETUP, SYS_OPENAT2 = 16, 310, 425, 437
SYS_CLONE, CLONE_VM, CLONE_VFORK = 56, 0x100, 0x4000


def _crash() -> None:
    ctypes.string_at(0)


def _hang() -> None:
    while True:
        pass


def _sleep() -> None:
    time.sleep(3600)


def _blow_up() -> None:
    _kept = [bytearray(1 << 24) for _ in range(1000)]


def _say() -> None:
    sys.stderr.write("the secret of the picture\n")
    sys.stderr.flush()


def _raw(number: int, *arguments: object) -> None:
    if _libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")


def _map_code() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


def _ptrace() -> None:
    if _libc.ptrace(PTRACE_ATTACH, os.getppid(), 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "")


def _connect_tcp(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as outside:
        outside.connect(("127.0.0.1", port))


def _in_a_thread(act: Callable[[], Any]) -> None:
    """Threads are let through: what they do must be refused all the same."""
    ended: list[OSError | None] = []

    def attempt() -> None:
        try:
            act()
        except OSError as refused:
            ended.append(refused)
        else:
            ended.append(None)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    if ended[0] is not None:
        raise ended[0]


ACTS: dict[str, Callable[[int], Any]] = {
    "crash": lambda _: _crash(),
    "abort": lambda _: os.abort(),
    "hang": lambda _: _hang(),
    "sleep": lambda _: _sleep(),
    "exit": lambda _: os._exit(0),
    "blow up": lambda _: _blow_up(),
    "say": lambda _: _say(),
    "fork": lambda _: os.fork(),
    "open in a thread": lambda _: _in_a_thread(lambda: os.open("/etc/passwd", os.O_RDONLY)),
    "connect in a thread": lambda port: _in_a_thread(lambda: _connect_tcp(port)),
    "fork in a thread": lambda _: _in_a_thread(os.fork),
    "vfork": lambda _: _raw(SYS_CLONE, CLONE_VM | CLONE_VFORK | signal.SIGCHLD, None, None, None, 0),
    "exec": lambda _: os.execv("/bin/true", ["true"]),
    "spawn": lambda _: subprocess.run(["/bin/true"], check=True),
    "open": lambda _: os.open("/etc/passwd", os.O_RDONLY),
    "open2": lambda _: _raw(SYS_OPENAT2, -100, b"/etc/passwd", b"\0" * 24, 24),
    "create": lambda _: os.open("/tmp/stolen", os.O_CREAT | os.O_WRONLY),
    "list": lambda _: list(os.scandir("/")),
    "stat": lambda _: Path("/etc/passwd").stat(),
    "unlink": lambda _: Path("/tmp/stolen").unlink(),
    "memfd": lambda _: os.memfd_create("stolen"),
    "connect": _connect_tcp,
    "unix socket": lambda _: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
    "listen": lambda _: socket.socket().listen(),
    "netlink": lambda _: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "kill the daemon": lambda _: os.kill(os.getppid(), signal.SIGTERM),
    "trace the daemon": lambda _: _ptrace(),
    "read the daemon": lambda _: _raw(SYS_PROCESS_VM_READV, os.getppid(), None, 0, None, 0, 0),
    "uring": lambda _: _raw(SYS_IO_URING_SETUP, 8, None),
    "map code": lambda _: _map_code(),
    "raise limits": lambda _: _raw(302, 0, 9, None, None),
    "become debuggable": lambda _: _raw(157, 4, 1, 0, 0, 0),
}
DEADLY = {"crash", "abort", "hang", "sleep", "exit"}
HARMLESS = {"blow up", "say"}
STOLEN = Path("/tmp/stolen")


def _hostile(data: memoryview, preprocessing: Preprocessing, **limits: Any) -> decode.Decoded:
    _obey(data)
    return _decode(data, preprocessing, **limits)


def _hostile_ingest(data: memoryview, **options: Any) -> Ingested:
    _obey(data)
    return _ingest(data, **options)


def _obey(data: memoryview) -> None:
    """Do what the bytes say, where they say anything."""
    word, _, port = bytes(data[:64]).decode("ascii", "replace").partition("@")
    if (act := ACTS.get(word)) is None:
        return
    try:
        act(int(port or 0))
    except OSError as refused:
        raise InvalidImage(f"refused with {errno.errorcode[refused.errno or 0]}") from refused
    raise InvalidImage("it went through")


def main(channel: Channel, settings: dict[str, Any]) -> None:
    decode.decode = _hostile  # type: ignore[assignment]
    decode.ingest = _hostile_ingest  # type: ignore[assignment]
    decoder.main(channel, settings)
