"""`/appliance/v1/collections/{id}/snapshots` over HTTP: what is answered, to whom, and what is logged."""

import base64
import json
import os
import socket
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from appliance.accounts.audit import Event
from appliance.accounts.rights import Scope
from appliance.errors import SealBroken, StorageFailed
from tests import images
from tests.serving import Reply, Served, Tenant

PHOTOS = "/similarity/photos/v2"
PHOTO = base64.b64encode(images.encoded(Image.new("RGB", (30, 20), "red"), "PNG")).decode()


def insert(served: Served, tenant: Tenant, *ids: str) -> None:
    body = json.dumps({"records": [{"_id": one, "_base64": PHOTO} for one in ids]}).encode()
    assert served.site.call("POST", f"{PHOTOS}/insert", body, tenant.headers()).code == 210


def stored(served: Served, tenant: Tenant, collection: str) -> list[str]:
    headers = tenant.headers(collection_id=collection)
    answer = served.site.call("POST", f"{PHOTOS}/allRecords", b"{}", headers)
    return sorted(record["_id"] for record in answer.document["answer_records"])


def test_there_and_back_again(served: Served) -> None:
    tenant = served.tenant("goes back")
    base, headers = f"/appliance/v1/collections/{tenant.collection}/snapshots", tenant.headers()
    insert(served, tenant, "a", "b")
    made = served.site.call("POST", base, headers=headers)
    assert made.status == 201
    snapshot = made.document
    assert (snapshot["collection"], snapshot["records"]) == (tenant.collection, 2)
    assert datetime.fromisoformat(snapshot["created_at"]) == datetime.fromtimestamp(served.clock, UTC)
    assert served.site.call("GET", base, headers=headers).document == {"snapshots": [snapshot]}
    insert(served, tenant, "c")
    restored = served.site.call("POST", f"{base}/{snapshot['id']}/restore", headers=headers)
    assert (restored.status, restored.document["id"]) == (200, tenant.collection)
    assert restored.document["count"] == 2
    assert stored(served, tenant, tenant.collection) == ["a", "b"]
    into = json.dumps({"into": "as it was"}).encode()
    beside = served.site.call("POST", f"{base}/{snapshot['id']}/restore", into, headers)
    assert (beside.status, beside.document["name"], beside.document["count"]) == (201, "as it was", 2)
    assert stored(served, tenant, beside.document["id"]) == ["a", "b"]
    again = served.site.call("POST", f"{base}/{snapshot['id']}/restore", into, headers)
    assert (again.status, "of this name" in again.document["detail"]) == (409, True)
    assert served.site.call("DELETE", f"{base}/{snapshot['id']}", headers=headers).status == 204
    assert served.site.call("GET", base, headers=headers).document == {"snapshots": []}
    told = [row.event for row in served.audited(tenant) if row.event.startswith("snapshot.")]
    restores = [Event.SNAPSHOT_RESTORE] * 2
    assert told == [Event.SNAPSHOT_ADD, *restores, Event.SNAPSHOT_REMOVE]


