"""Vectors at rest are proven again and again, whoever loads them or not."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

from appliance.accounts.audit import Event, entries
from appliance.ledger import Connection
from appliance.search.collections import CollectionId
from appliance.search.scrub import Scrub
from tests.searching import ACTOR, NOW, Shelf, numbered, shelf, unit

DIM = 512  # 31 vectors in a frame
DAY = 86_400.0


class Clock:
    """Moved by tests; each look at it may take its time."""

    def __init__(self, step: float = 0.0) -> None:
        self.now = NOW
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
async def things(tmp_path: Path) -> AsyncIterator[Shelf]:
    async with shelf(tmp_path) as opened:
        yield opened


def scrub_of(things: Shelf, clock: Clock) -> Scrub:
    # A registry of its own: the shelf's collections have a scrub already.
    registry = type(things.registry)()
    return Scrub(things.ledger, things.keyring, clock, registry, scrub_days=30)


async def filled(things: Shelf, name: str = "things", count: int = 1100) -> CollectionId:
    opened = await things.collection(DIM, name)
    vectors = unit(np.random.default_rng(1), count, DIM)
    await opened.insert(ACTOR, numbered(vectors))
    return opened.collection.id


async def flip(things: Shelf, number: int, *, byte: int = 1000) -> bytes:
    """Change one byte of the frame of this number; what it was."""

    def act(connection: Connection) -> bytes:
        key, content = connection.execute("SELECT key, content FROM frames LIMIT 1 OFFSET ?", (number,)).get
        changed = bytearray(content)
        changed[byte] ^= 1
        connection.execute("UPDATE frames SET content = ? WHERE key = ?", (bytes(changed), key))
        return bytes(content)

    return await things.ledger.write(act)


async def restore(things: Shelf, number: int, content: bytes) -> None:
    def act(connection: Connection) -> None:
        key = connection.execute("SELECT key FROM frames LIMIT 1 OFFSET ?", (number,)).get
        connection.execute("UPDATE frames SET content = ? WHERE key = ?", (content, key))

    await things.ledger.write(act)


async def test_a_flipped_bit_is_found_told_once_and_forgotten_when_it_is_mended(
    things: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    collection = await filled(things)
    clock = Clock()
    scrub = scrub_of(things, clock)
    assert await scrub.scrub(1) > 0.0
    assert scrub.damaged == 0
    content = await flip(things, 20)
    assert (await scrub.scrub(1), scrub.damaged) == (600.0, 0), "not due again"
    for _ in range(2):
        clock.now += 30 * DAY
        await scrub.scrub(1)
        assert scrub.damaged == 1
    assert caplog.text.count("damaged: the vectors of 31 records") == 1
    assert f"collection {collection}, from record 620 on" in caplog.text
    (row,) = [row for row in await things.ledger.read(entries) if row.event is Event.SEARCH_DAMAGED]
    assert (row.subject, row.customer, row.details) == (collection, things.customer, {"records": 31})
    await restore(things, 20, content)
    clock.now += 30 * DAY
    await scrub.scrub(1)
    assert scrub.damaged == 0


async def test_a_round_goes_on_after_a_restart_and_its_findings_stay(tmp_path: Path) -> None:
    async with shelf(tmp_path) as first:
        await filled(first)
        await flip(first, 0)
        await flip(first, 30)
        slow = scrub_of(first, Clock(step=0.4))
        assert await slow.scrub(1) == 0.0
        assert slow.damaged == 1
    async with shelf(tmp_path) as second:
        async with scrub_of(second, Clock()) as known:
            assert known.damaged == 1
        scrub = scrub_of(second, Clock())
        assert await scrub.scrub(1) > 0.0
        assert scrub.damaged == 2
        await flip(second, 5)
        assert (await scrub.scrub(1), scrub.damaged) == (600.0, 2), "the round is over"


async def test_every_frame_of_every_collection_is_proven_within_the_days(things: Shelf) -> None:
    for name in ("one", "two", "three"):
        await filled(things, name, 200)
    clock = Clock(step=0.3)
    scrub = scrub_of(things, clock)
    while await scrub.scrub(1) == 0.0:
        pass
    total = await things.ledger.read(lambda connection: connection.execute("SELECT count(*) FROM frames").get)
    for number in range(total):
        await flip(things, number)
    clock.now += 30 * DAY
    while await scrub.scrub(1) == 0.0:
        pass
    assert scrub.damaged == total


async def test_what_is_erased_is_no_finding(things: Shelf) -> None:
    collection, clock = await filled(things), Clock()
    scrub = scrub_of(things, clock)
    await flip(things, 3)
    await scrub.scrub(1)
    assert scrub.damaged == 1
    await things.collections.empty(ACTOR, None, collection)
    await scrub.scrub(1)
    clock.now += 30 * DAY
    await scrub.scrub(1)
    assert (scrub.damaged, scrub.keyless) == (0, [])


async def test_a_collection_without_its_key_is_a_finding_until_it_is_removed(things: Shelf) -> None:
    kept, lost = await filled(things, "kept", 40), await filled(things, "lost", 40)
    things.keyring.destroy(UUID(things.customer), UUID(lost))
    scrub = scrub_of(things, Clock())
    await scrub.scrub(1)
    assert (scrub.keyless, scrub.damaged) == ([lost], 0)
    await things.collections.remove(ACTOR, None, lost)
    await scrub.scrub(1)
    assert scrub.keyless == []
    assert (await things.collections.get(None, kept)).count == 40
