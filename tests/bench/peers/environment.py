"""A peer's own environment, and its server as a context: what it starts is found and ends with it."""

import contextlib
import hashlib
import http.client
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from tests.bench.peers import image
from tests.running import free_port

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / ".cache" / "peers"
START_SECONDS = 120.0
MARK = "BENCH_PEER"
QUIET = {"ORT_DISABLE_TELEMETRY": "1", "BENTOML_DO_NOT_TRACK": "True", "RAY_USAGE_STATS_ENABLED": "0"}


class NotInstalled(Exception):
    """Why the environment could not be made, in pip's words."""


@dataclass(frozen=True)
class Peer:
    """`command` runs in the environment, `{port}` filled in; NAME.txt beside this file locks its packages."""

    name: str
    title: str
    command: Sequence[str]

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    def install(self) -> None:
        """Costs a minute the first time. Raises NotInstalled."""
        lock = Path(__file__).with_name(f"{self.name}.txt")
        made, stamp = hashlib.sha256(lock.read_bytes()).hexdigest(), self.folder / "stamp"
        if stamp.exists() and stamp.read_text() == made:
            return
        print(f"installing {self.title}", file=sys.stderr, flush=True)
        pip = [
            str(self.folder / "bin/python"),
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "--quiet",
        ]
        pip += ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(lock)]
        for command in ([sys.executable, "-m", "venv", "--clear", str(self.folder)], pip):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                said = (done.stderr or done.stdout).strip().splitlines()
                raise NotInstalled(said[-1][:200] if said else f"exit code {done.returncode}")
        stamp.write_text(made)


class RunningPeer:
    """Answers 200 inside; all its processes are gone after."""

    def __init__(self, peer: Peer, model: Path, body: bytes) -> None:
        self._peer = peer
        self._model = model
        self._body = body
        self._mark = f"{MARK}={uuid.uuid4()}"
        self.port = free_port()

    def __enter__(self) -> Self:
        home = self._peer.folder / "home"
        home.mkdir(exist_ok=True)
        name, _, value = self._mark.partition("=")
        environment = {"PATH": f"{self._peer.folder / 'bin'}:{os.environ['PATH']}", "HOME": str(home)}
        environment |= {"PYTHONPATH": str(ROOT), image.MODEL: str(self._model), name: value}
        program, *words = (word.format(port=self.port) for word in self._peer.command)
        with (self._peer.folder / "log").open("wb") as log:
            started = subprocess.Popen(
                [str(self._peer.folder / "bin" / program), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment | QUIET,
                cwd=ROOT,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if started.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                said = (self._peer.folder / "log").read_text(errors="replace")[-2000:]
                raise AssertionError(f"{self._peer.title} does not serve:\n{said}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        left = self._family()
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            left = list(psutil.wait_procs(left, timeout=10)[1])
        assert not left, left

    def processes(self) -> list[int]:
        """All that were started, by whomever."""
        return [process.pid for process in self._family()]

    def _family(self) -> list[psutil.Process]:
        """Who inherited the mark, for the daemons of some peers are nobody's children, and their descendants:
        a process that gives itself a title writes it over its environment.
        """
        family = {one for one in psutil.process_iter() if self._is_marked(one.pid)}
        for one in list(family):
            with contextlib.suppress(psutil.NoSuchProcess):
                family.update(one.children(recursive=True))
        return list(family)

    def _is_marked(self, pid: int) -> bool:
        try:
            return self._mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("POST", "/predict", self._body, {"Content-Type": "application/json"})
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
