"""Dominant colours: records with images in, the same records with their colours out. No model, no bundle."""

import asyncio
from dataclasses import dataclass

import numpy as np

from appliance.api.answers import Answer
from appliance.api.call import Call
from appliance.api.payload import Record
from appliance.api.vision import Vision, answer, each, images
from appliance.recognition.colours import Colour, dominant, name
from appliance.recognition.decode import Decoded
from appliance.recognition.preprocessing import Preprocessing

# Enough for any share that is told (2 % are 328 pixels), small enough for a few milliseconds.
_SMALL = Preprocessing(size=128, fit="stretch")


@dataclass(frozen=True)
class _Seen:
    told: dict[str, object]
    width: int
    height: int


class Colours:
    """The handlers of `dom_colors/generic/v2` and `dom_colors/product/v2`."""

    def __init__(self, vision: Vision) -> None:
        self._vision = vision

    async def generic(self, call: Call) -> Answer:
        """`_dominant_colors` of each image, background and all."""
        return await self._see(call, product=False)

    async def product(self, call: Call) -> Answer:
        """`_dominant_colors` of what stands before the background of each image."""
        return await self._see(call, product=True)

    async def _see(self, call: Call, *, product: bool) -> Answer:
        call.check_all_tasks()
        vision = self._vision.of(call.customer)

        async def see(record: Record) -> _Seen:
            decoded = await vision.decode(record, _SMALL)
            with call.measures.stage("infer"):
                return await asyncio.to_thread(_seen, decoded, product)

        records = images(call)
        outcomes = list(zip(records, await each(records, see), strict=True))
        for record, outcome in outcomes:
            if isinstance(outcome, _Seen):
                record.fields["_dominant_colors"] = outcome.told
        return answer(call, outcomes)


def _seen(decoded: Decoded, product: bool) -> _Seen:
    colours = dominant(np.asarray(decoded.pixels), product=product)
    return _Seen(_told(colours), decoded.width, decoded.height)


def _told(colours: list[Colour]) -> dict[str, object]:
    """The cloud's five lists, parallel but for Pantone's names, which are proprietary: theirs is empty."""
    return {
        "rgb_colors": [list(colour.rgb) for colour in colours],
        "rgb_hex_colors": ["#" + bytes(colour.rgb).hex() for colour in colours],
        "percentages": [colour.share for colour in colours],
        "color_names": [name(colour.rgb) for colour in colours],
        "color_names_pantone": [],
    }
