"""Where a backup comes to rest: folders apart, drafts cleared, old keyrings removed, nonsense refused."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from appliance.backup.contents import Header
from appliance.backup.destination import check_apart
from appliance.backup.receiving import BackupFailed, receive
from appliance.backup.wire import LARGEST, Kind, frame, frames
from appliance.errors import ApplianceError, BackupInvalid, Conflict, StorageFailed
from appliance.vault import Keyring
from tests.backing import Shelf, put_back, silent, source
from tests.storing import ACTOR, ROOT, Clock, Stand, stand

DAY = 86400


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf.under(tmp_path)


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Stand]:
    await asyncio.to_thread((tmp_path / "state").mkdir)
    async with stand(tmp_path / "state", clock=Clock()) as opened:
        dataset = await opened.datasets.add(ACTOR, await opened.customer(), "Summer")
        await opened.store.put(ACTOR, dataset, b"an image" * 1000)
        yield opened


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def recorded(at: Stand) -> list[bytes]:
    async with source(at) as backups:
        making = await backups.begin(ACTOR)
        pieces = [piece async for piece in making.pieces()]
        making.close()
        return pieces


async def sent(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def arrive(pieces: list[bytes], shelf: Shelf) -> None:
    await receive(sent(pieces), shelf.backups, shelf.keyrings, keep_days=30, progress=silent)


async def test_old_keyrings_go_and_those_of_others_stay(opened: Stand, shelf: Shelf) -> None:
    first = await shelf.take(opened)
    foreign = shelf.keyrings / "keyring-20200101T000000Z-1"
    Keyring.create(foreign, ROOT).wipe()
    await passed(opened, 20 * DAY)
    second = await shelf.take(opened)
    assert second.removed == []
    await passed(opened, 20 * DAY)
    third = await shelf.take(opened)
    assert third.removed == [first.keyring]
    kept = [foreign, second.keyring, second.tombstones, third.keyring, third.tombstones]
    assert names(shelf.keyrings) == sorted(path.name for path in kept)
    assert len(names(shelf.backups)) == 3
    await passed(opened, DAY)
    last = await shelf.take(opened, keep_days=0)
    assert names(shelf.keyrings) == sorted(path.name for path in (foreign, last.keyring, last.tombstones))


async def passed(at: Stand, seconds: float) -> None:
    """The clock goes on, and the upkeep of the appliance notes it."""
    at.clock.now += seconds
    async with at.upkeep.at_leisure(at.store):
        for _ in range(100):
            await at.ledger.read(lambda _: None)


async def test_keyrings_stay_while_the_clock_is_doubted(tmp_path: Path, shelf: Shelf) -> None:
    clock, counted = Clock(), Clock(0.0)
    (tmp_path / "state").mkdir()
    async with stand(tmp_path / "state", clock=clock, monotonic=counted) as one:
        made = [await shelf.take(one)]
        for _ in range(2):
            clock.now += 60
            counted.now += 60
            made.append(await shelf.take(one))
        clock.now += 40 * DAY
        await passed(one, 0)
        assert one.upkeep.doubt() is not None
        ahead = await shelf.take(one)
        assert ahead.removed == []
        assert all(each.keyring.exists() and each.tombstones.exists() for each in [*made, ahead])
        clock.now -= 40 * DAY
        await passed(one, 0)
        assert (await shelf.take(one, keep_days=1)).removed == [], "nor by one of a clock that was ahead"
    (tmp_path / "again").mkdir()
    await put_back(ahead.folder, ahead.keyring, tmp_path / "again")
    async with stand(tmp_path / "again", clock=clock, monotonic=counted) as again:
        assert (await shelf.take(again, keep_days=0)).removed == [], "after a restore nobody knows the time"


async def test_a_backup_that_breaks_off_leaves_nothing(opened: Stand, shelf: Shelf) -> None:
    pieces = await recorded(opened)
    whole = b"".join(pieces)
    for broken, why in (
        ([], "sent nothing"),
        ([whole[:1000]], "went away"),
        ([whole[:-1]], "went away"),
        ([whole[: len(whole) - 69]], "went away"),
        ([whole[: len(whole) - 69], frame(Kind.FAILED, b"the volume is offline")], "the volume is offline"),
        ([frame(Kind.FAILED, b"the volume is full")], "the volume is full"),
        ([b"HTTP/1.1 200 OK\r\n\r\n"], "something else than a backup"),
        ([frame(Kind.HEADER, b"{}")], "something else than a backup"),
        ([pieces[0][:500].replace(b"ledger", b"../../")], "went away|of a name that"),
    ):
        with pytest.raises(ApplianceError, match=why):
            await arrive(broken, shelf)
        assert (names(shelf.backups), names(shelf.keyrings)) == ([], []), why
    await arrive([whole], shelf)
    with pytest.raises(Conflict, match="exists already"):
        await arrive([whole], shelf)


async def test_a_byte_that_changes_on_its_way_is_noticed(opened: Stand, shelf: Shelf) -> None:
    whole = b"".join(await recorded(opened))
    at = whole.index(b"ASO1") + 5000
    with pytest.raises(BackupInvalid, match="what arrived is not what the daemon sent"):
        await arrive([whole[:at], bytes([whole[at] ^ 1]), whole[at + 1 :]], shelf)
    assert (names(shelf.backups), names(shelf.keyrings)) == ([], [])


async def test_names_that_lead_elsewhere_are_refused(opened: Stand, shelf: Shelf) -> None:
    start = frame(Kind.HEADER, _header((await recorded(opened))[0]))
    for path in (b"../x", b"/etc/x", b"images/../../x", b"images/a/b", b"manifest", b"keyring", b""):
        with pytest.raises(BackupInvalid, match="of a name that backups do not have"):
            await arrive([start, frame(Kind.FILE, path)], shelf)
    for kind, content in (
        (Kind.APART, b"../keyring"),
        (Kind.DATA, b"of no file"),
        (Kind.END, b"short"),
        (Kind.HEADER, b"again"),
    ):
        with pytest.raises(BackupInvalid):
            await arrive([start, frame(kind, content)], shelf)
    assert (names(shelf.backups), names(shelf.keyrings)) == ([], [])


def _header(piece: bytes) -> bytes:
    size = int.from_bytes(piece[1:5])
    header = piece[5 : 5 + size]
    assert msgspec.json.decode(header, type=Header).images == 1
    return header


async def test_frames_may_be_cut_anywhere(opened: Stand) -> None:
    whole = b"".join(await recorded(opened))
    once = [found async for found in frames(sent([whole]))]
    for size in (1, 7, 4096):
        cut = [whole[at : at + size] for at in range(0, len(whole), size)]
        assert [found async for found in frames(sent(cut))] == once
    with pytest.raises(ValueError, match="too large"):
        frame(Kind.DATA, bytes(LARGEST + 1))


async def test_a_full_disk_leaves_nothing(
    opened: Stand, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = await recorded(opened)

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("appliance.backup.destination.write_whole", full)
    with pytest.raises(StorageFailed, match="No space left"):
        await arrive(pieces, shelf)
    monkeypatch.undo()
    await arrive(pieces, shelf)
    assert len(names(shelf.backups)) == 1  # and no draft


def test_keyrings_lie_apart(tmp_path: Path) -> None:
    state, one, other = (tmp_path / name for name in ("state", "one", "other"))
    for path in (state / "in", one / "in", other):
        path.mkdir(parents=True)
    assert check_apart(one, other, state) is True  # one medium: worth a word
    (tmp_path / "link").symlink_to(one)
    for folder, keyrings in ((one, one), (one, one / "in"), (one / "in", one), (one, tmp_path / "link")):
        with pytest.raises(StorageFailed, match="is no other place than"):
            check_apart(folder, keyrings, state)
    for folder, keyrings in ((state, other), (state / "in", other), (one, state / "in")):
        with pytest.raises(StorageFailed, match="lies in the state folder"):
            check_apart(folder, keyrings, state)
    with pytest.raises(StorageFailed, match="is not a folder"):
        check_apart(tmp_path / "absent", other, state)


async def test_failures_of_the_appliance_are_told_to_the_receiver(opened: Stand, shelf: Shelf) -> None:
    async with source(opened) as backups:
        backups._reserve = 1 << 60
        making = await backups.begin(ACTOR)
        with pytest.raises(BackupFailed, match="the copy of the ledger needs"):
            await receive(making.pieces(), shelf.backups, shelf.keyrings, keep_days=30, progress=silent)
        making.close()
        opened.folder.poison("the disk is gone")
    async with source(opened) as backups:
        making = await backups.begin(ACTOR)
        with pytest.raises(BackupFailed, match="the disk is gone"):
            await receive(making.pieces(), shelf.backups, shelf.keyrings, keep_days=30, progress=silent)
        making.close()
    assert names(shelf.backups) == []
