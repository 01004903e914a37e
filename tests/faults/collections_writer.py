"""A process of ledger and search that inserts, replaces and deletes until it is killed: python -m, a folder.

It says on stdout, a line each, what it is about to do and what has been acknowledged. The folder must hold
one collection. Whoever reads along can kill it at any moment and check what it acknowledged.
"""

import asyncio
import itertools
import sys
from pathlib import Path

import numpy as np

from appliance.search.collections import NewRecord, OpenCollection
from tests.searching import ACTOR, Vectors, shelf

DIM = 64
BATCH = 7
WRITERS = 3


def vector(external: str, version: int = 0) -> Vectors:
    """What a record's vector must be, from its id and how often it was replaced."""
    seed = np.frombuffer(f"{external}/{version}".encode().ljust(32, b"."), np.uint32)
    made: Vectors = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return made


def record(external: str, version: int = 0) -> NewRecord:
    metadata: dict[str, object] = {"me": external, "version": version, "filling": external * 50}
    return NewRecord(external, vector(external, version), metadata)


async def write(opened: OpenCollection, run: str, writer: int) -> None:
    for batch in itertools.count():
        ids = [f"{run}-{writer}-{batch}-{part}" for part in range(BATCH)]
        outcome = await opened.insert(ACTOR, [record(external) for external in ids])
        assert outcome == ["inserted"] * BATCH
        say("inserted", *ids)
        if batch % 3 == 2:
            say("deleting", ids[0])
            assert await opened.delete(ACTOR, ids[:1]) == [True]
            say("deleted", ids[0])
        if batch % 2:
            say("replacing", *ids[1:4])
            outcomes = await opened.upsert(ACTOR, [record(external, 1) for external in ids[1:4]])
            assert outcomes == ["replaced"] * 3
            say("replaced", *ids[1:4])


def say(*words: str) -> None:
    print(*words, flush=True)


async def main(folder: Path, run: str) -> None:
    async with shelf(folder) as things:
        (collection,) = await things.collections.list()
        opened = await things.collections.open(None, collection.id)
        say("ready")
        await asyncio.gather(*(write(opened, run, writer) for writer in range(WRITERS)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
