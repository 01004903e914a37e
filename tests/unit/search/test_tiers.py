"""Which graphs are merged when the tail is sealed, as a pure function."""

from math import comb, log2

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.search import tiers

PORTION = 100


def sealed(segments: list[list[int]], tail: int, *, most: int = tiers.MOST) -> tuple[list[list[int]], int]:
    """With one more portion, until nothing is due: `segments` hold how often each of their portions was
    built. Also the most graphs that there were on the way.
    """
    highest = len(segments)
    while step := tiers.due([PORTION * len(one) for one in segments], tail, PORTION, most):
        together = [times + 1 for one in segments[step.kept :] for times in one]
        segments = [*segments[: step.kept], [*together, *([1] if step.tail else [])]]
        tail = 0 if step.tail else tail
        highest = max(highest, len(segments))
    return segments, highest


def test_portions_are_built_seldom_and_never_rest_in_more_than_four_graphs() -> None:
    segments: list[list[int]] = []
    most = 0
    for count in range(1, 1001):
        segments, highest = sealed(segments, PORTION)
        assert len(segments) <= tiers.MOST
        assert highest <= tiers.MOST + 1
        assert sum(map(len, segments)) == count
        most = max(most, *(times for one in segments for times in one))
        # No way is cheaper, but that a portion may be built by itself before a long merge.
        assert comb(tiers.MOST + most - 2, tiers.MOST) <= count
    assert most == 10


def test_the_first_graphs_by_hand() -> None:
    layouts, segments = [], list[list[int]]()
    for _ in range(10):
        segments, _ = sealed(segments, PORTION)
        layouts.append([len(one) for one in segments])
    assert layouts[:5] == [[1], [1, 1], [1, 1, 1], [1, 1, 1, 1], [5]]
    assert layouts[5:] == [[5, 1], [5, 1, 1], [5, 1, 1, 1], [5, 4], [5, 4, 1]]


def test_a_long_merge_leaves_the_tail_to_a_graph_of_its_own_that_comes_first() -> None:
    assert tiers.due([4 * PORTION], PORTION, PORTION) == tiers.Step(0, tail=True, long=False)
    sizes = [10 * PORTION, 4 * PORTION]
    assert tiers.due(sizes, PORTION, PORTION) == tiers.Step(2, tail=True, long=False)
    assert tiers.due([*sizes, PORTION], 0, PORTION) == tiers.Step(0, tail=False, long=True)
    assert tiers.due([*sizes, PORTION], PORTION - 1, PORTION) == tiers.Step(0, tail=False, long=True)
    assert tiers.due([15 * PORTION], PORTION - 1, PORTION) is None


def test_what_parts_cost_of_which_no_merge_is_due_makes_up_for_one_graph_in_thousands_of_searches() -> None:
    assert tiers.apart(1, 0) == 0
    assert 12_000 < tiers.building(20_000) / tiers.apart(4, 3616) < 13_000
    assert tiers.building(1_000_000) / tiers.apart(4, 0) > 1_000_000


def test_what_a_long_merge_leaves_behind_joins_the_others() -> None:
    """Two graphs that were built beside one of forty portions."""
    assert tiers.due([40 * PORTION, 10 * PORTION, 3 * PORTION], 0, PORTION) is None
    six = [20 * PORTION, 10 * PORTION, 5 * PORTION, 5 * PORTION, 2 * PORTION, PORTION]
    step = tiers.due(six, 0, PORTION)
    assert step is not None
    assert step.kept < tiers.MOST


@given(st.lists(st.tuples(st.integers(PORTION, 20 * PORTION), st.floats(0, 0.5)), min_size=1, max_size=200))
@settings(derandomize=True, deadline=None)
def test_whatever_comes_and_goes_there_are_four_and_little_is_built_again(
    steps: list[tuple[int, float]],
) -> None:
    """Tails of any size, and a graph that shrinks where its dead are left out."""
    sizes: list[int] = []
    came = built = 0
    for tail, lost in steps:
        came += tail
        left = tail
        while step := tiers.due(sizes, left, PORTION):
            assert step.kept <= len(sizes)
            sizes = [*sizes[: step.kept], sum(sizes[step.kept :]) + left * step.tail]
            left *= not step.tail
            built += sizes[-1]
        assert left == 0
        assert len(sizes) <= tiers.MOST
        if lost > 0.2:
            shrunk = int(sizes[0] * (1 - lost))
            came += sizes[0] - shrunk  # room for as many new ones
            sizes[0] = max(1, shrunk)
    assert built <= came * (3 + log2(1 + came / PORTION))
