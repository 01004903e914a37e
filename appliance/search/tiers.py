"""Which sealed graphs are merged, and when the records behind the last one are sealed.

Bentley and Saxe's binomial transform (Saxe, Bentley, "Transforming static data structures to dynamic
structures", FOCS 1979): of n portions, the oldest graph holds C(a, 4), the next C(b, 3), then C(c, 2) and
C(d, 1), with a > b > c > d and a sum of n. Whenever a portion comes, what no longer fits is built anew with
it. With at most four graphs no way is cheaper: no record is built more than r times before there are
C(4 + r, 4) portions, seven times for a million records of 256 dimensions in portions of 4 MB.

A merge that takes long is made of graphs alone: the portion gets a graph of its own first, soon, so that what
is scanned stays small. What comes while the merge goes on is held in the same way, in fewer graphs, and joins
the others after it. So a record may be built a time or two more, and while there are long merges, and only
then, more graphs than four are searched.

A collection that is searched and hardly changes gets one graph over everything, once its parts have cost the
searches as much as that graph costs: at most twice of what the better choice, known beforehand, would have
(Karlin, Manasse, Rudolph, Sleator, "Competitive snoopy caching", Algorithmica 3, 1988).
"""

from collections.abc import Sequence
from functools import lru_cache
from math import comb
from typing import NamedTuple

MOST = 4
"""Graphs of one collection. A search asks all of them, so each more makes it slower."""
BESIDE = 2
"""Graphs over what came since a long merge began."""
_LONG = 4
"""Portions of 4 MB whose merge is waited for: some eight seconds of CPU at 256 dimensions."""
_SCANNED, _ASKED, _BUILT = 0.14, 100.0, 500.0
"""Microseconds of CPU at 256 dimensions: of a search for each record of the tail and for each graph but one,
and of a new graph for each of its records (measured; only the ratios count)."""
AGAIN = 8
"""So many times what building new records costs is taken off what parts have cost: what changes as it is
searched would soon be in parts again."""


class Step(NamedTuple):
    """What is to be built next: one graph in the place of all but the `kept` oldest; over the tail too where
    `tail` says so. A `long` one is a merge that others need not wait for.
    """

    kept: int
    tail: bool
    long: bool


def due(sizes: Sequence[int], tail: int, portion: int, most: int = MOST) -> Step | None:
    """The next step, None while there is nothing to do.

    `sizes` are those that graphs were built with, oldest first; `tail` is how many records lie behind them.
    There are at most `most` graphs when no step is due.
    """
    if tail >= portion:
        staying = kept(sizes, tail, portion, most)
        if is_long(sum(sizes[staying:]), portion):
            staying = len(sizes)
        return Step(staying, tail=True, long=False)
    if not sizes:
        return None
    staying = kept(sizes[:-1], sizes[-1], portion, most)
    if staying == len(sizes) - 1:
        return None
    return Step(staying, tail=False, long=is_long(sum(sizes[staying:]), portion))


def apart(graphs: int, tail: int) -> float:
    """What a search costs more than with one graph over everything; in the unit of `building`."""
    return tail * _SCANNED + max(0, graphs - 1) * _ASKED


def building(records: int) -> float:
    """What a graph over so many records costs."""
    return records * _BUILT


def is_long(records: int, portion: int) -> bool:
    """Whether a graph over so many records, all of which others know, need not be waited for."""
    return records > _LONG * portion


def kept(sizes: Sequence[int], youngest: int, portion: int, most: int = MOST) -> int:
    """How many of the oldest graphs stay, most - 1 at the most; those behind them are built anew, as one,
    with the `youngest` records.
    """
    staying, held, wanted = 0, 0, 0
    for size, portions in zip(sizes, _sizes((sum(sizes) + youngest) // portion, most), strict=False):
        held += size
        wanted += portions * portion
        if held < wanted or staying == most - 1:
            break
        staying += 1
    return staying


@lru_cache(maxsize=1024)
def _sizes(portions: int, most: int) -> tuple[int, ...]:
    """The binomial coefficients that make up a number, as many as graphs."""
    sizes = list[int]()
    for below in range(most, 0, -1):
        above = below - 1
        while comb(above + 1, below) <= portions:
            above += 1
        sizes.append(comb(above, below))
        portions -= sizes[-1]
    return tuple(sizes)
