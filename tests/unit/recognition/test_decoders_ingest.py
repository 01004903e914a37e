"""What is to be kept, through the decoder processes: what it costs the others, and what remains of it."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import psutil
import pytest

from appliance.config import Recognition
from appliance.errors import ImageFailed, InvalidImage, Overloaded, TooLarge, WorkerLost
from appliance.metrics import Registry
from appliance.recognition import decode, decoder
from appliance.recognition.decoders import Decoders, _Decoder
from appliance.recognition.ingest import Ingested
from appliance.recognition.preprocessing import Preprocessing
from appliance.recognition.waiting import INPUT_BYTES, OUTPUT_BYTES
from tests import images
from tests.unit.recognition.test_decode import HEIC
from tests.unit.recognition.test_ingest import (
    MARKER,
    converted,
    talkative_jpeg,
    talkative_png,
    talkative_webp,
)
from tests.unit.workers.waiting import until

LIMITS = {"max_pixels": 50_000_000, "max_side": 16_384}
SEEN = Preprocessing(size=16)
KEPT = {
    "jpeg": talkative_jpeg(6),
    "png": talkative_png(6),
    "webp": talkative_webp(6),
    "bmp": converted("BMP"),
    "gif": converted("GIF"),
    "tiff": converted("TIFF"),
    "animated webp": converted("WEBP"),
    "inks": images.cmyk(),
    "sixteen bits": images.sixteen_bit(),
    "heic": HEIC,
}


@asynccontextmanager
async def pool(**settings: Any) -> AsyncIterator[tuple[Decoders, list[_Decoder], list[psutil.Process]]]:
    config = Recognition(**({"decoders": 1} | settings))
    async with Decoders(config, Registry()) as decoders:
        idle = list(decoders._idle)
        yield decoders, idle, [psutil.Process(one.worker.pid) for one in idle]


def keep(decoders: Decoders, data: bytes) -> asyncio.Future[Ingested]:
    return asyncio.ensure_future(decoders.ingest(data, keep_metadata=False))


def assert_wiped(decoder: _Decoder) -> None:
    assert os.fstat(decoder._output.fd).st_blocks == 0
    assert not np.frombuffer(decoder._input.view[: 1 << 20], np.uint8).any()


@pytest.mark.parametrize("keep_metadata", [False, True])
async def test_the_locked_in_decoders_keep_every_format(keep_metadata: bool) -> None:
    async with pool() as (decoders, (only,), (before,)):
        for name, data in KEPT.items():
            kept = await decoders.ingest(data, keep_metadata=keep_metadata)
            assert kept == decode.ingest(data, keep_metadata=keep_metadata, **LIMITS), name
            assert (MARKER in kept.image) == (keep_metadata and name in ("jpeg", "png", "webp"))
            assert_wiped(only)
        assert psutil.Process(only.worker.pid) == before


async def test_refusals_are_those_of_decoding_and_leave_nothing() -> None:
    async with pool(max_pixels=4000) as (decoders, (only,), _):
        for data, refusal in (
            (b"nothing of the kind", InvalidImage),
            (b"", InvalidImage),
            (images.jpeg(32)[:-200], InvalidImage),
            (images.jpeg(64), TooLarge),
            (bytes(INPUT_BYTES + 1), TooLarge),
        ):
            with pytest.raises(refusal):
                await keep(decoders, data)
            assert_wiped(only)
        assert (await keep(decoders, images.jpeg(32))).width == 32
        assert only.worker.restarts == 0


def test_what_would_be_kept_in_more_bytes_than_are_taken_is_refused() -> None:
    gif = images.encoded(images.noise(), "GIF")
    assert len(gif) < len(decode.ingest(gif, keep_metadata=False, **LIMITS).image)
    with pytest.raises(TooLarge, match=f"the limit is {len(gif)}"):
        decoder._ingest(
            decoder.Ingest(len(gif), keep_metadata=False),
            memoryview(gif),
            memoryview(bytearray(1 << 20)),
            LIMITS,
        )


@pytest.mark.parametrize("lost", [True, False])
async def test_a_lost_decoder_costs_one_image_and_leaves_nothing(lost: bool) -> None:
    async with pool(decode_seconds=10.0 if lost else 0.5) as (decoders, (only,), (process,)):
        process.suspend()
        unlucky = keep(decoders, images.jpeg())
        behind = keep(decoders, images.jpeg())
        await until(lambda: not decoders._idle)
        # As it may have begun to write when it was lost.
        only._output.view[: len(MARKER)] = MARKER
        only._output.view[OUTPUT_BYTES - len(MARKER) :] = MARKER
        if lost:
            process.kill()
        with pytest.raises(ImageFailed, match="crashed its decoder or took it longer"):
            await unlucky
        assert_wiped(only)
        assert (await behind).format == "jpeg"
        assert (await decoders.decode(images.jpeg(), SEEN)).width == 64


async def test_what_is_to_be_seen_goes_first() -> None:
    async with pool() as (decoders, _, (process,)):
        process.suspend()
        order: list[str] = []
        first = asyncio.ensure_future(decoders.see(images.jpeg(), SEEN, lambda _: order.append("first")))
        await until(lambda: not decoders._idle)
        kept = keep(decoders, images.jpeg())
        kept.add_done_callback(lambda _: order.append("kept"))
        await until(lambda: len(decoders._kept) == 1)
        seen = [
            asyncio.ensure_future(decoders.see(images.jpeg(), SEEN, lambda _: order.append("seen")))
            for _ in range(6)
        ]
        await until(lambda: len(decoders._waiting) == 6)
        process.resume()
        await asyncio.gather(first, kept, *seen)
        assert order == ["first", *["seen"] * 6, "kept"]


async def test_a_quarter_of_the_decoders_is_for_what_is_to_be_kept() -> None:
    async with pool(decoders=2) as (decoders, _, processes):
        for process in processes:
            process.suspend()
        kept = [keep(decoders, images.jpeg()) for _ in range(3)]
        await until(lambda: len(decoders._kept) == 2)
        assert len(decoders._idle) == 1
        seen = asyncio.ensure_future(decoders.decode(images.jpeg(), SEEN))
        await until(lambda: not decoders._idle)
        for process in processes:
            process.resume()
        assert (await seen).width == 64
        assert [one.width for one in await asyncio.gather(*kept)] == [64] * 3


async def test_a_full_queue_of_one_kind_is_none_of_the_other() -> None:
    async with pool(queue=2, queue_bytes=1 << 20) as (decoders, _, (process,)):
        process.suspend()
        kept = [keep(decoders, images.jpeg()) for _ in range(3)]
        await until(lambda: len(decoders._kept) == 2)
        with pytest.raises(Overloaded, match="as many as the queue holds"):
            await keep(decoders, images.jpeg())
        decoders.check_room()
        seen = asyncio.ensure_future(decoders.decode(images.jpeg(), SEEN))
        await until(lambda: len(decoders._waiting) == 1)
        process.resume()
        assert (await seen).width == 64
        await asyncio.gather(*kept)


async def test_waiting_to_be_kept_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.recognition.decoders.PATIENCE", 0.1)
    async with pool(decode_seconds=5.0) as (decoders, _, (process,)):
        process.suspend()
        running = asyncio.ensure_future(decoders.decode(images.jpeg(), SEEN))
        await until(lambda: not decoders._idle)
        with pytest.raises(Overloaded, match=r"no decoder became free within 0\.5 s"):
            await keep(decoders, images.jpeg())
        process.resume()
        assert (await running).width == 64


async def test_cancelled_while_waiting_and_while_it_is_made() -> None:
    async with pool() as (decoders, (only,), (process,)):
        process.suspend()
        running, waiting = keep(decoders, images.jpeg()), keep(decoders, images.jpeg())
        await until(lambda: len(decoders._kept) == 1)
        running.cancel()
        waiting.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        assert len(decoders._kept) == 0
        process.resume()
        assert (await keep(decoders, images.jpeg())).width == 64
        assert_wiped(only)
        assert only.worker.restarts == 0


async def test_who_waits_at_the_end_is_told() -> None:
    async with pool() as (decoders, _, (process,)):
        process.suspend()
        unfinished = [keep(decoders, images.jpeg()) for _ in range(2)]
        await until(lambda: len(decoders._kept) == 1)
    outcomes = await asyncio.gather(*unfinished, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ImageFailed, WorkerLost]
