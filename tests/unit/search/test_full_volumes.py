"""What search does on a full volume: nothing more comes in, everything can go, and goes in the end."""

import asyncio
import os
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

from appliance.accounts.certificates import Certificates
from appliance.daemon import notices
from appliance.errors import StorageFailed, VolumeFull
from appliance.ledger import Connection
from appliance.search import filters
from appliance.search.collections import NewRecord
from appliance.search.erasing import AGAIN_SECONDS
from appliance.vault import Keyring
from appliance.volume.space import BALLAST
from tests.searching import ACTOR, Shelf, numbered, shelf, unit

DIM = 8
MIB = 1 << 20
VECTORS = unit(np.random.default_rng(5), 20, DIM)


class Disk:
    """The volume as it is, of which the test says how much is free."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 100 * MIB
        real = os.fstatvfs

        def statvfs(fd: int) -> os.statvfs_result:
            values = list(real(fd))
            values[1:5] = [4096, 1000 * MIB // 4096, self.free // 4096, self.free // 4096]
            return os.statvfs_result(values)

        monkeypatch.setattr(os, "fstatvfs", statvfs)


class Moments:
    """Waits that end when the test says so."""

    def __init__(self) -> None:
        self.to_try_again = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []

    async def __call__(self, seconds: float) -> None:
        if seconds == AGAIN_SECONDS:
            self.to_try_again.set()
        self._waiting.append(asyncio.get_running_loop().create_future())
        await self._waiting[-1]

    def pass_by(self) -> None:
        """Every wait is over."""
        self.to_try_again.clear()
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.set_result(None)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def full_keyring(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A keyring that finds no room to destroy a key, until `undo`."""

    def refused(_: Keyring, _customer: UUID, _container: UUID) -> None:
        raise StorageFailed("keyring: No space left on device")

    monkeypatch.setattr(Keyring, "destroy", refused)
    return monkeypatch


def left(connection: Connection) -> int:
    """Rows of records, in sight or not."""
    count: int = connection.execute("SELECT count(*) FROM records").get
    return count


def keys(things: Shelf) -> int:
    return sum(kind == "collection" for _, _, kind in things.keyring.containers())


async def test_what_comes_in_stops_at_the_reserve(tmp_path: Path, disk: Disk) -> None:
    async with shelf(tmp_path, reserve=10 * MIB) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(VECTORS[:5]))
        snapshot = await things.collections.snapshots.add(ACTOR, None, opened.collection.id)
        disk.free = 10 * MIB
        more = numbered(VECTORS[5:], 5)
        for change in (
            opened.insert(ACTOR, more),
            opened.upsert(ACTOR, [*more, NewRecord("r0", VECTORS[9], {"n": -1})]),
            opened.update(ACTOR, [("r0", {"n": -1})]),
            things.collections.snapshots.add(ACTOR, None, opened.collection.id),
            things.collections.snapshots.restore(ACTOR, None, opened.collection.id, snapshot.id),
        ):
            with pytest.raises(VolumeFull, match="10 MiB are free on the volume"):
                await change
        found = await opened.get(["r0", "r5"])
        assert [one and one.metadata for one in found] == [{"n": 0}, None]
        disk.free += MIB
        assert await opened.insert(ACTOR, more) == ["inserted"] * len(more)


async def test_large_records_do_not_reach_into_the_reserve(tmp_path: Path, disk: Disk) -> None:
    """What a call brings counts before it is written: its metadata, its ids, its vectors."""
    async with shelf(tmp_path, reserve=10 * MIB) as things:
        opened = await things.collection(DIM)
        disk.free = 10 * MIB + 40_000
        large: dict[str, object] = {"text": "x" * 50_000}
        with pytest.raises(VolumeFull, match="would leave less than 10 MiB"):
            await opened.insert(ACTOR, [NewRecord("large", VECTORS[0], large)])
        await opened.insert(ACTOR, [NewRecord("small", VECTORS[0], {})])
        with pytest.raises(VolumeFull, match="would leave less than 10 MiB"):
            await opened.update(ACTOR, [("small", large)])


