"""Collections in memory: within a budget, loaded once, never dropped while they are used."""

import asyncio
import gc
import inspect
import shutil
import threading
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance import config
from appliance.accounts.customers import CustomerId, Customers
from appliance.errors import NotFound
from appliance.ledger import Connection
from appliance.metrics import Registry
from appliance.search import filters
from appliance.search.collections import CollectionId, Collections, OpenCollection
from appliance.search.residents import Residents, held
from tests.searching import ACTOR, BACKBONE, NOW, Shelf, numbered, shelf, unit

DIM, RECORDS = 64, 40
VECTORS = unit(np.random.default_rng(1), RECORDS, DIM)
ONE = 7168 + RECORDS * (DIM * 4 + 9)
"""Bytes that one of these collections is counted with."""
EVERYTHING = filters.compile({"n": {"$gte": 0}})


async def fill(things: Shelf, customer: CustomerId, count: int, prefix: str = "") -> list[CollectionId]:
    """So many collections of the same records."""
    made = []
    for number in range(count):
        added = await things.collections.add(ACTOR, customer, f"{prefix}{number}", BACKBONE, DIM)
        opened = await things.collections.open(customer, added.id)
        await opened.insert(ACTOR, numbered(VECTORS))
        made.append(added.id)
    return made


async def other_customer(things: Shelf, name: str = "other") -> CustomerId:
    async with Customers(things.ledger, lambda: NOW) as customers:
        return (await customers.add(ACTOR, name)).id


async def nearest(collections: Collections, collection: CollectionId, number: int = 0) -> str:
    opened = await collections.open(None, collection)
    return (await opened.search(VECTORS[number], 1))[0].id


def loads(things: Shelf) -> float:
    return things.count("appliance_search_collections_loaded_total")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[CollectionId]]:
    folder = tmp_path_factory.mktemp("made")

    async def make() -> list[CollectionId]:
        async with shelf(folder) as things:
            return await fill(things, things.customer, 12)

    return folder, asyncio.run(make())


@pytest.fixture
def state(tmp_path: Path, made: tuple[Path, list[CollectionId]]) -> tuple[Path, list[CollectionId]]:
    """A state with 12 collections, none in memory."""
    return Path(shutil.copytree(made[0], tmp_path / "state")), made[1]


async def test_memory_stays_within_its_budget_and_every_answer_is_there(
    state: tuple[Path, list[CollectionId]],
) -> None:
    folder, made = state
    async with shelf(folder, config.Search(memory_bytes=4 * ONE)) as things:
        for turn in range(3):
            for number, collection in enumerate(made):
                assert await nearest(things.collections, collection, number) == f"r{number}"
                assert things.count("appliance_search_memory_bytes") <= 4 * ONE
                assert things.count("appliance_search_collections_open") == min(4, 12 * turn + number + 1)
        assert loads(things) == 36
        assert things.count("appliance_search_collections_evicted_total") == 32


async def test_what_fits_is_loaded_once(state: tuple[Path, list[CollectionId]]) -> None:
    folder, made = state
    async with shelf(folder, config.Search(memory_bytes=12 * ONE + 4096)) as things:
        for _ in range(3):
            await asyncio.gather(*(nearest(things.collections, collection) for collection in made))
        assert loads(things) == things.count("appliance_search_collections_open") == 12
        assert things.count("appliance_search_collections_evicted_total") == 0


async def test_a_burst_of_first_queries_loads_once(state: tuple[Path, list[CollectionId]]) -> None:
    folder, (first, *_) = state
    async with shelf(folder, config.Search(memory_bytes=0)) as things:
        found = await asyncio.gather(*(nearest(things.collections, first, n % 5) for n in range(100)))
        assert found == [f"r{n % 5}" for n in range(100)]
        assert loads(things) == 1


