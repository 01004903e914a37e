"""Which graphs are merged when the tail is sealed, as a pure function."""

from math import comb, log2

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.search import tiers

PORTION = 100


def sealed(segments: list[list[int]], tail: int) -> list[list[int]]:
    """One more portion sealed: `segments` hold how often each of their portions was built."""
    kept = tiers.kept([PORTION * len(one) for one in segments], tail, PORTION)
    merged = [times + 1 for one in segments[kept:] for times in one]
    return [*segments[:kept], [*merged, 1]]


def test_portions_are_built_seldom_and_never_in_more_than_four_graphs() -> None:
    segments: list[list[int]] = []
    most = 0
    for count in range(1, 1001):
        segments = sealed(segments, PORTION)
        assert len(segments) <= tiers.MOST
        assert sum(map(len, segments)) == count
        most = max(most, *(times for one in segments for times in one))
        assert comb(tiers.MOST + most - 1, tiers.MOST) <= count  # no way is cheaper
    assert most == 10


def test_the_first_graphs_by_hand() -> None:
    layouts, segments = [], list[list[int]]()
    for _ in range(10):
        segments = sealed(segments, PORTION)
        layouts.append([len(one) for one in segments])
    assert layouts[:5] == [[1], [1, 1], [1, 1, 1], [1, 1, 1, 1], [5]]
    assert layouts[5:] == [[5, 1], [5, 1, 1], [5, 1, 1, 1], [5, 4], [5, 4, 1]]


@given(st.lists(st.tuples(st.integers(PORTION, 20 * PORTION), st.floats(0, 0.5)), min_size=1, max_size=200))
@settings(derandomize=True, deadline=None)
def test_whatever_comes_and_goes_there_are_four_and_little_is_built_again(
    steps: list[tuple[int, float]],
) -> None:
    """Tails of any size, and a graph that shrinks where its dead are left out."""
    sizes: list[int] = []
    came = built = 0
    for tail, lost in steps:
        kept = tiers.kept(sizes, tail, PORTION)
        assert kept <= len(sizes)
        sizes = [*sizes[:kept], sum(sizes[kept:]) + tail]
        assert len(sizes) <= tiers.MOST
        came += tail
        built += sizes[-1]
        if lost > 0.2:
            shrunk = int(sizes[0] * (1 - lost))
            came += sizes[0] - shrunk  # room for as many new ones
            sizes[0] = max(1, shrunk)
    assert built <= came * (2 + log2(1 + came / PORTION))
