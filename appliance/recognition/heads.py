"""Heads: customers' own classifiers and taggers over the features of a shared, frozen backbone.

One batched pass of the backbone serves the heads of all customers at once; a head itself is a matrix product.
Whoever keeps heads (training does) hands them out by `Heads`; nobody else's are ever found.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from appliance.accounts.customers import CustomerId
from appliance.errors import InvalidInput
from appliance.recognition.bundle import Bundle, TaskId
from appliance.recognition.manifest import Label

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Head:
    """logits = weights @ feature + bias; `feature` is the output of the backbone `backbone` (NAME@VERSION).

    `weights` are float32 (classes, length of the feature), `bias` float32 (classes). Raises InvalidInput for
    numbers that are none or do not fit each other.
    """

    owner: CustomerId
    task: TaskId
    version: str
    kind: Literal["classifier", "tagger"]
    backbone: str
    feature: str
    weights: Floats
    bias: Floats
    labels: tuple[Label, ...]
    threshold: float = 0.0

    def __post_init__(self) -> None:
        classes = len(self.labels)
        fits = self.weights.ndim == 2 and len(self.weights) == classes and self.bias.shape == (classes,)
        if not classes or not fits:
            raise InvalidInput(
                f"head: {classes} labels, weights {self.weights.shape}, bias {self.bias.shape}"
            )
        if not (np.isfinite(self.weights).all() and np.isfinite(self.bias).all()):
            raise InvalidInput("head: a weight is no finite number")

    def fits(self, backbone: Bundle) -> bool:
        """Whether the backbone has the feature that the head was made for."""
        return backbone.outputs.get(self.feature) == (self.weights.shape[1],)

    def logits(self, feature: Floats) -> Floats:
        """The head's answer to one image's feature, float32 (classes)."""
        answer: Floats = self.weights @ feature + self.bias
        return answer


class Heads(Protocol):
    """Where a customer's heads come from."""

    async def find(self, customer: CustomerId, task: TaskId, version: str | None) -> Head | None:
        """The customer's own head of this task, its version in production unless one is asked for."""
        ...


class NoHeads:
    """Nobody has trained one."""

    async def find(self, customer: CustomerId, task: TaskId, version: str | None) -> Head | None:  # noqa: ARG002
        return None
