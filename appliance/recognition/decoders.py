"""The pool of decoder processes: hostile bytes in, pixels out, or an image as it may be kept.

A decoder has one image at a time, of one customer after the other. Where small ones wait it is given a few at
once, so that the loop is woken once for all of them. If it is lost over several, each is decoded again by
itself: the hostile one among them fails then, and the others are served. What an image costs is measured in
CPU time: it may take `decode_seconds`, and takes of its customer's turns what it cost. What is to be kept
waits for those that are to be seen, and takes a few of the decoders at most.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
from prometheus_client import Counter, Gauge

from appliance.background import end_tasks
from appliance.channel import Limits
from appliance.config import Recognition
from appliance.errors import ApplianceError, ImageFailed, TooLarge, WorkerLost
from appliance.metrics import CpuTime, Registry
from appliance.recognition.decode import Decoded
from appliance.recognition.devices import Priority
from appliance.recognition.ingest import Encoded, Ingested
from appliance.recognition.preprocessing import Preprocessing
from appliance.recognition.waiting import (
    INPUT_BYTES,
    OUTPUT_BYTES,
    Ingesting,
    Job,
    Line,
    Looking,
    Place,
    Work,
)
from appliance.workers import Memory, Worker, fail, without_frames

DECODER = "appliance.recognition.decoder:main"
T = TypeVar("T")
# What is given to one decoder at once: as many images as a CPU takes in one batch.
TOGETHER = 4
# How long an image waits for a decoder, in times of the CPU time that decoding one may take: on a machine
# that is busy with other things that takes several times as long.
PATIENCE = 15
# A process that has used less CPU time sleeps or is stopped; one that waits for a processor gets more.
STIRRED_SECONDS = 0.001
# The last word, in times of `decode_seconds`: who stirs and never ends is in a stranger's hands.
ENDLESS = 60
MOMENT = 0.01  # between two looks
_CPU_CLOCK = 2  # of another process (Linux, posix-timers_types.h: CPUCLOCK_SCHED)
# A decoder that dies at every image is replaced at most once a second, so that one sender of hostile images
# cannot keep the pool away from the others for long.
BACKOFF_SECONDS = (0.05, 1.0)


class _Decoder:
    """One process and the memories that it shares with nobody else."""

    def __init__(
        self,
        number: int,
        config: Recognition,
        target: str,
        queue: CpuTime,
        charge: Callable[[Job[Any], float], None],
    ) -> None:
        self._queue = queue
        self._charge = charge  # is told what CPU time each image took
        self._seconds = config.decode_seconds
        self._allowed = self._seconds  # of CPU time, for what is under way
        # CPU time when the present image began, and when it last grew, on the loop's clock.
        self._began = self._stirred = self._stirred_at = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._under_way = 0
        self._again: list[Job[Any]] = []
        self._input, self._output = Memory(INPUT_BYTES), Memory(OUTPUT_BYTES)
        self.worker = Worker(
            f"decoder {number}",
            target,
            {"max_pixels": config.max_pixels, "max_side": config.max_side},
            memories=(self._input, self._output),
            # Whatever hostile bytes make of the process, it reaches nothing and fills no disk.
            limits=Limits(
                address_space_bytes=config.decoder_memory_bytes + INPUT_BYTES + OUTPUT_BYTES,
                file_bytes=0,
                confined=True,
            ),
            backoff_seconds=BACKOFF_SECONDS,
        )

    def begin(self, jobs: list[Job[Any]], done: Callable[[list[Job[Any]]], None]) -> None:
        """Do the work of some jobs, several only where all are small.

        Each job gets its answer; then `done` is called with those that are to be tried again, alone.
        """
        self._under_way, self._again = len(jobs), []
        self._allowed = self._seconds * max(job.work.effort for job in jobs)
        self._mark()
        if self._watch is None:
            self._look()
        source = target = 0
        for number, job in enumerate(jobs, 1):
            place = Place(source, len(job.data), target, job.work.produced)
            self._input.view[source : source + place.length] = job.data
            request = job.work.request(place, last=number == len(jobs))
            hear = partial(self._settle, job, place, done, len(jobs) > 1)
            self.worker.submit(request, self._seconds * ENDLESS, hear)
            source, target = source + place.length, target + place.produced

    def _mark(self) -> float:
        """The CPU time that went by since the last mark; all that may be used where the process is gone."""
        try:
            now = cpu_seconds(self.worker.pid)
        except OSError:
            return self._allowed
        took, self._began = now - self._began, now
        self._stirred, self._stirred_at = now, asyncio.get_running_loop().time()
        return took

    def _look(self) -> None:
        """Have the process replaced that has had its CPU time for an image, or does nothing.

        By the processor's clock: where others keep the machine busy an image takes longer, and costs no more.
        """
        self._watch = None
        if not self._under_way or not self.worker.serving:
            return
        try:
            now = cpu_seconds(self.worker.pid)
        except OSError:  # it has ended, of which the worker tells
            return
        loop = asyncio.get_running_loop()
        if now - self._stirred > STIRRED_SECONDS:
            self._stirred, self._stirred_at = now, loop.time()
        left = self._allowed - (now - self._began)
        patience = self._stirred_at + self._seconds - loop.time()
        if left <= 0 or patience <= 0:
            self.worker.give_up(f"took over {self._allowed:g} s of CPU time" if left <= 0 else "did nothing")
        else:
            self._watch = loop.call_later(max(min(left, patience), MOMENT), self._look)

    def _settle(
        self,
        job: Job[Any],
        place: Place,
        done: Callable[[list[Job[Any]]], None],
        shared: bool,
        outcome: bytes | ApplianceError,
    ) -> None:
        with self._queue:
            took = self._mark()
            if shared and isinstance(outcome, WorkerLost):
                job.alone = True
                self._again.append(job)
            else:
                self._charge(job, took)
                if not job.answer.done():
                    self._hand_over(job, place, outcome)
            self._input.wipe(place.source, place.length)
            self._output.wipe(place.target, place.produced)
            self._under_way -= 1
            if not self._under_way:
                # The first of them is the likely one: the others need not wait for it once more.
                again, self._again = [*self._again[1:], *self._again[:1]], []
                done(again)

    def _hand_over(self, job: Job[Any], place: Place, outcome: bytes | ApplianceError) -> None:
        try:
            job.answer.set_result(self._result(job.work, place, outcome)())
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the one who waits
            # Its frames hold the job, and so itself. Until the collector comes the image would stay, and a
            # view of its pixels, which keeps the memory from being unmapped.
            fail(job.answer, without_frames(error))

    def _result(self, work: Work[T], place: Place, outcome: bytes | ApplianceError) -> Callable[[], T]:
        try:
            if isinstance(outcome, ApplianceError):
                raise outcome
            return work.result(outcome, self._output.view[place.target : place.target + place.produced])
        except (WorkerLost, msgspec.DecodeError) as error:
            # What the process said last may be about the image: it stays out of the message.
            raise ImageFailed(
                f"the image crashed its decoder or took it longer than {self._allowed:g} s"
            ) from error

    def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._input.close()
        self._output.close()


class Decoders:
    """`async with` runs the decoder processes; each image is given to the first that is free."""

    def __init__(self, config: Recognition, registry: Registry, *, target: str = DECODER) -> None:
        self._config = config
        self._queue = registry.cpu("queue")
        self._target = target
        self._idle: list[_Decoder] = []
        limits = config.queue, config.queue_bytes, PATIENCE * config.decode_seconds
        self._waiting, self._kept = Line(*limits), Line(*limits)
        self._ingesting: set[_Decoder] = set()
        self._patient = asyncio.Semaphore()
        self._reviving: set[asyncio.Task[None]] = set()
        self._lost = Counter(
            "appliance_decoders_lost", "Decoder processes that died or hung at an image", registry=registry
        )
        waiting = Gauge("appliance_decoders_waiting", "Images waiting for a free decoder", registry=registry)
        waiting.set_function(lambda: len(self._waiting) + len(self._kept))

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        count = self._count = self._config.decoders or max(1, len(os.sched_getaffinity(0)) - 1)
        async with contextlib.AsyncExitStack() as stack:
            decoders = [
                _Decoder(number, self._config, self._target, self._queue, self._charge)
                for number in range(count)
            ]
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
        for line in (self._waiting, self._kept):
            line.fail(WorkerLost("the decoders have stopped"))
        await end_tasks(*self._reviving)

    def check_room(self, customer: str | None = None) -> None:
        """Raises Overloaded when no more images of this customer may wait to be seen."""
        self._waiting.check_room(customer)

    async def decode(
        self,
        data: Encoded,
        preprocessing: Preprocessing,
        priority: Priority = Priority.INTERACTIVE,
        customer: str | None = None,
    ) -> Decoded:
        """The pixels that a model with this preprocessing sees; see `appliance.recognition.decode.decode`.

        What is less urgent has half of the decoders at most; among equals customers take turns. Raises
        InvalidImage and TooLarge for the image, InvalidImage too when it crashes or hangs its decoder;
        Overloaded when more images wait than the queue holds or none is free in time. Of what it was given,
        nothing remains in shared memory; a cancelled call ends in the background.
        """
        return await self.see(data, preprocessing, copied, priority, customer)

    async def see(
        self,
        data: Encoded,
        preprocessing: Preprocessing,
        then: Callable[[Decoded], T],
        priority: Priority = Priority.INTERACTIVE,
        customer: str | None = None,
    ) -> T:
        """What `then` makes of the pixels, which are wiped when it returns; raises what it or `decode` does.

        It is called as soon as they are there, before whoever waits for it goes on, and is not to wait.
        """
        # No name holds the job: see `_answer`.
        work = Looking(preprocessing, then)
        if priority is Priority.INTERACTIVE:
            return await self._answer(self._job(data, work, customer), self._waiting)
        async with self._patient:
            return await self._answer(self._job(data, work, customer), self._waiting)

    async def ingest(self, data: Encoded, *, keep_metadata: bool, customer: str | None = None) -> Ingested:
        """The image as it may be kept, and its thumbnail; see `appliance.recognition.decode.ingest`.

        Images that are to be seen go first, and a quarter of the decoders (one at least) does this at a time;
        Overloaded where none finds time for it. Raises what `decode` does, and TooLarge for an image that
        would be kept in more bytes than are taken. Of what it was given and gave, nothing remains in shared
        memory; a cancelled call ends in the background.
        """
        return await self._answer(self._job(data, Ingesting(keep_metadata), customer), self._kept)

    def _job(self, data: Encoded, work: Work[T], customer: str | None) -> Job[T]:
        if len(data) > INPUT_BYTES:
            raise TooLarge(f"the image has {len(data)} bytes; the limit is {INPUT_BYTES}")
        return Job(data, work, self._loop.create_future(), customer)

    async def _answer(self, job: Job[T], line: Line) -> T:
        line.join(job)
        with self._queue:
            self._advance()
        try:
            return await job.answer
        except asyncio.CancelledError:
            line.leave(job)
            raise
        finally:
            # An error holds the frames that it passes, and its job holds the error: not the image too.
            job.data = b""
            del job

    def _charge(self, job: Job[Any], seconds: float) -> None:
        line = self._kept if isinstance(job.work, Ingesting) else self._waiting
        line.charge(job.customer, seconds)

    def _advance(self) -> None:
        """Give those who wait to the decoders that are idle."""
        while self._idle and (self._waiting or self._may_ingest()):
            decoder = self._idle.pop()
            if not decoder.worker.serving:
                self._revive(decoder)
                continue
            if self._waiting:
                jobs = self._take()
            else:
                jobs = [self._kept.first]
                self._kept.leave(jobs[0])
                self._ingesting.add(decoder)
            decoder.begin(jobs, partial(self._give_back, decoder))

    def _may_ingest(self) -> bool:
        return len(self._kept) > 0 and len(self._ingesting) < max(1, self._count // 4)

    def _take(self) -> list[Job[Any]]:
        """The next, and a fair share of the small ones right behind it."""
        share = min(TOGETHER, -(-len(self._waiting) // self._count))
        jobs: list[Job[Any]] = []
        while self._waiting and len(jobs) < share:
            job = self._waiting.first
            if jobs and not (self._waiting.shares(job) and self._waiting.shares(jobs[0])):
                break
            self._waiting.leave(job)
            jobs.append(job)
        return jobs

    def _give_back(self, decoder: _Decoder, again: list[Job[Any]]) -> None:
        self._ingesting.discard(decoder)
        for job in reversed(again):
            if not job.answer.done():
                self._waiting.rejoin(job)
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


def cpu_seconds(pid: int | None) -> float:
    """What a process has used of its processors so far. Raises OSError when it is gone."""
    if pid is None:
        raise ProcessLookupError
    return time.clock_gettime(~pid << 3 | _CPU_CLOCK)


def copied(decoded: Decoded) -> Decoded:
    """The same with pixels that stay: what `see` is given where nothing is to be done at once."""
    pixels = memoryview(decoded.pixels.tobytes()).cast("B", decoded.pixels.shape or ())
    return Decoded(pixels, decoded.width, decoded.height, decoded.format)
