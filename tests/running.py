"""The real daemon as a child of a test: start, ask, kill, measure."""

import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import psutil

from demo.state import DemoState

START_SECONDS = 60.0

# Gives a prepared state folder of its own, with a free port, at each call.
CopyState = Callable[[], DemoState]


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Answer:
    """One HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        """The body as JSON; raises ValueError where it is none."""
        return json.loads(self.body)


class RunningAppliance:
    """`appliance serve` on a prepared demo state, as a context: ready inside, gone with its children after.

    `wrapper` goes before the command line (strace). The log is STATE/daemon.log, appended to.
    """

    def __init__(
        self,
        state: DemoState,
        port: int,
        *,
        wrapper: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.state = state
        self.port = port
        self.token = state.token
        self.collection = state.collection
        self.task = state.task
        self._wrapper = list(wrapper)
        self._environment = dict(environment if environment is not None else os.environ)
        self._process: subprocess.Popen[bytes] | None = None
        self._ended: list[psutil.Process] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.stop()

    def start(self) -> None:
        """Start and wait until /readyz says so; fails with the end of the log otherwise."""
        with self.state.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._wrapper, *self.state.command("serve")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            ended = self._process.poll()
            if ended is not None or time.monotonic() > deadline:
                self._process.kill()
                said = self.state.log.read_text(errors="replace")[-3000:]
                raise AssertionError(f"the daemon is not ready (exit code {ended}); its log ends:\n{said}")
            time.sleep(0.02)

    def _ready(self) -> bool:
        try:
            return self.call("GET", "/readyz", headers={}).status == 200
        except (OSError, http.client.HTTPException):
            return False

    @property
    def pid(self) -> int:
        """The daemon's own process id, which it writes into STATE/lock."""
        return int((self.state.folder / "lock").read_text())

    def processes(self) -> list[psutil.Process]:
        """The daemon and its children."""
        daemon = psutil.Process(self.pid)
        return [daemon, *daemon.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """CPU time so far of the daemon and the children it has now."""
        return sum(sum(process.cpu_times()[:2]) for process in self.processes())

    def resident_bytes(self) -> int:
        """Resident memory of the daemon and its children, shared pages counted in each."""
        return sum(process.memory_info().rss for process in self.processes())

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal to the daemon, wait until it and its children are gone; returns its exit code."""
        assert self._process is not None
        members = self.processes() if self._process.poll() is None else []
        if members:
            members[0].send_signal(number)
        code = self._process.wait(timeout=60)
        _, left = psutil.wait_procs(members, timeout=10)
        self._process = None
        assert not left, f"children outlived the daemon: {left}"
        return code

    def kill(self) -> None:
        """kill -9 of the daemon alone; returns when it and its children are gone."""
        assert self.stop(signal.SIGKILL) == -signal.SIGKILL

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        seconds: float = 20.0,
    ) -> Answer:
        """One request on a connection of its own; `headers` default to the demo's token and collection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request(method, path, body, dict(self.headers() if headers is None else headers))
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def headers(self, **changed: str) -> dict[str, str]:
        """The demo's headers for JSON; `changed` names others, underscores for hyphens."""
        usual = {
            "authorization": f"Token {self.token}",
            "collection-id": self.collection,
            "content-type": "application/json",
        }
        return usual | {name.replace("_", "-"): value for name, value in changed.items()}

    def post(self, path: str, document: object, **changed: str) -> Answer:
        """POST JSON with the demo's headers."""
        return self.call("POST", path, json.dumps(document).encode(), headers=self.headers(**changed))

    def add_collection(self, name: str | None = None) -> str:
        """A new, empty collection of the demo's customer; returns its id."""
        answer = self.post("/appliance/v1/collections", {"name": name or f"test {secrets.token_hex(4)}"})
        assert answer.status == 201, answer.body
        return str(answer.document["id"])