@pytest.mark.parametrize("kind", ["folder", "link", "pipe", "socket"])
def test_what_is_no_file_is_listed_as_damaged_and_can_be_removed(
    served: Served, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tenant = served.tenant(f"has a {kind}")
    base, headers = f"/appliance/v1/collections/{tenant.collection}/snapshots", tenant.headers()
    sound = served.site.call("POST", base, headers=headers).document
    folder = served.parts.collections.snapshots._folder / tenant.collection.replace("-", "")
    odd = uuid.uuid4()
    match kind:
        case "folder":
            (folder / odd.hex / "within").mkdir(parents=True)
        case "link":
            (tmp_path / "target").write_bytes(b"another's")
            (folder / odd.hex).symlink_to(tmp_path / "target")
        case "pipe":
            os.mkfifo(folder / odd.hex)
        case _:
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(str(tmp_path / "s"))
            (tmp_path / "s").rename(folder / odd.hex)
    listed = served.site.call("GET", base, headers=headers).document["snapshots"]
    assert sound in listed
    (damaged,) = [one for one in listed if one != sound]
    assert (damaged["id"], damaged["created_at"], damaged["records"]) == (str(odd), None, None)
    refused = served.site.call("POST", f"{base}/{odd}/restore", headers=headers)
    assert (refused.status, SealBroken.told in refused.document["detail"]) == (409, True)
    assert "it is no plain file" in caplog.text
    assert served.site.call("DELETE", f"{base}/{odd}", headers=headers).status == 204
    assert served.site.call("GET", base, headers=headers).document == {"snapshots": [sound]}
    assert kind != "link" or (tmp_path / "target").read_bytes() == b"another's"


def test_a_fault_of_the_disk_names_no_path_to_a_customer(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor a piece of one: the folder has a name with spaces."""
    tenant = served.tenant("has no folder")
    base, headers = f"/appliance/v1/collections/{tenant.collection}/snapshots", tenant.headers()
    (tmp_path / "on the left").mkdir()
    folder = tmp_path / "on the left" / tenant.collection.replace("-", "")
    folder.write_bytes(b"")  # no folder: what a disk's fault looks like from here
    monkeypatch.setattr(served.parts.collections.snapshots, "_folder", folder.parent)
    answer = served.site.call("GET", base, headers=headers)
    assert answer.status == 503
    assert answer.document["detail"] == StorageFailed.told
    assert f"request {answer.document['request_id']}: {folder}: Not a directory" in caplog.text
    path = f"/appliance/v1/collections/{tenant.collection}/snapshots"
    assert f"{folder}: Not a directory" in served.site.operate("GET", path).document["detail"]


def test_refusals_say_what_to_do(served: Served) -> None:
    tenant = served.tenant("is refused")
    base, headers = f"/appliance/v1/collections/{tenant.collection}/snapshots", tenant.headers()
    other = served.run(served.collection(tenant.id, "other"))
    snapshot = served.site.call("POST", base, headers=headers).document["id"]
    elsewhere = f"/appliance/v1/collections/{other}/snapshots/{snapshot}"
    for method, path, body, status, said in (
        ("POST", f"{elsewhere}/restore", b"{}", 404, "no such snapshot"),
        ("DELETE", elsewhere, None, 404, "no such snapshot"),
        ("POST", f"{base}/nothing/restore", b"{}", 404, "no such snapshot"),
        ("POST", f"{base}/..%2F..%2Fx/restore", b"{}", 400, "snapshot: 1 to 64 letters, digits, dots"),
        ("POST", f"{base}/{snapshot}/restore", b'{"into": 5}', 400, "into"),
        ("POST", f"{base}/{snapshot}/restore", b'{"into": ""}', 400, "name"),
        ("POST", f"{base}/{snapshot}/restore", b'{"onto": "x"}', 400, "onto"),
    ):
        answer = served.site.call(method, path, body, headers)
        assert (answer.status, said in answer.document["detail"]) == (status, True), answer.body
    folder = served.parts.collections.snapshots._folder / tenant.collection.replace("-", "")
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    answer = served.site.call("POST", f"{base}/{snapshot}/restore", headers=headers)
    assert (answer.status, "cannot be restored" in answer.document["detail"]) == (409, True)
    (listed,) = served.site.call("GET", base, headers=headers).document["snapshots"]
    assert (listed["created_at"], listed["records"]) == (None, None)
    for _ in range(7):
        assert served.site.call("POST", base, headers=headers).status == 201
    answer = served.site.call("POST", base, headers=headers)
    assert (answer.status, "max_snapshots" in answer.document["detail"]) == (412, True)


def test_it_is_for_admins(served: Served) -> None:
    tenant = served.tenant("may not")
    base = f"/appliance/v1/collections/{tenant.collection}/snapshots"
    token = served.token(tenant, *(set(Scope) - {Scope.ADMIN}))
    assert served.site.call("POST", base, headers={"authorization": f"Token {token}"}).status == 403
    made = served.site.operate("POST", base)
    assert made.status == 201
    assert served.site.operate("POST", f"{base}/{made.document['id']}/restore", {}).status == 200


def test_who_erases_a_record_has_no_snapshot_bring_it_back(served: Served) -> None:
    tenant = served.tenant("has it erased")
    base, headers = f"/appliance/v1/collections/{tenant.collection}/snapshots", tenant.headers()
    insert(served, tenant, "deleted", "erased", "matched", "kept")
    update = {"records": [{"_id": "matched", "n": 1}]}
    snapshot = served.site.call("POST", base, headers=headers).document["id"]

    def change(path: str, document: object) -> Reply:
        return served.site.call("POST", f"{PHOTOS}/{path}", json.dumps(document).encode(), headers)

    assert change("update", update).code == 200
    assert change("delete", {"records": [{"_id": "deleted"}]}).code == 220
    assert change("delete", {"records": [{"_id": "erased"}], "erase": True}).code == 220
    matched = change("deleteByFilter", {"filter": {"n": 1}, "erase": True})
    assert matched.document["deleted_count"] == 1
    assert change("delete", {"records": [{"_id": "kept"}], "erase": "perhaps"}).status == 400
    for about, snapshots in (("deleted", [snapshot]), ("erased", [])):
        (listed,) = served.site.call(
            "GET", f"/appliance/v1/erasures?about={about}", headers=headers
        ).document["erasures"]
        path = f"/appliance/v1/erasures/{listed['id']}"
        assert served.site.call("GET", path, headers=headers).document["statement"]["snapshots"] == snapshots
    assert served.site.call("POST", f"{base}/{snapshot}/restore", headers=headers).document["count"] == 2
    assert stored(served, tenant, tenant.collection) == ["deleted", "kept"]
    assert change("delete", {"records": [{"_id": "gone"}], "erase": True}).code == 404
