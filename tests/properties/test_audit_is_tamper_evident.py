"""Whatever is changed in the audit log is found: any bit of a row or file, deletions, swaps, cuts."""

import asyncio
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.transparency import verification
from appliance.errors import AuditBroken
from appliance.ledger import Connection
from tests.auditing import NOW_MS, copy, edit, files, opened, published, unguarded

SIZE = 600
COLUMNS = ("time", "actor_kind", "actor_id", "request", "event", "customer", "subject", "details")
DRAWN = settings(derandomize=True, deadline=None, max_examples=40)


@dataclass(frozen=True)
class Prepared:
    """A closed state with 600 entries, of which there were checkpoints of several sizes."""

    state: Path
    files: dict[str, bytes]

    def findings(self) -> list[str]:
        """What verification finds, which must be something."""
        with pytest.raises(AuditBroken) as caught:
            verification.verify(self.state)
        return caught.value.findings

    def write(self, path: str, data: bytes) -> None:
        """As the appliance does."""
        file = self.state / "audit" / path
        file.write_bytes(data)
        file.chmod(0o600)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    state = tmp_path_factory.mktemp("audit") / "state"
    asyncio.run(published(state, 100, 520, 590, SIZE))
    return Prepared(state, files(state))


@pytest.fixture
def mine(prepared: Prepared, tmp_path: Path) -> Prepared:
    """A copy to be spoilt."""
    shutil.copytree(prepared.state, tmp_path / "state")
    return Prepared(tmp_path / "state", prepared.files)


def test_what_nobody_touched_is_whole(prepared: Prepared) -> None:
    found = verification.verify(prepared.state)
    assert (found.entries, found.signed, found.remarks) == (SIZE, SIZE, [])
    assert len(prepared.files) == 13


@DRAWN
@given(data=st.data())
def test_any_bit_of_a_row(prepared: Prepared, data: st.DataObject) -> None:
    seq = data.draw(st.integers(1, SIZE))
    column = data.draw(st.sampled_from(COLUMNS))
    with unguarded(prepared.state) as connection:
        before = connection.execute(f"SELECT {column} FROM audit WHERE seq = ?", (seq,)).get
    assert before is None or isinstance(before, str | int)
    if isinstance(before, int):
        value: object = before ^ 1 << data.draw(st.integers(0, 62))
        change = f"UPDATE audit SET {column} = ? WHERE seq = ?"
    elif before is None:
        value, change = "", f"UPDATE audit SET {column} = ? WHERE seq = ?"
    else:
        raw = bytearray(before.encode())
        bit = data.draw(st.integers(0, len(raw) * 8 - 1))
        raw[bit // 8] ^= 1 << bit % 8
        value, change = bytes(raw), f"UPDATE audit SET {column} = CAST(? AS TEXT) WHERE seq = ?"
    try:
        with unguarded(prepared.state) as connection:
            connection.execute("PRAGMA ignore_check_constraints = 1")
            connection.execute(change, (value, seq))
        assert any(f"entry {seq}" in finding for finding in prepared.findings())
    finally:
        with unguarded(prepared.state) as connection:
            connection.execute(f"UPDATE audit SET {column} = ? WHERE seq = ?", (before, seq))


@DRAWN
@given(data=st.data())
def test_any_bit_of_a_file(prepared: Prepared, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(prepared.files)))
    content = bytearray(prepared.files[path])
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    try:
        prepared.write(path, bytes(content))
        assert any(path in finding for finding in prepared.findings())
    finally:
        prepared.write(path, prepared.files[path])


@DRAWN
@given(data=st.data())
def test_a_cut_or_longer_file(prepared: Prepared, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(prepared.files)))
    content = prepared.files[path]
    cut = data.draw(st.integers(0, len(content) - 1))
    try:
        for changed in (content[:cut], content + b"\0"):
            prepared.write(path, changed)
            assert any(path in finding for finding in prepared.findings())
    finally:
        prepared.write(path, content)


def test_a_missing_file(prepared: Prepared) -> None:
    """Those of former checkpoints aside, which full tiles may take the place of."""
    former = {"tile/0/002.p/8", "tile/0/002.p/78", "tile/entries/002.p/8", "tile/entries/002.p/78"}
    for path, content in prepared.files.items():
        (prepared.state / "audit" / path).unlink()
        try:
            if path in former:
                assert verification.verify(prepared.state).entries == SIZE
            else:
                assert any(path in finding for finding in prepared.findings())
        finally:
            prepared.write(path, content)


