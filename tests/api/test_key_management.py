"""`/appliance/v1/keys`: on the operator socket alone, and no key in what is answered or said."""

import base64
import logging
import uuid
from collections.abc import Iterator

import pytest

from appliance.accounts.audit import Event
from appliance.api.routes import ROUTES
from appliance.api.routing import Surface
from appliance.vault import create_root
from tests.api.test_management import V1, operate, unique
from tests.serving import Reply, Served, Tenant

KEYS = [route for route in ROUTES if route.path.startswith(f"{V1}/keys")]
PRESENT = bytes(range(32))  # the root of these tests' server


@pytest.fixture
def dataset(served: Served, tenant: Tenant) -> uuid.UUID:
    """A container of the tenant with a key."""
    made = uuid.uuid4()
    served.keyring.add(uuid.UUID(tenant.id), made, "dataset")
    return made


@pytest.fixture
def rotated(served: Served) -> Iterator[bytes]:
    """A new root that was given; what is shared with other tests is put back."""
    new = create_root()
    assert rotate_root(served, new).document == {"rotation": "restart", "root_key_file": None}
    yield new
    assert rotate_root(served, PRESENT).document["rotation"] is None


def rotate_root(served: Served, root: bytes) -> Reply:
    path = f"{V1}/keys/root/rotate"
    return served.site.operate("POST", path, body=root, content_type="application/octet-stream")


def test_the_routes_of_keys_are_for_the_socket_alone(served: Served, tenant: Tenant) -> None:
    assert len(KEYS) == 5
    for route in KEYS:
        assert route.surfaces == {Surface.SOCKET}
        path = route.path.replace("{id}", tenant.id)
        for operator in (False, True):
            answer = served.site.call(route.method, path, b"", tenant.headers(), operator=operator)
            assert answer.status == 404, route.path
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.document["detail"].endswith("nothing is served at this path")


def test_keys_are_listed_and_rotated(served: Served, tenant: Tenant, dataset: uuid.UUID) -> None:
    path = f"/keys/containers/{dataset}/rotate"
    before = operate(served, "GET", "/keys")
    operate(served, "POST", path, {"customer": tenant.id})
    operate(served, "POST", f"/keys/customers/{tenant.id}/rotate")
    after = operate(served, "GET", "/keys")
    assert after["number"] == before["number"] + 2
    assert after["rotation"] is None
    (held,) = [one for one in after["customers"] if one["customer"] == tenant.id]
    (earlier,) = [one for one in before["customers"] if one["customer"] == tenant.id]
    assert held["generation"] == earlier["generation"] + 1
    (container,) = [one for one in held["containers"] if one["id"] == str(dataset)]
    assert container == {"id": str(dataset), "kind": "dataset", "generations": [1, 2]}
    events = [row.event for row in served.audited(tenant) if row.actor.kind == "operator"]
    assert events[-2:] == [Event.KEY_ROTATE, Event.KEY_ROTATE]


def test_what_has_no_key(served: Served, tenant: Tenant, dataset: uuid.UUID) -> None:
    stranger = operate(served, "POST", "/customers", {"name": unique()})["id"]
    for path, document in (
        (f"/keys/customers/{stranger}/rotate", None),
        ("/keys/customers/nobody/rotate", None),
        (f"/keys/containers/{dataset}/rotate", {"customer": stranger}),
        (f"/keys/containers/{uuid.uuid4()}/rotate", {"customer": tenant.id}),
        ("/keys/containers/x/rotate", {"customer": tenant.id}),
    ):
        assert served.site.operate("POST", V1 + path, document).status == 404, path
    unnamed = served.site.operate("POST", f"{V1}/keys/containers/{dataset}/rotate", {})
    assert unnamed.status == 400
    assert "customer" in unnamed.document["detail"]


def test_a_root_waits_for_the_restart(served: Served, rotated: bytes) -> None:
    assert operate(served, "GET", "/keys")["rotation"] == "restart"
    again = rotate_root(served, rotated)
    assert (again.status, again.document["rotation"]) == (200, "restart")
    third = rotate_root(served, create_root())
    assert third.status == 409
    retired = served.site.operate("POST", f"{V1}/keys/root/retire")
    assert retired.status == 409
    assert "start it with the new one" in retired.document["detail"]


def test_nothing_to_retire(served: Served) -> None:
    assert operate(served, "POST", "/keys/root/retire") == {"retired": False}
    same = rotate_root(served, PRESENT)
    assert same.status == 409
    assert "make another one" in same.document["detail"]


@pytest.mark.parametrize("size", [0, 31, 33, 1 << 20])
def test_what_is_no_root_key(served: Served, size: int) -> None:
    answer = rotate_root(served, bytes(size))
    assert answer.status == 400
    assert f"32 bytes, not {size}" in answer.document["detail"]


def test_a_new_root_is_in_nothing_that_is_said(
    served: Served, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, taken or failing: not in an answer, a line of the log, or the audit log."""
    caplog.set_level(logging.DEBUG)
    new = create_root()
    said = [rotate_root(served, new + b"!"), rotate_root(served, new), rotate_root(served, create_root())]
    said.append(served.site.operate("GET", f"{V1}/keys"))
    said.append(rotate_root(served, PRESENT))

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(new)

    monkeypatch.setattr("appliance.vault.keyring.write_atomically", fail)
    said.append(rotate_root(served, new))
    assert [answer.status for answer in said] == [400, 200, 409, 200, 200, 500]
    log = operate(served, "GET", "/audit?limit=1000")
    text = caplog.text + str(log) + "".join(str(answer) for answer in said)
    for form in (new.hex(), repr(new)[2:-1], base64.b64encode(new).decode()):
        assert form not in text
