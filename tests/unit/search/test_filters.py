import gc
import time

import pytest

from appliance.errors import InvalidInput
from appliance.search import filters

RECORD = {
    "colour": "red",
    "size": 38,
    "sale": True,
    "tags": ["new", "shoe", 5],
    "maker": {"name": "Baťa", "since": 1894},
    "note": None,
    "code": "a.b*/c",
    "parts": [{"name": "sole", "sizes": [3, 4]}, {"name": "lace"}, 7],
    "year": {"2024": 7},
}


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"colour": "red"},
        {"size": 38},
        {"size": 38.0},
        {"sale": True},
        {"colour": "red", "size": 38},
        {"size": {"$in": [37, 38]}},
        {"tags": "shoe"},
        {"tags": ["new", "shoe", 5]},
        {"tags": {"$in": ["old", 5]}},
        {"maker": {"since": 1894, "name": "Baťa"}},
        {"note": None},
        {"absent": None},
        {"absent": {"$in": [None, 1]}},
        {"$and": [{"colour": "red"}, {"$and": [{"size": 38}]}]},
        {"size": {"$gt": 37, "$lt": 38.5, "$gte": 38, "$lte": 38}},
        {"size": {"$lt": 10**400, "$gt": -(10**400)}},
        {"tags": {"$gte": 5, "$lte": 5}},
        {"tags": {"$gt": "new"}},
        {"tags": {"$gt": "new", "$lt": "o"}},
        {"sale": {"$gt": False}},
        {"colour": {"$regex": "^re"}},
        {"colour": {"$regex": "^"}},
        {"tags": {"$regex": "^sh"}},
        {"code": {"$regex": r"^a\.b\*\/"}},
        {"maker.name": "Baťa"},
        {"maker.since": {"$lt": 1900}},
        {"parts.sizes": 4},
        {"parts.name": {"$in": ["lace"]}},
        {"parts.absent": None},
        {"size.unit": None},
        {"colour": {"$ne": "blue"}},
        {"absent": {"$ne": 1}},
        {"absent": {"$nin": [1, 2]}},
        {"absent": {"$exists": False}},
        {"note": {"$exists": True}},
        {"maker.name": {"$exists": 1}},
        {"tags.name": {"$exists": False}},
        {"size": {"$not": {"$gt": 38}}},
        {"size": {"$not": {"$not": {"$gt": 37}}}},
        {"colour": {"$not": {"$gt": 5}}},
        {"$or": [{"size": 1}, {"colour": "red"}]},
        {"$nor": [{"size": 1}, {"colour": "blue"}]},
        {"$or": [{"size": 1}, {}]},
        {"year": {"2024": 7}},
        {"year.2024": 7},
    ],
)
def test_matches(document: object) -> None:
    assert filters.compile(document).matches(RECORD)


@pytest.mark.parametrize(
    "document",
    [
        {"colour": "Red"},
        {"size": "38"},
        {"sale": 1},
        {"size": True},
        {"tags": "sho"},
        {"tags": ["new", "shoe"]},
        {"tags": ["shoe", "new", 5]},
        {"maker": {"name": "Baťa"}},
        {"note": False},
        {"absent": ""},
        {"size": {"$in": []}},
        {"colour": "red", "size": 39},
        {"$and": [{"colour": "red"}, {"size": 39}]},
        {"size": {"$gt": 38}},
        {"size": {"$gt": "37"}},
        {"size": {"$gte": 38, "$lt": 38}},
        {"sale": {"$gt": 0}},
        {"sale": {"$gt": True}},
        {"note": {"$gte": 0}},
        {"absent": {"$lt": 5}},
        {"maker": {"$gt": 1}},
        {"colour": {"$regex": "^Re"}},
        {"size": {"$regex": "^3"}},
        {"tags.0": "new"},
        {"tags.name": None},
        {"parts.sizes": {"$ne": 4}},
        {"parts.name": {"$nin": ["sole", "heel"]}},
        {"note": {"$ne": None}},
        {"note": {"$exists": False}},
        {"absent": {"$exists": True}},
        {"size": {"$not": {"$gte": 38}}},
        {"$or": [{"size": 1}, {"colour": "blue"}]},
        {"$nor": [{"size": 1}, {"colour": "red"}]},
        {"$nor": [{}]},
        {"colour": "red", "$nor": [{}]},
    ],
)
def test_does_not_match(document: object) -> None:
    assert not filters.compile(document).matches(RECORD)


def test_names_the_fields_that_decide() -> None:
    document = {"a": 1, "$or": [{"b.c": {"$in": [1]}}, {"a": {"$not": {"$gt": 2}}}]}
    assert filters.compile(document).fields == {"a", "b.c"}


@pytest.mark.parametrize(
    "document", [{}, {"$and": [{}]}, {"$or": [{"a": 1}, {}]}, {"$nor": [{"$nor": [{}]}]}]
)
def test_says_when_it_lets_everything_through(document: object) -> None:
    assert filters.compile(document).everything
    assert not filters.compile({"$and": [document, {"a": 1}]}).everything


