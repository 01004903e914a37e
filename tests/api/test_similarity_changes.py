"""What goes beyond the cloud: records in the place of others, changes made once, queries side by side."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from appliance.accounts.rights import Scope
from appliance.search.replies import KEEP_SECONDS
from tests.serving import ACTOR, Served, Tenant
from tests.shop import Shop, code, ids, reasons, record


def test_upsert_inserts_and_replaces(shop: Shop) -> None:
    shop.insert(record("a", 0, old=1), record("b", 100))
    document = shop.post("upsert", {"records": [record("a", 200, new=2), record("c", 50), record("x\0")]})
    assert code(document) == 211
    assert [one["_status"]["text"] for one in document["answer_records"]] == [
        "record replaced",
        "record inserted",
    ]
    assert reasons(document) == [400]
    assert shop.stored() == ["b", "a", "c"]
    found = shop.post("visualKNN", {"query_record": record("q", 200), "k": 1, "fields_to_return": ["*"]})
    assert found["answer_records"] == [{"_id": "a", "new": 2}]
    assert code(shop.post("upsert", {"records": [record("a", 1)]})) == 210
    assert code(shop.post("upsert", {"records": [{"_id": "a", "_base64": "?"}]})) == 400
    assert shop.stored() == ["b", "c", "a"]


def test_a_record_without_an_id_is_inserted(shop: Shop) -> None:
    (answered,) = shop.post("upsert", {"records": [{"_base64": record("x")["_base64"]}]})["answer_records"]
    assert shop.stored() == [answered["_id"]]


def test_several_queries_are_answered_in_their_order(shop: Shop) -> None:
    shop.insert(*(record(f"r{level}", level, level=level) for level in range(0, 100, 20)))
    queries = [{"_id": "r80", "own": 1}, record("new", 21), {"_id": "nobody"}, {"_id": "r0"}]
    document = shop.post("visualKNN", {"records": queries, "k": 2, "fields_to_return": ["level"]})
    assert code(document) == 206
    eighty, new, nobody, zero = document["answers"]
    assert (eighty["_id"], eighty["own"], eighty["_status"]["code"]) == ("r80", 1, 200)
    assert eighty["answer_records"] == [{"_id": "r80", "level": 80}, {"_id": "r60", "level": 60}]
    assert ids(new)[0] == "r20"
    assert "_base64" not in new
    assert (nobody["_id"], nobody["_status"]["code"]) == ("nobody", 404)
    for query, one in ((queries[0], eighty), (queries[1], new), (queries[3], zero)):
        alone = shop.post("visualKNN", {"query_record": query, "k": 2, "fields_to_return": ["level"]})
        for field in ("answer_records", "answer_distances", "answer_count"):
            assert one[field] == alone[field]
    assert code(shop.post("visualKNN", {"records": [{"_id": "r0"}, {"_id": "r20"}]})) == 200
    assert code(shop.post("visualKNN", {"records": [{"_id": "x"}]})) == 404
    one = {"records": [{"_id": "r0"}] * 11, "k": 1000}
    for many in ({"records": [{"_id": "r0"}] * 101}, one):
        answer = shop.ask("visualKNN", many)
        assert answer.status == 400
        assert "records" in answer.document["detail"]


CHANGES = [
    ("insert", {"records": [record("a", 7, n=1), record("b", 9)]}),
    ("upsert", {"records": [record("old", 7, n=1)]}),
    ("update", {"records": [{"_id": "old", "n": 5}, {"_id": "nobody"}]}),
    ("delete", {"records": [{"_id": "old"}, {"_id": "nobody"}]}),
]


@pytest.mark.parametrize(("action", "document"), CHANGES, ids=[action for action, _ in CHANGES])
def test_a_change_under_a_key_is_made_once(
    shop: Shop,
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    document: dict[str, object],
) -> None:
    shop.insert(record("old", 3, n=0))
    key = {"idempotency_key": f"{action} {shop.collection}"}
    first = shop.ask(action, document, **key)
    assert first.status == 200
    assert "idempotent-replayed" not in first.headers
    before = shop.post("allRecords", {"fields_to_return": ["*"]})["answer_records"]
    audited = len(served.audited(shop.tenant))
    again = shop.ask(action, document, **key)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.status == first.status
    assert again.document == bare(first.document)
    assert shop.ask(action, document, **key).body == again.body
    assert shop.post("allRecords", {"fields_to_return": ["*"]})["answer_records"] == before
    assert len(served.audited(shop.tenant)) == audited
    for other, different in (
        (action, {"records": [record("other")]}),
        ("delete", {"records": [{"_id": "q"}]}),
    ):
        conflict = shop.ask(other, different, **key)
        assert conflict.status == 409
        assert "Idempotency-Key" in conflict.document["detail"]
    monkeypatch.setattr(served, "clock", served.clock + KEEP_SECONDS + 1)
    later = shop.ask(action, {"records": [record("other")]}, **key)
    assert later.status != 409


def bare(document: Any) -> Any:
    """An answer with the ids of its records and what became of each, and nothing that callers wrote."""
    ours = {"_id", "_status", "_reason", "_width", "_height"}
    return document | {
        part: [{name: one[name] for name in one.keys() & ours} for one in document[part]]
        for part in ("answer_records", "skipped_records")
    }


def test_what_is_remembered_tells_nothing_that_a_record_held(shop: Shop) -> None:
    shop.insert(record("jana", secret="a diagnosis", _status="another one", _width="a third"))
    change: dict[str, object] = {"records": [{"_id": "jana", "n": 1}, {"_id": "nobody", "n": "left out"}]}
    key = {"idempotency_key": f"erased {shop.collection}"}
    first = shop.ask("update", change, **key)
    assert first.document["answer_records"][0]["secret"] == "a diagnosis"
    assert shop.ask("delete", {"records": [{"_id": "jana"}]}).status == 200
    again = shop.ask("update", change, **key)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.document["answer_records"] == [{"_id": "jana"}]
    assert set(again.document["skipped_records"][0]) == {"_id", "_status", "_reason"}
    for told in (b"a diagnosis", b"another one", b"a third", b"left out"):
        assert told in first.body
        assert told not in again.body


def test_a_key_is_its_tokens_own(shop: Shop, served: Served, tenant: Tenant) -> None:
    shop.insert(record("a", secret="a diagnosis"))
    adding = served.parts.tokens.add(ACTOR, tenant.id, {Scope.SEARCH_WRITE}, collections=[shop.collection])
    narrow = Shop(served, replace(tenant, token=served.run(adding).token), shop.collection)
    key = {"idempotency_key": f"shared {shop.collection}"}
    change: dict[str, object] = {"records": [{"_id": "a", "n": 1}]}
    assert shop.ask("update", change, **key).status == 200
    assert shop.ask("delete", {"records": [{"_id": "a"}]}).status == 200
    answer = narrow.ask("update", change, **key)
    assert "idempotent-replayed" not in answer.headers
    assert code(answer.document) == 404


def test_a_key_is_its_collections_own_and_goes_with_it(shop: Shop, served: Served, tenant: Tenant) -> None:
    key = {"idempotency_key": f"moved {shop.collection}"}
    assert shop.ask("insert", {"records": [record("a")]}, **key).status == 200
    other = Shop(served, tenant, served.run(served.collection(tenant.id, f"other {shop.collection}")))
    made = other.ask("insert", {"records": [record("a")]}, **key)
    assert (code(made.document), "idempotent-replayed" in made.headers) == (210, False)
    path = f"/appliance/v1/collections/{shop.collection}"
    assert served.site.call("DELETE", path, None, tenant.headers()).status == 204
    assert shop.ask("insert", {"records": [record("a")]}, **key).status == 404


def test_of_equal_calls_at_once_one_is_made_and_all_are_answered(shop: Shop) -> None:
    body = {"records": [record("a", 1, n=1)]}
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: shop.ask("insert", body, idempotency_key=f"once {shop.collection}"), range(8))
        )
    assert {answer.code for answer in answers} == {210}
    replayed = [answer for answer in answers if "idempotent-replayed" in answer.headers]
    assert len(replayed) == 7
    (made,) = (answer for answer in answers if answer not in replayed)
    assert {answer.body for answer in replayed} == {replayed[0].body}
    assert replayed[0].document == bare(made.document)
    assert shop.stored() == ["a"]


def test_what_was_refused_may_be_tried_again_under_its_key(shop: Shop) -> None:
    key = {"idempotency_key": f"again {shop.collection}"}
    bad = {"records": [{"_id": "a", "_base64": "?"}]}
    assert shop.ask("insert", bad, **key).status == 400
    assert code(shop.ask("insert", {"records": [record("a")]}, **key).document) == 210
    for unusable in ("", "é", "x" * 256):
        sent = shop.ask("insert", bad, idempotency_key=unusable)
        assert sent.status == 400


def test_an_answer_too_long_to_remember_changes_nothing(shop: Shop) -> None:
    shop.insert(record("here", note="x" * 60_000))
    changes = [{"_id": name, "n": 1} for name in ("here", *(f"{n:01000d}" for n in range(999)))]
    answer = shop.ask("update", {"records": changes}, idempotency_key=f"long {shop.collection}")
    assert answer.status == 413
    assert "fewer records" in answer.document["detail"]
    assert shop.post("allRecords", {"filter": {"n": 1}})["answer_records"] == []
    fewer: dict[str, object] = {"records": changes[:500]}
    assert shop.ask("update", fewer, idempotency_key=f"long {shop.collection}").status == 200
    assert len(shop.post("allRecords", {"filter": {"n": 1}})["answer_records"]) == 1


def test_remembered_answers_rest_sealed(shop: Shop, served: Served) -> None:
    shop.ask("insert", {"records": [record("a", note="a word")]}, idempotency_key=f"seal {shop.collection}")
    rows = served.run(
        served.ledger.read(lambda connection: list(connection.execute("SELECT reply FROM search_replies")))
    )
    assert rows
    assert not any(b"a word" in row[0] or b"answer" in row[0] for row in rows)
