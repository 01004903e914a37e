"""From logits to labels."""

import numpy as np
import pytest

from appliance.recognition.bundles import Label
from appliance.recognition.tasks import ranked


def labels(count: int) -> list[Label]:
    return [Label(f"id-{index}", f"name-{index}") for index in range(count)]


def test_probabilities_are_the_softmax_of_all_classes() -> None:
    logits = np.array([1.0, 3.0, -2.0, 0.5], np.float32)
    expected = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum()
    answer = ranked(logits, labels(4))
    assert [label.name for label in answer] == ["name-1", "name-0", "name-3", "name-2"]
    assert [label.prob for label in answer] == pytest.approx(sorted(expected, reverse=True), abs=1e-12)
    assert sum(label.prob for label in answer) == pytest.approx(1)


def test_equals_stay_in_order_and_the_rest_is_cut() -> None:
    answer = ranked(np.zeros(1000, np.float32), labels(1000))
    assert [label.id for label in answer] == [f"id-{index}" for index in range(100)]
    assert [label.prob for label in answer] == pytest.approx([0.001] * 100)


@pytest.mark.parametrize("scale", [1e3, 1e4, 3e38])
def test_extreme_logits_neither_overflow_nor_vanish(scale: float) -> None:
    answer = ranked(np.array([-scale, 0, scale], np.float32), labels(3))
    assert answer[0].name == "name-2"
    assert answer[0].prob == pytest.approx(1)
    assert all(0 <= label.prob <= 1 for label in answer)


def test_labels_must_fit_the_logits() -> None:
    with pytest.raises(ValueError, match="5"):
        ranked(np.zeros(5, np.float32), labels(4))
