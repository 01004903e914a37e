"""Erasures, their certificates and copies of everything, over HTTP."""

import base64
import fnmatch
import hashlib
import http.client
import io
import json
import tarfile
import uuid
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from appliance.accounts.agreements import Agreements, Kind
from appliance.accounts.audit import Actor, Event
from appliance.accounts.certificates import verified
from appliance.accounts.contracts import Contract
from appliance.accounts.rights import Scope
from appliance.asynchronous.requests import State
from appliance.datasets.records import Box
from appliance.errors import SealBroken
from appliance.ledger import Connection
from appliance.privacy.portability import COPIED, LEFT_OUT
from appliance.search.records import CollectionId
from appliance.search.sync.feeds import Feeds
from appliance.search.sync.source import Source
from tests import images
from tests.datasets import untar
from tests.serving import ACTOR, Served, Tenant

PHOTOS = "/similarity/photos/v2"
ERASURES, EXPORT, CUSTOMERS = "/appliance/v1/erasures", "/appliance/v1/export", "/appliance/v1/customers"


@dataclass
class Shop:
    """A tenant of the test's own."""

    served: Served
    name: str
    tenant: Tenant

    def call(self, method: str, path: str, document: object = None, expected: int = 200) -> Any:
        body = None if document is None else json.dumps(document).encode()
        answer = self.served.site.call(method, path, body, self.tenant.headers())
        assert answer.status == expected, answer.body
        return answer.document if answer.body else None

    def upload(self, **fields: object) -> str:
        picture = base64.b64encode(images.plain(uuid.uuid4().bytes)).decode()
        made = self.call("POST", "/recognition/v2/training-image", {"base64": picture, **fields}, 201)
        return str(made["id"])

    def insert(self, *ids: str) -> None:
        picture = base64.b64encode(images.plain(b"record")).decode()
        records = [{"_id": one, "_base64": picture, "colour": "red"} for one in ids]
        self.call("POST", f"{PHOTOS}/insert", {"records": records})


@pytest.fixture
def shop(served: Served) -> Shop:
    name = f"shop {uuid.uuid4()}"
    tenant = served.tenant(name)
    served.run(served.parts.agreements.sign(ACTOR, tenant.id, Kind.TRAINING_DATA))
    return Shop(served, name, tenant)


def erase(served: Served, shop: Shop, name: str | None = None) -> Any:
    given = (name or shop.name).replace(" ", "%20")
    return served.site.operate("DELETE", f"{CUSTOMERS}/{shop.tenant.id}?name={given}")


def test_an_operator_erases_a_customer_and_gets_the_proof(served: Served, shop: Shop) -> None:
    shop.upload()
    shop.insert("a", "b")
    answer = erase(served, shop)
    assert answer.status == 200, answer.body
    document = answer.document
    assert (document["kind"], document["subject"]) == ("customer", shop.tenant.id)
    envelope = json.dumps(document["envelope"], separators=(",", ":")).encode()
    statement = verified(envelope, document["public_key"])
    assert (statement.counts["images"], statement.counts["records"]) == (1, 2)
    assert shop.served.site.call("GET", ERASURES, headers=shop.tenant.headers()).status == 401
    assert erase(served, shop).status == 404
    for path in ("", "/suspend", "/resume"):
        method = "POST" if path else "GET"
        assert served.site.operate(method, f"{CUSTOMERS}/{shop.tenant.id}{path}").status == 404
    listed = served.site.operate("GET", f"{ERASURES}?customer={shop.tenant.id}").document["erasures"]
    assert [one["kind"] for one in listed] == ["collection", "dataset", "customer"]
    one = served.site.operate("GET", f"{ERASURES}/{listed[-1]['id']}").document
    assert one == document


