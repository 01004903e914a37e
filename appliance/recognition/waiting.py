"""Images that wait for a decoder: what is to become of each, and the lines they wait in."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from appliance.errors import Overloaded
from appliance.recognition import decoder
from appliance.recognition.decode import Decoded
from appliance.recognition.ingest import Encoded, Ingested
from appliance.recognition.preprocessing import Preprocessing
from appliance.recognition.turns import Shares, Turns
from appliance.workers import fail

# Shared memory costs nothing until it is touched: as large as any image may be, and as any that is kept may
# be with its thumbnail. Far more than the pixels that a model sees.
INPUT_BYTES = 64 * 1024 * 1024
OUTPUT_BYTES = INPUT_BYTES + 1024 * 1024
# Images of some milliseconds each.
SMALL_BYTES, SMALL_PIXELS = 256 * 1024, 1024 * 1024
# What is kept is decoded whole, and what comes as HEIC, TIFF or GIF is packed as PNG: of a grainy photograph
# with 50 megapixels that alone takes 7 s.
KEEPING = 5
# A photograph's of some megapixels, at reduced size: an image that costs its decoder more takes more of its
# customer's turns.
TURN_SECONDS = 0.05
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
_ENCODER = msgspec.msgpack.Encoder()
_LOOKED = msgspec.msgpack.Decoder(decoder.Looked)
_INGESTED = msgspec.msgpack.Decoder(decoder.Ingested)


@dataclass(slots=True, eq=False)
class Place:
    """Where an image, and what is made of it, lie in the memories of its decoder."""

    source: int
    length: int
    target: int
    produced: int


class Work(Protocol[T_co]):
    """What is done with an image."""

    @property
    def produced(self) -> int:
        """How many bytes of its output memory the decoder is given for it."""

    @property
    def effort(self) -> int:
        """How much CPU time it may take, in times of what decoding one image may."""

    def request(self, place: Place, *, last: bool) -> bytes:
        """What the decoder is asked. `last`: nothing is given to it together with this and behind it."""

    def result(self, answer: bytes, output: memoryview) -> Callable[[], T_co]:
        """How the result is made of its answer, while `output`, its memory of this place, holds.

        Raises msgspec.DecodeError where the answer is none.
        """


@dataclass(slots=True, frozen=True)
class Looking(Generic[T]):
    """Its pixels are decoded, and `then` makes the result of them."""

    preprocessing: Preprocessing
    then: Callable[[Decoded], T]

    @property
    def produced(self) -> int:
        return self.preprocessing.nbytes

    @property
    def effort(self) -> int:
        return 1

    def request(self, place: Place, *, last: bool) -> bytes:
        return _ENCODER.encode(
            decoder.Look(place.source, place.length, place.target, last, self.preprocessing)
        )

    def result(self, answer: bytes, output: memoryview) -> Callable[[], T]:
        told = _LOOKED.decode(answer)
        pixels = output.cast("B", self.preprocessing.shape)
        return lambda: self.then(Decoded(pixels, told.width, told.height, told.format))


@dataclass(slots=True, frozen=True)
class Ingesting:
    """It is made what may be kept. Has a decoder to itself, and all of its memory."""

    keep_metadata: bool

    @property
    def produced(self) -> int:
        # What a lost decoder had written of it nobody says: all is wiped.
        return OUTPUT_BYTES

    @property
    def effort(self) -> int:
        return KEEPING

    def request(self, place: Place, *, last: bool) -> bytes:  # noqa: ARG002 - it is always the last
        return _ENCODER.encode(decoder.Ingest(place.length, self.keep_metadata))

    def result(self, answer: bytes, output: memoryview) -> Callable[[], Ingested]:
        told = _INGESTED.decode(answer)
        end = told.image + told.thumbnail
        return lambda: Ingested(
            bytes(output[: told.image]),
            bytes(output[told.image : end]),
            told.format,
            told.width,
            told.height,
        )


# No repr: an image must not get into a message by accident.
@dataclass(slots=True, eq=False, repr=False)
class Job(Generic[T]):
    """One image, what is done with it, and who waits for the result."""

    data: Encoded
    work: Work[T]
    answer: asyncio.Future[T]
    customer: str | None = None
    patience: asyncio.TimerHandle | None = None  # runs while it waits for a decoder
    alone: bool = False  # it may be what its last decoder was lost over

    @property
    def small(self) -> bool:
        """Whether it looks as if it took a decoder some milliseconds, and has not lost one yet."""
        return len(self.data) <= SMALL_BYTES and self.work.produced <= SMALL_PIXELS and not self.alone


class Line:
    """Jobs in turns of their customers: at most `length` and, of more than one, `size` bytes of images.

    Where that is reached customers get in up to an equal share, see `Shares`. Who has waited for `seconds`
    gets Overloaded.
    """

    def __init__(self, length: int, size: int, seconds: float) -> None:
        self._seconds = seconds
        self._jobs = Turns[Job[Any]]()
        self._room, self._bytes = Shares(length), Shares(size)
        self._dear: set[str | None] = set()

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def first(self) -> Job[Any]:
        """Raises IndexError when nobody waits."""
        return self._jobs.first

    def check_room(self, customer: str | None = None) -> None:
        """Raises Overloaded when no more of this customer's may wait."""
        if not self._room.fits(customer):
            raise Overloaded(f"{len(self._jobs)} images wait to be decoded, as many as the queue holds")

    def join(self, job: Job[Any]) -> None:
        """Let a job wait behind the others of its customer. Raises Overloaded when it may not."""
        self.check_room(job.customer)
        if not self._bytes.fits(job.customer, len(job.data)):
            raise Overloaded("the images that wait to be decoded take as much memory as the queue may")
        self._jobs.append(job.customer, job)
        self._wait(job)

    def rejoin(self, job: Job[Any]) -> None:
        """Let a job wait before the others: it had its turn and is to have another."""
        self._jobs.put_first(job.customer, job)
        self._wait(job)

    def leave(self, job: Job[Any]) -> None:
        """It waits no more, if it did."""
        if job.patience is not None:
            job.patience.cancel()
            job.patience = None
            self._jobs.remove(job.customer, job)
            self._room.give(job.customer)
            self._bytes.give(job.customer, len(job.data))

    def charge(self, customer: str | None, seconds: float) -> None:
        """An image of this customer's took so much CPU time, which its next turns are taken for (`Turns`)."""
        turns = int(seconds / TURN_SECONDS)
        self._jobs.charge(customer, turns)
        (self._dear.add if turns else self._dear.discard)(customer)

    def shares(self, job: Job[Any]) -> bool:
        """Whether a decoder may be given a job together with others: a small one, of a customer whose last
        image cost little. Few bytes may unpack to many pixels, and who comes meanwhile waits for all of them.
        """
        return job.small and job.customer not in self._dear

    def fail(self, error: Exception) -> None:
        """Give an error to everyone who waits."""
        while self._jobs:
            job = self._jobs.first
            self.leave(job)
            fail(job.answer, error)

    def _wait(self, job: Job[Any]) -> None:
        self._room.take(job.customer)
        self._bytes.take(job.customer, len(job.data))
        job.patience = asyncio.get_running_loop().call_later(self._seconds, self._expire, job)

    def _expire(self, job: Job[Any]) -> None:
        self.leave(job)
        fail(job.answer, Overloaded(f"no decoder became free within {self._seconds:g} s"))
