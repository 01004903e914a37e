"""Image matching over HTTP: hashes of what comes along, and collections that hold nothing but hashes."""

import base64
import io
import json
import uuid
from typing import Any

import pytest
from PIL import Image

from appliance.accounts.rights import Scope
from demo import photos
from tests.serving import Reply, Served, Tenant
from tests.shop import Shop, code, ids, reasons

PREFIX = "/image_matching/v2"


def picture(name: str, **fields: object) -> dict[str, object]:
    encoded = base64.b64encode(photos.file_of(name).read_bytes()).decode()
    return {"_id": name, "_base64": encoded, **fields}


def small(name: str, identifier: str, **fields: object) -> dict[str, object]:
    """The same picture, a third as large, grey and as a poor JPEG."""
    original = Image.open(photos.file_of(name)).convert("L")
    file = io.BytesIO()
    original.resize((original.width // 3, original.height // 3)).save(file, "JPEG", quality=40)
    return {"_id": identifier, "_base64": base64.b64encode(file.getvalue()).decode(), **fields}


def ask(served: Served, tenant: Tenant, action: str, document: object, **headers: str) -> Reply:
    body = json.dumps(document).encode()
    return served.site.call("POST", f"{PREFIX}/{action}", body, tenant.headers(**headers))


def post(served: Served, tenant: Tenant, action: str, document: object) -> Any:
    answer = ask(served, tenant, action, document)
    assert answer.status == 200, answer.body
    return answer.document


@pytest.fixture
def hashes(served: Served, tenant: Tenant) -> Shop:
    """A collection of hashes, made as a customer makes it."""
    body = json.dumps({"name": str(uuid.uuid4()), "backbone": "phash"}).encode()
    made = served.site.call("POST", "/appliance/v1/collections", body, tenant.headers())
    assert made.status == 201, made.body
    assert (made.document["backbone"], made.document["dim"]) == ("phash@1", 64)
    return Shop(served, tenant, made.document["id"])


def test_hashes_of_images(served: Served, tenant: Tenant) -> None:
    sent = [picture("chelsea", own=1), small("chelsea", "small"), {"_id": "bad", "_base64": "?"}]
    first, second, third = post(served, tenant, "visual_hash", {"records": sent})["records"]
    assert first["own"] == 1
    assert "_base64" not in first
    one, other = (int(record["_visual_hash"], 16) for record in (first, second))
    assert (one ^ other).bit_count() <= 6
    assert first["_width"] > second["_width"]
    assert third["_status"]["code"] == 400
    assert "_visual_hash" not in third
    again = post(served, tenant, "visual_hash", {"records": [picture("chelsea")], "hash_type": "phash"})
    assert again["records"][0]["_visual_hash"] == first["_visual_hash"]


def test_images_ranked_by_how_far_they_are(served: Served, tenant: Tenant) -> None:
    records = [picture("coffee", n=1), small("rocket", "small", n=2), {"_id": "bad", "_base64": "?"}]
    document = post(served, tenant, "rank_images", {"query_record": picture("rocket"), "records": records})
    assert code(document) == 206
    assert document["answer_records"] == [{"_id": "small", "n": 2}, {"_id": "coffee", "n": 1}]
    near, far = document["answer_distances"]
    assert near <= 6
    assert far > 18
    assert reasons(document) == [400]


def test_duplicates_are_merged_into_the_first(served: Served, tenant: Tenant) -> None:
    records = [picture("coffee"), small("coffee", "again", n=1), picture("china"), small("coffee", "more")]
    document = post(served, tenant, "remove_duplicates", {"records": records})
    assert code(document) == 200
    assert document["answer_records"] == [
        {"_id": "coffee", "_duplicates": [{"_id": "again", "n": 1}, {"_id": "more"}]},
        {"_id": "china", "_duplicates": []},
    ]
    everything = post(served, tenant, "remove_duplicates", {"records": records, "max_distance": 64})
    assert ids(everything) == ["coffee"]


@pytest.mark.parametrize(
    ("action", "document", "why"),
    [
        ("visual_hash", {}, "records"),
        ("visual_hash", {"records": [{}] * 11}, "records"),
        ("visual_hash", {"records": [{"_base64": "?"}], "hash_type": "bmh1"}, "hash_type"),
        ("rank_images", {"records": [{"_base64": "?"}]}, "query_record"),
        ("rank_images", {"records": [{"_base64": "?"}], "query_record": {"_id": "a"}}, "no image"),
        ("remove_duplicates", {"records": [{"_base64": "?"}], "max_distance": 65}, "max_distance"),
    ],
)
def test_what_is_refused(
    served: Served, tenant: Tenant, action: str, document: dict[str, object], why: str
) -> None:
    answer = ask(served, tenant, action, document)
    assert answer.status == answer.code == 400
    assert why in answer.document["detail"]


def test_a_collection_of_hashes_is_searched_like_any_other(hashes: Shop) -> None:
    names = ("chelsea", "coffee", "rocket", "china")
    inserted = hashes.ask("insert", {"records": [picture(name, n=n) for n, name in enumerate(names)]}, PREFIX)
    assert inserted.code == 210
    found = hashes.ask(
        "visualKNN", {"query_record": small("rocket", "q"), "k": 4, "fields_to_return": ["n"]}, PREFIX
    ).document
    assert found["answer_records"][0] == {"_id": "rocket", "n": 2}
    assert found["answer_distances"][0] <= 6
    assert all(isinstance(one, int) for one in found["answer_distances"])
    assert found["answer_distances"][1] > 18
    near = hashes.ask("nearDuplicates", {"query_record": small("china", "q")}, PREFIX).document
    assert ids(near) == ["china"]
    ranked = hashes.ask(
        "visualRankRecords",
        {"query_record": {"_id": "coffee"}, "records": [picture("china"), small("coffee", "new")]},
        PREFIX,
    ).document
    assert ids(ranked) == ["new", "china"]
    assert ranked["answer_distances"][0] <= 6
    assert hashes.ask("upsert", {"records": [picture("coffee")]}, PREFIX).code == 210
    assert hashes.ask("delete", {"records": [{"_id": "china"}]}, PREFIX).code == 220
    assert sorted(hashes.stored()) == ["chelsea", "coffee", "rocket"]
    ping = hashes.ask("ping", {}, PREFIX).document
    assert ping["_service_info"]["_name"]
    assert ping["collection_size"] == 3


def test_a_backbone_that_is_not_there_makes_no_collection(served: Served, tenant: Tenant) -> None:
    for backbone, status in (("nothing@1", 404), (7, 400)):
        body = json.dumps({"name": str(uuid.uuid4()), "backbone": backbone}).encode()
        made = served.site.call("POST", "/appliance/v1/collections", body, tenant.headers())
        assert made.status == status


def test_search_tokens_match_images(served: Served, tenant: Tenant) -> None:
    reading = f"Token {served.token(tenant, Scope.SEARCH_READ)}"
    document = {"records": [picture("coffee")]}
    assert ask(served, tenant, "visual_hash", document, authorization=reading).status == 200
    seeing = f"Token {served.token(tenant, Scope.INFER)}"
    assert ask(served, tenant, "visual_hash", document, authorization=seeing).status == 403
