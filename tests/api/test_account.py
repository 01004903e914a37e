"""What the cloud's clients ask before anything else."""

import json

import pytest

from appliance.accounts.rights import Scope
from tests.serving import Served, Tenant

COLOURS = ["dominant-colors", "dominant-colors-generic", "dominant-colors-product"]
SEARCH = ["photo-search", "photo-similarity", "product-similarity", "custom-similarity", "visual-search"]
MATCHING = ["image-matching"]


def authorize(
    served: Served, tenant: Tenant, service: object, **headers: str
) -> tuple[int, dict[str, object]]:
    body = json.dumps({"service": service, "call_type": "authenticate"}).encode()
    answer = served.site.call("POST", "/authorization/v2/authorize", body, tenant.headers(**headers))
    return answer.status, answer.document


@pytest.mark.parametrize("service", [*SEARCH, *MATCHING, *COLOURS, "custom-recognition", "generic-tagging"])
def test_a_service_that_is_installed_and_granted(served: Served, tenant: Tenant, service: str) -> None:
    status, document = authorize(served, tenant, service)
    assert status == 200
    assert document["user_id"] == tenant.id


def test_images_are_stored_whatever_is_installed(served: Served, tenant: Tenant) -> None:
    """No bundle here detects: the service is there for whoever may use what is stored, for nobody else."""
    for scope in (Scope.DATASETS_READ, Scope.DATASETS_WRITE):
        for service in ("custom-recognition", "custom-object-detection"):
            headers = {"authorization": f"Token {served.token(tenant, scope)}"}
            assert authorize(served, tenant, service, **headers)[0] == 200
    seeing = f"Token {served.token(tenant, Scope.INFER)}"
    status, document = authorize(served, tenant, "custom-object-detection", authorization=seeing)
    assert status == 403
    assert "datasets:read" in str(document["detail"])


@pytest.mark.parametrize("service", ["fashion-tagging", "", "x" * 1000])
def test_a_service_that_is_not_installed(served: Served, tenant: Tenant, service: str) -> None:
    status, document = authorize(served, tenant, service)
    assert status == 404
    assert document["detail"] == "service not installed"
    assert "user_id" not in document


def test_a_grant_follows_the_scopes(served: Served, tenant: Tenant) -> None:
    searching = f"Token {served.token(tenant, Scope.SEARCH_WRITE)}"
    seeing = f"Token {served.token(tenant, Scope.INFER)}"
    assert authorize(served, tenant, "photo-search", authorization=searching)[0] == 200
    assert authorize(served, tenant, "custom-recognition", authorization=searching)[0] == 403
    assert authorize(served, tenant, "custom-recognition", authorization=seeing)[0] == 200
    for service in COLOURS:
        assert authorize(served, tenant, service, authorization=searching)[0] == 403
        assert authorize(served, tenant, service, authorization=seeing)[0] == 200
    status, document = authorize(served, tenant, "photo-search", authorization=seeing)
    assert status == 403
    assert "search:read" in str(document["detail"])


def test_what_is_no_service_name(served: Served, tenant: Tenant) -> None:
    assert authorize(served, tenant, None)[0] == 400
    assert authorize(served, tenant, ["photo-search"])[0] == 400


@pytest.mark.parametrize("scheme", ["Token", "JWT", "Bearer", "token", "BEARER"])
def test_every_scheme_of_the_clients(served: Served, tenant: Tenant, scheme: str) -> None:
    headers = {"authorization": f"{scheme} {tenant.token}"}
    assert served.site.call("GET", "/account/v2/user", headers=headers).document["id"] == tenant.id


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Token", "Token ", "Basic YTpi", "TOKEN{}", "{}", "Token {}x", "Token {} {}", "Token é"],
)
def test_every_other_way_to_sign_is_the_same_401(
    served: Served, tenant: Tenant, authorization: str | None
) -> None:
    headers = (
        {} if authorization is None else {"authorization": authorization.format(tenant.token, tenant.token)}
    )
    answer = served.site.call("GET", "/account/v2/user", headers=headers)
    assert answer.status == answer.code == 401
    assert answer.headers["www-authenticate"] == "Token"
    assert answer.document["detail"] == "the token is missing or not valid"


def test_the_account(served: Served, tenant: Tenant) -> None:
    details = served.site.call("GET", "/account/v2/details/", headers=tenant.headers()).document
    assert details["id"] == details["default_workspace"] == tenant.id
    (workspace,) = served.site.call("GET", "/account/v2/workspace/", headers=tenant.headers()).document
    assert set(workspace) == {"id", "name", "created", "owner", "meta_data", "is_default"}
    assert workspace["is_default"] is True
    assert workspace["id"] == tenant.id
