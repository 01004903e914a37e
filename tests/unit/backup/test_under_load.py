"""Backups that are made while images come and go are of one moment each and lose nothing that had settled."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

from appliance.backup.receiving import receive
from appliance.datasets.records import Dataset, Image
from appliance.errors import NotFound
from tests.backing import Shelf, proven, put_back, silent, source
from tests.storing import ACTOR, Stand, stand

BACKUPS = 3


class Settled(list[Image]):
    """Images that stay."""

    def __init__(self) -> None:
        super().__init__()
        self._more = asyncio.Event()

    def append(self, image: Image) -> None:
        super().append(image)
        self._more.set()

    async def grow(self, count: int) -> list[Image]:
        """Those that are there when there are so many more."""
        wanted = len(self) + count
        while len(self) < wanted:
            self._more.clear()
            await self._more.wait()
        return list(self)


async def churn(at: Stand, number: int, settled: Settled) -> None:
    """Puts images, deletes each third one and, now and then, erases the dataset and begins another."""
    for turn in itertools.count():
        dataset = await at.datasets.add(ACTOR, await at.customer(), f"{number} {turn}")
        for count in range(30):
            data = f"{number} {turn} {count} ".encode() * 500
            image = await at.store.put(ACTOR, dataset, data)
            if count % 3 == 0:
                await at.store.delete(ACTOR, image)
            elif turn % 2:
                settled.append(image)
        if turn % 2 == 0:
            await at.datasets.erase(ACTOR, dataset)


async def test_each_backup_is_of_one_moment(tmp_path: Path) -> None:
    shelf = await asyncio.to_thread(Shelf.under, tmp_path)
    await asyncio.to_thread((tmp_path / "state").mkdir)
    made = []
    async with stand(tmp_path / "state") as opened:
        settled = Settled()
        under_way = [asyncio.ensure_future(churn(opened, number, settled)) for number in range(4)]
        async with source(opened) as backups:
            for _ in range(BACKUPS):
                before = await settled.grow(40)
                making = await backups.begin(ACTOR)
                received = await receive(
                    slowly(making.pieces()), shelf.backups, shelf.keyrings, keep_days=30, progress=silent
                )
                making.close()
                made.append((received, before))
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
    for number, (received, before) in enumerate(made):
        assert received.absent == []
        proven(received.folder, received.keyring)
        await put_back(received.folder, received.keyring, tmp_path / f"again {number}")
        async with stand(tmp_path / f"again {number}") as again:
            assert again.upkeep.findings == []
            await everything_opens(again)
            for image in before:
                assert (await again.store.get(image.customer, image.id)).name == image.name


async def slowly(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Others get their turns while a piece is on its way."""
    async for piece in pieces:
        yield piece
        for _ in range(20):
            await asyncio.sleep(0)


async def everything_opens(at: Stand) -> None:
    customer = await at.customer()
    for dataset in await at.datasets.list(customer):
        images = await images_of(at, dataset)
        assert dataset.images == len(images)
        for image in images:
            try:
                file = await asyncio.to_thread(at.files.open, image.name, at.datasets.keys(dataset))
            except NotFound:
                raise AssertionError(f"{image} has a row and no file") from None
            assert file.length == image.size + image.thumbnail
            file.close()


async def images_of(at: Stand, dataset: Dataset) -> list[Image]:
    found: list[Image] = []
    while page := await at.store.list(dataset, after=found[-1].key if found else 0):
        found += page
    return found
