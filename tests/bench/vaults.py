"""Other encrypted stores, as Debian has them: gocryptfs (FUSE), rclone's crypt, restic."""

import os
import resource
import shutil
import subprocess
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import psutil

PASSWORD = "not a secret"


@dataclass(frozen=True)
class Cost:
    """CPU seconds a GB to put a tree and to get it back."""

    put: float
    get: float


class Other(ABC):
    """One program: puts a tree into a store of its own under `folder`, and reads all of it back."""

    name: str

    def measure(self, folder: Path, tree: Path, size: int) -> Cost:
        """What it spends on a tree of `size` bytes."""
        place = folder / self.name
        place.mkdir()
        try:
            self.open(place)
            put = self._cpu(lambda: self.put(place, tree))
            get = self._cpu(lambda: self.get(place))
        finally:
            self.close(place)
            shutil.rmtree(place, ignore_errors=True)
        return Cost(put * 1e9 / size, get * 1e9 / size)

    def _cpu(self, work: object) -> float:
        assert callable(work)
        before = _children() + self.serving()
        work()
        os.sync()
        return _children() + self.serving() - before

    def serving(self) -> float:
        """CPU seconds so far of a process that stays."""
        return 0.0

    @abstractmethod
    def open(self, place: Path) -> None: ...

    @abstractmethod
    def put(self, place: Path, tree: Path) -> None: ...

    @abstractmethod
    def get(self, place: Path) -> None: ...

    def close(self, place: Path) -> None:  # noqa: B027 - most have nothing that runs
        """Take down what `open` started."""


class Gocryptfs(Other):
    name = "gocryptfs"

    def __init__(self) -> None:
        self._process: psutil.Process | None = None

    def open(self, place: Path) -> None:
        for folder in ("cipher", "plain"):
            (place / folder).mkdir()
        (place / "password").write_text(PASSWORD)
        options = ["-q", "-passfile", str(place / "password"), "-scryptn", "10"]
        _do("gocryptfs", "-init", *options, str(place / "cipher"))
        _do("gocryptfs", *options, str(place / "cipher"), str(place / "plain"))
        self._process = next(
            process
            for process in psutil.process_iter(["name", "cmdline"])
            if process.info["name"] == "gocryptfs" and str(place / "plain") in process.info["cmdline"]
        )

    def serving(self) -> float:
        if self._process is None:
            return 0.0
        spent = self._process.cpu_times()
        return float(spent.user + spent.system)

    def put(self, place: Path, tree: Path) -> None:
        _do("cp", "-r", str(tree), str(place / "plain"))

    def get(self, place: Path) -> None:
        _read(place / "plain")

    def close(self, place: Path) -> None:
        subprocess.run(["umount", str(place / "plain")], check=False)
        if self._process is not None:
            self._process.wait(10)


class Rclone(Other):
    name = "rclone"

    def open(self, place: Path) -> None:
        obscured = subprocess.run(
            ["rclone", "obscure", PASSWORD], check=True, capture_output=True, text=True
        ).stdout.strip()
        config = f"[vault]\ntype = crypt\nremote = {place / 'cipher'}\npassword = {obscured}\n"
        (place / "rclone.conf").write_text(config)

    def put(self, place: Path, tree: Path) -> None:
        self._run(place, "copy", str(tree), "vault:")

    def get(self, place: Path) -> None:
        self._run(place, "copy", "vault:", str(place / "back"))

    def _run(self, place: Path, *arguments: str) -> None:
        _do("rclone", "--config", str(place / "rclone.conf"), *arguments)


class Restic(Other):
    name = "restic"

    def open(self, place: Path) -> None:
        self._run(place, "init")

    def put(self, place: Path, tree: Path) -> None:
        self._run(place, "backup", str(tree))

    def get(self, place: Path) -> None:
        self._run(place, "restore", "latest", "--target", str(place / "back"))

    def _run(self, place: Path, *arguments: str) -> None:
        settings = {"RESTIC_PASSWORD": PASSWORD, "RESTIC_CACHE_DIR": str(place / "cache")}
        _do("restic", "-q", "-r", str(place / "cipher"), *arguments, environment=settings)


_ALL: tuple[type[Other], ...] = (Gocryptfs, Rclone, Restic)


def installed() -> list[Other]:
    """Those that this machine has."""
    return [other() for other in _ALL if shutil.which(other.name)]


def missing() -> list[str]:
    """The names of those that it lacks."""
    return [other.name for other in _ALL if not shutil.which(other.name)]


def _do(*command: str, environment: dict[str, str] | None = None) -> None:
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, env=os.environ | (environment or {}), timeout=600
    )


def _read(folder: Path) -> None:
    """Read every file, in a process whose time counts as the store's reader."""
    _do("find", str(folder), "-type", "f", "-exec", "cat", "{}", "+")


def _children() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime
