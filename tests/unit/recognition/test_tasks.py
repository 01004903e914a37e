"""From a model's outputs to labels and objects."""

import time
from typing import Any

import numpy as np
import pytest

from appliance.recognition.bundles import Label
from appliance.recognition.preprocessing import Preprocessing, window
from appliance.recognition.tasks import MOST_OBJECTS, Detection, detected, ranked, tagged


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


def test_tags_are_true_each_for_itself() -> None:
    answer = tagged(np.array([0.0, 3.0, -3.0, 2.0], np.float32), labels(4), threshold=0.5)
    assert [label.name for label in answer] == ["name-1", "name-3", "name-0"]
    assert [label.prob for label in answer] == pytest.approx([1 / (1 + np.exp(-x)) for x in (3, 2, 0)])
    assert len(tagged(np.zeros(30, np.float32), labels(30), 20)) == 20


@pytest.mark.parametrize("scale", [1e3, 3e38])
def test_extreme_logits_of_tags(scale: float) -> None:
    answer = tagged(np.array([-scale, scale], np.float32), labels(2))
    assert [label.prob for label in answer] == [1, 0]


WHOLE = window(Preprocessing(100, "stretch"), 100, 100)


def objects(boxes: object, scores: object, classes: object, **more: Any) -> list[Detection]:
    outputs = {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "scores": np.array(scores, np.float32),
        "classes": np.array(classes, np.float32),
    }
    options: dict[str, Any] = {"seen": WHOLE, "keep": 0.3}
    return detected(outputs, labels(3), **(options | more))


def test_objects_come_best_first_and_only_the_probable_ones() -> None:
    found = objects([[0, 0, 10, 10], [20, 20, 60, 70], [1, 1, 9, 9]], [0.5, 0.9, 0.29], [0, 2, 1])
    assert [(one.name, one.bound_box) for one in found] == [
        ("name-2", (20, 20, 60, 70)),
        ("name-0", (0, 0, 10, 10)),
    ]
    assert found[0].prob == pytest.approx(0.9)
    assert found[0].area == pytest.approx(0.2)
    assert found[0].id == "id-2"


def test_what_overlaps_a_better_one_of_its_class_is_dropped() -> None:
    boxes = [[0, 0, 40, 40], [2, 0, 42, 40], [2, 0, 42, 40], [0, 0, 40, 10]]
    found = objects(boxes, [0.9, 0.8, 0.7, 0.6], [0, 0, 1, 0], overlap=0.5)
    assert [one.prob for one in found] == pytest.approx([0.9, 0.7, 0.6])
    assert len(objects(boxes, [0.9, 0.8, 0.7, 0.6], [0, 0, 1, 0])) == 4


def test_suppression_is_greedy() -> None:
    """The second falls to the first, and so spares the third, which overlaps the second alone."""
    boxes = [[0, 0, 30, 10], [10, 0, 40, 10], [20, 0, 50, 10]]
    found = objects(boxes, [0.9, 0.8, 0.7], [0, 0, 0], overlap=0.4)
    assert [one.bound_box[0] for one in found] == [0, 20]


def test_ten_thousand_candidates_cost_no_more_than_a_thousand() -> None:
    """As an SSD hands them on, asked with `keep_prob` 0."""
    generator = np.random.default_rng(7)
    corners = generator.uniform(0, 50, (10_000, 2))
    boxes = np.hstack([corners, corners + generator.uniform(1, 50, (10_000, 2))])
    scores, kinds = generator.uniform(0.001, 1, 10_000), generator.integers(0, 3, 10_000)
    before = time.thread_time()
    found = objects(boxes, scores, kinds, keep=0.0, overlap=0.99)
    assert time.thread_time() - before < 0.5
    assert len(found) == MOST_OBJECTS
    assert [one.prob for one in found] == sorted((one.prob for one in found), reverse=True)
    best = np.argsort(-scores)[:1000]
    assert found == objects(boxes[best], scores[best], kinds[best], keep=0.0, overlap=0.99)


@pytest.mark.parametrize(
    ("box", "score", "kind"),
    [
        ([0, 0, 10, 10], 0.9, 3),
        ([0, 0, 10, 10], 0.9, -1),
        ([0, 0, 10, 10], np.nan, 0),
        ([0, 0, np.nan, 10], 0.9, 0),
        ([0, 0, np.inf, 10], 0.9, 0),
        ([10, 10, 10, 40], 0.9, 0),
        ([40, 10, 10, 40], 0.9, 0),
        ([200, 200, 300, 300], 0.9, 0),
        ([0, 0, 10, 10], 0.9, np.nan),
    ],
)
def test_what_is_no_object_is_left_out(box: list[float], score: float, kind: float) -> None:
    assert objects([box, [5, 5, 50, 50]], [score, 0.5], [kind, 1]) == objects([[5, 5, 50, 50]], [0.5], [1])


def test_no_objects() -> None:
    assert objects([], [], []) == []


def test_boxes_are_those_of_the_image_as_it_was_sent() -> None:
    """200 x 100 on an input of 100 x 100 leaves 25 rows of grey above and below."""
    seen = window(Preprocessing(100, "letterbox"), 200, 100)
    (found,) = objects([[10, 30, 60, 75]], [0.9], [0], seen=seen)
    assert found.bound_box == (20, 10, 120, 100)
    assert found.area == pytest.approx(100 * 90 / 20_000)
    seen = window(Preprocessing(100), 300, 100)
    (found,) = objects([[0, 0, 100, 50]], [0.9], [0], seen=seen)
    assert found.bound_box == (100, 0, 200, 50)
