"""A collection against a dict and brute force: the same answers after every act, restart and crash."""

import asyncio
import itertools
import shutil
from collections.abc import Iterator
from contextlib import AsyncExitStack
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from appliance import config
from appliance.errors import NotFound
from appliance.ledger import Connection
from appliance.search import filters, planner, segments, tiers
from appliance.search.collections import Hit, NewRecord, OpenCollection, Record
from tests import mongo
from tests.searching import ACTOR, Shelf, shelf

DIM = 8
STEPS = 50
# Few enough directions that equal vectors, and so ties, are common; lengths that change no bit of them.
POOL = np.random.default_rng(1).standard_normal((200, DIM)).astype(np.float32)
STORED = (POOL / np.linalg.norm(POOL.astype(np.float64), axis=1, keepdims=True)).astype(np.float32)

names = st.one_of(
    st.sampled_from([f"id{n}" for n in range(40)]),
    # Not by a filter, which would give most examples up.
    st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=5),
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

MANY: list[dict[str, object]] = [{}, {"a": 1}, {"a": "red", "b": [1, 2]}, {"b": None}, {"a": 0.5, "b": 2}]
counts = st.integers(60, 150)
seeds = st.integers(0, 1000)
Query = tuple[int, int, dict[str, Any] | None]
queries = st.tuples(directions, st.integers(1, 5) | st.integers(1, 80), st.none() | documents)


@dataclass
class Kept:
    """A record of the model; the dict that holds it keeps the order of insertion."""

    direction: int
    metadata: dict[str, object]


