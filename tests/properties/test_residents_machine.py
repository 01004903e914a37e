"""Many collections in little memory against dicts: come and go in any order, and nothing is lost."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from appliance import config
from appliance.accounts.customers import CustomerId, Customers
from appliance.errors import Conflict, NotFound
from appliance.ledger import Connection
from appliance.search import filters
from appliance.search.collections import CollectionId, NewRecord, OpenCollection
from tests.properties.test_collections_machine import machine_settings
from tests.searching import ACTOR, BACKBONE, NOW, brute_force, shelf

DIM = 8
POOL = np.random.default_rng(1).standard_normal((50, DIM)).astype(np.float32)
POOL /= np.linalg.norm(POOL, axis=1, keepdims=True)
BUDGET = 20_000  # about three of these collections
records = st.dictionaries(st.integers(0, 30), st.integers(0, len(POOL) - 1), min_size=1, max_size=8)


class Kept:
    """What the model knows of a collection: the direction of each record, in order of insertion."""

    def __init__(self, customer: CustomerId, name: str) -> None:
        self.customer = customer
        self.name = name
        self.records: dict[str, int] = {}


class Tenants(RuleBasedStateMachine):
    parent: ClassVar[Path]
    settings: ClassVar[config.Search] = config.Search(memory_bytes=BUDGET, max_collections=6, max_records=60)

    collections = Bundle[CollectionId]("collections")
    handles = Bundle[tuple[int, OpenCollection]]("handles")

    def __init__(self) -> None:
        super().__init__()
        self.folder = self.parent / str(len(list(self.parent.iterdir())))
        self.folder.mkdir()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.model: dict[CollectionId, Kept] = {}
        self.starts = 0
        self.run(self.open())

    def run(self, act: Any) -> Any:
        return self.runner.run(act)

    async def open(self) -> None:
        self.starts += 1
        self.things = await self.stack.enter_async_context(shelf(self.folder, self.settings))

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()

    @initialize()
    def customers(self) -> None:
        async def add() -> CustomerId:
            async with Customers(self.things.ledger, lambda: NOW) as customers:
                return (await customers.add(ACTOR, "other")).id

        self.owners = [self.things.customer, self.run(add())]

    def room(self, customer: CustomerId) -> int:
        kept = [one for one in self.model.values() if one.customer == customer]
        return self.settings.max_records - sum(len(one.records) for one in kept)

    @rule(target=collections, owner=st.integers(0, 1), name=st.sampled_from("abcdefgh"))
    def add(self, owner: int, name: str) -> Any:
        customer = self.owners[owner]
        names = [one.name for one in self.model.values() if one.customer == customer]
        adding = self.things.collections.add(ACTOR, customer, name, BACKBONE, DIM)
        if name in names or len(names) >= self.settings.max_collections:
            with pytest.raises(Exception, match=r"exists already|may have 6"):
                self.run(adding)
            return multiple()
        added = self.run(adding)
        self.model[added.id] = Kept(customer, name)
        return added.id

    @rule(target=handles, collection=collections)
    def keep_open(self, collection: CollectionId) -> Any:
        if collection not in self.model:
            with pytest.raises(NotFound):
                self.run(self.things.collections.open(None, collection))
            return multiple()
        return self.starts, self.run(self.things.collections.open(None, collection))

    @rule(collection=collections, given=records)
    def insert(self, collection: CollectionId, given: dict[int, int]) -> None:
        if (kept := self.model.get(collection)) is None:
            return
        new = [NewRecord(f"r{name}", POOL[direction], {"n": name}) for name, direction in given.items()]
        room, expected = self.room(kept.customer), []
        for name, direction in given.items():
            if f"r{name}" in kept.records:
                expected.append("duplicate")
            elif room <= 0:
                expected.append("full")
            else:
                room -= 1
                kept.records[f"r{name}"] = direction
                expected.append("inserted")

        async def insert() -> list[str]:
            return [*await (await self.things.collections.open(None, collection)).insert(ACTOR, new)]

        assert self.run(insert()) == expected

    @rule(collection=collections, gone=st.sets(st.integers(0, 30), max_size=6))
    def delete(self, collection: CollectionId, gone: set[int]) -> None:
        if (kept := self.model.get(collection)) is None:
            return
        names = [f"r{name}" for name in gone]

        async def delete() -> list[bool]:
            return await (await self.things.collections.open(None, collection)).delete(ACTOR, names)

        assert self.run(delete()) == [kept.records.pop(name, None) is not None for name in names]

    @rule(asked=st.lists(st.tuples(collections, st.integers(0, len(POOL) - 1)), min_size=1, max_size=12))
    def search(self, asked: list[tuple[CollectionId, int]]) -> None:
        """All at once: each is loaded while others are dropped for it."""
        present = [(self.model[one], one, direction) for one, direction in asked if one in self.model]

        async def search(collection: CollectionId, direction: int) -> list[str]:
            opened = await self.things.collections.open(None, collection)
            return [hit.id for hit in await opened.search(POOL[direction], 5)]

        async def every() -> list[list[str]]:
            return await asyncio.gather(*(search(one, direction) for _, one, direction in present))

        for (kept, _, direction), found in zip(present, self.run(every()), strict=True):
            assert found == nearest(kept, direction)

    @rule(handle=handles, direction=st.integers(0, len(POOL) - 1), odd=st.booleans())
    def use(self, handle: tuple[int, OpenCollection], direction: int, odd: bool) -> None:
        """What was opened before answers as it is now, or says that it is gone."""
        start, opened = handle
        if start != self.starts:
            return
        kept = self.model.get(opened.collection.id)
        if kept is None or opened.removed:
            with pytest.raises(NotFound):
                self.run(opened.search(POOL[direction], 5))
            return
        assert opened.count == len(kept.records)
        assert opened.collection.name == kept.name
        assert [hit.id for hit in self.run(opened.search(POOL[direction], 5))] == nearest(kept, direction)
        wanted = filters.compile({"n": {"$lt": 15}})
        small = [name for name in kept.records if int(name[1:]) < 15]
        assert [one.id for one in self.run(opened.all(wanted if odd else None))] == (
            small if odd else list(kept.records)
        )

    @rule(collection=consumes(collections))
    def remove(self, collection: CollectionId) -> None:
        if self.model.pop(collection, None) is not None:
            self.run(self.things.collections.remove(ACTOR, None, collection))

    @rule(collection=collections)
    def empty(self, collection: CollectionId) -> None:
        if (kept := self.model.get(collection)) is not None:
            self.run(self.things.collections.empty(ACTOR, None, collection))
            kept.records.clear()

    @rule(collection=collections, name=st.sampled_from("abcdefgh"))
    def rename(self, collection: CollectionId, name: str) -> None:
        if (kept := self.model.get(collection)) is None:
            return
        others = [one for one in self.model.values() if one is not kept and one.customer == kept.customer]
        renaming = self.things.collections.rename(ACTOR, None, collection, name)
        if name in [one.name for one in others]:
            with pytest.raises(Conflict):
                self.run(renaming)
        else:
            assert self.run(renaming).name == name
            kept.name = name

    @rule()
    def restart(self) -> None:
        self.run(self.stack.aclose())
        self.run(self.open())

    @invariant()
    def memory_is_within_its_budget_and_usage_is_what_is_there(self) -> None:
        assert self.things.count("appliance_search_memory_bytes") <= BUDGET

        def usage(connection: Connection) -> dict[Any, Any]:
            query = "SELECT customer, collections, records FROM search_usage WHERE collections > 0"
            return {customer: (some, most) for customer, some, most in connection.execute(query)}

        expected: dict[CustomerId, tuple[int, int]] = {}
        for kept in self.model.values():
            some, most = expected.get(kept.customer, (0, 0))
            expected[kept.customer] = some + 1, most + len(kept.records)
        assert self.run(self.things.ledger.read(usage)) == expected


def nearest(kept: Kept, direction: int) -> list[str]:
    names = list(kept.records)
    if not names:
        return []
    order, _ = brute_force(POOL[[kept.records[name] for name in names]], POOL[direction], 5)
    return [names[position] for position in order]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("examples", [6, pytest.param(200, marks=pytest.mark.full)])
def test_collections_come_and_go_and_nothing_is_lost(tmp_path: Path, examples: int) -> None:
    Tenants.parent = tmp_path
    run_state_machine_as_test(Tenants, settings=machine_settings(examples))
