"""Image matching without a collection: perceptual hashes of the images that came with the call. No model.

What is stored of images in a collection of hashes is served by the search routes under the same prefix.
"""

from dataclasses import dataclass
from functools import partial

from appliance.accounts.customers import CustomerId
from appliance.api.answers import Answer
from appliance.api.call import Call
from appliance.api.descriptors import BITS, Descriptors
from appliance.api.payload import Record
from appliance.api.projection import EVERYTHING, wanted
from appliance.api.similarity_answers import answer, found_code, query_of, skipped
from appliance.api.vision import answer as seen_answer
from appliance.api.vision import each, images
from appliance.errors import ApplianceError, InvalidInput
from appliance.recognition import hashing
from appliance.search.records import Metadata

HASH = "phash"


@dataclass(frozen=True)
class Hashed:
    """An image's hash, and its upright size in pixels."""

    bits: hashing.Bits
    width: int
    height: int


class ImageMatching:
    """The handlers of `image_matching/v2` that need no collection.

    Their hashes answer no task, so that a token with a list of tasks gets none: Forbidden.
    """

    def __init__(self, descriptors: Descriptors) -> None:
        self._descriptors = descriptors

    async def visual_hash(self, call: Call) -> Answer:
        """`_visual_hash` of each image, 16 hexadecimal digits."""
        _check(call)
        outcomes = await self._hashed(call)
        for record, outcome in outcomes:
            if isinstance(outcome, Hashed):
                record.fields |= {"_visual_hash": hashing.text(outcome.bits), "_hash_type": HASH}
        return seen_answer(call, outcomes)

    async def rank_images(self, call: Call) -> Answer:
        """The records in order of how many bits of their hashes differ from that of the `query_record`."""
        _check(call)
        query = query_of(call)
        projection = wanted(call.payload, EVERYTHING)
        bits = (await self._hash(query, call.customer)).bits
        outcomes = await self._hashed(call)
        found = [
            (hashing.differing(bits, outcome.bits), record)
            for record, outcome in outcomes
            if isinstance(outcome, Hashed)
        ]
        found.sort(key=lambda pair: pair[0])
        answers = [projection.of(record.fields) for _, record in found]
        left_out = _left_out(call, outcomes)
        distances = [distance for distance, _ in found]
        return answer(call, found_code(200, answers, left_out), answers, left_out, answer_distances=distances)

    async def remove_duplicates(self, call: Call) -> Answer:
        """The records without those that look like an earlier one, which has them in its `_duplicates`."""
        _check(call)
        projection = wanted(call.payload, EVERYTHING)
        limit = call.payload.number("max_distance", BITS.near, hashing.BITS)
        kept: list[tuple[hashing.Bits, Metadata, list[Metadata]]] = []
        outcomes = await self._hashed(call)
        for record, outcome in outcomes:
            if not isinstance(outcome, Hashed):
                continue
            shown = projection.of(record.fields)
            for bits, _, duplicates in kept:
                if hashing.differing(bits, outcome.bits) <= limit:
                    duplicates.append(shown)
                    break
            else:
                kept.append((outcome.bits, shown, []))
        answers = [shown | {"_duplicates": duplicates} for _, shown, duplicates in kept]
        left_out = _left_out(call, outcomes)
        return answer(call, found_code(200, answers, left_out), answers, left_out)

    async def _hashed(self, call: Call) -> list[tuple[Record, Hashed | ApplianceError]]:
        records = images(call)
        hashed = partial(self._hash, customer=call.customer)
        return list(zip(records, await each(records, hashed), strict=True))

    async def _hash(self, record: Record, customer: CustomerId) -> Hashed:
        bits, decoded = await self._descriptors.hash(record, customer)
        return Hashed(bits, decoded.width, decoded.height)


def _check(call: Call) -> None:
    call.check_all_tasks()
    if call.payload.text("hash_type") not in {None, HASH}:
        raise InvalidInput(f"hash_type: {HASH} is what there is")


def _left_out(call: Call, outcomes: list[tuple[Record, Hashed | ApplianceError]]) -> list[Metadata]:
    return [skipped(call, record, why) for record, why in outcomes if isinstance(why, ApplianceError)]
