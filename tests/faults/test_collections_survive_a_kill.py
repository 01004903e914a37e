"""kill -9 of ledger and search during writes: acknowledged is there, deleted is gone, nothing is half."""

import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from tests.faults.collections_writer import BATCH, DIM, record, vector
from tests.searching import shelf


@dataclass
class Heard:
    """What the killed writers had acknowledged."""

    inserted: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    maybe_deleted: set[str] = field(default_factory=set)
    replaced: set[str] = field(default_factory=set)
    maybe_replaced: set[str] = field(default_factory=set)

    def line(self, words: list[str]) -> None:
        match words:
            case ["inserted", *ids]:
                self.inserted.update(ids)
            case ["deleting", external]:
                self.maybe_deleted.add(external)
            case ["deleted", external]:
                self.deleted.add(external)
            case ["replacing", *ids]:
                self.maybe_replaced.update(ids)
            case ["replaced", *ids]:
                self.replaced.update(ids)
            case _:
                raise AssertionError(words)


def run_and_kill(folder: Path, run: str, lines: int, heard: Heard) -> None:
    """Let a writer acknowledge some lines, kill it at once, and take in what it had said by then."""
    command = [sys.executable, "-m", "tests.faults.collections_writer", str(folder), run]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        for _ in range(lines):
            heard.line(writer.stdout.readline().split())
        writer.kill()
        for line in writer.stdout:
            if line.endswith("\n"):
                heard.line(line.split())


async def assert_whole(folder: Path, heard: Heard) -> None:
    async with shelf(folder) as things:
        (collection,) = await things.collections.list()
        opened = await things.collections.open(None, collection.id)
        records = await opened.all()
        ids = [stored.id for stored in records]
        assert collection.count == opened.count == len(ids) == len(set(ids))
        assert opened.damaged == 0
        assert heard.inserted - heard.maybe_deleted <= set(ids)
        assert not heard.deleted & set(ids)
        # A batch that nobody acknowledged is whole or absent.
        batches: dict[str, int] = {}
        for external in [*ids, *heard.deleted, *(heard.maybe_deleted - heard.deleted - set(ids))]:
            batch = external.rsplit("-", 1)[0]
            batches[batch] = batches.get(batch, 0) + 1
        assert set(batches.values()) == {BATCH}
        versions = {stored.id: int(str(stored.metadata["version"])) for stored in records}
        for stored in records:
            assert stored.metadata == record(stored.id, versions[stored.id]).metadata
        renewed = {external for external, version in versions.items() if version}
        assert heard.replaced <= renewed | heard.maybe_deleted <= heard.maybe_replaced | heard.maybe_deleted
        vectors = await opened.vectors(ids)
        for external, kept in zip(ids, vectors, strict=True):
            assert kept is not None
            expected = vector(external, versions[external])
            np.testing.assert_allclose(kept, expected / np.linalg.norm(expected), atol=1e-6)
        for external in ids[:: max(1, len(ids) // 20)]:
            assert (await opened.search(vector(external, versions[external]), 1))[0].id == external


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.full)])
async def test_what_was_acknowledged_survives_and_what_was_deleted_stays_deleted(
    tmp_path: Path, kills: int
) -> None:
    async with shelf(tmp_path) as things:
        await things.collection(DIM)
    heard = Heard()
    rng = np.random.default_rng(kills)
    for kill in range(kills):
        run_and_kill(tmp_path, f"run{kill}", int(rng.integers(1, 40)), heard)
        await assert_whole(tmp_path, heard)
    assert len(heard.inserted) > kills * BATCH
    assert heard.deleted
    assert heard.replaced


async def test_the_check_finds_a_record_that_is_missing_or_came_back(tmp_path: Path) -> None:
    """The control: the same check fails when an acknowledged record is lost or a deleted one is kept."""
    async with shelf(tmp_path) as things:
        await things.collection(DIM)
    heard = Heard()
    run_and_kill(tmp_path, "run", 20, heard)
    await assert_whole(tmp_path, heard)
    lost = replace(heard, inserted=heard.inserted | {"run-9-0-0"})
    with pytest.raises(AssertionError):
        await assert_whole(tmp_path, lost)
    kept = min(heard.inserted - heard.maybe_deleted)
    with pytest.raises(AssertionError):
        await assert_whole(tmp_path, replace(heard, deleted={kept}, maybe_deleted={kept}))
    stale = min(heard.inserted - heard.maybe_replaced - heard.maybe_deleted)
    with pytest.raises(AssertionError):
        await assert_whole(tmp_path, replace(heard, replaced={stale}))
