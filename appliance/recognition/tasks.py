"""From a model's outputs to what a task answers."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.recognition.manifest import Label
from appliance.recognition.preprocessing import Window

Floats = npt.NDArray[np.floating[Any]]

MOST_OBJECTS = 300  # on one image
_MOST_CANDIDATES = 1000  # that suppression looks at: what it costs rises with candidates times objects


class RankedLabel(msgspec.Struct, frozen=True, gc=False):
    """A class and its probability, 0 to 1."""

    id: str
    name: str
    prob: float


class Detection(msgspec.Struct, frozen=True):
    """An object: its class, how probable it is, and where it lies in whole pixels of the upright image.

    `bound_box` is left, top, right, bottom; `area` its share of the image.
    """

    name: str
    id: str
    bound_box: tuple[int, int, int, int]
    prob: float
    area: float


def ranked(logits: Floats, labels: Sequence[Label], limit: int = 100) -> list[RankedLabel]:
    """The `limit` most probable labels, best first; equals stay in the order of `labels`.

    Softmax over all `logits` (n), one for each of the n labels, so the probabilities of all add up to 1.
    """
    powers = np.exp(logits.astype(np.float64) - np.maximum.reduce(logits))
    return _best(powers / np.add.reduce(powers), labels, limit)


def tagged(
    logits: Floats, labels: Sequence[Label], limit: int = 100, threshold: float = 0.0
) -> list[RankedLabel]:
    """The `limit` most probable labels of those with at least `threshold`, best first.

    The logistic function of each of the `logits` (n) alone: any number of labels may be true.
    """
    probabilities = 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))  # never overflows
    return [label for label in _best(probabilities, labels, limit) if label.prob >= threshold]


def _best(probabilities: npt.NDArray[np.float64], labels: Sequence[Label], limit: int) -> list[RankedLabel]:
    if probabilities.shape != (len(labels),):
        raise ValueError(f"{probabilities.shape} logits for {len(labels)} labels")
    if limit < len(labels):
        # Everything not below the last of the best: a few more where there are equals, in their order.
        ascending = probabilities.copy()
        ascending.partition(-limit)
        (chosen,) = (probabilities >= ascending[-limit]).nonzero()
        order = chosen[(-probabilities[chosen]).argsort(kind="stable")[:limit]]
    else:
        order = (-probabilities).argsort(kind="stable")
    best = zip(order.tolist(), probabilities[order].tolist(), strict=True)
    return [RankedLabel((label := labels[index]).id, label.name, probability) for index, probability in best]


def detected(
    outputs: Mapping[str, Floats],
    labels: Sequence[Label],
    seen: Window,
    *,
    keep: float,
    overlap: float = 1.0,
) -> list[Detection]:
    """The objects with a probability over `keep`, best first, equals in the order of the model.

    `outputs` are `boxes` (k, 4), `scores` (k) and `classes` (k) in pixels of the input; `seen` says where the
    image lies in it. What overlaps a better box of its class by more than `overlap` (intersection over union)
    is dropped, and so is what has no such label or no area within the image. At most MOST_OBJECTS, from the
    1,000 most probable candidates: 10 ms of CPU whatever k is.
    """
    boxes, scores, classes = (outputs[name].astype(np.float64) for name in ("boxes", "scores", "classes"))
    known = (scores > keep) & (classes >= 0) & (classes < len(labels)) & np.isfinite(boxes).all(axis=1)
    order = np.flatnonzero(known)
    boxes, scores, kinds = boxes[order], scores[order], classes[order].astype(np.int64)
    (across, down), (left, top, right, bottom) = seen.scale, seen.source
    boxes = (boxes - np.tile(seen.target[:2], 2)) * (across, down, across, down) + (left, top, left, top)
    boxes = np.rint(np.clip(boxes, (left, top, left, top), (right, bottom, right, bottom)))
    areas = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)
    best = np.argsort(-scores, kind="stable")
    best = best[areas[best] > 0][:_MOST_CANDIDATES]
    whole = seen.width * seen.height
    return [
        Detection(
            labels[kinds[index]].name,
            labels[kinds[index]].id,
            tuple(int(side) for side in boxes[index]),  # type: ignore[arg-type] # four of them
            min(float(scores[index]), 1.0),
            float(areas[index] / whole),
        )
        for index in _unsuppressed(best, boxes, areas, kinds, overlap)
    ]


def _unsuppressed(
    best: npt.NDArray[np.int64], boxes: Floats, areas: Floats, classes: npt.NDArray[np.int64], overlap: float
) -> list[int]:
    """Greedy non-maximum suppression within each class, of candidates that come best first."""
    kept: list[int] = []
    while best.size and len(kept) < MOST_OBJECTS:
        chosen, best = best[0], best[1:]
        kept.append(int(chosen))
        if overlap >= 1.0:
            continue
        shared = np.minimum(boxes[best, 2:], boxes[chosen, 2:]) - np.maximum(
            boxes[best, :2], boxes[chosen, :2]
        )
        common = np.prod(np.clip(shared, 0, None), axis=1)
        clashes = common > overlap * (areas[best] + areas[chosen] - common)
        best = best[~(clashes & (classes[best] == classes[chosen]))]
    return kept