class Machine(RuleBasedStateMachine):
    """Exact mode: every answer is equal, order included."""

    parent: ClassVar[Path]
    folders: ClassVar[Iterator[int]] = itertools.count()
    search_settings: ClassVar[config.Search] = config.Search(capacity=60)
    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.folder = self.new_folder()
        self.folder.mkdir()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.model: dict[str, Kept] = {}
        self.name = "things"
        self.run(self.open())
        self.opened: OpenCollection = self.run(self.things.collection(DIM, self.name))
        self.identifier = self.opened.collection.id

    def new_folder(self) -> Path:
        return self.parent / str(next(self.folders))

    def run(self, act: Any) -> Any:
        return self.runner.run(act)

    async def open(self) -> None:
        self.things: Shelf = await self.stack.enter_async_context(shelf(self.folder, self.search_settings))

    async def reopen(self) -> None:
        self.opened = await self.things.collections.open(None, self.identifier)

    async def close(self) -> None:
        await self.stack.aclose()

    def teardown(self) -> None:
        self.run(self.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    @rule(records=st.lists(st.tuples(names, directions, lengths, metadata), min_size=1, max_size=6))
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

    @rule(records=st.lists(st.tuples(names, directions, lengths, metadata), min_size=1, max_size=5))
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

    @rule(asked=queries)
    def search(self, asked: Query) -> None:
        self.check(self.run(self.hits(*asked)), *asked)

    @rule(asked=st.lists(queries, min_size=2, max_size=3))
    def search_at_once(self, asked: list[Query]) -> None:
        async def all_at_once() -> list[list[Hit]]:
            return await asyncio.gather(*(self.hits(*one) for one in asked))

        for one, hits in zip(asked, self.run(all_at_once()), strict=True):
            self.check(hits, *one)

    async def hits(self, direction: int, k: int, document: dict[str, Any] | None) -> list[Hit]:
        wanted = None if document is None else filters.compile(document)
        return await self.opened.search(POOL[direction], k, wanted)

    def check(self, hits: list[Hit], direction: int, k: int, document: dict[str, Any] | None) -> None:
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
    def compact(self) -> None:
        """Dead rows outnumber the living until memory is compacted."""
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
        assert len(self.opened._segments.view().labels) - len(self.model) <= segments._FEW_DEAD

    @precondition(lambda self: len(self.model) >= 10)
    @rule()
    def empty(self) -> None:
        emptied = self.run(self.things.collections.empty(ACTOR, None, self.identifier))
        assert (emptied.id, emptied.name, emptied.count) == (self.identifier, self.name, 0)
        self.model.clear()
        with pytest.raises(NotFound):
            self.run(self.opened.all())
        self.run(self.reopen())

    @rule(name=st.sampled_from(["things", "others", "more"]))
    def rename(self, name: str) -> None:
        renamed = self.run(self.things.collections.rename(ACTOR, None, self.identifier, name))
        assert (renamed.name, renamed.count) == (name, len(self.model))
        self.name = name

    @rule()
    def settle(self) -> None:
        self.run(self.opened.settle())

    @rule()
    def restart(self) -> None:
        self.run(self.close())
        self.run(self.open())
        self.run(self.reopen())

    @rule()
    def crash(self) -> None:
        """As a kill between two commits leaves it: copied by the thread that writes, nothing tidied up."""
        before, after = self.folder, self.new_folder()

        def copy(_: Connection) -> None:
            # The index of the log is made anew by whoever opens it first.
            shutil.copytree(before, after, ignore=shutil.ignore_patterns("*-shm"))

        self.run(self.things.ledger.write(copy))
        self.run(self.close())
        shutil.rmtree(before)
        self.folder = after
        self.run(self.open())
        self.run(self.reopen())

    @invariant()
    def keeps_count(self) -> None:
        type(self).steps += 1
        found = self.opened.collection
        assert (found.name, found.count) == (self.name, len(self.model))


class SnapshotMachine(Machine):
    """Exact mode, with snapshots that are made and restored in between."""

    def __init__(self) -> None:
        self.copies: list[tuple[str, dict[str, Kept]]] = []
        super().__init__()

    @precondition(lambda self: len(self.copies) < self.search_settings.max_snapshots)
    @rule()
    def snapshot(self) -> None:
        made = self.run(self.things.collections.snapshots.add(ACTOR, None, self.identifier))
        assert made.records == len(self.model)
        self.copies.append((made.id, deepcopy(self.model)))

    @precondition(lambda self: self.copies)
    @rule(which=st.integers(0, 7))
    def restore(self, which: int) -> None:
        snapshot, model = self.copies[which % len(self.copies)]
        self.run(self.things.collections.snapshots.restore(ACTOR, None, self.identifier, snapshot))
        self.model = deepcopy(model)
        self.run(self.reopen())

    @precondition(lambda self: len(self.model) >= 10)
    @rule()
    def empty(self) -> None:
        super().empty()
        self.copies.clear()

    @invariant()
    def keeps_snapshots(self) -> None:
        listed = self.run(self.things.collections.snapshots.list(None, self.identifier))
        assert {one.id: one.records for one in listed} == {made: len(model) for made, model in self.copies}


class GraphMachine(Machine):
    """With a graph, however small the collection: as near as brute force finds, and measured exactly."""

    search_settings = config.Search(capacity=300, flat_bytes=0, ef=400)

    @initialize(count=counts, seed=seeds)
    def begin(self, count: int, seed: int) -> None:
        self.insert_many(count, seed)

    @rule(count=counts, seed=seeds)
    def insert_many(self, count: int, seed: int) -> None:
        """So many that drawing each would leave no room for other steps; then there is a graph."""
        rng = np.random.default_rng(seed)
        names, directions = rng.integers(400, size=count), rng.integers(len(POOL), size=count).tolist()
        self.insert(
            [
                (f"id{name}", one, 1.0, MANY[one % len(MANY)])
                for name, one in zip(names, directions, strict=True)
            ]
        )
        self.run(self.opened.settle())

    def check(self, hits: list[Hit], direction: int, k: int, document: dict[str, Any] | None) -> None:
        # Which of several equally distant ones a graph proposes is its own choice.
        nearest = self.check_sound(hits, direction, k, document)
        assert [hit.distance for hit in hits] == nearest

    def check_sound(
        self, hits: list[Hit], direction: int, k: int, document: dict[str, Any] | None
    ) -> list[float]:
        """The distances that exact search finds, after all else about the hits has been judged."""
        expected = self.nearest(direction, len(self.model) or 1, document)
        known = {name: rest for name, *rest in expected}
        assert len(hits) == len({hit.id for hit in hits}) == min(k, len(expected))
        for hit in hits:
            assert known[hit.id] == [hit.distance, hit.metadata]
        assert [hit.distance for hit in hits] == sorted(hit.distance for hit in hits)
        return [distance for _, distance, _ in expected[:k]]


class MergingMachine(GraphMachine):
    """With many graphs, of which long merges go on beside others over several steps: each record is in one of
    them or in the tail.

    `beside` tells how often more graphs than rest were seen, `merging` how often a merge was under way.
    """

    search_settings = config.Search(capacity=300, flat_bytes=0, ef=400, tail_bytes=8 * DIM * 4)
    beside: ClassVar[int] = 0
    merging: ClassVar[int] = 0

    @invariant()
    def each_is_in_one(self) -> None:
        sealing = self.opened.sealing
        assert sum(size - dead for size, dead in sealing.segments) + sealing.tail == self.opened.count
        type(self).beside += len(sealing.segments) > tiers.MOST
        type(self).merging += len(self.opened._segments._merges) > 0


class CrossingMachine(GraphMachine):
    """Collections that have a graph now and then, which is asked with filters too, and may miss some.

    `found` of all `wanted` hits are as near as they should be; `through_graph` answered so many with filters.
    """

    search_settings = config.Search(capacity=300, flat_bytes=30 * DIM * 4, ef=16)
    wanted: ClassVar[int] = 0
    found: ClassVar[int] = 0
    through_graph: ClassVar[float] = 0

    async def close(self) -> None:
        filtered = self.things.count("appliance_search_queries_total", path="filtered_graph")
        type(self).through_graph += filtered
        await super().close()

    def check(self, hits: list[Hit], direction: int, k: int, document: dict[str, Any] | None) -> None:
        nearest = self.check_sound(hits, direction, k, document)
        type(self).wanted += len(nearest)
        type(self).found += sum(hit.distance <= nearest[-1] for hit in hits)


def machine_settings(examples: int) -> settings:
    """So many examples of fifty steps, always the same ones."""
    return settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )


def run_machine(machine: type[Machine], parent: Path, steps: int) -> None:
    """So many steps or some more, in examples of fifty that each begin with an empty collection."""
    machine.parent, machine.steps = parent, 0
    examples = -(-5 * steps // (4 * STEPS))  # some run out of what there is to be drawn: one in ten, measured
    run_state_machine_as_test(machine, settings=machine_settings(examples))
    print(f"{machine.steps} steps")
    assert machine.steps >= steps


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("steps", [500, pytest.param(10_000, marks=pytest.mark.full)])
def test_a_collection_is_a_dict_with_exact_search(tmp_path: Path, steps: int) -> None:
    run_machine(Machine, tmp_path, steps)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("steps", [200, pytest.param(10_000, marks=pytest.mark.full)])
def test_a_snapshot_brings_back_the_dict_of_then(tmp_path: Path, steps: int) -> None:
    run_machine(SnapshotMachine, tmp_path, steps)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("steps", [200, pytest.param(10_000, marks=pytest.mark.full)])
def test_a_collection_with_a_graph_gives_the_same_distances(tmp_path: Path, steps: int) -> None:
    run_machine(GraphMachine, tmp_path, steps)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("steps", [100, pytest.param(10_000, marks=pytest.mark.full)])
def test_a_collection_with_many_graphs_gives_the_same_distances(tmp_path: Path, steps: int) -> None:
    MergingMachine.beside = MergingMachine.merging = 0
    run_machine(MergingMachine, tmp_path, steps)
    print(f"{MergingMachine.merging} steps beside a merge, {MergingMachine.beside} with five graphs or more")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("steps", [200, pytest.param(10_000, marks=pytest.mark.full)])
def test_a_collection_that_gains_and_loses_its_graph_misses_few(
    tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "_BYTE", 1.0)  # a scan costs more than any graph
    CrossingMachine.wanted = CrossingMachine.found = 0
    CrossingMachine.through_graph = 0
    run_machine(CrossingMachine, tmp_path, steps)
    recall = CrossingMachine.found / CrossingMachine.wanted
    print(f"recall {recall:.4f}, {CrossingMachine.through_graph:.0f} filtered searches through the graph")
    assert recall >= 0.99
    assert CrossingMachine.through_graph > 0
