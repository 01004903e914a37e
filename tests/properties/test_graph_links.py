"""Links at rest: what is written is read back, and what could lead an engine astray is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import InvalidInput
from appliance.search.links import Links


@st.composite
def sound_links(draw: st.DrawFn) -> tuple[Links, int]:
    """Links and their m: any lists of nodes that reach the level."""
    size, m = draw(st.integers(1, 6)), draw(st.integers(2, 3))
    levels = np.array(draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)), np.uint8)

    def neighbours(level: int, most: int) -> list[int]:
        reach = np.flatnonzero(levels >= level).tolist()
        chosen = draw(st.lists(st.sampled_from(reach), max_size=most))
        return chosen + [-1] * (most - len(chosen))

    base = np.array([neighbours(0, 2 * m) for _ in range(size)], np.int32)
    upper = [neighbours(level, m) for top in levels.tolist() for level in range(1, top + 1)]
    entry = draw(st.sampled_from(np.flatnonzero(levels == levels.max()).tolist()))
    return Links(levels, base, np.array(upper, np.int32).reshape(-1, m), entry), m


def written(links: Links) -> bytes:
    return b"".join(links.pieces())


@settings(derandomize=True, max_examples=60, deadline=None)
@given(sound_links())
def test_what_is_written_is_read_back(made: tuple[Links, int]) -> None:
    links, m = made
    again = Links.read(written(links), len(links.levels), m)
    assert written(again) == written(links)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(sound_links(), st.data())
def test_other_numbers_are_the_same_graph(made: tuple[Links, int], data: st.DataObject) -> None:
    links, m = made
    size = len(links.levels)
    order = np.array(data.draw(st.permutations(range(size))))
    other = links.ordered(order)
    assert written(Links.read(written(other), size, m)) == written(other)
    assert order[other.entry] == links.entry
    for node in range(size):
        was = int(order[node])
        assert other.levels[node] == links.levels[was]
        here = [int(order[one]) for one in other.base[node] if one >= 0]
        assert here == [one for one in links.base[was].tolist() if one >= 0]
    back = np.empty(size, np.int64)
    back[order] = np.arange(size)
    assert written(other.ordered(back)) == written(links)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(sound_links(), st.data())
def test_what_was_changed_is_refused_or_still_sound(made: tuple[Links, int], data: st.DataObject) -> None:
    """Any bytes at all: an engine follows the numbers blindly, so each must be a node that has the level."""
    links, m = made
    size, content = len(links.levels), bytearray(written(links))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    content = content[: data.draw(st.sampled_from([len(content), len(content) - 1]))]
    try:
        read = Links.read(bytes(content), size, m)
    except InvalidInput:
        return
    assert read.levels[read.entry] == max(read.levels)
    assert all(-1 <= one < size for one in read.base.ravel())
    upper = iter(read.upper.tolist())
    for top in read.levels.tolist():
        for level in range(1, top + 1):
            assert all(one == -1 or read.levels[one] >= level for one in next(upper))


@pytest.mark.parametrize("size", [0, -1, 1 << 40])
def test_a_size_that_cannot_be_is_refused(size: int) -> None:
    with pytest.raises(InvalidInput):
        Links.read(bytes(100), size, 8)
