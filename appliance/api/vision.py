"""From the images of a call to what is seen on them, and into its answer: concurrently, the order kept."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from appliance.accounts.customers import CustomerId
from appliance.api.answers import Answer, status, status_of
from appliance.api.call import Call, Measures
from appliance.api.payload import MAX_IMAGES, Record
from appliance.errors import (
    ApplianceError,
    InvalidInput,
    NotInstalled,
    Overloaded,
    StorageFailed,
    WorkerLost,
)
from appliance.outbound import Outbound
from appliance.recognition.bundles import Bundle, Bundles, Preprocessing
from appliance.recognition.decode import Decoded
from appliance.recognition.decoders import Decoders, copied
from appliance.recognition.engine import Engine, Job, Pixels, Priority

S = TypeVar("S")
T = TypeVar("T")
Vector = npt.NDArray[np.float32]

# What is no fault of the image: when it strikes all records of a call, the call itself is refused.
_OURS = (Overloaded, WorkerLost, StorageFailed)


@dataclass(frozen=True)
class Seen:
    """A model's float32 outputs for one image, and the image's upright size in pixels as it was sent.

    `kept` is the id that it is stored under, or why it could not be: None where nobody asked for that.
    """

    outputs: Mapping[str, Vector]
    width: int
    height: int
    kept: str | ApplianceError | None = None


class Upright(Protocol):
    """Something seen on an image, with the image's upright size in pixels as it was sent."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...


class Vision:
    """Decoders, engine and the way to images behind links, as the inference and search families use them."""

    def __init__(
        self,
        bundles: Bundles,
        decoders: Decoders | None,
        engine: Engine | None,
        outbound: Outbound,
        measures: Measures,
        *,
        priority: Priority = Priority.INTERACTIVE,
        customer: CustomerId | None = None,
    ) -> None:
        self._parts = bundles, decoders, engine, outbound, measures
        self._bundles = bundles
        self._outbound = outbound
        self._decoders = decoders
        self._engine = engine
        self._measures = measures
        self._priority = priority
        self._customer = customer

    def at(self, priority: Priority) -> "Vision":
        """The same for work that is as urgent as this."""
        return Vision(*self._parts, priority=priority, customer=self._customer)

    def of(self, customer: CustomerId) -> "Vision":
        """The same for this customer's share of decoders and devices."""
        return Vision(*self._parts, priority=self._priority, customer=customer)

    def check_room(self, customer: CustomerId | None) -> None:
        """Raises Overloaded when an image of this customer that came now would find the queues full."""
        decoders, engine = self._ready()
        decoders.check_room(customer)
        engine.check_room(customer)

    def backbone(self, pin: str | None = None) -> Bundle:
        """The bundle whose embeddings search uses: the active one, or that of a pin. Raises NotInstalled."""
        self._ready()
        return self._bundles.backbone(pin)

    async def infer(self, bundle: Bundle, record: Record, *outputs: str) -> Seen:
        """These outputs of the bundle's model for the record's image, which the record gives away.

        The pixels go from the decoder to the device without a stop. Raises what the record, the decoders and
        the engine raise.
        """
        _, engine = self._ready()

        def start(decoded: Decoded) -> tuple[Job, int, int]:
            job = engine.start(bundle, decoded.pixels, outputs, self._priority, self._customer)
            return job, decoded.width, decoded.height

        job, width, height = await self._see(record, bundle.preprocessing, start)
        with self._measures.stage("infer"):
            return Seen(await engine.outcome(job), width, height)

    async def run(self, bundle: Bundle, pixels: Pixels, *outputs: str) -> Mapping[str, Vector]:
        """These outputs of the bundle's model for the pixels of one image. Raises what the engine raises."""
        _, engine = self._ready()
        with self._measures.stage("infer"):
            return await engine.infer(
                bundle, pixels, outputs, priority=self._priority, customer=self._customer
            )

    def serves(self, bundle: Bundle) -> bool:
        """Whether a request for the bundle would be run now."""
        return self._engine is not None and self._engine.serves(bundle)

    async def embed(self, bundle: Bundle, record: Record) -> tuple[Vector, Seen]:
        """The backbone's vector of the record's image, of length 1 (L2). Raises what `infer` raises."""
        seen = await self.infer(bundle, record, "embedding")
        return seen.outputs["embedding"], seen

    async def decode(self, record: Record, preprocessing: Preprocessing) -> Decoded:
        """The pixels of the record's image, which the record gives away, for what needs no model.

        Where it has none, that behind its `_url`. Raises what the record, the gate and the decoders raise.
        """
        return await self._see(record, preprocessing, copied)

    def fetched(self, record: Record) -> AbstractAsyncContextManager[None]:
        """Within the block the record has the image behind its `_url`, as if it had come along.

        Raises what the record and the gate raise; does nothing where there is none to fetch.
        """
        url = record.url
        return nullcontext() if url is None else self._fetch(record, url)

    async def _see(self, record: Record, preprocessing: Preprocessing, then: Callable[[Decoded], T]) -> T:
        decoders, _ = self._ready()
        async with self.fetched(record):
            with self._measures.stage("decode"):
                return await decoders.see(
                    record.take_image(), preprocessing, then, self._priority, self._customer
                )

    @asynccontextmanager
    async def _fetch(self, record: Record, url: str) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            with self._measures.stage("fetch"):
                record.image = await stack.enter_async_context(self._outbound.image(url))
            yield

    def _ready(self) -> tuple[Decoders, Engine]:
        if self._decoders is None or self._engine is None:
            raise NotInstalled("this process manages the appliance and serves no images")
        return self._decoders, self._engine


async def each(subjects: Sequence[S], act: Callable[[S], Awaitable[T]]) -> list[T | ApplianceError]:
    """`act` on every subject at once: its result or its refusal, in the order of the subjects.

    Raises the first refusal when all failed for reasons that are not theirs (queues, workers).
    """

    async def settle(subject: S) -> T | ApplianceError:
        try:
            return await act(subject)
        except ApplianceError as refusal:
            return refusal

    if len(subjects) == 1:  # most calls: no task of its own is needed
        outcomes = [await settle(subjects[0])]
    else:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(settle(subject)) for subject in subjects]
        outcomes = [task.result() for task in tasks]
    if outcomes and all(isinstance(outcome, _OURS) for outcome in outcomes):
        first = outcomes[0]
        assert isinstance(first, ApplianceError)
        raise first
    return outcomes


def images(call: Call) -> list[Record]:
    """The 1 to 10 records of a call, each with an `_id`. Raises InvalidInput for any other number."""
    records = call.payload.records
    if not records or len(records) > MAX_IMAGES:
        raise InvalidInput(f"records: 1 to {MAX_IMAGES} are expected")
    for record in records:
        record.ensure_id()
    return records


def answer(call: Call, outcomes: Sequence[tuple[Record, Upright | ApplianceError]]) -> Answer:
    """The cloud's envelope: 200 even when records were refused, each says so in its `_status`."""
    for record, outcome in outcomes:
        if isinstance(outcome, ApplianceError):
            record.fields["_status"] = status_of(outcome, call.id)
        else:
            record.fields |= {"_width": outcome.width, "_height": outcome.height}
            record.fields["_status"] = status(200, "OK", call.id)
    return Answer(
        call.payload.fields
        | {
            "records": [record.fields for record, _ in outcomes],
            "status": status(200, "OK", call.id),
            "statistics": {"processing time": call.elapsed},
        }
    )
