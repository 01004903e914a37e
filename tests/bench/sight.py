"""The parts that every way from an image to an answer needs, each alone in this process: decoding, session.

And the photographs that they are measured with.
"""

import io
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from appliance import config
from appliance.recognition.decode import decode
from appliance.recognition.preprocessing import Preprocessing
from appliance.recognition.session import CPU_BATCH
from demo import photos

SIZE = 224
THUMBNAIL, MEGAPIXEL, TWELVE_MEGAPIXELS = (320, 240), (1155, 866), (4000, 3000)
BATCHES = (1, CPU_BATCH)
LIMITS = config.Recognition()


@lru_cache
def photograph(size: tuple[int, int], *, kilobytes: int | None = None, progressive: bool = False) -> bytes:
    """A JPEG of this size, of quality 85 or of what comes nearest to `kilobytes`."""
    with Image.open(photos.file_of("china")) as opened:
        image = opened.convert("RGB").resize(size, Image.Resampling.LANCZOS)

    def encoded(quality: int) -> bytes:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, progressive=progressive)
        return file.getvalue()

    if kilobytes is None:
        return encoded(85)
    return min(
        (encoded(quality) for quality in range(30, 100)), key=lambda data: abs(len(data) - 1000 * kilobytes)
    )


def pixels(encoded: bytes) -> Any:
    """What a model sees of an image, by the appliance's own decoder."""
    seen = decode(encoded, Preprocessing(size=SIZE), max_pixels=LIMITS.max_pixels, max_side=LIMITS.max_side)
    return np.asarray(seen.pixels)


class Session:
    """onnxruntime on ready tensors: one thread, as the device worker has it."""

    def __init__(self, model: Path, encoded: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._ready = {batch: np.stack([pixels(encoded)] * batch) for batch in BATCHES}

    def run(self, batch: int) -> None:
        self._session.run(["logits"], {"images": self._ready[batch]})


def milliseconds(act: Callable[[], object], times: int) -> tuple[float, float]:
    """CPU and wall time of one call, of so many in a row."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(times):
        act()
    return (time.process_time() - cpu) * 1000 / times, (time.perf_counter() - wall) * 1000 / times
