"""The pool of decoder processes: hostile bytes in, pixels out.

A decoder has one image at a time. Where small ones wait it is given a few at once, so that the loop is woken
once for all of them. If it is lost over several, each is decoded again by itself: the hostile one among them
fails then, and the others are served.
"""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import msgspec
from prometheus_client import Counter, Gauge

from appliance.channel import Limits
from appliance.config import Recognition
from appliance.errors import ApplianceError, ImageFailed, Overloaded, TooLarge, WorkerLost
from appliance.metrics import CpuTime, Registry
from appliance.recognition.decode import Decoded, Outcome, Task
from appliance.recognition.devices import Priority
from appliance.recognition.preprocessing import CHANNELS, Preprocessing
from appliance.workers import Memory, Worker, fail

# Shared memory costs nothing until it is touched: as large as any image may be.
INPUT_BYTES = 64 * 1024 * 1024
MAX_SIZE = 2048
DECODER = "appliance.recognition.decode:main"
Encoded = bytes | bytearray | memoryview
T = TypeVar("T")
# What is given to one decoder at once: as many images as a CPU takes in one batch, each of some milliseconds.
TOGETHER = 4
SMALL_BYTES, SMALL_PIXELS = 256 * 1024, 1024 * 1024
# How long an image waits for a decoder, in times of what decoding one may take: another may hang a decoder
# twice, with others and alone, before it is known which it is.
PATIENCE = 3
# A decoder that dies at every image is replaced at most once a second, so that one sender of hostile images
# cannot keep the pool away from the others for long.
BACKOFF_SECONDS = (0.05, 1.0)


# No repr: an image must not get into a message by accident.
@dataclass(slots=True, eq=False, repr=False)
class _Job(Generic[T]):
    """One image, what is done with its pixels as soon as they are there, and who waits for the result."""

    data: Encoded
    preprocessing: Preprocessing
    then: Callable[[Decoded], T]
    answer: asyncio.Future[T]
    patience: asyncio.TimerHandle | None = None  # runs while it waits for a decoder
    alone: bool = False  # it may be what its last decoder was lost over

    @property
    def small(self) -> bool:
        return len(self.data) <= SMALL_BYTES and self.preprocessing.nbytes <= SMALL_PIXELS and not self.alone


@dataclass(slots=True, eq=False)
class _Place:
    """Where an image and its pixels lie in the memories of its decoder."""

    source: int
    length: int
    target: int
    produced: int


class _Decoder:
    """One process and the memories that it shares with nobody else."""

    def __init__(self, number: int, config: Recognition, target: str, queue: CpuTime) -> None:
        self._queue = queue
        self._seconds = config.decode_seconds
        self._under_way = 0
        self._again: list[_Job[Any]] = []
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

    def begin(self, jobs: list[_Job[Any]], done: Callable[[list[_Job[Any]]], None]) -> None:
        """Decode the images of some jobs, several only where all are small.

        Each job gets its answer; then `done` is called with those that are to be tried again, alone.
        """
        self._under_way, self._again = len(jobs), []
        source = target = 0
        for number, job in enumerate(jobs, 1):
            place = _Place(source, len(job.data), target, job.preprocessing.nbytes)
            self._input.view[source : source + place.length] = job.data
            task = Task(source, place.length, target, number == len(jobs), job.preprocessing)
            hear = partial(self._settle, job, place, done, len(jobs) > 1)
            self.worker.submit(self._encoder.encode(task), self._seconds * number, hear)
            source, target = source + place.length, target + place.produced

    def _settle(
        self,
        job: _Job[Any],
        place: _Place,
        done: Callable[[list[_Job[Any]]], None],
        shared: bool,
        outcome: bytes | ApplianceError,
    ) -> None:
        with self._queue:
            if shared and isinstance(outcome, WorkerLost):
                job.alone = True
                self._again.append(job)
            elif not job.answer.done():
                self._hand_over(job, place, outcome)
            self._input.wipe(place.source, place.length)
            self._output.wipe(place.target, place.produced)
            self._under_way -= 1
            if not self._under_way:
                done(self._again)

    def _hand_over(self, job: _Job[Any], place: _Place, outcome: bytes | ApplianceError) -> None:
        try:
            job.answer.set_result(job.then(self._decoded(job.preprocessing, place, outcome)))
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the one who waits
            fail(job.answer, error)

    def _decoded(
        self, preprocessing: Preprocessing, place: _Place, outcome: bytes | ApplianceError
    ) -> Decoded:
        """Its pixels are the decoder's memory."""
        try:
            if isinstance(outcome, ApplianceError):
                raise outcome
            told = self._outcomes.decode(outcome)
        except (WorkerLost, msgspec.DecodeError) as error:
            # What the process said last may be about the image: it stays out of the message.
            raise ImageFailed(
                f"the image crashed its decoder or took it longer than {self._seconds:g} s"
            ) from error
        pixels = self._output.view[place.target : place.target + place.produced]
        return Decoded(pixels.cast("B", preprocessing.shape), told.width, told.height, told.format)

    def close(self) -> None:
        self._input.close()
        self._output.close()


