import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from appliance.search import filters
from appliance.search.columns import MAX_COLUMNS, Columns
from appliance.search.records import Metadata, Record
from appliance.search.vectors import Vectors, View
from tests import mongo

COLOURS: list[object] = ["red", "green", None, True, 1, 1.5, ["red", "green"], [], {"a": 1}, ["red"]]


class Store:
    """Records that columns are built from: the ledger's part in pages of 10, and where they are in RAM."""

    def __init__(self) -> None:
        self.vectors = Vectors(1)
        self.records: dict[int, Record] = {}
        self.columns = Columns(self.page, self.view)
        self.reads = 0
        self.before_page: Callable[[int], Awaitable[None]] | None = None

    def view(self) -> View:
        return self.vectors.view()

    async def page(self, after: int) -> list[tuple[int, Record]]:
        self.reads += 1
        if self.before_page is not None:
            await self.before_page(after)
        later = sorted(label for label in self.records if label > after)
        return [(label, self.records[label]) for label in later[:10]]

    def insert(self, label: int, metadata: Metadata) -> None:
        self.records[label] = Record(f"id{label}", metadata)
        slot = self.vectors.slots
        self.vectors.append([label], np.ones((1, 1), np.float32))
        self.columns.set(label, slot, self.records[label])

    def update(self, label: int, metadata: Metadata) -> None:
        self.records[label] = Record(f"id{label}", metadata)
        self.columns.set(label, int(self.vectors.view().slots(np.array([label]))[0]), self.records[label])

    async def matching(self, document: object) -> list[int]:
        matching, view = await self.columns.matching(filters.compile(document))
        labels: list[int] = view.labels[matching.mask() & view.alive].tolist()
        return labels

    def expected(self, document: dict[str, Any]) -> list[int]:
        return [
            label
            for label, record in sorted(self.records.items())
            if mongo.matches(document, record.metadata | {"_id": record.id})
        ]


def filled(count: int) -> Store:
    store = Store()
    for label in range(count):
        metadata: Metadata = {"n": label % 7}
        if label % 11:
            metadata["colour"] = COLOURS[label % len(COLOURS)]
        store.insert(label, metadata)
    return store


async def test_columns_decide_as_the_filter_itself_does() -> None:
    store = filled(200)
    for value in [*COLOURS, "blue", 0, False, [["red"]]]:
        assert await store.matching({"colour": value}) == store.expected({"colour": value})
        both = {"colour": {"$in": [value, "green"]}, "n": 3}
        assert await store.matching(both) == store.expected(both)
    assert await store.matching({"_id": {"$in": ["id5", "id7", "id999"]}}) == [5, 7]


async def test_a_column_is_read_once_and_follows_inserts_and_updates() -> None:
    store = filled(50)
    assert await store.matching({"n": 100}) == []
    reads = store.reads
    store.insert(50, {"n": 100})
    store.update(3, {"n": 100})
    store.update(4, {})
    assert await store.matching({"n": 100}) == [3, 50]
    assert await store.matching({"n": None}) == [4]
    assert store.reads == reads


async def test_changes_while_a_column_is_built_are_in_it() -> None:
    store = filled(60)

    async def change(after: int) -> None:
        if after == 29:
            store.update(5, {"n": 100})  # read already
            store.update(45, {"n": 100})  # not read yet
            store.insert(60, {"n": 100})
        if after == 39:
            store.update(45, {"n": 101})

    store.before_page = change
    assert await store.matching({"n": {"$in": [100, 101]}}) == [5, 45, 60]
    assert await store.matching({"n": 101}) == [45]


async def test_records_that_move_while_a_column_is_built_are_found_at_their_new_place() -> None:
    store = filled(60)
    for label in range(0, 60, 2):
        store.vectors.kill(label)
        del store.records[label]
    await store.matching({"colour": "red"})

    async def compact(after: int) -> None:
        if after == 19:
            view = store.vectors.view()
            smaller, kept = store.vectors.without_dead(view)
            store.columns.move(smaller.catch_up(store.vectors, view, kept))
            store.vectors = smaller

    store.before_page = compact
    assert await store.matching({"n": 3}) == store.expected({"n": 3})
    assert store.vectors.slots == 30
    assert await store.matching({"colour": "red"}) == store.expected({"colour": "red"})


