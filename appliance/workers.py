"""Child processes for what can crash, hang, leak or hold the interpreter.

`Worker` spawns one process, talks to it over one socket pair (`appliance.channel` is the other side), and
replaces it when it is lost. Bulk crosses in `Memory`, anonymous shared memory whose descriptor travels over
the socket. Nothing here opens a path. A child is untrusted: whatever it sends that is not a well-formed
answer counts as its death.
"""

import asyncio
import contextlib
import fcntl
import logging
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec

from appliance.background import end_tasks
from appliance.channel import START_ID, Answer, Limits, Refusal, Request, Start, frame, take
from appliance.errors import (
    ApplianceError,
    BundleDamaged,
    CapacityExceeded,
    InvalidImage,
    InvalidInput,
    ModelFailed,
    NotFound,
    TooLarge,
    WorkerLost,
    WorkerRefused,
)
from appliance.unforeseen import frames_of

log = logging.getLogger(__name__)

START_SECONDS = 120.0
EXIT_SECONDS = 1.0
# Wiped regions of at least this size go back to the system; below, the page faults of the next use cost more
# (1 ms a megabyte) than zeroing in place does (20 us).
RELEASE_BYTES = 4 * 1024 * 1024
ZEROS = memoryview(bytes(RELEASE_BYTES))
# What a child may refuse a request with. Anything else it names is a malformed answer.
REFUSALS: dict[str, type[ApplianceError]] = {
    refusal.__name__: refusal
    for refusal in (
        BundleDamaged,
        CapacityExceeded,
        InvalidImage,
        InvalidInput,
        ModelFailed,
        NotFound,
        TooLarge,
        WorkerRefused,
    )
}
REFUSAL_CHARACTERS = 2000
STDERR_LINES = 100
ENVIRONMENT = {
    "LC_ALL": "C.UTF-8",
    "MALLOC_ARENA_MAX": "2",
    # Fixed, because the C library's own guess keeps tens of megabytes after one large image, or gives back
    # and faults in again a few at every small one (a fifth of the cost of decoding a megapixel).
    "MALLOC_MMAP_THRESHOLD_": str(4 * 1024 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(16 * 1024 * 1024),
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}
# Read by the C library: it asks the kernel for them wherever it allocates much.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
INHERITED_ENVIRONMENT = ("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "NVIDIA_VISIBLE_DEVICES")
# Without `site` and `-m`: 10 ms less, the module is not imported twice, and paths are the daemon's own.
# A child writes no file, not even its own compiled modules.
BOOTSTRAP = (
    "import sys; sys.dont_write_bytecode = True; sys.path[:] = sys.argv[2:]; "
    "from appliance.channel import child; child(int(sys.argv[1]))"
)


class Memory:
    """Anonymous shared memory of `size` bytes, zeroed; no path leads to it and no one can resize it.

    Pages cost nothing until they are first touched.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = os.memfd_create("appliance", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size)
            # A child that shrinks the memory would turn the daemon's next access into SIGBUS.
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
            self._map = mmap.mmap(self.fd, size)  # which takes a descriptor of its own
        except OSError:
            os.close(self.fd)
            raise
        self.view = memoryview(self._map)

    def wipe(self, offset: int, length: int) -> None:
        """Zero a region; whole pages of a large one (RELEASE_BYTES) are also given back to the system."""
        end = offset + length
        first, last = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if length < RELEASE_BYTES:
            self.view[offset:end] = ZEROS[:length]
            return
        self.view[offset:first] = ZEROS[: first - offset]
        self.view[last:end] = ZEROS[: end - last]
        self._map.madvise(mmap.MADV_REMOVE, first, last - first)

    def release(self) -> None:
        """Zero all of it and give its pages back to the system: for what is not used again at once."""
        self._map.madvise(mmap.MADV_REMOVE)

    def close(self) -> None:
        """Unmap and release it. Views taken from it should be released before: one that is left keeps the
        address space, of what lay there nothing.
        """
        try:
            self.view.release()
            self._map.close()
        except BufferError as error:
            # At the end of the daemon: whoever forgot a view must not keep what comes after from ending.
            self._map.madvise(mmap.MADV_REMOVE)
            log.warning("shared memory of %d bytes stays mapped: %s", self.size, error)
        finally:
            os.close(self.fd)


# What becomes of a request: the child's answer, or the error that `Worker.call` raises.
Outcome = bytes | ApplianceError

_REPLY: msgspec.msgpack.Decoder[Answer | Refusal] = msgspec.msgpack.Decoder(Answer | Refusal)
_INFO = msgspec.msgpack.Decoder(dict[str, Any])


class _Owed(NamedTuple):
    """An answer that is awaited: late at a time, or, where it waits its turn, when nothing is answered for as
    long. A child with a queue that answers one after the other does not hang."""

    late: float
    seconds: float
    in_turn: bool
    hear: Callable[[Outcome], None]

    def late_after(self, heard: float) -> float:
        """When, if the child last answered anything at `heard`."""
        return max(self.late, heard + self.seconds) if self.in_turn else self.late


class _Child(asyncio.Protocol):
    """One process from spawn to reaped: its channel, what it owes answers for, and what it says on stderr."""

    def __init__(self, name: str, on_lost: Callable[[], None], limits: Limits) -> None:
        self._loop = asyncio.get_running_loop()
        self._name = name
        self._limits = limits
        self._on_lost = on_lost
        self._transport: asyncio.WriteTransport | None = None
        self._pending: dict[int, _Owed] = {}
        # One timer for all of them: it looks at the clock of the earliest, and is seldom set.
        self._watch: asyncio.TimerHandle | None = None
        self._heard = 0.0  # when it last answered anything
        self._next_id = START_ID
        self._buffer = bytearray()
        self._lines_left = STDERR_LINES
        self._last_line = ""
        self.answered = False
        self.reaped: asyncio.Future[None] = self._loop.create_future()
        # Holds the reason once the child can no longer be used.
        self.lost: asyncio.Future[str] = self._loop.create_future()

    def spawn(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        package_folder = str(Path(__file__).parent.parent)
        paths = dict.fromkeys(entry for entry in (*sys.path, package_folder) if Path(entry).is_absolute())
        inherited = {name: os.environ[name] for name in INHERITED_ENVIRONMENT if name in os.environ}
        with contextlib.ExitStack() as undo, theirs:
            undo.callback(self._socket.close)
            self._stderr, write_end = os.pipe()
            undo.callback(os.close, self._stderr)
            with os.fdopen(write_end, "wb", 0) as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", BOOTSTRAP, str(os.getpid()), *paths],
                    # The channel is the child's standard input: the one socket that it inherits.
                    stdin=theirs.fileno(),
                    stdout=output,
                    stderr=output,
                    env=inherited | ENVIRONMENT | (HUGE_PAGES if self._limits.huge_pages else {}),
                    cwd="/",
                    start_new_session=True,
                )
            self.pid = self._process.pid
            undo.callback(self._process.wait)
            undo.callback(self._process.kill)
            self._pidfd = os.pidfd_open(self.pid)
            undo.pop_all()
        os.set_blocking(self._stderr, False)
        self._socket.setblocking(False)
        self._loop.add_reader(self._stderr, self._read_stderr)
        self._loop.add_reader(self._pidfd, self._exited)

    async def connect(self, start: Start, fds: Sequence[int]) -> dict[str, Any]:
        """Hand it what it starts with; returns what it says of itself once it is ready."""
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._expect(START_SECONDS, partial(settle, answer), in_turn=False)
        socket.send_fds(self._socket, [frame(start)], list(fds))
        self._transport, _ = await self._loop.create_unix_connection(lambda: self, sock=self._socket)
        return _INFO.decode(await answer)

    def submit(self, body: bytes, seconds: float, hear: Callable[[Outcome], None], *, in_turn: bool) -> None:
        request = frame(Request(self._next_id, body))
        if self.lost.done():
            hear(self._loss())
            return
        self._expect(seconds, hear, in_turn=in_turn)
        # Between its last breath and its end nothing can be written any more; it is lost in a moment.
        if self._transport is not None and not self._transport.is_closing():
            self._write(self._transport, request)

    def _write(self, transport: asyncio.WriteTransport, request: bytearray) -> None:
        """At once, where nothing waits to be written: a turn of the loop less. The transport has the rest."""
        sent = 0
        if not transport.get_write_buffer_size():
            with contextlib.suppress(OSError):  # the transport finds out as well
                sent = self._socket.send(request)
        if sent < len(request):
            transport.write(request[sent:])

    def _expect(self, seconds: float, hear: Callable[[Outcome], None], *, in_turn: bool) -> None:
        late = self._loop.time() + seconds
        self._pending[self._next_id] = _Owed(late, seconds, in_turn, hear)
        self._next_id += 1
        if self._watch is None or late < self._watch.when():
            self._watch_until(late)

    def _watch_until(self, late: float) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch = self._loop.call_at(late, self._look)

    def _look(self) -> None:
        self._watch = None
        if not self._pending:
            return
        late, seconds = min((owed.late_after(self._heard), owed.seconds) for owed in self._pending.values())
        if late <= self._loop.time():
            self.lose(f"did not answer within {seconds:g} s")
        else:
            self._watch_until(late)

    def lose(self, reason: str) -> None:
        """Kill it and fail everything that waits for it; only the first reason counts."""
        if self.lost.done():
            return
        self.lost.set_result(reason)
        self._on_lost()
        if self._process.returncode is None:
            self._process.kill()
        if self._watch is not None:
            self._watch.cancel()
        pending, self._pending = self._pending, {}
        for owed in pending.values():
            owed.hear(self._loss())

    def _loss(self) -> WorkerLost:
        return WorkerLost(f"{self._name} {self.lost.result()}")

    async def end(self) -> None:
        """Return when the process is gone and its descriptors are closed."""
        self.lose("was stopped")
        if self._transport:
            self._transport.abort()
        else:
            self._socket.close()
        await asyncio.shield(self.reaped)

    def connection_lost(self, _error: Exception | None) -> None:
        self._drain()
        self._on_lost()
        # A process that ends closes its channel first; its exit status tells more.
        self._loop.call_later(EXIT_SECONDS, self.lose, "closed its channel")

    def _drain(self) -> None:
        """Hear what it answered before its end: a write that fails ends the transport, that unread."""
        with contextlib.suppress(OSError):
            while not self.lost.done() and (data := self._socket.recv(262144)):
                self.data_received(data)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while not self.lost.done():
            try:
                if (message := take(self._buffer)) is None:
                    return
                reply = _REPLY.decode(message)
                outcome = reply.body if isinstance(reply, Answer) else _error(reply)
                hear = self._pending.pop(reply.id).hear
            except (ValueError, KeyError, msgspec.DecodeError):
                self.lose("sent a malformed answer")
                return
            self.answered = True
            self._heard = self._loop.time()
            hear(outcome)

    def _read_stderr(self) -> None:
        text = os.read(self._stderr, 65536)
        if not text:  # it has ended, and says nothing by that
            self._loop.remove_reader(self._stderr)
            return
        if not self._lines_left:
            return
        if self._limits.confined and START_ID not in self._pending:
            # It has seen images and may be in a stranger's hands: its words could carry them to the journal.
            self._lines_left = 0
            log.warning("%s (%d) complains; of what it is given that is not logged", self._name, self.pid)
            return
        for line in text.decode("utf-8", "replace").splitlines()[: self._lines_left]:
            self._lines_left -= 1
            self._last_line = "".join(character for character in line if character.isprintable())[:300]
            log.warning("%s (%d) says: %s", self._name, self.pid, self._last_line)

    def _exited(self) -> None:
        status = self._process.poll()
        if status is None:
            return
        with contextlib.suppress(BlockingIOError):
            self._read_stderr()
        for fd in (self._pidfd, self._stderr):
            self._loop.remove_reader(fd)
            os.close(fd)
        reason = (
            f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        )
        # What it says before it has seen any request is for the operator; later it could be about an image.
        self._drain()
        self.lose(f"{reason}: {self._last_line}" if START_ID in self._pending else reason)
        self.reaped.set_result(None)


def _error(refusal: Refusal) -> ApplianceError:
    return REFUSALS[refusal.error](refusal.message[:REFUSAL_CHARACTERS])


def settle(answer: asyncio.Future[bytes], outcome: Outcome) -> None:
    """Give the outcome of a request to whom it concerns, unless nobody waits any more."""
    if answer.done():
        return
    if isinstance(outcome, ApplianceError):
        fail(answer, outcome)
    else:
        answer.set_result(outcome)


def fail(answer: asyncio.Future[Any], error: Exception) -> None:
    """Give an error to whom it concerns. One who went away leaves it unread: that is no error of its own."""
    if not answer.done():
        answer.set_exception(error)
        answer.exception()


def without_frames(error: Exception) -> Exception:
    """The same error, with nothing that its frames held; of a bug the places stay, as a note."""
    if not isinstance(error, ApplianceError):
        error.add_note(frames_of(error))
    linked: list[BaseException | None] = [error]
    seen: set[int] = set()
    while linked:
        one = linked.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            linked += one.__cause__, one.__context__
    return error


class Worker:
    """One child process that is replaced when it is lost. `async with` starts it and kills it at the end.

    `target` is "package.module:function", called in the child as `function(channel, settings)`; `settings`
    must be msgpack-able and small. Entering raises WorkerRefused when the child cannot start. `on_start` runs
    after every start before other calls are let through, and may itself use `call` and `submit`.
    """

    def __init__(
        self,
        name: str,
        target: str,
        settings: dict[str, Any],
        *,
        memories: Sequence[Memory] = (),
        limits: Limits | None = None,
        on_start: Callable[[], Awaitable[None]] | None = None,
        backoff_seconds: tuple[float, float] = (0.1, 30.0),
    ) -> None:
        self.name = name
        self.restarts = 0
        self.info: dict[str, Any] = {}
        self._start_message = Start(
            target, settings, limits or Limits(), [memory.size for memory in memories]
        )
        self._memories = memories
        self._on_start = on_start
        self._backoff = backoff_seconds
        self._child: _Child | None = None
        self._opener: asyncio.Task[Any] | None = None
        self._open = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The latest process, None when it is lost and its successor has not begun."""
        return self._child.pid if self._child and not self._child.lost.done() else None

    @property
    def serving(self) -> bool:
        """Whether calls reach a child now; False from its loss until its successor has started."""
        return self._open.is_set()

    async def until_serving(self) -> None:
        """Return once calls reach a child: at once, or when the restart under way is done."""
        await self._open.wait()

    async def __aenter__(self) -> Self:
        try:
            await self._begin()
        except WorkerLost as error:
            raise WorkerRefused(f"{error} before it was ready") from error
        self._supervisor = asyncio.get_running_loop().create_task(self._supervise(), name=self.name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await end_tasks(self._supervisor)
        finally:
            if self._child:
                await self._child.end()

    async def call(self, request: bytes, seconds: float) -> bytes:
        """The child's answer. Concurrent calls are sent in order; waits for a restart that is under way.

        WorkerLost: the child died, sent nonsense, or took more than `seconds` (then it is killed); the
        appliance error of a refusal is raised as it is. A cancelled call leaves the child working.
        """
        if not self._let_through():
            try:
                async with asyncio.timeout(seconds):
                    await self._open.wait()
            except TimeoutError:
                raise WorkerLost(f"{self.name} is being restarted") from None
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._reached().submit(request, seconds, partial(settle, answer), in_turn=False)
        return await answer

    def submit(self, request: bytes, seconds: float, hear: Callable[[Outcome], None]) -> None:
        """`call` for owners of memory: `hear` is called once, when the child is done with it or gone.

        It gets the answer or the error, and may call `submit` itself. Such requests wait their turn: the
        child is lost when it answers nothing for `seconds`. Raises WorkerLost during a restart.
        """
        self._reached().submit(request, seconds, hear, in_turn=True)

    def limit_address_space(self, size: int) -> None:
        """The child maps no more than so many bytes from now on; `Limits` must not say how many.

        One that replaces it is not limited. Raises WorkerLost.
        """
        if (pid := self.pid) is None:
            raise WorkerLost(f"{self.name} is being restarted")
        try:
            _, most = resource.prlimit(pid, resource.RLIMIT_AS)
            resource.prlimit(pid, resource.RLIMIT_AS, (size, most))
        except ProcessLookupError:
            raise WorkerLost(f"{self.name} has ended") from None

    def give_up(self, reason: str) -> None:
        """Have the present child killed and replaced, as if it had not answered in time."""
        if self._child is not None:
            self._child.lose(reason)

    def _reached(self) -> _Child:
        if self._child is None or not self._let_through():
            raise WorkerLost(f"{self.name} is being restarted")
        return self._child

    def _let_through(self) -> bool:
        return self._open.is_set() or (self._opener is not None and self._opener is asyncio.current_task())

    async def _begin(self) -> None:
        child = _Child(self.name, self._open.clear, self._start_message.limits)
        child.spawn()
        self._child = child
        try:
            self.info = await child.connect(self._start_message, [memory.fd for memory in self._memories])
            self._opener = asyncio.current_task()
            if self._on_start:
                await self._on_start()
        except BaseException:
            await child.end()
            raise
        finally:
            self._opener = None
        # Only the answers to requests speak for it when the next back-off is chosen.
        child.answered = False
        self._open.set()

    async def _supervise(self) -> None:
        delay = 0.0
        while self._child:
            # Shielded: the end of this task must not look like the end of the child.
            reason = await asyncio.shield(self._child.lost)
            await self._child.end()
            # One that has answered is replaced at once: a hostile request must not buy the others a pause.
            delay = 0.0 if self._child.answered else self._longer(delay)
            log.warning("%s %s; it is restarted in %g s", self.name, reason, delay)
            while not self._open.is_set():
                await asyncio.sleep(delay)
                self.restarts += 1
                try:
                    await self._begin()
                except Exception:
                    delay = self._longer(delay)
                    log.exception("%s did not restart; next try in %g s", self.name, delay)

    def _longer(self, delay: float) -> float:
        shortest, longest = self._backoff
        return min(max(2 * delay, shortest), longest)
