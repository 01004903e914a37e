"""What hnswlib costs when it is compiled for x86-64-v3, beside this processor's own level and plain x86-64.

Three builds in throwaway folders, each in a process of its own; their rounds take turns, so that all three
meet the same machine. Every ratio is the median over rounds of what two of them did in the same round.
The graph is small enough for the caches: a larger one waits for memory more and for arithmetic less, so that
these ratios are the widest.
"""

import itertools
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile  # noqa: TID251 - compiled modules only, gone at the end
import time
from contextlib import ExitStack
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

import hnswlib
import numpy as np

from appliance import config
from tests.bench.report import Report
from tests.searching import low_rank

COUNT, DIM, QUERIES, K, ROUNDS = 2_000, 512, 1_000, 10, 15
SETTINGS = config.Search()
LOCK = Path(__file__).parents[2] / "config" / "requirements.txt"
BUILDS = ("x86-64-v3", "native", "x86-64")
FLAGS = "-O2 -DNDEBUG -fwrapv -fstack-protector-strong -march="  # as in ./dev


def run(report: Report) -> None:
    """Compile the three, let them take turns, print what one does for a CPU second of another."""
    if platform.machine() != "x86_64":
        raise SystemExit(f"this measurement is about x86-64; this processor is {platform.machine()}")
    beyond = sorted(name.strip("_").lower() for name in features("native") - features("x86-64-v3"))
    print(f"\nbeyond x86-64-v3, -march=native uses here: {' '.join(beyond) or 'nothing'}")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        compiled = compile_all(Path(folder))
        workers = {name: stack.enter_context(Worker(target)) for name, target in compiled.items()}
        spent: dict[tuple[str, str], list[float]] = {}
        for name in itertools.islice(itertools.cycle(turns()), ROUNDS * len(BUILDS)):
            for work in ("add", "query"):
                spent.setdefault((name, work), []).append(workers[name].cpu_seconds(work))
    for work, units in (("add", COUNT), ("query", QUERIES)):
        mine = spent["x86-64-v3", work]
        rate = units / statistics.median(mine)
        report.figure(f"{work}, x86-64-v3", rate, "per CPU second", note=f"{DIM} dimensions, one thread")
        for name in ("native", "x86-64"):
            ratios = sorted(other / own for own, other in zip(mine, spent[name, work], strict=True))
            spread = (
                f"{ratios[len(ratios) // 10]:.3f} to {ratios[-1 - len(ratios) // 10]:.3f} over the rounds"
            )
            report.figure(f"  {work}: x86-64-v3 / {name}", statistics.median(ratios), "x", note=spread)


def turns() -> list[str]:
    """Each build once a round, and none always after the same other one."""
    return [name for order in itertools.permutations(BUILDS) for name in order]


def features(level: str) -> set[str]:
    """The macros by which the compiler says what a level has: __AVX2__ and the like."""
    asked = ["g++", f"-march={level}", "-dM", "-E", "-x", "c++", os.devnull]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^#define (__[A-Z0-9_]+__) 1$", said, re.MULTILINE))


def compile_all(folder: Path) -> dict[str, Path]:
    """The locked hnswlib in a folder for each build. No cache: it would give all three the same one."""
    wanted = folder / "hnswlib.txt"
    wanted.write_text(
        "".join(re.findall(r"^hnswlib==.*\\\n(?: +--hash=.*\n)+", LOCK.read_text(), re.MULTILINE))
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-cache-dir"]
    pip += ["--no-deps", "--no-build-isolation", "--require-hashes", "-r", str(wanted), "--target"]
    running = {}
    for level in BUILDS:
        # The switch is set for all: without it hnswlib would add a level itself.
        flags = {"HNSWLIB_NO_NATIVE": "1", "CXXFLAGS": FLAGS + level}
        running[level] = subprocess.Popen([*pip, str(folder / level)], env=os.environ | flags)
    if failed := [name for name, process in running.items() if process.wait()]:
        raise SystemExit(f"hnswlib could not be compiled for {failed[0]} (see above)")
    return {name: folder / name for name in running}


class Worker:
    """A process with one build of hnswlib; all of them have the same vectors."""

    def __init__(self, target: Path) -> None:
        context = get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=work_for, args=(theirs, str(target)), daemon=True)
        sys.path.insert(0, str(target))  # the new process gets the path as it is now, and its hnswlib there
        self._process.start()
        sys.path.remove(str(target))
        theirs.close()  # so that a process that dies is noticed

    def __enter__(self) -> Self:
        assert self._ours.recv() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def cpu_seconds(self, work: str) -> float:
        """What it took to add COUNT vectors to a new graph, or to put QUERIES to the last one."""
        self._ours.send(work)
        spent: float = self._ours.recv()
        return spent


def work_for(asker: "Connection[object, object]", target: str) -> None:
    """The process's main: hnswlib comes from `target`, whatever is installed."""
    assert hnswlib.__file__.startswith(target), hnswlib.__file__
    vectors = low_rank(np.random.default_rng(1), COUNT + QUERIES, DIM)
    index = hnswlib.Index(space="ip", dim=DIM)
    asker.send("ready")
    while True:
        work = asker.recv()
        started = time.process_time()
        if work == "add":
            index = hnswlib.Index(space="ip", dim=DIM)
            index.init_index(COUNT, M=SETTINGS.m, ef_construction=SETTINGS.ef_construction)
            index.set_ef(SETTINGS.ef)
            index.add_items(vectors[:COUNT], num_threads=1)
        else:
            for query in vectors[COUNT:]:
                index.knn_query(query, K, num_threads=1)
        asker.send(time.process_time() - started)
