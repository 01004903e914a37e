"""How exports are prepared: beside everything else, and for as long as somebody waits for them."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from appliance.datasets.interchange.annotated import Annotated
from appliance.datasets.interchange.exporting import Exporting
from appliance.datasets.interchange.table import Csv
from appliance.datasets.permits import of_token
from appliance.datasets.sources import Sources
from tests.storing import ACTOR, PHOTO, Stand, default, stand

SECONDS = 30.0


class Slow(Csv):
    """Stops at the first image until it may go on."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.placed = 0

    def place(self, annotated: Annotated) -> str:
        self.placed += 1
        self.begun.set()
        assert self.go.wait(SECONDS)
        return annotated.name


@asynccontextmanager
async def exports(stood: Stand) -> AsyncIterator[Exporting]:
    sources = Sources(stood.ledger, stood.datasets, stood.clock)
    async with Exporting(
        stood.ledger, stood.datasets, stood.store, sources, stood.annotations, stood.clock
    ) as exporting:
        yield exporting


async def test_uploads_go_on_however_many_exports_are_prepared(tmp_path: Path) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    async with stand(tmp_path) as stood, exports(stood) as exporting:
        dataset, slow = await default(stood), Slow()
        permit = partial(of_token, dataset.customer)
        await stood.store.put(ACTOR, dataset, PHOTO)
        begun = [asyncio.ensure_future(exporting.begin(ACTOR, dataset, slow, permit)) for _ in range(7)]
        assert await asyncio.to_thread(slow.begun.wait, SECONDS)
        await asyncio.wait_for(stood.store.put(ACTOR, dataset, PHOTO[1:]), SECONDS)
        slow.go.set()
        for export in await asyncio.gather(*begun):
            assert len(b"".join([piece async for piece in export.pieces()])) > len(PHOTO)
            export.close()


async def test_an_export_that_nobody_waits_for_is_not_prepared_to_its_end(tmp_path: Path) -> None:
    slow = Slow()
    async with stand(tmp_path) as stood, exports(stood) as exporting:
        dataset = await default(stood)
        permit = partial(of_token, dataset.customer)
        for number in range(3):
            await stood.store.put(ACTOR, dataset, PHOTO[number:])
        begun = [asyncio.ensure_future(exporting.begin(ACTOR, dataset, slow, permit)) for _ in range(3)]
        assert await asyncio.to_thread(slow.begun.wait, SECONDS)
        for one in begun:
            one.cancel()
        for one in begun:
            with pytest.raises(asyncio.CancelledError):
                await one
        slow.go.set()
    assert slow.placed <= 2  # of the two that had begun; left once every thread has ended
