"""An import and an export hold a batch or a pair at a time, however many records there are."""

import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from appliance import config
from appliance.search.interchange import exporting, importing, npy
from tests.searching import ACTOR, numbered, shelf, unit

DIM = 256
MIB = 1 << 20
VECTORS = unit(np.random.default_rng(8), 1000, DIM)


async def array(rows: int) -> AsyncIterator[bytes]:
    yield npy.header(rows, DIM)
    for _ in range(rows // len(VECTORS)):
        yield VECTORS.tobytes()


async def long_lines(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b'{"_id": "' + b"x" * MIB
        yield b'", "_vector": ?}\n'


@pytest.mark.parametrize(
    "rows", [30_000, pytest.param(300_000, marks=[pytest.mark.full, pytest.mark.timeout(600)])]
)
async def test_an_array_of_any_size_is_read_row_by_row(rows: int) -> None:
    tracemalloc.start()
    try:
        read = 0
        async for some in importing.of_array(array(rows), DIM, ""):
            read += len(some)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert read == rows
    assert peak < 8 * MIB, f"{peak / MIB:.1f} MiB for {rows * DIM * 4 / MIB:.0f}"


async def test_lines_that_are_too_long_are_not_held() -> None:
    tracemalloc.start()
    try:
        found = [one async for some in importing.of_lines(long_lines(60), DIM, MIB // 2) for one in some]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [str(one) for one in found] == [f"is longer than {MIB // 2} bytes"] * 60
    assert peak < 8 * MIB


async def test_an_export_holds_one_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_VECTORS", MIB // 2)
    async with shelf(tmp_path, config.Search(flat_bytes=1 << 30)) as things:
        opened = await things.collection(DIM)
        for start in range(0, 8000, 1000):
            await opened.insert(ACTOR, numbered(VECTORS, start))
        pieces = exporting.as_zip(await exporting.begin(ACTOR, opened), DIM)
        tracemalloc.start()
        try:
            size = sum([len(piece) async for piece in pieces])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert size > 8 * MIB
    assert peak < 4 * MIB, f"{peak / MIB:.1f} MiB"
