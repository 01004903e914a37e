"""Ready vectors into a collection, in batches that are each durable: the same import again is its resume."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from appliance.accounts.audit import Actor, Event
from appliance.errors import ApplianceError, InvalidInput, StorageFailed, TooLarge, VolumeFull
from appliance.search.interchange import lines
from appliance.search.interchange.npy import Array
from appliance.search.opened import OpenCollection
from appliance.search.records import AnyVector, NewRecord

F = TypeVar("F", bound=ApplianceError)

MAX_HELD = 16 << 20
"""Of the JSON lines before an array that are in memory together, and one more line."""
MOST_REASONS = 100

_AT_ONCE = 256
"""Records of one batch: a commit's sync is a small part of it, and others' writes wait some milliseconds."""
_NUMBERS_AT_ONCE = 16 << 10
"""Of the vectors that are parsed and judged before others get their turn: some milliseconds."""
_FULL = "hard capacity exceeded"

Candidate = NewRecord | InvalidInput | None
"""What a line or a row is: a record, why it is none, or an empty line."""
Candidates = AsyncIterator[Sequence[Candidate]]


@dataclass(slots=True)
class Report:
    """What became of an import: `kept` records were there already, `reasons` has the first 100 refused.

    A reason comes with the number of its line or row, counted from 0.
    """

    inserted: int = 0
    replaced: int = 0
    kept: int = 0
    refused: int = 0
    reasons: list[tuple[int, str]] = field(default_factory=list)

    def refuse(self, place: int, why: str) -> None:
        """One more that was not stored."""
        self.refused += 1
        if len(self.reasons) < MOST_REASONS:
            self.reasons.append((place, why))


async def run(actor: Actor, collection: OpenCollection, candidates: Candidates, *, replace: bool) -> Report:
    """Store what can be stored; one whose id is there already is replaced, or else kept as it is.

    Raises what `candidates` raises; an InvalidInput says how much before it is stored, which is all of it.
    StorageFailed and VolumeFull, as of `OpenCollection.insert`, say so too: what earlier batches have stored
    stays. NotFound.
    """
    report, place, fault = Report(), 0, None
    waiting: list[tuple[int, NewRecord]] = []
    try:
        async for some in candidates:
            for candidate in some:
                if isinstance(candidate, InvalidInput):
                    report.refuse(place, str(candidate))
                elif candidate is not None and _accepted(collection, candidate, report, place):
                    waiting.append((place, candidate))
                place += 1
            while len(waiting) >= _AT_ONCE:
                await _store(actor, collection, waiting[:_AT_ONCE], report, replace=replace)
                del waiting[:_AT_ONCE]
            await asyncio.sleep(0)  # milliseconds each: others' turn
    except InvalidInput as error:
        fault = error
    await _store(actor, collection, waiting, report, replace=replace)
    if fault is not None:
        raise _after(fault, report)
    return report


async def of_lines(pieces: AsyncIterator[bytes], dim: int, most: int) -> Candidates:
    """Of JSON lines of up to `most` bytes, each with its vector."""
    async for some in lines.split(pieces, most):
        step = _at_once(dim)
        for low in range(0, len(some), step):
            yield [_of_line(line, dim, most) for line in some[low : low + step]]


async def of_array(pieces: AsyncIterator[bytes], dim: int, prefix: str) -> Candidates:
    """Of an array alone: the ids are the rows' numbers, from 0, behind `prefix`. Raises InvalidInput."""
    array, row = await Array.open(pieces, dim), 0
    async for block in array.blocks(_at_once(dim)):
        yield [NewRecord(f"{prefix}{row + place}", vector) for place, vector in enumerate(block)]
        row += len(block)


async def of_parts(files: AsyncIterator[tuple[str, AsyncIterator[bytes]]], dim: int, most: int) -> Candidates:
    """Of parts in turns: `records`, JSON lines without vectors, then `vectors`, an array with a row for each.

    Any number of pairs may come, so that no more than the lines of one is ever held. Raises InvalidInput for
    parts in another order, and where lines and rows are not as many; TooLarge for lines of more than 16 MiB.
    """
    named: list[bytes] | None = None
    async for name, content in files:
        if name == "records" and named is None:
            named = await _held(content, most)
        elif name == "vectors" and named is not None:
            array, row = await Array.open(content, dim), 0
            if array.rows != len(named):
                raise InvalidInput(f"vectors: {array.rows} rows for the {len(named)} lines before them")
            async for block in array.blocks(_at_once(dim)):
                some = zip(named[row : row + len(block)], block, strict=True)
                yield [_beside(line, vector) for line, vector in some]
                row += len(block)
            named = None
        else:
            raise InvalidInput("multipart: the parts records and vectors are expected in turns")
    if named is not None:
        raise InvalidInput("multipart: records without the vectors that belong to them")


def _at_once(dim: int) -> int:
    return max(1, _NUMBERS_AT_ONCE // dim)


async def _store(
    actor: Actor,
    collection: OpenCollection,
    batch: Sequence[tuple[int, NewRecord]],
    report: Report,
    *,
    replace: bool,
) -> None:
    if not batch:
        return
    store = collection.upsert if replace else collection.insert
    try:
        outcomes = await store(actor, [record for _, record in batch], event=Event.SEARCH_IMPORT)
    except (StorageFailed, VolumeFull) as error:
        raise _after(error, report) from None
    for (place, _), outcome in zip(batch, outcomes, strict=True):
        match outcome:
            case "inserted":
                report.inserted += 1
            case "replaced":
                report.replaced += 1
            case "duplicate":
                report.kept += 1
            case "full":
                report.refuse(place, _FULL)


def _after(fault: F, report: Report) -> F:
    """The same fault, which says what was stored before it."""
    stay = f"{report.inserted + report.replaced} records before that are stored, and stay"
    return type(fault)(f"{fault}; {stay}", told=f"{fault.told}; {stay}")


def _accepted(collection: OpenCollection, record: NewRecord, report: Report, place: int) -> bool:
    try:
        collection.check(record)
    except InvalidInput as error:
        report.refuse(place, str(error))
        return False
    return True


def _of_line(line: bytes | None, dim: int, most: int) -> Candidate:
    if line is None:
        return TooLarge(f"is longer than {most} bytes")
    if not line.strip():
        return None
    try:
        return lines.decode(line, dim)
    except InvalidInput as error:
        return error


def _beside(line: bytes, vector: AnyVector) -> Candidate:
    try:
        return lines.decode_beside(line, vector)
    except InvalidInput as error:
        return error


async def _held(content: AsyncIterator[bytes], most: int) -> list[bytes]:
    held = bytearray()
    async for piece in content:
        held += piece
        if len(held) > MAX_HELD + most:
            raise TooLarge(f"records: more than {MAX_HELD} bytes before an array; send several pairs")
    whole = bytes(held).split(b"\n")
    return whole if whole[-1] else whole[:-1]
