"""Whether a model sees on this device what it saw at its maker's: an image of its own, the answer known."""

import asyncio
from typing import Protocol

import numpy as np

from appliance.errors import Declined, InvalidInput, WorkerLost
from appliance.recognition.bundle import Bundle
from appliance.recognition.decoders import Decoders
from appliance.recognition.devices import Outputs
from appliance.recognition.engine import Engine


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


async def serve(bundle: Bundle, decoders: Decoders, engine: Engine) -> None:
    """Have the engine serve an installed bundle; one that it did not serve is checked once loaded.

    Raises Declined or WorkerLost where that cannot be; it is left out then, and `engine.fault` tells why.
    """
    served = engine.serves(bundle)
    try:
        await engine.load(bundle)
        if not served:
            await check(bundle, decoders, engine)
    except (Declined, WorkerLost) as refusal:
        if not served:
            await engine.unload(bundle, because=str(refusal))
        raise
