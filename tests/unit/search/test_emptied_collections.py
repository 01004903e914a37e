"""Emptied and renamed collections: at once for everybody, whoever loads or uses them meanwhile."""

import asyncio
import dataclasses
from functools import partial
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

from appliance import config
from appliance.errors import Conflict, InvalidInput, NotFound
from appliance.ledger import Connection
from appliance.search.entries import Entry, find_collection, renew_collection
from appliance.search.records import CollectionId
from appliance.search.seals import ContainerId, Seals
from tests.searching import ACTOR, numbered, shelf, unit

DIM = 8
VECTORS = unit(np.random.default_rng(1), 700, DIM)


def rows(connection: Connection) -> int:
    count: int = connection.execute("SELECT count(*) FROM records").get
    return count


async def test_nothing_is_left_and_the_collection_goes_on(tmp_path: Path) -> None:
    async with shelf(tmp_path) as first:
        opened = await first.collection(DIM)
        await opened.insert(ACTOR, numbered(VECTORS))
        other = await first.collection(DIM, "other")
        await other.insert(ACTOR, numbered(VECTORS[:3]))
        emptied = await first.collections.empty(ACTOR, first.customer, opened.collection.id)
        assert emptied == (await first.collections.list())[-1]
        assert (emptied.id, emptied.name, emptied.count) == (opened.collection.id, "things", 0)
        assert await first.ledger.read(rows) == 3
        with pytest.raises(NotFound):
            await opened.insert(ACTOR, numbered(VECTORS[:1]))
        again = await first.collections.open(first.customer, emptied.id)
        assert await again.all() == []
        assert await again.insert(ACTOR, numbered(VECTORS[:2])) == ["inserted"] * 2
        assert other.count == 3
        with pytest.raises(NotFound):
            await first.collections.empty(ACTOR, first.customer, type(emptied.id)("nobody"))
    async with shelf(tmp_path) as second:
        once_more = await second.collections.open(None, emptied.id)
        assert [record.id for record in await once_more.all()] == ["r0", "r1"]


async def test_an_erasure_that_is_interrupted_goes_on(tmp_path: Path) -> None:
    async with shelf(tmp_path) as first:
        opened = await first.collection(DIM)
        await opened.insert(ACTOR, numbered(VECTORS))
        found = partial(find_collection, customer=None, id=opened.collection.id)
        old: Entry = await first.ledger.read(found)
        # As when the daemon is killed right after the commit.
        tombstone = CollectionId("00000000-0000-4000-8000-000000000000")
        container = ContainerId("00000000-0000-4000-8000-000000000001")
        first.keyring.add(UUID(first.customer), UUID(container), "collection")
        name = Seals(first.keyring, first.customer, container).seal_name("things")
        new = dataclasses.replace(old, container=container, name=name)
        await first.ledger.write(lambda connection: renew_collection(connection, old.number, new, tombstone))
    async with shelf(tmp_path) as second:
        assert (await second.collections.open(None, old.id)).count == 0
        await second.collections._erasing.settle()
        assert await second.ledger.read(rows) == 0
        assert [one.id for one in await second.collections.list()] == [old.id]
        keys = {key for _, key, kind in second.keyring.containers() if kind == "collection"}
        assert keys == {UUID(container)}


async def test_emptied_or_renamed_while_it_is_loaded(tmp_path: Path) -> None:
    async with shelf(tmp_path) as first:
        opened = await first.collection(DIM)
        await opened.insert(ACTOR, numbered(VECTORS))
        identifier = opened.collection.id
    for turn in range(5):
        async with shelf(tmp_path, config.Search()) as things:
            loaded, renamed = await asyncio.gather(
                things.collections.open(None, identifier),
                things.collections.rename(ACTOR, None, identifier, f"name {turn}"),
            )
            now = await things.collections.open(None, identifier)
            assert now.collection.name == renamed.name == f"name {turn}"
            assert loaded.count == now.count == 700
    async with shelf(tmp_path) as last:
        _, emptied = await asyncio.gather(
            last.collections.open(None, identifier), last.collections.empty(ACTOR, None, identifier)
        )
        now = await last.collections.open(None, identifier)
        assert now.count == emptied.count == 0
        assert await now.insert(ACTOR, numbered(VECTORS[:1])) == ["inserted"]


async def test_names_stay_unique(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        one, _ = await things.collection(DIM, "one"), await things.collection(DIM, "two")
        with pytest.raises(Conflict):
            await things.collections.rename(ACTOR, None, one.collection.id, "two")
        with pytest.raises(InvalidInput, match="name"):
            await things.collections.rename(ACTOR, None, one.collection.id, " ")
        await things.collections.rename(ACTOR, None, one.collection.id, "three")
        assert one.collection.name == "three"
        await things.collection(DIM, "one")
