"""Whether a graph that was kept is one of the records that live now: their labels and their very vectors."""

import numpy as np
import numpy.typing as npt

from appliance import config
from appliance.errors import SealBroken
from appliance.search.exact import Positions
from appliance.search.graph_files import Manifest
from appliance.search.records import Vector
from appliance.search.vectors import View

Prints = npt.NDArray[np.uint32]


def require_fit(manifest: Manifest, settings: config.Search, dim: int) -> None:
    """Raises SealBroken for a graph of another dimension, or of other settings than a new one would have."""
    if manifest.dim != dim:
        raise SealBroken(f"it has {manifest.dim} dimensions, and the collection {dim}")
    if (manifest.m, manifest.ef_construction) != (settings.m, settings.ef_construction):
        raise SealBroken("it was built with other settings than [search] has now")


def youngest_known(labels: Positions, manifest: Manifest, view: View) -> int:
    """The youngest label of the graph that lives, all living ones up to which the graph must know.

    `labels` are those of its nodes. After a ledger was put back by hand, labels above it may be given to new
    records, which the graph does not know. Raises SealBroken where one is missing, or most have died.
    """
    if len(labels) != manifest.size or np.any(labels[1:] <= labels[:-1]):
        raise SealBroken("its labels are not in order")
    if labels[0] <= manifest.after or labels[-1] > manifest.through:
        raise SealBroken("its labels are not what its manifest says")
    living = view.labels[view.alive]
    living = living[(living > manifest.after) & (living <= manifest.through)]
    places = np.minimum(np.searchsorted(labels, living), len(labels) - 1)
    if not np.array_equal(labels[places], living):
        raise SealBroken("there are records of before that it does not know")
    if 2 * len(living) < len(labels):
        raise SealBroken("more than half of its records are gone")
    return int(living[-1])


def living_rows(view: View, labels: Positions) -> Vector:
    """The vectors of ascending labels, float32 (len(labels), dim): zero for those that are gone."""
    rows = np.zeros((len(labels), view.dim), np.float32)
    slots = view.slots(labels)
    rows[np.searchsorted(labels, view.labels[slots])] = view.rows(slots)
    return rows


def prints(rows: Vector) -> Prints:
    """What vectors are told apart by, 32 bits of each: another one's fits once in four billion times."""
    folded: Prints = np.bitwise_xor.reduce(rows.view(np.uint32), axis=1)
    return folded


def require_same(rows: Vector, known: Prints) -> None:
    """Raises SealBroken where a row is neither gone nor the one of which the print was taken."""
    if np.any((prints(rows) != known) & rows.any(axis=1)):
        raise SealBroken("there are records whose vectors are others than those it was built with")
