"""A collection against a dict and brute force: every operation, restarts included, gives the same answers."""

import asyncio
import itertools
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from appliance import config
from appliance.search import filters
from appliance.search.collections import NewRecord, OpenCollection, Record
from tests import mongo
from tests.searching import ACTOR, Shelf, shelf

DIM = 8
# Few enough directions that equal vectors, and so ties, are common; lengths that change no bit of them.
POOL = np.random.default_rng(1).standard_normal((200, DIM)).astype(np.float32)
STORED = (POOL / np.linalg.norm(POOL.astype(np.float64), axis=1, keepdims=True)).astype(np.float32)

names = st.one_of(
    st.sampled_from([f"id{n}" for n in range(40)]),
    st.text(min_size=1, max_size=5).filter(lambda text: "\0" not in text and text.isprintable()),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from([0.5, 1.0, "red", "green"]))
values = st.one_of(scalars, st.lists(scalars, max_size=3))
fields = st.sampled_from(["a", "b"])
metadata = st.dictionaries(fields, values, max_size=2)
directions = st.integers(0, len(POOL) - 1)
lengths = st.sampled_from([1.0, 2.0**-20, 2.0**20])
plain = st.dictionaries(fields, values, max_size=2)
comparisons = st.dictionaries(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), st.integers(-2, 2), min_size=1)
documents = st.one_of(
    plain,
    st.builds(lambda field, choices: {field: {"$in": choices}}, fields, st.lists(values, max_size=3)),
    st.builds(lambda field, bounds: {field: bounds}, fields, comparisons),
    st.builds(lambda field, bounds: {field: {"$not": bounds}}, fields, comparisons),
    st.builds(lambda one, other: {"$or": [one, {"$nor": [other]}]}, plain, plain),
    st.builds(lambda one, other: {"$and": [one, other]}, plain, plain),
    st.builds(lambda choices: {"_id": {"$in": choices}}, st.lists(names, max_size=5)),
)


@dataclass
class Kept:
    """A record of the model; the dict that holds it keeps the order of insertion."""

    direction: int
    metadata: dict[str, object]