async def test_one_that_is_larger_than_the_budget_is_served(state: tuple[Path, list[CollectionId]]) -> None:
    folder, (first, second, *_) = state
    async with shelf(folder, config.Search(memory_bytes=0)) as things:
        opened = await things.collections.open(None, first)
        assert opened.count == opened.collection.count == RECORDS
        assert things.count("appliance_search_collections_open") == 1
        assert await nearest(things.collections, second) == "r0"
        assert things.count("appliance_search_collections_open") == 1
        assert await opened.delete(ACTOR, ["r0"]) == [True]
        assert await nearest(things.collections, second) == "r0"
        assert opened.count == opened.collection.count == RECORDS - 1
        assert await opened.insert(ACTOR, numbered(VECTORS[:1], 100)) == ["inserted"]
        assert await nearest(things.collections, second) == "r0"
        assert (await opened.search(VECTORS[0], 1))[0].id == "r100"
        assert [one.id for one in await opened.all(EVERYTHING)] == [
            f"r{n}" for n in [*range(1, RECORDS), 100]
        ]
        assert opened.count == RECORDS
        assert await opened.vectors(["r0"]) == [None]
        before = loads(things)
        await opened.search(VECTORS[0], 1)
        assert loads(things) == before  # it stays while no other one is asked for


async def test_what_is_in_use_is_not_dropped(state: tuple[Path, list[CollectionId]]) -> None:
    folder, (first, second, *_) = state
    started, go_on = threading.Event(), threading.Event()

    def wait(_: Connection, __: object) -> None:
        started.set()
        assert go_on.wait(10)

    async with shelf(folder, config.Search(memory_bytes=0)) as things:
        opened = await things.collections.open(None, first)
        before = loads(things)
        writing = asyncio.ensure_future(opened.insert(ACTOR, numbered(VECTORS[:1], 100), wait))
        await asyncio.to_thread(started.wait, 10)
        assert await nearest(things.collections, second) == "r0"  # which passes the budget
        assert (await opened.search(VECTORS[0], 1))[0].id == "r0"
        assert loads(things) == before + 1
        go_on.set()
        assert await writing == ["inserted"]
        assert [hit.id for hit in await opened.search(VECTORS[0], 2)] == ["r0", "r100"]


