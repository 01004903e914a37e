"""hnswlib driven directly, in one thread: what every figure is measured against."""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hnswlib

from appliance import config
from tests.bench.nearest.embeddings import Embeddings, K, cached
from tests.searching import Vectors

SETTINGS = config.Search()
TARGETS = (0.95, 0.99)
CACHED_FROM = 50_000
"""Building so many vectors takes a minute; fewer are built anew, which measures `add`."""
_HOLD = """
import pathlib, sys, hnswlib, numpy
index = hnswlib.Index(space="ip", dim=int(sys.argv[2]))
index.load_index(sys.argv[1])
index.knn_query(numpy.ones(index.dim, numpy.float32), 10, num_threads=1)
print(int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096)
"""
EFS = (10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024)


@dataclass(frozen=True)
class Direct:
    """An index over all of the embeddings; `add` are CPU seconds a vector, None where it was in the cache."""

    index: hnswlib.Index
    file: Path
    add: float | None
    efs: dict[float, int]
    """The least ef with which the recall reaches each of TARGETS."""
    recalls: dict[float, float]

    def search(self, queries: Vectors, target: float) -> list[list[int]]:
        """One after the other, as single queries come."""
        self.index.set_ef(self.efs[target])
        return [self.index.knn_query(query, K, num_threads=1)[0][0].tolist() for query in queries]

    def resident_mib(self) -> float:
        """Of a process that does nothing but hold this index, after it has answered a query."""
        command = [sys.executable, "-c", _HOLD, str(self.file), str(self.index.dim)]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout) / 2**20


def build(data: Embeddings, folder: Path) -> Direct:
    """Large indexes come from the cache, others are made now; `folder` takes the file of these."""
    index, add = hnswlib.Index(space="ip", dim=data.dim), None
    parameters = f"m{SETTINGS.m}-efc{SETTINGS.ef_construction}"

    def make(path: Path) -> None:
        nonlocal add
        index.init_index(len(data.vectors), M=SETTINGS.m, ef_construction=SETTINGS.ef_construction)
        began = time.process_time()
        index.add_items(data.vectors, num_threads=1)
        add = (time.process_time() - began) / len(data.vectors)
        index.save_index(str(path))

    if len(data.vectors) >= CACHED_FROM:
        file = cached(f"{data.key}-{parameters}.hnsw", make)
    else:
        file = folder / f"{data.key}.hnsw"
        make(file)
    if add is None:
        index.load_index(str(file))
    efs, recalls = _tuned(index, data)
    return Direct(index, file, add, efs, recalls)


def _tuned(index: hnswlib.Index, data: Embeddings) -> tuple[dict[float, int], dict[float, float]]:
    efs, recalls = dict[float, int](), dict[float, float]()
    for ef in EFS:
        index.set_ef(ef)
        labels: Sequence[Sequence[int]] = index.knn_query(data.queries, K, num_threads=1)[0].tolist()
        reached = data.recall(labels)
        for target in TARGETS:
            if target not in efs and reached >= target:
                efs[target], recalls[target] = ef, reached
        if len(efs) == len(TARGETS):
            return efs, recalls
    raise AssertionError(f"{data.name}: hnswlib itself reaches no recall of {TARGETS}")
