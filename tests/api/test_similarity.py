"""The search family over HTTP, with the cloud's codes."""

import base64
import json
import unicodedata
import uuid
from typing import Any

import pytest

from appliance.accounts.audit import Event
from appliance.accounts.rights import Scope
from tests.serving import Reply, Served, Tenant
from tests.shop import PHOTOS, Shop, code, ids, reasons, record

FAMILIES = [
    PHOTOS,
    "/similarity/products-new/v2",
    "/similarity/custom/v2",
    "/photo/search/v2",
    "/similarity/products/v2",
    "/image_matching/v2",
]


def test_insert_stores_fields_and_never_the_image_or_its_path(shop: Shop) -> None:
    sent = record(
        "a", colour="red", nested={"list": [1, None]}, _url="http://x/y.jpg", _file="/home/anna/a.jpg"
    )
    document = shop.insert(sent)
    assert code(document) == 210
    assert document["skipped_records"] == []
    (answered,) = document["answer_records"]
    assert answered.pop("_status")["code"] == 210
    assert (answered.pop("_width"), answered.pop("_height")) == (30, 20)
    kept = {"_id": "a", "colour": "red", "nested": {"list": [1, None]}, "_url": "http://x/y.jpg"}
    assert answered == kept
    found = shop.post("get", {"records": [{"_id": "a"}], "fields_to_return": ["*"]})
    assert found["answer_records"] == [kept]


def test_a_second_insert_is_refused_and_changes_nothing(shop: Shop) -> None:
    shop.insert(record("a", n=1))
    again = shop.insert(record("a", n=2))
    assert code(again) == 411
    assert reasons(again) == [411]
    mixed = shop.insert(record("b"), record("a"), record("b"))
    assert code(mixed) == 211
    assert ids(mixed) == ["b"]
    assert reasons(mixed) == [411, 411]
    assert [one["_id"] for one in mixed["skipped_records"]] == ["a", "b"]
    assert shop.post("get", {"records": [{"_id": "a"}], "fields_to_return": ["n"]})["answer_records"] == [
        {"_id": "a", "n": 1}
    ]


def test_a_record_without_an_id_gets_one(shop: Shop) -> None:
    (answered,) = shop.insert({"_base64": record("x")["_base64"], "n": 1})["answer_records"]
    assert uuid.UUID(answered["_id"]).version == 4
    assert shop.stored() == [answered["_id"]]


def test_records_that_cannot_be_stored_are_skipped_alone(shop: Shop) -> None:
    bad = [
        {"_id": "junk", "_base64": "!"},
        {"_id": "words", "_base64": base64.b64encode(b"words").decode()},
        {"_id": "far", "_url": "http://10.0.0.1/"},
        record("nul\0inside"),
        record("x" * 1025),
        record(17),
        record(""),
        record("large", note="x" * 70_000),
        record("deep", note=json.loads("[" * 40 + "]" * 40)),
    ]
    document = shop.insert(*bad, record("good/../ž"))
    assert code(document) == 211
    assert ids(document) == ["good/../ž"]
    assert reasons(document) == [400, 400, 400, 400, 400, 400, 400, 413, 400]
    assert shop.stored() == ["good/../ž"]
    assert code(shop.insert(bad[0])) == 400


def test_a_full_collection_says_412(shop: Shop, served: Served) -> None:
    opened = served.run(served.parts.collections.open(shop.tenant.id, shop.collection))  # type: ignore[arg-type]
    settings = opened._settings
    opened._settings = settings.model_copy(update={"capacity": 2})
    try:
        document = shop.insert(record("a"), record("b"), record("c"))
        assert (code(document), ids(document), reasons(document)) == (211, ["a", "b"], [412])
        document = shop.insert(record("c"))
        assert (code(document), reasons(document)) == (412, [412])
    finally:
        opened._settings = settings