def test_without_the_name_nothing_is_erased(served: Served, shop: Shop) -> None:
    shop.insert("a")
    answer = served.site.operate("DELETE", f"{CUSTOMERS}/{shop.tenant.id}")
    assert (answer.status, "name" in answer.document["detail"]) == (400, True)
    assert erase(served, shop, "another").status == 400
    assert served.site.operate("DELETE", f"{CUSTOMERS}/{uuid.uuid4()}?name=x").status == 404
    refused = served.site.call(
        "DELETE",
        f"{CUSTOMERS}/{shop.tenant.id}?name={shop.name}".replace(" ", "%20"),
        None,
        shop.tenant.headers(),
    )
    assert refused.status == 403
    assert shop.call("POST", f"{PHOTOS}/allRecords", {})["answer_count"] == 1


def test_a_customer_finds_the_proof_of_what_it_erased(served: Served, shop: Shop, tenant: Tenant) -> None:
    image = shop.upload()
    shop.insert("shoe", "hat")
    shop.call("DELETE", f"/recognition/v2/training-image/{image}", None, 204)
    shop.call("POST", f"{PHOTOS}/delete", {"records": [{"_id": "shoe"}]})
    listed = shop.call("GET", ERASURES)
    assert [one["kind"] for one in listed["erasures"]] == ["image", "record"]
    assert listed["next"] is None
    for about, kind in ((image, "image"), ("shoe", "record")):
        (found,) = shop.call("GET", f"{ERASURES}?about={about}")["erasures"]
        assert found["kind"] == kind
    assert shop.call("GET", f"{ERASURES}?about=hat")["erasures"] == []
    page = shop.call("GET", f"{ERASURES}?limit=1")
    rest = shop.call("GET", f"{ERASURES}?limit=1&after={page['next']}")
    assert page["erasures"] + rest["erasures"] == listed["erasures"]
    whole = shop.call("GET", f"{ERASURES}/{page['erasures'][0]['id']}")
    assert whole["statement"]["ids"] == [image]
    others = served.site.call("GET", f"{ERASURES}/{whole['id']}", headers=tenant.headers())
    assert others.status == 404


@pytest.mark.parametrize(
    "query", ["after=-1", "limit=0", "limit=1001", "limit=x", "after=99999999999999999999"]
)
def test_a_page_that_is_none_is_refused(shop: Shop, query: str) -> None:
    assert "detail" in shop.call("GET", f"{ERASURES}?{query}", None, 400)


def exported(shop: Shop) -> zipfile.ZipFile:
    answer = shop.served.site.call("GET", EXPORT, headers=shop.tenant.headers())
    assert (answer.status, answer.headers["content-type"]) == (200, "application/zip")
    archive = zipfile.ZipFile(io.BytesIO(answer.body))
    assert archive.testzip() is None
    return archive


