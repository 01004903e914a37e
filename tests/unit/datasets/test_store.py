"""The store: what is acknowledged is there and whole, what is not is absent, what is deleted is gone."""

import asyncio
import contextlib
import errno
import gc
import json
import os
import threading
import uuid
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.accounts.audit import entries
from appliance.accounts.certificates import Certificates
from appliance.datasets import catalogue
from appliance.datasets.files import SealedFiles
from appliance.datasets.ports import Encoded
from appliance.datasets.records import ReadPermit
from appliance.errors import (
    AlreadyStored,
    CapacityExceeded,
    Forbidden,
    InvalidImage,
    LedgerAltered,
    NotFound,
    SealBroken,
    StorageFailed,
    VolumeFull,
    VolumeOffline,
)
from appliance.ledger import Connection, Ledger
from appliance.volume import DataFolder
from appliance.volume.anchor import SENTINEL
from tests.ledgers import altered, log_is_empty
from tests.storing import (
    ACTOR,
    OPERATOR,
    PHOTO,
    Opaque,
    OpaqueCodec,
    default,
    everything,
    files,
    permit,
    read,
    stand,
    swap,
)


async def test_what_was_put_is_there_also_after_a_restart(tmp_path: Path) -> None:
    async with stand(tmp_path) as first:
        dataset = await default(first)
        image = await first.store.put(ACTOR, dataset, PHOTO)
        assert await read(first, image) == PHOTO
        assert await read(first, image, "thumbnail") == PHOTO[:100][::-1]
    async with stand(tmp_path) as again:
        assert await again.store.get(image.customer, image.id) == image
        assert await read(again, image) == PHOTO
        counted = await default(again)
        assert (counted.images, counted.bytes) == (1, len(PHOTO))
        assert again.upkeep.findings == []


@pytest.mark.parametrize("size", [100, 200_000, 600_000])
async def test_what_the_kernel_has_dropped_comes_from_the_disk(tmp_path: Path, size: int) -> None:
    photo = os.urandom(size)
    async with stand(tmp_path) as one:
        image = await one.store.put(ACTOR, await default(one), photo)
        opened = await one.store.open(permit(image))
        for path in files(tmp_path):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert b"".join([piece async for piece in opened.read(0, size)]) == photo
        opened.close()
        for path in files(tmp_path):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert await read(one, image) == photo


