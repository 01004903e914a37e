"""kill -9 after time was told to the ledger: no crash puts it ahead, or looks like a clock that was set."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import pytest

from appliance.accounts.audit import Event, entries
from appliance.accounts.transparency import verification
from appliance.accounts.transparency.tree import AuditTree
from tests.faults.clock_writer import forward_time
from tests.storing import Clock, stand

NOW = 1_800_000_000.0
KILLS, APART = 6, 5.0


@pytest.fixture
def writer() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.clock_writer"],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def kill_one(writer: subprocess.Popen[str], state: Path, now: float) -> None:
    commands, said = cast("IO[str]", writer.stdin), cast("IO[str]", writer.stdout)
    commands.write(json.dumps([str(state), str(now)]) + "\n")
    commands.flush()
    word, pid = json.loads(said.readline())
    assert word == "ready"
    os.kill(pid, signal.SIGKILL)
    assert json.loads(said.readline()) == ["ended", -signal.SIGKILL]


async def test_six_kills_put_no_time_ahead(writer: subprocess.Popen[str], tmp_path: Path) -> None:
    for number in range(KILLS):
        await asyncio.to_thread(kill_one, writer, tmp_path, NOW + number * APART)
    clock = Clock(NOW + KILLS * APART)
    async with stand(tmp_path, clock=clock, monotonic=Clock(0.0)) as one:
        time = await forward_time(one)
        assert time.now() == one.links.now() == clock.now
        opened = [row for row in await one.ledger.read(entries) if row.event is Event.GRANT_OPEN]
        assert [row.time for row in opened] == [int((NOW + n * APART) * 1000) for n in range(KILLS)]
        async with AuditTree(one.ledger, one.keyring.service, tmp_path) as tree:
            await tree.publish()
    assert (await asyncio.to_thread(verification.verify, tmp_path)).remarks == []
