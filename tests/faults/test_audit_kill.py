"""kill -9 at the calls that write ledger and published audit log: nothing that was signed is taken back."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.accounts.transparency import verification
from appliance.accounts.transparency.verification import Verified
from appliance.errors import AuditBroken
from tests.auditing import opened
from tests.faults.audit_writer import BEFORE, prepare, prepare_unpublished
from tests.faults.store_harness import NAMES, SYNCS, WRITES, Heard, Point, Writers

THREADS = ("ledger-writer", "audit-tree_0")
CALLS = (*WRITES, *SYNCS, *NAMES)
SHORT = 16  # every so many points


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[Writers]:
    with Writers(tmp_path, "tests.faults.audit_writer", prepare, THREADS) as running:
        yield running


@pytest.fixture
def unpublished(tmp_path: Path) -> Iterator[Writers]:
    with Writers(tmp_path, "tests.faults.audit_writer", prepare_unpublished, ("audit-tree_0",)) as running:
        yield running


async def check(state: Path, heard: Heard) -> None:
    """It is whole as it lies and after a restart, and goes on from every checkpoint that was given out."""
    notes = [note.encode() for note in heard.said("done", "publish")]
    recorded = max([BEFORE, *(int(size) for size in heard.said("done", "record"))])

    def verified() -> Verified:
        for note in notes:
            verification.verify(state, kept=note)
        return verification.verify(state)

    found = await asyncio.to_thread(verified)
    assert found.entries >= recorded
    async with opened(state) as log:
        assert log.tree.finding is None
        await log.add()
    after = await asyncio.to_thread(verified)
    assert after.entries == after.signed == found.entries + 1


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("each", [SHORT, pytest.param(1, marks=pytest.mark.full)])
async def test_whatever_a_kill_leaves_is_whole(writers: Writers, each: int) -> None:
    points = await asyncio.to_thread(writers.points, CALLS)
    assert {point.thread for point in points} == {*THREADS}
    chosen = points[::each]
    heard = []
    for point in chosen:
        state = writers.copy()
        one = await asyncio.to_thread(writers.killed_at, state, point)
        try:
            await check(state, one)
        except Exception as error:
            error.add_note(f"killed at {point}, after {sorted(one.done)}")
            raise
        heard.append(one)
    killed = [one for one in heard if one.code == -9]
    print(f"{len(chosen)} of {len(points)} points, {len(killed)} killed")
    assert len(killed) >= 0.75 * len(chosen)
    assert {bool(one.said("done", "publish")) for one in killed} == {False, True}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("each", [7, pytest.param(1, marks=pytest.mark.full)])
async def test_a_kill_while_the_first_checkpoint_is_made_is_not_told_as_an_older_one(
    unpublished: Writers, each: int
) -> None:
    points = (await asyncio.to_thread(unpublished.points, CALLS, "first"))[::each]
    unnamed = 0
    for point in points:
        state = unpublished.copy()
        await asyncio.to_thread(unpublished.killed_at, state, point, "first")
        unnamed += not (state / "audit").exists()
        async with opened(state) as log:
            assert log.tree.finding is None, point
        found = await asyncio.to_thread(verification.verify, state)
        assert (found.entries, found.remarks) == (found.signed, []), point
        assert not list(state.glob(".audit*")), point
    print(f"{len(points)} points, {unnamed} before the log had its name")
    assert unnamed


async def test_the_check_finds_what_is_lost_or_made_anew(writers: Writers) -> None:
    """The control: an entry that was told before it was there, and a checkpoint of another log."""
    state = writers.copy()
    point = Point("ledger-writer", "pwrite64", 1)
    heard = await asyncio.to_thread(writers.killed_at, state, point, "premature")
    with pytest.raises(AssertionError):
        await check(state, heard)
    other = writers.copy()
    whole = await asyncio.to_thread(writers.run, other, "audit-tree_0")
    assert whole.end == "closed"
    with pytest.raises(AuditBroken, match="the checkpoint that was kept"):
        await check(writers.copy(), whole)