def test_the_nearest_come_first_with_their_distances(shop: Shop) -> None:
    shop.insert(
        *(record(f"r{level}", level, level=level, even=level % 20 == 0) for level in range(0, 100, 10))
    )
    by_image = shop.post("visualKNN", {"query_record": record("q", 41), "k": 3})
    assert ids(by_image) == ["r40", "r50", "r30"]
    assert by_image["answer_distances"] == sorted(by_image["answer_distances"])
    assert by_image["answer_count"] == len(by_image["answer_distances"]) == 3
    assert by_image["statistics"]["OperationTime"] > 0
    by_id = shop.post("visualKNN", {"query_record": {"_id": "r40"}, "fields_to_return": ["*"]})
    assert ids(by_id)[0] == "r40"
    assert len(ids(by_id)) == 5
    assert by_id["answer_distances"][0] == pytest.approx(0, abs=1e-6)
    assert by_id["answer_records"][0] == {"_id": "r40", "level": 40, "even": True}
    filtered = shop.post(
        "visualKNN",
        {"query_record": {"_id": "r40"}, "k": 9, "filter": {"even": True}, "fields_to_return": ["even"]},
    )
    assert sorted(ids(filtered)) == ["r0", "r20", "r40", "r60", "r80"]
    assert all(one["even"] is True for one in filtered["answer_records"])


def test_exact_answers_on_demand(shop: Shop) -> None:
    shop.insert(*(record(f"r{level}", level, level=level) for level in range(0, 100, 10)))
    usual = {"query_record": {"_id": "r40"}, "k": 3, "records": None}
    for action in ("visualKNN", "nearDuplicates"):
        for exact in (True, False, None):
            answered = shop.post(action, usual | {"exact": exact})
            assert ids(answered) == ids(shop.post(action, usual))
    several = {"records": [{"_id": "r40"}, {"_id": "r90"}], "k": 2, "exact": True}
    assert [ids(one) for one in shop.post("visualKNN", several)["answers"]] == [
        ["r40", "r50"],
        ["r90", "r80"],
    ]


def test_every_route_returns_the_fields_that_are_asked_for(shop: Shop) -> None:
    sent = record("a", 10, size={"eu": 42, "us": 9}, note="x")
    expected = {"_id": "a", "size": {"eu": 42}}
    inserted = shop.insert(sent, fields_to_return=["size.eu"])["answer_records"][0]
    assert {
        name: value for name, value in inserted.items() if name not in {"_width", "_height", "_status"}
    } == expected
    named, one = {"fields_to_return": ["size.eu"]}, {"records": [{"_id": "a"}]}
    rank = {"query_record": {"_id": "a"}, "records": [record("a", 10, size={"eu": 42, "us": 9})]}
    for action, document in (
        ("get", one),
        ("update", one),
        ("visualKNN", {"query_record": {"_id": "a"}}),
        ("visualRankRecords", rank),
        ("random", {}),
        ("allRecords", {}),
        ("allRecords?size=5&page=1", {}),
    ):
        assert shop.post(action, {**document, **named})["answer_records"] == [expected], action
        whole = shop.post(action, {**document, "fields_to_return": ["*"]})["answer_records"]
        assert whole[0]["size"] == {"eu": 42, "us": 9}, action


def test_what_cannot_be_returned_is_refused_before_anything_is_stored(shop: Shop) -> None:
    assert shop.ask("insert", {"records": [record("a")], "fields_to_return": 7}).status == 400
    assert shop.stored() == []


