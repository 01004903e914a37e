"""Snapshots: what is brought back, what is refused, what it leaves, and when they go."""

import asyncio
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

from appliance import config
from appliance.accounts.audit import AuditLog, Event, Selection
from appliance.accounts.customers import Customers
from appliance.errors import CapacityExceeded, Conflict, InvalidInput, NotFound, QuotaReached, VolumeFull
from appliance.ledger import Connection
from appliance.search.collections import NewRecord, OpenCollection, Record
from appliance.search.container_files import Writing
from appliance.search.copying import Stored
from appliance.search.records import CollectionId
from appliance.search.seals import ContainerId, Seals
from appliance.search.snapshot_files import Manifest, SnapshotFolder, encode
from appliance.search.snapshots import Snapshot
from appliance.search.sync.feeds import Feeds
from appliance.search.sync.source import Source
from appliance.vault import Name, Sealer
from tests.plaintext import Plaintext, is_random
from tests.searching import ACTOR, BACKBONE, NOW, Shelf, low_rank, numbered, shelf, unit

DIM, COUNT = 8, 700
VECTORS = unit(np.random.default_rng(1), COUNT + 100, DIM)

Content = list[tuple[str, dict[str, object], bytes]]


async def content(opened: OpenCollection) -> Content:
    """All records in their order, bit by bit."""
    pages = [page async for page in opened.stored(1000)]
    return [(record.id, record.metadata, vector.tobytes()) for page in pages for record, vector in page]


async def opened(things: Shelf, collection: CollectionId) -> OpenCollection:
    return await things.collections.open(None, collection)


async def taken(things: Shelf, collection: CollectionId) -> Snapshot:
    return await things.collections.snapshots.add(ACTOR, things.customer, collection)


async def restore(things: Shelf, snapshot: Snapshot) -> None:
    await things.collections.snapshots.restore(ACTOR, None, snapshot.collection, snapshot.id)


async def changed(collection: OpenCollection) -> None:
    """Something of every change there is."""
    await collection.insert(ACTOR, numbered(VECTORS[COUNT:], COUNT))
    await collection.delete(ACTOR, [f"r{n}" for n in range(0, COUNT, 3)])
    await collection.update(ACTOR, [("r1", {"n": "one"})])
    await collection.upsert(ACTOR, [NewRecord("r4", VECTORS[0])])


def counted(connection: Connection) -> tuple[Any, ...]:
    """Rows of collections and of records; what usage says of both."""
    row: tuple[Any, ...] = connection.execute(
        "SELECT (SELECT count(*) FROM collections), (SELECT count(*) FROM records),"
        " (SELECT sum(collections) FROM search_usage), (SELECT sum(records) FROM search_usage)"
    ).get
    return row


