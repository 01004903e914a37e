"""What one customer may have: so many collections, and so many records in all of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance import config
from appliance.accounts.customers import Customers
from appliance.errors import QuotaReached
from appliance.ledger import Connection
from appliance.ledger.database import open_writer
from appliance.ledger.migrations import migrate, shipped
from tests.clear_collections import COUNT, CUSTOMER, kept, old_state
from tests.searching import ACTOR, BACKBONE, NOW, numbered, shelf, unit

DIM = 4
VECTORS = unit(np.random.default_rng(1), 10, DIM)


def usage(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT collections, records FROM search_usage ORDER BY collections DESC"
    ).fetchall()


async def test_a_customer_has_so_many_collections_and_another_has_its_own(tmp_path: Path) -> None:
    async with shelf(tmp_path, config.Search(max_collections=2)) as things:
        one, _ = await things.collection(DIM, "one"), await things.collection(DIM, "two")
        keys = len(list(things.keyring.containers()))
        with pytest.raises(QuotaReached, match="2 collections"):
            await things.collection(DIM, "three")
        assert len(list(things.keyring.containers())) == keys
        async with Customers(things.ledger, lambda: NOW) as customers:
            other = (await customers.add(ACTOR, "other")).id
        await things.collections.add(ACTOR, other, "three", BACKBONE, DIM)
        await things.collections.empty(ACTOR, None, one.collection.id)
        await things.collections.remove(ACTOR, None, one.collection.id)
        await things.collection(DIM, "three")
        assert await things.ledger.read(usage) == [(2, 0), (1, 0)]


async def test_records_of_all_collections_count_together(tmp_path: Path) -> None:
    async with shelf(tmp_path, config.Search(capacity=6, max_records=8)) as things:
        one, two = await things.collection(DIM, "one"), await things.collection(DIM, "two")
        assert await one.insert(ACTOR, numbered(VECTORS[:7])) == ["inserted"] * 6 + ["full"]
        assert await two.insert(ACTOR, numbered(VECTORS[:4])) == ["inserted"] * 2 + ["full"] * 2
        assert await two.upsert(ACTOR, numbered(VECTORS[:3])) == ["replaced"] * 2 + ["full"]
        assert await two.insert(ACTOR, numbered(VECTORS[:3])) == ["duplicate"] * 2 + ["full"]
        await one.delete(ACTOR, ["r0", "r1", "none"])
        assert await two.upsert(ACTOR, numbered(VECTORS[:5])) == ["replaced"] * 2 + ["inserted"] * 2 + [
            "full"
        ]
        assert await things.ledger.read(usage) == [(2, 8)]
        await things.collections.empty(ACTOR, None, one.collection.id)
        assert await things.ledger.read(usage) == [(2, 4)]
        assert await two.insert(ACTOR, numbered(VECTORS[4:7], 4)) == ["inserted"] * 2 + [
            "full"
        ]  # its capacity
        await things.collections.remove(ACTOR, None, two.collection.id)
        assert await things.ledger.read(usage) == [(1, 0)]


async def test_a_quota_that_was_lowered_takes_nothing_away(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(VECTORS[:5]))
    async with shelf(tmp_path, config.Search(max_records=3, max_collections=1)) as things:
        opened = await things.collections.open(None, opened.collection.id)
        assert await opened.upsert(ACTOR, numbered(VECTORS[:6])) == ["replaced"] * 5 + ["full"]
        await opened.delete(ACTOR, ["r0", "r1"])
        assert await opened.insert(ACTOR, numbered(VECTORS[5:6])) == ["full"]
        await opened.delete(ACTOR, ["r2"])
        assert await opened.insert(ACTOR, numbered(VECTORS[5:7], 5)) == ["inserted", "full"]


def test_the_migration_counts_what_is_there(tmp_path: Path) -> None:
    old_state(tmp_path)
    connection = open_writer(tmp_path / "ledger.db")
    migrate(connection, shipped())
    query = "SELECT customer, collections, records FROM search_usage"
    assert connection.execute(query).fetchall() == [(CUSTOMER, 2, len(kept()))]
    assert len(kept()) < COUNT
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()
