import numpy as np
import pytest

from appliance.search import vectors as module
from appliance.search.vectors import Vectors, View
from tests.searching import brute_force, unit

DIM = 48


def filled(rng: np.random.Generator, count: int, batch: int = 37) -> tuple[Vectors, dict[int, np.ndarray]]:
    """Labels 0, 3, 6, ... in batches; and the same by label."""
    vectors = Vectors(DIM)
    by_label: dict[int, np.ndarray] = {}
    for low in range(0, count, batch):
        rows = unit(rng, min(batch, count - low), DIM)
        labels = [3 * n for n in range(low, low + len(rows))]
        vectors.append(labels, rows)
        by_label.update(zip(labels, rows, strict=True))
    return vectors, by_label


def assert_scan_is_exact(view: View, by_label: dict[int, np.ndarray], query: np.ndarray, k: int) -> None:
    ((labels, distances),) = view.scan(query[None], k)
    living = sorted(by_label)
    expected, measured = brute_force(np.stack([by_label[label] for label in living]), query, k)
    assert labels.tolist() == [living[position] for position in expected]
    np.testing.assert_allclose(distances, measured, atol=2e-7)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000])
def test_scan_is_exact_while_the_store_grows_and_rows_die(count: int) -> None:
    rng = np.random.default_rng(count)
    vectors, by_label = filled(rng, count)
    for label in rng.choice(sorted(by_label), count // 3, replace=False).tolist():
        assert vectors.kill(label)
        del by_label[label]
    assert vectors.count == len(by_label)
    for k in (1, 10, count + 5):
        assert_scan_is_exact(vectors.view(), by_label, unit(rng, 1, DIM)[0], k)


@pytest.mark.parametrize("copied", [1, 7 * DIM * 4, 256 << 10])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.5])
def test_scan_of_few_and_of_many_wanted_rows_is_exact(
    share: float, copied: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_GATHER_BYTES", copied)
    rng = np.random.default_rng(5)
    vectors, by_label = filled(rng, 1000)
    view = vectors.view()
    wanted = rng.random(1000) < share
    chosen = {3 * slot: by_label[3 * slot] for slot in np.flatnonzero(wanted).tolist()}
    query = unit(rng, 1, DIM)[0]
    ((labels, _),) = view.scan(query[None], 20, wanted)
    living = sorted(chosen)
    expected, _ = brute_force(np.stack([chosen[label] for label in living]), query, 20)
    assert labels.tolist() == [living[position] for position in expected]


def test_scan_from_a_slot_on_leaves_out_what_lies_before() -> None:
    rng = np.random.default_rng(6)
    vectors, by_label = filled(rng, 500)
    view = vectors.view()
    first = view.after(600)
    assert first == 201
    ((labels, _),) = view.scan(by_label[0][None], 500, first=first)
    assert sorted(labels.tolist()) == [3 * n for n in range(201, 500)]
    assert len(view.scan(by_label[0][None], 5, first=500)[0][0]) == 0


@pytest.mark.parametrize("nominated", [0, 7, 30, 200])
@pytest.mark.parametrize("queries", [1, 5, 40])
def test_what_is_nominated_is_measured_beside_what_is_scanned(queries: int, nominated: int) -> None:
    rng = np.random.default_rng(nominated)
    vectors, by_label = filled(rng, 400)
    for label in (3 * 250, 3 * 399):
        vectors.kill(label)
        del by_label[label]
    view, asked = vectors.view(), unit(rng, queries, DIM)
    beside = [np.sort(rng.choice(240, nominated, replace=False)) for _ in asked]
    for query, slots, (labels, distances) in zip(
        asked, beside, view.scan(asked, 10, None, 240, beside), strict=True
    ):
        among = [label for label in by_label if label >= 3 * 240 or label // 3 in slots]
        expected, measured = brute_force(np.stack([by_label[label] for label in among]), query, 10)
        assert labels.tolist() == [among[position] for position in expected]
        np.testing.assert_allclose(distances, measured, atol=2e-7)


def test_equal_vectors_come_in_order_of_their_labels() -> None:
    rng = np.random.default_rng(8)
    vectors, by_label = filled(rng, 300)
    twin = by_label[30]
    vectors.append([1000, 1001, 1002], np.stack([twin, twin, twin]))
    ((labels, distances),) = vectors.view().scan(twin[None], 3)
    assert labels.tolist() == [30, 1000, 1001]
    assert distances.tolist() == [0.0, 0.0, 0.0]


def test_a_killed_row_is_erased_from_memory() -> None:
    rng = np.random.default_rng(9)
    vectors, _ = filled(rng, 100)
    view = vectors.view()
    assert vectors.kill(42 * 3)
    assert not vectors.kill(42 * 3)
    assert not vectors.kill(1)
    assert not view.rows(np.array([42])).any()
    assert view.slots(np.array([123, 126, 129])).tolist() == [41, 43]


def test_a_view_does_not_see_later_rows() -> None:
    rng = np.random.default_rng(10)
    vectors, by_label = filled(rng, 10)
    view = vectors.view()
    vectors.append([9999], by_label[0][None])
    assert view.scan(by_label[0][None], 2)[0][0][0] == 0
    assert 9999 not in view.scan(by_label[0][None], 100)[0][0]


def test_expected_rows_take_what_was_said_and_more_may_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 64 * DIM * 4)
    rng = np.random.default_rng(7)
    rows = unit(rng, 350, DIM)
    vectors = Vectors(DIM, 300)
    for low in range(0, 300, 50):
        vectors.append(list(range(low, low + 50)), rows[low : low + 50])
    assert vectors.bytes == vectors.expected_bytes(300)
    vectors.append(list(range(300, 350)), rows[300:])
    for label in (63, 299, 300):
        assert vectors.kill(label)
    living = {n: row for n, row in enumerate(rows) if n not in {63, 299, 300}}
    assert_scan_is_exact(vectors.view(), living, unit(rng, 1, DIM)[0], 40)


def test_compaction_keeps_the_living_and_what_happened_meanwhile() -> None:
    rng = np.random.default_rng(11)
    vectors, by_label = filled(rng, 400)
    for label in range(0, 600, 3):
        vectors.kill(label)
        del by_label[label]
    view = vectors.view()
    compact, kept = vectors.without_dead(view)
    late = unit(rng, 200, DIM)
    vectors.append(list(range(5000, 5200)), late)
    by_label.update(zip(range(5000, 5200), late, strict=True))
    for label in (600, 1197, 5000, 5199):
        vectors.kill(label)
        del by_label[label]
    old_slots = compact.catch_up(vectors, view, kept)
    assert compact.count == vectors.count == len(by_label)
    assert compact.slots == 200 + 198
    assert compact.view().labels.tolist() == vectors.view().labels[old_slots].tolist()
    assert compact.view().labels[[1, -1]].tolist() == [603, 5198]
    assert_scan_is_exact(compact.view(), by_label, unit(rng, 1, DIM)[0], 30)


def test_nothing_is_found_in_nothing() -> None:
    view = Vectors(DIM).view()
    assert len(view.scan(np.ones((1, DIM), np.float32), 5)[0][0]) == 0
    assert len(view.slots(np.array([0, 1]))) == 0


@pytest.mark.parametrize("labels", [[7, 8, 9, 10], [7, 8, 10, 12], [7]], ids=["dense", "gaps", "one"])
def test_labels_are_found_whether_some_are_left_out_or_none(labels: list[int]) -> None:
    vectors = Vectors(1)
    vectors.append(labels, np.ones((len(labels), 1), np.float32))
    assert vectors.kill(labels[0])
    asked = np.array([-(2**63), -1, 6, *labels, 11, 13, 2**63 - 1])
    found = vectors.view().slots(asked)
    assert vectors.view().labels[found].tolist() == [one for one in asked.tolist() if one in labels[1:]]
