"""However a feed is cut on its way, its items are the same; and no bytes do anything but be refused."""

import contextlib
import csv
import io
import json
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import InvalidInput
from appliance.search.sync.formats import Feed
from appliance.search.sync.mapping import Mapping, Raw

plain = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | plain
    | st.sampled_from(['"', "\\", "]}", "\n"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3),
    max_leaves=6,
)
objects = st.lists(st.dictionaries(plain, values, max_size=4), max_size=5)
names = st.lists(st.text("abcdefgh", min_size=1, max_size=5), min_size=2, max_size=4, unique=True)
cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=10)
cuts = st.lists(st.integers(0, 4000), max_size=6)


def read(content: bytes, places: list[int], mapping: Mapping | None = None) -> list[Raw]:
    feed = Feed(mapping or Mapping())
    found: list[Raw] = []
    ends = sorted({min(place, len(content)) for place in places} | {len(content)})
    start = 0
    for end in ends:
        found += feed.feed(content[start:end])
        start = end
    return found + feed.close()


@settings(derandomize=True, deadline=None, max_examples=50)
@given(objects, cuts, st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]), st.sampled_from([None, 1]))
def test_json(items: list[dict[str, Any]], places: list[int], encoding: str, indent: int | None) -> None:
    text = json.dumps(items, ensure_ascii=False, indent=indent)
    assert read(text.encode(encoding), places) == items
    within = json.dumps({"n": 1, "in": {"items": items, "x": [1, "]"]}, "z": None}, ensure_ascii=False)
    assert read(within.encode(encoding), places, Mapping(items="in.items")) == items


@settings(derandomize=True, deadline=None, max_examples=50)
@given(objects, cuts)
def test_json_lines(items: list[dict[str, Any]], places: list[int]) -> None:
    assert read("\n".join(map(json.dumps, items)).encode(), places) == items


@settings(derandomize=True, deadline=None, max_examples=50)
@given(names, st.data(), cuts, st.sampled_from(",;\t|"))
def test_csv(columns: list[str], data: st.DataObject, places: list[int], delimiter: str) -> None:
    row = st.lists(cells, min_size=len(columns), max_size=len(columns))
    rows = data.draw(st.lists(row, max_size=5))
    written = io.StringIO()
    csv.writer(written, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([columns, *rows])
    expected = [{name: cell for name, cell in zip(columns, row, strict=True) if cell} for row in rows]
    assert read(written.getvalue().encode(), places) == expected


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.dictionaries(st.sampled_from("abcd"), plain, max_size=3), max_size=5), cuts)
def test_xml(items: list[dict[str, str]], places: list[int]) -> None:
    written = "".join(f"<item>{''.join(map(element, one.items()))}</item>" for one in items)
    expected = [{name: value.strip() or {"x": value} for name, value in one.items()} for one in items]
    assert read(f"<rss><title>t</title>{written}</rss>".encode(), places) == expected


def element(named: tuple[str, str]) -> str:
    name, value = named
    return f"<g:{name} x={quoteattr(value)}>{escape(value)}</g:{name}>"


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.binary(max_size=200) | st.text('[]{}":,<>/!&;a1 \n', max_size=80).map(str.encode), cuts)
def test_any_bytes_are_read_or_refused(content: bytes, places: list[int]) -> None:
    for named in ("auto", "json", "jsonl", "csv", "xml"):
        with contextlib.suppress(InvalidInput):
            read(content, places, Mapping(format=named))
