"""On a volume without room for more: what each route answers that changes something."""

import json
import uuid
from collections.abc import Iterator

import pytest

from appliance.api.payload import Form
from appliance.api.routes import ROUTES
from appliance.api.routing import READ, Access, Route, Surface
from appliance.volume import Space
from tests.serving import ACTOR, Reply, Served, Tenant
from tests.victims import named

CHANGES = [route for route in ROUTES if route.audit != READ]
NEEDS_ROOM = [route for route in CHANGES if route.needs_room]
GOES_ON = [route for route in CHANGES if not route.needs_room]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Tenant]]:
    """All of it is somebody else's."""
    with Served(tmp_path_factory.mktemp("full")) as served, pytest.MonkeyPatch.context() as patched:
        tenant = served.tenant("whose volume is full")
        patched.setattr(Space, "_measure", lambda _: (0, 1 << 40))
        yield served, tenant


def ask(served: Served, tenant: Tenant, route: Route) -> Reply:
    """With names of nothing, and a body that says nothing."""
    path = route.path.replace("{id}", str(uuid.UUID(int=0))).replace("{snapshot}", "s").replace("{name}", "n")
    path = path.replace("{version}", "1")
    body = None if route.form is Form.NOTHING else b"{}"
    headers = {"content-type": "application/json", "authorization": f"Token {tenant.token}"}
    if Surface.PUBLIC in route.surfaces and route.access is not Access.OPERATOR:
        return served.site.call(route.method, path, body, headers)
    return served.site.operate(route.method, path, body=body)


@pytest.mark.parametrize("route", NEEDS_ROOM, ids=named)
def test_nothing_is_taken_in(full: tuple[Served, Tenant], route: Route) -> None:
    answer = ask(*full, route)
    assert answer.status == 507, answer.body
    assert b"volume" in answer.body


@pytest.mark.parametrize("route", GOES_ON, ids=named)
def test_what_deletes_or_ends_a_right_goes_on(full: tuple[Served, Tenant], route: Route) -> None:
    assert ask(*full, route).status != 507


def test_what_a_dataset_shows_is_made_less_and_never_more(full: tuple[Served, Tenant]) -> None:
    served, tenant = full
    assert served.parts.images is not None
    dataset = served.run(served.parts.images.datasets.default(tenant.id))

    def change(**wanted: object) -> int:
        path, body = f"/appliance/v1/datasets/{dataset.id}", json.dumps(wanted).encode()
        return served.site.call("PATCH", path, body, tenant.headers()).status

    assert change(visibility="public") == 507
    assert change(end_links=True) == 507
    assert change(visibility="restricted", retention_days=30) == 200
    assert change(visibility="restricted") == 507
    assert change(visibility="link") == 507
    assert change(retention_days=31) == 507
    assert change(retention_days=29) == 200
    assert change(retention_days=None) == 507


def test_the_answer_of_a_deletion_is_not_remembered(full: tuple[Served, Tenant]) -> None:
    served, tenant = full
    body = json.dumps({"records": [{"_id": str(number)} for number in range(300)]}).encode()
    for _ in range(2):
        headers = tenant.headers(idempotency_key="once")
        answer = served.site.call("POST", "/similarity/photos/v2/delete", body, headers)
        assert (answer.status, answer.headers.get("idempotent-replayed")) == (404, None)
    query = "SELECT count(*) FROM search_replies"
    assert served.run(served.ledger.read(lambda connection: connection.execute(query).get)) == 0


def test_a_token_is_revoked_and_a_customer_suspended(full: tuple[Served, Tenant]) -> None:
    served, tenant = full
    (token,) = served.run(served.parts.tokens.list(tenant.id))
    customer = served.run(served.parts.customers.add(ACTOR, "who is suspended")).id
    headers = tenant.headers()
    assert served.site.operate("POST", f"/appliance/v1/customers/{customer}/suspend").status == 200
    assert served.site.call("DELETE", f"/appliance/v1/tokens/{token.id}", headers=headers).status == 204
    assert served.site.call("GET", "/account/v2/user", headers=headers).status == 401