@pytest.mark.parametrize(
    ("document", "status", "why"),
    [
        ({}, 400, "query_record"),
        ({"query_record": {}}, 400, "no image"),
        ({"query_record": {"_url": "http://x"}}, 400, "_url"),
        ({"query_record": {"_id": "nobody"}}, 404, "not found"),
        ({"query_record": {"_id": 5}}, 400, "_id"),
        ({"query_record": {"_base64": "?"}}, 400, "_base64"),
        ({"query_record": {"_id": "a"}, "k": 0}, 400, "k:"),
        ({"query_record": {"_id": "a"}, "k": 10**9}, 400, "k:"),
        ({"query_record": {"_id": "a"}, "exact": "yes"}, 400, "exact: true or false"),
        ({"query_record": {"_id": "a"}, "k": 1e3}, 400, "k:"),
        ({"query_record": {"_id": "a"}, "filter": {"n": {"$mod": [2, 0]}}}, 400, "$mod"),
        ({"query_record": {"_id": "a"}, "filter": "n"}, 400, "filter"),
        ({"query_record": {"_id": "a"}, "filter": []}, 400, "filter"),
        ({"query_record": {"_id": "a"}, "filter": 0}, 400, "filter"),
        ({"query_record": {"_id": "a"}, "filter": False}, 400, "filter"),
        ({"query_record": {"_id": "a"}, "filter": ""}, 400, "filter"),
        ({"query_record": {"_id": "a"}, "fields_to_return": [1]}, 400, "fields_to_return"),
        ({"query_record": {"_id": "a"}, "fields_to_return": {"a": 1}}, 400, "fields_to_return"),
    ],
)
def test_queries_that_are_refused(shop: Shop, document: object, status: int, why: str) -> None:
    shop.insert(record("a"))
    answer = shop.ask("visualKNN", document)
    assert answer.status == answer.code == status
    assert why in answer.document["status"]["text"]


def test_ranking_given_records(shop: Shop) -> None:
    shop.insert(*(record(f"r{level}", level, level=level) for level in (0, 50, 100)))
    document = shop.post(
        "visualRankRecords",
        {
            "query_record": {"_id": "r100"},
            "records": [
                {"_id": "r0"},
                record("new", 90, own=1),
                {"_id": "nobody"},
                {"_id": "r50"},
                {"_id": "bad", "_base64": "?"},
            ],
            "fields_to_return": ["own"],
        },
    )
    assert code(document) == 206
    assert document["answer_records"] == [{"_id": "new", "own": 1}, {"_id": "r50"}, {"_id": "r0"}]
    assert document["answer_distances"] == sorted(document["answer_distances"])
    assert reasons(document) == [404, 400]


def test_updates_keep_other_fields_and_the_vector(shop: Shop) -> None:
    shop.insert(record("a", 10, price=1, name="x"), record("b", 20))
    document = shop.post(
        "update", {"records": [{"_id": "a", "price": 2, "_base64": "ignored", "_file": "/x"}]}
    )
    assert code(document) == 200
    assert document["answer_records"] == [{"_id": "a", "price": 2, "name": "x"}]
    some = shop.post("update", {"records": [{"_id": "a"}, {"_id": "nobody", "n": 1}, {"n": 1}]})
    assert (code(some), ids(some), sorted(reasons(some))) == (206, ["a"], [400, 404])
    assert shop.ask("update", {"records": [{"_id": "nobody"}]}).status == 404
    assert shop.post("visualKNN", {"query_record": record("q", 10), "k": 1})["answer_records"] == [
        {"_id": "a"}
    ]


def test_deletion(shop: Shop) -> None:
    shop.insert(*(record(name) for name in "abc"))
    assert code(shop.post("delete", {"records": [{"_id": "a"}]})) == 220
    some = shop.post("delete", {"records": [{"_id": "a"}, {"_id": "b"}]})
    assert (code(some), ids(some), reasons(some)) == (206, ["b"], [404])
    assert code(shop.post("delete", {"records": [{"_id": "b"}]})) == 404
    assert shop.stored() == ["c"]
    assert code(shop.post("get", {"records": [{"_id": "b"}]})) == 404


def test_get_answers_in_the_order_asked(shop: Shop) -> None:
    shop.insert(*(record(name, n=n) for n, name in enumerate("abc")))
    document = shop.post("get", {"records": [{"_id": "c"}, {"_id": "a"}], "fields_to_return": ["n"]})
    assert code(document) == 205
    assert document["answer_records"] == [{"_id": "c", "n": 2}, {"_id": "a", "n": 0}]
    assert code(shop.post("get", {"records": [{"_id": "c"}, {"_id": "x"}]})) == 206


def test_a_thousand_ids_in_one_call(shop: Shop) -> None:
    shop.insert(record("a"))
    names = [{"_id": "a"}, *({"_id": str(n)} for n in range(999))]
    assert code(shop.post("get", {"records": names})) == 206
    answer = shop.ask("get", {"records": [*names, {"_id": "one more"}]})
    assert answer.status == 400
    assert "1000" in answer.document["detail"]


