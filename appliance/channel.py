"""The messages between the daemon and its child processes, and the child's side of them.

Messages are length-prefixed msgpack of the structs below. A child imports this module, its target and
nothing else of the appliance: a process starts in tens of milliseconds.
"""

import contextlib
import ctypes
import importlib
import mmap
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Iterable
from typing import Any, NoReturn

import msgspec

from appliance import sandbox
from appliance.errors import ApplianceError, TooLarge, WorkerRefused

# The largest message in either direction; bulk belongs into shared memory.
MESSAGE_BYTES = 16 * 1024 * 1024
LENGTH = 4
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38


class Limits(msgspec.Struct, frozen=True):
    """What a child may use; None leaves the daemon's own limit. `nice` adds to the daemon's niceness.

    `confined`: it is locked in (`appliance.sandbox`) before its first request, or it does not start.
    `huge_pages`: its memory is in pages of 2 MB where it takes much of it, for what reads it all over.
    """

    address_space_bytes: int | None = None
    cpu_seconds: int | None = None
    file_bytes: int | None = None
    nice: int = 0
    confined: bool = False
    huge_pages: bool = False


class Start(msgspec.Struct, frozen=True, array_like=True):
    target: str
    settings: dict[str, Any]
    limits: Limits
    memories: list[int]


class Request(msgspec.Struct, frozen=True, array_like=True):
    id: int
    body: bytes


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=0):
    id: int
    body: bytes


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag=1):
    id: int
    error: str
    message: str


# Start counts as a request of this id; its answer holds what the child says of itself.
START_ID = 0


def frame(message: msgspec.Struct) -> bytearray:
    """A message as it travels. Raises TooLarge."""
    framed = bytearray(LENGTH)
    _ENCODER.encode_into(message, framed, LENGTH)
    size = len(framed) - LENGTH
    if size > MESSAGE_BYTES:
        raise TooLarge(f"a message of {size} bytes is over the limit of {MESSAGE_BYTES} between processes")
    framed[:LENGTH] = size.to_bytes(LENGTH, "little")
    return framed


def take(buffer: bytearray) -> bytes | None:
    """The next whole message, removed from the buffer; ValueError when it is announced over the limit."""
    if len(buffer) < LENGTH:
        return None
    end = LENGTH + int.from_bytes(buffer[:LENGTH], "little")
    if end > LENGTH + MESSAGE_BYTES:
        raise ValueError("message too long")
    if len(buffer) < end:
        return None
    message = bytes(memoryview(buffer)[LENGTH:end])
    del buffer[:end]
    return message


_ENCODER = msgspec.msgpack.Encoder()
_START = msgspec.msgpack.Decoder(Start)
_REQUEST = msgspec.msgpack.Decoder(Request)


class Channel:
    """The child's side: requests in order, answers in any order, and the shared memories of its start.

    Requests belong to one thread; any may answer.
    """

    def __init__(self, connection: socket.socket, memories: list[memoryview], *, confined: bool) -> None:
        self._socket = connection
        self._buffer = bytearray()
        self._confined = confined
        self._writing = threading.Lock()
        self.memories = memories

    def ready(self, info: dict[str, Any]) -> None:
        """Say that requests are welcome; `info` becomes the daemon's `Worker.info`.

        A child that is to be confined is locked in first. Raises WorkerRefused where that cannot be.
        """
        if self._confined:
            info = info | {"sandbox": sandbox.confine()}
        self.send(START_ID, _ENCODER.encode(info))

    def receive(self) -> tuple[int, bytes] | None:
        """The next request's id and body; None when the daemon is gone and the target should return."""
        while (message := take(self._buffer)) is None:
            if not self._fill(0):
                return None
        request = _REQUEST.decode(message)
        return request.id, request.body

    def receive_all(self) -> list[tuple[int, bytes]]:
        """As `receive`, with the requests that came at the same time; none when the daemon is gone."""
        received = []
        if (request := self.receive()) is not None:
            received.append(request)
            while (message := take(self._buffer)) is not None:
                later = _REQUEST.decode(message)
                received.append((later.id, later.body))
        return received

    def waiting(self) -> bool:
        """Whether `receive` would return a request at once."""
        with contextlib.suppress(BlockingIOError):
            while self._fill(socket.MSG_DONTWAIT):
                pass
        size = int.from_bytes(self._buffer[:LENGTH], "little")
        return len(self._buffer) >= LENGTH + size if self._buffer else False

    def send(self, identifier: int, body: bytes) -> None:
        """Answer one request."""
        self._write(frame(Answer(identifier, body)))

    def send_all(self, answers: Iterable[tuple[int, bytes]]) -> None:
        """Answer several requests at once: one write, one wake-up of the daemon's loop."""
        framed = bytearray()
        for identifier, body in answers:
            framed += frame(Answer(identifier, body))
        if framed:
            self._write(framed)

    def refuse(self, identifier: int, error: ApplianceError) -> None:
        """Have the daemon's `call` raise this error: one of REFUSALS, any other costs this child its life."""
        self._write(frame(Refusal(identifier, type(error).__name__, str(error))))

    def _write(self, framed: bytearray) -> None:
        with self._writing:
            self._socket.sendall(framed)

    def _fill(self, flags: int) -> bool:
        received = self._socket.recv(262144, flags)
        self._buffer += received
        return bool(received)


def child(daemon: int) -> NoReturn:
    """The main function of every child process; `daemon` is the process that spawned it."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != daemon:
        # It died before the line above could count.
        os._exit(1)
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    prctl(PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # The daemon drains first and then ends its children itself.
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=0)
    received, fds, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 253)
    buffer = bytearray(received)
    while (message := take(buffer)) is None:
        buffer += connection.recv(65536)
    start = _START.decode(message)
    memories = [memoryview(mmap.mmap(fd, size)) for fd, size in zip(fds, start.memories, strict=True)]
    for fd in fds:
        os.close(fd)
    _limit(start.limits)
    module, function = start.target.split(":")
    channel = Channel(connection, memories, confined=start.limits.confined)
    try:
        getattr(importlib.import_module(module), function)(channel, start.settings)
    except WorkerRefused as refusal:
        channel.refuse(START_ID, refusal)
        # The daemon reads the reason before it sees the end.
        channel.receive()
    sys.stderr.flush()
    os._exit(0)


def _limit(limits: Limits) -> None:
    os.nice(limits.nice)
    # A child that is woken waits for its turn: it does not take the processor from the loop that wakes it, in
    # the middle of a request. Where a kernel or its guard does not let it, nothing else changes.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    if limits.address_space_bytes is not None:
        resource.setrlimit(resource.RLIMIT_AS, (limits.address_space_bytes, limits.address_space_bytes))
    if limits.cpu_seconds is not None:
        # At the first SIGXCPU tells of it; who ignores that is killed at the second.
        resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_seconds, limits.cpu_seconds + 1))
    if limits.file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_bytes, limits.file_bytes))