async def test_two_filters_at_once_build_a_column_once() -> None:
    store = filled(50)
    first, second = await asyncio.gather(store.matching({"n": 1}), store.matching({"n": 2}))
    assert first == store.expected({"n": 1})
    assert second == store.expected({"n": 2})
    assert store.reads == 6


async def test_the_least_recently_used_column_goes_first() -> None:
    store = filled(10)
    for number in range(MAX_COLUMNS):
        await store.matching({f"field{number}": 1})
    await store.matching({"field0": 1})
    await store.matching({"another": 1})
    reads = store.reads
    await store.matching({"field0": 1})
    assert store.reads == reads
    await store.matching({"field1": 1})
    assert store.reads > reads


async def test_values_that_updates_leave_behind_do_not_pile_up() -> None:
    store = filled(10)
    await store.matching({"n": 1})
    reads = store.reads
    for number in range(2000):
        store.update(1, {"n": number})
    assert await store.matching({"n": 1999}) == [1]
    assert store.reads > reads


async def test_a_mask_taken_before_a_change_may_be_computed_after_it() -> None:
    store = filled(20)
    matching, view = await store.columns.matching(filters.compile({"n": 3}))
    store.update(0, {"n": "new"})
    store.insert(20, {"n": 3})
    assert view.labels[matching.mask()].tolist() == [3, 10, 17]


async def test_what_changes_while_a_mask_is_computed_never_turns_into_a_match() -> None:
    """Neither what the record was nor what it became is asked for."""
    store = filled(20)
    matching, view = await store.columns.matching(filters.compile({"n": {"$nin": [3, "new"]}}))
    store.update(3, {"n": "new"})
    assert 3 not in view.labels[matching.mask()].tolist()


async def test_a_thousand_conditions_on_one_field_are_spread_over_the_records_once() -> None:
    store = filled(200)
    document = {"$or": [{"$and": [{"n": {"$gte": n}}, {"n": {"$lt": n + 1}}]} for n in range(3, 500)]}
    matching, _ = await store.columns.matching(filters.compile(document))
    assert matching._decide(matching.where)[0] == "n"
    assert await store.matching(document) == store.expected(document)


async def test_comparisons_follow_thousands_of_new_values_in_any_order() -> None:
    store = filled(0)
    order = np.random.default_rng(1).permutation(10_000).tolist()
    for label, n in enumerate(order):
        store.insert(label, {"n": n, "s": f"{n:05d}"})
        if label % 1999 == 0:
            await store.matching({"n": {"$gt": 0}, "s": {"$gt": ""}})
    middle = [label for label, n in enumerate(order) if 4_000 <= n < 5_000]
    assert await store.matching({"n": {"$gte": 4_000, "$lt": 5_000}}) == middle
    assert await store.matching({"s": {"$gte": "04000", "$lt": "05"}}) == middle
    assert await store.matching({"s": {"$regex": "^04"}}) == middle


async def test_a_filter_that_is_asked_again_is_decided_again_only_after_a_change() -> None:
    store = filled(20)
    wanted = filters.compile({"n": {"$in": [3, 100]}})
    first = (await store.columns.matching(wanted))[0].mask()
    assert (await store.columns.matching(filters.compile({"n": {"$in": [100, 3]}})))[0].mask() is first
    store.update(5, {"n": 100})
    assert await store.matching({"n": {"$in": [3, 100]}}) == [3, 5, 10, 17]
    store.insert(20, {"n": 100})
    assert await store.matching({"n": {"$in": [3, 100]}}) == [3, 5, 10, 17, 20]


async def test_what_lives_of_a_filter_is_kept_until_something_dies() -> None:
    store = filled(30)
    matching, view = await store.columns.matching(filters.compile({"_id": {"$in": ["id3", "id5", "id21"]}}))
    wanted = matching.among(matching.mask(), view, 0)
    assert matching.among(matching.mask(), view, 0) is wanted
    assert (wanted.within(0, 30), wanted.within(4, 21), wanted.within(4, 22)) == (3, 1, 2)
    store.vectors.kill(5)
    left = matching.among(matching.mask(), view, 1)
    assert view.labels[left.mask].tolist() == [3, 21]
    assert left.within(0, 30) == 2
