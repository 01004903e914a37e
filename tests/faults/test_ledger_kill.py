"""kill -9 in the middle of writes: what was acknowledged is there after it, and no act is half there."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from appliance.ledger import Connection, Ledger
from appliance.metrics import Registry

SHORT, FULL = 6, 50


def killed_writer(folder: Path, mode: str, after: int) -> set[str]:
    """Start a writer, kill it once it acknowledged `after` acts; all that it acknowledged until it died."""
    command = [sys.executable, "-m", "tests.faults.ledger_writer", str(folder), mode, "0"]
    acknowledged: set[str] = set()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.endswith("\n"):
                break  # the kill cut the line: nobody was told
            word, *rest = json.loads(line)
            if word == "acknowledged":
                acknowledged.add(rest[0])
                if len(acknowledged) == after:
                    process.kill()
            else:
                assert word == "opened"
    assert process.returncode == -9
    return acknowledged


def inserted(connection: Connection) -> set[str]:
    """The ids in the ledger, after a look at its soundness."""
    assert connection.execute("PRAGMA integrity_check").get == "ok"
    customers = {row[0] for row in connection.execute("SELECT id FROM customers")}
    recorded = [row[0] for row in connection.execute("SELECT subject FROM audit ORDER BY seq")]
    assert len(recorded) == len(set(recorded))
    assert set(recorded) == customers  # each act is two rows: both or none
    return customers


async def sweep(folder: Path, mode: str, kills: int, seed: int) -> tuple[int, set[str]]:
    """Kill `kills` writers on one folder, one after another; the acknowledged count and what is lost."""
    acknowledged: set[str] = set()
    found: set[str] = set()
    for after in np.random.RandomState(seed).randint(1, 400, size=kills):
        acknowledged |= killed_writer(folder, mode, int(after))
        async with Ledger(folder, Registry()) as ledger:
            found = await ledger.read(inserted)
        if mode == "concurrent":
            assert acknowledged <= found
    return len(acknowledged), acknowledged - found


async def test_acknowledged_writes_survive_kill_9(tmp_path: Path) -> None:
    acknowledged, lost = await sweep(tmp_path, "concurrent", SHORT, seed=1)
    assert acknowledged >= SHORT
    assert lost == set()


async def test_the_sweep_finds_a_ledger_that_acknowledges_too_early(tmp_path: Path) -> None:
    _, lost = await sweep(tmp_path, "premature", 2, seed=2)
    assert lost


@pytest.mark.full
@pytest.mark.timeout(600)
async def test_acknowledged_writes_survive_fifty_kills(tmp_path: Path) -> None:
    acknowledged, lost = await sweep(tmp_path, "concurrent", FULL, seed=3)
    print(f"{FULL} kills, {acknowledged} acknowledged, {len(lost)} lost")
    assert acknowledged >= FULL
    assert lost == set()
