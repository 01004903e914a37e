"""What the children of the workers tests run: each function is one way to behave, well or badly."""

import contextlib
import ctypes
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import msgspec

from appliance import errors
from appliance.channel import Channel

Settings = dict[str, Any]


def echo(channel: Channel, settings: Settings) -> None:
    """Answers with the request; b"die", b"hang", b"refuse" and b"fail" do what they say."""
    channel.ready({"settings": settings, "pid": os.getpid()})
    while (request := channel.receive()) is not None:
        identifier, body = request
        match body:
            case b"die":
                os.kill(os.getpid(), signal.SIGSEGV)
            case b"hang":
                time.sleep(3600)
            case b"refuse":
                channel.refuse(identifier, errors.InvalidImage("not an image"))
            case b"fail":
                raise RuntimeError("a bug in the target")
            case _:
                channel.send(identifier, body)


def unhurried(channel: Channel, settings: Settings) -> None:
    """Answers one request after the other, each after a fifth of a second; b"hang" never."""
    channel.ready({})
    while (request := channel.receive()) is not None:
        time.sleep(3600 if request[1] == b"hang" else 0.2)
        channel.send(*request)


def deaf(channel: Channel, settings: Settings) -> None:
    """Closes its channel at the first request, and lives on."""
    channel.ready({})
    channel.receive()
    os.close(0)
    time.sleep(3600)


def batches(channel: Channel, settings: Settings) -> None:
    """Answers every request of what had arrived by then with how many that were."""
    channel.ready({})
    while (request := channel.receive()) is not None:
        if request[1] == b"wait":
            time.sleep(0.2)
        taken = [request[0]]
        while channel.waiting() and (more := channel.receive()):
            taken.append(more[0])
        channel.send_all((identifier, str(len(taken)).encode()) for identifier in taken)


def backwards(channel: Channel, settings: Settings) -> None:
    """Collects three requests and answers the last one first."""
    channel.ready({})
    held = [request for _ in range(3) if (request := channel.receive())]
    for identifier, body in reversed(held):
        channel.send(identifier, body)
    channel.receive()


def upper_case(channel: Channel, settings: Settings) -> None:
    """Works on shared memory: request "offset length"."""
    channel.ready({})
    while (request := channel.receive()) is not None:
        offset, length = map(int, request[1].split())
        region = channel.memories[0][offset : offset + length]
        region[:] = bytes(region).upper()
        channel.send(request[0], b"done")


def shrink(channel: Channel, settings: Settings) -> None:
    """Tries to resize what it shares with the daemon, through the map's own descriptor."""
    channel.ready({})
    request = channel.receive()
    outcomes = []
    for entry in Path("/proc/self/fd").iterdir():
        if "memfd" in str(entry.resolve()):
            try:
                os.truncate(entry, 0)
                outcomes.append("resized")
            except OSError:
                outcomes.append("refused")
    if request:
        channel.send(request[0], " ".join(outcomes).encode())
    channel.receive()


def report(channel: Channel, settings: Settings) -> None:
    """Says what it inherited and how it is confined."""
    descriptors = {}
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # the listing itself
            descriptors[entry.name] = str(entry.readlink())
    libc = ctypes.CDLL(None)
    channel.ready(
        {
            "descriptors": descriptors,
            "environment": dict(os.environ),
            "dumpable": libc.prctl(3),
            "no_new_privileges": libc.prctl(39, 0, 0, 0, 0),
            "core": resource.getrlimit(resource.RLIMIT_CORE),
            "address_space": resource.getrlimit(resource.RLIMIT_AS),
            "file_size": resource.getrlimit(resource.RLIMIT_FSIZE),
            "nice": os.nice(0),
            "session": os.getsid(0) == os.getpid(),
            "folder": str(Path.cwd()),
        }
    )
    channel.receive()


def refuses_to_start(channel: Channel, settings: Settings) -> None:
    raise errors.WorkerRefused("libexample.so.1 is missing: install example")


def dies_at_start(channel: Channel, settings: Settings) -> None:
    os.write(2, b"native library: cannot go on\n")
    os.abort()


def talks_nonsense(channel: Channel, settings: Settings) -> None:
    """Once asked, sends the raw bytes given in settings, or answers with too long a body."""
    channel.ready({})
    request = channel.receive()
    assert request is not None
    raw = settings["raw"]
    channel._socket.sendall(raw if isinstance(raw, bytes) else msgspec.msgpack.encode(raw))
    channel.receive()


def chatters(channel: Channel, settings: Settings) -> None:
    """Writes more lines than anyone wants to read, with control characters among them."""
    channel.ready({})
    for number in range(5000):
        os.write(2, f"line {number} \x1b[31m\x07\n".encode())
    channel.receive()
