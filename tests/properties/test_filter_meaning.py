"""Filters against a slow interpreter of MongoDB's language: whatever the metadata, the same records match."""

import asyncio
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from appliance.search import filters
from appliance.search.columns import Columns
from appliance.search.records import Metadata, Record
from appliance.search.vectors import Vectors
from tests import mongo

# Few and close to each other, so that conditions often just hold or just do not.
NUMBERS = [0, 1, 1.0, -0.5, 2**53, 2**53 + 1, 2**53 + 3, float(2**53 + 4), -(2**53) - 3, 10**400, -(10**400)]
STRINGS = [
    "",
    "a",
    "ab",
    "b",
    "a.b",
    "a*b",
    "A",
    "a\0",
    "a\0b",
    "\ud7ff",
    "\ue000",
    "\uffff",
    "😀",
    "\U0010ffff",
]
SCALARS = [None, True, False, *NUMBERS, *STRINGS]
LISTS: list[object] = [[], [[]], [None], [1], [1, "a"], [True, 2**53 + 3], [[1]], ["b", [1, "a"]]]
INSIDE: list[object] = [None, 1, "a", True, [1, 2**53 + 1], [], {"b": 1}, [{"b": 1}, 1]]
MIXED: list[object] = [{}, 1, [{"b": 1}], {"b": {"b": 1}}, {"0": 1}]
AT_A: list[object] = [
    *SCALARS,
    *LISTS,
    *({"b": one} for one in INSIDE),
    *([{"b": one}, {"b": 1}] for one in INSIDE),
    *([one, {"b": "a"}] for one in MIXED),
    *({}, {"0": 1}, {"b": 1, "0": "a"}),
]
# One of each kind that a filter may tell apart.
CORPUS: list[Metadata] = [{}, {"a": 1, "b": "a"}, {"b": [1, "a"]}, *({"a": one} for one in AT_A)]
numbers, strings = st.sampled_from(NUMBERS), st.sampled_from(STRINGS)
scalars = st.sampled_from([1, "a"]) | st.sampled_from(SCALARS)
names = st.sampled_from(["a", "b", "0"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=2),
    max_leaves=5,
)
metadata = st.dictionaries(names, values, max_size=3)
paths = st.sampled_from(["a", "a.b"]) | st.lists(names, min_size=1, max_size=3).map(".".join) | st.just("_id")


def operations(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Any one operator with its operand, or several in one condition."""
    return st.one_of(
        st.dictionaries(st.sampled_from(["$eq", "$ne"]), values, min_size=1),
        st.dictionaries(st.sampled_from(["$in", "$nin"]), st.lists(values, max_size=3), min_size=1),
        st.dictionaries(
            st.sampled_from(["$gt", "$gte", "$lt", "$lte"]),
            st.one_of(st.booleans(), numbers, strings),
            min_size=1,
            max_size=2,
        ),
        st.builds(lambda wanted: {"$exists": wanted}, st.booleans()),
        st.builds(lambda prefix: {"$regex": "^" + re.escape(prefix)}, strings),
        st.builds(lambda one: {"$not": one}, inner),
        st.builds(lambda one, other: one | other, inner, inner),
    )


conditions = st.dictionaries(
    paths, st.one_of(values, st.deferred(lambda: operators), st.deferred(lambda: operators)), max_size=2
)
operators: st.SearchStrategy[Any] = st.deferred(lambda: operations(operators))
joints = st.sampled_from(["$and", "$or", "$nor"])
documents = st.recursive(
    conditions,
    lambda inner: st.dictionaries(
        joints,
        st.lists(inner, min_size=1, max_size=3),
        min_size=1,
        max_size=2,
    ),
    max_leaves=4,
)


class Stored:
    """Records as a collection has them: some are there before a filter asks for a field, others later."""

    def __init__(self, before: list[Metadata]) -> None:
        self._records = [Record(f"id{label}", one) for label, one in enumerate(before)]
        self._vectors = Vectors(1)
        self._columns = Columns(self._page, self._vectors.view)
        self._append(len(before))

    async def _page(self, after: int) -> list[tuple[int, Record]]:
        return list(enumerate(self._records))[after + 1 : after + 51]

    def insert(self, metadata: Metadata) -> None:
        label = len(self._records)
        self._records.append(Record(f"id{label}", metadata))
        self._append(1)
        self._columns.set(label, label, self._records[-1])

    def _append(self, count: int) -> None:
        labels = range(self._vectors.slots, self._vectors.slots + count)
        self._vectors.append(labels, np.ones((count, 1), np.float32))

    async def matching(self, document: object) -> list[int]:
        matching, view = await self._columns.matching(filters.compile(document))
        labels: list[int] = view.labels[matching.mask()].tolist()
        return labels

    def expected(self, document: dict[str, Any]) -> list[int]:
        """By the judge; and a filter says the same of each record alone."""
        everything = [one.metadata | {"_id": one.id} for one in self._records]
        expected = [label for label, one in enumerate(everything) if mongo.matches(document, one)]
        wanted = filters.compile(document)
        assert [label for label, one in enumerate(everything) if wanted.matches(one)] == expected
        return expected


async def test_every_operator_with_every_kind_of_value_at_every_kind_of_path() -> None:
    stored = Stored(CORPUS)
    literals: list[object] = [*SCALARS, *LISTS, *MIXED, *INSIDE]
    operations = [{name: one} for name in ("$eq", "$ne") for one in literals]
    operations += [{name: [one, "ab"]} for name in ("$in", "$nin") for one in literals]
    operations += [{name: one} for name in ("$gt", "$gte", "$lt", "$lte") for one in SCALARS[1:]]
    operations += [{"$regex": "^" + re.escape(one)} for one in STRINGS]
    operations += [{"$exists": True}, {"$exists": False}, {"$gt": 0, "$lt": 1}]
    for field in ("a", "a.b", "a.b.b", "a.0", "b"):
        for operation in operations:
            for document in ({field: operation}, {field: {"$not": operation}}):
                assert await stored.matching(document) == stored.expected(document), document


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("examples", [250, pytest.param(5_000, marks=pytest.mark.full)])
def test_filters_mean_what_mongodb_means(examples: int) -> None:
    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @example({"a": {"$regex": "^\ud7ff"}}, [], [{"a": "\ud7ff\U0010ffff"}])
    @example({"a": {"$regex": "^\U0010ffff"}}, [], [{"a": "\U0010ffffb"}])
    @given(documents, st.lists(metadata, max_size=3), st.lists(metadata, max_size=3))
    def judged(document: dict[str, Any], others: list[Metadata], later: list[Metadata]) -> None:
        asyncio.run(judge(document, [*CORPUS, *others], later))

    async def judge(document: dict[str, Any], before: list[Metadata], later: list[Metadata]) -> None:
        stored = Stored(before)
        assert await stored.matching(document) == stored.expected(document)
        for one in later:
            stored.insert(one)
        assert await stored.matching(document) == stored.expected(document)

    judged()
