"""Agreements and the audit log over HTTP: who may sign, accept, revoke and read, and what hangs on it."""

import base64
import hashlib
import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from appliance.accounts.audit import Event
from appliance.accounts.rights import Scope
from tests import images
from tests.api.test_management import V1, admin, operate, unique
from tests.serving import Reply, Served, Tenant


@pytest.fixture
def tenant(served: Served) -> Tenant:
    """A customer without an agreement."""
    return served.tenant(unique())


def sign(served: Served, tenant: Tenant, **fields: object) -> Any:
    asked = {"customer": tenant.id, "kind": "training-data", **fields}
    return operate(served, "POST", "/agreements", asked)


def store(served: Served, tenant: Tenant) -> Reply:
    """A call for recognition that asks for its image to be stored."""
    photo = base64.b64encode(images.jpeg()).decode()
    asked = {"records": [{"_base64": photo}], "task_id": served.bundle.task, "store_images": True}
    return served.site.call("POST", "/recognition/v2/classify", json.dumps(asked).encode(), tenant.headers())


def test_an_operator_signs_and_the_customer_revokes(served: Served, tenant: Tenant) -> None:
    signed = sign(served, tenant)
    assert set(signed) == {
        *("id", "customer", "kind", "state", "signed_at", "active_at", "revoked_at"),
        *("parties", "text_sha256", "signed_on", "valid_until", "has_document"),
    }
    assert (signed["customer"], signed["state"]) == (tenant.id, "active")
    assert admin(served, tenant, "GET", "/agreements").document == {"agreements": [signed]}
    for _ in range(2):
        assert admin(served, tenant, "DELETE", f"/agreements/{signed['id']}").status == 204
    (revoked,) = operate(served, "GET", f"/agreements?customer={tenant.id}")["agreements"]
    assert revoked["state"] == "revoked"
    assert admin(served, tenant, "POST", f"/agreements/{signed['id']}/accept").status == 409
    assert sign(served, tenant)["state"] == "active"


def test_only_the_customer_accepts(served: Served, tenant: Tenant) -> None:
    signed = sign(served, tenant, await_acceptance=True)
    assert (signed["state"], signed["active_at"]) == ("pending", None)
    path = f"/agreements/{signed['id']}/accept"
    refused = served.site.operate("POST", V1 + path)
    assert refused.status == 403
    assert "customer itself" in refused.document["detail"]
    weak = served.token(tenant, *(scope for scope in Scope if scope is not Scope.ADMIN))
    assert admin(served, Tenant(tenant.id, weak, tenant.collection), "POST", path).status == 403
    assert admin(served, served.tenant(unique()), "POST", path).status == 404
    assert admin(served, tenant, "GET", "/agreements").document["agreements"] == [signed]
    accepted = admin(served, tenant, "POST", path)
    assert (accepted.status, accepted.document["state"]) == (200, "active")
    assert admin(served, tenant, "POST", path).document == accepted.document


def test_a_customer_signs_nothing(served: Served, tenant: Tenant) -> None:
    asked = {"customer": tenant.id, "kind": "training-data"}
    assert admin(served, tenant, "POST", "/agreements", asked).status == 403
    assert operate(served, "GET", f"/agreements?customer={tenant.id}") == {"agreements": []}


@pytest.mark.parametrize("pending", [True, False])
def test_a_second_one_is_a_conflict(served: Served, tenant: Tenant, *, pending: bool) -> None:
    first = sign(served, tenant, await_acceptance=pending)
    asked = {"customer": tenant.id, "kind": "training-data"}
    again = served.site.operate("POST", f"{V1}/agreements", asked)
    assert again.status == 409
    assert first["id"] in again.document["detail"]


@pytest.mark.parametrize(
    ("fields", "status", "why"),
    [
        ({"kind": "everything"}, 400, "training-data"),
        ({"kind": None}, 400, "kind"),
        ({"customer": None}, 400, "customer"),
        ({"customer": "nobody"}, 404, "customer"),
        ({"await_acceptance": "yes"}, 400, "await_acceptance"),
        ({"awaits": True}, 400, "awaits"),
        ({"text_sha256": "abc"}, 400, "text_sha256"),
        ({"text_sha256": "A" * 64}, 400, "text_sha256"),
        ({"parties": ""}, 400, "parties"),
        ({"parties": "a\nb"}, 400, "parties"),
        ({"signed_on": "yesterday"}, 400, "signed_on"),
        ({"valid_until": "2020-01-01T00:00:00Z"}, 400, "valid_until"),
        ({"valid_until": "2040-01-01T00:00:00"}, 400, "time zone"),
    ],
)
def test_what_is_no_agreement(
    served: Served, tenant: Tenant, fields: dict[str, object], status: int, why: str
) -> None:
    asked = {"customer": tenant.id, "kind": "training-data", **fields}
    answer = served.site.operate("POST", f"{V1}/agreements", asked)
    assert answer.status == status
    assert why in answer.document["detail"]