def test_eleven_images_are_refused_whole(shop: Shop) -> None:
    answer = shop.ask("insert", {"records": [record(str(n)) for n in range(11)]})
    assert answer.status == answer.code == 400
    assert "10" in answer.document["detail"]
    assert shop.stored() == []


def test_a_megabyte_of_metadata_is_refused_with_what_is_allowed(shop: Shop) -> None:
    # Beside others, so large that the record alone is refused, and so large that the whole call is.
    some = shop.post("insert", {"records": [record("large", note="x" * 900_000), record("small")]})
    assert (code(some), ids(some), reasons(some)) == (211, ["small"], [413])
    answer = shop.ask("insert", {"records": [record("huge", note="x" * (1 << 20)), record("other")]})
    assert answer.status == 413
    assert "1048576 bytes" in answer.document["status"]["text"]
    assert shop.ask("update", {"records": [{"_id": "small", "note": "x" * 900_000}]}).status == 413
    assert shop.stored() == ["small"]


def test_ids_that_differ_by_their_unicode_normal_form_are_two_records(shop: Shop) -> None:
    composed, decomposed = (unicodedata.normalize(form, "né/ж") for form in ("NFC", "NFD"))
    shop.insert(record(composed, n=1), record(decomposed, n=2))
    both = shop.post("get", {"records": [{"_id": decomposed}, {"_id": composed}], "fields_to_return": ["n"]})
    assert both["answer_records"] == [{"_id": decomposed, "n": 2}, {"_id": composed, "n": 1}]
    assert code(shop.post("delete", {"records": [{"_id": composed}]})) == 220
    assert shop.stored() == [decomposed]


def test_paging_and_everything_at_once(shop: Shop) -> None:
    for start in range(0, 25, 10):
        shop.insert(*(record(f"{n:02d}", n, part=n % 2) for n in range(start, min(start + 10, 25))))
    everything = [f"{n:02d}" for n in range(25)]
    assert shop.stored() == everything
    pages = [shop.post(f"allRecords?size=10&page={page}", {}) for page in (1, 2, 3, 4)]
    assert [len(ids(page)) for page in pages] == [10, 10, 5, 0]
    assert [name for page in pages for name in ids(page)] == everything
    assert pages[0]["next"] == f"{PHOTOS}/allRecords?size=10&page=2"
    assert "next" in pages[1]
    assert "next" not in pages[2]
    assert "next" not in pages[3]
    assert ids(shop.post("allRecords?size=10&page=999999999", {})) == [], (
        "a page behind the last one is empty"
    )
    odd = shop.post("allRecords", {"filter": {"part": 1}, "fields_to_return": ["part"]})
    assert ids(odd) == everything[1::2]
    assert odd["answer_count"] == 12
    assert len(ids(shop.post("allRecords", {"filter": {}}))) == 25
    for query in ("size=0", "size=10001", "page=0", "size=x", "page=-1", "size=10&page=1e3"):
        assert shop.ask(f"allRecords?{query}", {}).status == 400, query
    assert shop.ask("allRecords?size=10", {"filter": {"part": 1}}).status == 400


