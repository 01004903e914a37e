"""What every peer's server does with an image, by the code that costs least: scaled decoding, one thread.

Runs in the peers' environments: nothing of the appliance can be imported here. The part of the image that is
seen, and what it is scaled from, are those of the appliance's own preprocessing.
"""

import base64
import io
import os
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

SIZE = 224
DRAFT = 252
MODEL = "BENCH_MODEL"  # the environment variable with the model's path


def session() -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(os.environ[MODEL], options, providers=["CPUExecutionProvider"])


def pixels(encoded: str) -> Any:
    """Of base64."""
    return decoded(base64.b64decode(encoded))


def decoded(data: bytes) -> Any:
    """The centred square of a JPEG as the model takes it."""
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as opened:
        opened.draft("RGB", (DRAFT, DRAFT))
        side = min(opened.size)
        left, top = (opened.width - side) // 2, (opened.height - side) // 2
        box = (left, top, left + side, top + side)
        return np.asarray(opened.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC, box))


def inferred(session: Any, images: Any) -> Any:
    """The logits of a batch."""
    return session.run(["logits"], {"images": images})[0]


def answer(logits: Any) -> dict[str, Any]:
    """The best class alone. The appliance answers with a hundred and their probabilities."""
    return {"best": int(logits.argmax())}
