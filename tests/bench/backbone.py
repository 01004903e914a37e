"""The starter backbone earns its place: the original's answers, labels, near-duplicates, digits, its cost."""

import base64
import io
import json
import statistics
import tempfile  # noqa: TID251 - the bundle is built into a folder of its own; no image is written
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from appliance.recognition import starter
from appliance.recognition.decode import decode
from appliance.recognition.preprocessing import Preprocessing
from demo.photos import PHOTOGRAPHS, file_of
from tests.bench.report import Report

GOLDEN = Path(__file__).parents[1] / "unit/recognition/golden_efficientnet_lite0.json"
LABELS = {
    "chelsea": {"tabby cat", "a cat having a striped coat", "Egyptian Mau"},
    "coffee": {"espresso"},
    "motorcycle": {"moped"},
    "flower": {"daisy"},
    "china": {"palace"},
}
SIDE, STRIDE, LEAST_CONTRAST = 128, 100, 12.0
BATCH = 8
VECTORS = ["logits", "embedding", "pooled", "detail"]

Pixels = NDArray[np.uint8]
Rows = NDArray[np.float32]


def run(report: Report) -> None:
    """Build the bundle and measure it on the CPU; images go through the appliance's own decoder."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        started = time.process_time()
        starter.build("efficientnet-lite0", bundle)
        report.figure("build the bundle", time.process_time() - started, "CPU s")
        session = _session((bundle / "model.onnx").read_bytes())
        _original(report, session)
        _labels(report, session, (bundle / "labels.txt").read_text().splitlines())
        _near_duplicates(report, session)
        _digits(report, session)
        _costs(report, session, _session(_classifier_only(bundle / "model.onnx")))


def _session(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _seen(session: Any, images: Iterable[Pixels]) -> dict[str, Rows]:
    every = np.stack([*images])
    starts = range(0, len(every), BATCH)
    batches = [session.run(VECTORS, {"images": every[start : start + BATCH]}) for start in starts]
    return {
        name: np.concatenate(rows) for name, rows in zip(VECTORS, zip(*batches, strict=True), strict=True)
    }


def _decoded(encoded: bytes) -> Pixels:
    return np.asarray(decode(encoded, Preprocessing(), max_pixels=10**7, max_side=10**4).pixels)


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _original(report: Report, session: Any) -> None:
    differences = []
    for name, outputs in json.loads(GOLDEN.read_text())["inputs"].items():
        seen = _seen(session, [_golden_input(name)])
        for output, encoded in outputs.items():
            golden = np.frombuffer(base64.b64decode(encoded), "<f4")
            differences.append(np.abs(seen[output][0] - golden).max())
    note = "largest of logits, pooled and detail, 4 pictures"
    report.figure("difference to PyTorch", max(differences), "", at_most=1e-4, note=note)


def _golden_input(name: str) -> Pixels:
    """As tests/unit/recognition/test_starter_model.py has them."""
    if name == "pattern":
        row, column = np.arange(224)[:, None], np.arange(224)[None, :]
        planes = [(7 * row + 3 * column) % 256, row * column % 256, (row * row + 5 * column) % 256]
        return np.stack(planes, -1).astype(np.uint8)
    with Image.open(file_of(name)) as image:
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        return np.asarray(image.convert("RGB").crop((left, top, left + 224, top + 224)))


def _labels(report: Report, session: Any, names: list[str]) -> None:
    right, best = 0, []
    for photograph, labels in LABELS.items():
        (logits,) = _seen(session, [_decoded(file_of(photograph).read_bytes())])["logits"]
        order = [names[index] for index in np.argsort(-logits)]
        rank = 1 + min(order.index(label) for label in labels)
        right += rank <= 3
        best.append(f"{photograph} {rank}")
    note = "rank of the label: " + ", ".join(best)
    report.figure("photographs with their label in the top 3", right, "of 5", at_least=5, note=note)


def _crops() -> Iterator[Image.Image]:
    for name in PHOTOGRAPHS:
        with Image.open(file_of(name)) as opened:
            image = opened.convert("RGB")
        for top in range(0, image.height - SIDE + 1, STRIDE):
            for left in range(0, image.width - SIDE + 1, STRIDE):
                yield image.crop((left, top, left + SIDE, top + SIDE))


def _altered(crop: Image.Image, margin: float) -> bytes:
    """Cropped by `margin` of the side at each edge, half the size, 20 % brighter, JPEG 40."""
    edge = round(SIDE * margin)
    inner = crop.crop((edge, edge, SIDE - edge, SIDE - edge))
    half = inner.resize((inner.width // 2, inner.height // 2), Image.Resampling.BICUBIC)
    return _encoded(ImageEnhance.Brightness(half).enhance(1.2), "JPEG", quality=40)


def _near_duplicates(report: Report, session: Any) -> None:
    crops = [*_crops()]
    contrast = np.array([np.asarray(crop.convert("L")).std() for crop in crops])
    judged = np.flatnonzero(contrast >= LEAST_CONTRAST)
    stored = _seen(session, [_decoded(_encoded(crop, "PNG")) for crop in crops])["embedding"]
    queries = {
        margin: _seen(session, [_decoded(_altered(crop, margin)) for crop in crops])["embedding"]
        for margin in (0.05, 0.1)
    }
    name = "near-duplicate recall@1"
    report.figure(f"{name}, crops in the trial", len(judged), "crops", at_least=100)
    mild, hard = queries[0.05], queries[0.1]
    note = "cropped to 90 % of the side"
    report.figure(name, _recall(stored[judged], mild[judged]), "", at_least=0.95, note=note)
    report.figure(f"{name}, all crops", _recall(stored, mild), "", note=f"{len(crops)}, sky and borders too")
    note = "cropped by 10 % at each edge, to 80 % of the side"
    report.figure(f"{name}, harder", _recall(stored[judged], hard[judged]), "", note=note)


def _recall(stored: Rows, queries: Rows) -> float:
    nearest = (queries @ stored.T).argmax(axis=1)
    return float((nearest == np.arange(len(stored))).mean())


def _digits(report: Report, session: Any) -> None:
    digits = load_digits()
    levels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    seen = _seen(session, [_decoded(_encoded(Image.fromarray(level), "PNG")) for level in levels])
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    for output, bound in (("detail", 0.98), ("embedding", None), ("pooled", None)):
        name = f"digits, linear probe on {output}"
        in_order = cross_val_score(probe, seen[output], digits.target, cv=5).mean()
        report.figure(name, in_order, "", at_least=bound, note="5-fold in the set's order: by writer")
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        shuffled = cross_val_score(probe, seen[output], digits.target, cv=folds).mean()
        report.figure(f"{name}, shuffled", shuffled, "", at_least=bound, note="5-fold")


def _costs(report: Report, session: Any, classifier: Any) -> None:
    image = _decoded(file_of("coffee").read_bytes())[None]
    every, bare = [], []
    for _ in range(30):
        every.append(_cpu_milliseconds(session, image))
        bare.append(_cpu_milliseconds(classifier, image))
    note = "one thread, batch 1, all outputs"
    report.figure("bare session", statistics.median(every), "CPU ms an image", note=note)
    ratio = statistics.median(mine / theirs for mine, theirs in zip(every, bare, strict=True))
    note = "the session against the same network with logits alone"
    report.figure("cost of the outputs beside logits", ratio, "x", at_most=1.05, note=note)


def _cpu_milliseconds(session: Any, image: Pixels, runs: int = 5) -> float:
    started = time.process_time()
    for _ in range(runs):
        session.run(None, {"images": image})
    return (time.process_time() - started) / runs * 1000


def _classifier_only(path: Path) -> bytes:
    model = onnx.load(path)
    outputs = model.graph.output
    logits = next(output for output in outputs if output.name == "logits")
    del outputs[:]
    outputs.append(logits)
    serialised: bytes = model.SerializeToString()
    return serialised
