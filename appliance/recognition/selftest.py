"""Whether a model sees on this device what it saw at its maker's: an image of its own, the answer known."""

import asyncio
from typing import Protocol

import numpy as np

from appliance.errors import InvalidInput
from appliance.recognition.bundle import Bundle
from appliance.recognition.decoders import Decoders
from appliance.recognition.devices import Outputs


class Infers(Protocol):
    """The engine, or a trial."""

    async def infer(self, bundle: Bundle, pixels: memoryview, outputs: tuple[str, ...], /) -> Outputs: ...


async def check(bundle: Bundle, decoders: Decoders, where: Infers) -> None:
    """Nothing for a bundle without a self-test; the model must be loaded.

    Raises InvalidInput when the answer is another one, and whatever decoders and engine or trial raise.
    """
    test = bundle.selftest
    if test is None:
        return
    image = await asyncio.to_thread((bundle.folder / test.image).read_bytes)
    decoded = await decoders.decode(image, bundle.preprocessing)
    values = (await where.infer(bundle, decoded.pixels, (test.output,)))[test.output].reshape(-1)
    expected = np.asarray(test.expected, np.float32)
    if len(values) < len(expected):
        raise InvalidInput(f"self-test: {test.output} has {len(values)} values, {len(expected)} are expected")
    given = values[: len(expected)]
    apart = np.abs(given - expected) / np.maximum(np.abs(expected), 1)
    if not (apart <= test.tolerance).all():  # NaN is never within
        worst = int(np.nanargmax(np.where(np.isnan(apart), np.inf, apart)))
        raise InvalidInput(
            f"self-test: value {worst} of {test.output} is {given[worst]:.6g} and not {expected[worst]:.6g}"
        )
