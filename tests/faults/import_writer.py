"""A process that imports into the one collection of a folder until it is killed: python -m, a folder.

It says on stdout how many rows it knows to be stored.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np

from appliance.search.interchange import importing, npy
from tests.searching import ACTOR, Vectors, shelf, unit

DIM = 64
ROWS, BATCH = 6_000, 256


def vectors() -> Vectors:
    return unit(np.random.default_rng(6), ROWS, DIM)


async def pieces() -> AsyncIterator[bytes]:
    """The array, a batch in each piece: when the next one is asked for, those before are durable."""
    yield npy.header(ROWS, DIM)
    rows = vectors()
    for first in range(0, ROWS, BATCH):
        print(first, flush=True)
        yield rows[first : first + BATCH].tobytes()


async def main(folder: Path) -> None:
    async with shelf(folder) as things:
        (collection,) = await things.collections.list()
        opened = await things.collections.open(None, collection.id)
        report = await importing.run(ACTOR, opened, importing.of_array(pieces(), DIM, ""), replace=False)
        print("done", report.inserted, report.kept, report.refused, flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
