import numpy as np
import pytest

from appliance.errors import InvalidInput
from appliance.search import exact
from tests.searching import brute_force, unit


def test_normalised_keeps_the_direction() -> None:
    given = np.array([3.0, 0.0, -4.0])
    made = exact.normalised(given, 3)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, [0.6, 0, -0.8], rtol=1e-6)
    assert given.tolist() == [3.0, 0.0, -4.0]


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
def test_normalised_takes_any_length_that_float32_holds(scale: float) -> None:
    vector = (np.array([1.0, 2.0, 2.0]) * scale).astype(np.float32)
    if scale == 1e-30:
        with pytest.raises(InvalidInput, match="is zero"):
            exact.normalised(vector, 3)
    else:
        np.testing.assert_allclose(exact.normalised(vector, 3), [1 / 3, 2 / 3, 2 / 3], rtol=1e-6)


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        (np.zeros(3, np.float32), "is zero"),
        (np.array([1, np.nan, 0], np.float32), "not finite"),
        (np.array([1, np.inf, 0], np.float32), "not finite"),
        (np.array([1e300, 1e300, 0]), "too large"),
        (np.ones(4, np.float32), r"3 numbers are needed, not shape \(4,\)"),
        (np.ones((1, 3), np.float32), "3 numbers"),
        (np.array(["1", "2", "3"]), "numbers are needed"),
        (np.array([1, 2, None]), "numbers are needed"),
        (np.ones(3, np.complex64), "numbers are needed"),
        ([[1.0], [1.0, 2.0]], "3 numbers are needed"),
    ],
)
def test_normalised_refuses(vector: object, reason: str) -> None:
    with pytest.raises(InvalidInput, match=f"query: .*{reason}"):
        exact.normalised(vector, 3, "query")


@pytest.mark.parametrize("k", [0, -1, 10_001, 10**9])
def test_k_is_bounded(k: int) -> None:
    with pytest.raises(InvalidInput, match="from 1 to 10000"):
        exact.check_k(k)


def test_contenders_include_all_that_rounding_may_have_moved() -> None:
    scores = np.array([0.5, 0.9, 0.9 - 1e-7, 0.1, 0.9], np.float32)
    assert exact.contenders(scores, 1, 512).tolist() == [1, 2, 4]
    assert exact.contenders(scores, 5, 512).tolist() == [0, 1, 2, 3, 4]


def test_distances_do_not_depend_on_where_a_row_lies() -> None:
    rng = np.random.default_rng(7)
    row, query = unit(rng, 1, 300)[0], unit(rng, 1, 300)[0]
    alone = exact.distances(row[None], query)[0]
    among = exact.distances(np.concatenate([unit(rng, 37, 300), np.tile(row, (100, 1))]), query)
    assert set(among[37:].tolist()) == {alone}


def test_distances_cover_the_range_of_1_minus_cosine() -> None:
    query = np.array([1, 0], np.float32)
    rows = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    assert exact.distances(rows, query).tolist() == [0.0, 1.0, 2.0]


def test_equal_distances_are_ordered_by_label() -> None:
    labels = np.random.default_rng(2).permutation(200)
    chosen, _ = exact.nearest(labels, np.repeat([0.5, 0.25], 100), 150)
    assert chosen.tolist() == sorted(labels[100:].tolist()) + sorted(labels[:100].tolist())[:50]


def test_rank_orders_and_measures() -> None:
    rng = np.random.default_rng(3)
    vectors, query = unit(rng, 20, 8) * 5, unit(rng, 1, 8)[0] * 0.1
    order, distances = exact.rank(query, list(vectors))
    expected, measured = brute_force(vectors, query, 20)
    assert order == expected
    np.testing.assert_allclose(distances, measured, atol=2e-7)


def test_rank_keeps_the_given_order_of_equals() -> None:
    one, other = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    assert exact.rank(one, [other, one, other, one]) == ([1, 3, 0, 2], [0.0, 0.0, 1.0, 1.0])
    assert exact.rank(one, []) == ([], [])


def test_rank_names_the_vector_it_refuses() -> None:
    with pytest.raises(InvalidInput, match="vector 1: is zero"):
        exact.rank(np.ones(2, np.float32), [np.ones(2, np.float32), np.zeros(2, np.float32)])


def test_a_distance_of_nothing_has_no_sign() -> None:
    unit_but_for_rounding = np.array([1.0, 3e-5], np.float32)  # 1 - cosine is -9e-10
    measured = exact.distances(unit_but_for_rounding[None], unit_but_for_rounding)
    assert measured.tolist() == [0.0]
    assert not np.signbit(measured).any()
