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
    ],
)
def test_does_not_match(document: object) -> None:
    assert not filters.compile(document).matches(RECORD)


def test_names_the_fields_that_decide() -> None:
    document = {"a": 1, "$and": [{"b": {"$in": [1]}}, {"a": 2}]}
    assert filters.compile(document).fields == {"a", "b"}


def nested(levels: int) -> dict[str, object]:
    document: dict[str, object] = {"a": 1}
    for _ in range(levels):
        document = {"$and": [document]}
    return document


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"size": {"$gt": 3}}, r"size: the operator \$gt"),
        ({"$or": [{"a": 1}]}, r"the operator \$or"),
        ({"size": {"$in": [1], "$lt": 3}}, r"\$lt"),
        ({"size": {"$in": 3}}, r"size: \$in .* list"),
        ({"size": {"$in": [1], "plain": 3}}, r"size: \$in stands alone"),
        ({"size": {"$in": [{"$gt": 3}]}}, r"\$gt"),
        ({"maker": {"name": {"$regex": "^B"}}}, r"\$regex"),
        ({"$and": {"a": 1}}, r"\$and needs a list"),
        ({"$and": []}, r"\$and needs a list"),
        ({"$and": [1]}, "an object is needed, not int"),
        ({"maker.name": "x"}, "maker.name"),
        ({"": 1}, "field name"),
        ({"a": float("nan")}, "nan"),
        ([], "an object is needed, not list"),
        ("colour", "not str"),
        (None, "not NoneType"),
        (nested(16), "nested deeper"),
        ({"a": [[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]}, "nested deeper"),
        ({"$and": [{"a": 1}] * 1001}, "more than 1000 conditions"),
        ({"a": {"$in": list(range(10_001))}}, "more than 10000 values"),
        ({f"f{n}": n for n in range(17)}, "more than 16 different fields"),
    ],
)
def test_refuses_and_names_the_reason(document: object, named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        filters.compile(document)


def test_the_limits_themselves_are_allowed() -> None:
    assert filters.compile(nested(15)).matches({"a": 1})
    assert filters.compile({"a": {"$in": list(range(10_000))}}).matches({"a": 9_999})
