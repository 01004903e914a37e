"""What is asked of the graphs of a collection for a search, and what is made of their answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from appliance.search import planner
from appliance.search.columns import Wanted
from appliance.search.exact import Found, Positions
from appliance.search.sealed import Ask, Proposed, Sealed
from appliance.search.tuning import K
from appliance.search.vectors import Mask, View

_MOST_FROM_GRAPH = 1000
_BLUR = 2e-4
"""By so much a graph of half precision misjudges a distance."""


@dataclass(slots=True, eq=False)
class Segment:
    """A sealed graph in use, of whose records `dead` have died since it was built."""

    sealed: Sealed
    dead: int

    @property
    def above(self) -> int:
        """It knows the records with labels above this one..."""
        return self.sealed.after

    @property
    def through(self) -> int:
        """... and up to this one."""
        return self.sealed.through

    @property
    def living(self) -> int:
        return self.sealed.size - self.dead

    def reach(self, k: int) -> int:
        """How many to ask for k living ones, or for all."""
        if not self.dead:
            return min(k, self.sealed.size)
        return min(int(1.5 * k * self.sealed.size / max(1, self.living)) + 4, self.sealed.size)


def asks(segments: Sequence[Segment], k: int, ef: int) -> list[Ask]:
    """What to ask for the k nearest, `ef` being enough for ten; nothing where a scan is the better way."""
    reaches = [segment.reach(k) for segment in segments]
    if not reaches or max(reaches) > _MOST_FROM_GRAPH:
        return []
    return [
        Ask(segment.sealed, reach, max(reach, ef + reach - K))
        for segment, reach in zip(segments, reaches, strict=True)
    ]


def asks_matching(segments: Sequence[Segment], k: int, ef: int, view: View, wanted: Wanted) -> list[Ask]:
    """As `asks`, of those that are wanted."""
    bounds = [0, *(view.after(segment.through) for segment in segments)]
    matching = [wanted.within(low, high) for low, high in pairwise(bounds)]
    sizes = [segment.sealed.size for segment in segments]
    scanned = view.effort(wanted.within(0, len(view.labels)))
    graphs = list(zip(sizes, matching, strict=True))
    reaches = planner.reach(k, graphs, ef=max(k, ef + k - K), dim=view.dim, scanned=scanned) or []
    return [
        Ask(segment.sealed, reach, reach) for segment, reach in zip(segments, reaches, strict=False) if reach
    ]


def nominated(proposed: Proposed, view: View, tail: int, wanted: Mask | None) -> list[Positions]:
    """For each query the slots of what lives among the proposed, and is wanted.

    Ascending, each once, and before slot `tail`, whatever the other process says.
    """
    if not tail:
        return [np.empty(0, np.int64)] * len(proposed.labels)
    labels = proposed.labels.copy()
    labels.sort(axis=1)
    slots = np.minimum(view.places(labels), tail - 1)
    here = view.labels[slots] == labels
    here &= view.alive[slots]
    here[:, 1:] &= labels[:, 1:] != labels[:, :-1]
    if wanted is not None:
        here &= wanted[slots]
    return [one[living] for one, living in zip(slots, here, strict=True)]


def complete(found: Sequence[Found], proposed: Proposed, k: int) -> list[Found | None]:
    """The answers that have k, none farther away than every graph has looked; None in the place of others."""
    return [
        one if len(one[1]) == k and one[1][-1] <= min(horizons) + _BLUR else None
        for one, horizons in zip(found, proposed.horizons.tolist(), strict=True)
    ]
