"""Feeds in each format: what their items are, and what is refused before anything is made of it."""

import gzip
import json
import resource
from collections.abc import Sequence

import pytest

from appliance.errors import InvalidInput, TooLarge
from appliance.search.sync.formats import Feed, Unpacked
from appliance.search.sync.mapping import Mapped, Mapper, Mapping, Raw, Unusable, check_mapping
from appliance.search.sync.parsing import Item, parsing

GOOGLE = """<?xml version="1.0"?>
<rss xmlns:g="http://base.google.com/ns/1.0" version="2.0"><channel>
<title>A shop</title>
<item>
  <g:id>TV_123456</g:id><title>LG Flatron &amp; more</title><g:title>another vocabulary's</g:title>
  <g:image_link>http://shop.example/1.jpg</g:image_link>
  <g:additional_image_link>http://shop.example/2.jpg</g:additional_image_link>
  <g:additional_image_link>http://shop.example/3.jpg</g:additional_image_link>
  <g:shipping><g:country>CZ</g:country><g:price>14.95 EUR</g:price></g:shipping>
  <g:price>1500 EUR</g:price><g:mpn/>
</item>
<item><g:id>2</g:id><g:image_link>http://shop.example/b.jpg</g:image_link></item>
</channel></rss>"""
ATOM = """<feed xmlns="http://www.w3.org/2005/Atom"><title>x</title><entry>
<id>tag:1</id><link href="http://shop.example/p"/><image_link><![CDATA[http://shop.example/1?a=b&c]]></image_link>
</entry></feed>"""
HEUREKA = """<?xml version="1.0" encoding="windows-1250"?><SHOP><SHOPITEM>
<ITEM_ID>7</ITEM_ID><PRODUCTNAME>Židle</PRODUCTNAME><IMGURL>http://shop.example/7.jpg</IMGURL>
</SHOPITEM></SHOP>"""


def read(content: bytes, mapping: Mapping | None = None, size: int = 1 << 16) -> list[Raw]:
    unpacked, feed = Unpacked(), Feed(mapping or Mapping())
    found: list[Raw] = []
    for start in range(0, len(content), size):
        for piece in unpacked.pieces(content[start : start + size]):
            found += feed.feed(piece)
    return found + feed.feed(unpacked.close()) + feed.close()


def mapped(content: bytes, mapping: Mapping | None = None) -> list[Mapped | Unusable]:
    mapper = Mapper(mapping or Mapping())
    return [mapper.apply(item) for item in read(content, mapping)]


def test_a_merchants_rss_is_read_by_its_defaults() -> None:
    first, second = mapped(GOOGLE.encode())
    assert first == Mapped(
        "TV_123456",
        "http://shop.example/1.jpg",
        {
            "title": "LG Flatron & more",
            "additional_image_link": ["http://shop.example/2.jpg", "http://shop.example/3.jpg"],
            "shipping": {"country": "CZ", "price": "14.95 EUR"},
            "price": "1500 EUR",
        },
    )
    assert second == Mapped("2", "http://shop.example/b.jpg", {})


def test_atom_and_a_czech_shop_are_read_by_their_defaults() -> None:
    assert mapped(ATOM.encode()) == [
        Mapped("tag:1", "http://shop.example/1?a=b&c", {"link": {"href": "http://shop.example/p"}})
    ]
    (chair,) = mapped(HEUREKA.encode("windows-1250"))
    assert chair == Mapped("7", "http://shop.example/7.jpg", {"PRODUCTNAME": "Židle"})


def test_json_lies_where_the_mapping_says() -> None:
    items = [{"id": 1, "image": "x"}, {"id": 2, "image": "y"}]
    deep = {"a": [1, {"b": "]"}], "data": {"n": 1.5, "products": items, "more": None}, "z": "}"}
    assert read(json.dumps(items).encode()) == items
    assert read(json.dumps(deep).encode(), Mapping(items="data.products")) == items
    assert read("\n".join(map(json.dumps, items)).encode()) == items
    assert read(json.dumps(items[0]).encode()) == items[:1]
    assert read(json.dumps(items).encode("utf-16")) == items
    with pytest.raises(InvalidInput, match=r"mapping\.items"):
        read(json.dumps(deep).encode(), Mapping(items="data.things"))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_finds_its_delimiter_and_keeps_quoted_line_breaks(delimiter: str) -> None:
    rows = [["id", "title", "image"], ["1", '"a line\r\nanother, ""quoted"""', "x"], ["2", "", "y"]]
    content = "\r\n".join(delimiter.join(row) for row in rows)
    expected = [{"id": "1", "title": 'a line\r\nanother, "quoted"', "image": "x"}, {"id": "2", "image": "y"}]
    for end in ("", "\r\n", "\r\n\r\n"):
        assert read((content + end).encode("utf-8-sig")) == expected


def test_gzip_is_unpacked_and_nothing_is_a_feed_of_no_items() -> None:
    assert read(gzip.compress(b'[{"id": 1}]')) == [{"id": 1}]
    assert read(b"") == read(b"\xef\xbb\xbf \n") == read(b"[]") == read(b"<rss/>") == []


