"""The pool of decoder processes, whole: what it answers, what an image may cost, what remains of it."""

import asyncio
import gc
import io
import os
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from appliance.config import Recognition
from appliance.errors import ImageFailed, InvalidImage, Overloaded, TooLarge
from appliance.metrics import Registry
from appliance.recognition.bundles import Preprocessing
from appliance.recognition.decode import Decoded, decode
from appliance.recognition.decoders import Decoders
from appliance.recognition.devices import Priority
from appliance.recognition.waiting import INPUT_BYTES
from tests.unit.recognition.test_decode import HEIC
from tests.unit.workers.waiting import until

PREPROCESSING = Preprocessing(size=64)


@asynccontextmanager
async def pool(**settings: Any) -> AsyncIterator[Decoders]:
    config = Recognition(**({"decoders": 1} | settings))
    async with Decoders(config, Registry()) as decoders:
        yield decoders


def image(colour: int = 90, shape: tuple[int, int] = (120, 90), format_: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", shape, (colour, 10, 200)).save(out, format_)
    return out.getvalue()


def processes(decoders: Decoders) -> list[psutil.Process]:
    workers = (decoder.worker for decoder in decoders._idle)
    return [psutil.Process(worker.pid) for worker in workers]


async def test_a_pool_answers_what_decoding_says() -> None:
    async with pool(decoders=2) as decoders:
        images = [image(colour, (100 + colour, 90)) for colour in range(20)]
        results = await asyncio.gather(*(decoders.decode(data, PREPROCESSING) for data in images))
        for data, result in zip(images, results, strict=True):
            expected = decode(data, Preprocessing(size=64), max_pixels=10**6, max_side=1000)
            assert np.array_equal(np.asarray(result.pixels), np.asarray(expected.pixels))
            assert (result.width, result.height, result.format) == (expected.width, expected.height, "PNG")


async def test_sizes_may_differ_from_call_to_call() -> None:
    async with pool() as decoders:
        for size in (16, 640, 32):
            result = await decoders.decode(image(), Preprocessing(size=size))
            assert result.pixels.shape == (size, size, 3)
            assert np.asarray(result.pixels)[size // 2, size // 2].tolist() == [90, 10, 200]


async def test_a_bad_image_is_refused_and_costs_no_process() -> None:
    async with pool(max_pixels=20_000) as decoders:
        (before,) = processes(decoders)
        with pytest.raises(InvalidImage, match="not an image"):
            await decoders.decode(b"nothing of the kind", PREPROCESSING)
        with pytest.raises(InvalidImage, match="empty"):
            await decoders.decode(b"", PREPROCESSING)
        with pytest.raises(TooLarge, match="20000 pixels"):
            await decoders.decode(image(shape=(200, 101)), PREPROCESSING)
        assert (await decoders.decode(image(), PREPROCESSING)).width == 120
        assert processes(decoders) == [before]


async def test_more_bytes_than_a_decoder_takes_are_refused_before_they_move() -> None:
    async with pool() as decoders:
        with pytest.raises(TooLarge, match=str(INPUT_BYTES)):
            await decoders.decode(memoryview(bytes(INPUT_BYTES + 1)), PREPROCESSING)


@pytest.mark.parametrize("large", [False, True])
async def test_nothing_of_an_image_stays_in_shared_memory(large: bool) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (900, 900, 3) if large else (60, 60, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    async with pool() as decoders:
        decoder = decoders._idle[0]
        for data in (out.getvalue(), out.getvalue()[:-100]):
            try:
                result = await decoders.decode(data, Preprocessing(size=512))
                assert np.asarray(result.pixels).any()
            except InvalidImage:
                assert data != out.getvalue()
            assert not np.frombuffer(decoder._input.view[: 4 << 20], np.uint8).any()
            assert not np.frombuffer(decoder._output.view, np.uint8).any()


async def test_a_crash_costs_one_image() -> None:
    async with pool() as decoders:
        (process,) = processes(decoders)
        process.suspend()
        unlucky = asyncio.ensure_future(decoders.decode(image(), PREPROCESSING))
        behind = asyncio.ensure_future(decoders.decode(image(7), PREPROCESSING))
        await until(lambda: len(decoders._waiting) == 1)
        process.kill()
        with pytest.raises(InvalidImage, match="decoder"):
            await unlucky
        assert np.asarray((await behind).pixels)[0, 0].tolist() == [7, 10, 200]


async def test_a_hang_costs_one_image() -> None:
    async with pool(decode_seconds=0.5) as decoders:
        (process,) = processes(decoders)
        process.suspend()
        with pytest.raises(InvalidImage, match=r"0\.5 s"):
            await decoders.decode(image(), PREPROCESSING)
        assert (await decoders.decode(image(), PREPROCESSING)).width == 120
        assert not process.is_running()


async def test_a_hang_costs_one_image_however_many_wait() -> None:
    async with pool(decode_seconds=0.5) as decoders:
        (process,) = processes(decoders)
        process.suspend()
        outcomes = await asyncio.gather(
            *(decoders.decode(image(), PREPROCESSING) for _ in range(16)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes if isinstance(outcome, Exception)] == [ImageFailed]


async def test_an_idle_decoder_that_is_lost_is_blamed_on_no_image() -> None:
    async with pool() as decoders:
        (process,) = processes(decoders)
        decoder = decoders._idle[0]
        process.kill()
        await until(lambda: not decoder.worker.serving)
        assert (await decoders.decode(image(), PREPROCESSING)).width == 120


async def test_a_full_queue_refuses_at_once_and_recovers() -> None:
    async with pool(queue=2) as decoders:
        (process,) = processes(decoders)
        process.suspend()
        accepted = [asyncio.ensure_future(decoders.decode(image(), PREPROCESSING)) for _ in range(3)]
        await until(lambda: len(decoders._waiting) == 2)
        with pytest.raises(Overloaded, match="as many as the queue holds"):
            await decoders.decode(image(), PREPROCESSING)
        process.resume()
        assert len(await asyncio.gather(*accepted)) == 3
        assert (await decoders.decode(image(), PREPROCESSING)).width == 120


async def test_waiting_for_a_decoder_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.recognition.decoders.PATIENCE", 0.1)
    async with pool(decode_seconds=5.0) as decoders:
        (process,) = processes(decoders)
        process.suspend()
        running = asyncio.ensure_future(decoders.decode(image(), PREPROCESSING))
        await until(lambda: not decoders._idle)
        with pytest.raises(Overloaded, match=r"no decoder became free within 0\.5 s"):
            await decoders.decode(image(), PREPROCESSING)
        process.resume()
        assert (await running).width == 120


async def test_cancelled_while_waiting_and_while_decoding() -> None:
    async with pool() as decoders:
        (process,) = processes(decoders)
        decoder = decoders._idle[0]
        process.suspend()
        running = asyncio.ensure_future(decoders.decode(image(), PREPROCESSING))
        waiting = asyncio.ensure_future(decoders.decode(image(), PREPROCESSING))
        await until(lambda: len(decoders._waiting) == 1)
        running.cancel()
        waiting.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        assert len(decoders._waiting) == 0
        process.resume()
        assert (await decoders.decode(image(7), PREPROCESSING)).width == 120
        assert decoder.worker.restarts == 0


async def test_leaving_with_work_under_way_ends_every_process() -> None:
    async with pool(decoders=2) as decoders:
        children = processes(decoders)
        for child in children:
            child.suspend()
        unfinished = asyncio.ensure_future(decoders.decode(image(), PREPROCESSING))
        await until(lambda: len(decoders._idle) == 1)
    assert not any(child.is_running() for child in children)
    with pytest.raises((asyncio.CancelledError, InvalidImage)):
        await unfinished


async def test_memory_goes_back_to_where_it_was() -> None:
    large = image(shape=(5000, 5000))
    async with pool() as decoders:
        await decoders.decode(image(), PREPROCESSING)
        (process,) = processes(decoders)
        before = process.memory_info().rss
        result = await decoders.decode(large, PREPROCESSING)
        assert result.width == 5000
        assert process.memory_info().rss - before < 8 << 20


async def test_an_image_that_needs_more_memory_than_a_decoder_has_is_refused() -> None:
    out = io.BytesIO()
    Image.new("RGBA", (7000, 7000), (1, 2, 3, 4)).save(out, "PNG")
    async with pool(decoder_memory_bytes=256 << 20) as decoders:
        with pytest.raises(TooLarge, match="memory"):
            await decoders.decode(out.getvalue(), PREPROCESSING)
        assert (await decoders.decode(image(), PREPROCESSING)).width == 120


async def test_the_smallest_pool_has_one_decoder_and_the_default_leaves_a_core(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    async with pool(decoders=0) as decoders:
        assert len(processes(decoders)) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    async with pool(decoders=0) as decoders:
        assert len(processes(decoders)) == 2


def test_a_decoder_starts_without_what_it_does_not_need() -> None:
    heavy = "{'numpy', 'pydantic', 'aiohttp', 'prometheus_client', 'onnxruntime', 'appliance.config'}"
    script = f"import sys, appliance.recognition.decode; print({heavy} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout
    assert loaded.strip() == "set()"


async def test_heic_goes_through_the_locked_in_decoders() -> None:
    async with Decoders(Recognition(decoders=1), Registry()) as decoders:
        seen = await decoders.decode(HEIC, Preprocessing(size=32))
        assert (seen.width, seen.height, seen.format) == (32, 64, "HEIF")


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("refusal", [Overloaded, LookupError])
@pytest.mark.usefixtures("uncollected")
async def test_an_image_refused_on_its_way_to_a_device_leaves_memory_at_once(
    caplog: pytest.LogCaptureFixture, refusal: type[Exception]
) -> None:
    def refuse(decoded: Decoded) -> None:
        pixels = np.asarray(decoded.pixels)
        try:
            pixels[0, 0, 0, 0]
        except IndexError as error:
            raise refusal("no more") from error

    async with pool() as decoders:
        for priority in (Priority.INTERACTIVE, Priority.BULK):
            data = memoryview(image())
            watched = weakref.ref(data)
            with pytest.raises(refusal):
                await decoders.see(data, PREPROCESSING, refuse, priority)
            del data
            await asyncio.sleep(0)  # the step of the loop that brought the error still held it
            assert watched() is None
    assert "stays mapped" not in caplog.text


@pytest.mark.usefixtures("uncollected")
async def test_an_image_that_is_none_leaves_memory_at_once() -> None:
    async with pool() as decoders:
        data = memoryview(b"nothing of the kind")
        watched = weakref.ref(data)
        with pytest.raises(InvalidImage):
            await decoders.decode(data, PREPROCESSING)
        del data
        await asyncio.sleep(0)  # the step of the loop that brought the error still held it
        assert watched() is None


@pytest.mark.usefixtures("uncollected")
async def test_what_is_a_bug_still_says_where_it_is() -> None:
    def broken(decoded: Decoded) -> None:
        raise LookupError("a bug")

    async with pool() as decoders:
        with pytest.raises(LookupError) as caught:
            await decoders.see(image(), PREPROCESSING, broken)
        assert "in broken" in caught.value.__notes__[0]
