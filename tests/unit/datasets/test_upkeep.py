"""What goes wrong between a store and its disk, and what goes by itself: damage, older ledgers, erasures."""

import asyncio
import errno
import itertools
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.accounts.audit import entries
from appliance.datasets import rows
from appliance.datasets.files import SealedFiles
from appliance.datasets.records import Image
from appliance.datasets.upkeep import Upkeep
from appliance.datasets.witness import WITNESS
from appliance.errors import (
    NotFound,
    SealBroken,
    StorageFailed,
)
from appliance.ledger import Connection, Ledger
from appliance.volume import DataFolder
from tests.storing import ACTOR, PHOTO, damage, default, files, permit, read, restore, stand


async def test_a_damaged_image_is_not_given_out_and_the_others_are(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        good = await one.store.put(ACTOR, dataset, PHOTO)
        bad = await one.store.put(ACTOR, dataset, PHOTO + b"x")
        lost = await one.store.put(ACTOR, dataset, PHOTO + b"y")
        folder = tmp_path / "images" / uuid.UUID(dataset.id).hex
        damage(folder / uuid.UUID(bad.id).hex)
        (folder / uuid.UUID(lost.id).hex).unlink()
        with pytest.raises(SealBroken, match=bad.id):
            await read(one, bad)
        assert await read(one, good) == PHOTO
        one.clock.now += 31 * 86400
        await one.upkeep.scrub(10)
        log = await one.ledger.read(entries)
        damaged = [entry.subject for entry in log if entry.event == "image.damaged"]
        assert sorted(damaged, key=str) == sorted([bad.id, lost.id])
        await one.upkeep.scrub(10)  # told once
        assert len(await one.ledger.read(entries)) == len(log)
    async with stand(tmp_path) as again:
        assert again.upkeep.damaged == 2


async def test_a_file_that_cannot_be_deleted_keeps_nobody_from_what_is_sound(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        stuck = await one.store.put(ACTOR, dataset, PHOTO)
        sound = await one.store.put(ACTOR, dataset, PHOTO + b"x")
        await one.ledger.write(lambda connection: rows.begin_deleting(connection, stuck, 1))
    file = tmp_path / "images" / uuid.UUID(dataset.id).hex / uuid.UUID(stuck.id).hex
    file.unlink()
    file.mkdir()
    async with stand(tmp_path) as again:
        assert "1 deleted images are not gone yet" in str(again.upkeep.unfinished())
        assert await read(again, sound) == PHOTO + b"x"
        file.rmdir()
        await again.deletions.finish_rest()
        assert again.upkeep.unfinished() is None


async def test_what_could_not_be_deleted_to_the_end_is_tried_again(tmp_path: Path) -> None:
    """A folder in the place of one file."""
    async with stand(tmp_path) as one:
        dataset = await default(one)
        images = [await one.store.put(ACTOR, dataset, PHOTO + bytes([n])) for n in range(3)]
        file = tmp_path / "images" / uuid.UUID(dataset.id).hex / uuid.UUID(images[1].id).hex
        file.unlink()
        file.mkdir()
        with pytest.raises(StorageFailed):
            await one.store.delete_all(ACTOR, images)
        assert "3 deleted images" in str(one.upkeep.unfinished())
        await one.deletions.finish_rest()
        assert "1 deleted images" in str(one.upkeep.unfinished())
        file.rmdir()
        await one.deletions.finish_rest()
        assert one.upkeep.unfinished() is None
        await one.deletions.finish(images)  # as after a failure behind the rows
        listed = await one.datasets.certificates.list(await one.customer())
        certified = [name for proof in listed for name in json.loads(proof.statement)["ids"]]
        assert sorted(certified) == sorted(image.id for image in images)


async def test_who_meets_damage_has_it_noted(tmp_path: Path) -> None:
    """Wherever it is met: in the middle of a large file, by its length, or because the file is not there."""
    large = os.urandom(600_000)
    async with stand(tmp_path) as one:
        dataset = await default(one)
        images = [await one.store.put(ACTOR, dataset, b"%d" % n + large) for n in range(4)]
        folder = tmp_path / "images" / uuid.UUID(dataset.id).hex
        broken, lost, piped, good = (folder / uuid.UUID(image.id).hex for image in images)
        damage(broken, at=300_000)
        lost.unlink()
        piped.unlink()
        os.mkfifo(piped)
        for number, image in enumerate(images[:3], 1):
            for _ in range(2):
                with pytest.raises((SealBroken, NotFound)):
                    await read(one, image)
            assert one.upkeep.damaged == number
        assert await read(one, images[3]) == b"3" + large
        told = [entry.subject for entry in await one.ledger.read(entries) if entry.event == "image.damaged"]
        assert told == [image.id for image in images[:3]]
        assert good.exists()


async def test_an_image_whose_bytes_are_put_back_is_whole_again(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        images = [await one.store.put(ACTOR, dataset, b"%d" % n + PHOTO) for n in range(2)]
        folder = tmp_path / "images" / uuid.UUID(dataset.id).hex
        places = [folder / uuid.UUID(image.id).hex for image in images]
        whole = [place.read_bytes() for place in places]
        for place, image in zip(places, images, strict=True):
            damage(place)
            with pytest.raises(SealBroken):
                await read(one, image)
        places[0].write_bytes(whole[0])
    async with stand(tmp_path) as again:
        assert again.upkeep.damaged == 2
        await again.upkeep.look_again()
        assert again.upkeep.damaged == 1
        assert [image.damaged for image in await again.store.list(dataset)] == [False, True]
        told = [
            entry.subject for entry in await again.ledger.read(entries) if entry.event == "image.restored"
        ]
        assert told == [images[0].id]
        await again.upkeep.look_again()
        assert again.upkeep.damaged == 1


async def test_a_scrub_goes_on_past_a_file_that_the_disk_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        images = [await one.store.put(ACTOR, dataset, b"%d" % n + PHOTO) for n in range(4)]
        place = tmp_path / "images" / uuid.UUID(dataset.id).hex / uuid.UUID(images[1].id).hex
        unreadable = place.stat().st_ino
        pread, preadv = os.pread, os.preadv

        def bad_sector(fd: int, size: int, offset: int) -> bytes:
            if os.fstat(fd).st_ino == unreadable:
                raise OSError(5, "Input/output error")
            return pread(fd, size, offset)

        def not_cached(fd: int, data: list[bytearray], offset: int, flags: int = 0) -> int:
            if os.fstat(fd).st_ino == unreadable:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return preadv(fd, data, offset, flags)

        monkeypatch.setattr(os, "pread", bad_sector)
        monkeypatch.setattr(os, "preadv", not_cached)
        with pytest.raises(StorageFailed, match="a read failed"):
            await read(one, images[1])
        one.clock.now += 31 * 86400
        assert await one.upkeep.scrub(10) == 0.0  # to be tried once more
        assert not any(image.damaged for image in await one.store.list(dataset))
        await one.upkeep.scrub(10)
        assert [image.damaged for image in await one.store.list(dataset)] == [False, True, False, False]
        assert [await read(one, image) for image in images[2:]] == [b"2" + PHOTO, b"3" + PHOTO]
        assert one.folder.fault is None


async def test_what_the_disk_refuses_once_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        for number in range(3):
            await one.store.put(ACTOR, dataset, b"%d" % number + PHOTO)
        one.clock.now += 31 * 86400
        with monkeypatch.context() as patch:
            failing = iter([OSError(errno.EIO, "Input/output error")])
            patch.setattr(os, "pread", raising(os.pread, failing))
            await one.upkeep.scrub(10)
        await one.upkeep.scrub(10)
        assert not any(image.damaged for image in await one.store.list(dataset))
        assert await one.upkeep.scrub(10) > 0.0, "something is still to be proven"
        one.clock.now += 31 * 86400
        failing = iter([OSError(errno.EIO, "Input/output error")])
        monkeypatch.setattr(os, "pread", raising(os.pread, failing))
        await one.upkeep.scrub(10)
        await one.upkeep.scrub(10)
        assert "image.damaged" not in {entry.event for entry in await one.ledger.read(entries)}


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
async def test_what_this_process_lacks_says_nothing_of_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        await one.store.put(ACTOR, dataset, PHOTO)
        one.clock.now += 31 * 86400
        lack = itertools.repeat(OSError(number, os.strerror(number)))
        for _ in range(3):
            with monkeypatch.context() as patch:
                patch.setattr(os, "open", raising(os.open, lack))
                with pytest.raises(StorageFailed, match=os.strerror(number)):
                    await one.upkeep.scrub(10)
        assert not any(image.damaged for image in await one.store.list(dataset))
        await one.upkeep.scrub(10)
        assert await one.upkeep.scrub(10) > 0.0


async def test_a_missing_key_damages_no_image(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        image = await one.store.put(ACTOR, dataset, PHOTO)
        keyring = (tmp_path / "keyring").read_bytes()
        one.keyring.destroy(uuid.UUID(dataset.customer), uuid.UUID(dataset.id))
        one.clock.now += 31 * 86400
        assert await one.upkeep.scrub(10) > 0.0, "it is looked at again and again"
    (tmp_path / "keyring").write_bytes(keyring)
    async with stand(tmp_path) as again:
        assert again.upkeep.damaged == 0
        assert await read(again, image) == PHOTO


def raising(call: Callable[..., Any], errors: Iterator[OSError]) -> Callable[..., Any]:
    """`call`, which raises these first."""

    def instead(*given: Any, **named: Any) -> Any:
        if (error := next(errors, None)) is not None:
            raise error
        return call(*given, **named)

    return instead


async def test_a_scrub_takes_nothing_for_damaged_that_goes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with stand(tmp_path) as one:
        kept = await default(one)
        image = await one.store.put(ACTOR, kept, PHOTO)
        doomed = await one.datasets.add(ACTOR, kept.customer, "cats")
        erased = await one.store.put(ACTOR, doomed, PHOTO)
        looked_for = Upkeep._is_sound

        def going(connection: Connection) -> None:
            rows.begin_deleting(connection, image, 1)
            connection.execute("UPDATE datasets SET erased_at = 1 WHERE number = ?", (doomed.number,))

        async def late(upkeep: Upkeep, due: Image) -> bool:
            await one.ledger.write(going)
            await one.files.remove([image.name, erased.name])
            return await looked_for(upkeep, due)

        monkeypatch.setattr(Upkeep, "_is_sound", late)
        one.clock.now += 31 * 86400
        await one.upkeep.scrub(10)
        assert "image.damaged" not in {entry.event for entry in await one.ledger.read(entries)}
        assert not caplog.records


async def test_a_ledger_of_yesterday_is_reported_and_loses_no_file(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        await one.store.put(ACTOR, dataset, PHOTO)
    yesterday = (tmp_path / "ledger.db").read_bytes()
    async with stand(tmp_path) as one:
        later = await one.store.put(ACTOR, dataset, PHOTO + b"x")
        await one.datasets.add(ACTOR, dataset.customer, "made today")
    restore(tmp_path, yesterday)
    async with stand(tmp_path) as one:
        assert any("older than the sealed files" in finding for finding in one.upkeep.findings)
        assert any("1 sealed files" in finding for finding in one.upkeep.findings)
        assert uuid.UUID(later.id).hex in {path.name for path in files(tmp_path)}


async def test_a_dataset_that_was_erased_since_yesterday_stays_erased_and_hides_no_other(
    tmp_path: Path,
) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        image = await one.store.put(ACTOR, dataset, PHOTO)
        doomed = await one.datasets.add(ACTOR, dataset.customer, "cats")
        gone = await one.store.put(ACTOR, doomed, PHOTO)
    yesterday = (tmp_path / "ledger.db").read_bytes()
    async with stand(tmp_path) as one:
        await one.datasets.erase(ACTOR, doomed)
    restore(tmp_path, yesterday)
    async with stand(tmp_path) as one:
        assert [found.id for found in await one.datasets.list(dataset.customer)] == [dataset.id]
        assert any(f"dataset {doomed.id} has no key" in finding for finding in one.upkeep.findings)
        for opening in (one.datasets.get(dataset.customer, doomed.id), one.store.open(permit(gone))):
            with pytest.raises(NotFound):
                await opening
        assert await read(one, image) == PHOTO
        await one.datasets.add(ACTOR, dataset.customer, "cats")
        one.clock.now += 31 * 86400
        assert await one.upkeep.scrub(10) > 0.0  # it comes to an end, and blames no file
        assert "image.damaged" not in {entry.event for entry in await one.ledger.read(entries)}


async def test_a_ledger_of_yesterday_loses_no_file_however_far_it_comes(tmp_path: Path) -> None:
    """Until the right one is back: it has all the rows, and what was never acknowledged goes again."""
    async with stand(tmp_path) as one:
        dataset = await default(one)
        await one.store.put(ACTOR, dataset, PHOTO)
    yesterday = (tmp_path / "ledger.db").read_bytes()
    async with stand(tmp_path) as one:
        later = [await one.store.put(ACTOR, dataset, b"%d" % n + PHOTO) for n in range(3)]
    today = (tmp_path / "ledger.db").read_bytes()
    restore(tmp_path, yesterday)
    for start in range(4):  # each with more entries; the third has passed those that were witnessed
        async with stand(tmp_path) as one:
            assert any("3 sealed files" in finding for finding in one.upkeep.findings), start
            for image in [await one.store.put(ACTOR, dataset, b"%d" % n + PHOTO * 2) for n in range(2)]:
                await one.store.delete(ACTOR, image)
    restore(tmp_path, today)
    async with stand(tmp_path) as one:
        for image in later:
            assert len(await read(one, image)) == image.size
        folder = tmp_path / "images" / uuid.UUID(dataset.id).hex
        for n in range(20):
            await one.store.put(ACTOR, dataset, b"%d" % n + PHOTO * 3)
        kept = len(files(tmp_path))
    async with stand(tmp_path) as one:
        assert one.upkeep.findings == []
        (folder / uuid.uuid4().hex).write_bytes(b"")
    async with stand(tmp_path) as one:
        assert (one.upkeep.findings, len(files(tmp_path))) == ([], kept)


async def test_a_ledger_that_its_published_log_contradicts_loses_no_file(tmp_path: Path) -> None:
    """Nor after that log was moved away: the files are still those of another ledger, until it is back."""
    async with stand(tmp_path) as one:
        dataset = await default(one)
        await one.store.put(ACTOR, dataset, PHOTO)
    witness = tmp_path / "images" / WITNESS
    yesterday = (tmp_path / "ledger.db").read_bytes(), witness.read_bytes()
    async with stand(tmp_path) as one:
        later = await one.store.put(ACTOR, dataset, b"later" + PHOTO)
    today = (tmp_path / "ledger.db").read_bytes()
    restore(tmp_path, yesterday[0])
    witness.write_bytes(yesterday[1])
    for contradicted in (True, False):
        async with stand(tmp_path, contradicted=contradicted) as one:
            told = [finding for finding in one.upkeep.findings if "go on from the audit log" in finding]
            assert len(told) == contradicted
            assert any("1 sealed files" in finding for finding in one.upkeep.findings)
    restore(tmp_path, today)
    async with stand(tmp_path) as one:
        assert one.upkeep.findings == []
        assert await read(one, later) == b"later" + PHOTO


async def test_what_was_not_acknowledged_is_absent_after_the_next_start(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        image = await one.store.put(ACTOR, dataset, PHOTO)
        folder = tmp_path / "images" / uuid.UUID(dataset.id).hex
        (folder / uuid.uuid4().hex).write_bytes((folder / uuid.UUID(image.id).hex).read_bytes())
    async with stand(tmp_path) as again:
        assert [path.name for path in files(tmp_path)] == [uuid.UUID(image.id).hex]
        assert await read(again, image) == PHOTO


async def test_an_erased_dataset_is_gone_at_once_and_for_good(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        customer = await one.customer()
        dataset = await one.datasets.add(ACTOR, customer, "cats")
        image = await one.store.put(ACTOR, dataset, PHOTO)
        kept = await one.store.put(ACTOR, await default(one), PHOTO)
        opened = await one.store.open(permit(image))
        await one.datasets.erase(ACTOR, dataset)
        for gone in (one.store.get(customer, image.id), one.datasets.get(customer, dataset.id)):
            with pytest.raises(NotFound):
                await gone
        with pytest.raises(NotFound):
            await one.store.put(ACTOR, dataset, PHOTO + b"x")
        opened.close()
    async with stand(tmp_path) as again:
        assert [path.name for path in files(tmp_path)] == [uuid.UUID(kept.id).hex]
        assert [found.name for found in await again.datasets.list(customer)] == [None]
        assert len(list(again.keyring.containers())) == 1
        assert await read(again, kept) == PHOTO


async def test_an_erasure_that_was_interrupted_is_finished(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await one.datasets.add(ACTOR, await one.customer(), "cats")
        await one.store.put(ACTOR, dataset, PHOTO)
        await one.ledger.write(lambda connection: connection.execute("UPDATE datasets SET erased_at = 1").get)
    async with stand(tmp_path):
        pass
    async with stand(tmp_path) as again:
        assert files(tmp_path) == []
        assert list(again.keyring.containers()) == []


async def test_an_upload_into_a_dataset_that_is_erased_meanwhile_harms_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stand(tmp_path) as one:
        kept = await default(one)
        doomed = await one.datasets.add(ACTOR, kept.customer, "cats")
        make_durable, subfolder = SealedFiles._make_durable, DataFolder.subfolder

        def removed_before(files: SealedFiles, batch: Any) -> Any:
            files._unlink_all(uuid.UUID(doomed.id))
            return make_durable(files, batch)

        @contextmanager
        def removed_after(folder: DataFolder, top: int, name: str, *, create: bool = False) -> Iterator[int]:
            with subfolder(folder, top, name, create=create) as fd:
                if name == uuid.UUID(doomed.id).hex and create:
                    one.files._unlink_all(uuid.UUID(doomed.id))
                yield fd

        steps: tuple[tuple[type, str, Any], ...] = (
            (SealedFiles, "_make_durable", removed_before),
            (DataFolder, "subfolder", removed_after),
        )
        for owner, step, removing in steps:
            with monkeypatch.context() as patch:
                patch.setattr(owner, step, removing)
                async with asyncio.timeout(10):
                    refused, stored = await asyncio.gather(
                        *(one.store.put(ACTOR, to, step.encode() + PHOTO) for to in (doomed, kept)),
                        return_exceptions=True,
                    )
            assert isinstance(refused, NotFound)
            assert isinstance(stored, Image)
        assert one.folder.fault is None
        assert len(files(tmp_path)) == 2


async def test_a_folder_that_a_dead_start_left_is_made_durable_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a name, and nobody knows whether only the page cache has it."""
    synced: list[int] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        fsync(fd)

    async with stand(tmp_path) as one:
        dataset = await default(one)
        (tmp_path / "images" / uuid.UUID(dataset.id).hex).mkdir()
        monkeypatch.setattr(os, "fsync", noted)
        await one.store.put(ACTOR, dataset, PHOTO)
        assert (tmp_path / "images").stat().st_ino in synced
        synced.clear()
        await one.store.put(ACTOR, dataset, PHOTO + b"y")
        assert (tmp_path / "images").stat().st_ino not in synced


async def test_a_dataset_that_is_erased_gets_no_folder_again(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await one.datasets.add(ACTOR, await one.customer(), "cats")
        image = await one.store.put(ACTOR, dataset, PHOTO)
        keys = one.datasets.keys(dataset)
        await one.datasets.erase(ACTOR, dataset)
        await asyncio.gather(*one.datasets._erasing)
        with pytest.raises(SealBroken, match="destroyed"):
            await one.files.write(image.name, keys, [PHOTO])
    async with stand(tmp_path) as again:
        assert again.upkeep.findings == []


async def test_a_failed_ledger_leaves_no_files_behind(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        one.ledger._writer.failure = "disk I/O error"
        for _ in range(3):
            with pytest.raises(StorageFailed, match="disk I/O error"):
                await one.store.put(ACTOR, dataset, PHOTO)
        assert files(tmp_path) == []


async def test_what_the_ledger_cannot_tell_is_whole_or_absent_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that is on the disk although its sync was said to have failed: the worst that can happen."""
    written = Ledger.write

    async def unsure(ledger: Ledger, act: Any, **options: Any) -> Any:
        await written(ledger, act, **options)
        raise StorageFailed("disk I/O error")

    async with stand(tmp_path) as one:
        dataset = await default(one)
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "write", unsure)
            with pytest.raises(StorageFailed):
                await one.store.put(ACTOR, dataset, PHOTO)
            with pytest.raises(StorageFailed):
                await one.datasets.add(ACTOR, dataset.customer, "cats")
    async with stand(tmp_path) as again:
        assert [found.name for found in await again.datasets.list(dataset.customer)] == [None, "cats"]
        (image,) = await again.store.list(dataset)
        assert await read(again, image) == PHOTO


async def test_a_dataset_whose_name_is_damaged_stands_in_no_others_way_and_is_erased(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        customer = await one.customer()
        named = [await one.datasets.add(ACTOR, customer, name) for name in ("cats", "dogs")]
        image = await one.store.put(ACTOR, named[0], PHOTO)
        await one.ledger.write(
            lambda connection: connection.execute(
                "UPDATE datasets SET name = CAST(name || X'00' AS BLOB) WHERE id = ?", (named[0].id,)
            ).fetchall()
        )
    async with stand(tmp_path) as again:
        assert [dataset.name for dataset in await again.datasets.list(customer)] == ["?", "dogs"]
        assert [finding for finding in again.upkeep.findings if named[0].id in finding]
        assert await read(again, image) == PHOTO
        await again.datasets.add(ACTOR, customer, "mice")
        await again.datasets.erase(ACTOR, await again.datasets.get(customer, named[0].id))
        assert [dataset.name for dataset in await again.datasets.list(customer)] == ["dogs", "mice"]
