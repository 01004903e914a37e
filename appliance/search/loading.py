"""From the ledger's rows to arrays, a page at a time, on a reader's thread."""

from dataclasses import dataclass

import numpy as np

from appliance.ledger import Connection
from appliance.search import rows
from appliance.search.records import Vector

_PAGE_BYTES = 2 << 20
_NORM_TOLERANCE = 1e-3
"""Vectors are stored with length 1 to 1e-6; whatever is further off has been changed since."""


@dataclass(frozen=True, slots=True)
class Page:
    """Records with sound vectors (parallel, labels ascending), and the labels of those without."""

    labels: list[int]
    ids: list[str]
    vectors: Vector
    damaged: list[int]
    last: int
    """The last label of either, -1 when the page is empty: there is no more."""


def sound_vector(stored: bytes, dim: int) -> Vector | None:
    """One stored vector, None where it is damaged."""
    if len(stored) != dim * 4:
        return None
    vector = np.frombuffer(stored, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return vector if abs(float(np.dot(vector, vector)) - 1.0) < _NORM_TOLERANCE else None


def load_page(connection: Connection, number: int, dim: int, after: int) -> Page:
    """The next records above label `after` (-1: from the start), as many as make about 2 MiB."""
    stored = rows.load_vectors(connection, number, after, max(64, _PAGE_BYTES // (dim * 4)))
    whole = [row for row in stored if len(row[2]) == dim * 4]
    vectors = np.frombuffer(b"".join(row[2] for row in whole), np.float32).reshape(len(whole), dim)
    with np.errstate(over="ignore", invalid="ignore"):
        sound = np.abs(np.einsum("ij,ij->i", vectors, vectors) - 1.0) < _NORM_TOLERANCE  # False for NaN
    if not sound.all():
        vectors = vectors[sound]
        whole = [row for row, good in zip(whole, sound.tolist(), strict=True) if good]
    labels = [row[0] for row in whole]
    damaged = sorted({row[0] for row in stored} - set(labels)) if len(whole) < len(stored) else []
    last = stored[-1][0] if stored else -1
    return Page(labels, [row[1].decode() for row in whole], vectors, damaged, last)
