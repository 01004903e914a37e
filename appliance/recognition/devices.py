"""One device as the engine sees it: a queue with priorities, slots of shared memory, the worker behind."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from itertools import chain
from math import prod
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.config import Recognition
from appliance.errors import ApplianceError, BundleDamaged, InvalidInput, ModelFailed, WorkerLost
from appliance.metrics import CpuTime
from appliance.recognition.slots import FLOAT_BYTES, SLOT_BYTES, Load, Loaded, Place, Run, Unload, places
from appliance.recognition.turns import Shares, Turns
from appliance.workers import Memory, Outcome, Worker, fail

log = logging.getLogger(__name__)

Outputs = dict[str, npt.NDArray[np.float32]]

LOAD_SECONDS = 300.0
# A start that ends while a model is loaded may have had another reason; a second one is the model's.
FATAL_STARTS = 2
# Everybody waits while a worker is replaced: one that dies at every image costs them no more than this.
BACKOFF_SECONDS = (0.1, 3.0)


class Priority(IntEnum):
    """Who goes first when a device becomes free; among equals customers take turns."""

    INTERACTIVE = 0
    BULK = 1
    TRAINING = 2


class DeviceStatus(msgspec.Struct, frozen=True):
    """One device: `provider` is what really runs the models, `queued` counts requests not yet answered."""

    name: str
    provider: str
    queued: int
    restarts: int
    state: Literal["serving", "restarting"]
    note: str


@dataclass(slots=True, eq=False)
class Model:
    """A model that the engine knows; `bytes` is what it takes on a device, once it has been there.

    `together` is how many images one run takes. `waiting` are the jobs that came while it was not resident;
    `used` rises with every use. `damaged`: its file was not the one that was installed when it was last to be
    loaded.
    """

    number: int
    name: str
    pin: str
    path: str
    sha256: str
    shape: tuple[int, ...]
    shapes: dict[str, tuple[int, ...]]
    pinned: bool
    resident: bool = False
    bytes: int = 0
    together: int = 1
    used: int = 0
    damaged: bool = False
    waiting: "list[Job]" = field(default_factory=list)
    pixel_bytes: int = field(init=False)
    layouts: dict[tuple[str, ...], list[Place]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.pixel_bytes = prod(self.shape)

    def layout(self, outputs: tuple[str, ...]) -> list[Place]:
        """Where these outputs lie in a slot, from its beginning."""
        layout = self.layouts.get(outputs)
        if layout is None:
            layout = places(self.pixel_bytes, [self.shapes[name] for name in outputs])
            self.layouts[outputs] = layout
        return layout


# No repr: the pixels of a request must not get into a message by accident.
@dataclass(slots=True, eq=False, repr=False)
class Job:
    """One image for one model; `sent` says that a worker has it, or had it when it died.

    One that is `alone` runs with nobody else, and has no second try: it may be what a worker died of.
    `pixels` are the caller's own until `keep`; while a worker has them, they lie in its slot alone.
    """

    model: Model
    pixels: npt.NDArray[np.uint8] | None
    outputs: tuple[str, ...]
    priority: Priority
    answer: asyncio.Future[Outputs]
    customer: str | None = None
    sent: bool = False
    alone: bool = False

    def keep(self) -> None:
        """What waits has pixels of its own."""
        if self.pixels is not None:
            self.pixels = self.pixels.copy()


class Device:
    """The queue of one device. Slots for two batches: while one runs, the next lies ready in the worker.

    A model that takes fewer images at once than a batch has fills them with fewer: they are two runs of it.
    Less urgent jobs take half of the slots at most, so that an urgent one waits for one batch of theirs;
    among equals customers take turns, so that who asks for little waits for the two batches in the slots.
    `again` gets the jobs that were with a worker when it died. `ended_by` gets those that it may have died of
    and that have no second try: it had nothing else (`alone`), or nobody waits for them any more. `models`
    are those to load into the next one.
    `refused` are those of them that it did not load, and why: they get no jobs here, the next start or `load`
    tries them again, and `again` gets what waited for them. `damaged` is told once of a model whose file is
    not what was installed, and why.
    """

    def __init__(
        self,
        config: Recognition,
        number: int,
        *,
        models: Callable[[], Iterable[Model]],
        again: Callable[[Job], None],
        ended_by: Callable[[Job], None],
        restarted: Callable[[], None],
        damaged: Callable[[Model, str], None],
        queue: CpuTime,
    ) -> None:
        self._queue = queue
        slots = 2 * config.max_batch
        self._memory = Memory(slots * SLOT_BYTES)
        self._free = list(range(slots))
        self._batch = config.max_batch
        self._waiting: dict[Priority, Turns[Job]] = {priority: Turns() for priority in Priority}
        # In the order in which the worker has them, and how much of the two batches each is.
        self._running: dict[Job, int] = {}
        # What was running when a worker ended: the oldest job that it had, and others of the same model.
        self._ended_at: Model | None = None
        self._moved = asyncio.Event()
        # A request that a worker may have died of runs with nobody else: the next one may die of it too.
        self._one_at_a_time = False
        self._seconds = config.infer_seconds
        self._models = models
        self._again = again
        self._ended_by = ended_by
        self._restarted = restarted
        self._damaged = damaged
        self.refused: dict[Model, str] = {}
        self._fatal: Counter[Model] = Counter()
        self._encoder = msgspec.msgpack.Encoder()
        self.room, self.bytes = Shares(config.queue), Shares(config.queue_bytes)
        """Of requests not yet answered: their number, and what their pixels take."""
        self.worker = Worker(
            "device worker" if number == 0 else f"device worker {number}",
            "appliance.recognition.session:main",
            {
                "device": config.device,
                "number": number,
                "threads": config.threads,
                "max_batch": config.max_batch,
            },
            memories=(self._memory,),
            on_start=self._restore,
            backoff_seconds=BACKOFF_SECONDS,
        )

    @property
    def queued(self) -> int:
        """Requests not yet answered."""
        return self.room.taken

    def status(self) -> DeviceStatus:
        info = self.worker.info
        return DeviceStatus(
            name=info["device"],
            provider=info["provider"],
            queued=self.queued,
            restarts=self.worker.restarts,
            state="serving" if self.worker.serving else "restarting",
            note=info["note"],
        )

    def close(self) -> None:
        for waiting in self._waiting.values():
            for job in waiting:
                if not job.answer.done():
                    fail(job.answer, WorkerLost("the engine has stopped"))
        self._memory.close()

    async def load(self, model: Model) -> Loaded:
        """Raises InvalidInput when the worker refuses it, or it gives other outputs than it is to give.

        BundleDamaged of it when the file at its path is not the one that was installed.
        """
        request = Load(model.number, model.path, model.shape, model.sha256)
        try:
            reply = await self.worker.call(self._encoder.encode(request), LOAD_SECONDS)
        except BundleDamaged as damage:
            if not model.damaged:
                self._damaged(model, str(damage))
            model.damaged = True
            raise
        model.damaged = False
        loaded = msgspec.msgpack.decode(reply, type=Loaded)
        loaded.check(model.shapes)
        model.together = loaded.together
        self.refused.pop(model, None)
        return loaded

    async def unload(self, model: Model) -> None:
        """Returns when the worker has forgotten it; a restarted worker does not know it anyway."""
        with contextlib.suppress(WorkerLost):
            await self.worker.call(self._encoder.encode(Unload(model.number)), LOAD_SECONDS)
        self.refused.pop(model, None)

    async def _restore(self) -> None:
        """A restarted worker knows no models; what waits goes on as soon as calls are let through."""
        self._ended_at = None
        if self.worker.restarts:
            self._restarted()
        for model in list(self._models()):
            # A model that ends the worker is left out of one start, or there would never be a worker again.
            if self._fatal[model] < FATAL_STARTS:
                await self._load_again(model)
        self._fatal.clear()
        asyncio.get_running_loop().call_soon(self._advance)

    async def _load_again(self, model: Model) -> None:
        """One that cannot be loaded any more is out by itself: the others are served."""
        try:
            await self.load(model)
        except InvalidInput as refusal:
            await self.unload(model)
            self._refuse(model, str(refusal))
        except WorkerLost as loss:
            self._fatal[model] += 1
            if self._fatal[model] == FATAL_STARTS:
                self._refuse(model, f"the model ends its worker: {loss}")
            raise

    def _refuse(self, model: Model, reason: str) -> None:
        log.error("%s does not load bundle %s again: %s", self.worker.name, model.name, reason)
        self.refused[model] = reason
        for waiting in self._waiting.values():
            # The last first: each is put before those that wait elsewhere.
            for job in [job for job in reversed(list(waiting)) if job.model is model]:
                waiting.remove(job.customer, job)
                self._left(job)
                self._again(job)

    def add(self, job: Job, *, first: bool = False) -> None:
        waiting = self._waiting[job.priority]
        if first:
            waiting.put_first(job.customer, job)
        else:
            waiting.append(job.customer, job)
        self.room.take(job.customer)
        self.bytes.take(job.customer, job.model.pixel_bytes)
        self._advance()

    def of(self, customer: str, model: Model) -> list[Job]:
        """The customer's jobs for the model that no worker has."""
        every = chain.from_iterable(self._waiting.values())
        return [job for job in every if job.customer == customer and job.model is model]

    def discard(self, job: Job) -> None:
        """Nobody waits for this job any more. One in the worker's hands keeps its slot until it is done."""
        if self._waiting[job.priority].remove(job.customer, job):
            self._left(job)

    async def drained(self, model: Model) -> None:
        """Returns when no request for the model is under way."""
        while any(job.model is model for job in chain(*self._waiting.values(), self._running)):
            self._moved.clear()
            await self._moved.wait()

    def _left(self, job: Job) -> None:
        self.room.give(job.customer)
        self.bytes.give(job.customer, job.model.pixel_bytes)
        self._moved.set()

    def _next(self) -> Turns[Job] | None:
        for priority, waiting in self._waiting.items():
            if waiting:
                taken = sum(self._running.values()) + self._part(waiting.first)
                batches = 2 if priority is Priority.INTERACTIVE else 1
                return waiting if taken <= batches * self._batch else None
        return None

    def _part(self, job: Job) -> int:
        """How many slots of a batch are its own, because no run fills the batch."""
        return -(-self._batch // job.model.together)

    def _advance(self) -> None:
        while self.worker.serving and (waiting := self._next()) is not None:
            if self._running and (self._one_at_a_time or waiting.first.alone):
                return
            job = waiting.take()
            self._one_at_a_time = job.alone
            self._send(job)

    def _send(self, job: Job) -> None:
        slot = self._free.pop()
        start = slot * SLOT_BYTES
        assert job.pixels is not None
        self._memory.view[start : start + job.model.pixel_bytes] = job.pixels.reshape(-1).data
        job.pixels = None
        self._running[job] = self._part(job)
        job.sent = True
        request = Run(job.model.number, slot, job.outputs, alone=job.alone)
        self.worker.submit(self._encoder.encode(request), self._seconds, partial(self._settle, job, slot))

    def _settle(self, job: Job, slot: int, outcome: Outcome) -> None:
        with self._queue:
            self._hand_over(job, slot, outcome)
            self._advance()

    def _hand_over(self, job: Job, slot: int, outcome: Outcome) -> None:
        start = slot * SLOT_BYTES
        lost = isinstance(outcome, WorkerLost)
        if lost and self._ended_at is None:
            self._ended_at = job.model
        suspect = lost and job.model is self._ended_at
        again = lost and not job.alone and not job.answer.done()
        if again:
            job.alone = suspect
            pixels = np.frombuffer(self._memory.view, np.uint8, job.model.pixel_bytes, start)
            job.pixels = pixels.reshape(job.model.shape).copy()
        elif not job.answer.done():
            self._answer(job, start, outcome)
        last, count = job.model.layout(job.outputs)[-1]
        self._memory.wipe(start, last + count * FLOAT_BYTES)
        self._free.append(slot)
        del self._running[job]
        self._left(job)
        if again:
            self._again(job)
        elif suspect:
            self._ended_by(job)

    def _answer(self, job: Job, start: int, outcome: Outcome) -> None:
        if isinstance(outcome, ApplianceError):
            fail(job.answer, outcome)
            return
        outputs = {
            name: np.frombuffer(self._memory.view, np.float32, count, start + offset)
            .reshape(job.model.shapes[name])
            .copy()
            for name, (offset, count) in zip(job.outputs, job.model.layout(job.outputs), strict=True)
        }
        if all(np.isfinite(values).all() for values in outputs.values()):
            job.answer.set_result(outputs)
        else:
            refusal = "the model gives no finite number for this image (NaN or infinite)"
            fail(job.answer, ModelFailed(refusal))
