"""A COCO file says the same whether it is read whole or in pieces of any size."""

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.datasets.interchange.coco_rows import (
    AnnotationObject,
    CategoryObject,
    Document,
    ImageObject,
)
from appliance.datasets.interchange.json_parts import MOST_VALUE, Parts


class Labels(msgspec.Struct):
    labels: list[str] = []


class Whole(msgspec.Struct):
    """What a document says, as one decoder reads it."""

    images: list[ImageObject] | None = None
    annotations: list[AnnotationObject] = []
    categories: list[CategoryObject] = []
    appliance: Labels = msgspec.field(default_factory=Labels)


blanks = st.sampled_from(["", "", "", " ", "\n", "\t\r\n  "])
ids = st.one_of(st.integers(0, 5), st.sampled_from(["1", '"1"', '"a\\"]"', str(2**63), str(10**30), "-1"]))
values = st.sampled_from(
    [
        "null",
        "1",
        "-0.0",
        "1e3",
        '"}],"',
        '"\\\\"',
        '"\\""',
        "[]",
        "{}",
        '[{"a": [{}]}]',
        '{"]": {"[": 2}}',
        '"é"',
    ]
)
boxes = st.sampled_from(["[1, 2, 3, 4]", "[0.1,0.2,1e-3,5]", "[]", "null", "[1]", '["1"]', "{}"])


def members(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[str]:
    """An object with some of these fields, and some that mean nothing."""
    one = st.one_of(
        *(st.tuples(st.just(name), field) for name, field in fields.items()), st.tuples(st.just("x"), values)
    )
    return st.lists(one, max_size=4).map(lambda some: ",".join(f'"{name}":{value}' for name, value in some))


images = st.tuples(ids, members({"width": values, "appliance": values})).map(
    lambda one: f'{{"id":{one[0]},"file_name":"{one[0]}",{one[1]}}}'.replace(",}", "}").replace('""', '"')
)
categories = ids.map(lambda one: f'{{"id": {one}, "name": "n"}}')
annotations = st.tuples(ids, ids, members({"bbox": boxes, "category_id": ids, "segmentation": values})).map(
    lambda one: f'{{"id":{one[0]},"image_id":{one[1]},{one[2]}}}'.replace(",}", "}")
)


@st.composite
def lists(draw: st.DrawFn, elements: st.SearchStrategy[str]) -> str:
    comma = f"{draw(blanks)},{draw(blanks)}"
    return f"[{draw(blanks)}{comma.join(draw(st.lists(elements, max_size=5)))}{draw(blanks)}]"


member = st.one_of(
    st.tuples(st.sampled_from(['"annotations"', '"\\u0061nnotations"']), lists(annotations)),
    st.tuples(st.just('"images"'), st.one_of(lists(images), st.just("null"))),
    st.tuples(st.just('"categories"'), lists(categories)),
    st.tuples(
        st.just('"appliance"'),
        st.sampled_from(['{"labels": ["é"], "x": {}}', '{"x": [], "labels": []}', "{}"]),
    ),
    st.tuples(st.sampled_from(['"info"', '"a\\"["', '""']), st.one_of(values, lists(values))),
)


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """A document, or what is left of one after some bytes were changed; members may come twice."""
    comma = f"{draw(blanks)},{draw(blanks)}"
    some = [f"{name}{draw(blanks)}:{value}" for name, value in draw(st.lists(member, max_size=6))]
    text = bytearray(f"{draw(blanks)}{{{comma.join(some)}}}{draw(blanks)}".encode())
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(start + 2, len(text))))
        text[start:end] = draw(
            st.sampled_from([b"", b",", b"[", b"]", b"{", b"}", b'"', b"\\", b" ", b":", b"\xff"])
        )
    return bytes(text)


def cut(data: st.DataObject, text: bytes) -> list[bytes]:
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[start:end] for start, end in pairwise([0, *places, len(text)])]


def masked(raw: msgspec.Raw) -> bool:
    return bytes(raw) not in {b"", b"null", b"[]", b"{}", b"[[]]"}


def of_whole(text: bytes) -> tuple[object, ...] | None:
    """The rows of a document, None for what is no COCO file."""
    try:
        document = msgspec.json.decode(text, type=Whole)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    ids = [one.id for one in document.annotations]
    return (
        document.images
        and [(one.id, one.file_name, one.width, one.height, one.appliance) for one in document.images],
        [(one.id, one.name, one.supercategory) for one in document.categories],
        [
            (one.id, one.image_id, one.category_id, one.bbox, masked(one.segmentation), one.appliance)
            for one in document.annotations
        ],
        document.appliance.labels,
        next((place for place, one in enumerate(ids) if one in ids[:place]), None),
    )


def of_pieces(pieces: list[bytes]) -> tuple[object, ...] | None:
    document = Document()
    for piece in pieces:
        document.add(piece)
    document.end()
    if document.refusal is not None:
        return None
    return (
        document.images and list(map(msgspec.structs.astuple, document.images)),
        list(map(msgspec.structs.astuple, document.categories)),
        list(map(msgspec.structs.astuple, document.annotations)),
        document.labels,
        document.again,
    )


