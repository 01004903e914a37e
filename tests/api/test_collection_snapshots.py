"""`/appliance/v1/collections/{id}/snapshots` over HTTP: what is answered, to whom, and what is logged."""

import base64
import json
from datetime import UTC, datetime

from PIL import Image

from appliance.accounts.audit import Event
from appliance.accounts.rights import Scope
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