async def test_a_write_whose_caller_went_away_reaches_memory_once(
    state: tuple[Path, list[CollectionId]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it dropped while the writer is at it, a load across the commit could have the record twice."""
    folder, (first, second, *_) = state
    started, go_on = threading.Event(), threading.Event()

    def wait(_: Connection, __: object) -> None:
        started.set()
        assert go_on.wait(10)

    async with shelf(folder, config.Search(memory_bytes=0)) as things:
        opened = await things.collections.open(None, first)
        writing = asyncio.ensure_future(opened.insert(ACTOR, numbered(VECTORS[:1], 100), wait))
        await asyncio.to_thread(started.wait, 10)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await nearest(things.collections, second)
        read = things.ledger.read

        async def after_the_commit(query: Callable[[Connection], Any]) -> Any:
            monkeypatch.setattr(things.ledger, "read", read)
            go_on.set()
            await things.ledger.write(lambda _: None)
            return await read(query)

        monkeypatch.setattr(things.ledger, "read", after_the_commit)
        await opened.search(VECTORS[0], 1000)
        found = [hit.id for hit in await opened.search(VECTORS[0], 1000)]
        assert found[:2] == ["r0", "r100"]
        assert opened.count == len(found) == len(set(found)) == RECORDS + 1


async def test_what_changes_while_its_row_is_read_is_opened_as_it_is_now(
    state: tuple[Path, list[CollectionId]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, (first, *_) = state

    async def opened_during(change: Callable[[Shelf], Awaitable[object]]) -> tuple[str, int]:
        async with shelf(folder) as things:
            read = things.ledger.read

            async def overtaken(query: Callable[[Connection], Any]) -> Any:
                found = await read(query)
                monkeypatch.setattr(things.ledger, "read", read)
                await change(things)
                return found

            monkeypatch.setattr(things.ledger, "read", overtaken)
            opened = await things.collections.open(None, first)
            assert await opened.all() == await (await things.collections.open(None, first)).all()
            return opened.collection.name, opened.count

    rename = await opened_during(lambda things: things.collections.rename(ACTOR, None, first, "renamed"))
    assert rename == ("renamed", RECORDS)
    empty = await opened_during(lambda things: things.collections.empty(ACTOR, None, first))
    assert empty == ("renamed", 0)


async def test_a_recall_that_is_chosen_while_it_is_loaded_loses_no_record(
    state: tuple[Path, list[CollectionId]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, (first, *_) = state
    async with shelf(folder) as things:
        read, reads = things.ledger.read, 0

        async def overtaken(query: Callable[[Connection], Any]) -> Any:
            nonlocal reads
            found, reads = await read(query), reads + 1
            if reads == 3:  # its row and its only page have come; this one tells that there is no more
                monkeypatch.setattr(things.ledger, "read", read)
                await things.collections.aim(ACTOR, None, first, 0.99)
            return found

        monkeypatch.setattr(things.ledger, "read", overtaken)
        opened = await things.collections.open(None, first)
        assert reads == 3
        assert (opened.collection.recall, opened.damaged) == (0.99, 0)
        assert len(await opened.search(VECTORS[0], 1000)) == RECORDS


async def test_two_that_have_it_open_see_the_same_through_evictions(
    state: tuple[Path, list[CollectionId]],
) -> None:
    folder, (first, second, *_) = state
    async with shelf(folder, config.Search(memory_bytes=ONE)) as things:
        one = await things.collections.open(None, first)
        await nearest(things.collections, second)
        again = await things.collections.open(None, first)
        assert again is one
        await again.insert(ACTOR, numbered(VECTORS[:1], 100))
        await nearest(things.collections, second)
        assert (await one.get(["r100"]))[0] is not None
        await things.collections.rename(ACTOR, None, first, "renamed")
        assert one.collection.name == "renamed"
        await things.collections.empty(ACTOR, None, first)
        with pytest.raises(NotFound):
            await one.search(VECTORS[0], 1)
        await things.collections.remove(ACTOR, None, second)
        with pytest.raises(NotFound):
            await nearest(things.collections, second)


async def test_who_goes_through_many_takes_nothing_from_another_s_share(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        cold = await fill(things, things.customer, 20, "cold")
        hot = await fill(things, await other_customer(things), 5, "hot")
    async with shelf(tmp_path, config.Search(memory_bytes=11 * ONE)) as things:
        for collection in hot:
            await nearest(things.collections, collection)
        for turn, collection in enumerate(cold * 2):
            await nearest(things.collections, collection)
            await nearest(things.collections, hot[turn % 5], turn % RECORDS)
        assert loads(things) == 5 + 40
        assert things.count("appliance_search_collections_open") == 11


async def test_a_search_waits_for_few_loads_of_another(tmp_path: Path) -> None:
    """However many somebody else asked for before."""
    async with shelf(tmp_path) as things:
        many = await fill(things, things.customer, 30)
        (own,) = await fill(things, await other_customer(things), 1)
    async with shelf(tmp_path) as things:
        asked = [asyncio.ensure_future(nearest(things.collections, collection)) for collection in many]
        await asyncio.sleep(0)
        await nearest(things.collections, own)
        assert sum(one.done() for one in asked) < 15
        await asyncio.gather(*asked)


class Toy:
    """A resident of a given size."""

    removed = tended = False

    def __init__(self, residents: Residents, customer: str, size: int = 10) -> None:
        self.customer = CustomerId(customer)
        self.expected_bytes = self.memory_bytes = size
        self.place = residents.place(self)

    async def load(self) -> None:
        """Nothing to read."""

    def unload(self) -> None:
        """Nothing to drop."""

    async def close(self) -> None:
        """Nothing under way."""

    @held
    async def use(self) -> None:
        assert self.place.loaded


async def test_what_nobody_has_used_for_ten_minutes_goes_first() -> None:
    now = 0.0
    async with Residents(40, Registry(), lambda: now) as residents:
        idle = Toy(residents, "a")
        hot = [Toy(residents, "b") for _ in range(3)]
        for toy in (idle, *hot):
            await toy.use()
        now = 601.0
        for toy in hot:
            await toy.use()
        await Toy(residents, "b").use()
        assert [toy.place.loaded for toy in (idle, *hot)] == [False, True, True, True]


async def test_what_was_used_longest_ago_gives_way_but_to_nobody_who_takes_more() -> None:
    now = 0.0
    async with Residents(100, Registry(), lambda: now) as residents:
        few, many = [Toy(residents, "few") for _ in range(4)], [Toy(residents, "many") for _ in range(7)]
        for toy in (*few, *many[:6]):
            await toy.use()
            now += 1
        await many[6].use()
        assert [toy.place.loaded for toy in few] == [True] * 4
        assert [toy.place.loaded for toy in many] == [False] + [True] * 6
        for toy in (*many[1:], few[0], few[2], few[3]):
            await toy.use()
            now += 1
        await Toy(residents, "few").use()
        assert [toy.place.loaded for toy in few] == [True, False, True, True]
        for _ in range(9):
            await Toy(residents, "few").use()
            now += 1
        assert sum(toy.place.loaded for toy in many) == 5


async def test_who_has_nothing_to_give_is_given_room_by_others() -> None:
    async with Residents(100, Registry()) as residents:
        small = [Toy(residents, "a") for _ in range(10)]
        for toy in small:
            await toy.use()
        large = Toy(residents, "b", 75)
        await large.use()
        assert large.place.loaded
        assert [toy.place.loaded for toy in small] == [False] * 8 + [True] * 2


async def test_what_grew_in_use_makes_room_when_it_is_done() -> None:
    async with Residents(100, Registry()) as residents:
        first, second = Toy(residents, "a", 40), Toy(residents, "a", 40)
        await first.use()
        await second.use()
        second.memory_bytes = 70
        await second.use()
        assert (first.place.loaded, second.place.loaded) == (False, True)


async def test_what_works_by_itself_is_left_until_it_is_done() -> None:
    async with Residents(50, Registry()) as residents:
        first, second, third = (Toy(residents, "a", 30) for _ in range(3))
        first.tended = True
        await first.use()
        await second.use()
        assert (first.place.loaded, second.place.loaded) == (True, True)  # which passes the budget
        first.tended = False
        first.memory_bytes = 50  # it made something
        await third.use()
        assert [toy.place.loaded for toy in (first, second, third)] == [False, False, True]


async def test_what_cannot_be_loaded_takes_nothing() -> None:
    class Broken(Toy):
        async def load(self) -> None:
            raise NotFound("no such collection")

    registry = Registry()
    async with Residents(50, registry) as residents:
        broken = Broken(residents, "a")
        for _ in range(2):
            with pytest.raises(NotFound):
                await broken.use()
        assert registry.get_sample_value("appliance_search_memory_bytes") == 0
        assert registry.get_sample_value("appliance_search_collections_open") == 0


def test_everything_that_a_collection_answers_holds_it() -> None:
    for name, operation in inspect.getmembers(OpenCollection, inspect.iscoroutinefunction):
        if not name.startswith("_") and name not in {"load", "close"}:
            assert hasattr(operation, "__wrapped__"), f"{name} is not held"


async def test_what_is_counted_is_about_what_is_taken(tmp_path: Path) -> None:
    count = 60
    async with shelf(tmp_path) as things:
        made = await fill(things, things.customer, count)
    async with shelf(tmp_path) as things:
        await nearest(things.collections, made[0])
        gc.collect()
        tracemalloc.start()
        try:
            for collection in made[1:]:
                await nearest(things.collections, collection)
            gc.collect()
            taken, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        counted = things.count("appliance_search_memory_bytes") * (count - 1) / count
        assert taken <= counted <= 1.5 * taken
