"""Deletions of much on a volume without a byte free: run in a mount namespace, which ends with it.

    unshare --mount python -m tests.faults.full_deletions FOLDER

A tmpfs is mounted on FOLDER/state, where a ledger has far more of a customer than its log has room for. There
is no ballast, the images have no files that would make room, and the volume is filled anew before each act.
What does not hold ends with a traceback.
"""

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

from appliance.api.payload import new_id
from appliance.asynchronous.requests import State
from appliance.datasets import rows
from appliance.datasets.records import Dataset, Image, ImageId
from appliance.errors import VolumeFull
from appliance.ledger import Connection
from appliance.ledger.database import LOG_BYTES
from appliance.search.replies import MAX_REPLY_BYTES, Asked, Replies, Reply
from tests.erasing import TOKEN, Everything, Held, everything, fill

MIB = 1 << 20
IMAGES, META_DATA_BYTES = 100, 60_000
"""Of each set of images; more than the log holds."""
ANSWERS, ANSWER_BYTES = 64, 100_000
REPLIES = 12
SECONDS = 60.0


def take_all(folder: Path) -> None:
    """Somebody else takes what is left."""
    fd = os.open(folder / "junk", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for size in (MIB, 4096):
        with suppress(OSError):
            while os.write(fd, bytes(size)) == size:
                pass
    os.close(fd)
    assert os.statvfs(folder).f_bavail == 0


async def add_images(parts: Everything, dataset: Dataset, label: int | None = None) -> list[Image]:
    """Rows of images with metadata, without files."""
    keys = parts.stand.datasets.keys(dataset)

    def act(connection: Connection) -> list[Image]:
        added = []
        for _ in range(IMAGES):
            image = Image(0, ImageId(new_id()), dataset.id, dataset.customer, 0, "png", 1, 1, 1, 1, False, 0)
            meta_data = keys.seal("meta_data", os.urandom(META_DATA_BYTES), image.id.encode())
            content = os.urandom(32)
            key = rows.add_image(connection, dataset.number, image, content, meta_data, rests_from=0)
            if label is not None:
                connection.execute("INSERT INTO image_labels VALUES (?, 0, ?, NULL, 0)", (label, key))
            found = rows.image(connection, dataset.customer, image.id)
            assert found is not None
            added.append(found)
        return added

    return await parts.stand.ledger.write(act)


async def add_answers(parts: Everything, held: Held) -> None:
    for _ in range(ANSWERS):
        request, _ = await parts.requests.add(TOKEN, held.id, "x")
        await parts.requests.finish(request.id, State.DONE, os.urandom(ANSWER_BYTES))
    replies = Replies(parts.stand.ledger, parts.stand.keyring, parts.stand.upkeep.leaps)
    for number in range(REPLIES):
        asked = Asked(held.id, held.collection, "a token", f"key {number}", bytes(32))
        keep = partial(replies.keep, asked=asked, reply=Reply(200, os.urandom(MAX_REPLY_BYTES)))
        await parts.stand.ledger.write(keep)


async def finds_no_room_at_once(parts: Everything, images: list[Image]) -> None:
    """The control: the same rows in one act, as it was before, are more than the log has room for."""

    def act(connection: Connection) -> None:
        for image in images:
            rows.begin_deleting(connection, image, 1)

    try:
        await parts.stand.ledger.write(act)
    except VolumeFull:
        return
    raise AssertionError("the volume is not full")


async def count(parts: Everything, dataset: Dataset) -> int:
    query = "SELECT count(*) FROM images WHERE dataset = ?"
    found: int = await parts.stand.ledger.read(lambda one: one.execute(query, (dataset.number,)).get)
    return found


async def main(folder: Path) -> None:
    async with everything(folder) as parts:
        one, held = parts.stand, await fill(parts)
        named = await one.datasets.add(TOKEN, held.id, "named")
        default = await one.datasets.default(held.id)
        label = await one.annotations.labels.add(TOKEN, named, "category", "label")
        listed, apart = await add_images(parts, named), await add_images(parts, named)
        await add_images(parts, named, label.key)
        await add_images(parts, named)
        await add_images(parts, default)
        await add_answers(parts, held)
        assert await one.ledger.empty_log()
        take_all(folder)
        await finds_no_room_at_once(parts, listed)

        await one.store.delete_all(TOKEN, listed)
        assert await count(parts, named) == 3 * IMAGES
        take_all(folder)
        await asyncio.gather(*(one.store.delete_all(TOKEN, [image]) for image in apart))
        assert await count(parts, named) == 2 * IMAGES
        take_all(folder)
        await one.annotations.labels.wipe(TOKEN, held.id, label.id)
        assert await count(parts, named) == IMAGES
        take_all(folder)
        await one.datasets.erase(TOKEN, named)
        await asyncio.wait_for(asyncio.gather(*one.datasets._erasing), SECONDS)
        assert await count(parts, named) == 0
        take_all(folder)
        assert (await parts.erasure.erase(TOKEN, held.id, held.name)).subject == held.id
        assert await parts.rows(held.id) == {}
        assert (folder / "ledger.db-wal").stat().st_size == LOG_BYTES
    async with everything(folder) as parts:
        assert parts.erasure.held_up == set()
        assert await parts.rows(held.id) == {}


if __name__ == "__main__":
    state = Path(sys.argv[1]) / "state"
    state.mkdir()
    if os.geteuid() == 0:
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(state)], check=True)
    asyncio.run(main(state))