def test_no_agreement_no_image_is_stored(served: Served, tenant: Tenant) -> None:
    """In the wire's shape, with what is missing and who can change it."""

    def refused(code: int) -> str:
        answer = store(served, tenant)
        assert answer.status == answer.code == code
        assert answer.document["detail"] == answer.document["status"]["text"]
        return str(answer.document["detail"])

    assert "appliance agreement sign" in refused(403)
    signed = sign(served, tenant, await_acceptance=True)
    assert f"{signed['id']}/accept" in refused(403)
    admin(served, tenant, "POST", f"/agreements/{signed['id']}/accept")
    (kept,) = store(served, tenant).document["records"]
    operate(served, "DELETE", f"/agreements/{signed['id']}")
    assert "appliance agreement sign" in refused(403)
    events = [(entry.event, entry.subject) for entry in served.audited(tenant)]
    assert [subject for event, subject in events if event is Event.IMAGE_ADD] == [kept["_stored_image_id"]]


def test_another_customers_agreement_allows_nothing(served: Served, tenant: Tenant) -> None:
    sign(served, served.tenant(unique()))
    assert store(served, tenant).status == 403


def test_the_customer_sees_it_in_its_audit(served: Served, tenant: Tenant) -> None:
    other = served.tenant(unique())
    signed = sign(served, tenant, await_acceptance=True)
    accepted = admin(served, tenant, "POST", f"/agreements/{signed['id']}/accept")
    operate(served, "DELETE", f"/agreements/{signed['id']}")
    sign(served, other)

    answer = admin(served, tenant, "GET", "/audit").document
    assert answer["next"] is None
    assert {entry["customer"] for entry in answer["entries"]} == {tenant.id}
    acts = [entry for entry in answer["entries"] if entry["subject"] == signed["id"]]
    assert [(entry["event"], entry["actor"]["kind"]) for entry in acts] == [
        ("agreement.sign", "operator"),
        ("agreement.accept", "token"),
        ("agreement.revoke", "operator"),
    ]
    assert acts[1]["request"] == accepted.headers["x-request-id"]
    assert acts[0]["details"] == {"kind": "training-data", "await_acceptance": True}
    assert operate(served, "GET", f"/audit?customer={tenant.id}") == answer
    assert admin(served, other, "GET", f"/audit?customer={tenant.id}").status == 404


def test_the_log_comes_in_pages(served: Served, tenant: Tenant) -> None:
    for _ in range(3):
        sign_and_revoke(served, tenant)
    whole = admin(served, tenant, "GET", "/audit").document["entries"]
    found: list[Any] = []
    after: int | None = 0
    while after is not None:
        page = admin(served, tenant, "GET", f"/audit?after={after}&limit=2").document
        assert len(page["entries"]) <= 2
        found, after = found + page["entries"], page["next"]
    assert found == whole
    assert len(whole) >= 6
    last = whole[-1]["seq"]
    assert admin(served, tenant, "GET", f"/audit?after={last}").document == {"entries": [], "next": None}


def sign_and_revoke(served: Served, tenant: Tenant) -> None:
    operate(served, "DELETE", f"/agreements/{sign(served, tenant)['id']}")


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "after=-1", "after=x", f"after={1 << 63}", "limit="]
)
def test_pages_that_are_none(served: Served, tenant: Tenant, query: str) -> None:
    answer = admin(served, tenant, "GET", f"/audit?{query}")
    assert answer.status == 400
    assert query.partition("=")[0] in answer.document["detail"]


def test_the_log_goes_on_beyond_a_thousand_million_entries(served: Served, tenant: Tenant) -> None:
    answer = admin(served, tenant, "GET", f"/audit?after={(1 << 63) - 1}")
    assert answer.document == {"entries": [], "next": None}


def test_an_operator_reads_the_whole_log(served: Served, tenant: Tenant) -> None:
    signed = sign(served, tenant)
    subjects: set[str] = set()
    after: int | None = 0
    while after is not None:
        page = operate(served, "GET", f"/audit?after={after}&limit=1000")
        subjects |= {entry["subject"] for entry in page["entries"]}
        after = page["next"]
    assert signed["id"] in subjects
    assert served.site.operate("GET", f"{V1}/audit?customer={uuid.uuid4()}").status == 404


