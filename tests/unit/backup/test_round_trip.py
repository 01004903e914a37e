"""What was backed up is there again after a restore, what was ended since is not, nothing lies in clear."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from blockbuster import blockbuster_ctx

from appliance import config, metrics
from appliance.accounts.audit import Event, entries
from appliance.accounts.tokens import Tokens
from appliance.backup.contents import APPLIANCE, BACKUPS
from appliance.backup.receiving import receive
from appliance.datasets.records import Image, ReadPermit
from appliance.errors import (
    BackupInvalid,
    Conflict,
    Forbidden,
    KeyringInvalid,
    NotFound,
    Unauthenticated,
    VolumeOffline,
)
from appliance.ledger import Connection
from appliance.search.collections import Collections
from appliance.search.records import CollectionId, NewRecord, Record
from appliance.vault import Keyring
from tests.backing import Shelf, filled, proven, put_back, silent, source
from tests.storing import ACTOR, ROOT, Stand, stand

NEW_ROOT = bytes(range(32, 64))


async def content(at: Stand, image: Image) -> bytes:
    opened = await at.store.open(ReadPermit(image.customer, image.dataset, image.id, "token"))
    try:
        return b"".join([piece async for piece in opened.read(0, opened.length)])
    finally:
        opened.close()


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_images_come_back_as_they_were(open_stand: Stand, shelf: Shelf, tmp_path: Path) -> None:
    dataset, images = await filled(open_stand)
    later, _ = await filled(open_stand, "Winter", 2)
    made = await shelf.take(open_stand)
    assert (made.header.images, made.files, made.absent) == (5, 7, [])
    assert proven(made.folder, made.keyring).images == 5
    restored = await put_back(made.folder, made.keyring, tmp_path / "again")
    assert restored.verified.images == 5
    async with stand(tmp_path / "again") as again:
        assert again.upkeep.findings == []
        assert [one.name for one in await again.datasets.list(dataset.customer)] == ["Summer", "Winter"]
        for number, image in enumerate(images):
            assert await content(again, image) == f"Summer {number} ".encode() * 3000
        assert await again.upkeep.scrub(60) > 0
        more = await again.store.put(ACTOR, later, b"a new one" * 1000)
        assert more.key > images[-1].key
        log = await again.ledger.read(entries)
        assert [entry.event for entry in log if entry.event.startswith("backup.")] == [
            Event.BACKUP_MAKE,
            Event.BACKUP_RESTORE,
        ]
        witnessed = again.files.witnessed()
        assert witnessed is not None
        assert witnessed.acknowledged == restored.entry
    # An older ledger beside the restored files is told as ever.
    async with stand(tmp_path / "again") as again:
        assert again.upkeep.findings == []


async def test_tokens_and_collections_go_on(open_stand: Stand, shelf: Shelf, tmp_path: Path) -> None:
    customer = await open_stand.customer()
    tokens = Tokens(open_stand.ledger, open_stand.keyring.service, open_stand.customers, open_stand.clock)
    async with tokens:
        issued = await tokens.add(ACTOR, customer)
        revoked_later = await tokens.add(ACTOR, customer)
        kept = await _collection(open_stand, "kept")
        gone = await _collection(open_stand, "gone")
        made = await shelf.take(open_stand)
        await tokens.revoke(ACTOR, customer, revoked_later.id)
        async with _collections(open_stand) as collections:
            await collections.remove(ACTOR, customer, gone)
        newest = await shelf.take(open_stand)
    restored = await put_back(made.folder, made.keyring, tmp_path / "again", newer=newest.tombstones)
    assert restored.verified.ended == {
        "images": 0,
        "datasets": 0,
        "collections": 1,
        "claims": 0,
        "tokens": 1,
        "agreements": 0,
        "suspensions": 0,
        "customers": 0,
    }
    async with (
        stand(tmp_path / "again") as again,
        Tokens(again.ledger, again.keyring.service, again.customers, again.clock) as tokens,
        _collections(again) as collections,
    ):
        assert tokens.verify(issued.token).customer == customer
        with pytest.raises(Unauthenticated):
            tokens.verify(revoked_later.token)
        assert [one.id for one in await collections.list(customer)] == [kept]
        held = {container for _, container, kind in again.keyring.containers() if kind == "collection"}
        assert held == {UUID(kept)}


def _collections(at: Stand) -> Collections:
    graphs, snapshots = at.state / "graphs", at.state / "snapshots"
    registry = metrics.create()
    return Collections(
        at.ledger,
        at.keyring,
        config.Search(),
        at.clock,
        registry,
        graphs=graphs,
        snapshots=snapshots,
        space=at.space,
    )


async def _collection(at: Stand, name: str) -> CollectionId:
    async with _collections(at) as collections:
        return (await collections.add(ACTOR, await at.customer(), name, "model@1", 8)).id


async def test_nothing_lies_in_clear_and_no_keyring_beside_it(open_stand: Stand, shelf: Shelf) -> None:
    _, images = await filled(open_stand, "Summer holidays")
    tokens = Tokens(open_stand.ledger, open_stand.keyring.service, open_stand.customers, open_stand.clock)
    async with tokens:
        issued = await tokens.add(ACTOR, await open_stand.customer("Galerie Secret"))
    bundle = open_stand.state / "bundles" / "private-model@1"
    _bundle(bundle, b"the customer's own labels\n")
    await open_stand.ledger.write(_list_bundle)
    made = await shelf.take(open_stand)
    files = everything(made.folder)
    keyring = open_stand.keyring.copy()
    for path, data in files.items():
        for secret in (
            b"Summer holidays",
            b"Galerie Secret",
            b"secret shelf",
            issued.id.encode(),
            issued.token.encode()[15:40],
            b"the customer's own labels",
            b"private-model",
            b"CREATE TABLE",
            ROOT,
            keyring[20:60],
            keyring[-200:-100],
        ):
            assert secret not in data, path
    assert not [path for path in files if "keyring" in path]
    assert {path.name for path in shelf.keyrings.iterdir()} == {made.keyring.name, made.tombstones.name}
    assert made.keyring.stat().st_mode & 0o777 == 0o600
    assert {image.id.replace("-", "") for image in images} == {
        path.rpartition("/")[2] for path in files if path.startswith("images/")
    }


async def test_bundles_come_back(open_stand: Stand, shelf: Shelf, tmp_path: Path) -> None:
    bundle = open_stand.state / "bundles" / "private-model@1"
    _bundle(bundle, b"cats\n" * 100_000)
    await open_stand.ledger.write(_list_bundle)
    made = await shelf.take(open_stand)
    await put_back(made.folder, made.keyring, tmp_path / "again")
    assert everything(tmp_path / "again" / "bundles" / "private-model@1") == everything(bundle)


async def test_a_damaged_bundle_keeps_nothing_else_from_the_backup(
    open_stand: Stand, shelf: Shelf, tmp_path: Path
) -> None:
    bundle = open_stand.state / "bundles" / "private-model@1"
    _bundle(bundle, b"cats")
    await open_stand.ledger.write(_list_bundle)
    await asyncio.to_thread((bundle / "bundle.toml").unlink)
    made = await shelf.take(open_stand)
    await put_back(made.folder, made.keyring, tmp_path / "again")
    assert everything(tmp_path / "again" / "bundles" / "private-model@1") == everything(bundle)


def _bundle(folder: Path, labels: bytes) -> None:
    (folder / "licences").mkdir(parents=True)
    (folder / "bundle.toml").write_bytes(b"name = 'x'")
    (folder / "labels.txt").write_bytes(labels)
    (folder / "licences" / "MIT").write_bytes(b"")


def _list_bundle(connection: Connection) -> None:
    connection.execute("INSERT INTO bundle_tasks (name, task, active) VALUES ('private-model', 't', '1')")
    connection.execute(
        "INSERT INTO bundles (name, version, manifest, installed_at) VALUES ('private-model', '1', ?, 0)",
        (bytes(32),),
    )


async def test_what_was_erased_since_stays_erased(open_stand: Stand, shelf: Shelf, tmp_path: Path) -> None:
    kept, images = await filled(open_stand)
    erased, lost = await filled(open_stand, "Winter")
    made = await shelf.take(open_stand)
    await open_stand.store.delete(ACTOR, images[1])
    await open_stand.datasets.erase(ACTOR, erased)
    newest = await shelf.take(open_stand)
    with pytest.raises(BackupInvalid, match="older than the backup: it ends at ledger entry"):
        await put_back(newest.folder, newest.keyring, tmp_path / "not", newer=made.tombstones)
    # With the old keyring: the key of the erased dataset goes from it.
    await put_back(made.folder, made.keyring, tmp_path / "again", newer=newest.tombstones)
    assert not await asyncio.to_thread((tmp_path / "again" / "images" / UUID(erased.id).hex).exists)
    async with stand(tmp_path / "again") as again:
        assert again.upkeep.findings == []
        assert [one.name for one in await again.datasets.list(kept.customer)] == ["Summer"]
        assert [one.id for one in await again.store.list(kept)] == [images[0].id, images[2].id]
        found = await again.datasets.get(kept.customer, kept.id)
        assert (found.images, found.epoch, found.visibility) == (2, kept.epoch, kept.visibility)
        with pytest.raises(NotFound):
            again.keyring.container(UUID(erased.customer), UUID(erased.id))
        # And a backup of the restored state still knows what was erased.
        third = await shelf.take(again)
    await put_back(made.folder, made.keyring, tmp_path / "third", newer=third.tombstones)
    async with stand(tmp_path / "third") as again:
        assert [one.id for one in await again.store.list(kept)] == [images[0].id, images[2].id]
    # Without tombstones it is back, which is why they are demanded.
    await put_back(made.folder, made.keyring, tmp_path / "without")
    async with stand(tmp_path / "without") as again:
        assert await content(again, lost[0]) == b"Winter 0 " * 3000


async def test_links_and_agreements_that_ended_stay_ended(
    open_stand: Stand, shelf: Shelf, tmp_path: Path
) -> None:
    dataset, _ = await filled(open_stand)
    customer = dataset.customer
    dataset = await open_stand.datasets.change(ACTOR, dataset, visibility="public")
    made = await shelf.take(open_stand)
    closed = await open_stand.datasets.change(ACTOR, dataset, visibility="restricted")
    (agreement,) = await open_stand.agreements.list(customer)
    await open_stand.agreements.revoke(ACTOR, customer, agreement.id)
    newest = await shelf.take(open_stand)
    restored = await put_back(made.folder, made.keyring, tmp_path / "again", newer=newest.tombstones)
    assert restored.verified.ended["agreements"] == 1
    async with stand(tmp_path / "again") as again:
        (found,) = await again.datasets.list(customer)
        assert (found.visibility, found.epoch) == ("restricted", closed.epoch)
        with pytest.raises(Forbidden):
            await again.store.put(ACTOR, found, b"without an agreement")


async def test_what_is_being_erased_counts_as_erased(open_stand: Stand, shelf: Shelf, tmp_path: Path) -> None:
    kept, images = await filled(open_stand)
    erased, _ = await filled(open_stand, "Winter")
    made = await shelf.take(open_stand)

    def begin(connection: Connection) -> None:
        connection.execute("UPDATE images SET deleted_at = 1 WHERE id = ?", (images[0].id,))
        connection.execute("UPDATE datasets SET erased_at = 1 WHERE id = ?", (erased.id,))

    await open_stand.ledger.write(begin)
    newest = await shelf.take(open_stand)
    restored = await put_back(made.folder, made.keyring, tmp_path / "again", newer=newest.tombstones)
    assert (restored.verified.ended["images"], restored.verified.ended["datasets"]) == (1, 1)
    async with stand(tmp_path / "again") as again:
        assert [one.id for one in await again.datasets.list(kept.customer)] == [kept.id]
        assert [one.id for one in await again.store.list(kept)] == [images[1].id, images[2].id]


async def test_every_rotation_carries_the_keys_of_backups_on(
    open_stand: Stand, shelf: Shelf, tmp_path: Path
) -> None:
    dataset, _ = await filled(open_stand)
    first = await shelf.take(open_stand)
    keyring = open_stand.keyring
    keyring.rotate_container(APPLIANCE, BACKUPS)
    keyring.rotate_customer(APPLIANCE)
    keyring.rotate_customer(UUID(dataset.customer))
    second = await shelf.take(open_stand)
    keyring.destroy_customer(UUID(dataset.customer))
    keyring.rotate_root(NEW_ROOT)
    newest = tmp_path / "newest"
    await asyncio.to_thread(newest.write_bytes, keyring.copy())
    for made in (first, second):
        found = proven(made.folder, newest, root=NEW_ROOT)
        assert (found.images, found.files) == (0, made.files)  # its images are erased, all else opens
        assert proven(made.folder, second.keyring).images == 3


async def test_making_one_never_blocks_the_loop(open_stand: Stand) -> None:
    await filled(open_stand, images=50)
    async with source(open_stand) as backups:
        with blockbuster_ctx("appliance"):
            making = await backups.begin(ACTOR)
            assert sum([len(piece) async for piece in making.pieces()]) > 50 * 27_000
            making.close()
            again = await backups.begin(ACTOR)  # the first one has ended with its last byte
            again.close()


async def test_one_that_is_given_up_gives_everything_back(open_stand: Stand, shelf: Shelf) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - of this process, at this moment

    await filled(open_stand, images=20)
    await shelf.take(open_stand)  # SQLite keeps a descriptor for its next connection
    before = await asyncio.to_thread(open_files)
    async with source(open_stand) as backups:
        making = await backups.begin(ACTOR)
        await anext(making.pieces())
        assert await asyncio.to_thread(open_files) > before
        making.close()
    assert await asyncio.to_thread(open_files) == before
    async with source(open_stand) as backups:
        (await backups.begin(ACTOR)).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone gives files away")
async def test_what_root_restores_is_the_daemons(open_stand: Stand, shelf: Shelf, tmp_path: Path) -> None:
    await filled(open_stand)
    made = await shelf.take(open_stand)
    state = tmp_path / "again"

    def owners() -> set[tuple[int, int]]:
        return {(path.lstat().st_uid, path.lstat().st_gid) for path in [state, *state.rglob("*")]}

    await asyncio.to_thread(state.mkdir)
    await asyncio.to_thread(os.chown, state, 12345, 54321)
    await put_back(made.folder, made.keyring, state)
    assert await asyncio.to_thread(owners) == {(12345, 54321)}


async def test_a_newer_keyring_alone_tells_of_erased_datasets(
    open_stand: Stand, shelf: Shelf, tmp_path: Path
) -> None:
    kept, _ = await filled(open_stand)
    erased, _ = await filled(open_stand, "Winter")
    made = await shelf.take(open_stand)
    await open_stand.datasets.erase(ACTOR, erased)
    newest = await shelf.take(open_stand)
    assert proven(made.folder, newest.keyring).images == 3
    await put_back(made.folder, newest.keyring, tmp_path / "again")
    async with stand(tmp_path / "again") as again:
        assert again.upkeep.findings == []
        assert [one.id for one in await again.datasets.list(kept.customer)] == [kept.id]


async def test_a_newer_keyring_alone_tells_of_removed_collections(
    open_stand: Stand, shelf: Shelf, tmp_path: Path
) -> None:
    customer = await open_stand.customer()
    kept, gone = await _collection(open_stand, "kept"), await _collection(open_stand, "gone")
    record = NewRecord("a", np.ones(8), {"shelf": "top"})
    async with _collections(open_stand) as collections:
        for one in (kept, gone):
            await (await collections.open(customer, one)).insert(ACTOR, [record])
        made = await shelf.take(open_stand)
        await collections.remove(ACTOR, customer, gone)
    newer = await shelf.take(open_stand)
    assert (await put_back(made.folder, newer.keyring, tmp_path / "again")).verified.ended["collections"] == 1
    assert (await put_back(made.folder, made.keyring, tmp_path / "older")).verified.ended["collections"] == 0
    for state, expected in ((tmp_path / "again", [kept]), (tmp_path / "older", [kept, gone])):
        async with stand(state) as again, _collections(again) as collections:
            assert [one.id for one in await collections.list(customer)] == expected
            for one in expected:
                opened = await collections.open(customer, one)
                assert await opened.get(["a"]) == [Record("a", {"shelf": "top"})]
                assert (await opened.search(np.ones(8), 1))[0].id == "a"


@pytest.mark.parametrize("how", ["keyring", "tombstones"])
async def test_an_emptied_collection_comes_back_from_no_older_backup(
    open_stand: Stand, shelf: Shelf, tmp_path: Path, how: str
) -> None:
    """It ends whole, as its name was sealed under the key that is gone; as it was emptied it comes back."""
    customer = await open_stand.customer()
    emptied = await _collection(open_stand, "emptied")
    record = NewRecord("a", np.ones(8), {"shelf": "top"})
    async with _collections(open_stand) as collections:
        await (await collections.open(customer, emptied)).insert(ACTOR, [record])
        made = await shelf.take(open_stand)
        await collections.empty(ACTOR, customer, emptied)
        await (await collections.open(customer, emptied)).insert(ACTOR, [record])
    newer = await shelf.take(open_stand)
    if how == "keyring":
        restored = await put_back(made.folder, newer.keyring, tmp_path / "old")
    else:
        restored = await put_back(made.folder, made.keyring, tmp_path / "old", newer=newer.tombstones)
    assert restored.verified.ended["collections"] == 1
    async with stand(tmp_path / "old") as again, _collections(again) as collections:
        assert await collections.list() == []
        assert UUID(emptied) not in {container for _, container, _ in again.keyring.containers()}
    await put_back(newer.folder, newer.keyring, tmp_path / "new", newer=newer.tombstones)
    async with stand(tmp_path / "new") as again, _collections(again) as collections:
        assert [(one.id, one.count) for one in await collections.list()] == [(emptied, 1)]


async def test_destroyed_keys_are_gone_from_old_backups_once_the_root_is_rotated(
    open_stand: Stand, shelf: Shelf, tmp_path: Path
) -> None:
    kept, images = await filled(open_stand)
    erased, _ = await filled(open_stand, "Winter")
    old = await shelf.take(open_stand)
    await open_stand.datasets.erase(ACTOR, erased)
    open_stand.keyring.rotate_root(NEW_ROOT)
    rotated = await asyncio.to_thread(Keyring.open, open_stand.state / "keyring", NEW_ROOT)
    rotated.retire_root()
    newest = tmp_path / "newest"
    await asyncio.to_thread(newest.write_bytes, rotated.copy())
    with pytest.raises(KeyringInvalid, match="another root"):
        proven(
            old.folder, old.keyring, root=NEW_ROOT
        )  # all that the keyring of that time needs is thrown away
    found = proven(old.folder, newest, root=NEW_ROOT)
    assert found.images == 3
    await put_back(old.folder, newest, tmp_path / "again", root=NEW_ROOT)
    names = await asyncio.to_thread(lambda: {path.name for path in (tmp_path / "again" / "images").iterdir()})
    assert names == {UUID(kept.id).hex, "witness"}
    with pytest.raises(NotFound):
        rotated.container(UUID(erased.customer), UUID(erased.id))
    assert len(images) == 3


async def test_a_keyring_of_before_or_of_another_appliance_is_refused(
    open_stand: Stand, shelf: Shelf, tmp_path: Path
) -> None:
    first = await shelf.take(open_stand)
    await filled(open_stand)
    made = await shelf.take(open_stand)
    with pytest.raises(BackupInvalid, match="1 datasets and collections have no key in it"):
        proven(made.folder, first.keyring)
    other = Keyring.create(tmp_path / "other", ROOT)
    with pytest.raises(BackupInvalid, match="another appliance"):
        proven(made.folder, tmp_path / "other")
    other.wipe()


async def test_images_that_go_meanwhile_are_left_out(open_stand: Stand, shelf: Shelf, tmp_path: Path) -> None:
    dataset, images = await filled(open_stand, images=40)
    erased, _ = await filled(open_stand, "Winter")

    async with source(open_stand) as backups:
        making = await backups.begin(ACTOR)
        with pytest.raises(Conflict, match="a backup is being made already"):
            await backups.begin(ACTOR)
        arriving = making.pieces()
        pieces = [await anext(arriving)]  # the ledger and some images
        for image in images[25:]:
            await open_stand.store.delete(ACTOR, image)
        await open_stand.datasets.erase(ACTOR, erased)
        await filled(open_stand, "Spring")  # came too late
        pieces += [piece async for piece in arriving]
        making.close()

    async def again() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    made = await receive(again(), shelf.backups, shelf.keyrings, keep_days=30, progress=silent)
    assert made.absent == []
    assert proven(made.folder, made.keyring).images == 25
    await put_back(made.folder, made.keyring, tmp_path / "again")
    async with stand(tmp_path / "again") as restored:
        assert restored.upkeep.findings == []
        assert len(await restored.store.list(dataset)) == 25
        assert len(await restored.datasets.list(dataset.customer)) == 1


async def test_a_damaged_image_costs_the_others_nothing(
    open_stand: Stand, shelf: Shelf, tmp_path: Path
) -> None:
    dataset, images = await filled(open_stand, images=5)
    folder = open_stand.state / "images" / UUID(dataset.id).hex

    def damage() -> None:
        path = folder / UUID(images[1].id).hex
        path.write_bytes(path.read_bytes()[:-1])
        (folder / UUID(images[2].id).hex).unlink()
        path = folder / UUID(images[3].id).hex
        data = bytearray(path.read_bytes())
        data[200] ^= 1  # within the first chunk, which a look at the start and the end does not see
        path.write_bytes(data)

    await asyncio.to_thread(damage)
    made = await shelf.take(open_stand)
    assert [text.split(":")[0] for text in made.absent] == ["damaged", "missing"]
    found = proven(made.folder, made.keyring)
    assert (found.images, len(found.damaged)) == (3, 3)
    await put_back(made.folder, made.keyring, tmp_path / "again")
    async with stand(tmp_path / "again") as again:
        assert await content(again, images[0]) == b"Summer 0 " * 3000
        assert await content(again, images[4]) == b"Summer 4 " * 3000


async def test_no_backup_begins_while_something_covers_the_state(open_stand: Stand, tmp_path: Path) -> None:
    async with source(open_stand) as backups:
        aside = await asyncio.to_thread(open_stand.state.rename, tmp_path / "aside")
        await asyncio.to_thread(open_stand.state.mkdir)
        with pytest.raises(VolumeOffline, match="mount its volume there again"):
            await backups.begin(ACTOR)
        await asyncio.to_thread(open_stand.state.rmdir)
        await asyncio.to_thread(aside.rename, open_stand.state)
        (await backups.begin(ACTOR)).close()
