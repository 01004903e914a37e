"""Visual search beside Qdrant's engine, milvus-lite, LanceDB and Chroma, one query at a time.

20,000 x 256 low-rank embeddings. Each runs in a process of its own, one after the other, at the least effort
that reaches a recall@10 of 0.99, with no filter and with one that keeps 10 % or 1 %. Rates are wall times,
medians of parts, because the peers answer with threads of their own; CPU is printed beside. Only the
appliance seals what it stores.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import uvloop

from appliance.search import filters
from appliance.search.filters import Filter
from tests.bench.nearest.embeddings import Embeddings, K, embeddings, neighbours, recall
from tests.bench.nearest.filled import FOLDER, Filled, filled, search
from tests.bench.peers.environment import QUIET, ROOT, NotInstalled, Peer
from tests.bench.peers.neighbours import CASES, EFFORTS, PART, RECALL, SECONDS
from tests.bench.report import Report

COUNT, DIM, QUERIES = 20_000, 256, 100
OURS = "the appliance"
PEERS = tuple(
    Peer(name, title, ("python", "-m", f"tests.bench.peers.engine_{name}"))
    for name, title in (
        ("qdrant", "qdrant-edge-py 0.9.0"),
        ("milvus", "milvus-lite 3.2.2"),
        ("lancedb", "LanceDB 0.40.0"),
        ("chroma", "Chroma 1.5.9"),
    )
)
PEER_SECONDS = 900.0


@dataclass(frozen=True)
class Measured:
    """Of one engine and one filter: queries a second, CPU seconds a query, and how well it was searched."""

    rate: float
    cpu: float
    recall: float
    effort: int


def run(report: Report) -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    try:
        data = embeddings("low-rank", COUNT, DIM)
        ours = uvloop.run(_ours(data))
        for case, one in ours.items():
            _tell(report, OURS, case, one)
        for peer in PEERS:
            print(f"  {peer.title}", file=sys.stderr, flush=True)
            try:
                peer.install()
                theirs = _theirs(peer, data)
            except (NotInstalled, subprocess.SubprocessError) as reason:
                report.figure(f"{peer.title} could not be measured", float("nan"), "", note=str(reason)[:200])
                continue
            for case, one in theirs.items():
                _tell(report, peer.title, case, one)
                reached = "" if one.recall >= RECALL else "its recall is less"
                ratio = ours[case].rate / one.rate
                report.figure("... the appliance's rate / its", ratio, "x", at_least=1, note=reached)
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)


def _tell(report: Report, title: str, case: str, one: Measured) -> None:
    note = f"recall@10 {one.recall:.4f} at {one.effort}; {1000 * one.cpu:.3f} ms CPU"
    report.figure(f"{title}, filter: {case}", one.rate, "queries/s wall", note=note)


def _true(data: Embeddings, share: float | None) -> Any:
    kept = data.vectors if share is None else data.vectors[: int(share * COUNT)]
    return neighbours(kept, data.queries[:QUERIES], K)


async def _ours(data: Embeddings) -> dict[str, Measured]:
    async with filled(data.vectors) as mine:
        await mine.opened.seal()
        return {case: await _measured(mine, data, share) for case, share in CASES.items()}


async def _measured(mine: Filled, data: Embeddings, share: float | None) -> Measured:
    queries, true = data.queries[:QUERIES], _true(data, share)
    wanted: Filter | None = None if share is None else filters.compile({"n": {"$lt": int(share * COUNT)}})
    reached, effort = 0.0, EFFORTS[0]
    for effort in EFFORTS:
        mine.look_at(effort)
        reached = recall((await search(mine.opened, queries, wanted))[0], true)
        if reached >= RECALL:
            break
    rates, cpu, count, began = list[float](), mine.cpu_seconds(), 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        part = queries[count % QUERIES :][:PART]
        seconds = (await search(mine.opened, part, wanted))[1]
        rates.append(len(part) / sum(seconds))
        count += len(part)
    return Measured(statistics.median(rates), (mine.cpu_seconds() - cpu) / count, reached, effort)


def _theirs(peer: Peer, data: Embeddings) -> dict[str, Measured]:
    """Raises SubprocessError, with the end of what the peer said."""
    folder = FOLDER / peer.name
    folder.mkdir()
    saved: dict[str, Callable[[], Any]] = {
        "vectors": lambda: data.vectors,
        "queries": lambda: data.queries[:QUERIES],
        **{f"true {case}": lambda share=share: _true(data, share) for case, share in CASES.items()},  # type: ignore[misc]
    }
    for name, make in saved.items():
        np.save(folder / f"{name}.npy", make())
    program, *words = peer.command
    home = peer.folder / "home"
    home.mkdir(exist_ok=True)
    environment = {"PATH": f"{peer.folder / 'bin'}:{os.environ['PATH']}", "HOME": str(home)}
    done = subprocess.run(
        [str(peer.folder / "bin" / program), *words, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PEER_SECONDS,
        env=environment | QUIET | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
    )
    if done.returncode:
        raise subprocess.SubprocessError(f"exit code {done.returncode}: {done.stderr.strip()[-150:]}")
    shutil.rmtree(folder)
    figures = json.loads(done.stdout.splitlines()[-1])["figures"]
    return {case: Measured(**one) for case, one in figures.items()}
