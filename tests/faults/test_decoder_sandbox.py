"""A decoder that hostile bytes have taken over gets nothing, and costs the one request."""

import asyncio
import io
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest
from PIL import Image

from appliance.config import Recognition
from appliance.errors import InvalidImage, Overloaded, TooLarge
from appliance.metrics import Registry
from appliance.recognition.bundles import Preprocessing
from appliance.recognition.decoders import Decoders
from tests.faults.hostile_decoder import ACTS, DEADLY, HARMLESS, STOLEN

SEEN = Preprocessing(size=16)


@asynccontextmanager
async def taken_over(**settings: Any) -> AsyncIterator[tuple[Decoders, Registry]]:
    config = Recognition(**({"decoders": 1, "decode_seconds": 3.0} | settings))
    registry = Registry()
    async with Decoders(config, registry, target="tests.faults.hostile_decoder:main") as decoders:
        yield decoders, registry


def photo() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 10, 10)).save(out, "JPEG")
    return out.getvalue()


def pid_of(decoders: Decoders) -> int:
    (decoder,) = decoders._idle
    assert isinstance(decoder.worker.pid, int)
    return decoder.worker.pid


class HasWidth(Protocol):
    @property
    def width(self) -> int: ...


async def assert_served(waiting: Awaitable[HasWidth], again: Callable[[], Awaitable[HasWidth]]) -> None:
    """It is answered; where a new decoder has come later than its own patience allows, the next one is."""
    async with asyncio.timeout(60):
        while True:
            try:
                assert (await waiting).width == 40
            except Overloaded:
                waiting = again()
            else:
                return


@pytest.mark.parametrize("act", sorted(ACTS.keys() - DEADLY - HARMLESS))
async def test_a_taken_over_decoder_is_refused(act: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.setblocking(False)
        async with taken_over() as (decoders, _):
            pid = pid_of(decoders)
            with pytest.raises(InvalidImage, match="refused with EPERM"):
                await decoders.decode(f"{act}@{canary.getsockname()[1]}".encode(), SEEN)
            assert psutil.Process(pid).children() == []
            assert (await decoders.decode(photo(), SEEN)).width == 40
            assert pid_of(decoders) == pid, "what is refused costs no process"
        with pytest.raises(BlockingIOError):
            canary.accept()
    assert not STOLEN.exists()


@pytest.mark.parametrize("act", sorted(DEADLY))
async def test_a_decoder_that_dies_or_hangs_costs_one_request(act: str) -> None:
    async with taken_over(decode_seconds=1.0) as (decoders, registry):
        before = pid_of(decoders)
        hostile = asyncio.ensure_future(decoders.decode(act.encode(), SEEN))
        await asyncio.sleep(0)
        after = asyncio.ensure_future(decoders.decode(photo(), Preprocessing(size=16)))
        with pytest.raises(InvalidImage, match="crashed its decoder or took it longer"):
            await hostile
        await assert_served(after, lambda: decoders.decode(photo(), SEEN))
        assert pid_of(decoders) != before
        assert registry.get_sample_value("appliance_decoders_lost_total") == 1


@pytest.mark.parametrize("act", sorted(DEADLY))
async def test_one_that_dies_or_hangs_over_what_is_to_be_kept_costs_that(act: str) -> None:
    async with taken_over(decode_seconds=1.0) as (decoders, registry):
        before = pid_of(decoders)
        hostile = asyncio.ensure_future(decoders.ingest(act.encode(), keep_metadata=True))
        await asyncio.sleep(0)
        after = asyncio.ensure_future(decoders.decode(photo(), SEEN))
        kept = asyncio.ensure_future(decoders.ingest(photo(), keep_metadata=False))
        with pytest.raises(InvalidImage, match="crashed its decoder or took it longer"):
            await hostile
        await assert_served(after, lambda: decoders.decode(photo(), SEEN))
        await assert_served(kept, lambda: decoders.ingest(photo(), keep_metadata=False))
        assert pid_of(decoders) != before
        assert registry.get_sample_value("appliance_decoders_lost_total") == 1


async def test_what_is_to_be_kept_opens_no_lock() -> None:
    async with taken_over() as (decoders, _):
        for act in sorted(ACTS.keys() - DEADLY - HARMLESS):
            with pytest.raises(InvalidImage, match="refused with EPERM"):
                await decoders.ingest(f"{act}@9".encode(), keep_metadata=False)
        assert (await decoders.ingest(photo(), keep_metadata=False)).width == 40
    assert not STOLEN.exists()


async def test_memory_is_bounded() -> None:
    async with taken_over(decoder_memory_bytes=300 << 20) as (decoders, _):
        with pytest.raises((InvalidImage, TooLarge)):
            await decoders.decode(b"blow up", SEEN)
        assert (await decoders.decode(photo(), SEEN)).width == 40


async def test_what_a_decoder_says_of_an_image_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with taken_over() as (decoders, _):
            with pytest.raises(InvalidImage, match="it went through"):
                await decoders.decode(b"say", SEEN)
    assert "complains" in caplog.text
    assert "secret" not in caplog.text


async def test_every_decoder_is_locked_in_before_its_first_image() -> None:
    async with Decoders(Recognition(decoders=2), Registry()) as decoders:
        for decoder in decoders._idle:
            assert decoder.worker.info["sandbox"].startswith("seccomp")
            status = Path(f"/proc/{decoder.worker.pid}/status").read_text()  # noqa: ASYNC240
            assert "NoNewPrivs:\t1" in status
            assert "Seccomp:\t2" in status