class Machine(RuleBasedStateMachine):
    """Exact mode: every answer is equal, order included."""

    parent: ClassVar[Path]
    search_settings: ClassVar[config.Search] = config.Search(capacity=60)

    def __init__(self) -> None:
        super().__init__()
        self.folder = self.parent / str(len(list(self.parent.iterdir())))
        self.folder.mkdir()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.model: dict[str, Kept] = {}
        self.run(self.open())
        self.opened: OpenCollection = self.run(self.things.collection(DIM))
        self.identifier = self.opened.collection.id

    def run(self, act: Any) -> Any:
        return self.runner.run(act)

    async def open(self) -> None:
        self.things: Shelf = await self.stack.enter_async_context(shelf(self.folder, self.search_settings))

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()

    @rule(records=st.lists(st.tuples(names, directions, lengths, metadata), min_size=1, max_size=12))
    def insert(self, records: list[tuple[str, int, float, dict[str, object]]]) -> None:
        expected = []
        for name, direction, _, given in records:
            if name in self.model:
                expected.append("duplicate")
            elif len(self.model) >= self.search_settings.capacity:
                expected.append("full")
            else:
                expected.append("inserted")
                self.model[name] = Kept(direction, dict(given))
        new = [NewRecord(name, POOL[direction] * length, given) for name, direction, length, given in records]
        assert self.run(self.opened.insert(ACTOR, new)) == expected

    @rule(records=st.lists(st.tuples(names, directions, lengths, metadata), min_size=1, max_size=8))
    def upsert(self, records: list[tuple[str, int, float, dict[str, object]]]) -> None:
        expected = []
        for name, direction, _, given in records:
            replaced = self.model.pop(name, None) is not None
            if not replaced and len(self.model) >= self.search_settings.capacity:
                expected.append("full")
                continue
            expected.append("replaced" if replaced else "inserted")
            self.model[name] = Kept(direction, dict(given))
        new = [NewRecord(name, POOL[direction] * length, given) for name, direction, length, given in records]
        assert self.run(self.opened.upsert(ACTOR, new)) == expected

    @rule(changes=st.lists(st.tuples(names, metadata), max_size=4))
    def update(self, changes: list[tuple[str, dict[str, object]]]) -> None:
        expected: list[Record | None] = []
        for name, given in changes:
            if name in self.model:
                self.model[name].metadata |= given
                expected.append(Record(name, dict(self.model[name].metadata)))
            else:
                expected.append(None)
        assert self.run(self.opened.update(ACTOR, changes)) == expected

    @rule(gone=st.lists(names, max_size=6))
    def delete(self, gone: list[str]) -> None:
        expected = [self.model.pop(name, None) is not None for name in gone]
        assert self.run(self.opened.delete(ACTOR, gone)) == expected

    @rule(document=documents)
    def delete_matching(self, document: dict[str, Any]) -> None:
        wanted = filters.compile(document)
        if not wanted.conditions:
            return
        expected = self.matching(document)
        for name in expected:
            del self.model[name]
        assert self.run(self.opened.delete_matching(ACTOR, wanted)) == len(expected)

    @rule(asked=st.lists(names, max_size=5))
    def get(self, asked: list[str]) -> None:
        expected = [Record(name, self.model[name].metadata) if name in self.model else None for name in asked]
        assert self.run(self.opened.get(asked)) == expected
        for name, vector in zip(asked, self.run(self.opened.vectors(asked)), strict=True):
            assert (vector is None) == (name not in self.model)
            assert vector is None or np.array_equal(vector, STORED[self.model[name].direction])

    @rule(direction=directions, k=st.integers(1, 80), document=st.none() | documents)
    def search(self, direction: int, k: int, document: dict[str, Any] | None) -> None:
        wanted = None if document is None else filters.compile(document)
        hits = self.run(self.opened.search(POOL[direction], k, wanted))
        expected = self.nearest(direction, k, document)
        assert [(hit.id, hit.distance, hit.metadata) for hit in hits] == expected

    def nearest(
        self, direction: int, k: int, document: dict[str, Any] | None
    ) -> list[tuple[str, float, dict[str, object]]]:
        chosen = self.matching(document)
        query = STORED[direction].astype(np.float64)
        distances = [
            min(
                2.0,
                max(
                    0.0, round(1.0 - float(STORED[self.model[name].direction].astype(np.float64) @ query), 7)
                ),
            )
            for name in chosen
        ]
        order = sorted(range(len(chosen)), key=lambda position: (distances[position], position))[:k]
        return [(chosen[n], distances[n], self.model[chosen[n]].metadata) for n in order]

    def matching(self, document: dict[str, Any] | None) -> list[str]:
        return [
            name
            for name, kept in self.model.items()
            if mongo.matches(document or {}, kept.metadata | {"_id": name})
        ]

    @rule(document=st.none() | documents)
    def all(self, document: dict[str, Any] | None) -> None:
        wanted = None if document is None else filters.compile(document)
        found = self.run(self.opened.all(wanted))
        assert found == [Record(name, self.model[name].metadata) for name in self.matching(document)]

    @rule(size=st.integers(1, 20))
    def pages(self, size: int) -> None:
        seen: list[Record] = []
        for page in itertools.count(1):
            records, more = self.run(self.opened.page(page, size))
            seen += records
            if not more:
                break
        assert seen == [Record(name, kept.metadata) for name, kept in self.model.items()]

    @rule(size=st.integers(1, 20), document=st.none() | documents)
    def pages_by_position(self, size: int, document: dict[str, Any] | None) -> None:
        wanted = None if document is None else filters.compile(document)
        seen: list[Record] = []
        label: int | None = -1
        while label is not None:
            records, label = self.run(self.opened.after(label, size, wanted))
            assert label is None or len(records) == size
            seen += records
        assert seen == [Record(name, self.model[name].metadata) for name in self.matching(document)]

    @precondition(lambda self: self.model)
    @rule()
    def replace_most(self) -> None:
        """What makes dead rows outnumber the living: memory is compacted."""
        names = list(self.model)[: 4 * len(self.model) // 5]
        for _ in range(8):
            kept = [self.model.pop(name) for name in names]
            self.run(self.opened.delete(ACTOR, names))
            new = [
                NewRecord(name, POOL[one.direction], one.metadata)
                for name, one in zip(names, kept, strict=True)
            ]
            self.model |= dict(zip(names, kept, strict=True))
            assert self.run(self.opened.insert(ACTOR, new)) == ["inserted"] * len(new)
        self.run(self.opened.settle())

    @rule()
    def settle(self) -> None:
        self.run(self.opened.settle())

    @rule()
    def restart(self) -> None:
        self.run(self.stack.aclose())
        self.run(self.open())
        self.opened = self.run(self.things.collections.open(None, self.identifier))

    @invariant()
    def counts(self) -> None:
        assert self.opened.count == len(self.model)


class GraphMachine(Machine):
    """With a graph, however small the collection: as near as brute force finds, and measured exactly."""

    search_settings = config.Search(capacity=300, flat_bytes=0, ef=400)

    @rule(records=st.lists(st.tuples(names, directions, lengths, metadata), min_size=20, max_size=60))
    def insert_many(self, records: list[tuple[str, int, float, dict[str, object]]]) -> None:
        self.insert(records)

    @rule(direction=directions, k=st.integers(1, 80))
    def search_through_the_graph(self, direction: int, k: int) -> None:
        hits = self.run(self.opened.search(POOL[direction], k))
        expected = {name: rest for name, *rest in self.nearest(direction, len(self.model) or 1, None)}
        assert len({hit.id for hit in hits}) == len(hits)
        for hit in hits:
            assert expected[hit.id] == [hit.distance, hit.metadata]
        # Which of several equally distant ones a graph proposes is its own choice.
        nearest = [distance for _, distance, _ in self.nearest(direction, k, None)]
        assert [hit.distance for hit in hits] == nearest

    def search(self, direction: int, k: int, document: dict[str, Any] | None) -> None:
        if document is not None and not filters.compile(document).everything:
            super().search(direction, k, document)


def machine_settings(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("examples", [10, pytest.param(300, marks=pytest.mark.full)])
def test_a_collection_is_a_dict_with_exact_search(tmp_path: Path, examples: int) -> None:
    Machine.parent = tmp_path
    run_state_machine_as_test(Machine, settings=machine_settings(examples, 50))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("examples", [4, pytest.param(40, marks=pytest.mark.full)])
def test_a_collection_with_a_graph_gives_the_same_distances(tmp_path: Path, examples: int) -> None:
    GraphMachine.parent = tmp_path
    run_state_machine_as_test(GraphMachine, settings=machine_settings(examples, 50))