async def test_nothing_is_put_without_an_agreement(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        [agreement] = await one.agreements.list()
        racing = asyncio.ensure_future(one.store.put(ACTOR, dataset, PHOTO))
        await asyncio.sleep(0)  # past the first look, before the transaction
        await one.agreements.revoke(ACTOR, None, agreement.id)
        with pytest.raises(Forbidden, match="agreement"):
            await racing
        with pytest.raises(Forbidden, match="agreement"):
            await one.store.put(ACTOR, dataset, PHOTO)
        assert files(tmp_path) == []
        assert await one.store.list(dataset) == []


async def test_a_suspended_customers_token_stores_nothing_more_and_an_operator_does(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        await one.customers.suspend(OPERATOR, dataset.customer)
        with pytest.raises(Forbidden, match="suspended"):
            await one.store.put(ACTOR, dataset, PHOTO)
        assert files(tmp_path) == []
        image = await one.store.put(OPERATOR, dataset, PHOTO)
        assert await one.store.list(dataset) == [image]


async def test_what_is_no_image_is_not_put(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        with pytest.raises(InvalidImage):
            await one.store.put(ACTOR, await default(one), b"broken" + PHOTO)
        assert files(tmp_path) == []


async def test_the_same_bytes_twice_are_told_with_the_id(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        image = await one.store.put(ACTOR, dataset, PHOTO)
        with pytest.raises(AlreadyStored, match=f"image ID: {image.id}"):
            await one.store.put(ACTOR, dataset, PHOTO)
        both = await asyncio.gather(
            *(one.store.put(ACTOR, dataset, PHOTO + b"x") for _ in range(5)), return_exceptions=True
        )
        assert sorted(type(outcome).__name__ for outcome in both) == ["AlreadyStored"] * 4 + ["Image"]
        assert len(files(tmp_path)) == 2
        # Never across datasets: that would tell of another one's images.
        other = await one.datasets.add(ACTOR, dataset.customer, "other")
        await one.store.put(ACTOR, other, PHOTO)
        await one.store.put(ACTOR, await default(one, "Bob"), PHOTO)


async def test_images_are_listed_in_order_of_upload(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        stored = [await one.store.put(ACTOR, dataset, b"%d" % n + PHOTO) for n in range(7)]
        other = await one.datasets.add(ACTOR, dataset.customer, "other")
        await one.store.put(ACTOR, other, PHOTO)
        assert await one.store.list(dataset) == stored
        assert await one.store.list(dataset, stored[2].key, 2) == stored[3:5]
        assert await one.store.list(dataset, stored[-1].key) == []


async def test_anothers_image_is_as_if_there_were_none(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        image = await one.store.put(ACTOR, await default(one), PHOTO)
        bob = await one.customer("Bob")
        for wanted in (image.id, str(uuid.uuid4())):
            with pytest.raises(NotFound, match=r"^no such image$"):
                await one.store.get(bob, wanted)
        with pytest.raises(NotFound):
            await one.store.open(ReadPermit(bob, image.dataset, image.id, "token"))
        elsewhere = await one.datasets.add(ACTOR, image.customer, "other")
        with pytest.raises(NotFound):
            await one.store.open(ReadPermit(image.customer, elsewhere.id, image.id, "token"))


async def test_what_is_deleted_is_gone(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        kept = await one.store.put(ACTOR, dataset, PHOTO)
        image = await one.store.put(ACTOR, dataset, PHOTO + b"x", b'{"name": "a very secret name"}')
        await asyncio.gather(*(one.store.delete(ACTOR, image) for _ in range(3)))
        with pytest.raises(NotFound):
            await one.store.get(image.customer, image.id)
        with pytest.raises(NotFound):
            await one.store.open(permit(image))
        assert [path.name for path in files(tmp_path)] == [uuid.UUID(kept.id).hex]
        counted = await default(one)
        assert (counted.images, counted.bytes) == (1, len(PHOTO))
        await one.store.put(ACTOR, dataset, PHOTO + b"x")  # the same bytes may come again
        log = await one.ledger.read(lambda connection: entries(connection, image.customer))
        assert [entry.event for entry in log if entry.subject == image.id] == ["image.add", "image.delete"]


async def test_what_is_deleted_is_gone_also_while_somebody_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        image = await one.store.put(ACTOR, dataset, PHOTO)
        looking, in_the_way = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()
        empty_log = Ledger.empty_log

        def look(connection: Connection) -> None:
            connection.execute("SELECT count(*) FROM images").fetchall()
            loop.call_soon_threadsafe(looking.set)
            in_the_way.wait(10)

        async def noticed(ledger: Ledger) -> bool:
            emptied = await empty_log(ledger)
            in_the_way.set()
            return emptied

        monkeypatch.setattr(Ledger, "empty_log", noticed)
        reading = asyncio.ensure_future(one.ledger.read(look))
        await looking.wait()
        await one.store.delete(ACTOR, image)
        assert log_is_empty(tmp_path)
        await reading


async def test_nothing_of_a_customer_is_on_the_disk_in_clear(tmp_path: Path) -> None:
    words = b"Frantisek Vomacka, Vinohradska 12"
    async with stand(tmp_path) as one:
        dataset = await one.datasets.add(ACTOR, await one.customer(), "Vinohradska 12")
        await one.store.put(ACTOR, dataset, words * 50, b'{"who": "' + words + b'"}')
        on_disk = everything(tmp_path)
        assert words[:9] not in on_disk
        assert b"Vinohradska" not in on_disk


async def test_a_full_volume_refuses_uploads_and_deletes_on(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        image = await one.store.put(ACTOR, await default(one), PHOTO)
    async with stand(tmp_path, reserve=1 << 60) as one:
        with pytest.raises(VolumeFull):
            await one.store.put(ACTOR, await default(one), PHOTO + b"x")
        await one.store.delete(ACTOR, image)
        assert files(tmp_path) == []


async def test_what_an_altered_ledger_refuses_leaves_no_file_and_no_key(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        keys = set(one.keyring.containers())
        with altered(tmp_path):
            with pytest.raises(LedgerAltered):
                await one.store.put(ACTOR, dataset, PHOTO)
            with pytest.raises(LedgerAltered):
                await one.datasets.add(ACTOR, dataset.customer, "another")
        assert files(tmp_path) == []
        assert set(one.keyring.containers()) == keys
        assert (await one.store.put(ACTOR, dataset, PHOTO)).damaged is False


class Pixels(bytearray):
    """An image that one can ask whether anybody still has it."""


@pytest.mark.parametrize("reserve", [0, 1 << 60], ids=["stored", "refused"])
async def test_no_image_stays_in_memory_after_its_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reserve: int
) -> None:
    """Not until the next upload, and not until the collector of cycles comes by either."""
    given: list[weakref.ref[Pixels]] = []

    class Codec(OpaqueCodec):
        async def ingest(self, data: Encoded, *, keep_metadata: bool, customer: str | None = None) -> Opaque:
            pixels = Pixels(data)
            given.append(weakref.ref(pixels))
            return Opaque(pixels, b"thumbnail")  # type: ignore[arg-type]

    async with stand(tmp_path, reserve=reserve) as one:
        dataset = await default(one)
        monkeypatch.setattr(one.store, "_codec", Codec())
        loop, threads = asyncio.get_running_loop(), ThreadPoolExecutor()
        loop.set_default_executor(threads)
        gc.disable()
        try:
            with contextlib.suppress(VolumeFull):
                await one.store.put(ACTOR, dataset, PHOTO)
            threads.shutdown()  # a thread may be about to let go of what it was given last
            loop.set_default_executor(ThreadPoolExecutor())
            await asyncio.sleep(0)
            assert [pixels() is None for pixels in given] == [True]
        finally:
            gc.enable()


async def test_an_upload_whose_sender_leaves_is_stored_or_not(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        for turns in range(30):
            task = asyncio.ensure_future(one.store.put(ACTOR, dataset, b"%d" % turns + PHOTO))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    async with stand(tmp_path) as again:
        stored = await again.store.list(await default(again))
        assert sorted(path.name for path in files(tmp_path)) == sorted(
            uuid.UUID(image.id).hex for image in stored
        )
        for image in stored:
            assert len(await read(again, image)) == image.size


async def test_swapped_files_are_told_apart(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        first, second = [await one.store.put(ACTOR, dataset, b"%d" % n + PHOTO) for n in range(2)]
        folder = tmp_path / "images" / uuid.UUID(dataset.id).hex
        swap(*(folder / uuid.UUID(image.id).hex for image in (first, second)))
        for image in (first, second):
            with pytest.raises(SealBroken, match="another object"):
                await read(one, image)


async def test_a_failed_sync_poisons_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        good = await one.store.put(ACTOR, dataset, PHOTO)

        def fail(fd: int) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(VolumeOffline, match="Input/output error"):
                await one.store.put(ACTOR, dataset, PHOTO + b"x")
        assert one.folder.fault is not None
        with pytest.raises(VolumeOffline):
            await one.store.put(ACTOR, dataset, PHOTO + b"y")
        assert await one.store.list(dataset) == [good]
    async with stand(tmp_path) as again:
        assert await again.store.list(dataset) == [good]
        assert await read(again, good) == PHOTO
        assert len(files(tmp_path)) == 1


async def test_a_folder_that_goes_just_as_it_was_made_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = os.mkdir

    def gone_again(name: str, mode: int, *, dir_fd: int) -> None:
        made(name, mode, dir_fd=dir_fd)
        os.rmdir(name, dir_fd=dir_fd)

    async with stand(tmp_path) as one:
        dataset = await default(one)
        with monkeypatch.context() as patch:
            patch.setattr(os, "mkdir", gone_again)
            with pytest.raises(NotFound, match="erased"):
                await one.store.put(ACTOR, dataset, PHOTO)
        assert await read(one, await one.store.put(ACTOR, dataset, PHOTO)) == PHOTO


async def test_an_error_of_one_file_is_a_refusal_and_no_fault_of_the_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.EMLINK, "Too many links")

    async with stand(tmp_path) as one:
        dataset = await default(one)
        image = await one.store.put(ACTOR, dataset, PHOTO)
        with monkeypatch.context() as patch:
            patch.setattr(os, "link", fail)
            with pytest.raises(StorageFailed, match="Too many links"):
                await one.store.put(ACTOR, dataset, PHOTO + b"x")
            patch.setattr(os, "scandir", fail)
            with pytest.raises(StorageFailed, match="Too many links"):
                one.files.objects(uuid.UUID(dataset.id))
            patch.setattr(os, "unlink", fail)
            with pytest.raises(StorageFailed, match="Too many links"):
                await one.store.delete(ACTOR, image)
        assert one.folder.fault is None
        await one.store.put(ACTOR, dataset, PHOTO + b"x")


async def test_nobody_waits_for_ever_whatever_goes_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)

        def fail(files: SealedFiles, batch: object) -> None:
            raise OSError(5, "Input/output error")  # of a close, say

        async with asyncio.timeout(10):
            with monkeypatch.context() as patch:
                patch.setattr(SealedFiles, "_make_durable", fail)
                with pytest.raises(OSError, match="Input/output error"):
                    await one.store.put(ACTOR, dataset, PHOTO)
            assert await read(one, await one.store.put(ACTOR, dataset, PHOTO)) == PHOTO


async def test_many_puts_share_their_syncs(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        await asyncio.gather(*(one.store.put(ACTOR, dataset, b"%d" % n + PHOTO) for n in range(40)))
        told = {
            sample.name.rpartition("_")[2]: sample.value
            for metric in one.files._together.collect()
            for sample in metric.samples
        }
        assert told["sum"] == 40
        assert told["count"] < 30


async def test_a_rotated_dataset_reads_old_and_new(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        old = await one.store.put(ACTOR, dataset, PHOTO)
        await asyncio.to_thread(
            one.keyring.rotate_container, uuid.UUID(dataset.customer), uuid.UUID(dataset.id)
        )
        new = await one.store.put(ACTOR, dataset, PHOTO + b"x")
        with pytest.raises(AlreadyStored):
            await one.store.put(ACTOR, dataset, PHOTO)
        assert (await read(one, old), await read(one, new)) == (PHOTO, PHOTO + b"x")


async def test_reading_what_is_in_memory_leaves_the_disk_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at the volume and the time of a read may each wait for the disk: neither is had on the loop."""
    async with stand(tmp_path) as stood:
        image = await stood.store.put(ACTOR, await default(stood), os.urandom(600_000))
        [file] = files(tmp_path)
        for path in (file, tmp_path / "images" / SENTINEL):
            os.utime(path, (0, 1_000_000_000))  # the next read is one that relatime notes
        looked: list[str] = []
        check = DataFolder.check

        def checked(folder: DataFolder) -> None:
            looked.append(threading.current_thread().name)
            check(folder)

        monkeypatch.setattr(DataFolder, "check", checked)
        assert len(await read(stood, image)) == 600_000
        assert threading.current_thread().name not in looked
        assert file.stat().st_atime == 0


async def test_each_image_that_was_being_deleted_when_its_dataset_was_erased_is_certified(
    tmp_path: Path,
) -> None:
    async with stand(tmp_path) as one:
        customer = await one.customer()
        dataset = await one.datasets.add(ACTOR, customer, "cats")
        deleted, _ = [await one.store.put(ACTOR, dataset, PHOTO + bytes([n])) for n in range(2)]
        begun = "UPDATE images SET deleted_at = 1 WHERE id = ?"  # and then the power went
        await one.ledger.write(lambda connection: connection.execute(begun, (deleted.id,)).get)
        await one.datasets.erase(ACTOR, dataset)
    async with stand(tmp_path) as again:
        certificates = Certificates(again.ledger, again.keyring.service)
        made = [json.loads(one.statement) for one in await certificates.list(customer)]
    assert [(one["kind"], one["ids"]) for one in made] == [("image", [deleted.id]), ("dataset", [])]


async def test_a_customer_has_so_many_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "MAX_DATASETS", 2)
    async with stand(tmp_path) as store:
        customer = (await default(store)).customer
        await store.datasets.add(ACTOR, customer, "one")
        with pytest.raises(CapacityExceeded, match="2 datasets"):
            await store.datasets.add(ACTOR, customer, "two")
