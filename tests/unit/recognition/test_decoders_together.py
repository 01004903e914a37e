"""Small images that are given to a decoder at once: each gets its own answer, whatever the others are."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from appliance.config import Recognition
from appliance.errors import ImageFailed, InvalidImage
from appliance.metrics import Registry
from appliance.recognition.decode import LARGE, decode
from appliance.recognition.decoders import TOGETHER, Decoders, _Decoder
from appliance.recognition.preprocessing import Preprocessing
from appliance.recognition.waiting import SMALL_BYTES
from tests.unit.workers.waiting import until

MAX_PIXELS, MAX_SIDE = 50_000_000, 20_000


@asynccontextmanager
async def held(
    target: str | None = None, **settings: Any
) -> AsyncIterator[tuple[Decoders, _Decoder, psutil.Process]]:
    """One decoder that is stopped over its first image, so that what comes next lies behind it together."""
    config = Recognition(**({"decoders": 1, "max_pixels": MAX_PIXELS, "max_side": MAX_SIDE} | settings))
    named = {} if target is None else {"target": target}
    async with Decoders(config, Registry(), **named) as decoders:
        decoder = decoders._idle[0]
        process = psutil.Process(decoder.worker.pid)
        process.suspend()
        first = asyncio.ensure_future(decoders.decode(noise(0, (20, 20)), Preprocessing(size=16)))
        await until(lambda: not decoders._idle)
        yield decoders, decoder, process
        await first


def noise(seed: int, size: tuple[int, int], format_: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)).save(
        out, format_
    )
    return out.getvalue()


@pytest.mark.parametrize("seed", range(8))
async def test_each_gets_what_decoding_it_alone_gives(seed: int) -> None:
    random = np.random.default_rng(seed)
    images, seen = [], []
    for number in range(3 * TOGETHER):
        size = tuple(int(side) for side in random.integers(1, 400, 2))
        image = noise(number, (size[0], size[1]), str(random.choice(["PNG", "JPEG", "GIF", "BMP"])))
        images.append(image[: len(image) // 2] if random.random() < 0.2 else image)
        seen.append(Preprocessing(size=int(random.integers(16, 600)), fit="stretch"))
    images[5] = noise(5, (350, 350), "BMP")
    assert len(images[5]) > SMALL_BYTES
    async with held() as (decoders, _, process):
        answers = [asyncio.ensure_future(served(decoders, *one)) for one in zip(images, seen, strict=True)]
        await until(lambda: len(decoders._waiting) == len(images))
        process.resume()
        for answer, image, wanted in zip(answers, images, seen, strict=True):
            assert np.array_equal(await answer, alone(image, wanted))


async def served(decoders: Decoders, image: bytes, seen: Preprocessing) -> Any:
    try:
        return np.asarray((await decoders.decode(image, seen)).pixels)
    except InvalidImage as refusal:
        return str(refusal)


def alone(image: bytes, seen: Preprocessing) -> Any:
    try:
        return np.asarray(decode(image, seen, max_pixels=MAX_PIXELS, max_side=MAX_SIDE).pixels)
    except InvalidImage as refusal:
        return str(refusal)


@pytest.mark.parametrize("act", ["crash", "abort", "exit", "hang"])
@pytest.mark.parametrize("place", range(TOGETHER))
async def test_the_hostile_one_among_several_fails_alone(act: str, place: int) -> None:
    settings = {"decode_seconds": 1.5 if act == "hang" else 10.0}
    async with held("tests.faults.hostile_decoder:main", **settings) as (decoders, decoder, process):
        images = [noise(number, (60, 40)) for number in range(TOGETHER)]
        images[place] = act.encode()
        answers = [asyncio.ensure_future(decoders.decode(image, Preprocessing(size=16))) for image in images]
        await until(lambda: len(decoders._waiting) == TOGETHER)
        process.resume()
        with pytest.raises(ImageFailed, match="crashed its decoder or took it longer"):
            await answers.pop(place)
        assert [(await answer).width for answer in answers] == [60] * (TOGETHER - 1)
        assert not np.frombuffer(decoder._input.view[: 1 << 20], np.uint8).any()
        assert not np.frombuffer(decoder._output.view[: 1 << 20], np.uint8).any()


async def test_a_customer_whose_images_are_dear_gets_one_at_a_time() -> None:
    """Half a second each: who comes meanwhile waits for the one that is under way, not for four."""
    slow = large()
    async with held() as (decoders, _, process):
        first = asyncio.ensure_future(decoders.decode(slow, Preprocessing(size=16), customer="dear"))
        await until(lambda: len(decoders._waiting) == 1)
        process.resume()
        await first
        process.suspend()
        dear = [
            asyncio.ensure_future(decoders.decode(slow, Preprocessing(size=16), customer="dear"))
            for _ in range(1 + TOGETHER)
        ]
        await until(lambda: len(decoders._waiting) == TOGETHER)
        process.resume()
        await dear[0]
        assert (
            await decoders.decode(noise(1, (60, 40)), Preprocessing(size=16), customer="other")
        ).width == 60
        assert sum(one.done() for one in dear) <= 2
        await asyncio.gather(*dear)


def large() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (6000, 6000), (90, 10, 200)).save(out, "PNG", compress_level=9)
    assert LARGE < 6000 * 6000
    return out.getvalue()


def in_passes() -> bytes:
    """Below LARGE, and as slow: an empty refinement again and again."""
    out = io.BytesIO()
    Image.new("L", (700, 700), 90).save(out, "JPEG", progressive=True)
    assert LARGE > 700 * 700
    whole = out.getvalue()
    start = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[start:-2] * 80 + whole[-2:]


@pytest.mark.parametrize("slow", [large(), in_passes()], ids=["large", "in passes"])
async def test_a_slow_image_keeps_no_answer_back(slow: bytes) -> None:
    assert len(slow) < SMALL_BYTES
    async with held() as (decoders, _, process):
        small = asyncio.ensure_future(decoders.decode(noise(1, (60, 40)), Preprocessing(size=16)))
        await asyncio.sleep(0)
        behind = asyncio.ensure_future(decoders.decode(slow, Preprocessing(size=16)))
        await until(lambda: len(decoders._waiting) == 2)
        process.resume()
        assert (await small).width == 60
        assert not behind.done()
        assert (await behind).width in {700, 6000}
