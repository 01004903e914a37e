"""Agreements and the audit log over HTTP: who may sign, accept, revoke and read, and what hangs on it."""

import base64
import json
import uuid
from typing import Any

import pytest

from appliance.accounts.audit import Event
from appliance.accounts.tokens import Scope
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
    assert set(signed) == {"id", "customer", "kind", "state", "signed_at", "active_at", "revoked_at"}
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