def test_a_copy_has_everything(served: Served, shop: Shop) -> None:
    label = shop.call("POST", "/recognition/v2/label", {"name": "winter"}, 201)["id"]
    image = shop.upload(meta_data={"shelf": 7})
    shop.call("POST", f"/recognition/v2/training-image/{image}/add-label", {"label_id": label})
    shop.insert("shoe", "hat")
    shop.call("PUT", "/appliance/v1/aliases/fashion", {"collection": shop.tenant.collection})
    served.run(served.parts.requests.add(ACTOR, shop.tenant.id, "custom-recognition"))
    shop.call("POST", f"{PHOTOS}/delete", {"records": [{"_id": "hat"}]})
    archive = exported(shop)
    (dataset,) = served.run(served.images.datasets.list(shop.tenant.id))
    folder, shelf = f"datasets/{dataset.id}", f"collections/{shop.tenant.collection}"
    assert archive.namelist() == [
        *("customer.json", "usage.json", "agreements.json", "grants.json", "tokens.json", "aliases.json"),
        *("audit.jsonl", "requests.jsonl", "erasures.jsonl"),
        f"{folder}/dataset.json",
        *(f"{folder}/{kind}.jsonl" for kind in ("labels", "tasks", "images", "objects", "points")),
        *(f"{folder}/coco.tar", f"{folder}/imagefolder.tar"),
        *(f"{shelf}/collection.json", f"{shelf}/snapshots.json", f"{shelf}/vectors.zip"),
        "left_out.json",
    ]
    assert json.loads(archive.read("customer.json"))["name"] == shop.name
    assert [one["name"] for one in json.loads(archive.read("left_out.json"))] == list(LEFT_OUT)
    assert json.loads(archive.read("usage.json"))["used"]["vectors"] == 1
    (token,) = json.loads(archive.read("tokens.json"))
    assert shop.tenant.token not in str(token)
    assert [one["name"] for one in json.loads(archive.read("aliases.json"))] == ["fashion"]
    assert [one["kind"] for one in json.loads(archive.read("agreements.json"))] == ["training-data"]
    assert "number" not in json.loads(archive.read(f"{folder}/dataset.json"))
    (certificate,) = archive.read("erasures.jsonl").splitlines()
    assert verified(certificate, served.parts.certificates.public_key).kind == "record"
    (request,) = map(json.loads, archive.read("requests.jsonl").splitlines())
    assert (request["type"], request["response"]) == ("custom-recognition", None)
    events = [json.loads(line)["event"] for line in archive.read("audit.jsonl").splitlines()]
    assert events[:2] == ["customer.add", "token.add"]
    assert events[-1] == "customer.export"
    with tarfile.open(fileobj=io.BytesIO(archive.read(f"{folder}/coco.tar"))) as tar:
        assert [name.rsplit(".", 1)[1] for name in tar.getnames()] == ["json", "png"]
    with zipfile.ZipFile(io.BytesIO(archive.read(f"{shelf}/vectors.zip"))) as inner:
        assert np.load(io.BytesIO(inner.read("vectors-00001.npy"))).shape == (1, 48)
        assert json.loads(inner.read("records-00001.jsonl"))["_id"] == "shoe"


def test_every_word_of_a_customer_is_in_its_copy(served: Served, shop: Shop) -> None:
    customer, collection, planted = shop.tenant.id, shop.tenant.collection, list[str]()

    def word() -> str:
        planted.append(f"word-{uuid.uuid4()}")
        return planted[-1]

    async def write() -> None:
        """What has a word in it and is not made over HTTP here."""
        parts, notes = served.parts, served.images.annotations
        paper, dataset = word().encode(), await served.images.datasets.default(customer)
        contract = Contract(word(), hashlib.sha256(paper).hexdigest())
        signed = await parts.agreements.sign(ACTOR, customer, Kind.NDA, contract)
        await parts.agreements.attach(ACTOR, signed.id, paper)
        (image,) = await served.images.store.list(dataset)
        label = await notes.labels.add(ACTOR, dataset, "tag", word(), description=word(), output_name=word())
        await notes.gallery.add_label(ACTOR, customer, image.id, label.id)
        box = await notes.labels.add(ACTOR, dataset, "detection", word(), description=word())
        task = await notes.tasks.add(ACTOR, dataset, "detection", word(), word())
        await notes.tasks.add_label(ACTOR, customer, task.id, box.id, side="detection")
        await notes.tasks.add_negative_image(ACTOR, customer, task.id, image.id)
        await notes.objects.add(
            ACTOR, customer, image.id, label=box.id, box=Box(1, 2, 9, 9), meta_data={"what": word()}
        )
        await notes.notes.verify(ACTOR, customer, image.id, word())
        await notes.notes.add_point(ACTOR, dataset, image.id, word(), {"said": word()})
        source = Source(f"https://shop.example/{word()}", {"X-Key": "secret of the shop"})
        feeds = Feeds(served.ledger, served.keyring, lambda: served.clock)
        await feeds.set(ACTOR, customer, CollectionId(collection), source)
        await feeds.ask(ACTOR, customer, CollectionId(collection))
        asked, _ = await parts.requests.add(ACTOR, customer, "custom-recognition")
        await parts.requests.finish(asked.id, State.DONE, json.dumps({"label": word()}).encode())

    shop.upload(meta_data={"shelf": word()})
    served.run(write())
    grant = {"operator": "0", "reason": word(), "dataset": "Default"}
    shop.call("POST", "/appliance/v1/grants", grant, 201)
    shop.insert(word(), gone := word())
    shop.call("POST", f"/appliance/v1/collections/{collection}/snapshots", None, 201)
    shop.call("POST", f"{PHOTOS}/delete", {"records": [{"_id": gone}]})
    shop.call("PUT", f"/appliance/v1/aliases/{word()}", {"collection": collection})
    archive = exported(shop)
    content = b"".join(archive.read(name) for name in archive.namelist())
    assert [one for one in planted if one.encode() not in content] == []
    assert b"secret of the shop" not in content
    assert shop.tenant.token.encode() not in content
    for table, pattern in COPIED.items():
        assert fnmatch.filter(archive.namelist(), pattern), table
    left_out = [one["name"] for one in json.loads(archive.read("left_out.json"))]
    assert left_out[: len(LEFT_OUT)] == list(LEFT_OUT)
    (dataset,) = served.run(served.images.datasets.list(customer))
    (task,) = map(json.loads, archive.read(f"datasets/{dataset.id}/tasks.jsonl").splitlines())
    (image,) = map(json.loads, archive.read(f"datasets/{dataset.id}/images.jsonl").splitlines())
    assert (len(task["labels"]), task["negative_images"]) == (1, [image["id"]])
    assert (len(image["labels"]), len(image["verifications"])) == (1, 1)
    source = json.loads(archive.read(f"collections/{collection}/source.json"))
    assert (source["headers"], len(source["runs"])) == (["X-Key"], 1)