def test_what_was_signed_is_read_before_it_is_accepted(served: Served, tenant: Tenant) -> None:
    paper = b"%PDF-1.7 what both sides have signed"
    path = "/appliance/v1/agreements/{}/document"
    said = {
        "kind": "dpa",
        "parties": "Muzeum Ž & Provoz s.r.o.",
        "text_sha256": hashlib.sha256(paper).hexdigest(),
        "signed_on": "2027-01-10",
        "valid_until": "2030-01-01T00:00:00.000+00:00",
    }
    signed = sign(served, tenant, **said, await_acceptance=True)
    assert {name: signed[name] for name in said} == said
    document = path.format(signed["id"])
    assert served.site.call("GET", document, headers=tenant.headers()).status == 404
    wrong = served.site.operate("PUT", document, body=paper + b"?", content_type="application/octet-stream")
    assert (wrong.status, "SHA-256" in wrong.document["detail"]) == (400, True)
    for _ in range(2):
        kept = served.site.operate("PUT", document, body=paper, content_type="application/octet-stream")
        assert kept.status == 204
    answer = served.site.call("GET", document, headers=tenant.headers())
    assert (answer.status, answer.body) == (200, paper)
    assert served.site.operate("GET", document).body == paper
    assert served.site.call("GET", document, headers=served.tenant(unique()).headers()).status == 404
    accepted = admin(served, tenant, "POST", f"/agreements/{signed['id']}/accept").document
    assert accepted["state"] == "active"
    assert accepted["parties"] == said["parties"]
    assert accepted["has_document"]
    acts = [entry.event for entry in served.audited(tenant) if entry.subject == signed["id"]]
    assert acts == [Event.AGREEMENT_SIGN, Event.AGREEMENT_DOCUMENT, Event.AGREEMENT_ACCEPT]
    assert store(served, tenant).status == 403, "only training-data lets images be stored"


def test_a_paper_that_was_not_signed_for_is_not_kept(served: Served, tenant: Tenant) -> None:
    signed = sign(served, tenant)
    path = f"{V1}/agreements/{signed['id']}/document"
    refused = served.site.operate("PUT", path, body=b"anything", content_type="application/octet-stream")
    assert (refused.status, "text_sha256" in refused.document["detail"]) == (400, True)
    huge = served.site.operate(
        "PUT", path, body=bytes((8 << 20) + 1), content_type="application/octet-stream"
    )
    assert huge.status == 413
    assert served.site.call("PUT", path, b"mine", tenant.headers()).status == 405


def test_an_agreement_that_has_expired_allows_nothing(served: Served, tenant: Tenant) -> None:
    ends = datetime.fromtimestamp(served.clock + 3600, UTC).isoformat()
    signed = sign(served, tenant, valid_until=ends)
    assert store(served, tenant).status == 200
    before = served.clock
    try:
        served.clock += 3600
        refused = store(served, tenant)
        assert (refused.status, "has expired" in refused.document["detail"]) == (403, True)
        (listed,) = admin(served, tenant, "GET", "/agreements").document["agreements"]
        assert listed["state"] == "expired"
        assert admin(served, tenant, "POST", f"/agreements/{signed['id']}/accept").status == 409
        operate(served, "DELETE", f"/agreements/{signed['id']}")
        assert sign(served, tenant)["state"] == "active"
    finally:
        served.clock = before


def test_the_customer_revokes_and_has_all_of_it_erased(served: Served, tenant: Tenant) -> None:
    signed = sign(served, tenant)
    dataset = admin(served, tenant, "POST", "/datasets", {"name": "summer"}).document["id"]
    (kept,) = store(served, tenant).document["records"]
    path = f"/agreements/{signed['id']}?erase=true"
    assert served.site.operate("DELETE", V1 + path).status == 403, "an operator erases nothing by it"
    assert store(served, tenant).status == 200
    assert admin(served, tenant, "DELETE", path).status == 204
    assert store(served, tenant).status == 403
    image = served.site.call("GET", f"/files/{kept['_stored_image_id']}.jpg", headers=tenant.headers())
    assert image.status == 404
    assert admin(served, tenant, "GET", f"/datasets/{dataset}").status == 404
    events = [entry.event for entry in served.audited(tenant)]
    assert events.count(Event.DATASET_ERASE) == 2
    assert admin(served, tenant, "DELETE", path).status == 204, "asked once more: nothing is left"

    later = sign(served, tenant)
    assert store(served, tenant).status == 200
    refused = admin(served, tenant, "DELETE", path)
    assert (refused.status, "later agreement" in refused.document["detail"]) == (409, True)
    assert store(served, tenant).status == 200
    assert admin(served, tenant, "DELETE", f"/agreements/{later['id']}?erase=perhaps").status == 400
    other = sign(served, tenant, kind="nda")
    assert admin(served, tenant, "DELETE", f"/agreements/{other['id']}?erase=true").status == 400
