"""What operators and customers do with a deployed appliance, and that no photo of theirs stays."""

import base64
import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import photos
from tests import images
from tests.e2e.client import PHOTOS, Client
from tests.e2e.guest import Guest
from tests.e2e.playbook import OPERATOR, STATE, STRANGER

SEARCH = Path(__file__).with_name("search_files.py").read_text()
CROPS = [(photo.id, photo.read(), photo.metadata) for photo in [*photos.crops(side=160, stride=128)][::4]][
    :20
]


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def inserted(deployed: Guest, customer: Client) -> float:
    """Twenty photos are in the collection; the time before them, by the guest's clock."""
    began = deployed.clock()
    for start in (0, 10):
        records = [
            {"_id": name, "_base64": encoded(data), **metadata}
            for name, data, metadata in CROPS[start : start + 10]
        ]
        answer = customer.post(f"{PHOTOS}/insert", {"records": records})
        assert answer.document["status"]["code"] == 210, answer.body[:500]
    return began


def test_operator_makes_the_first_customer_token_and_collection(deployed: Guest, customer: Client) -> None:
    assert customer.token
    listed = json.loads(deployed.output(f"su {OPERATOR} -c 'appliance collection list --json'"))
    assert [row["id"] for row in listed["collections"]] == [customer.collection]


def test_other_users_of_the_server_are_refused(deployed: Guest) -> None:
    refused = deployed.run(f"su {STRANGER} -c 'appliance status'", check=False)
    assert refused.code == 1
    assert "operators' group" in refused.error
    assert deployed.run(f"su {STRANGER} -c 'ls {STATE}'", check=False).code != 0


def test_photos_are_inserted_and_find_themselves(customer: Client, inserted: float) -> None:
    for name, data, _ in CROPS[::5]:
        answer = customer.post(f"{PHOTOS}/visualKNN", {"query_record": {"_base64": encoded(data)}, "k": 3})
        assert answer.document["answer_records"][0]["_id"] == name
        assert answer.document["answer_distances"][0] == pytest.approx(0, abs=0.02)


def test_photos_are_recognised(deployed: Guest, customer: Client) -> None:
    name, data, _ = next(crop for crop in CROPS if crop[0].startswith("coffee/"))
    record = {"_id": name, "_base64": encoded(data)}
    bundle = json.loads(deployed.output("appliance status --json"))["bundles"][0]
    classified = customer.post("/recognition/v2/classify", {"task_id": bundle["task"], "records": [record]})
    labels = classified.document["records"][0]["best_label"]
    assert labels["name"]
    assert 0 < labels["prob"] <= 1
    tagged = customer.post("/photo/tags/v2/tags", {"records": [record]})
    assert tagged.document["records"][0]["_status"]["code"] == 200


def test_official_client_works_with_its_endpoint_changed(
    customer: Client, folder: Path, inserted: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "")  # restored after OpenCV, which the client imports, changes it
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(folder / "ca.crt"))
    from ximilar.client import SimilarityPhotosClient

    endpoint = f"https://localhost:{customer.port}/localhost/similarity/photos/v2/"
    client = SimilarityPhotosClient(customer.token, customer.collection, endpoint=endpoint)
    found = client.search({"_id": CROPS[0][0]}, k=3)
    assert found["answer_records"][0]["_id"] == CROPS[0][0]
    picture = encoded(images.jpeg(96, seed=99))
    assert (
        client.insert([{"_id": "by the client", "_base64": picture, "owner": "Jana"}])["status"]["code"]
        == 210
    )
    assert client.remove([{"_id": "by the client"}])["status"]["code"] == 220


def test_client_that_does_not_know_the_ca_refuses(anyone: Client) -> None:
    stranger = Client(anyone.port, ssl.create_default_context())
    with pytest.raises(ssl.SSLCertVerificationError):
        stranger.call("GET", "/healthz")


def test_tls_older_than_1_3_is_refused(anyone: Client, folder: Path) -> None:
    old = ssl.create_default_context(cafile=folder / "ca.crt")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol|handshake"):
        Client(anyone.port, old).call("GET", "/healthz")


def test_request_without_a_token_is_refused(anyone: Client) -> None:
    assert anyone.post(f"{PHOTOS}/ping", {}).status == 401


def test_no_file_holds_anything_of_a_photo(deployed: Guest, inserted: float) -> None:
    """Searched by pieces of the photos in every file written since; a file with such a piece is found."""
    pieces = list(needles())
    assert deployed.python(SEARCH, str(inserted), *pieces) == ""
    planted = f"{STATE}/planted"
    deployed.write(planted, f"before {bytes.fromhex(pieces[-1]).decode('latin-1')} after")
    try:
        assert planted in deployed.python(SEARCH, str(inserted), *pieces)
    finally:
        deployed.run(f"rm {planted}")


def needles() -> Iterator[str]:
    """Pieces of each photo as they are, and last one of its base64, in hexadecimal."""
    for _, data, _ in CROPS:
        for start in (len(data) // 3, len(data) // 2):
            yield data[start : start + 24].hex()
            yield base64.b64encode(data)[start // 3 * 4 :][:40].hex()
