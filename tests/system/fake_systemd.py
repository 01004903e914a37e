"""What a service manager is to the daemon: a datagram socket that it says things to."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.waiting import SECONDS


class ServiceManager:
    """NOTIFY_SOCKET in the abstract namespace; `said` holds every line so far, in order.

    It reads at once, like the real one: a datagram socket with ten unread messages stops who writes to it.
    """

    def __init__(self, *, watchdog_seconds: float | None = None) -> None:
        name = f"appliance-test-{os.getpid()}-{time.monotonic_ns()}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{name}")
        self.environment: dict[str, str] = {**os.environ, "NOTIFY_SOCKET": f"@{name}"}
        if watchdog_seconds is not None:
            self.environment["WATCHDOG_USEC"] = str(int(watchdog_seconds * 1e6))
        self.said: list[str] = []
        self._heard = threading.Condition()
        self._seen = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RD)
        self._reader.join()
        self._socket.close()

    def until(self, beginning: str) -> str:
        """Wait for a line that begins so, after the one that was waited for last; returns it."""
        deadline = time.monotonic() + SECONDS
        with self._heard:
            while True:
                while self._seen < len(self.said):
                    self._seen += 1
                    if (line := self.said[self._seen - 1]).startswith(beginning):
                        return line
                left = deadline - time.monotonic()
                assert left > 0, f"no {beginning!r} within {SECONDS:g} s, only {self.said}"
                self._heard.wait(left)

    def _read(self) -> None:
        while message := self._socket.recv(65536):
            with self._heard:
                self.said += message.decode().splitlines()
                self._heard.notify_all()


@contextlib.contextmanager
def service_manager(*, watchdog_seconds: float | None = None) -> Iterator[ServiceManager]:
    manager = ServiceManager(watchdog_seconds=watchdog_seconds)
    try:
        yield manager
    finally:
        manager.close()


def edit(path: Path, old: str, new: str) -> None:
    """Replace text in a configuration file; the old text must be there once."""
    text = path.read_text()
    assert text.count(old) == 1, (old, text)
    path.write_text(text.replace(old, new))