def test_filters_speak_mongodbs_language(shop: Shop) -> None:
    shop.insert(
        record("a", price=5, tags=["new", "shoe"], maker={"name": "Bata"}, day="2024-02-29"),
        record("b", price=9.5, tags=["shoe"], maker={"name": "Nike"}, day="2024-03-01"),
        record("c", price="on request", parts=[{"size": 3}, {"size": 7}], sale=True),
    )
    for wanted, expected in (
        ({"price": {"$gte": 5, "$lt": 9}}, ["a"]),
        ({"price": {"$ne": 5}}, ["b", "c"]),
        ({"price": {"$not": {"$gt": 6}}}, ["a", "c"]),
        ({"tags": {"$nin": ["new"]}}, ["b", "c"]),
        ({"maker.name": {"$regex": "^Ba"}}, ["a"]),
        ({"parts.size": {"$gt": 6}}, ["c"]),
        ({"day": {"$gt": "2024-02-29"}}, ["b"]),
        ({"$or": [{"sale": True}, {"maker.name": "Nike"}]}, ["b", "c"]),
        ({"$nor": [{"sale": {"$exists": True}}], "_id": {"$lte": "a"}}, ["a"]),
    ):
        assert ids(shop.post("allRecords", {"filter": wanted})) == expected, wanted
        near = shop.post("visualKNN", {"query_record": {"_id": "a"}, "filter": wanted, "k": 9})
        assert sorted(ids(near)) == expected
        assert sorted(ids(shop.post("random", {"filter": wanted, "count": 9}))) == expected


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ('{"$or": [' + ",".join(['{"n": 1}'] * 10_000) + "]}", "more than 1000 conditions"),
        ('{"n": {"$in": [' + ",".join(map(str, range(100_000))) + "]}}", "more than 10000 values"),
        ('{"$and": [' * 17 + "{}" + "]}" * 17, "nested deeper than 16 levels"),
        ('{"$and": [' * 1_000 + "{}" + "]}" * 1_000, "not a JSON object"),
        ('{"n": {"$regex": "^' + "(a+)+" * 10_000 + '$"}}', "n: $regex takes ^ and a literal"),
        ('{"maker": {"name": {"$gt": "x"}}}', "maker: the operator $gt is not supported here"),
        ('{"n": {"$gt": [1]}}', "n: $gt needs a number, a string or a boolean, not list"),
        ('{"n": {"$exists": "no"}}', "n: $exists needs true or false"),
        ('{"n": {"$near": 5}}', "n: the operator $near is not supported"),
    ],
    ids=["clauses", "values", "depth", "body", "regex", "object", "type", "exists", "operator"],
)
def test_hostile_filters_are_refused_with_the_reason(shop: Shop, wanted: str, why: str) -> None:
    for action, rest in (
        ("visualKNN", '"query_record": {"_id": "a"}'),
        ("random", '"k": 1'),
        ("allRecords", '"k": 1'),
    ):
        body = f'{{{rest}, "filter": {wanted}}}'.encode()
        headers = shop.tenant.headers(collection_id=shop.collection)
        answer = shop.served.site.call("POST", f"{PHOTOS}/{action}", body, headers)
        assert answer.status == answer.code == 400
        assert why in answer.document["status"]["text"]


def test_next_is_relative_and_without_the_prefix(shop: Shop) -> None:
    shop.insert(record("a"), record("b"))
    answer = shop.ask("allRecords/?size=1&page=1", {}, family="/localhost/photo/search/v2")
    assert answer.document["next"] == "/photo/search/v2/allRecords?size=1&page=2"


def test_a_long_answer_comes_whole(shop: Shop, served: Served) -> None:
    for start in range(0, 1300, 10):
        shop.insert(*(record(f"{n:04d}", n % 256) for n in range(start, start + 10)))
    assert shop.stored() == [f"{n:04d}" for n in range(1300)]


def test_random_records(shop: Shop) -> None:
    shop.insert(*(record(str(n), n=n) for n in range(10)))
    drawn = ids(shop.post("random", {"count": 4}))
    assert len(set(drawn)) == 4
    assert len(ids(shop.post("random", {}))) == 10
    assert ids(shop.post("random", {"count": 5, "filter": {"n": {"$in": [3]}}})) == ["3"]
    assert len({tuple(ids(shop.post("random", {"count": 10}))) for _ in range(5)}) > 1
    assert shop.ask("random", {"count": 0}).status == 400


def test_ping(shop: Shop, served: Served) -> None:
    shop.insert(record("a"))
    headers = shop.tenant.headers(collection_id=shop.collection)
    answer = served.site.call("POST", f"{PHOTOS}/ping", None, headers)
    assert answer.document["info"]
    assert answer.document["collection_size"] == 1
    assert answer.document["statistics"]["OperationTime"] >= 0
    del headers["collection-id"]
    assert served.site.call("POST", f"{PHOTOS}/ping", None, headers).status == 200