@pytest.mark.parametrize("how", ["delete", "filter", "empty", "remove"])
async def test_what_goes_gets_the_ballast(tmp_path: Path, disk: Disk, how: str) -> None:
    async with shelf(tmp_path, reserve=10 * MIB, ballast=MIB) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(VECTORS))
        assert things.space.restore_ballast()
        disk.free = 0
        identity = opened.collection.id
        match how:
            case "delete":
                assert await opened.delete(ACTOR, ["r3"]) == [True]
            case "filter":
                assert await opened.delete_matching(ACTOR, filters.compile({"n": {"$lt": 3}})) == 3
            case "empty":
                assert (await things.collections.empty(ACTOR, None, identity)).count == 0
            case _:
                await things.collections.remove(ACTOR, None, identity)
        assert not (tmp_path / BALLAST).exists()


async def test_a_deletion_leaves_the_ballast_where_there_is_room(tmp_path: Path, disk: Disk) -> None:
    async with shelf(tmp_path, reserve=10 * MIB, ballast=MIB) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(VECTORS))
        assert things.space.restore_ballast()
        await opened.delete(ACTOR, ["r3"])
        assert (tmp_path / BALLAST).exists()


@pytest.mark.parametrize("how", ["empty", "remove"])
async def test_an_erasure_that_failed_is_tried_again_until_it_is_done(
    tmp_path: Path, full_keyring: pytest.MonkeyPatch, how: str
) -> None:
    moments = Moments()
    async with shelf(tmp_path, pause=moments) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(VECTORS))
        act = things.collections.empty if how == "empty" else things.collections.remove
        with pytest.raises(StorageFailed, match="No space left"):
            await act(ACTOR, None, opened.collection.id)
        assert things.collections.unerased == 1
        await tried_again(things, moments)
        assert things.collections.unerased == 1
        (finding,) = notices._of_removed(things.collections)
        assert (finding.severity, finding.key) == ("degraded", "search.erasures")
        assert "1 removed, emptied or replaced collections are not erased yet" in finding.message
        assert await things.ledger.read(left) == len(VECTORS)
        full_keyring.undo()
        await tried_again(things, moments)
        assert things.collections.unerased == 0
        assert await things.ledger.read(left) == 0
        assert list(notices._of_removed(things.collections)) == []
        assert keys(things) == (how == "empty")
        told = await Certificates(things.ledger, things.keyring.service).list(things.customer)
        assert len(told) == 1


async def test_rows_that_a_restore_replaced_are_tried_again_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = Moments()
    async with shelf(tmp_path, pause=moments) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(VECTORS))
        identity = opened.collection.id
        snapshot = await things.collections.snapshots.add(ACTOR, None, identity)
        with monkeypatch.context() as patch:

            def refused(_: Keyring, _customer: UUID, _container: UUID) -> None:
                raise StorageFailed("keyring: No space left on device")

            patch.setattr(Keyring, "destroy", refused)
            with pytest.raises(StorageFailed, match="No space left"):
                await things.collections.snapshots.restore(ACTOR, None, identity, snapshot.id)
        assert things.collections.unerased == 1
        assert await things.ledger.read(left) == 2 * len(VECTORS)
        await tried_again(things, moments)
        assert things.collections.unerased == 0
        assert await things.ledger.read(left) == len(VECTORS)


async def test_an_erasure_that_the_start_cannot_finish_is_tried_again(
    tmp_path: Path, full_keyring: pytest.MonkeyPatch
) -> None:
    async with shelf(tmp_path, pause=Moments()) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(VECTORS))
        with pytest.raises(StorageFailed):
            await things.collections.remove(ACTOR, None, opened.collection.id)
    moments = Moments()
    async with shelf(tmp_path, pause=moments) as things:
        await moments.to_try_again.wait()
        assert things.collections.unerased == 1
        full_keyring.undo()
        await tried_again(things, moments)
        assert (things.collections.unerased, keys(things)) == (0, 0)


async def tried_again(things: Shelf, moments: Moments) -> None:
    """What has failed is tried once more; on return it is done, or waits again."""
    await moments.to_try_again.wait()
    trying = things.collections._erasing._again
    assert trying is not None
    moments.pass_by()
    waits = asyncio.ensure_future(moments.to_try_again.wait())
    await asyncio.wait({waits, trying}, return_when=asyncio.FIRST_COMPLETED)
    waits.cancel()