def everything(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def files(state: Path) -> list[Path]:
    return everything(state / "snapshots")


async def test_a_restore_brings_back_every_record_in_its_order(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        collection = await things.collection(DIM)
        identifier = collection.collection.id
        await collection.insert(ACTOR, numbered(VECTORS[:COUNT]))
        await collection.delete(ACTOR, ["r7", "r500"])
        await collection.upsert(ACTOR, [NewRecord("r3", VECTORS[-1], {"deep": {"a": ["ž", 1.5, None]}})])
        before = await content(collection)
        snapshot = await taken(things, identifier)
        assert (snapshot.records, snapshot.created_at) == (COUNT - 2, int(NOW * 1000))
        assert [path.stat().st_size for path in files(tmp_path)] == [snapshot.bytes]
        await changed(collection)
        assert await content(collection) != before
        await restore(things, snapshot)
        assert await things.ledger.read(counted) == (1, COUNT - 2, 1, COUNT - 2)
        again = await opened(things, identifier)
        assert await content(again) == before
        assert await collection.insert(ACTOR, numbered(VECTORS[:1])) == ["duplicate"]  # opened before
        assert (await again.search(VECTORS[8], 1))[0].id == "r8"
        assert (await again.search(VECTORS[COUNT], 1))[0].id != f"r{COUNT}"
        assert await again.insert(ACTOR, numbered(VECTORS[7:9], 7)) == ["inserted", "duplicate"]
        assert await things.collections.snapshots.list(None, identifier) == [snapshot]
    async with shelf(tmp_path) as later:
        again = await opened(later, identifier)
        assert await content(again) == [*before, ("r7", {"n": 7}, VECTORS[7].tobytes())]
        await restore(later, snapshot)  # as often as one likes
        assert await content(await opened(later, identifier)) == before
        told = [
            (entry.event, entry.subject, entry.details)
            for entry in await AuditLog(later.ledger).entries(Selection(later.customer))
            if entry.event in {Event.SNAPSHOT_ADD, Event.SNAPSHOT_RESTORE}
        ]
        details = {"snapshot": snapshot.id, "records": COUNT - 2}
        assert told == [
            (Event.SNAPSHOT_ADD, identifier, details),
            *[(Event.SNAPSHOT_RESTORE, identifier, details)] * 2,
        ]


async def test_what_is_not_a_record_stays_through_a_restore(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        collection = await things.collection(DIM, recall=0.99)
        identifier = collection.collection.id
        feeds = Feeds(things.ledger, things.keyring, lambda: NOW)
        source = Source("https://shop.example/feed.json")
        await feeds.set(ACTOR, things.customer, identifier, source)
        await things.collections.aliases.point(ACTOR, None, "fashion", identifier)
        first = await taken(things, identifier)
        await collection.insert(ACTOR, numbered(VECTORS[:10]))
        second = await taken(things, identifier)
        await things.collections.rename(ACTOR, None, identifier, "renamed")
        before = await things.collections.get(None, identifier)
        await restore(things, first)  # of an empty one
        after = await things.collections.get(None, identifier)
        assert (after.name, after.recall, after.created_at) == ("renamed", 0.99, before.created_at)
        assert after.count == 0
        assert (await things.collections.find(things.customer, "renamed")).id == identifier
        assert (await feeds.get(things.customer, identifier)).source == source
        await restore(things, second)
        named = await things.collections.named(things.customer, "fashion")
        assert [record.id for record in await named.all()] == [f"r{n}" for n in range(10)]


async def test_a_snapshot_fills_a_new_collection_that_stands_for_itself(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        collection = await things.collection(DIM, recall=0.9)
        identifier, snapshots = collection.collection.id, things.collections.snapshots
        await collection.insert(ACTOR, numbered(VECTORS[:COUNT]))
        before, snapshot = await content(collection), await taken(things, identifier)
        keys = len(list(things.keyring.containers()))
        for name, refused in (("things", Conflict), (" ", InvalidInput)):
            with pytest.raises(refused):
                await snapshots.restore_into(ACTOR, None, identifier, snapshot.id, name)
        assert len(list(things.keyring.containers())) == keys
        made = await snapshots.restore_into(ACTOR, None, identifier, snapshot.id, "copy")
        copy = await opened(things, made)
        assert await content(copy) == before == await content(collection)
        assert (copy.collection.name, copy.collection.backbone, copy.collection.recall) == (
            "copy",
            BACKBONE,
            0.9,
        )
        assert await things.ledger.read(counted) == (2, 2 * COUNT, 2, 2 * COUNT)
        assert await snapshots.list(None, made) == []
        await things.collections.remove(ACTOR, None, identifier)
        assert files(tmp_path) == []
        assert await copy.insert(ACTOR, numbered(VECTORS[COUNT:], COUNT)) == ["inserted"] * 100
    async with shelf(tmp_path) as later:
        assert (await opened(later, made)).count == COUNT + 100


async def test_who_removes_or_empties_a_collection_ends_its_snapshots(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        one, two = await things.collection(DIM, "one"), await things.collection(DIM, "two")
        for collection in (one, two):
            await collection.insert(ACTOR, numbered(VECTORS[:5]))
            await taken(things, collection.collection.id)
        await things.collections.empty(ACTOR, None, one.collection.id)
        assert await things.collections.snapshots.list(None, one.collection.id) == []
        assert [UUID(path.parent.name) for path in files(tmp_path)] == [UUID(two.collection.id)]
        await things.collections.remove(ACTOR, None, two.collection.id)
        assert files(tmp_path) == []


async def test_so_many_and_no_more_until_one_is_removed(tmp_path: Path) -> None:
    async with shelf(tmp_path, config.Search(max_snapshots=2)) as things:
        identifier = (await things.collection(DIM)).collection.id
        first, _ = await taken(things, identifier), await taken(things, identifier)
        with pytest.raises(CapacityExceeded, match=r"at most 2 snapshots.*max_snapshots"):
            await taken(things, identifier)
        snapshots = things.collections.snapshots
        await snapshots.remove(ACTOR, things.customer, identifier, first.id)
        assert len(await snapshots.list(None, identifier)) == len(files(tmp_path)) == 1
        with pytest.raises(NotFound, match="no such snapshot"):
            await snapshots.remove(ACTOR, things.customer, identifier, first.id)
        await taken(things, identifier)
        events = [entry.event for entry in await AuditLog(things.ledger).entries(Selection(things.customer))]
        assert events.count(Event.SNAPSHOT_ADD) == 3
        assert events.count(Event.SNAPSHOT_REMOVE) == 1


async def test_anothers_snapshot_is_none(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        one, two = await things.collection(DIM, "one"), await things.collection(DIM, "two")
        await two.insert(ACTOR, numbered(VECTORS[:5]))
        snapshots, snapshot = things.collections.snapshots, await taken(things, one.collection.id)
        async with Customers(things.ledger, lambda: NOW) as customers:
            other = (await customers.add(ACTOR, "other")).id
        for customer, collection, named in (
            (things.customer, two.collection.id, snapshot.id),
            (things.customer, one.collection.id, str(uuid4())),
            (things.customer, one.collection.id, "nothing"),
            (other, one.collection.id, snapshot.id),
        ):
            with pytest.raises(NotFound):
                await snapshots.restore(ACTOR, customer, collection, named)
            with pytest.raises(NotFound):
                await snapshots.restore_into(ACTOR, customer, collection, named, "new")
            with pytest.raises(NotFound):
                await snapshots.remove(ACTOR, customer, collection, named)
        for refused in (
            snapshots.list(other, one.collection.id),
            snapshots.add(ACTOR, other, two.collection.id),
        ):
            with pytest.raises(NotFound):
                await refused
        assert two.count == 5


async def test_more_records_than_there_is_room_for_are_refused(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        collection = await things.collection(DIM)
        await collection.insert(ACTOR, numbered(VECTORS[:10]))
        snapshot = await taken(things, collection.collection.id)
        await collection.delete(ACTOR, ["r0", "r1", "r2"])
    for limits, refusal, told in (
        (config.Search(capacity=9), CapacityExceeded, "no room for 10 records"),
        (config.Search(max_records=9), QuotaReached, "may have 9 records"),
    ):
        async with shelf(tmp_path, limits) as things:
            with pytest.raises(refusal, match=told):
                await restore(things, snapshot)
            assert await things.ledger.read(counted) == (1, 7, 1, 7)
    async with shelf(tmp_path, config.Search(max_records=16, max_collections=1)) as things:
        with pytest.raises(QuotaReached, match="may have 1 collections"):
            await things.collections.snapshots.restore_into(
                ACTOR, None, snapshot.collection, snapshot.id, "new"
            )
        await restore(things, snapshot)
        assert await things.ledger.read(counted) == (1, 10, 1, 10)


async def test_a_nearly_full_volume_takes_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with shelf(tmp_path) as things:
        collection = await things.collection(DIM)
        await collection.insert(ACTOR, numbered(VECTORS[:COUNT]))
        snapshot = await taken(things, collection.collection.id)
        await collection.delete(ACTOR, ["r0"])
        room = os.fstatvfs

        def scarce(fd: int) -> Any:
            return type("", (), {"f_bavail": 10, "f_frsize": room(fd).f_frsize, "f_blocks": 1 << 20})

        with monkeypatch.context() as patch:
            patch.setattr(os, "fstatvfs", scarce)
            with pytest.raises(VolumeFull, match="MiB are free"):
                await taken(things, collection.collection.id)
            with pytest.raises(VolumeFull, match="MiB are free"):
                await restore(things, snapshot)
        assert len(files(tmp_path)) == 1
        assert await things.ledger.read(counted) == (1, COUNT - 1, 1, COUNT - 1)


def run(connection: Connection, statement: str) -> None:
    connection.execute(statement)


async def test_a_damaged_record_is_copied_nowhere(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        collection = await things.collection(DIM)
        await collection.insert(ACTOR, numbered(VECTORS[:5]))
        for statement in (
            "UPDATE records SET words = zeroblob(64) WHERE key & 4294967295 = 2",
            "UPDATE frames SET content = zeroblob(64)",
            "DELETE FROM records WHERE key & 4294967295 = 3",
        ):
            whole = await things.ledger.read(lambda db: db.execute("SELECT * FROM frames").get)
            words = await things.ledger.read(
                lambda connection: connection.execute("SELECT * FROM records ORDER BY key").fetchall()
            )
            await things.ledger.write(partial(run, statement=statement))
            with pytest.raises(Conflict, match="a snapshot has every record or is none"):
                await taken(things, collection.collection.id)

            def mend(connection: Connection, frame: Any = whole, records: Any = words) -> None:
                connection.execute("INSERT OR REPLACE INTO frames VALUES (?, ?, ?, ?)", frame)
                connection.executemany("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)", records)

            await things.ledger.write(mend)
        assert files(tmp_path) == []
        assert (await taken(things, collection.collection.id)).records == 5


async def test_a_snapshot_is_of_one_moment_and_readers_see_all_or_nothing_of_it(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        collection = await things.collection(DIM)
        identifier = collection.collection.id
        await collection.insert(ACTOR, numbered(VECTORS[:COUNT]))
        await collection.update(ACTOR, [(f"r{n}", {"n": 0}) for n in range(COUNT)])
        done = asyncio.Event()

        async def rewrite() -> None:
            """All records in one transaction each time."""
            version = 0
            while not done.is_set():
                version += 1
                await collection.update(ACTOR, [(f"r{n}", {"n": version}) for n in range(COUNT)])

        writing = asyncio.ensure_future(rewrite())
        snapshots = [await taken(things, identifier) for _ in range(4)]
        done.set()
        await writing
        versions: list[str] = []
        for snapshot in snapshots:
            restoring = asyncio.ensure_future(restore(things, snapshot))
            while not restoring.done():
                seen = await collection.all()  # opened before all of them, and never gone
                assert len(seen) == COUNT
                assert len({str(record.metadata["n"]) for record in seen}) == 1
            await restoring
            found = {str(record.metadata["n"]) for record in await (await opened(things, identifier)).all()}
            assert len(found) == 1
            versions += found
        assert len(set(versions)) > 1


async def test_who_has_it_open_goes_on_with_what_was_restored(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        collection = await things.collection(DIM)
        await collection.insert(ACTOR, numbered(VECTORS[:COUNT]))
        snapshot = await taken(things, collection.collection.id)
        await collection.delete(ACTOR, ["r0", "r1"])
        restoring = asyncio.ensure_future(restore(things, snapshot))
        asked = 0
        while not restoring.done():
            (hit,) = await collection.search(VECTORS[5], 1)
            late = NewRecord(f"late{asked}", -VECTORS[0])
            assert (hit.id, await collection.insert(ACTOR, [late])) == ("r5", ["inserted"])
            asked += 1
        await restoring
        assert collection.removed
        assert (await collection.search(VECTORS[1], 1))[0].id == "r1"
        assert await collection.delete(ACTOR, ["r1", "nobody"]) == [True, False]
        assert await collection.update(ACTOR, [("r0", {"n": -1})]) == [Record("r0", {"n": -1})]
        assert await collection.get(["r0", "r1"]) == [Record("r0", {"n": -1}), None]
        assert (await collection.page(1, 2))[0] == [Record("r0", {"n": -1}), Record("r2", {"n": 2})]
        await things.collections.remove(ACTOR, None, snapshot.collection)
        with pytest.raises(NotFound):
            await collection.get(["r0"])


async def test_a_graph_of_before_answers_for_nothing_of_now(tmp_path: Path) -> None:
    vectors = low_rank(np.random.default_rng(3), 900, 32)
    settings = config.Search(flat_bytes=300 * 32 * 4)
    async with shelf(tmp_path, settings) as things:
        collection = await things.collection(32)
        await collection.insert(ACTOR, numbered(vectors[:600]))
        await collection.seal()
        snapshot = await taken(things, collection.collection.id)
        await collection.delete(ACTOR, [f"r{n}" for n in range(300)])
        await collection.insert(ACTOR, numbered(vectors[600:], 600))
        await collection.seal()
        await restore(things, snapshot)
        again = await opened(things, collection.collection.id)
        await again.search(vectors[0], 1)
        await again.settle()
        assert again.graphed == 600
        for number in range(0, 900, 30):
            (hit,) = await again.search(vectors[number], 1)
            assert (hit.id == f"r{number}") == (number < 600)


async def test_a_rotated_key_opens_what_was_copied_before(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        collection = await things.collection(DIM)
        await collection.insert(ACTOR, numbered(VECTORS[:9]))
        before, snapshot = await content(collection), await taken(things, collection.collection.id)
        things.keyring.rotate_container(UUID(things.customer), UUID(collection.collection.id))
        things.keyring.rotate_customer(UUID(things.customer))
        await collection.delete(ACTOR, ["r3"])
        await restore(things, snapshot)
        assert await content(await opened(things, collection.collection.id)) == before


async def test_nothing_of_a_snapshot_rests_in_plain(tmp_path: Path) -> None:
    plaintext = Plaintext()
    names = [f"{uuid4()} of a customer" for _ in range(200)]
    for name in names:
        plaintext.add_word(name)
    for vector in VECTORS[:200]:
        plaintext.add(vector.tobytes())
    async with shelf(tmp_path) as things:
        collection = await things.collection(DIM)
        records = [NewRecord(name, VECTORS[n], {"title": name}) for n, name in enumerate(names)]
        await collection.insert(ACTOR, records)
        snapshot = await taken(things, collection.collection.id)
        (file,) = files(tmp_path)
        assert plaintext.places(file.read_bytes()) == []
        assert is_random(file.read_bytes()[64:])
        assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        seals = Seals(things.keyring, things.customer, ContainerId(collection.collection.id))
        reading = SnapshotFolder(tmp_path / "snapshots", seals).opened(UUID(snapshot.id))
        assert plaintext.places(bytes(reading.read(0, reading.length)))  # the control
        reading.close()
        await restore(things, snapshot)
        await things.collections.snapshots.restore_into(ACTOR, None, snapshot.collection, snapshot.id, "copy")
        found = everything(tmp_path)
        assert tmp_path / "ledger.db-wal" in found
        assert [path for path in found if plaintext.places(path.read_bytes())] == []


async def test_a_start_clears_what_a_crash_left_and_nothing_that_a_keyring_may_open(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        kept, keyless = await things.collection(DIM, "kept"), await things.collection(DIM, "keyless")
        for collection in (kept, keyless):
            await taken(things, collection.collection.id)
        things.keyring.destroy(UUID(things.customer), UUID(keyless.collection.id))
        with pytest.raises(NotFound):
            await taken(things, keyless.collection.id)
    before = files(tmp_path)
    assert len(before) == 2
    (before[0].parent / f".{before[0].name}.abc.draft").write_bytes(b"half")
    (tmp_path / "snapshots" / uuid4().hex).mkdir()
    async with shelf(tmp_path) as things:
        assert files(tmp_path) == before
        assert len(list((tmp_path / "snapshots").iterdir())) == 2
    shutil.rmtree(tmp_path / "snapshots")  # as a restored backup has it
    async with shelf(tmp_path) as things:
        assert await things.collections.snapshots.list(None, kept.collection.id) == []
        await taken(things, kept.collection.id)


def flipped(path: Path, bit: int) -> None:
    whole = bytearray(path.read_bytes())
    whole[bit // 8] ^= 1 << bit % 8
    path.write_bytes(whole)


def cut(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


async def assert_refused(things: Shelf, snapshot: Snapshot, match: str, before: Content) -> None:
    """Neither way restores it, and nothing is changed."""
    snapshots = things.collections.snapshots
    with pytest.raises(Conflict, match=match):
        await restore(things, snapshot)
    with pytest.raises(Conflict, match=match):
        await snapshots.restore_into(ACTOR, None, snapshot.collection, snapshot.id, "new")
    await things.collections._erasing.settle()
    assert await content(await opened(things, snapshot.collection)) == before
    assert await things.ledger.read(counted) == (1, len(before), 1, len(before))
    keys = [container for _, container, kind in things.keyring.containers() if kind == "collection"]
    assert len(keys) == 1


@pytest.mark.parametrize("sampled", [20, pytest.param(1500, marks=pytest.mark.full)])
@pytest.mark.timeout(600)
async def test_any_flipped_bit_and_any_cut_is_found_and_nothing_is_changed(
    tmp_path: Path, sampled: int
) -> None:
    rng = np.random.default_rng(sampled)
    async with shelf(tmp_path) as things:
        collection = await things.collection(DIM)
        await collection.insert(ACTOR, numbered(VECTORS[:600]))
        snapshot = await taken(things, collection.collection.id)
        await collection.delete(ACTOR, [f"r{n}" for n in range(10, 600)])
        before, (path,) = await content(collection), files(tmp_path)
        whole = path.read_bytes()
        bits = rng.integers(0, 8 * len(whole), sampled).tolist()
        for bit in [0, 8 * 20, 8 * 70, 8 * 100, 8 * len(whole) - 1, *bits]:
            flipped(path, bit)
            await assert_refused(things, snapshot, "cannot be restored, nothing was changed", before)
            path.write_bytes(whole)
        for size in [0, 63, len(whole) - 1, *rng.integers(64, len(whole), sampled // 4).tolist()]:
            cut(path, size)
            await assert_refused(things, snapshot, "cannot be restored, nothing was changed", before)
            path.write_bytes(whole)
        cut(path, 200)
        (listed,) = await things.collections.snapshots.list(None, collection.collection.id)
        assert (listed.id, listed.records, listed.created_at, listed.bytes) == (snapshot.id, None, None, 200)
        path.write_bytes(whole)
        await restore(things, snapshot)
        assert (await opened(things, collection.collection.id)).count == 600


MADE: dict[str, tuple[dict[str, Any], str]] = {
    "another dimension": ({"dim": 16}, "of 16 dimensions of test@1, the collection of 8"),
    "another backbone": ({"backbone": "test@2"}, "of 8 dimensions of test@2, the collection of 8 of test@1"),
    "more records than it says": ({"records": 1}, "2 records instead of 1"),
    "a format to come": ({"format": 2}, "a format that this version does not read"),
}


@pytest.mark.parametrize("what", MADE)
async def test_a_file_that_was_made_for_something_else_is_refused(tmp_path: Path, what: str) -> None:
    said, match = MADE[what]
    async with shelf(tmp_path) as things:
        collection = await things.collection(DIM)
        await collection.insert(ACTOR, numbered(VECTORS[:5]))
        snapshot = await taken(things, collection.collection.id)
        (path,) = files(tmp_path)
        path.unlink()
        seals = Seals(things.keyring, things.customer, ContainerId(collection.collection.id))
        manifest: dict[str, Any] = {
            "backbone": BACKBONE,
            "dim": DIM,
            "records": 2,
            "next_label": 2,
            "created_at": 0,
        }
        file = Writing(path.parent, UUID(snapshot.id))
        SnapshotFolder(tmp_path / "snapshots", seals).begin(file, Manifest(**(manifest | said)), 1000)
        words = [(b"a", b"{}"), (b"b", b"{}")]
        file.write(encode(Stored(np.arange(2), VECTORS[:2], words)))
        file.publish()
        file.close()
        await assert_refused(things, snapshot, match, await content(collection))


async def test_a_file_of_another_collection_or_under_another_key_is_refused(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        other = await things.collection(DIM, "other")
        await other.insert(ACTOR, numbered(VECTORS[:3]))
        await taken(things, other.collection.id)
        (foreign,) = (path.read_bytes() for path in files(tmp_path))
        await things.collections.remove(ACTOR, None, other.collection.id)
        collection = await things.collection(DIM)
        await collection.insert(ACTOR, numbered(VECTORS[:5]))
        snapshot = await taken(things, collection.collection.id)
        (path,) = files(tmp_path)
        name = Name(UUID(things.customer), UUID(snapshot.collection), UUID(snapshot.id))
        sealer = Sealer(name, 1, bytes(32))
        other_key = sealer.header + sealer.update(b"whatever") + sealer.finish()
        unknown = Sealer(name, 9, bytes(32))
        other_generation = unknown.header + unknown.update(b"whatever") + unknown.finish()
        refusals: dict[str, bytes] = {
            "it is another object's file": foreign,
            "its key does not fit": other_key,
            "there is no key of generation 9": other_generation,
        }
        for match, put in refusals.items():
            path.write_bytes(put)
            await assert_refused(things, snapshot, match, await content(collection))


async def test_a_caller_who_leaves_ends_nothing_and_a_stop_leaves_all_or_nothing(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        collection = await things.collection(DIM)
        identifier = collection.collection.id
        await collection.insert(ACTOR, numbered(VECTORS[:COUNT]))
        before, snapshot = await content(collection), await taken(things, identifier)
        await changed(collection)
        leaving = asyncio.ensure_future(restore(things, snapshot))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await asyncio.gather(*things.collections.snapshots._tasks)
        assert await content(await opened(things, identifier)) == before
        await changed(await opened(things, identifier))
        left = await content(await opened(things, identifier))
        stopped: list[Callable[[], Any]] = [
            lambda: restore(things, snapshot),
            lambda: taken(things, identifier),
        ]
        work = [asyncio.ensure_future(begin()) for begin in stopped]
        await asyncio.sleep(0)
    await asyncio.gather(*work, return_exceptions=True)
    async with shelf(tmp_path) as later:
        await later.collections._erasing.settle()
        now = await content(await opened(later, identifier))
        assert now in (before, left)
        assert await later.ledger.read(counted) == (1, len(now), 1, len(now))
        listed = await later.collections.snapshots.list(None, identifier)
        assert all(one.records is not None for one in listed)
        assert not any(path.name.startswith(".") for path in files(tmp_path))
