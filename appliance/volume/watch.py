"""Looks after an open data folder: a recheck every minute, and at once when a mount here changes."""

import asyncio
import os
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from appliance.volume.guard import DataFolder

_MOUNTS = Path("/proc/self/mountinfo")
_CLOSING_SECONDS = 5.0


class Watch:
    """Rechecks `folder` every `seconds`, with a durable write, and without one when mounts change.

    It has a thread of its own: a dead disk can hold that for ever, and neither the event loop nor the end of
    the process waits for it. The verdict is the folder's `condition`. Enter it while the folder is open.
    """

    def __init__(
        self, folder: DataFolder, *, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._seconds = seconds
        self._clock = clock
        self._due = 0.0
        self._poll = select.poll()
        self._mounts = self._end = self._ending = -1
        self._thread = threading.Thread(target=self._run, name="volume-watch", daemon=True)

    async def __aenter__(self) -> Self:
        self.arm()
        self._thread.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.stop()
        await asyncio.to_thread(self._thread.join, _CLOSING_SECONDS)

    def arm(self) -> None:
        """From now on a change of mounts is noticed, and the first recheck is due in `seconds`."""
        self._due = self._clock() + self._seconds
        self._mounts = os.open(_MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
        self._end, self._ending = os.pipe2(os.O_CLOEXEC)
        # Not POLLIN: a file of /proc can always be read, and only a change of it is urgent.
        self._poll.register(self._mounts, select.POLLPRI)
        self._poll.register(self._end, select.POLLIN)

    def stop(self) -> None:
        """Has the `step` that waits, or else the next one, be the last."""
        os.close(self._ending)

    def step(self) -> bool:
        """Waits for a change of mounts or until the next recheck is due, and makes it; False at the end."""
        events = {fd for fd, _ in self._poll.poll(max(0.0, self._due - self._clock()) * 1000)}
        if self._end in events:
            os.close(self._mounts)
            os.close(self._end)
            return False
        due = self._clock() >= self._due
        if due:
            self._due = self._clock() + self._seconds
        if due or events:
            self._folder.recheck(write=due)
        return True

    def _run(self) -> None:
        while self.step():
            pass
