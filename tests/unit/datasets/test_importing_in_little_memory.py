"""An import holds a few images at a time, however many there are."""

import os
import tarfile
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.datasets.interchange.annotating import Annotating
from appliance.datasets.interchange.importing import Importing
from appliance.datasets.sources import Sources
from tests.storing import ACTOR, default, stand

SIZE = 200_000


async def archive(count: int) -> AsyncIterator[bytes]:
    for number in range(count):
        member = tarfile.TarInfo(f"{'even' if number % 2 else 'odd'}/{number}.jpg")
        member.size = SIZE
        yield member.tobuf() + os.urandom(SIZE) + bytes(-SIZE % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


@pytest.mark.parametrize(
    "count", [400, pytest.param(4000, marks=[pytest.mark.full, pytest.mark.timeout(1800)])]
)
async def test_many_images_take_the_memory_of_a_few(tmp_path: Path, count: int) -> None:
    async with stand(tmp_path) as store:
        sources = Sources(store.ledger, store.datasets, store.clock)
        annotating = Annotating(store.ledger, store.datasets, store.annotations, store.clock)
        importing = Importing(store.ledger, store.store, sources, annotating, store.clock)
        dataset = await default(store)
        tracemalloc.start()
        try:
            report = await importing.run(ACTOR, dataset, archive(count), format_name="auto", task=None)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (report.images, report.labels) == (count, count)
        assert peak < 80 * SIZE + 2000 * count, f"{peak / 2**20:.1f} MiB for {count * SIZE / 2**20:.0f}"
