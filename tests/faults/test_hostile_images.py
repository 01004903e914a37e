"""Images made to crash, to hang or to swell their decoder: each is answered, and the next one is served."""

import base64
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import numpy as np
import psutil
import pytest

from appliance.config import MIB, Recognition
from appliance.errors import ImageFailed, InvalidImage, TooLarge
from appliance.metrics import Registry
from appliance.recognition.decoders import Decoders
from appliance.recognition.preprocessing import Preprocessing
from appliance.recognition.waiting import INPUT_BYTES
from tests import images
from tests.fuzz.corpus import seeds

WANTED = Preprocessing(size=64)
CPU_SECONDS = 2.0
EVERY = {name: pytest.param(name, data, id=name) for name, data in seeds()}
HOSTILE = list(EVERY.values())[list(EVERY).index("empty") :]
SMALL = [one for one in EVERY.values() if len(one.values[1]) < 20_000]  # type: ignore[arg-type]


@pytest.fixture
async def decoders() -> AsyncIterator[Decoders]:
    async with Decoders(Recognition(decoders=1), Registry()) as decoders:
        yield decoders


async def answered(decoders: Decoders, data: bytes) -> str:
    try:
        return (await decoders.decode(data, WANTED)).format
    except (InvalidImage, TooLarge) as refusal:
        return type(refusal).__name__


def spent(decoders: Decoders) -> tuple[psutil.Process, float]:
    (decoder,) = decoders._idle
    process = psutil.Process(decoder.worker.pid)
    return process, sum(process.cpu_times()[:2])


@pytest.mark.parametrize(("name", "data"), HOSTILE)
async def test_each_is_answered_soon_and_the_next_is_served(
    decoders: Decoders, name: str, data: bytes
) -> None:
    before, seconds = spent(decoders)
    outcome = await answered(decoders, data)
    after, later = spent(decoders)
    assert after == before, f"{name} cost its decoder its life"
    assert later - seconds < CPU_SECONDS, f"{name}: {outcome} after {later - seconds:.1f} s"
    assert after.memory_info().rss < 512 * MIB
    assert await answered(decoders, images.jpeg()) == "JPEG"


@pytest.mark.parametrize(("name", "data"), HOSTILE)
async def test_each_is_kept_or_refused_soon(decoders: Decoders, name: str, data: bytes) -> None:
    before, seconds = spent(decoders)
    with suppress(InvalidImage, TooLarge):
        assert (await decoders.ingest(data, keep_metadata=False)).width > 0
    after, later = spent(decoders)
    assert after == before, f"{name} cost its decoder its life"
    assert later - seconds < CPU_SECONDS, f"{name} took {later - seconds:.1f} s"


# Found by fuzzing: libheif 1.23 dies of it.
DEADLY_HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ADRpbG9jAAAAAERAAAIAAQAAAAAB7AABAAAAAAAAAHMAAgAAAAACXwABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAA"
    "AAABAABodmMxAAAAABVpbmZlAgAAAQACAGL///9mAAAAAA5waXRtAAAAAAABAAABB2lwcnAAAADmaXBjbwAAAHZodmNDAQNwAAAA"
    "kAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq"
    "5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xh"
    "cAAAAEAAAAABAAAAIAAAAAEAAAAAAAAAAv///+AAAAACAAAAEHBpeGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEA"
    "AQaBAgMFhIYAAAAaaXJlZgAAAAAAAAAOY2RzYwACAAEAAQAAAJ9tZGF0AAAAbygBrwngPf7Nzy5C74J/zi/Y3UGERZBWoTJdC/zk"
    "hR0lZtV6bEnWV7ZvtudFKZ5XCAAAAAAAAABuFpzTkziMKHvO0lAoIHM7GYqR8d9Hrqc9FxiHgX8d5iKUwcvsEgUAICXvTLgVYfZk"
    "rJkiJYvWZMGtUHZiW+OeAAAABkV4aWYAAE1NACoAAAAIAAEBEgADAAAAAQAGAAAAAAAA"
)


async def test_an_image_that_kills_its_decoder_costs_itself_alone(decoders: Decoders) -> None:
    before, _ = spent(decoders)
    with pytest.raises(ImageFailed):
        await decoders.decode(DEADLY_HEIC, WANTED)
    assert await answered(decoders, images.jpeg()) == "JPEG"
    after, _ = spent(decoders)
    assert after != before


async def test_the_largest_input_of_nothing(decoders: Decoders) -> None:
    assert await answered(decoders, bytes(INPUT_BYTES)) == "InvalidImage"


@pytest.mark.parametrize(("name", "data"), SMALL)
async def test_cut_off_and_flipped(decoders: Decoders, name: str, data: bytes) -> None:
    """Cut at every sixteenth, and a few bits turned, forty times."""
    draw = np.random.default_rng(len(data))
    began = time.process_time()
    for sixteenth in range(16):
        await answered(decoders, data[: len(data) * sixteenth // 16])
    for _ in range(40 if data else 0):
        flipped = bytearray(data)
        for place in draw.integers(0, len(data), 1 + int(draw.integers(8))):
            flipped[place] ^= 1 << int(draw.integers(8))
        await answered(decoders, bytes(flipped))
    assert time.process_time() - began < 5
    assert await answered(decoders, images.jpeg()) == "JPEG"