@pytest.mark.parametrize(
    "path",
    [
        "notes.txt",
        "tile/0/002",
        "tile/0/002.p/089",
        "tile/0/002.p/256",
        "tile/0/x000/000",
        "tile/0/000.p/0",
        "tile/1/001",
        "tile/64/000",
        "tile/entries/003",
        "tile/entries/002.p/89",
        "tile/0/.000.draft",
    ],
)
def test_a_file_that_is_none_of_the_logs(mine: Prepared, path: str) -> None:
    file = mine.state / "audit" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(mine.files["tile/0/000"])
    assert any(path in finding for finding in mine.findings())


@pytest.mark.parametrize(
    "path",
    [
        ".evil.0123456789ab.draft",
        "tile/0/.x.0123456789ab.draft",
        "tile/0/.000.0123456789ab.draft",
        "tile/0/002.p/.88.0123456789ab.draft",
        "tile/0/002.p/.89.0123456789ab.draft",
        "tile/0/002.p/.088.0123456789ab.draft",
        "tile/0/.003.0123456789ab.draft",
        "tile/entries/.001.0123456789ab.draft",
        "tile/0/.checkpoint.0123456789ab.draft",
        ".checkpoint.0123456789ab.draft",
        ".key.0123456789ab.draft",
    ],
)
def test_a_draft_that_no_crash_left(mine: Prepared, path: str) -> None:
    file = mine.state / "audit" / path
    file.write_bytes(b"hidden data")
    assert any(path in finding for finding in mine.findings())
    for target, content in mine.files.items():
        if target.rpartition("/")[2] in path:
            file.write_bytes(content + b"\0")
            assert any(path in finding for finding in mine.findings())