@pytest.mark.parametrize("family", FAMILIES)
def test_all_families_serve_the_same_collection(shop: Shop, family: str) -> None:
    assert shop.ask("insert", {"records": [record("a")]}, family).code == 210
    assert ids(shop.ask("visualKNN", {"query_record": {"_id": "a"}}, family).document) == ["a"]
    assert shop.stored() == ["a"]


def test_the_collection_is_named_by_header_or_body(shop: Shop, served: Served) -> None:
    shop.insert(record("a"))
    base = shop.tenant.headers()
    del base["collection-id"]

    def listed(body: object, **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return served.site.call("POST", f"{PHOTOS}/allRecords", json.dumps(body).encode(), base | named)

    for answer in (
        listed({}, collection_id=shop.collection),
        listed({}, collection=shop.collection),
        listed({"collection_id": shop.collection}),
    ):
        assert ids(answer.document) == ["a"]
    missing = listed({})
    assert missing.status == 400
    assert "collection-id" in missing.document["detail"]
    assert listed({"collection_id": 7}).status == 400
    assert listed({}, collection_id="../../x").status == 404


def test_vectors_of_another_backbone_are_not_compared(shop: Shop, served: Served, tenant: Tenant) -> None:
    old = Shop(served, tenant, served.run(served.collection(tenant.id, str(uuid.uuid4()), "colours@0")))
    for action, document in (
        ("insert", {"records": [record("a")]}),
        ("visualKNN", {"query_record": record("a")}),
    ):
        answer = old.ask(action, document)
        assert answer.status == answer.code == 409
        assert "colours@0" in answer.document["detail"]
    assert old.stored() == []


def test_reading_and_writing_are_two_scopes(shop: Shop, served: Served) -> None:
    reading = f"Token {served.token(shop.tenant, Scope.SEARCH_READ)}"
    writing = f"Token {served.token(shop.tenant, Scope.SEARCH_WRITE)}"
    assert shop.ask("insert", {"records": [record("a")]}, authorization=reading).status == 403
    assert shop.ask("insert", {"records": [record("a")]}, authorization=writing).status == 200
    assert shop.ask("get", {"records": [{"_id": "a"}]}, authorization=writing).status == 403
    assert shop.ask("get", {"records": [{"_id": "a"}]}, authorization=reading).status == 200


def test_writes_are_in_the_audit_log_under_the_request_id(shop: Shop, served: Served) -> None:
    answer = shop.ask("insert", {"records": [record("a")]})
    (row,) = [
        row
        for row in served.audited(shop.tenant)
        if row.subject == shop.collection and row.event is Event.SEARCH_INSERT
    ]
    assert row.actor.kind == "token"
    assert row.actor.request == answer.headers["x-request-id"] == answer.document["status"]["request_id"]


def test_a_cursor_pages_through_what_changes(shop: Shop) -> None:
    for start in (0, 10):
        shop.insert(*(record(f"{n:02d}", n, part=n % 2) for n in range(start, start + 10)))
    first = shop.post("allRecords?size=6&cursor=", {})
    assert ids(first) == [f"{n:02d}" for n in range(6)]
    shop.post("delete", {"records": [{"_id": "00"}, {"_id": "07"}]})
    shop.insert(record("20", 20, part=0))
    seen, answer = ids(first), first
    while "next" in answer:
        answer = shop.post(answer["next"].removeprefix(f"{PHOTOS}/"), {})
        seen += ids(answer)
    assert seen == [f"{n:02d}" for n in range(21) if n != 7]
    even = shop.post("allRecords?size=5&cursor=", {"filter": {"part": 0}})
    assert ids(even) == ["02", "04", "06", "08", "10"]
    rest = shop.post(even["next"].removeprefix(f"{PHOTOS}/"), {"filter": {"part": 0}})
    assert ids(rest) == ["12", "14", "16", "18", "20"]
    assert "next" in rest or len(ids(rest)) == 5
    genuine = first["next"].split("cursor=")[1]
    for bad in ("x", "AAAA", genuine[:-1] + ("Q" if genuine[-1] == "A" else "A")):
        answered = shop.ask(f"allRecords?cursor={bad}", {})
        assert answered.status == 400
        assert "cursor" in answered.document["detail"]


def test_a_cursor_is_of_one_collection(shop: Shop, served: Served, tenant: Tenant) -> None:
    shop.insert(record("a"), record("b"))
    following = shop.post("allRecords?size=1&cursor=", {})["next"]
    other = Shop(served, tenant, served.run(served.collection(tenant.id, str(uuid.uuid4()))))
    assert other.ask(following.removeprefix(f"{PHOTOS}/"), {}).status == 400


def test_near_duplicates_of_an_image_and_of_a_record(shop: Shop) -> None:
    shop.insert(record("a", 0, n=1), record("b", 1, n=2), record("c", 200, n=3))
    of_image = shop.post("nearDuplicates", {"query_record": record("new", 0), "fields_to_return": ["n"]})
    assert of_image["answer_records"] == [{"_id": "a", "n": 1}, {"_id": "b", "n": 2}]
    assert of_image["answer_distances"] == sorted(of_image["answer_distances"])
    assert of_image["answer_distances"][-1] <= 0.05
    assert ids(shop.post("nearDuplicates", {"query_record": {"_id": "a"}})) == ["b"]
    everything = {"query_record": {"_id": "a"}, "max_distance": 2}
    assert ids(shop.post("nearDuplicates", everything)) == ["b", "c"]
    assert ids(shop.post("nearDuplicates", {**everything, "k": 1})) == ["b"]
    assert ids(shop.post("nearDuplicates", {**everything, "filter": {"n": 3}})) == ["c"]
    assert ids(shop.post("nearDuplicates", {"query_record": {"_id": "c"}})) == []
    assert shop.ask("nearDuplicates", {"query_record": {"_id": "nobody"}}).status == 404
    for name, bad in (("max_distance", -1), ("max_distance", "x"), ("k", 0)):
        answered = shop.ask("nearDuplicates", {"query_record": {"_id": "a"}, name: bad})
        assert answered.status == 400
        assert name in answered.document["detail"]


def test_near_duplicates_of_a_whole_collection_page_by_page(shop: Shop) -> None:
    shop.insert(*(record(f"{level}", level) for level in (0, 1, 60, 120, 121, 122, 250)))
    found: dict[str, list[str]] = {}
    path, pages = "nearDuplicates?size=3", 0
    while path:
        answer = shop.post(path, {"max_distance": 0.001})
        assert len(ids(answer)) <= 3
        for one in answer["answer_records"]:
            found[one["_id"]] = sorted(near["_id"] for near in one["_near_duplicates"])
        path, pages = answer.get("next", "").removeprefix(f"{PHOTOS}/"), pages + 1
    assert pages == 3
    assert found == {
        "0": ["1"],
        "1": ["0"],
        "120": ["121", "122"],
        "121": ["120", "122"],
        "122": ["120", "121"],
    }


def test_deletion_by_filter_tells_how_many_went(shop: Shop, served: Served) -> None:
    shop.insert(*(record(str(n), n, part=n % 2) for n in range(9)))
    document = shop.post("deleteByFilter", {"filter": {"part": 1}})
    assert (code(document), document["deleted_count"]) == (220, 4)
    assert shop.stored() == ["0", "2", "4", "6", "8"]
    again = shop.post("deleteByFilter", {"filter": {"part": 1}})
    assert (code(again), again["deleted_count"]) == (220, 0)
    nothing: tuple[dict[str, Any], ...] = ({}, {"filter": {}}, {"filter": None}, {"filter": {"$and": [{}]}})
    for empty in nothing:
        answer = shop.ask("deleteByFilter", empty)
        assert answer.status == 400
        assert f"/appliance/v1/collections/{shop.collection}/empty" in answer.document["detail"]
    assert len(shop.stored()) == 5
    reading = f"Token {served.token(shop.tenant, Scope.SEARCH_READ)}"
    assert shop.ask("deleteByFilter", {"filter": {"part": 0}}, authorization=reading).status == 403
