"""Heads that servers have been told apart, smuggled past or brought down with: each gets a plain refusal."""

import pytest

from tests.api.test_bodies import ask_raw, document_of, status_of
from tests.serving import Served, Tenant

PING = "/similarity/photos/v2/ping"


def head(tenant: Tenant, *lines: bytes, version: bytes = b"HTTP/1.1", path: str = PING) -> bytes:
    authorization = f"Token {tenant.token}".encode()
    top = [b"POST " + path.encode() + b" " + version, b"Host: x", b"Authorization: " + authorization, *lines]
    return b"\r\n".join(top) + b"\r\n\r\n"


@pytest.mark.parametrize("name", [b"collection-id", b"collection"])
def test_a_collection_id_that_is_no_text_names_no_collection(
    served: Served, tenant: Tenant, name: bytes
) -> None:
    said = ask_raw(served.site, head(tenant, name + b": \xff\xe9", b"Content-Length: 0"))
    assert status_of(said) == 404
    assert document_of(said)["detail"] == "no such collection"


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ((b"Content-Encoding: gzip", b"Content-Length: 0"), 415),
        ((b"Content-Encoding: identity", b"Content-Encoding: gzip", b"Content-Length: 0"), 415),
        ((b"Transfer-Encoding: gzip, chunked",), 501),
        ((b"Transfer-Encoding: identity, chunked",), 501),
    ],
)
def test_codings_that_nobody_undoes_are_refused(
    served: Served, tenant: Tenant, lines: tuple[bytes, ...], status: int
) -> None:
    body = b"0\r\n\r\n" if any(line.startswith(b"Transfer") for line in lines) else b""
    collection = b"collection-id: " + tenant.collection.encode()
    said = ask_raw(served.site, head(tenant, collection, *lines) + body)
    assert status_of(said) == status


@pytest.mark.parametrize("version", [b"HTTP/2.0", b"HTTP/1.2", b"HTTP/0.9"])
def test_another_version_of_http_is_refused(served: Served, tenant: Tenant, version: bytes) -> None:
    said = ask_raw(served.site, head(tenant, b"Content-Length: 0", version=version))
    assert status_of(said) in {400, 505}


@pytest.mark.parametrize("name", [b"Authorization", b"authorization"])
def test_two_tokens_are_none(served: Served, tenant: Tenant, name: bytes) -> None:
    """A proxy may look at the other one."""
    said = ask_raw(
        served.site, head(tenant, name + b": Token " + tenant.token.encode(), b"Content-Length: 0")
    )
    assert status_of(said) == 400
    assert tenant.token.encode() not in said


def test_the_prefix_counts_once(served: Served) -> None:
    assert served.site.call("GET", "/localhost/healthz").status == 200
    assert served.site.call("GET", "/localhost/localhost/healthz").status == 404