@settings(max_examples=400, derandomize=True)
@given(data=st.data(), text=documents())
def test_pieces_say_what_the_whole_says(data: st.DataObject, text: bytes) -> None:
    if text.lstrip().startswith(b"{"):
        assert of_pieces(cut(data, text)) == of_whole(text)


@settings(max_examples=200, derandomize=True)
@given(data=st.data(), text=documents().filter(of_whole))
def test_parts_say_together_what_the_whole_says(data: st.DataObject, text: bytes) -> None:
    parts, said = Parts(), dict[str, Any]()
    for part in [*(one for piece in cut(data, text) for one in parts.feed(piece)), parts.close()]:
        goes_on = None if part.goes_on is None else msgspec.json.decode(part.goes_on)
        for name, value in msgspec.json.decode(part.text, type=dict[str, Any]).items():
            if name != goes_on:
                said[name] = value
            elif isinstance(value, list):
                said[name] += value
            else:
                said[name] |= value
    assert said == msgspec.json.decode(text)


@pytest.mark.parametrize("element", [b"{}", b'["]"]', b'{"\\"": [[{}], "\\\\"]}', b'{"a": {"b": {}}}'])
@pytest.mark.parametrize("brackets", [b"[]", b"{}"])
def test_no_part_is_much_longer_than_a_piece(element: bytes, brackets: bytes) -> None:
    name = b'"n": ' if brackets == b"{}" else b""
    text = b'{"a": 1, "many": %c%b%c, "b": [2]}' % (
        brackets[0],
        b", ".join([name + element] * 5000),
        brackets[1],
    )
    parts, found, piece = Parts(), list[bytes](), 4096
    for start in range(0, len(text), piece):
        found += [part.text for part in parts.feed(text[start : start + piece])]
    found.append(parts.close().text)
    assert len(found) >= len(text) // piece
    assert max(map(len, found)) < 2 * piece


@pytest.mark.parametrize("length", [1000, 2000])
def test_a_member_with_a_long_name_is_read_in_one_part_or_several(length: int) -> None:
    text = b'{"%b": [%b], "images": []}' % (b"n" * length, b",".join([b"{}"] * 1000))
    parts, found = Parts(), 0
    for piece in in_pieces(text, 500):
        found += len([*parts.feed(piece)])
    assert (found > 2) == (length == 1000)
    assert of_pieces(in_pieces(text, 500)) == of_whole(text)


def test_a_value_without_an_end_is_refused_while_it_comes() -> None:
    for start in (b'{"images": ', b'{"info": "', b'{"annotations": [1', b" "):
        document, taken = Document(), 0
        document.add(b"   " + start)
        while document.refusal is None and taken < 2 * MOST_VALUE:
            document.add(b"[" * (1 << 20) if start.endswith(b": ") else b"1" * (1 << 20))
            taken += 1 << 20
        assert document.refusal is not None or not start.strip()
        assert document.size == 0


def refusal(pieces: list[bytes]) -> str | None:
    document = Document()
    for piece in pieces:
        document.add(piece)
    return document.end().refusal


def in_pieces(text: bytes, size: int) -> list[bytes]:
    return [text[start : start + size] for start in range(0, len(text), size)]


@pytest.mark.parametrize(
    "text",
    [
        b'{"images": [{"id": 1, "file_name": "a"}, {"id": "b"}]}',
        b'{"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": 3}]}',
        b'{"images": [{"id": 1, "file_name": "a"}], "categories": [{"id": 1, "name": 2}]}',
        b'{"images": [{"id": 1, "file_name": "a"}, {"id": 2 "file_name": "b"}]}',
        b'{"images": []} {"images": []}',
        b'{"images": [{"id": 1, "file_name": "a"}, ',
    ],
)
@pytest.mark.parametrize("size", [1, 3, 20])
def test_what_is_wrong_is_told_as_of_the_whole(text: bytes, size: int) -> None:
    with pytest.raises(msgspec.MsgspecError) as caught:
        msgspec.json.decode(text, type=Whole)
    assert refusal(in_pieces(text, size)) == str(caught.value)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b'{"images": [{"id": 1, "file_name": "a"} {"id": 2, "file_name": "b"}]}', 39),
        (b'{"images": [{"id": 1, "file_name": "a"},, {"id": 2, "file_name": "b"}]}', 39),
        (b'{"images": [{"id": 1, "file_name": "a"},]}', 39),
        (b'{"images": [{"id": 1, "file_name": "a"}] "x": 1}', 40),
        (b'{"images": [{"id": 1, "file_name": "a"}], }', 40),
    ],
)
def test_parts_are_told_apart_by_one_comma(text: bytes, place: int) -> None:
    said = refusal(in_pieces(text, 1))
    assert said == f"JSON is malformed: a comma and a value are expected (byte {place})"
