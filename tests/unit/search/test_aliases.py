"""Names for collections: durable, sealed, and over in one step."""

import asyncio
from pathlib import Path
from uuid import UUID

import pytest

from appliance.accounts.audit import Event, entries
from appliance.accounts.customers import CustomerId
from appliance.errors import CapacityExceeded, InvalidInput, NotFound
from appliance.search import aliases as names
from appliance.search.collections import CollectionId
from tests.searching import ACTOR, Shelf, shelf

NAME = "the-shop-window"


def ledger_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("ledger.db*"))


async def two(things: Shelf) -> list[CollectionId]:
    return [(await things.collection(4, name)).collection.id for name in ("first", "second")]


async def test_a_name_goes_over_and_stays_so(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        first, second = await two(things)
        aliases = things.collections.aliases
        made = await aliases.point(ACTOR, things.customer, NAME, first)
        assert (await things.collections.named(things.customer, NAME)).collection.id == first
        assert (await things.collections.named(things.customer, made.id)).collection.id == first
        assert (await things.collections.named(things.customer, second)).collection.id == second
        over = await aliases.point(ACTOR, None, NAME, second)
        assert (over.id, over.collection) == (made.id, second)
        rows = [row for row in await things.ledger.read(entries) if row.event is Event.ALIAS_SET]
        assert [row.details for row in rows] == [
            {"collection": first},
            {"collection": second, "before": first},
        ]
        customer = things.customer
    async with shelf(tmp_path) as again:
        assert again.collections.aliases.list(None) == [over]
        assert (await again.collections.named(customer, NAME)).collection.id == second
    assert NAME.encode() not in ledger_bytes(tmp_path)


async def test_a_name_that_is_forgotten_leaves_no_key(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        first, _ = await two(things)
        aliases = things.collections.aliases
        made = await aliases.point(ACTOR, things.customer, NAME, first)
        await aliases.remove(ACTOR, things.customer, NAME)
        assert UUID(made.id) not in {container for _, container, _ in things.keyring.containers()}
        for named in (NAME, made.id):
            with pytest.raises(NotFound, match="no such collection"):
                await things.collections.named(things.customer, named)
        with pytest.raises(NotFound, match="no such alias"):
            await aliases.remove(ACTOR, things.customer, NAME)
        assert (await things.collections.get(things.customer, first)).name == "first"


async def test_the_alias_of_a_removed_collection_says_which_it_was(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        first, second = await two(things)
        await things.collections.aliases.point(ACTOR, things.customer, NAME, first)
        await things.collections.remove(ACTOR, things.customer, first)
        with pytest.raises(NotFound, match=first):
            await things.collections.named(things.customer, NAME)
        await things.collections.aliases.point(ACTOR, things.customer, NAME, second)
        assert (await things.collections.named(things.customer, NAME)).collection.id == second


async def test_what_is_no_name_or_no_collection_is_refused(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        first, _ = await two(things)
        aliases, other = things.collections.aliases, CustomerId("00000000-0000-4000-8000-000000000000")
        for name in ("", "a/b", "ü", "x" * 65, first, UUID(first).hex):
            with pytest.raises(InvalidInput, match="name"):
                await aliases.point(ACTOR, things.customer, name, first)
        for customer, collection in ((other, first), (things.customer, CollectionId("nothing"))):
            with pytest.raises(NotFound, match="no such collection"):
                await aliases.point(ACTOR, customer, NAME, collection)
        assert aliases.list(None) == []
        keys = [kind for _, _, kind in things.keyring.containers()]
        assert keys == ["collection"] * 2


async def test_of_calls_at_once_one_makes_the_name(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        targets = await two(things)
        point = things.collections.aliases.point
        made = await asyncio.gather(*(point(ACTOR, things.customer, NAME, one) for one in targets * 3))
        assert len({alias.id for alias in made}) == 1
        assert things.collections.aliases.list(things.customer) == made[-1:]


async def test_an_alias_without_its_key_is_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with shelf(tmp_path) as things:
        first, _ = await two(things)
        made = await things.collections.aliases.point(ACTOR, things.customer, NAME, first)
        things.keyring.destroy(UUID(things.customer), UUID(made.id))
        customer = things.customer
    async with shelf(tmp_path) as again:
        assert again.collections.aliases.list(None) == []
        assert f"alias {made.id} cannot be used" in caplog.text
        assert (await again.collections.aliases.point(ACTOR, customer, NAME, first)).collection == first


async def test_a_customer_has_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MOST", 2)
    async with shelf(tmp_path) as things:
        first, second = await two(things)
        aliases = things.collections.aliases
        for name in ("one", "two"):
            await aliases.point(ACTOR, things.customer, name, first)
        with pytest.raises(CapacityExceeded, match="2 aliases"):
            await aliases.point(ACTOR, things.customer, "three", first)
        await aliases.point(ACTOR, things.customer, "two", second)
        await aliases.remove(ACTOR, things.customer, "one")
        await aliases.point(ACTOR, things.customer, "three", first)
