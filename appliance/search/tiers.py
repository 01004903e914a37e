"""Which sealed graphs are merged when the records behind the last one are sealed.

Bentley and Saxe's binomial transform (Saxe, Bentley, "Transforming static data structures to dynamic
structures", FOCS 1979): of n portions, the oldest graph holds C(a, 4), the next C(b, 3), then C(c, 2) and
C(d, 1), with a > b > c > d and a sum of n. Whenever a portion comes, what no longer fits is built anew with
it. With at most four graphs no way is cheaper: no record is built more than r times before there are
C(4 + r, 4) portions, seven times for a million records of 256 dimensions in portions of 4 MB.
"""

from collections.abc import Iterator, Sequence
from math import comb

MOST = 4
"""Graphs of one collection. A search asks all of them, so each more makes it slower."""


def kept(sizes: Sequence[int], tail: int, portion: int) -> int:
    """How many of the oldest graphs stay; those behind them are built anew, as one, with the tail.

    `sizes` are those that graphs were built with, oldest first. At most MOST - 1 stay. The tail has about a
    portion of records, or more.
    """
    staying, held, wanted = 0, 0, 0
    for size, portions in zip(sizes, _sizes((sum(sizes) + tail) // portion), strict=False):
        held += size
        wanted += portions * portion
        if held < wanted or staying == MOST - 1:
            break
        staying += 1
    return staying


def _sizes(portions: int) -> Iterator[int]:
    """The binomial coefficients that make up a number, as many as graphs."""
    for below in range(MOST, 0, -1):
        above = below - 1
        while comb(above + 1, below) <= portions:
            above += 1
        yield comb(above, below)
        portions -= comb(above, below)
