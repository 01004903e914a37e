"""Whether a data folder may be used: what took it offline, what may bring it back, and what may not."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from appliance.errors import VolumeOffline

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Condition:
    """`offline` may end by itself, `poisoned` ends with a restart; all but `ready` have a reason."""

    state: Literal["closed", "ready", "offline", "poisoned"]
    reason: str | None = None


class Verdict:
    """The condition of one folder, told by those who use it and by those who examine it, on any thread."""

    def __init__(self, name: str, silent_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._silent_seconds = silent_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._open = False
        self._losses = 0
        self._offline: str | None = f"{name} is not open"
        self._poisoned: str | None = None
        self._examined_since: float | None = None

    @property
    def reason(self) -> str | None:
        """Why the folder may not be used, or None."""
        if (reason := self._poisoned or self._offline) is not None:
            return reason
        since = self._examined_since
        if since is not None and self._clock() - since > self._silent_seconds:
            return f"the volume of {self._name} has not answered for {self._silent_seconds:g} s"
        return None

    @property
    def condition(self) -> Condition:
        """The reason with its kind."""
        reason = self.reason
        if self._poisoned is not None:
            return Condition("poisoned", reason)
        if not self._open:
            return Condition("closed", reason)
        return Condition("ready") if reason is None else Condition("offline", reason)

    @property
    def offline(self) -> bool:
        """Whether an examination must prove that the volume takes writes again."""
        return self._offline is not None

    @property
    def poisoned(self) -> VolumeOffline | None:
        """The error to raise once the folder is poisoned."""
        return None if self._poisoned is None else VolumeOffline(self._poisoned)

    def opened(self) -> None:
        """From now on the folder may be used."""
        with self._lock:
            self._open, self._offline = True, None

    def closed(self) -> None:
        """From now on it may not, and no examination brings it back."""
        with self._lock:
            self._open, self._offline = False, f"{self._name} is closed"
            self._losses += 1

    def lose(self, reason: str) -> VolumeOffline:
        """Offline until an examination that begins later finds it well; the error to raise."""
        with self._lock:
            self._losses += 1
            if self._open:
                if self._offline != reason and self._poisoned is None:
                    _log.error("stored images are offline: %s", reason)
                self._offline = reason
        return VolumeOffline(reason)

    def poison(self, reason: str) -> VolumeOffline:
        """No use before a restart; the error to raise. The first reason stays."""
        with self._lock:
            if self._poisoned is None:
                self._poisoned = f"{self._name}: {reason}; nothing is stored or read until a restart"
                _log.critical("stored images are offline: %s", self._poisoned)
            return VolumeOffline(self._poisoned)

    @contextmanager
    def examination(self) -> Iterator[None]:
        """Brings the folder back when the block ends without an error and nobody lost it meanwhile."""
        losses = self._losses
        self._examined_since = self._clock()
        try:
            yield
            with self._lock:
                if self._open and self._offline is not None and self._losses == losses:
                    _log.warning("stored images are online again: %s", self._name)
                    self._offline = None
        finally:
            self._examined_since = None
