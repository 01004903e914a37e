"""What every peer's engine is asked for: the ten nearest, with and without a filter, one query at a time.

Runs in the peers' environments: nothing of the appliance can be imported here. Records are numbered, and a
filter keeps those whose `n` is below a bound.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

K = 10
RECALL = 0.99
EFFORTS = (10, 16, 24, 32, 48, 64, 96, 128, 256, 512)
PART, SECONDS = 25, 3.0
CASES = {"none": None, "10 %": 0.1, "1 %": 0.01}
"""By the share that the filter keeps."""


class Engine(Protocol):
    def search(self, query: Any, below: int | None, effort: int) -> Sequence[int]:
        """The numbers of the K nearest, with `n` below this where it is given; `effort` is an ef."""


def serve(make: Callable[[Path, Any], Engine]) -> None:
    """The main function of a peer: an engine over `vectors.npy` of a folder, measured; prints its figures."""
    folder = Path(sys.argv[1])
    vectors = np.load(folder / "vectors.npy")
    (folder / "state").mkdir()
    began = time.process_time()
    engine = make(folder / "state", vectors)
    built = time.process_time() - began
    figures = {case: measure(engine, folder, case, share) for case, share in CASES.items()}
    print(json.dumps({"built": built, "figures": figures}), flush=True)
    os._exit(0)  # some leave threads behind that nobody ends


def measure(engine: Engine, folder: Path, case: str, share: float | None) -> dict[str, float]:
    """Queries a second at the least effort that reaches the recall, or at the greatest one there is."""
    queries, true = np.load(folder / "queries.npy"), np.load(folder / f"true {case}.npy")
    below = None if share is None else int(share * np.load(folder / "vectors.npy", mmap_mode="r").shape[0])
    recall, effort = 0.0, EFFORTS[0]
    for effort in EFFORTS:
        found = [engine.search(query, below, effort) for query in queries]
        hits = sum(len(set(one) & set(other)) for one, other in zip(found, true.tolist(), strict=True))
        recall = hits / true.size
        if recall >= RECALL:
            break
    rates, cpu, count, began = list[float](), time.process_time(), 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        part = [queries[(count + n) % len(queries)] for n in range(PART)]
        asked = time.perf_counter()
        for query in part:
            engine.search(query, below, effort)
        rates.append(PART / (time.perf_counter() - asked))
        count += PART
    return {
        "rate": statistics.median(rates),
        "cpu": (time.process_time() - cpu) / count,
        "recall": recall,
        "effort": effort,
    }
