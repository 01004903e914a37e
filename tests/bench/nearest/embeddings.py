"""Synthetic embeddings and their true neighbours; what takes minutes to find is kept outside the tree."""

import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.searching import Vectors, low_rank

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "appliance-bench"
K = 10
QUERIES = 1_000
Positions = npt.NDArray[np.int64]

_SCORES = 25_000_000  # held at once, of 4 bytes each
_NEAR = 20  # so many more than k are measured again in float64: float32 orders all but the closest


@dataclass(frozen=True)
class Embeddings:
    """`vectors` (n, dim) and `queries`, float32 of length 1, drawn together; `true` (queries, K) positions.

    `key` is another one for other numbers.
    """

    kind: str
    key: str
    vectors: Vectors
    queries: Vectors
    true: Positions

    @property
    def name(self) -> str:
        return f"{self.kind} {len(self.vectors):,} x {self.dim}"

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    def recall(self, found: Sequence[Sequence[int]]) -> float:
        """The share of the true neighbours of the first queries that was found for them, recall@10."""
        return recall(found, self.true)


def clustered(rng: np.random.Generator, count: int, dim: int) -> Vectors:
    """128 clusters of one size, round in every direction: neighbours are far from their centre, and alike."""
    centres = rng.standard_normal((128, dim), np.float32)
    vectors = rng.standard_normal((count, dim), np.float32)
    vectors *= 0.6
    vectors += centres[rng.integers(128, size=count)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


KINDS: dict[str, Callable[[np.random.Generator, int, int], Vectors]] = {
    "clustered": clustered,
    "low-rank": low_rank,
}


def embeddings(kind: str, count: int, dim: int, queries: int = QUERIES) -> Embeddings:
    """The same at each call; the neighbours come from the cache, where they are known by now."""
    drawn = KINDS[kind](np.random.default_rng(1), count + queries, dim)
    vectors, asked = drawn[:count], drawn[count:]
    # Another numpy may draw other numbers.
    key = f"{kind}-{count}x{dim}-{zlib.crc32(drawn.data):08x}"

    def find(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, neighbours(vectors, asked, K))

    return Embeddings(kind, key, vectors, asked, np.load(cached(f"{key}.npy", find)))


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The cache's file of this name, which `make` writes where there is none yet."""
    path = CACHE / name
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{name}.{os.getpid()}")
        make(part)
        part.replace(path)
    return path


def neighbours(vectors: Vectors, queries: Vectors, k: int) -> Positions:
    """Positions (queries, min(k, n)) of the nearest by cosine, exactly; ties to 7 decimals in order."""
    near = min(k + _NEAR, len(vectors))
    found = np.empty((len(queries), min(k, len(vectors))), np.int64)
    step = max(1, _SCORES // len(vectors))
    for low in range(0, len(queries), step):
        scores = queries[low : low + step] @ vectors.T
        candidates = np.argpartition(scores, len(vectors) - near, axis=1)[:, len(vectors) - near :]
        for row, positions in enumerate(candidates, low):
            cosines = vectors[positions].astype(np.float64) @ queries[row].astype(np.float64)
            order = np.lexsort((positions, np.round(1.0 - cosines, 7)))
            found[row] = positions[order[: found.shape[1]]]
    return found


def recall(found: Sequence[Sequence[int]], true: Positions) -> float:
    """The share of `true` that was found; as many rows of it are looked at as were found."""
    wanted = true[: len(found)].tolist()
    hits = sum(len(set(one) & set(other)) for one, other in zip(found, wanted, strict=True))
    return hits / sum(map(len, wanted))
