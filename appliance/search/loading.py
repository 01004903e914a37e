"""From the ledger's frames to arrays, a page at a time, on a reader's thread."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from appliance.ledger import Connection
from appliance.search import frames
from appliance.search.exact import Positions
from appliance.search.frames import Frame
from appliance.search.records import Vector
from appliance.search.seals import Seals

_FRAMES = 16
"""Of 64 KiB: a page of 1 MiB stays in the processor's cache, and is taken over in half a millisecond."""
_NORM_TOLERANCE = 1e-3
"""Vectors are stored with length 1 to 1e-6; what is further off was damaged before it was sealed."""


@dataclass(frozen=True, slots=True)
class Page:
    """Sound vectors, their labels ascending from frame to frame, and the labels of damaged ones."""

    sound: list[Frame]
    damaged: list[int]
    last: int
    """Where the next page goes on, -1 when this one is empty: there is no more."""


def is_sound(vector: Vector) -> bool:
    """Whether one stored vector is of length 1."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(abs(float(np.dot(vector, vector)) - 1.0) < _NORM_TOLERANCE)  # False for NaN


def sound_labels(frame: Frame) -> Positions:
    """Labels of the vectors of length 1 in a frame."""
    return frame.labels[_are_sound(frame.rows)]


def load_page(connection: Connection, seals: Seals, number: int, dim: int, after: int) -> Page:
    """The next frames above label `after` (-1: from the start)."""
    sound: list[Frame] = []
    damaged: list[int] = []
    last = after
    for first, frame in frames.load(connection, seals, number, dim, after, _FRAMES):
        if frame is None:
            damaged += frames.records_of(connection, number, first)
            last = max(last, first)
            continue
        good = _are_sound(frame.rows)
        # A frame that somebody put back between others has labels that were seen already.
        risen = frame.labels > last
        damaged += frame.labels[risen & ~good].tolist()
        kept = risen & good
        sound.append(frame if kept.all() else Frame(frame.labels[kept], frame.rows[kept]))
        last = max(last, first, int(frame.labels[-1]))
    return Page(sound, sorted(damaged), last if last > after else -1)


def _are_sound(vectors: Vector) -> npt.NDArray[np.bool_]:
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.einsum("ij,ij->i", vectors, vectors)
        sound: npt.NDArray[np.bool_] = np.abs(norms - 1.0) < _NORM_TOLERANCE  # False for NaN
    return sound
