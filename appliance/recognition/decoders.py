"""The pool of decoder processes: hostile bytes in, pixels out, one image at a time each."""

import asyncio
import contextlib
import os
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge

from appliance.channel import Limits
from appliance.config import Recognition
from appliance.errors import ImageFailed, Overloaded, TooLarge, WorkerLost
from appliance.recognition.decode import Decoded, Outcome, Task
from appliance.recognition.devices import Priority
from appliance.recognition.preprocessing import CHANNELS, Preprocessing
from appliance.workers import Memory, Worker

# Shared memory costs nothing until it is touched: as large as any image may be.
INPUT_BYTES = 64 * 1024 * 1024
MAX_SIZE = 2048
DECODER = "appliance.recognition.decode:main"
Encoded = bytes | bytearray | memoryview
T = TypeVar("T")
# A decoder that dies at every image is replaced at most once a second, so that one sender of hostile images
# cannot keep the pool away from the others for long.
BACKOFF_SECONDS = (0.05, 1.0)


class _Decoder:
    """One process and the memories that it shares with nobody else."""

    def __init__(self, number: int, config: Recognition, target: str) -> None:
        self._seconds = config.decode_seconds
        self._input, self._output = Memory(INPUT_BYTES), Memory(MAX_SIZE * MAX_SIZE * CHANNELS)
        self._encoder = msgspec.msgpack.Encoder()
        self._outcomes = msgspec.msgpack.Decoder(Outcome)
        self.worker = Worker(
            f"decoder {number}",
            target,
            {"max_pixels": config.max_pixels, "max_side": config.max_side},
            memories=(self._input, self._output),
            # Whatever hostile bytes make of the process, it reaches nothing and fills no disk.
            limits=Limits(address_space_bytes=config.decoder_memory_bytes, file_bytes=0, confined=True),
            backoff_seconds=BACKOFF_SECONDS,
        )

    async def decode(self, data: Encoded, preprocessing: Preprocessing) -> Decoded:
        length, produced = len(data), preprocessing.nbytes
        self._input.view[:length] = data
        try:
            reply = await self.worker.submit(self._encoder.encode(Task(length, preprocessing)), self._seconds)
            outcome = self._outcomes.decode(reply)
            pixels = memoryview(bytes(self._output.view[:produced])).cast("B", preprocessing.shape)
            return Decoded(pixels, outcome.width, outcome.height, outcome.format)
        except (WorkerLost, msgspec.DecodeError) as error:
            # What the process said last may be about the image: it stays out of the message.
            raise ImageFailed(
                f"the image crashed its decoder or took it longer than {self._seconds:g} s"
            ) from error
        finally:
            self._input.wipe(0, length)
            self._output.wipe(0, produced)

    def close(self) -> None:
        self._input.close()
        self._output.close()


class Decoders:
    """`async with` runs the decoder processes; `decode` gives an image to the first that is free."""

    def __init__(self, config: Recognition, registry: CollectorRegistry, *, target: str = DECODER) -> None:
        self._config = config
        self._target = target
        self._waiting = self._waiting_bytes = 0
        self._patient = asyncio.Semaphore()
        self._idle: asyncio.LifoQueue[_Decoder] = asyncio.LifoQueue()
        self._running: set[asyncio.Task[Any]] = set()
        self._lost = Counter(
            "appliance_decoders_lost", "Decoder processes that died or hung at an image", registry=registry
        )
        waiting = Gauge("appliance_decoders_waiting", "Images waiting for a free decoder", registry=registry)
        waiting.set_function(lambda: self._waiting)

    async def __aenter__(self) -> Self:
        count = self._config.decoders or max(1, len(os.sched_getaffinity(0)) - 1)
        async with contextlib.AsyncExitStack() as stack:
            decoders = [_Decoder(number, self._config, self._target) for number in range(count)]
            for decoder in decoders:
                stack.callback(decoder.close)
            starts = (stack.enter_async_context(decoder.worker) for decoder in decoders)
            for started in await asyncio.gather(*starts, return_exceptions=True):
                if isinstance(started, BaseException):
                    raise started
            for decoder in decoders:
                self._idle.put_nowait(decoder)
            self._patient = asyncio.Semaphore(max(1, count // 2))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._stack.aclose()

    def check_room(self) -> None:
        """Raises Overloaded when the queue is full."""
        if self._waiting >= self._config.queue:
            raise Overloaded(f"{self._waiting} images wait to be decoded, as many as the queue holds")

    async def decode(
        self, data: Encoded, preprocessing: Preprocessing, priority: Priority = Priority.INTERACTIVE
    ) -> Decoded:
        """The pixels that a model with this preprocessing sees; see `appliance.recognition.decode.decode`.

        What is less urgent has half of the decoders at most. Raises InvalidImage and TooLarge for the image,
        InvalidImage too when it crashes or hangs its decoder; Overloaded when more images wait than the queue
        holds or none is free in time. Of what it was given, nothing remains in shared memory; a cancelled
        call ends in the background.
        """
        if len(data) > INPUT_BYTES:
            raise TooLarge(f"the image has {len(data)} bytes; the limit is {INPUT_BYTES}")
        if priority is Priority.INTERACTIVE:
            return await self._decode(data, preprocessing)
        async with self._patient:
            return await self._decode(data, preprocessing)

    async def _decode(self, data: Encoded, preprocessing: Preprocessing) -> Decoded:
        decoder = await self._free(len(data))
        return await asyncio.shield(self._keep(self._run(decoder, data, preprocessing)))

    async def _free(self, size: int) -> _Decoder:
        self.check_room()
        if self._waiting and self._waiting_bytes + size > self._config.queue_bytes:
            raise Overloaded("the images that wait to be decoded take as much memory as the queue may")
        if not self._waiting and not self._idle.empty():
            decoder = self._idle.get_nowait()
            if decoder.worker.serving:
                return decoder
            self._give_back(decoder)
        self._waiting += 1
        self._waiting_bytes += size
        try:
            async with asyncio.timeout(self._config.decode_seconds):
                while not (decoder := await self._idle.get()).worker.serving:
                    self._give_back(decoder)
                return decoder
        except TimeoutError:
            raise Overloaded(f"no decoder became free within {self._config.decode_seconds:g} s") from None
        finally:
            self._waiting -= 1
            self._waiting_bytes -= size

    async def _run(self, decoder: _Decoder, data: Encoded, preprocessing: Preprocessing) -> Decoded:
        try:
            return await decoder.decode(data, preprocessing)
        finally:
            self._give_back(decoder)

    def _give_back(self, decoder: _Decoder) -> None:
        if decoder.worker.serving:
            self._idle.put_nowait(decoder)
        else:
            self._lost.inc()
            _ = self._keep(self._revive(decoder))

    async def _revive(self, decoder: _Decoder) -> None:
        await decoder.worker.until_serving()
        self._idle.put_nowait(decoder)

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task