class Decoders:
    """`async with` runs the decoder processes; `decode` gives an image to the first that is free."""

    def __init__(self, config: Recognition, registry: Registry, *, target: str = DECODER) -> None:
        self._config = config
        self._queue = registry.cpu("queue")
        self._target = target
        self._idle: list[_Decoder] = []
        self._waiting: deque[_Job[Any]] = deque()
        self._waiting_bytes = 0
        self._patient = asyncio.Semaphore()
        self._reviving: set[asyncio.Task[None]] = set()
        self._lost = Counter(
            "appliance_decoders_lost", "Decoder processes that died or hung at an image", registry=registry
        )
        waiting = Gauge("appliance_decoders_waiting", "Images waiting for a free decoder", registry=registry)
        waiting.set_function(lambda: len(self._waiting))

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        count = self._count = self._config.decoders or max(1, len(os.sched_getaffinity(0)) - 1)
        async with contextlib.AsyncExitStack() as stack:
            decoders = [_Decoder(number, self._config, self._target, self._queue) for number in range(count)]
            for decoder in decoders:
                stack.callback(decoder.close)
            starts = (stack.enter_async_context(decoder.worker) for decoder in decoders)
            for started in await asyncio.gather(*starts, return_exceptions=True):
                if isinstance(started, BaseException):
                    raise started
            self._idle = decoders
            self._patient = asyncio.Semaphore(max(1, count // 2))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()
        while self._waiting:
            job = self._waiting[0]
            self._leave(job)
            fail(job.answer, WorkerLost("the decoders have stopped"))
        for task in self._reviving:
            task.cancel()
        await asyncio.gather(*self._reviving, return_exceptions=True)

    def check_room(self) -> None:
        """Raises Overloaded when the queue is full."""
        if len(self._waiting) >= self._config.queue:
            raise Overloaded(f"{len(self._waiting)} images wait to be decoded, as many as the queue holds")

    async def decode(
        self, data: Encoded, preprocessing: Preprocessing, priority: Priority = Priority.INTERACTIVE
    ) -> Decoded:
        """The pixels that a model with this preprocessing sees; see `appliance.recognition.decode.decode`.

        What is less urgent has half of the decoders at most. Raises InvalidImage and TooLarge for the image,
        InvalidImage too when it crashes or hangs its decoder; Overloaded when more images wait than the queue
        holds or none is free in time. Of what it was given, nothing remains in shared memory; a cancelled
        call ends in the background.
        """
        return await self.see(data, preprocessing, copied, priority)

    async def see(
        self,
        data: Encoded,
        preprocessing: Preprocessing,
        then: Callable[[Decoded], T],
        priority: Priority = Priority.INTERACTIVE,
    ) -> T:
        """What `then` makes of the pixels, which are wiped when it returns; raises what it or `decode` does.

        It is called as soon as they are there, before whoever waits for it goes on, and is not to wait.
        """
        if len(data) > INPUT_BYTES:
            raise TooLarge(f"the image has {len(data)} bytes; the limit is {INPUT_BYTES}")
        job = _Job[T](data, preprocessing, then, self._loop.create_future())
        if priority is Priority.INTERACTIVE:
            return await self._answer(job)
        async with self._patient:
            return await self._answer(job)

    async def _answer(self, job: _Job[T]) -> T:
        self.check_room()
        size = len(job.data)
        if self._waiting and self._waiting_bytes + size > self._config.queue_bytes:
            raise Overloaded("the images that wait to be decoded take as much memory as the queue may")
        self._waiting.append(job)
        self._wait(job)
        with self._queue:
            self._advance()
        try:
            return await job.answer
        except asyncio.CancelledError:
            self._leave(job)
            raise

    def _wait(self, job: _Job[Any]) -> None:
        self._waiting_bytes += len(job.data)
        seconds = PATIENCE * self._config.decode_seconds
        job.patience = self._loop.call_later(seconds, self._expire, job, seconds)

    def _leave(self, job: _Job[Any]) -> None:
        """It waits no more, if it did."""
        if job.patience is not None:
            job.patience.cancel()
            job.patience = None
            self._waiting.remove(job)
            self._waiting_bytes -= len(job.data)

    def _expire(self, job: _Job[Any], seconds: float) -> None:
        self._leave(job)
        fail(job.answer, Overloaded(f"no decoder became free within {seconds:g} s"))

    def _advance(self) -> None:
        """Give those who wait to the decoders that are idle."""
        while self._waiting and self._idle:
            decoder = self._idle.pop()
            if decoder.worker.serving:
                decoder.begin(self._take(), partial(self._give_back, decoder))
            else:
                self._revive(decoder)

    def _take(self) -> list[_Job[Any]]:
        """The next, and a fair share of the small ones right behind it."""
        share = min(TOGETHER, -(-len(self._waiting) // self._count))
        jobs: list[_Job[Any]] = []
        while self._waiting and len(jobs) < share:
            job = self._waiting[0]
            if jobs and not (job.small and jobs[0].small):
                break
            self._leave(job)
            jobs.append(job)
        return jobs

    def _give_back(self, decoder: _Decoder, again: list[_Job[Any]]) -> None:
        for job in reversed(again):
            if not job.answer.done():
                self._waiting.appendleft(job)
                self._wait(job)
        if decoder.worker.serving:
            self._idle.append(decoder)
        else:
            self._revive(decoder)
        self._advance()

    def _revive(self, decoder: _Decoder) -> None:
        self._lost.inc()
        task = self._loop.create_task(self._until_serving(decoder))
        self._reviving.add(task)
        task.add_done_callback(self._reviving.discard)

    async def _until_serving(self, decoder: _Decoder) -> None:
        await decoder.worker.until_serving()
        self._give_back(decoder, [])


def copied(decoded: Decoded) -> Decoded:
    """The same with pixels that stay: what `see` is given where nothing is to be done at once."""
    pixels = memoryview(decoded.pixels.tobytes()).cast("B", decoded.pixels.shape or ())
    return Decoded(pixels, decoded.width, decoded.height, decoded.format)
