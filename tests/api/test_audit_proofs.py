"""What a customer gets of the audit log over HTTP: chosen entries, lines, checkpoints and proofs."""

import base64
import json
import uuid
from typing import Any

import pytest

from appliance.accounts.transparency.checkpoints import parse
from appliance.vault import NODE
from tests import rfc6962
from tests.api.test_management import V1, admin, operate, unique
from tests.serving import Served, Tenant


@pytest.fixture
def tenant(served: Served) -> Tenant:
    return served.tenant(unique())


def publish(served: Served) -> None:
    served.run(served.parts.audit_tree.publish())


def entries(served: Served, tenant: Tenant, query: str = "") -> list[Any]:
    found: list[Any] = admin(served, tenant, "GET", f"/audit?{query}").document["entries"]
    return found


def lines(served: Served, tenant: Tenant, query: str = "") -> list[bytes]:
    answer = admin(served, tenant, "GET", f"/audit/export?{query}")
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.body.endswith(b"\n") or not answer.body
    return answer.body.splitlines()


def hashes(proof: Any) -> list[bytes]:
    return [base64.b64decode(one) for one in proof["hashes"]]


def some(served: Served, tenant: Tenant) -> None:
    """Entries at three times."""
    for _ in range(3):
        served.clock += 60
        agreement = operate(served, "POST", "/agreements", {"customer": tenant.id, "kind": "training-data"})
        operate(served, "DELETE", f"/agreements/{agreement['id']}")


def test_entries_are_chosen_by_event_subject_and_time(served: Served, tenant: Tenant) -> None:
    some(served, tenant)
    whole = entries(served, tenant)
    signed = [entry for entry in whole if entry["event"] == "agreement.sign"]
    assert len(signed) == 3
    assert entries(served, tenant, "event=agreement.sign") == signed
    both = entries(served, tenant, "event=agreement.sign&event=agreement.revoke")
    assert both == whole[-6:]
    subject = signed[1]["subject"]
    assert entries(served, tenant, f"subject={subject}") == whole[-4:-2]
    middle = signed[1]["time"].replace("+00:00", "Z")
    assert entries(served, tenant, f"since={middle}") == whole[-4:]
    assert entries(served, tenant, f"until={middle}&event=agreement.sign") == signed[:1]
    assert entries(served, tenant, f"since={middle}&until={middle}") == []
    page = admin(served, tenant, "GET", "/audit?event=agreement.sign&limit=2").document
    assert page["entries"] == signed[:2]
    assert entries(served, tenant, f"event=agreement.sign&after={page['next']}") == signed[2:]


@pytest.mark.parametrize(
    "query",
    ["event=nothing", "event=", "since=yesterday", "since=2027-01-31", "until=1", f"subject={'x' * 201}"],
)
@pytest.mark.parametrize("path", ["/audit", "/audit/export"])
def test_what_chooses_nothing_that_there_is(served: Served, tenant: Tenant, path: str, query: str) -> None:
    answer = admin(served, tenant, "GET", f"{path}?{query}")
    assert answer.status == 400
    assert answer.document["detail"].startswith(query.partition("=")[0])


def test_the_export_is_the_list_as_lines(served: Served, tenant: Tenant) -> None:
    some(served, tenant)
    documents = [json.loads(line) for line in lines(served, tenant)]
    listed = entries(served, tenant)
    assert [document["seq"] for document in documents] == [entry["seq"] for entry in listed]
    for document, entry in zip(documents, listed, strict=True):
        kept = entry | {"time": document["time"], "actor": document["actor"]}
        assert document == {name: value for name, value in kept.items() if name in document}
    assert len(lines(served, tenant, "event=agreement.sign")) == 3
    assert lines(served, tenant, f"after={listed[-1]['seq']}") == []


def test_an_entry_is_proven_to_be_in_the_log(served: Served, tenant: Tenant) -> None:
    some(served, tenant)
    publish(served)
    note = admin(served, tenant, "GET", "/audit/checkpoint")
    assert note.headers["content-type"] == "text/plain; charset=utf-8"
    head = parse(note.body, served.keyring.service.public(NODE))
    for line in lines(served, tenant):
        seq = json.loads(line)["seq"]
        proof = admin(served, tenant, "GET", f"/audit/proof?seq={seq}").document
        assert (proof["seq"], proof["index"], proof["entry"]) == (seq, seq - 1, line.decode())
        assert (proof["size"], proof["checkpoint"]) == (head.size, head.note)
        assert base64.b64decode(proof["root"]) == head.root
        assert rfc6962.includes(line, seq - 1, head.size, hashes(proof), head.root)


def test_the_log_is_proven_to_go_on_from_a_checkpoint(served: Served, tenant: Tenant) -> None:
    publish(served)
    public = served.keyring.service.public(NODE)
    old = parse(admin(served, tenant, "GET", "/audit/checkpoint").body, public)
    some(served, tenant)
    publish(served)
    proof = admin(served, tenant, "GET", f"/audit/proof?from={old.size}").document
    new = parse(proof["checkpoint"].encode(), public)
    assert new.size > old.size == proof["from"]
    assert rfc6962.consistent(old.size, new.size, hashes(proof), old.root, new.root)
    assert admin(served, tenant, "GET", "/audit/proof?from=0").document["hashes"] == []
    beyond = admin(served, tenant, "GET", f"/audit/proof?from={new.size + 1000}")
    assert beyond.status == 400
    assert str(new.size) in beyond.document["detail"]


def test_an_entry_that_no_checkpoint_covers_yet(served: Served, tenant: Tenant) -> None:
    publish(served)
    some(served, tenant)
    answer = admin(served, tenant, "GET", f"/audit/proof?seq={entries(served, tenant)[-1]['seq']}")
    assert answer.status == 409
    assert "minute" in answer.document["detail"]


@pytest.mark.parametrize("query", ["", "seq=1&from=1", "seq=0", "seq=x", "from=-1", f"seq={1 << 63}"])
def test_what_is_no_question_for_a_proof(served: Served, tenant: Tenant, query: str) -> None:
    assert admin(served, tenant, "GET", f"/audit/proof?{query}").status == 400


def test_another_customers_entry_is_as_one_that_never_was(served: Served, tenant: Tenant) -> None:
    other = served.tenant(unique())
    publish(served)
    theirs = entries(served, other)[0]["seq"]
    refused = admin(served, tenant, "GET", f"/audit/proof?seq={theirs}")
    absent = admin(served, tenant, "GET", f"/audit/proof?seq={(1 << 63) - 1}")
    assert refused.status == absent.status == 404
    assert refused.document["detail"] == absent.document["detail"] == "no such entry"
    for path in ("/audit/export", "/audit/checkpoint", f"/audit/proof?seq={theirs}"):
        joined = "&" if "?" in path else "?"
        assert admin(served, tenant, "GET", f"{path}{joined}customer={other.id}").status == 404
        assert served.site.operate("GET", f"{V1}{path}{joined}customer={uuid.uuid4()}").status == 404


def test_an_operator_has_the_whole_log(served: Served, tenant: Tenant) -> None:
    publish(served)
    seq = entries(served, tenant)[0]["seq"]
    assert operate(served, "GET", f"/audit/proof?seq={seq}&customer={tenant.id}")["seq"] == seq
    proof = operate(served, "GET", "/audit/proof?seq=1")
    whole = served.site.operate("GET", f"{V1}/audit/export").body.splitlines()
    assert whole[0].decode() == proof["entry"]
    assert proof["size"] <= len(whole)
    root = rfc6962.tree(whole[: proof["size"]])
    assert base64.b64decode(proof["root"]) == root