def test_what_a_crash_leaves_of_the_logs_files_is_no_finding(mine: Prepared) -> None:
    """The start of any of them, also where the file is there no more, or not yet."""
    for number, (path, content) in enumerate(mine.files.items()):
        folder, slash, name = path.rpartition("/")
        for cut in {0, len(content)} | ({len(content) // 2} if folder else set()):
            draft = f"{folder}{slash}.{name}.{number:06x}{cut:06x}.draft"
            mine.write(draft, content[:cut])
    mine.write("tile/0/002.p/.87.0123456789ab.draft", mine.files["tile/0/002.p/88"][:-32])
    assert verification.verify(mine.state).entries == SIZE
    asyncio.run(started(mine.state))
    assert not list((mine.state / "audit").rglob(".*"))


@pytest.mark.parametrize("path", ["checkpoint", "key", "tile/0/000", "tile/0/002.p/88", "tile/entries", ""])
def test_a_link_in_the_place_of_a_file_or_folder(mine: Prepared, tmp_path: Path, path: str) -> None:
    file = mine.state / "audit" / path
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert any(f"{file}: " in finding and "link" in finding for finding in mine.findings())


@pytest.mark.parametrize("path", ["checkpoint", "key", "tile/0/000", "tile/entries/002.p/88"])
@pytest.mark.parametrize("mode", [0o644, 0o400, 0o4600])
def test_a_file_with_other_permissions(mine: Prepared, path: str, mode: int) -> None:
    (mine.state / "audit" / path).chmod(mode)
    (finding,) = mine.findings()
    assert finding.endswith(f"audit/{path}: it has mode {mode:04o}, and was made with 0600")


@pytest.mark.parametrize("path", ["", "tile", "tile/0/002.p"])
def test_a_folder_with_other_permissions(mine: Prepared, path: str) -> None:
    folder = mine.state / "audit" / path
    folder.chmod(0o755)
    assert mine.findings() == [f"{folder}: it has mode 0755, and was made with 0700"]


@pytest.mark.parametrize("path", ["checkpoint", "key", "tile/0/000", "tile/entries/002.p/88"])
def test_a_file_that_has_a_second_name_elsewhere(mine: Prepared, tmp_path: Path, path: str) -> None:
    os.link(mine.state / "audit" / path, tmp_path / "elsewhere")
    (finding,) = mine.findings()
    assert finding.endswith(f"audit/{path}: it has 2 names (hard links), and was made with one")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
@pytest.mark.parametrize("path", ["", "tile", "checkpoint", "tile/0/000", "tile/entries/002.p/88"])
def test_what_belongs_to_somebody_else(mine: Prepared, path: str) -> None:
    file = mine.state / "audit" / path
    os.chown(file, 65534, -1)
    assert mine.findings() == [f"{file}: it belongs to user 65534, the state to user 0"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_a_group_that_the_folder_above_hands_down_is_as_good(mine: Prepared) -> None:
    for path in (mine.state, *mine.state.rglob("*")):
        os.chown(path, -1, 65534)
        if path.is_dir():
            path.chmod(0o2700)
    os.chown(mine.state, -1, 100)
    assert verification.verify(mine.state).entries == SIZE


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_a_state_that_was_given_to_another_user_as_a_whole_is_as_good(mine: Prepared) -> None:
    for path in (mine.state, *mine.state.rglob("*")):
        os.chown(path, 65534, 65534)
    assert verification.verify(mine.state).entries == SIZE


@pytest.mark.parametrize(
    "path", ["mine", "tile/0/x000", "tile/0/003.p", "tile/0/000.p", "tile/2", "tile/entries/000", "tile/x"]
)
def test_an_empty_folder(mine: Prepared, path: str) -> None:
    folder = mine.state / "audit" / path
    if folder.exists():
        folder.unlink()
    folder.mkdir(mode=0o700)
    assert f"{folder}: no folder that the log has anything in" in mine.findings()


def test_a_folder_with_something_in_it(mine: Prepared) -> None:
    folder = mine.state / "audit" / "mine"
    folder.mkdir(mode=0o700)
    mine.write("mine/000", mine.files["tile/0/000"])
    assert mine.findings() == [
        f"{folder}/000: nothing that the log has",
        f"{folder}: no folder that the log has anything in",
    ]


def test_a_folder_that_a_crash_left_empty_is_no_finding(mine: Prepared) -> None:
    """Of what is to be published next; it is gone, or has something in it, after the next start."""
    edit(
        mine.state,
        "INSERT INTO audit (time, actor_kind, actor_id, event, customer, subject, details)"
        " SELECT time, actor_kind, actor_id, event, customer, subject, details FROM audit WHERE seq <= 200",
    )
    for path in ("tile/0/003.p", "tile/entries/003.p", "tile/1/000.p"):
        (mine.state / "audit" / path).mkdir(mode=0o700, exist_ok=True)
    assert verification.verify(mine.state).entries == SIZE + 200
    asyncio.run(started(mine.state))
    assert verification.verify(mine.state).signed == SIZE + 200


@pytest.mark.parametrize("name", ["checkpoint", ".checkpoint.0123456789ab.draft"])
def test_a_checkpoint_that_somebody_else_has_signed_too(mine: Prepared, name: str) -> None:
    """What a witness adds belongs to copies elsewhere, which are taken with it."""
    note = mine.files["checkpoint"]
    origin, *_, ours = note.decode().splitlines()
    for line in (f"— witness.example/w {ours.rpartition(' ')[2]}", ours):
        both = note + f"{line}\n".encode()
        mine.write(name, both)
        assert len(mine.findings()) == 1
        assert f"audit/{name}: " in mine.findings()[0]
        mine.write("checkpoint", note)
        (mine.state / "audit" / name).unlink() if name != "checkpoint" else None
        assert verification.verify(mine.state, kept=both).origin == origin


@pytest.mark.parametrize("seq", [1, 255, 256, 257, 599])
def test_a_row_that_is_gone(mine: Prepared, seq: int) -> None:
    edit(mine.state, f"DELETE FROM audit WHERE seq = {seq}")
    assert f"entry {seq} is missing in the ledger" in mine.findings()


def test_rows_that_were_moved_up(mine: Prepared) -> None:
    edit(mine.state, "DELETE FROM audit WHERE seq = 300", "UPDATE audit SET seq = seq - 1 WHERE seq > 300")
    assert any("the ledger has 599" in finding for finding in mine.findings())


@pytest.mark.parametrize(("one", "other"), [(1, 600), (256, 257), (10, 11)])
def test_rows_that_changed_places(mine: Prepared, one: int, other: int) -> None:
    edit(
        mine.state,
        f"UPDATE audit SET seq = 1000 WHERE seq = {one}",
        f"UPDATE audit SET seq = {one} WHERE seq = {other}",
        f"UPDATE audit SET seq = {other} WHERE seq = 1000",
    )
    found = " ".join(mine.findings())
    assert f"entry {one}" in found
    assert str(other) in found


@pytest.mark.parametrize("left", [0, 1, 256, 599])
def test_rows_that_were_cut_off(mine: Prepared, left: int) -> None:
    edit(mine.state, f"DELETE FROM audit WHERE seq > {left}")
    assert any(f"covers 600 entries and the ledger has {left}" in finding for finding in mine.findings())


def test_a_row_that_was_put_in_under_a_number_far_away(mine: Prepared) -> None:
    edit(mine.state, f"UPDATE audit SET seq = {(1 << 62)} WHERE seq = 600")
    assert any("missing in the ledger" in finding for finding in mine.findings())


def test_a_log_that_was_cut_or_made_anew_as_a_whole_is_found_by_a_checkpoint_that_was_kept(
    mine: Prepared,
) -> None:
    """Ledger and published log agree; whoever did it had the appliance sign it."""
    kept = mine.files["checkpoint"]
    edit(mine.state, "DELETE FROM audit WHERE seq > 590", "UPDATE sqlite_sequence SET seq = 590")
    shutil.rmtree(mine.state / "audit")
    asyncio.run(started(mine.state))
    assert verification.verify(mine.state).entries == 590
    with pytest.raises(AuditBroken, match="that was kept covers 600 entries and the ledger has 590"):
        verification.verify(mine.state, kept=kept)
    asyncio.run(started(mine.state, 50))
    with pytest.raises(AuditBroken, match="made anew"):
        verification.verify(mine.state, kept=kept)


async def started(state: Path, count: int = 0) -> None:
    async with opened(state) as log:
        await log.add(count, time=NOW_MS + 1)


CHILD = Actor("token", "a-token")
STARTED = (Actor("system", "daemon"), Event.DAEMON_START)
USED = (CHILD, Event.SEARCH_INSERT)
COMMAND = (Actor("operator", "0"), Event.TOKEN_ADD)
Recorded = tuple[tuple[Actor, Event], int]


def put_back(state: Path, acts: Iterable[Recorded]) -> None:
    """Have these be recorded, each so many seconds later, and signed; then put back the log of before."""
    older = Path(shutil.copytree(state / "audit", state.with_name("older")))

    async def run() -> None:
        async with opened(state) as log:

            def act(connection: Connection) -> None:
                for (actor, event), seconds in acts:
                    record(connection, NOW_MS + seconds * 1000, actor, event, None, "subject")

            await log.ledger.write(act)

    asyncio.run(run())
    shutil.rmtree(state / "audit")
    older.rename(state / "audit")


@pytest.mark.parametrize(
    "acts",
    [
        [(STARTED, 0), *((USED, 50 * number) for number in range(6))],
        [(STARTED, 86_400 * number) for number in range(6)],
        [(USED, 3600 * number) for number in range(5)],
        [(USED, -3600), *((USED, 40 * number) for number in range(7))],
    ],
    ids=["minutes", "starts", "hours", "a clock that was behind"],
)
def test_an_older_checkpoint_that_was_put_back_beside_its_own_tiles(
    mine: Prepared, acts: list[Recorded]
) -> None:
    put_back(mine.state, acts)
    (finding,) = mine.findings()
    count = len(acts)
    assert finding.startswith(f"entries {SIZE + 1} to {SIZE + count} are under no checkpoint")
    assert "an older one was put back" in finding
    asyncio.run(started(mine.state))
    after = verification.verify(mine.state)
    assert after.signed == after.entries == SIZE + count + 1
    noted = f"entry {SIZE + count + 1}: {count} entries had waited for their checkpoint for too long"
    assert any(remark.startswith(noted) for remark in after.remarks)


@pytest.mark.parametrize("tiles", [False, True], ids=["alone", "beside the tiles of later ones"])
def test_the_checkpoint_of_a_log_without_entries_that_was_put_back(tmp_path: Path, tiles: bool) -> None:
    state = tmp_path / "state"
    asyncio.run(published(state, 0))
    empty = (state / "audit" / "checkpoint").read_bytes()
    put_back(state, [(USED, 3600 * number) for number in range(6)])
    if tiles:
        asyncio.run(started(state))
        (state / "audit" / "checkpoint").write_bytes(empty)
    with pytest.raises(AuditBroken, match="entries 1 to 6 are under no checkpoint"):
        verification.verify(state)
    asyncio.run(started(state))
    noted = f"entry {8 if tiles else 7}: 6 entries had waited"
    assert any(remark.startswith(noted) for remark in verification.verify(state).remarks)


@pytest.mark.parametrize(
    "acts",
    [
        [(STARTED, 0), *((USED, number) for number in range(60))],
        [(COMMAND, 3600 * number) for number in range(9)],
        [(USED, 0), (USED, 60), (COMMAND, 7000), (USED, 86_400), (STARTED, 200_000)],
        [(USED, second) for number in range(30) for second in (number, 3600 + number)],
    ],
    ids=["a minute", "no daemon", "a leap of the clock, and a killed start", "two clocks"],
)
def test_entries_that_may_be_unsigned_yet(mine: Prepared, acts: list[Recorded]) -> None:
    """As a kill leaves them, or commands without a daemon."""
    put_back(mine.state, acts)
    assert verification.verify(mine.state).signed == SIZE
    asyncio.run(started(mine.state))
    assert verification.verify(mine.state).signed == SIZE + len(acts)


def test_an_older_ledger_with_its_own_log_is_found_by_what_the_images_have_seen(mine: Prepared) -> None:
    assert verification.verify(mine.state, acknowledged=SIZE).entries == SIZE
    with pytest.raises(AuditBroken, match=f"images were stored up to entry {SIZE + 1}, by images/witness"):
        verification.verify(mine.state, acknowledged=SIZE + 1)


def test_a_checkpoint_of_another_key_is_found(mine: Prepared, tmp_path: Path) -> None:
    other = tmp_path / "other"
    asyncio.run(published(other, SIZE))
    theirs = files(other)
    mine.write("checkpoint", theirs["checkpoint"])
    assert any("not signed by the key of this log" in finding for finding in mine.findings())
    mine.write("key", theirs["key"])
    assert any("the ledger's log is" in finding for finding in mine.findings())
    with pytest.raises(AuditBroken, match="another key than the one that was given"):
        verification.verify(mine.state, key=mine.files["key"].decode())


def test_checkpoints_that_were_kept_hold_while_the_log_grows(mine: Prepared) -> None:
    kept, key = mine.files["checkpoint"], mine.files["key"].decode()
    asyncio.run(started(mine.state, 700))
    found = verification.verify(mine.state, kept=kept, key=key)
    assert (found.entries, found.signed, str(found.key)) == (1300, 1300, key.strip())


def test_many_findings_are_counted(mine: Prepared) -> None:
    edit(mine.state, "UPDATE audit SET details = '' WHERE seq <= 200")
    findings = mine.findings()
    assert len(findings) == 51
    assert findings[-1].startswith("and ")


def test_it_is_verified_while_the_daemon_writes(tmp_path: Path) -> None:
    async def both() -> None:
        async with opened(tmp_path / "state") as log:
            await log.tree.publish()
            for _ in range(10):
                await log.add(70)
                verifying = asyncio.to_thread(verification.verify, log.state)
                found, _ = await asyncio.gather(verifying, log.tree.publish())
                assert found.signed <= found.entries <= 700

    asyncio.run(both())


def test_without_a_published_log_nothing_is_proven(mine: Prepared) -> None:
    shutil.rmtree(mine.state / "audit")
    assert mine.findings()[0].startswith(f"{mine.state}/audit is not there: a daemon")
    assert any("checkpoint: No such file" in finding for finding in mine.findings())


def test_a_copy_elsewhere_is_as_good(mine: Prepared) -> None:
    assert verification.verify(copy(mine.state, "copied")).entries == SIZE


def test_entries_that_are_not_signed_yet_are_counted(mine: Prepared) -> None:
    edit(
        mine.state,
        "INSERT INTO audit (time, actor_kind, actor_id, event, customer, subject, details)"
        " SELECT time, 'token', 'x', 'grant.open', customer, 'g', '{}' FROM audit WHERE seq <= 3",
    )
    found = verification.verify(mine.state)
    assert (found.entries, found.signed) == (SIZE + 3, SIZE)
    (remark,) = found.remarks
    assert remark.startswith(f"3 entries, from {SIZE + 1} on, are under no checkpoint yet")
