"""The links of an HNSW graph (Malkov and Yashunin, arXiv 1603.09320), whichever engine made or searches them.

Nodes are numbered from 0. A node of level l has up to 2m neighbours on level 0, and up to m on each level
from 1 to l, all of which reach that level themselves. With the vectors of its nodes, links are a whole graph.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from appliance.errors import InvalidInput
from appliance.search.arrays import Positions

Nodes = npt.NDArray[np.int32]
Levels = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.floating[Any]]

_AROUND = 8
"""Of the living neighbours that stand in for a dead node. At 20 % dead, recall@10 is then that of the graph
with all vectors (0.970 and 0.969, 20,000 x 128, ef 64); with all neighbours 0.948, with none at all 0.940."""
_NODES_AT_ONCE = 1024
_ENTRY_BYTES = 4


@dataclass(frozen=True, slots=True)
class Links:
    """Lists of neighbours are filled from the left, with -1 in the places that are free.

    `levels` (n,); `base` (n, 2m) on level 0; `upper` (sum of levels, m), node after node, of each the levels
    from 1 on; a search starts at the node `entry`, than which none is higher.
    """

    levels: Levels
    base: Nodes
    upper: Nodes
    entry: int

    @classmethod
    def read(cls, data: bytes | bytearray | memoryview, size: int, m: int) -> Self:
        """What `pieces` gave of a graph of `size` nodes, one after the other.

        Raises InvalidInput for what no sound graph has written: an engine follows these numbers blindly.
        """
        least = _ENTRY_BYTES + size * (1 + 8 * m)
        if size < 1 or len(data) < least:
            raise InvalidInput(f"links of {size} nodes have at least {least} bytes, these {len(data)}")
        entry = int(np.frombuffer(data, "<i4", 1)[0])
        levels = np.frombuffer(data, np.uint8, size, _ENTRY_BYTES)
        base = np.frombuffer(data, "<i4", size * 2 * m, _ENTRY_BYTES + size).reshape(size, 2 * m)
        if len(data) != least + int(levels.sum(dtype=np.int64)) * m * 4:
            raise InvalidInput("the links on upper levels are not as many as the levels of their nodes")
        links = cls(levels, base, np.frombuffer(data, "<i4", offset=least).reshape(-1, m), entry)
        links._check()
        return links

    def pieces(self) -> Iterator[memoryview]:
        """All of it as bytes, little-endian and without copies."""
        yield memoryview(self.entry.to_bytes(_ENTRY_BYTES, "little"))
        for part in (self.levels, self.base.astype("<i4", copy=False), self.upper.astype("<i4", copy=False)):
            if part.size:
                yield np.ascontiguousarray(part).data.cast("B")

    def ordered(self, order: Positions) -> "Links":
        """The same graph under other numbers: node `order[i]` is node i."""
        number = np.empty(len(order) + 1, np.int32)
        number[order] = np.arange(len(order), dtype=np.int32)
        number[-1] = -1  # where -1 looks, too
        starts = np.cumsum(self.levels, dtype=np.int64) - self.levels
        levels = self.levels[order]
        within = np.arange(len(self.upper)) - np.repeat(np.cumsum(levels, dtype=np.int64) - levels, levels)
        upper = self.upper[np.repeat(starts[order], levels) + within]
        return Links(levels, number[self.base[order]], number[upper], int(number[self.entry]))

    def stand_in(self, rows: Rows, dead: Positions) -> None:
        """Give nodes whose vectors are gone the direction of their living neighbours: searches pass through.

        `rows` (n, dim) are the vectors, those of `dead` zero; one without a living neighbour stays so.
        """
        alive = np.ones(len(self.levels), np.bool_)
        alive[dead] = False
        for low in range(0, len(dead), _NODES_AT_ONCE):
            nodes = dead[low : low + _NODES_AT_ONCE]
            near = self.base[nodes]
            counts = (near >= 0) & alive[near]
            first = np.argsort(~counts, axis=1, kind="stable")[:, :_AROUND]
            near, counts = np.take_along_axis(near, first, 1), np.take_along_axis(counts, first, 1)
            total = np.zeros((len(nodes), rows.shape[1]), np.float32)
            for place in range(near.shape[1]):
                total += np.where(counts[:, place, np.newaxis], rows[near[:, place]], 0)
            lengths = np.linalg.norm(total, axis=1, keepdims=True)
            rows[nodes] = np.divide(total, lengths, out=np.zeros_like(total), where=lengths > 0)

    def _check(self) -> None:
        size = len(self.levels)
        for lists in (self.base, self.upper):
            if lists.size and (lists.min() < -1 or lists.max() >= size):
                raise InvalidInput("a link leads to no node")
            if np.any((lists[:, 1:] >= 0) & (lists[:, :-1] < 0)):
                raise InvalidInput("a list of neighbours has a gap")
        starts = np.cumsum(self.levels, dtype=np.int64) - self.levels
        level = np.arange(len(self.upper)) - np.repeat(starts, self.levels) + 1
        if np.any((self.upper >= 0) & (self.levels[self.upper] < level[:, np.newaxis])):
            raise InvalidInput("a link leads to a node that does not reach its level")
        if not 0 <= self.entry < size or self.levels[self.entry] != self.levels.max():
            raise InvalidInput("the entry is not a highest node")
