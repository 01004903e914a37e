"""Vectors of images for whoever has no request to answer: patiently, behind everybody who has one."""

import numpy as np
import numpy.typing as npt

from appliance.errors import Conflict, NotInstalled
from appliance.recognition import hashing
from appliance.recognition.bundles import Bundle, Bundles
from appliance.recognition.decode import Decoded
from appliance.recognition.decoders import Decoders, copied
from appliance.recognition.engine import Engine, Job, Priority

Vector = npt.NDArray[np.float32]


class Embedding:
    """Decodes, embeds and keeps nothing. A `backbone` is NAME@VERSION, or that of perceptual hashes."""

    def __init__(self, bundles: Bundles, decoders: Decoders, engine: Engine) -> None:
        self._bundles = bundles
        self._decoders = decoders
        self._engine = engine

    def check(self, backbone: str) -> None:
        """Raises Conflict when no vector of this backbone can be made here."""
        if backbone != hashing.PIN:
            self._bundle(backbone)

    async def vector(self, backbone: str, image: bytes) -> Vector:
        """Of an encoded image, of length 1. Raises as `check`, and what decoders and engine raise."""
        if backbone == hashing.PIN:
            decoded = await self._decoders.see(image, hashing.PREPROCESSING, copied, Priority.BULK)
            return hashing.vector(hashing.perceptual(np.asarray(decoded.pixels)))
        bundle = self._bundle(backbone)

        def start(decoded: Decoded) -> Job:
            return self._engine.start(bundle, decoded.pixels, ("embedding",), Priority.BULK)

        job = await self._decoders.see(image, bundle.preprocessing, start, Priority.BULK)
        return (await self._engine.outcome(job))["embedding"]

    def _bundle(self, backbone: str) -> Bundle:
        try:
            return self._bundles.backbone(backbone)
        except NotInstalled as missing:
            raise Conflict(
                f"the collection holds vectors of {backbone}, no other's can be compared with them: {missing}"
            ) from None
