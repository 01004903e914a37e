"""The audit log as it is published: what lies there, what a restart makes of it, when nothing is signed."""

import asyncio
import shutil
import time
from pathlib import Path

import pytest

from appliance.accounts.audit import Event, Selection
from appliance.accounts.transparency import verification
from appliance.accounts.transparency.checkpoints import Checkpoint
from appliance.accounts.transparency.leaves import leaves
from appliance.errors import AuditBroken, Conflict, InvalidInput, StorageFailed
from appliance.volume import write_atomically
from tests import rfc6962
from tests.auditing import NOW_MS, Log, copy, edit, files, opened, published


async def everything(log: Log) -> list[bytes]:
    found = await log.ledger.read(lambda c: leaves(c, Selection(), after=0, limit=-1))
    return [data for _, data in found]


async def refused(state: Path) -> str:
    """What is found wrong at a start that signs nothing, and leaves what was signed as it is."""
    before = files(state)
    async with opened(state) as log:
        await log.add()
        with pytest.raises(AuditBroken):
            await log.tree.publish()
        finding = log.tree.finding
    assert files(state) == before
    assert finding is not None
    assert "nothing is signed over it" in finding
    return finding


async def test_every_entry_is_published_and_signed(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await log.add(300)
        head = await log.tree.publish()
        entries = await everything(log)
        assert (head.size, head.root) == (300, rfc6962.tree(entries))
        assert log.tree.checkpoint() == head
        found = files(tmp_path)
        assert found.keys() == {
            "checkpoint",
            "key",
            "tile/0/000",
            "tile/0/001.p/44",
            "tile/1/000.p/1",
            "tile/entries/000",
            "tile/entries/001.p/44",
        }
        assert found["checkpoint"].decode() == head.note
        assert found["tile/entries/001.p/44"].startswith(len(entries[256]).to_bytes(2) + entries[256])
        assert found["tile/0/000"][:32] == rfc6962.leaf(entries[0])


async def test_an_empty_log_is_signed_too(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        assert (await log.tree.publish()).size == 0
        assert files(tmp_path).keys() == {"checkpoint", "key"}


async def test_without_new_entries_nothing_is_written(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await log.add(3)
        head = await log.tree.publish()
        written = (tmp_path / "audit" / "checkpoint").stat().st_mtime_ns
        assert await log.tree.publish() == head
        assert (tmp_path / "audit" / "checkpoint").stat().st_mtime_ns == written


async def test_partial_tiles_stay_until_they_are_full(tmp_path: Path) -> None:
    """Each checkpoint that was ever given out can be proven with the files that are there."""
    async with opened(tmp_path) as log:
        for size in (10, 20):
            await log.add(10)
            assert (await log.tree.publish()).size == size
        assert {"tile/0/000.p/10", "tile/0/000.p/20"} <= files(tmp_path).keys()
        await log.add(236)
        await log.tree.publish()
        assert {path for path in files(tmp_path) if ".p/" in path} == {"tile/1/000.p/1"}


async def test_what_came_is_signed_at_the_end_and_a_restart_goes_on(tmp_path: Path) -> None:
    sizes, heads = (0, 1, 256, 257, 700), list[Checkpoint]()
    for before, size in zip((0, *sizes), sizes, strict=False):
        async with opened(tmp_path) as log:
            await log.add(size - before)
        async with opened(tmp_path) as log:
            heads.append(log.tree.checkpoint())
            assert log.tree.finding is None
    async with opened(tmp_path) as log:
        entries = await everything(log)
    assert [head.size for head in heads] == list(sizes)
    assert [head.root for head in heads] == [rfc6962.tree(entries[:size]) for size in sizes]
    assert verification.verify(tmp_path).entries == 700


async def test_proofs_lead_to_the_checkpoint(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await log.add(100)
        old = await log.tree.publish()
        await log.add(500)
        head = await log.tree.publish()
        await log.add()
        entries = await everything(log)
        for seq in (1, 100, 256, 257, 512, 600):
            proof = await log.tree.inclusion(seq)
            assert proof.checkpoint == head
            assert rfc6962.includes(entries[seq - 1], seq - 1, 600, proof.hashes, head.root)
        proof = await log.tree.consistency(100)
        assert rfc6962.consistent(100, 600, proof.hashes, old.root, head.root)
        with pytest.raises(Conflict, match="no checkpoint"):
            await log.tree.inclusion(601)
        with pytest.raises(InvalidInput, match="600"):
            await log.tree.consistency(601)


async def test_signed_heads_grow_when_the_clock_is_set_back(tmp_path: Path) -> None:
    heads = []
    for days in (0, -1, -400):  # each in a run of its own
        async with opened(tmp_path) as log:
            for _ in range(2):
                await log.add(2, time=NOW_MS + days * 86_400_000)
                heads.append(await log.tree.publish())
    assert [head.size for head in heads] == [2, 4, 6, 8, 10, 12]
    found = verification.verify(tmp_path)
    for head in heads:
        verification.verify(tmp_path, kept=head.note.encode())
    (remark,) = found.remarks
    assert "8 entries" in remark
    assert "entry 5" in remark


async def test_an_older_ledger_is_not_signed_over(tmp_path: Path) -> None:
    state = tmp_path / "state"
    await published(state, 5)
    older = copy(state, "older")
    async with opened(state) as log:
        await log.add(4)
    shutil.copy(older / "ledger.db", state / "ledger.db")
    assert "covers 9" in await refused(state)
    # It has as many entries again, and they are others.
    edit(state, "UPDATE audit SET time = time + 1 WHERE seq > 5")
    async with opened(state) as log:
        await log.add(20)
    assert "entry 6" in await refused(state)
    with pytest.raises(AuditBroken, match="not those that were signed"):
        verification.verify(state)


async def test_a_restored_ledger_begins_a_log_of_its_own(tmp_path: Path) -> None:
    state = tmp_path / "state"
    await published(state, 5)
    kept = files(state)["checkpoint"]
    edit(
        state,
        "INSERT INTO audit (time, actor_kind, actor_id, event, details)"
        f" VALUES ({NOW_MS}, 'operator', '0', '{Event.BACKUP_RESTORE}', '{{}}')",
    )
    assert "move STATE/audit away" in await refused(state)
    shutil.move(state / "audit", tmp_path / "kept")
    async with opened(state) as log:
        head = await log.tree.publish()
        assert head.origin.startswith(kept.decode().split("\n")[0] + "/restored-6-")
        assert log.tree.finding is None
    found = verification.verify(state, kept=kept)
    assert found.origin == head.origin


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("checkpoint", "checkpoint: it"),
        ("key", "not the key of this log"),
        ("tile/0/001.p/44", "not those that were signed"),
        ("tile/1/000.p/1", "not those that were signed"),
    ],
)
async def test_what_was_changed_is_not_signed_over(tmp_path: Path, path: str, why: str) -> None:
    await published(tmp_path, 300)
    file = tmp_path / "audit" / path
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    assert why in await refused(tmp_path)


@pytest.mark.parametrize("path", ["checkpoint", "tile/0/001.p/44"])
async def test_what_is_missing_is_not_made_anew(tmp_path: Path, path: str) -> None:
    await published(tmp_path, 300)
    (tmp_path / "audit" / path).unlink()
    assert "missing" in await refused(tmp_path)


async def test_a_folder_in_which_a_key_alone_is_left_is_not_taken_for_a_new_log(tmp_path: Path) -> None:
    await published(tmp_path, 300)
    (tmp_path / "audit" / "checkpoint").unlink()
    shutil.rmtree(tmp_path / "audit" / "tile")
    assert "missing" in await refused(tmp_path)


async def test_a_new_log_that_found_no_room_is_tried_again(tmp_path: Path) -> None:
    """It is not there before it is whole."""
    async with opened(tmp_path) as log:
        (tmp_path / ".audit.draft").write_text("in the way")
        await log.add(300)
        with pytest.raises(StorageFailed, match=r"audit\.draft"):
            await log.tree.publish()
        assert files(tmp_path) == {}
        (tmp_path / ".audit.draft").unlink()
        assert (await log.tree.publish()).size == 300
    assert verification.verify(tmp_path).signed == 300


@pytest.mark.parametrize("what", ["older", "changed", "gone"])
async def test_a_checkpoint_that_is_put_back_while_it_runs_is_not_signed_over(
    tmp_path: Path, what: str
) -> None:
    await published(tmp_path, 5)
    file = tmp_path / "audit" / "checkpoint"
    older = file.read_bytes()
    async with opened(tmp_path) as log:
        await log.add(4)
        head = await log.tree.publish()
        assert await log.tree.publish() == head
        if what == "gone":
            file.unlink()
        else:
            file.write_bytes(older if what == "older" else head.note.encode() + b"\n")
        left = files(tmp_path)
        for count in (0, 3):
            await log.add(count)
            with pytest.raises(AuditBroken, match="checkpoint is not what was signed last"):
                await log.tree.publish()
    assert files(tmp_path) == left


async def test_a_checkpoint_whose_sync_failed_is_the_logs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies there, and nobody can say whether it is durable: it is written again."""

    def failing(path: Path, data: bytes) -> None:
        write_atomically(path, data)
        if path.name == "checkpoint":
            raise StorageFailed("the sync of its folder failed")

    async with opened(tmp_path) as log:
        await log.tree.publish()
        await log.add(2)
        with monkeypatch.context() as patch:
            patch.setattr("appliance.accounts.transparency.tree.write_atomically", failing)
            with pytest.raises(StorageFailed):
                await log.tree.publish()
        await log.add(2)
        assert (await log.tree.publish()).size == 4
    assert verification.verify(tmp_path).signed == 4


async def test_a_changed_row_is_not_signed_over(tmp_path: Path) -> None:
    await published(tmp_path, 300)
    edit(tmp_path, "UPDATE audit SET subject = 'another' WHERE seq = 299")
    assert "entry 299" in await refused(tmp_path)


async def test_a_row_that_is_no_text_stops_the_signing_alone(tmp_path: Path) -> None:
    await published(tmp_path, 3)
    edit(tmp_path, "UPDATE audit SET subject = CAST(x'ff' AS TEXT) WHERE seq = 3")
    async with opened(tmp_path) as log:
        await log.add()
        assert "entry 3" in str(log.tree.finding)


async def test_a_disk_that_refuses_is_tried_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await log.tree.publish()
        (tmp_path / "audit" / "tile").write_text("in the way")
        await log.add(3)
        with pytest.raises(StorageFailed, match="audit/tile"):
            await log.tree.publish()
        (tmp_path / "audit" / "tile").unlink()
        assert (await log.tree.publish()).size == 3


async def test_another_appliances_log_is_not_signed_over(tmp_path: Path) -> None:
    state, other = tmp_path / "state", tmp_path / "other"
    await published(state, 3)
    await published(other, 5)
    shutil.rmtree(state / "audit")
    shutil.copytree(other / "audit", state / "audit")
    assert "not signed by the key of this log" in await refused(state)


async def test_a_large_ledger_is_published_without_holding_the_loop(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await log.add(5_000)
        publishing = asyncio.ensure_future(log.tree.publish())
        longest = 0.0
        while not publishing.done():
            began = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - began)
        assert (await publishing).size == 5_000
        assert longest < 0.1
