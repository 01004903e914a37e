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
numbers = st.sampled_from(
    [0, -1, 1, 1.0, 1.5, -0.0, 2**53, 2**53 + 1, float(2**53), 2**64, -(2**64) - 1, 10**400, -(10**400)]
)
strings = st.sampled_from(
    ["", "a", "ab", "b", "a.b", "a*b", "A", "a\0", "a\0b", "\ud7ff", "\ue000", "\uffff", "😀", "\U0010ffff"]
)
scalars = st.one_of(st.none(), st.booleans(), numbers, strings)
names = st.sampled_from(["a", "b", "0"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=2),
    max_leaves=5,
)
metadata = st.dictionaries(names, values, max_size=3)
paths = st.lists(names, min_size=1, max_size=3).map(".".join) | st.just("_id")


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
        st.sampled_from(["$and", "$or", "$nor"]),
        st.lists(inner, min_size=1, max_size=3),
        min_size=1,
        max_size=2,
    ),
    max_leaves=4,
)


async def found(document: object, stored: list[Metadata], later: list[Metadata]) -> list[int]:
    """What the columns find: built from some of the records, told of the others."""
    records = dict(enumerate(Record(f"id{n}", one) for n, one in enumerate(stored)))
    vectors = Vectors(1)

    async def page(after: int) -> list[tuple[int, Record]]:
        return [(label, record) for label, record in records.items() if label > after][:2]

    columns = Columns(page, vectors.view)
    for label, record in records.items():
        vectors.append([label], [record.id], np.ones((1, 1), np.float32))
    wanted = filters.compile(document)
    await columns.matching(wanted)
    for label, one in enumerate(later, len(stored)):
        vectors.append([label], [f"id{label}"], np.ones((1, 1), np.float32))
        columns.set(label, label, Record(f"id{label}", one))
    matching, view = await columns.matching(wanted)
    labels: list[int] = view.labels[matching.mask()].tolist()
    return labels


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
    @example({"a.b": None}, [{"a": 1}, {"a": []}, {"a": [1]}, {"a": [{}]}, {"a": [[{}]]}, {}], [])
    @example({"a": {"$gt": 2**53}}, [{"a": 2**53}, {"a": float(2**53)}], [{"a": 2**53 + 1}])
    @example({"a": {"$lt": 2**53 + 1}}, [{"a": 2**53}, {"a": 2**53 + 2}], [{"a": 2**53 + 1}])
    @example({"a": {"$regex": "^\ud7ff"}}, [{"a": "\ud7ff"}, {"a": "\ue000"}], [{"a": "\ud7ff\U0010ffff"}])
    @example({"a": {"$regex": "^\U0010ffff"}}, [{"a": "\U0010ffff"}, {"a": "\uffff"}], [{"a": "\U0010ffffb"}])
    @given(documents, st.lists(metadata, max_size=4), st.lists(metadata, max_size=3))
    def judged(document: dict[str, Any], stored: list[Metadata], later: list[Metadata]) -> None:
        everything = [one | {"_id": f"id{n}"} for n, one in enumerate([*stored, *later])]
        expected = [n for n, one in enumerate(everything) if mongo.matches(document, one)]
        assert asyncio.run(found(document, stored, later)) == expected
        wanted = filters.compile(document)
        assert [n for n, one in enumerate(everything) if wanted.matches(one)] == expected

    judged()
