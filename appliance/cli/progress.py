"""How far a verb has come that moves much data."""

import sys
import time
from typing import Self

_TOLD_EVERY = 5.0
_DRAWN_EVERY = 0.2


class Progress:
    """Tells on stderr how far it has come: in one line of a terminal, else now and then."""

    def __init__(self, done: str, files: int | None, size: int | None) -> None:
        self._done = done
        self._of_files = "" if files is None else f" of {files}"
        self._of_size = "" if size is None else f" of {size / 2**20:.0f}"
        self._draws = sys.stderr.isatty()
        self._next = time.monotonic() + (_DRAWN_EVERY if self._draws else _TOLD_EVERY)
        self._drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            print(file=sys.stderr)

    def __call__(self, files: int, size: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (_DRAWN_EVERY if self._draws else _TOLD_EVERY)
        of_files = f"{files}{self._of_files} files, " if files else ""
        text = f"{of_files}{size / 2**20:.0f}{self._of_size} MiB {self._done}"
        self._drawn = self._draws
        print(f"\r{text}\x1b[K" if self._draws else text, end="" if self._draws else "\n", file=sys.stderr)
        sys.stderr.flush()
