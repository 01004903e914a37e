"""The official client, endpoint changed and nothing else, against a real daemon.

Once as http://localhost, once under another host name with the /localhost/ form, which keeps the client from
posting its token to the cloud. A guard fails every connection that does not go to the daemon.
"""

import base64
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ximilar.client import (
    CustomSimilarityClient,
    DominantColorGenericClient,
    DominantColorProductClient,
    FashionTaggingClient,
    GenericTaggingClient,
    RecognitionClient,
    SimilarityCustomClient,
    SimilarityPhotosClient,
    SimilarityProductsClient,
)
from ximilar.client.exceptions import XimilarClientException
from ximilar.client.recognition import Task
from ximilar.client.search import SimilarityPhotosOldClient, SimilarityProductsOldClient

from demo import photos
from tests.running import RunningAppliance

HOST = "vision.bank.example"
CROPS = [(photo.id, photo.read(), photo.metadata) for photo in photos.crops(side=160, stride=64)][:300]
ALL_NAMES = {name for name, _, _ in CROPS}


@pytest.fixture(
    params=["http://localhost:{port}/", f"http://{HOST}:{{port}}/localhost/"], ids=["local", "named"]
)
def endpoint(
    request: pytest.FixtureRequest, appliance: RunningAppliance, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The two ways to write the endpoint; a connection to elsewhere fails the test, even a caught one."""
    escaped: list[object] = []
    resolve, connect = socket.getaddrinfo, socket.socket.connect

    def guarded_resolve(host: str, *rest: Any, **named: Any) -> Any:
        if host not in {"localhost", "127.0.0.1", HOST}:
            escaped.append(host)
            raise OSError(f"resolved {host}")
        return resolve("127.0.0.1", *rest, **named)

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if address != ("127.0.0.1", appliance.port):
            escaped.append(address)
            raise OSError(f"connected to {address}")
        connect(self, address)

    monkeypatch.setenv("LD_LIBRARY_PATH", "")  # restored after OpenCV, which the client imports, changes it
    monkeypatch.setattr(socket, "getaddrinfo", guarded_resolve)
    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    yield request.param.format(port=appliance.port)
    assert escaped == []


def photos_client(appliance: RunningAppliance, endpoint: str, **named: Any) -> SimilarityPhotosClient:
    return SimilarityPhotosClient(
        appliance.token,
        named.get("collection") or appliance.add_collection(),
        endpoint=f"{endpoint}similarity/photos/v2/",
    )


def record(index: int, /, **metadata: object) -> dict[str, object]:
    name, encoded, usual = CROPS[index]
    return {"_id": name, "_base64": base64.b64encode(encoded).decode(), **usual, **metadata}


def ids(answer: dict[str, Any]) -> list[str]:
    return [one["_id"] for one in answer["answer_records"]]


def code(answer: dict[str, Any]) -> int:
    return int(answer["status"]["code"])


def test_three_hundred_photos_through_their_whole_life(appliance: RunningAppliance, endpoint: str) -> None:
    client = photos_client(appliance, endpoint)
    everything = [record(number, number=number) for number in range(len(CROPS))]
    for answer in client.parallel_records_processing(everything, client.insert, max_workers=3, batch_size=10):
        assert code(answer) == 210
        assert answer["skipped_records"] == []
    count_and_page(client)
    search(client)
    rank_and_draw(client)
    change(client)
    assert client.ping()["info"]


def count_and_page(client: SimilarityPhotosClient) -> None:
    assert client.get_all_ids()["answer_count"] == 300
    assert set(ids(client.get_all_ids())) == ALL_NAMES
    pages = list(client.all_records_iter(batch_size=70, return_batch=True))
    assert [len(page) for page in pages] == [70, 70, 70, 70, 20]
    assert {one["_id"] for one in client.all_records_iter(batch_size=100)} == ALL_NAMES
    assert "next" in client.allRecords(size=100, page=2)
    assert "next" not in client.allRecords(size=100, page=3)
    chinese = client.allRecords(size=0, filterf={"picture": "china"})
    assert set(ids(chinese)) == {name for name in ALL_NAMES if name.startswith("china/")}


def search(client: SimilarityPhotosClient) -> None:
    """A stored photo finds itself first, by its id and by its bytes; filters hold and still give k."""
    for number in (0, 99, 299):
        by_id = client.search({"_id": CROPS[number][0]}, k=7)
        by_bytes = client.search({"_base64": record(number)["_base64"]}, k=7)
        for answer in (by_id, by_bytes):
            assert ids(answer)[0] == CROPS[number][0]
            assert len(answer["answer_records"]) == len(answer["answer_distances"]) == 7
            assert answer["answer_distances"] == sorted(answer["answer_distances"])
            assert answer["answer_distances"][0] == pytest.approx(0, abs=0.02)
    filtered = client.search({"_id": CROPS[0][0]}, filter={"picture": {"$in": ["flower", "rocket"]}}, k=25)
    assert len(ids(filtered)) == 25
    assert {name.split("/")[0] for name in ids(filtered)} <= {"flower", "rocket"}
    returned = client.search({"_id": CROPS[0][0]}, k=1, fields_to_return=["*"])["answer_records"][0]
    assert returned == {"_id": CROPS[0][0], "picture": CROPS[0][2]["picture"], "number": 0}


def rank_and_draw(client: SimilarityPhotosClient) -> None:
    some = [{"_id": CROPS[number][0]} for number in (250, 1, 0, 120)]
    ranked = client.search_and_rank({"_id": CROPS[0][0]}, some)
    assert ids(ranked)[0] == CROPS[0][0]
    assert set(ids(ranked)) == {one["_id"] for one in some}
    drawn = ids(client.random(count=20))
    assert len(set(drawn)) == 20
    assert set(drawn) <= ALL_NAMES
    assert set(ids(client.random(filter={"number": 5}, count=3))) == {CROPS[5][0]}


def change(client: SimilarityPhotosClient) -> None:
    """An update keeps other fields and the descriptor; a second insert is refused; a deleted one is gone."""
    before = client.search({"_id": CROPS[7][0]}, k=3)
    assert code(client.update([{"_id": CROPS[7][0], "price": 12.5, "sold": None}])) == 200
    got = client.get_records([{"_id": CROPS[7][0]}], fields_to_return=["*"])
    assert code(got) == 205
    assert got["answer_records"][0]["price"] == 12.5
    assert got["answer_records"][0]["number"] == 7
    assert client.search({"_id": CROPS[7][0]}, k=3)["answer_distances"] == before["answer_distances"]

    again = client.insert([record(3)])
    assert code(again) == 411
    assert again["skipped_records"][0]["_id"] == CROPS[3][0]
    assert code(client.remove([{"_id": CROPS[3][0]}, {"_id": "never was"}])) == 206
    assert code(client.remove([{"_id": CROPS[3][0]}])) == 404
    assert code(client.get_records([{"_id": CROPS[3][0]}])) == 404
    assert CROPS[3][0] not in ids(client.search({"_base64": record(3)["_base64"]}, k=299))
    assert client.get_all_ids()["answer_count"] == 299
    assert code(client.insert([record(3)])) == 210
    assert client.get_all_ids()["answer_count"] == 300


def test_photos_as_files_and_as_pixels(appliance: RunningAppliance, endpoint: str, tmp_path: Path) -> None:
    client = photos_client(appliance, endpoint)
    photo = tmp_path / "secret folder" / "photo.jpg"
    photo.parent.mkdir()
    photo.write_bytes(CROPS[10][1])
    rng = np.random.default_rng(7)
    large = Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).resize((1500, 1000))
    large_file = tmp_path / "large.png"
    large.save(large_file)
    answer = client.insert(
        [
            {"_id": "small file", "_file": str(photo)},
            {"_id": "large file", "_file": str(large_file)},
            {"_id": "pixels", "_img_data": np.asarray(large), "_color_space": "RGB"},
            {"_id": "as sent", "_file": str(photo), "noresize": True},
        ]
    )
    assert code(answer) == 210
    stored = client.get_records([{"_id": "small file"}, {"_id": "as sent"}], fields_to_return=["*"])
    assert "secret folder" not in str(stored), "the caller's path was kept"
    found = client.search({"_file": str(large_file)}, k=4)
    assert set(ids(found)[:2]) == {"large file", "pixels"}
    twins = client.search({"_id": "small file"}, k=2)
    assert twins["answer_distances"] == pytest.approx([0, 0], abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [
        (SimilarityProductsClient, "similarity/products-new/v2/"),
        (SimilarityCustomClient, "similarity/custom/v2/"),
        (SimilarityPhotosOldClient, "photo/search/v2/"),
        (SimilarityProductsOldClient, "similarity/products/v2/"),
    ],
)
def test_the_other_search_families(
    appliance: RunningAppliance, endpoint: str, kind: type[SimilarityPhotosClient], prefix: str
) -> None:
    client = kind(appliance.token, appliance.add_collection(), endpoint=endpoint + prefix)
    assert code(client.insert([record(number) for number in range(10)])) == 210
    assert ids(client.search({"_id": CROPS[4][0]}, k=3))[0] == CROPS[4][0]
    assert set(ids(client.random(count=3))) <= {name for name, _, _ in CROPS[:10]}
    assert client.get_all_ids()["answer_count"] == 10
    assert client.ping()["info"]


def test_classification_on_the_demo_task(appliance: RunningAppliance, endpoint: str) -> None:
    client = RecognitionClient(appliance.token, endpoint=endpoint)
    assert client.get_user_details()["id"]
    answer = client.classify_on_task(
        [
            {"_file": str(photos.file_of("chelsea")), "own": {"id": 1}},
            {"_base64": "bm90IGFuIGltYWdl", "noresize": True},
        ],
        task_id=appliance.task,
    )
    first, second = answer["records"]
    assert first["_status"]["code"] == 200
    assert first["own"] == {"id": 1}
    assert first["best_label"] == first["labels"][0]
    assert "cat" in " ".join(label["name"].lower() for label in first["labels"][:3])
    assert sum(label["prob"] for label in first["labels"]) <= 1.0001
    assert second["_status"]["code"] == 400

    task = Task(
        appliance.token,
        endpoint,
        {"id": appliance.task, "name": "demo", "type": "multi_class", "production_version": 1},
    )
    assert task.classify([{"_file": str(photos.file_of("coffee"))}])["records"][0]["best_label"]["id"]
    with pytest.raises(XimilarClientException):
        task.classify([record(0)], store_images=True)


def test_general_tags(appliance: RunningAppliance, endpoint: str) -> None:
    client = GenericTaggingClient(appliance.token, endpoint=endpoint)
    answer = client.tags([{"_file": str(photos.file_of("coffee"))}])
    assert code(answer) == 200
    names = [tag["name"].lower() for tag in answer["records"][0]["_tags"][:3]]
    assert any("espresso" in name for name in names), names


def test_dominant_colours(appliance: RunningAppliance, endpoint: str, tmp_path: Path) -> None:
    photo = tmp_path / "cup.png"
    picture = Image.new("RGB", (500, 500), "white")
    picture.paste("teal", (150, 150, 350, 350))
    picture.save(photo)
    generic = DominantColorGenericClient(appliance.token, endpoint=endpoint)
    product = DominantColorProductClient(appliance.token, endpoint=endpoint)
    for client, names in ((generic, ["white", "teal"]), (product, ["teal"])):
        answer = client.dominantcolor([{"_file": str(photo)}])
        assert code(answer) == 200
        assert answer["records"][0]["_dominant_colors"]["color_names"] == names


def test_what_is_not_installed_says_so_in_a_form_the_client_reads(
    appliance: RunningAppliance, endpoint: str
) -> None:
    fashion = FashionTaggingClient(appliance.token, endpoint=endpoint)
    assert code(fashion.tags([record(0)])) == 404
    client = RecognitionClient(appliance.token, endpoint=endpoint)
    flows, status = client.get_all_paginated_items("flows/v2/flow/")
    assert flows is None
    assert status["detail"] == "service not installed"


def test_a_wrong_token_is_an_answer_the_client_reads(appliance: RunningAppliance, endpoint: str) -> None:
    client = SimilarityPhotosClient(
        "xapp_" + "0" * 59, appliance.collection, endpoint=f"{endpoint}similarity/photos/v2/"
    )
    assert code(client.search({"_id": "x"})) == 401
    assert "id" not in RecognitionClient("xapp_" + "0" * 59, endpoint=endpoint).get_user_details()


def test_descriptors(appliance: RunningAppliance, endpoint: str) -> None:
    client = CustomSimilarityClient(appliance.token, endpoint=endpoint)
    answer = client.descriptor([record(0), record(1)], task_id=appliance.task)
    assert code(answer) == 200
    for one in answer["records"]:
        vector = np.array(one["_descriptor"])
        assert vector.shape == (512,)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)


def test_many_threads_of_clients(appliance: RunningAppliance, endpoint: str) -> None:
    client = photos_client(appliance, endpoint)
    fresh = [record(number, _id=secrets.token_hex(8)) for number in range(40)]
    answers = client.parallel_records_processing(fresh, client.insert, max_workers=8, batch_size=1)
    assert [code(answer) for answer in answers] == [210] * 40
    assert client.get_all_ids()["answer_count"] == 40
