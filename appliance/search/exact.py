"""The arithmetic of exact search: normalise, score, choose, measure. Pure functions on numpy arrays.

Scores come from float32 products whose last bits depend on how the rows are laid out. So everything that
could be among the k best within the rounding error of a dot product (n * 2^-24 for n terms of unit vectors,
Higham, Accuracy and Stability of Numerical Algorithms, 3.5) is measured again in float64, row by row: the
same two vectors have the same distance wherever they are stored and whatever path found them.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from appliance.errors import InvalidInput
from appliance.search import arrays
from appliance.search.records import AnyVector, Vector

Scores = npt.NDArray[np.float32]
Distances = npt.NDArray[np.float64]
Positions = arrays.Positions
Found = tuple[Positions, Distances]
"""Labels and, parallel to them, distances."""

MAX_K = 10_000
_ROUNDING = 2.0**-23
"""Twice as far from 1 as the length of what was normalised and rounded to float32 can be: each number is off
by 2^-24 of itself at most, and so is the length."""
MIN_NORM = 1e-12
"""Below this a vector has no direction that float32 pixels and weights could have meant."""
RESOLUTION = 7
"""Decimal digits of a distance: float32 unit vectors carry no more."""


def normalised(vector: object, dim: int, field: str = "vector") -> Vector:
    """The vector as float32 of length 1 and shape (dim,); what this has returned comes back bit by bit.

    Raises InvalidInput that names `field` when it is not numeric, has another shape, is not finite or is
    zero.
    """
    try:
        given = np.asarray(vector)
    except ValueError:  # lists of different lengths
        raise InvalidInput(f"{field}: {dim} numbers are needed") from None
    if given.dtype.kind not in "fiu":
        raise InvalidInput(f"{field}: numbers are needed, not {given.dtype}")
    if given.shape != (dim,):
        raise InvalidInput(f"{field}: {dim} numbers are needed, not shape {given.shape}")
    wide = given.astype(np.float64)
    with np.errstate(over="ignore"):
        norm = math.sqrt(np.dot(wide, wide))
    if not math.isfinite(norm):
        if np.isfinite(wide).all():
            raise InvalidInput(f"{field}: its numbers are too large")
        raise InvalidInput(f"{field}: holds a number that is not finite")
    if norm < MIN_NORM:
        raise InvalidInput(f"{field}: is zero, it has no direction to compare")
    if abs(norm - 1.0) > _ROUNDING:
        wide /= norm
    return wide.astype(np.float32)


def check_k(k: int) -> int:
    """`k` itself; InvalidInput unless 1 <= k <= 10,000."""
    if not 1 <= k <= MAX_K:
        raise InvalidInput(f"k: an integer from 1 to {MAX_K} is needed")
    return k


def contenders(scores: Scores, k: int, dim: int) -> Positions:
    """The positions, ascending, of every score that may be among the k highest: min(k, n) or more."""
    if k >= len(scores):
        return np.arange(len(scores))
    least = len(scores) - k
    ordered = scores.copy()
    ordered.partition(least)
    near: Positions = (scores >= ordered[least] - dim * 2.0**-23).nonzero()[0]
    return near


def distances(rows: Vector, queries: Vector) -> Distances:
    """1 - cosine in [0, 2] of each row (n, dim) to the query (dim,), or to one of its own (n, dim), to 7
    decimals; all of unit length.
    """
    # einsum adds up each row by itself; a matrix product would treat rows at a block's edge differently.
    pairs = "ij,ij->i" if queries.ndim > 1 else "ij,j->i"
    measured: Distances = np.einsum(pairs, rows, queries, dtype=np.float64)
    np.subtract(1.0, measured, out=measured)
    measured.round(RESOLUTION, out=measured)
    np.minimum(measured, 2.0, out=measured)
    np.maximum(measured, 0.0, out=measured)
    measured += 0.0  # turns -0.0, which callers would be shown, into 0.0
    return measured


def nearest(labels: Positions, measured: Distances, k: int) -> Found:
    """The k nearest, ascending by distance and, where distances are equal, by label."""
    order = np.lexsort((labels, measured))[:k]
    return labels[order], measured[order]


def rank(query: AnyVector, vectors: Sequence[AnyVector]) -> tuple[list[int], list[float]]:
    """The order of `vectors` by distance to `query`, ties as given, and the distances in that order.

    All have shape (dim,); raises InvalidInput as `normalised` does.
    """
    unit = normalised(query, len(query), "query")
    if not vectors:
        return [], []
    rows = np.stack([normalised(vector, len(unit), f"vector {n}") for n, vector in enumerate(vectors)])
    order, measured = nearest(np.arange(len(rows)), distances(rows, unit), len(rows))
    return order.tolist(), measured.tolist()