def test_a_mapping_names_fields_and_makes_numbers() -> None:
    mapping = Mapping(
        id="sku",
        image=("photo.large", "photo.small"),
        metadata={"name": "title", "price.eur": "offer.price", "brand": "brand"},
        numbers=("price.eur",),
    )
    item = {
        "sku": 7,
        "photo": {"small": "s", "large": ""},
        "title": "t",
        "offer": {"price": " 12.90 EUR"},
        "other": 1,
    }
    assert Mapper(mapping).apply(item) == Mapped("7", "s", {"name": "t", "price": {"eur": 12.9}})
    assert Mapper(mapping).apply({"photo": {"small": "s"}}) == Unusable("", "the item has no id")
    assert Mapper(mapping).apply({"sku": "7"}) == Unusable("7", "the item has no image")
    assert Mapper(mapping).apply({"sku": True, "photo": "x"}) == Unusable("", "the item has no id")


@pytest.mark.parametrize(
    "mapping",
    [
        Mapping(id=()),
        Mapping(image="a..b"),
        Mapping(metadata={"_id": "x"}),
        Mapping(metadata={"a": "x", "a.b": "y"}),
        Mapping(items="\n"),
        Mapping(numbers=("x",) * 1000),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(mapping: Mapping) -> None:
    with pytest.raises(InvalidInput, match=r"^mapping\."):
        check_mapping(mapping)


LAUGHS = b'<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><rss><item><id>&b;</id></item></rss>'
OUTSIDE = b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><rss/>'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LAUGHS, "DOCTYPE"),
        (OUTSIDE, "DOCTYPE"),
        (b"<rss><item><id>&undeclared;</id></item></rss>", "undefined entity"),
        (b"<rss><item><id>1</id></item>", "not well-formed"),
        (b"<rss>" + b"<a>" * 100, "within each other"),
        (b"<rss><item><id>" + b"x" * (2 << 20) + b"</id></item></rss>", "more than 1 MiB"),
        (b"<rss><item a='" + b"x" * (4 << 20), "more than 1 MiB"),
        (b'<?xml version="1.0" encoding="no-such"?><rss/>', "encoding"),
        (b'[{"id": 1}', "not whole"),
        (b'[{"id": 1},]', "is expected"),
        (b'[{"id": 1}] x', "something else follows"),
        (b'[{"id": NaN}]', "no JSON"),
        (b"[" * 100_000, "is expected"),
        (b'[{"a":' * 1 + b"[" * 200_000 + b"]" * 200_000, "nested too deep|no JSON"),
        (b'{"id": 1}\n{"id": 2', "not whole|ends within it"),
        (b'{"id": 1}\nnothing', "something else follows"),
        (b'{"id": "' + b"x" * (4 << 20), "larger than 1 MiB"),
        (b'id,image\n1,"x', "not whole"),
        (b"id,image\n1", "1 fields instead of 2"),
        (b"id,id\n1,2", "same name"),
        (b"id,image\n" + b"x" * (4 << 20), "more than 1 MiB"),
        (b'id,image\n1,"x"y\n', "quotes"),
        (",".join(map(str, range(2000))).encode() + b"\n", "columns"),
        (b'{"id": "\xe9"}', "no UTF-8"),
        (b"\xff\xfe{\x00\x00\xd8", "no UTF-8"),
        (b" " * (1 << 20), "blanks"),
        (gzip.compress(b'[{"id": 1}]', mtime=0)[:-9], "not whole"),
        (b"\x1f\x8b" + b"x" * 100, "not whole"),
        (gzip.compress(b"[]", mtime=0) + b"x", "goes on"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_what_is_hostile_or_not_whole_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        read(content)


async def parsed(pieces: Sequence[bytes], mapping: Mapping | None = None) -> list[Item]:
    found: list[Item] = []
    async with parsing(mapping or Mapping(), 65536) as parser:
        for piece in pieces:
            async for some in parser.feed(piece):
                found += some
        async for some in parser.close():
            found += some
    return found


async def test_the_child_gives_every_item_once_and_metadata_that_compares() -> None:
    lines = [json.dumps({"id": n, "image": "x", "b": 1, "a": "č"}).encode() + b"\n" for n in range(5000)]
    found = await parsed([b"".join(lines)])
    assert [item.id for item in found] == [str(n) for n in range(5000)]
    assert {item.metadata for item in found} == {'{"a":"č","b":1}'.encode()}


async def test_a_bomb_of_gzip_costs_the_child_alone() -> None:
    bomb = gzip.compress(b'[{"id": "' + bytes(64 << 20), 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((InvalidInput, TooLarge)):
        await parsed([bomb])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


async def test_what_no_record_can_hold_is_faulty_and_no_more() -> None:
    items = [
        {"id": "surrogate", "image": "x", "a": "\ud800"},
        {"id": "long" * 400, "image": "x"},
        {"id": "far", "image": "x" * 3000},
        {"id": "much", "image": "x", "a": "x" * 70_000},
        {"id": "fine", "image": "x"},
    ]
    found = await parsed([json.dumps(items).encode()])
    assert [bool(item.fault) for item in found] == [True] * 4 + [False]