def nested(levels: int) -> dict[str, object]:
    document: dict[str, object] = {"a": 1}
    for _ in range(levels):
        document = {"$and": [document]}
    return document


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"size": {"$mod": [3, 1]}}, r"size: the operator \$mod"),
        ({"tags": {"$elemMatch": {"$gt": 3}}}, r"tags: the operator \$elemMatch"),
        ({"$where": "true"}, r"the operator \$where"),
        ({"size": {"$in": 3}}, r"size: \$in .* list"),
        ({"size": {"$nin": 3}}, r"size: \$nin .* list"),
        ({"size": {"$in": [1], "plain": 3}}, r"size: plain stands among operators"),
        ({"size": {"$in": [{"$gt": 3}]}}, r"size: the operator \$gt"),
        ({"size": {"$ne": {"$gt": 3}}}, r"size: the operator \$gt"),
        ({"size": {"$gt": None}}, r"size: \$gt needs .* not null"),
        ({"size": {"$lte": [1]}}, r"size: \$lte needs .* not list"),
        ({"size": {"$lt": {"a": 1}}}, r"size: \$lt needs .* not dict"),
        ({"size": {"$gte": float("nan")}}, "size: nan"),
        ({"size": {"$exists": "yes"}}, r"size: \$exists needs"),
        ({"size": {"$not": 5}}, r"size: \$not needs an object of operators"),
        ({"size": {"$not": {}}}, r"size: \$not needs an object of operators"),
        ({"$not": {"size": 5}}, r"\$nor"),
        ({"$or": []}, r"\$or needs a list"),
        ({"$nor": {"a": 1}}, r"\$nor needs a list"),
        ({"a": {"$regex": "^a", "$options": "i"}}, r"a: the operator \$options"),
        ({"a": {"$regex": 5}}, r"a: \$regex takes \^ and a literal"),
        ({"a": {"$gt": "\ud800"}}, "a: .*surrogate"),
        ({"a": {"$regex": "^\ud800"}}, "a: .*surrogate"),
        ({"a..b": 1}, "a..b: a path"),
        ({".a": 1}, ".a: a path"),
        ({".".join("a" * 33): 1}, "a path is 1 to 32 names"),
        ({"maker": {"name": {"$regex": "^B"}}}, r"\$regex"),
        ({"$and": {"a": 1}}, r"\$and needs a list"),
        ({"$and": []}, r"\$and needs a list"),
        ({"$and": [1]}, "an object is needed, not int"),
        ({"": 1}, "field name"),
        ({"a": float("nan")}, "nan"),
        ([], "an object is needed, not list"),
        ("colour", "not str"),
        (None, "not null"),
        (nested(16), "nested deeper"),
        ({"a": [[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]}, "nested deeper"),
        ({"$and": [{"a": 1}] * 1001}, "more than 1000 conditions"),
        ({"$or": [{"$or": [{}] * 1000}] * 1000}, "more than 1000 conditions"),
        ({"a": {"$in": list(range(10_001))}}, "more than 10000 values"),
        ({"a": [[0] * 100] * 100}, "more than 10000 values"),
        ({"$nor": [{f"f{n}": {"$exists": True}} for n in range(17)]}, "more than 16 different fields"),
        ({f"f{n}": n for n in range(17)}, "more than 16 different fields"),
    ],
)
def test_refuses_and_names_the_reason(document: object, named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        filters.compile(document)


def test_the_limits_themselves_are_allowed() -> None:
    assert filters.compile(nested(15)).matches({"a": 1})
    assert filters.compile({"a": {"$in": list(range(10_000))}}).matches({"a": 9_999})


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "red",
        "^a.b",
        "^a$",
        "^a|b",
        "^(a+)+$",
        "^a*",
        r"^\d",
        "^[ab]",
        "^a{2}",
        "^(?i)a",
        "^\\",
        "a^b",
        r"\^a",
    ],
)
def test_a_regular_expression_that_is_no_prefix_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidInput, match=r"colour: \$regex takes \^ and a literal"):
        filters.compile({"colour": {"$regex": pattern}})


@pytest.mark.parametrize(
    "document",
    [
        {"$or": [{"a": n} for n in range(100_000)]},
        {"a": {"$in": list(range(100_000))}},
        {"a": {"$nin": [[n] for n in range(100_000)]}},
        {"a": {"$regex": "^" + "(a+)+" * 20_000}},
        {"a": {"$regex": "^" + "\\" * 100_001}},
        {".".join("a" * 100_000): 1},
        {f"f{n}": n for n in range(100_000)},
        {"a": {f"$x{n}": n for n in range(100_000)}},
    ],
    ids=["or", "in", "nin", "regex", "backslashes", "path", "fields", "operators"],
)
def test_a_bomb_is_refused_before_it_costs_anything(document: object) -> None:
    gc.disable()  # a collection of all that other tests have left in this process is not the filter's cost
    try:
        started = time.thread_time()
        with pytest.raises(InvalidInput):
            filters.compile(document)
        assert time.thread_time() - started < 0.1
    finally:
        gc.enable()
