"""Visual search against hnswlib driven directly: queries, writes, filters, memory and what changes cost.

One run, the same embeddings for both: clustered and low-rank ones of 256 and 512 dimensions, 20,000 and
100,000 of them. CPU is that of all our processes: this one, which plays the daemon, and the graph process.
Ratios are medians of rounds in which both take turns; wall times are printed beside and not judged.

What takes minutes and is always the same (true neighbours, hnswlib's indexes over 100,000) is kept in
`embeddings.CACHE`.
"""

import shutil
import sys

import uvloop

from tests.bench.nearest import direct, filtered, queries, wire, writes
from tests.bench.nearest.embeddings import KINDS, embeddings
from tests.bench.nearest.filled import FOLDER
from tests.bench.report import Report

SMALL, LARGE = 20_000, 100_000
DIMS = (256, 512)
USUAL = ("low-rank", 256)
"""Like embeddings of photographs: what is measured once is measured on these."""


def run(report: Report) -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    try:
        ef = _small(report)
        _large(report, ef)
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)


def _small(report: Report) -> int:
    """What hnswlib looks at for the higher recall of the usual ones."""
    ef = 0
    for kind in KINDS:
        for dim in DIMS:
            data = embeddings(kind, SMALL, dim)
            print(f"  {data.name}", file=sys.stderr, flush=True)
            alone = direct.build(data, FOLDER)
            uvloop.run(queries.run(report, data, alone))
            if (kind, dim) == USUAL:
                ef = alone.efs[max(direct.TARGETS)]
                uvloop.run(queries.beside_a_tail(report, data, alone))
                uvloop.run(writes.inserting(report, data, alone))
                wire.measure(report, data, alone)
    return ef


def _large(report: Report, ef: int) -> None:
    for kind in KINDS:
        for dim in DIMS:
            data = embeddings(kind, LARGE, dim)
            print(f"  {data.name}", file=sys.stderr, flush=True)
            alone = direct.build(data, FOLDER)
            uvloop.run(queries.run(report, data, alone))
            if (kind, dim) == USUAL:
                uvloop.run(filtered.run(report, data, alone.efs[max(direct.TARGETS)]))
                uvloop.run(writes.replacing(report, data, SMALL, ef))
                uvloop.run(writes.beside_inserts(report, data, SMALL))
