"""Vectors at rest are proven again and again, whoever loads them or not."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

from appliance.accounts.audit import Event, entries
from appliance.ledger import Connection
from appliance.search.collections import CollectionId
from appliance.search.numbering import key_of
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


async def filled(things: Shelf, name: str = "things", count: int = 1100, *, dim: int = DIM) -> CollectionId:
    opened = await things.collection(dim, name)
    vectors = unit(np.random.default_rng(1), count, dim)
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
    assert scrub.damaged == (0, 0)
    content = await flip(things, 20)
    assert (await scrub.scrub(1), scrub.damaged) == (600.0, (0, 0)), "not due again"
    for _ in range(2):
        clock.now += 30 * DAY
        await scrub.scrub(1)
        assert scrub.damaged == (1, 0)
    assert caplog.text.count("the vectors of 31 records, from record 620:") == 1
    assert f"damaged: in collection {collection} the vectors" in caplog.text
    (row,) = [row for row in await things.ledger.read(entries) if row.event is Event.SEARCH_DAMAGED]
    assert (row.subject, row.customer) == (collection, things.customer)
    assert row.details == {"damaged": "vectors", "records": 31}
    await restore(things, 20, content)
    clock.now += 30 * DAY
    await scrub.scrub(1)
    assert scrub.damaged == (0, 0)


async def test_a_round_goes_on_after_a_restart_and_its_findings_stay(tmp_path: Path) -> None:
    async with shelf(tmp_path) as first:
        await filled(first)
        await flip(first, 0)
        await flip(first, 30)
        slow = scrub_of(first, Clock(step=0.4))
        assert await slow.scrub(1) == 0.0
        assert slow.damaged == (1, 0)
    async with shelf(tmp_path) as second:
        async with scrub_of(second, Clock()) as known:
            assert known.damaged == (1, 0)
        scrub = scrub_of(second, Clock())
        assert await scrub.scrub(1) > 0.0
        assert scrub.damaged == (2, 0)
        await flip(second, 5)
        assert (await scrub.scrub(1), scrub.damaged) == (600.0, (2, 0)), "the round is over"


async def flip_words(things: Shelf, collection: CollectionId, *labels: int) -> None:
    def act(connection: Connection) -> None:
        number = connection.execute("SELECT number FROM collections WHERE id = ?", (collection,)).get
        for label in labels:
            key = key_of(number, label)
            changed = bytearray(connection.execute("SELECT words FROM records WHERE key = ?", (key,)).get)
            changed[-20] ^= 1
            connection.execute("UPDATE records SET words = ? WHERE key = ?", (bytes(changed), key))

    await things.ledger.write(act)


async def audited(things: Shelf) -> list[object]:
    found = [row for row in await things.ledger.read(entries) if row.event is Event.SEARCH_DAMAGED]
    return [(row.subject, row.details) for row in found]


async def test_ids_and_metadata_that_nobody_reads_are_proven_too(things: Shelf) -> None:
    collection, clock = await filled(things, count=100), Clock()
    other = await filled(things, "other", 2500, dim=4)  # few frames, and more records than are read at once
    scrub = scrub_of(things, clock)
    await flip_words(things, collection, 0, 70)
    await flip_words(things, other, 2499)
    for _ in range(2):
        while await scrub.scrub(1) == 0.0:
            pass
        assert scrub.damaged == (0, 3)
        assert sorted(await audited(things), key=str) == sorted(
            [
                (collection, {"damaged": "records", "records": 2}),
                (other, {"damaged": "records", "records": 1}),
            ],
            key=str,
        )
        clock.now += 30 * DAY
    await things.collections.remove(ACTOR, None, other)
    await scrub.scrub(1)
    assert scrub.damaged == (0, 2)


async def test_what_is_found_in_use_is_a_finding_and_audited_once_for_a_collection_and_kind(
    tmp_path: Path,
) -> None:
    async with shelf(tmp_path) as before:
        collection = await filled(before, count=200)
        await before.collections.scrub.scrub(1)  # the round is over: nothing but use finds what comes now
        for number in (0, 2):
            await flip(before, number)
        await flip_words(before, collection, 40, 190)
    async with shelf(tmp_path) as things:
        scrub = things.collections.scrub
        opened = await things.collections.open(None, collection)
        assert opened.damaged == 62
        await scrub.look()
        vectors = (collection, {"damaged": "vectors", "records": 62})
        assert (scrub.damaged, await audited(things)) == ((2, 0), [vectors])
        assert len(await opened.all()) == 198
        await scrub.look()
        words = (collection, {"damaged": "records", "records": 2})
        assert (scrub.damaged, await audited(things)) == ((2, 2), [vectors, words])
        assert things.count("appliance_search_frames_damaged") == 2
        assert things.count("appliance_search_records_damaged") == 2
    async with shelf(tmp_path) as after, after.collections.scrub as known:
        assert known.damaged == (2, 2), "a restart forgets nothing"


async def test_a_vector_that_no_frame_has_is_a_finding_when_it_is_missed(things: Shelf) -> None:
    collection, scrub = await filled(things, count=40), things.collections.scrub
    await things.ledger.write(lambda connection: connection.execute("DELETE FROM frames"))
    await scrub.scrub(1)
    assert scrub.damaged == (0, 40)
    assert await audited(things) == [(collection, {"damaged": "records", "records": 40})]


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
    assert scrub.damaged == (total, 0)


async def test_what_is_erased_is_no_finding(things: Shelf) -> None:
    collection, clock = await filled(things), Clock()
    scrub = scrub_of(things, clock)
    await flip(things, 3)
    await scrub.scrub(1)
    assert scrub.damaged == (1, 0)
    await things.collections.empty(ACTOR, None, collection)
    await scrub.scrub(1)
    clock.now += 30 * DAY
    await scrub.scrub(1)
    assert (scrub.damaged, scrub.keyless) == ((0, 0), [])


async def test_a_collection_without_its_key_is_a_finding_until_it_is_removed(things: Shelf) -> None:
    kept, lost = await filled(things, "kept", 40), await filled(things, "lost", 40)
    things.keyring.destroy(UUID(things.customer), UUID(lost))
    scrub = scrub_of(things, Clock())
    await scrub.scrub(1)
    assert (scrub.keyless, scrub.damaged) == ([lost], (0, 0))
    await things.collections.remove(ACTOR, None, lost)
    await scrub.scrub(1)
    assert scrub.keyless == []
    assert (await things.collections.get(None, kept)).count == 40
