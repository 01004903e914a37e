"""Names of collections: found without opening any other, each once among its customer's."""

import asyncio
import dataclasses
from pathlib import Path
from uuid import UUID

import apsw
import pytest

from appliance.accounts.customers import CustomerId, Customers
from appliance.errors import Conflict, InvalidInput, NotFound
from appliance.ledger import Connection
from appliance.search import entries, names
from appliance.search.collections import CollectionId
from appliance.search.seals import Seals
from tests.searching import ACTOR, BACKBONE, NOW, Shelf, shelf

DIM = 4


async def add(things: Shelf, name: str, customer: CustomerId | None = None) -> CollectionId:
    return (await things.collections.add(ACTOR, customer or things.customer, name, BACKBONE, DIM)).id


def handles(connection: Connection) -> list[bytes | None]:
    return [row[0] for row in connection.execute("SELECT name_handle FROM collections ORDER BY number")]


def without(connection: Connection) -> None:
    """As a version left them that had no handles."""
    connection.execute("UPDATE collections SET name_handle = NULL")


async def test_a_name_finds_its_customer_s_collection_alone(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        one = await add(things, "shoes")
        async with Customers(things.ledger, lambda: NOW) as customers:
            other = (await customers.add(ACTOR, "other")).id
        theirs = await add(things, "shoes", other)
        assert (await things.collections.find(things.customer, " shoes ")).id == one
        assert (await things.collections.find(other, "shoes")).id == theirs
        await things.collections.rename(ACTOR, None, one, "boots")
        await things.collections.empty(ACTOR, None, one)
        assert (await things.collections.find(things.customer, "boots")).id == one
        for name in ("shoes", "Boots", ""):
            with pytest.raises(NotFound):
                await things.collections.find(things.customer, name)
        await things.collections.remove(ACTOR, None, theirs)
        with pytest.raises(NotFound):
            await things.collections.find(other, "shoes")


async def test_equal_names_of_two_customers_leave_different_traces(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        async with Customers(things.ledger, lambda: NOW) as customers:
            other = (await customers.add(ACTOR, "other")).id
        await add(things, "shoes")
        await add(things, "shoes", other)
        mine, theirs = await things.ledger.read(handles)
        assert mine is not None
        assert theirs is not None
        assert mine != theirs


async def test_of_two_that_want_a_name_at_once_one_gets_it(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        ended = await asyncio.gather(*(add(things, "same") for _ in range(8)), return_exceptions=True)
        assert sum(isinstance(one, Conflict) for one in ended) == 7
        assert len(await things.collections.list()) == 1
        assert sum(kind == "collection" for *_, kind in things.keyring.containers()) == 1
        made = [await add(things, f"{n}") for n in range(4)]
        renaming = (things.collections.rename(ACTOR, None, one, "wanted") for one in made)
        renamed = await asyncio.gather(*renaming, return_exceptions=True)
        assert sum(isinstance(one, Conflict) for one in renamed) == 3
        same = (await things.collections.get(None, made[0])).name
        assert (await things.collections.rename(ACTOR, None, made[0], same)).name == same


async def test_names_of_before_are_found_after_the_next_start(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        for n in range(5):
            await add(things, f"name {n}")
        before = await things.ledger.read(handles)
        await things.ledger.write(without)
    async with shelf(tmp_path) as things:
        assert await things.ledger.read(handles) == before
        with pytest.raises(Conflict):
            await add(things, "name 3")


async def test_a_name_that_does_not_open_stops_no_start(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        broken, sound = await add(things, "broken"), await add(things, "sound")

        def damage(connection: Connection) -> None:
            without(connection)
            connection.execute("UPDATE collections SET name = zeroblob(40) WHERE id = ?", (broken,))

        await things.ledger.write(damage)
    async with shelf(tmp_path) as things:
        assert [one.name for one in await things.collections.list()] == [f"damaged {broken}", "sound"]
        assert (await things.collections.find(things.customer, "sound")).id == sound
        renamed = await things.collections.rename(ACTOR, None, broken, "broken")
        assert (await things.collections.find(things.customer, "broken")) == renamed


async def test_two_of_one_name_are_both_there(tmp_path: Path) -> None:
    """What no version has left, and a ledger that was put together by hand may."""
    async with shelf(tmp_path) as things:
        first, second = await add(things, "same"), await add(things, "other")
        entry = await things.ledger.read(lambda c: entries.find_collection(c, None, second))
        sealed = Seals(things.keyring, entry.customer, entry.container).seal_name("same")

        def rename(connection: Connection) -> None:
            without(connection)
            connection.execute("UPDATE collections SET name = ? WHERE id = ?", (sealed, second))

        await things.ledger.write(rename)
    async with shelf(tmp_path) as things:
        assert [one.name for one in await things.collections.list()] == ["same", "same"]
        assert (await things.collections.find(things.customer, "same")).id == first
        await things.collections.rename(ACTOR, None, second, "another")


async def test_the_index_itself_keeps_names_apart(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        one = await add(things, "a")
        found = await things.ledger.read(lambda c: entries.find_collection(c, None, one))
        again = dataclasses.replace(
            found, id=CollectionId(str(UUID(int=1))), container=type(found.container)(str(UUID(int=2)))
        )
        with pytest.raises(apsw.ConstraintError):
            await things.ledger.write(lambda c: entries.add_collection(c, again))
        assert names.handle_of(things.keyring, things.customer, "a") == found.handle


async def test_lists_come_in_pages_that_removals_do_not_move(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        made = [await add(things, f"{n}") for n in range(7)]
        seen: list[CollectionId] = []
        after: CollectionId | None = None
        while page := await things.collections.list(things.customer, after=after, limit=3):
            seen += [one.id for one in page]
            after = seen[-1]
            if len(seen) == 3:
                await things.collections.remove(ACTOR, None, made[0])
        assert seen == made
        assert [one.id for one in await things.collections.list(limit=2)] == made[1:3]
        for nobody in (made[0], CollectionId("none")):
            with pytest.raises(InvalidInput, match="after"):
                await things.collections.list(things.customer, after=nobody)
