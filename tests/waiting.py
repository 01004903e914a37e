"""Waiting for what a process of its own does, which no test can hand a clock."""

import time
from collections.abc import Callable

SECONDS = 30.0


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Returns once the condition holds; fails when it does not within SECONDS."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SECONDS:g} s: {what}"
        time.sleep(0.02)
