"""Processes that erase a customer, or what an agreement allowed, and die at a step of it.

    python -m tests.faults.erasure_writer

Each line of stdin is `FOLDER "WHAT STEP"` as a JSON list; see `store_writer.main`. A step is the moment
before or after something that lasts: a commit, a new keyring, files that go, a log that is emptied. With step
0 it says how many there are: ["steps", count].
"""

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.accounts.customers import CustomerId
from appliance.datasets.files import SealedFiles
from appliance.ledger.writer import Writer
from appliance.search.graph_files import GraphFiles
from appliance.vault import Keyring
from tests.erasing import OPERATOR, TOKEN, everything
from tests.faults.store_writer import main, say

LASTING = (
    (Writer, "_commit"),
    (Writer, "_truncate"),
    (Keyring, "_write"),
    (SealedFiles, "_unlink_all"),
    (GraphFiles, "remove"),
)


class Steps:
    """Counts the steps and ends the process at one of them."""

    def __init__(self, last: int) -> None:
        self._last = last
        self.count = 0

    def watch(self, owner: Any, name: str) -> None:
        lasting: Callable[..., Any] = getattr(owner, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            self._step()
            result = lasting(*arguments, **named)
            self._step()
            return result

        setattr(owner, name, watched)

    def _step(self) -> None:
        self.count += 1
        if self.count == self._last:
            os.kill(os.getpid(), signal.SIGKILL)


async def child(state: Path, mode: str) -> None:
    async with everything(state) as parts:
        customer, name = json.loads((state / "doomed").read_text())
        what, _, step = mode.partition(" ")
        steps = Steps(int(step))
        for owner, method in LASTING:
            steps.watch(owner, method)
        if what == "customer":
            await parts.erasure.erase(OPERATOR, CustomerId(customer), name)
        else:
            (agreement,) = await parts.stand.agreements.list(CustomerId(customer))
            await parts.erasure.erase_agreed(TOKEN, CustomerId(customer), agreement.id)
            await asyncio.gather(*parts.stand.datasets._erasing)
        say("steps", steps.count)
        os._exit(0)


if __name__ == "__main__":
    main(child)
