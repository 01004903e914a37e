"""Search on a volume that is really full: run in a mount namespace of its own, which ends with it.

    unshare --mount python -m tests.faults.full_search FOLDER

A tmpfs is mounted on FOLDER/state. What does not hold ends with a traceback.
"""

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from appliance.errors import VolumeFull
from appliance.search import filters
from appliance.search.collections import CollectionId, NewRecord
from appliance.volume.space import BALLAST
from tests.searching import ACTOR, Shelf, shelf, unit

MIB = 1 << 20
RESERVE, BALLAST_BYTES = 8 * MIB, 2 * MIB
WORDS: dict[str, object] = {"text": "x" * 4000}


def free(folder: Path) -> int:
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize


def fill(folder: Path) -> None:
    """Somebody else takes what is left."""
    fd = os.open(folder / "junk", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with suppress(OSError):
        while os.write(fd, bytes(4096)) == 4096:
            pass
    os.close(fd)
    assert free(folder) == 0


async def insert_until_refused(things: Shelf, name: str, folder: Path) -> CollectionId:
    opened = await things.collection(8, name)
    vectors = unit(np.random.default_rng(1), 4000, 8)
    try:
        for low in range(0, len(vectors), 50):
            some = vectors[low : low + 50]
            await opened.insert(ACTOR, [NewRecord(f"r{low + n}", one, WORDS) for n, one in enumerate(some)])
    except VolumeFull:
        # What the log of the ledger and its indexes take beside the records comes out of the reserve.
        assert RESERVE // 2 < free(folder) < RESERVE + 300_000, free(folder)
        return opened.collection.id
    raise AssertionError(f"nothing was refused: {free(folder)} bytes are free")


async def all_erased(things: Shelf) -> None:
    """What failed is tried again, here without a pause, until it is done."""
    trying = things.collections._erasing._again
    if trying is not None:
        await asyncio.wait_for(trying, 60)
    assert things.collections.unerased == 0


async def at_once(_seconds: float) -> None:
    """Waits for others alone."""
    await asyncio.sleep(0)


async def main(folder: Path) -> None:
    ballast = folder / BALLAST
    async with shelf(folder, reserve=RESERVE, ballast=BALLAST_BYTES, pause=at_once) as things:
        assert things.space.restore_ballast()
        identity = await insert_until_refused(things, "things", folder)
        opened = await things.collections.open(None, identity)
        before = opened.count
        fill(folder)
        assert all(await opened.delete(ACTOR, [f"r{n}" for n in range(50)]))
        assert not ballast.exists()
        assert await opened.delete_matching(ACTOR, filters.compile({"_id": "r60"})) in {0, 1}
        assert opened.count <= before - 50
        (folder / "junk").unlink()
        assert things.space.restore_ballast()
        fill(folder)
        with suppress(VolumeFull):  # a ballast as small as this does not hold all changes of so many rows
            await things.collections.empty(ACTOR, None, identity)
        assert not ballast.exists()
        await all_erased(things)
        assert (await things.collections.get(None, identity)).count == 0
        (folder / "junk").unlink()
        identity = (await things.collection(8, "others")).collection.id
        assert things.space.restore_ballast()
        fill(folder)
        await things.collections.remove(ACTOR, None, identity)
        assert not ballast.exists()
        await all_erased(things)
        assert len([kind for _, _, kind in things.keyring.containers() if kind == "collection"]) == 1
    async with shelf(folder, reserve=RESERVE, ballast=BALLAST_BYTES) as things:
        assert [one.count for one in await things.collections.list()] == [0]


if __name__ == "__main__":
    state = Path(sys.argv[1]) / "state"
    state.mkdir()
    if os.geteuid() == 0:
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(state)], check=True)
    asyncio.run(main(state))