def test_what_is_damaged_ends_no_copy(served: Served, shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.insert(*(f"r{number}" for number in range(5)))
    base = f"/appliance/v1/collections/{shop.tenant.collection}/snapshots"
    snapshot = shop.call("POST", base, None, 201)["id"]
    file = (
        served.parts.config.state
        / "snapshots"
        / uuid.UUID(shop.tenant.collection).hex
        / uuid.UUID(snapshot).hex
    )
    sealed = bytearray(file.read_bytes())
    sealed[-1] ^= 1
    file.write_bytes(sealed)
    archive = exported(shop)
    left_out = {one["name"]: one["reason"] for one in json.loads(archive.read("left_out.json"))}
    name = f"collections/{shop.tenant.collection}/snapshots/{snapshot}.zip"
    assert set(left_out) == {*LEFT_OUT, name}
    assert left_out[name] == f"records from here on: object {snapshot}: {SealBroken.told}"
    assert f"{name} is left out of the copy for customer {shop.tenant.id}: object {snapshot}: " in caplog.text
    assert name in archive.namelist()


def test_a_damaged_image_ends_no_copy(served: Served, shop: Shop) -> None:
    """Nobody knew of it when the copy began."""
    damaged, whole = shop.upload(), shop.upload()
    (dataset,) = served.run(served.images.datasets.list(shop.tenant.id))
    file = served.parts.config.state / "images" / uuid.UUID(dataset.id).hex / uuid.UUID(damaged).hex
    file.write_bytes(file.read_bytes()[:-1])
    archive = exported(shop)
    left_out = {one["name"]: one["reason"] for one in json.loads(archive.read("left_out.json"))}
    for name in ("coco", "imagefolder"):
        packed = f"datasets/{dataset.id}/{name}.tar"
        assert left_out[packed] == "1 images, which LEFT_OUT.csv in it names"
        files = untar(archive.read(packed))
        assert b"damaged" in (named := files.pop("LEFT_OUT.csv"))
        assert (damaged.encode() in named, whole.encode() in named) == (True, False)
        (stored,) = [path for path in files if path.endswith(".png")]
        assert whole in stored


def test_a_copy_ends_with_the_token(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the middle: somebody who has stolen one reads as slowly as it takes."""
    tenant = served.tenant(str(uuid.uuid4()))
    [token] = served.run(served.parts.tokens.list(tenant.id))
    listed = Agreements.list

    async def revoked(*given: Any) -> Any:
        await served.parts.tokens.revoke(Actor("token", token.id), tenant.id, token.id)
        return await listed(*given)

    monkeypatch.setattr(Agreements, "list", revoked)
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        served.site.call("GET", EXPORT, headers=tenant.headers())
    assert served.site.call("GET", EXPORT, headers=tenant.headers()).status == 401


def of_customers(connection: Connection) -> set[str]:
    """Tables whose rows are somebody's: by a column that says whose, or by what they refer to."""
    columns: list[Any] = connection.execute(
        "SELECT tables.name, columns.name FROM sqlite_schema AS tables, pragma_table_info(tables.name)"
        " AS columns WHERE tables.type = 'table'"
    ).fetchall()
    referring: list[Any] = connection.execute(
        'SELECT tables.name, keys."table" FROM sqlite_schema AS tables, pragma_foreign_key_list(tables.name)'
        " AS keys WHERE tables.type = 'table'"
    ).fetchall()
    owners = {"customer", "dataset", "collection", "container"}
    found = {"customers", *(table for table, column in columns if column in owners)}
    while more := {table for table, to in referring if to in found} - found:
        found |= more
    return found | {table for table, column in columns if column == "customers"}


def test_no_table_with_something_of_customers_is_forgotten(served: Served) -> None:
    """A new one is to be in the copy, or to be named with the reason why it is not."""
    tables = served.run(served.ledger.read(of_customers))
    assert not COPIED.keys() & LEFT_OUT.keys()
    assert tables <= COPIED.keys() | LEFT_OUT.keys()
    assert COPIED.keys() <= tables


def test_a_copy_is_audited_and_goes_to_its_customer_alone(served: Served, shop: Shop) -> None:
    assert served.site.operate("GET", EXPORT).status == 403
    assert served.site.operate("GET", f"{EXPORT}?customer={shop.tenant.id}").status == 403
    for missing in (Scope.ADMIN, Scope.DATASETS_READ, Scope.SEARCH_READ):
        token = served.token(shop.tenant, *(set(Scope) - {missing}))
        answer = served.site.call("GET", EXPORT, headers={"authorization": f"Token {token}"})
        assert (answer.status, missing in answer.document["detail"]) == (403, True)
    assert Event.CUSTOMER_EXPORT not in [entry.event for entry in served.audited(shop.tenant)]
    exported(shop)
    own = {"authorization": f"Token {shop.tenant.token}"}
    assert served.site.operate("GET", EXPORT, headers=own).status == 200
    events = [entry.event for entry in served.audited(shop.tenant)]
    assert events.count(Event.CUSTOMER_EXPORT) == 2


def test_what_a_copy_has_not_is_named(served: Served, shop: Shop) -> None:
    box = shop.call("POST", "/detection/v2/label", {"name": "shoe"}, 201)["id"]
    image = shop.upload()
    shop.call(
        "POST", "/detection/v2/object", {"detection_label": box, "image": image, "data": [0, 0, 9, 9]}, 201
    )
    closed = shop.call("POST", "/appliance/v1/datasets", {"name": "closed", "visibility": "restricted"}, 201)[
        "id"
    ]
    left_out = {one["name"]: one["reason"] for one in json.loads(exported(shop).read("left_out.json"))}
    (dataset,) = [one for one in served.run(served.images.datasets.list(shop.tenant.id)) if one.name is None]
    assert set(left_out) - set(LEFT_OUT) == {
        f"datasets/{dataset.id}/imagefolder.tar",
        f"datasets/{closed}/coco.tar",
        f"datasets/{closed}/imagefolder.tar",
    }
    assert "boxes" in left_out[f"datasets/{dataset.id}/imagefolder.tar"]
    assert "restricted" in left_out[f"datasets/{closed}/coco.tar"]


def test_of_another_customer_there_is_no_copy(shop: Shop, tenant: Tenant) -> None:
    shop.call("GET", f"{EXPORT}?customer={tenant.id}", None, 404)
    shop.call("GET", f"{EXPORT}?customer={uuid.uuid4()}", None, 404)
