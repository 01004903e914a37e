"""Every method of the official search clients, endpoint changed and nothing else, on crops of photographs."""

import base64
import inspect
import json
import socket
import uuid
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from ximilar.client.search import (
    ImageMatchingSearchClient,
    SimilarityCustomClient,
    SimilarityPhotosClient,
    SimilarityPhotosOldClient,
    SimilarityProductsClient,
    SimilarityProductsOldClient,
)

from demo import photos
from tests.serving import Served, Tenant

CLIENTS = {
    SimilarityPhotosClient: "similarity/photos/v2/",
    SimilarityProductsClient: "similarity/products-new/v2/",
    SimilarityCustomClient: "similarity/custom/v2/",
    ImageMatchingSearchClient: "image_matching/v2/",
    SimilarityPhotosOldClient: "photo/search/v2/",
    SimilarityProductsOldClient: "similarity/products/v2/",
}
METHODS = {
    "allRecords",
    "all_records_iter",
    "construct_data",
    "fill_data",
    "get_all_ids",
    "get_records",
    "insert",
    "ping",
    "random",
    "remove",
    "search",
    "search_and_rank",
    "update",
}


@pytest.fixture
def endpoint(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A connection to elsewhere fails the test, even a caught one."""
    escaped: list[object] = []
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if address[0] not in {"127.0.0.1", "::1"} or address[1] != served.site.port:
            escaped.append(address)
            raise OSError(f"connected to {address}")
        connect(self, address)

    monkeypatch.setenv("LD_LIBRARY_PATH", "")  # restored after OpenCV, which the client imports, changes it
    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield f"http://localhost:{served.site.port}/"
    assert escaped == []


@pytest.fixture(params=CLIENTS, ids=lambda kind: kind.__name__)
def client(
    request: pytest.FixtureRequest, served: Served, tenant: Tenant, endpoint: str
) -> SimilarityPhotosClient:
    """On an empty collection of its own, of hashes for image matching."""
    hashes = request.param is ImageMatchingSearchClient
    asked = {"name": str(uuid.uuid4()), "backbone": "phash" if hashes else None}
    body = json.dumps(asked).encode()
    made = served.site.call("POST", "/appliance/v1/collections", body, tenant.headers()).document
    return request.param(tenant.token, made["id"], endpoint=endpoint + CLIENTS[request.param])


def crops(count: int) -> list[dict[str, object]]:
    """Records of crops that overlap little where few are asked for."""
    stride = 64 if count < 300 else 12
    taken = list(islice(photos.crops(side=160, stride=stride), count))
    assert len(taken) == count
    return [
        {
            "_id": photo.id,
            "_base64": base64.b64encode(photo.read()).decode(),
            "n": n,
            "part": n % 4,
            "shop": {"city": "Brno" if n % 2 else "Praha", "stock": n},
        }
        for n, photo in enumerate(taken)
    ]


def ids(answer: dict[str, Any]) -> list[str]:
    return [one["_id"] for one in answer["answer_records"]]


def code(answer: dict[str, Any]) -> int:
    return int(answer["status"]["code"])


def test_these_are_all_methods_that_the_clients_have() -> None:
    for kind in CLIENTS:
        own = {
            name
            for parent in kind.__mro__
            if parent.__module__ == "ximilar.client.search"
            for name, member in vars(parent).items()
            if inspect.isfunction(member) and not name.startswith("_")
        }
        assert own == METHODS


@pytest.mark.parametrize(
    "count", [60, pytest.param(5000, marks=[pytest.mark.full, pytest.mark.timeout(1800)])]
)
def test_every_method(client: SimilarityPhotosClient, count: int) -> None:
    records = crops(count)
    names = [str(record["_id"]) for record in records]
    for answer in client.parallel_records_processing(records, client.insert, max_workers=3, batch_size=10):
        assert code(answer) == 210
    list_all(client, names)
    search(client, records)
    draw(client, names)
    change(client, records)
    assert client.ping()["info"]


def list_all(client: SimilarityPhotosClient, names: list[str]) -> None:
    everything = set(names)
    assert client.get_all_ids()["answer_count"] == len(names)
    assert set(ids(client.get_all_ids(fields=["n"], filterf={"part": 2}))) == set(names[2::4])
    assert {one["_id"] for one in client.all_records_iter(batch_size=25)} == everything
    pages = list(client.all_records_iter(fields_to_return=["shop.city"], batch_size=25, return_batch=True))
    assert [len(page) for page in pages[:-1]] == [25] * (len(pages) - 1)
    assert {one["_id"] for page in pages for one in page} == everything
    assert {tuple(one["shop"]) for page in pages for one in page} == {("city",)}
    last = len(pages)
    assert "next" in client.allRecords(size=25, page=last - 1)
    assert "next" not in client.allRecords(size=25, page=last)
    some = client.allRecords(size=0, fields_to_return=["*"], filterf={"n": {"$in": [1, 3]}, "part": 3})
    assert [one["shop"] for one in some["answer_records"]] == [{"city": "Brno", "stock": 3}]


def search(client: SimilarityPhotosClient, records: list[dict[str, Any]]) -> None:
    """What is stored finds itself, by id and by pixels; filters hold and still give k."""
    for record in (records[0], records[len(records) // 2]):
        for query in ({"_id": record["_id"]}, {"_base64": record["_base64"]}):
            found = client.search(query, k=7, fields_to_return=["n"])
            assert found["answer_distances"] == sorted(found["answer_distances"])
            assert len(found["answer_distances"]) == len(found["answer_records"]) == 7
            assert found["answer_distances"][0] == pytest.approx(0, abs=0.02)
            assert record["n"] in [one["n"] for one in found["answer_records"][:3]]
    filtered = client.search({"_id": records[1]["_id"]}, filter={"part": 1}, k=10, fields_to_return=["*"])
    assert {one["part"] for one in filtered["answer_records"]} == {1}
    assert len(ids(filtered)) == 10
    some = [{"_id": records[n]["_id"]} for n in (20, 0, 40)]
    ranked = client.search_and_rank({"_id": records[0]["_id"]}, some)
    assert ids(ranked)[0] == records[0]["_id"]
    assert sorted(ids(ranked)) == sorted(one["_id"] for one in some)
    queries = [{"_id": records[n]["_id"]} for n in (0, 30)]
    several = client.post(client.PREDICT_ENDPOINT, client.construct_data(records=queries, k=3))
    assert [one["_id"] for one in several["answers"]] == [one["_id"] for one in queries]
    for query, one in zip(queries, several["answers"], strict=True):
        alone = client.search(query, k=3)
        assert (ids(one), one["answer_distances"]) == (ids(alone), alone["answer_distances"])


def draw(client: SimilarityPhotosClient, names: list[str]) -> None:
    drawn = ids(client.random(count=20))
    assert len(set(drawn)) == 20
    assert set(drawn) <= set(names)
    assert ids(client.random(filter={"n": 5}, count=3)) == [names[5]]


def change(client: SimilarityPhotosClient, records: list[dict[str, Any]]) -> None:
    name = records[7]["_id"]
    assert client.update([{"_id": name, "price": 12.5}])["answer_records"][0]["price"] == 12.5
    got = client.get_records([{"_id": name}, {"_id": "nobody"}], fields_to_return=["price", "shop.stock"])
    assert code(got) == 206
    assert got["answer_records"] == [{"_id": name, "price": 12.5, "shop": {"stock": 7}}]
    assert code(client.get_records([{"_id": name}])) == 205
    assert code(client.insert([records[7]], request_fields={"fields_to_return": ["n"]})) == 411
    mixed = client.insert(
        [records[7], {**records[7], "_id": "new"}], request_fields={"fields_to_return": ["n"]}
    )
    assert (code(mixed), ids(mixed)) == (211, ["new"])
    assert mixed["skipped_records"][0]["_reason"]["status"]["code"] == 411
    assert code(client.remove([{"_id": "new"}])) == 220
    assert code(client.remove([{"_id": "new"}, {"_id": name}])) == 206
    assert code(client.remove([{"_id": name}])) == 404
    assert code(client.get_records([{"_id": name}])) == 404
    assert name not in ids(client.search({"_base64": records[7]["_base64"]}, k=len(records) - 1))
