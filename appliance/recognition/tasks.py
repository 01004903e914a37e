"""From a model's outputs to what a task answers."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.recognition.bundles import Label


class RankedLabel(msgspec.Struct, frozen=True):
    """A class and its probability, 0 to 1."""

    id: str
    name: str
    prob: float


def ranked(
    logits: npt.NDArray[np.floating[Any]], labels: Sequence[Label], limit: int = 100
) -> list[RankedLabel]:
    """The `limit` most probable labels, best first; equals stay in the order of `labels`.

    Softmax over all `logits` (n), one for each of the n labels, so the probabilities of all add up to 1.
    """
    if logits.shape != (len(labels),):
        raise ValueError(f"{logits.shape} logits for {len(labels)} labels")
    powers = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = powers / powers.sum()
    order = np.argsort(-probabilities, kind="stable")[:limit]
    return [RankedLabel(labels[index].id, labels[index].name, float(probabilities[index])) for index in order]
