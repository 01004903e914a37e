"""kill -9 of an import: each batch is whole or absent, and a second run brings the rest."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.faults.import_writer import BATCH, DIM, ROWS, vectors
from tests.searching import shelf

COMMAND = [sys.executable, "-m", "tests.faults.import_writer"]
PLACE = Path(__file__).parents[2]


def run_and_kill(folder: Path, lines: int) -> int:
    """How many rows it knew to be stored when it was killed."""
    with subprocess.Popen([*COMMAND, str(folder)], stdout=subprocess.PIPE, text=True, cwd=PLACE) as writer:
        assert writer.stdout is not None
        said = [writer.stdout.readline() for _ in range(lines)]
        writer.kill()
        said += [line for line in writer.stdout if line.endswith("\n")]
    return int(said[-1])


def run(folder: Path) -> str:
    """What it says in the end."""
    command = [*COMMAND, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, cwd=PLACE)
    return done.stdout.splitlines()[-1]


async def stored(folder: Path) -> int:
    """How many rows are there: the first ones, in whole batches, each with its vector."""
    rows = vectors()
    async with shelf(folder) as things:
        (collection,) = await things.collections.list()
        opened = await things.collections.open(None, collection.id)
        found = [one for page in [page async for page in opened.stored(1000)] for one in page]
        assert collection.count == opened.count == len(found)
        assert opened.damaged == 0
    assert [record.id for record, _ in found] == [str(row) for row in range(len(found))]
    assert all(np.array_equal(vector, row) for (_, vector), row in zip(found, rows, strict=False))
    assert len(found) % BATCH == 0 or len(found) == ROWS
    return len(found)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.full)])
async def test_an_import_that_was_killed_goes_on_where_it_was(tmp_path: Path, kills: int) -> None:
    async with shelf(tmp_path) as things:
        await things.collection(DIM)
    rng, reached = np.random.default_rng(kills), 0
    for _ in range(kills):
        known = run_and_kill(tmp_path, int(rng.integers(3, ROWS // BATCH)))
        reached = await stored(tmp_path)
        assert reached >= known
    assert run(tmp_path) == f"done {ROWS - reached} {reached} 0"
    assert await stored(tmp_path) == ROWS
