"""How a request finds its route, and what every answer has in common."""

import uuid

import pytest

from appliance.api.payload import Form
from appliance.api.routes import ROUTES
from appliance.api.routing import READ, Access, Route, Surface, Table
from appliance.api.server import check_parser
from appliance.errors import NotInstalled, SelfTestFailed
from tests.serving import Served, Tenant

WIRE = [route for route in ROUTES if not route.problem]


def concrete(route: Route) -> str:
    nothing = str(uuid.UUID(int=0))
    path = route.path.replace("{id}", nothing).replace("{snapshot}", nothing)
    return path.replace("{name}", "a-name").replace("{version}", "1.2")


def test_every_route_names_who_may_and_what_the_audit_log_keeps() -> None:
    for route in ROUTES:
        changes = route.audit != READ
        assert not (changes and route.access in {Access.OPEN, Access.TOKEN}), route.path
        assert route.surfaces, route.path
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)


def test_the_operator_socket_serves_no_customers_data() -> None:
    beyond = [route.path for route in ROUTES if Surface.SOCKET in route.surfaces and not route.problem]
    assert beyond == ["/healthz", "/readyz"]


def test_metrics_are_for_the_operator_listener_only() -> None:
    (metrics,) = [route for route in ROUTES if route.path == "/metrics"]
    assert metrics.surfaces == {Surface.OPERATOR}


@pytest.mark.parametrize("form", ["{}", "{}/", "/localhost{}", "/localhost{}/"])
def test_every_route_is_found_in_its_four_spellings(form: str) -> None:
    table = Table(ROUTES, Surface.PUBLIC)
    for route in ROUTES:
        if Surface.PUBLIC in route.surfaces:
            match = table.find(route.method, form.format(concrete(route)))
            assert match.route is route
            assert match.path == concrete(route)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "//",
        "/localhost",
        "/localhost/",
        "/localhost/localhost/healthz",
        "/healthz//",
        "/HEALTHZ",
        "/appliance/v1/tokens/a%2Fb",
        "/appliance/v1/tokens/a/b",
        "/appliance/v1/tokens/" + "x" * 65,
        "/similarity/photos/v2/insert/x",
        "/metrics",
    ],
)
def test_other_paths_are_not_found(path: str) -> None:
    with pytest.raises(NotInstalled):
        Table(ROUTES, Surface.PUBLIC).find("GET", path)


@pytest.mark.parametrize("route", WIRE, ids=lambda route: f"{route.method} {route.path}")
def test_wire_routes_answer_in_json_and_never_redirect(served: Served, tenant: Tenant, route: Route) -> None:
    operator = Surface.PUBLIC not in route.surfaces
    plain = concrete(route)
    for path in (plain, f"{plain}/", f"/localhost{plain}", f"/localhost{plain}/"):
        answer = served.site.call(route.method, path, headers=tenant.headers(), operator=operator)
        expected = {200, 400} if plain == route.path else {404}
        if route.form is Form.FIELDS:  # what is missing may be said first
            expected |= {400}
        assert answer.status in expected, (path, answer.body)
        assert "location" not in answer.headers
        assert answer.headers["server"] == "appliance"
        assert uuid.UUID(answer.headers["x-request-id"]).version == 4
        if not operator:
            assert answer.headers["content-type"] == "application/json"
            assert answer.document is not None


@pytest.mark.parametrize("path", ["/removebg/fast/removebg", "/flows/v2/flow", "/localhost/nothing/", "/"])
def test_what_is_not_installed_says_so_in_both_shapes(served: Served, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = served.site.call(method, path)
        assert answer.status == 404
        assert answer.headers["content-type"] == "application/json"
        assert answer.document["detail"] == "service not installed"
        assert answer.code == 404
        assert answer.document["status"]["text"].startswith("service not installed")
        assert answer.document["status"]["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_another_method_is_a_json_405(served: Served, method: str) -> None:
    answer = served.site.call(method, "/recognition/v2/classify/")
    assert answer.status == 405
    assert answer.headers["allow"] == "POST"
    assert answer.code == 405
    assert answer.document["detail"]


def test_management_refuses_with_problem_json(served: Served, tenant: Tenant) -> None:
    for method, path, headers, status in (
        ("GET", "/appliance/v1/nothing", tenant.headers(), 404),
        ("PUT", "/appliance/v1/tokens", tenant.headers(), 405),
        ("GET", "/appliance/v1/tokens", {}, 401),
        ("GET", "/localhost/appliance/v1/status/", tenant.headers(), 403),
    ):
        answer = served.site.call(method, path, headers=headers)
        assert answer.status == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.document["status"] == status
        assert answer.document["request_id"] == answer.headers["x-request-id"]


def test_head_answers_like_get_without_a_body(served: Served) -> None:
    answer = served.site.call("HEAD", "/healthz")
    assert (answer.status, answer.body) == (200, b"")


def test_the_parser_is_the_one_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    check_parser()
    monkeypatch.setenv("AIOHTTP_NO_EXTENSIONS", "1")
    with pytest.raises(SelfTestFailed, match="AIOHTTP_NO_EXTENSIONS"):
        check_parser()
    monkeypatch.delenv("AIOHTTP_NO_EXTENSIONS")
    monkeypatch.setattr("aiohttp.http_parser.HttpRequestParser", object)
    with pytest.raises(SelfTestFailed, match="C parser"):
        check_parser()
