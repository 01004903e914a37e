"""What of a record is shown: all fields, some, or parts of nested ones."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.api.payload import Payload
from appliance.api.projection import ID_ONLY, Projection, wanted
from appliance.errors import InvalidInput

SHOE: dict[str, object] = {
    "_id": "s",
    "name": "Runner",
    "size": {"eu": 42, "us": {"men": 9, "women": 10.5}},
    "shops": [{"city": "Brno", "stock": 3}, {"city": "Praha", "stock": 0}, "closed"],
    "a.b": "its own name has a dot",
    "none": None,
}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["*"], SHOE),
        (["name", "*"], SHOE),
        ([], {"_id": "s"}),
        (["name", "none", "nothing"], {"_id": "s", "name": "Runner", "none": None}),
        (["size.eu"], {"_id": "s", "size": {"eu": 42}}),
        (["size.us.men", "size.eu"], {"_id": "s", "size": {"eu": 42, "us": {"men": 9}}}),
        (["size.us", "size.us.men"], {"_id": "s", "size": {"us": {"men": 9, "women": 10.5}}}),
        (["size", "size.eu"], {"_id": "s", "size": SHOE["size"]}),
        (["shops.city"], {"_id": "s", "shops": [{"city": "Brno"}, {"city": "Praha"}]}),
        (["a.b"], {"_id": "s", "a.b": "its own name has a dot"}),
        (["size.depth"], {"_id": "s", "size": {}}),
        (["name.first"], {"_id": "s"}),
        (["none.x", ".", "size..eu", ""], {"_id": "s", "size": {}}),
    ],
)
def test_what_is_shown(names: list[str], expected: dict[str, object]) -> None:
    assert Projection(names).of(SHOE) == expected


def test_names_come_as_a_list_or_with_commas_between() -> None:
    assert wanted(Payload({"fields_to_return": "name,size.eu"}), ID_ONLY).of(SHOE) == {
        "_id": "s",
        "name": "Runner",
        "size": {"eu": 42},
    }
    assert wanted(Payload({"fields_to_return": None}), ID_ONLY).id_only
    assert wanted(Payload({"fields_to_return": ["_id"]}), ["*"]).id_only
    for bad in (7, {"name": 1}, [1], ["x." * 40]):
        with pytest.raises(InvalidInput, match="fields_to_return"):
            wanted(Payload({"fields_to_return": bad}), ID_ONLY)


KEYS = st.sampled_from(["a", "b", "a.b", ""])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers(0, 3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)
NAMES = st.lists(st.lists(st.sampled_from(["a", "b", ""]), min_size=1, max_size=4).map(".".join), max_size=4)


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(fields=st.dictionaries(KEYS, VALUES, max_size=4), names=NAMES)
def test_a_projection_only_leaves_out(fields: dict[str, object], names: list[str]) -> None:
    shown = Projection(names).of(fields)
    assert contained(shown, fields)
    assert Projection(names).of(shown) == shown
    assert Projection([*names, "*"]).of(fields) == fields


def contained(part: object, whole: object) -> bool:
    match part, whole:
        case dict(), dict():
            return all(name in whole and contained(value, whole[name]) for name, value in part.items())
        case list(), list():
            rest = iter(whole)
            return all(any(contained(one, other) for other in rest) for one in part)
        case _:
            return part == whole
