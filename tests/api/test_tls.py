"""TLS by choice: 1.2 where it is asked for, a new certificate under open connections, clients with theirs."""

import http.client
import json
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import trustme

from appliance.api.connections import subject_of
from appliance.errors import ConfigInvalid
from appliance.residency import Residency
from tests.serving import NOW, Reply, Served, Site, Tenant, connect, ended
from tests.waiting import eventually

SUBJECT = "CN=till 7,OU=shop,O=Acme"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(authority: trustme.CA, tmp_path: Path) -> dict[str, Any]:
    """What `[api]` names: a server's certificate, its key, and the authority of clients."""
    named = {"tls_certificate": tmp_path / "chain.pem", "tls_key": tmp_path / "key.pem"}
    install(authority, named)
    clients = tmp_path / "clients.pem"
    authority.cert_pem.write_to_path(clients)
    return named | {"tls_client_ca": clients}


def install(authority: trustme.CA, files: dict[str, Any]) -> None:
    issued = authority.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(files["tls_certificate"])
    issued.private_key_pem.write_to_path(files["tls_key"])


def trusting(
    authority: trustme.CA, subject: str | None = SUBJECT, until: datetime | None = None
) -> ssl.SSLContext:
    """A client, which shows a certificate of this authority where `subject` names its common name."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if subject is not None:
        client_certificate(authority, subject, until).configure_cert(context)
    return context


def client_certificate(
    authority: trustme.CA, subject: str = SUBJECT, until: datetime | None = None
) -> trustme.LeafCert:
    name = subject.partition(",")[0].removeprefix("CN=")
    return authority.issue_cert(
        "client.example",
        common_name=name,
        organization_unit_name="shop",
        organization_name="Acme",
        not_after=until,
    )


def bound(served: Served, tenant: Tenant, subject: str = SUBJECT, scopes: Sequence[str] = ("infer",)) -> str:
    body = json.dumps({"scopes": scopes, "client_subject": subject}).encode()
    issued = served.site.call("POST", "/appliance/v1/tokens", body, tenant.headers())
    assert issued.status == 201, issued.body
    return str(issued.document["token"])


def status(site: Site, token: str) -> int:
    return site.call("GET", "/account/v2/user", headers={"authorization": f"Token {token}"}).status


def test_tls_1_2_is_spoken_where_it_is_asked_for(
    served: Served, authority: trustme.CA, files: dict[str, Any]
) -> None:
    old = trusting(authority, None)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    pair = {name: files[name] for name in ("tls_certificate", "tls_key")}
    with served.another(**pair, tls_minimum="1.2", tls=old) as (site, _):
        assert site.call("GET", "/healthz").status == 200
    with served.another(**pair, tls=old) as (site, _), pytest.raises((ssl.SSLError, ConnectionError)):
        site.call("GET", "/healthz")


def test_a_new_certificate_drops_no_connection(
    served: Served, authority: trustme.CA, files: dict[str, Any]
) -> None:
    pair = {name: files[name] for name in ("tls_certificate", "tls_key")}
    context, renewed = trusting(authority, None), trustme.CA()
    with served.another(**pair, tls=context) as (site, server):
        kept = http.client.HTTPSConnection("localhost", site.port, timeout=30, context=context)
        kept.request("GET", "/healthz")
        assert kept.getresponse().read()
        before = kept.sock
        install(renewed, files)
        served.run(server.apply(served.parts.config.api.model_copy(update=pair)))
        kept.request("GET", "/healthz")
        assert kept.getresponse().status == 200
        assert kept.sock is before
        kept.close()
        assert replace(site, tls=trusting(renewed, None)).call("GET", "/healthz").status == 200
        with pytest.raises(ssl.SSLError):
            site.call("GET", "/healthz")


def test_a_token_is_bound_to_the_subject_of_a_certificate(
    served: Served, tenant: Tenant, authority: trustme.CA, files: dict[str, Any]
) -> None:
    token = bound(served, tenant)
    with served.another(**files, tls=trusting(authority)) as (site, _):
        assert status(site, token) == 200
        assert status(site, tenant.token) == 200, "one that is bound to nobody is everybody's"
        for subject in ("CN=till 8", None):
            other = replace(site, tls=trusting(authority, subject))
            assert status(other, token) == 401
            assert status(other, tenant.token) == 200, "nobody has to show a certificate"
            assert other.call("GET", "/healthz").status == 200
        stranger = trusting(authority, None)
        trustme.CA().issue_cert("client.example", common_name="till 7").configure_cert(stranger)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            status(replace(site, tls=stranger), token)
    assert status(served.site, token) == 401, "without TLS nobody has proven anything"
    signed = {"authorization": f"Token {token}"}
    assert served.site.operate("GET", "/appliance/v1/usage", headers=signed).status == 401


def test_a_successor_is_bound_as_well(
    served: Served, tenant: Tenant, authority: trustme.CA, files: dict[str, Any]
) -> None:
    token = bound(served, tenant)
    path = f"/appliance/v1/tokens/{token[5:15]}"
    rotated = served.site.call("POST", f"{path}/rotate", b"{}", tenant.headers()).document["token"]
    listed = served.site.call("GET", "/appliance/v1/tokens", headers=tenant.headers()).document["tokens"]
    shown = {one["id"]: one["client_subject"] for one in listed}
    assert shown[token[5:15]] == shown[rotated[5:15]] == SUBJECT
    with served.another(**files, tls=trusting(authority)) as (site, _):
        assert status(site, rotated) == 200
        assert status(replace(site, tls=trusting(authority, None)), rotated) == 401


def test_what_a_bound_token_issues_is_bound_as_well(
    served: Served, authority: trustme.CA, files: dict[str, Any]
) -> None:
    """Else who holds it together with its certificate once would make one that is taken everywhere."""
    tenant = served.tenant("issues bound ones")
    admin = bound(served, tenant, scopes=["admin", "infer"])

    def post(site: Site, path: str, document: object) -> Reply:
        body, signed = json.dumps(document).encode(), {"authorization": f"Token {admin}"}
        return site.call("POST", f"/appliance/v1/tokens{path}", body, tenant.headers(**signed))

    with served.another(**files, tls=trusting(authority)) as (site, _):
        issued = {
            named: post(site, "", {"scopes": ["infer"], **asked})
            for named, asked in (("till 7", {}), ("till 8", {"client_subject": "CN=till 8,OU=shop,O=Acme"}))
        }
        assert [answer.status for answer in issued.values()] == [201, 201]
        clients = {name: trusting(authority, f"CN={name}") for name in issued} | {
            "": trusting(authority, None)
        }
        for named, answer in issued.items():
            for shown, client in clients.items():
                expected = 200 if shown == named else 401
                found = status(replace(site, tls=client), answer.document["token"])
                assert found == expected, (named, shown)
        own, unbound = (f"/{token[5:15]}/rotate" for token in (admin, tenant.token))
        refused = post(site, unbound, {"overlap_seconds": 0})
        assert (refused.status, "certificate" in refused.document["detail"]) == (403, True)
        assert status(site, tenant.token) == 200
        successor = post(site, own, {})
        assert successor.status == 201
        assert status(site, successor.document["token"]) == 200
        assert status(replace(site, tls=clients[""]), successor.document["token"]) == 401


def test_a_subject_that_is_none_is_refused(served: Served, tenant: Tenant) -> None:
    for bad in ("", "till 7", "CN=a\nb", "CN=" + "x" * 1000):
        body = json.dumps({"client_subject": bad}).encode()
        refused = served.site.call("POST", "/appliance/v1/tokens", body, tenant.headers())
        assert refused.status == 400, bad
        assert "client_subject" in refused.document["detail"]


def test_authorities_that_cannot_be_used_are_named(served: Served, files: dict[str, Any]) -> None:
    files["tls_client_ca"].write_text("no certificate")
    with pytest.raises(ConfigInvalid, match=r"api\.tls_client_ca"):  # noqa: SIM117
        with served.another(**files):
            pass


def test_subjects_read_as_openssl_prints_them() -> None:
    names = [
        [("countryName", "CZ")],
        [("organizationName", 'Fox, "Sons" + Co\\')],
        [("commonName", " #1 "), ("emailAddress", "a@b.example")],
        [("commonName", "Žižkov;<7>")],
    ]
    assert subject_of(names) == (
        'CN=Žižkov\\;\\<7\\>,CN=\\ #1\\ +emailAddress=a@b.example,O=Fox\\, \\"Sons\\" \\+ Co\\\\,C=CZ'
    )


def test_a_connection_that_never_shakes_hands_is_ended(
    served: Served, authority: trustme.CA, files: dict[str, Any]
) -> None:
    with served.another(**files, tls=trusting(authority), keep_alive_seconds=0.3) as (site, server):
        for begun in (b"", hello(0x0303)[:20]):
            with connect(site) as connection:
                connection.sendall(begun)
                assert connection.recv(1) == b""
        eventually(lambda: server.open_connections == 0, "neither counts any more")
        assert site.call("GET", "/healthz").status == 200


def test_connections_count_before_they_shake_hands(
    served: Served, authority: trustme.CA, files: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {"max_connections_per_address": 3, "keep_alive_seconds": 600}
    with served.another(**files, **settings, tls=trusting(authority)) as (site, server):
        held = [connect(site) for _ in range(3)]
        eventually(lambda: server.open_connections == 3, "those three count")
        assert all(ended(connect(site)) for _ in range(17))
        with pytest.raises((ssl.SSLError, ConnectionError)):
            site.call("GET", "/healthz")
        held.pop().close()
        eventually(lambda: server.open_connections == 2, "one has left")
        assert site.call("GET", "/healthz").status == 200
        for connection in held:
            with trusting(authority).wrap_socket(connection, server_hostname="localhost") as late:
                late.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                assert late.recv(65536).startswith(b"HTTP/1.1 200")
        eventually(lambda: server.open_connections == 0, "each has left once")


def test_a_handshake_that_fails_counts_no_more(
    served: Served, authority: trustme.CA, files: dict[str, Any]
) -> None:
    other = trusting(trustme.CA())
    settings: dict[str, Any] = {"max_connections_per_address": 1, "keep_alive_seconds": 600}
    with served.another(**files, **settings, tls=trusting(authority)) as (site, server):
        for sent in (b"GET / HTTP/1.1\r\n\r\n", hello(0x0302), hello(0x0303)[:20]):
            with connect(site) as connection:
                connection.sendall(sent)
                if len(sent) != 20:  # a record that is whole is judged
                    connection.recv(1)
            eventually(lambda: server.open_connections == 0, "it has left")
        for _ in range(3):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                replace(site, tls=other).call("GET", "/healthz")
            eventually(lambda: server.open_connections == 0, "it has left")
            assert site.call("GET", "/healthz").status == 200
            eventually(lambda: server.open_connections == 0, "it has left")


def test_an_undeclared_address_shakes_no_hands(
    served: Served, authority: trustme.CA, files: dict[str, Any]
) -> None:
    elsewhere = (ip_network("10.0.0.0/8"),)
    residency = Residency(site="x", country="CZ", eea=False, destinations=(), clients=elsewhere)
    with served.another(**files, keep_alive_seconds=600, residency=residency, tls=trusting(authority)) as (
        site,
        server,
    ):
        assert ended(connect(site))
        with pytest.raises((ssl.SSLError, ConnectionError)):
            site.call("GET", "/healthz")
        assert server.open_connections == 0


def test_a_handshake_that_a_reload_comes_into_is_finished(
    served: Served, authority: trustme.CA, files: dict[str, Any]
) -> None:
    """With the certificate of before: the connection was made under it."""
    with served.another(**files, tls=trusting(authority)) as (site, server), connect(site) as begun:
        eventually(lambda: server.open_connections == 1, "it is in")
        install(trustme.CA(), files)
        served.run(server.apply(served.parts.config.api.model_copy(update=files)))
        with trusting(authority).wrap_socket(begun, server_hostname="localhost") as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def hello(version: int) -> bytes:
    """A ClientHello of TLS 1.1 (0x0302) or 1.2 (0x0303), which OpenSSL sends no more (RFC 5246, 7.4.1.2)."""
    suites = bytes.fromhex("c02bc023c009c02fc013002f")
    extensions = bytes.fromhex("000d000400020403 000a000400020017")  # ECDSA with SHA-256; P-256
    body = version.to_bytes(2) + bytes(32) + b"\0" + len(suites).to_bytes(2) + suites + b"\1\0"
    body += len(extensions).to_bytes(2) + extensions
    message = b"\1" + len(body).to_bytes(3) + body
    return b"\x16\3\1" + len(message).to_bytes(2) + message


def answered(site: Site, sent: bytes) -> bytes:
    """The type of the first record that comes back, nothing where the connection is closed."""
    with socket.create_connection((site.host, site.port), timeout=30) as connection:
        connection.sendall(sent)
        return connection.recv(1)


def test_what_is_older_than_the_minimum_is_refused(
    served: Served, authority: trustme.CA, files: dict[str, Any]
) -> None:
    serverhello, versions = b"\x16", {"1.1": 0x0302, "1.2": 0x0303}
    for minimum, older in (("1.2", ["1.1"]), ("1.3", ["1.1", "1.2"])):
        with served.another(**files, tls_minimum=minimum, tls=trusting(authority)) as (site, _):
            answers = {name: answered(site, hello(version)) for name, version in versions.items()}
            assert {name for name, answer in answers.items() if answer != serverhello} == set(older)
            assert site.call("GET", "/healthz").status == 200


def test_a_certificate_that_has_expired_is_refused(
    served: Served, tenant: Tenant, authority: trustme.CA, files: dict[str, Any]
) -> None:
    token, ended = bound(served, tenant), datetime.now(UTC) - timedelta(days=1)
    with served.another(**files, tls=trusting(authority, until=ended)) as (site, _):
        for one in (token, tenant.token):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                status(site, one)


@pytest.fixture
def clocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose clock may be moved."""
    with Served(tmp_path_factory.mktemp("clocked")) as served:
        yield served


class Till:
    """A client that keeps its session, and may keep a connection."""

    def __init__(self, site: Site, context: ssl.SSLContext, token: str) -> None:
        self._site = site
        self._context = context
        self._asked = f"GET /account/v2/user HTTP/1.1\r\nHost: x\r\nAuthorization: Token {token}\r\n\r\n"
        self._session: ssl.SSLSession | None = None

    def connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection((self._site.host, self._site.port), timeout=30)
        return self._context.wrap_socket(plain, server_hostname="localhost", session=self._session)

    def ask(self, connection: ssl.SSLSocket) -> int:
        connection.sendall(self._asked.encode())
        if not (answer := connection.recv(65536)):
            raise ConnectionError("closed without an answer")
        self._session = connection.session
        return int(answer.split()[1])

    def come_back(self) -> tuple[int, bool | None]:
        """What a new connection is answered, and whether it resumed the session of the last one."""
        with self.connect() as connection:
            return self.ask(connection), connection.session_reused


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_certificate_proves_nothing_beyond_its_end(
    clocked: Served, authority: trustme.CA, files: dict[str, Any], version: str
) -> None:
    """Neither over a connection that is kept, nor by resuming a session, where no certificate is shown."""
    until = datetime.fromtimestamp(max(NOW, datetime.now(UTC).timestamp()), UTC) + timedelta(days=1)
    token = bound(clocked, clocked.tenant("till"))
    context = trusting(authority, until=until)
    context.maximum_version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[version]
    with clocked.another(**files, tls_minimum="1.2") as (site, _):
        till = Till(site, context, token)
        assert till.come_back() == (200, False)
        assert till.come_back() == (200, True)
        with till.connect() as kept:
            assert till.ask(kept) == 200
            clocked.clock = until.timestamp() + 1
            assert till.ask(kept) == 401
        assert till.come_back() == (401, True)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_reload_takes_up_other_authorities(
    served: Served, tenant: Tenant, authority: trustme.CA, files: dict[str, Any], version: str
) -> None:
    """One that is gone is believed no more, by no session of before either; who is connected goes on."""
    token, other = bound(served, tenant), trustme.CA()
    before, after = trusting(authority), trusting(authority, None)
    client_certificate(other).configure_cert(after)
    for context in (before, after):
        context.maximum_version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[version]
    with served.another(**files, tls_minimum="1.2") as (site, server):
        till, stranger = Till(site, before, token), Till(site, after, token)
        assert till.come_back() == (200, False)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            stranger.come_back()
        with till.connect() as kept:
            assert till.ask(kept) == 200
            other.cert_pem.write_to_path(files["tls_client_ca"])
            update = {**files, "tls_minimum": "1.2"}
            served.run(server.apply(served.parts.config.api.model_copy(update=update)))
            assert till.ask(kept) == 200
        with pytest.raises((ssl.SSLError, ConnectionError)):
            till.come_back()
        assert stranger.come_back() == (200, False)


def test_a_reload_of_files_that_cannot_be_used_changes_nothing(
    served: Served, tenant: Tenant, authority: trustme.CA, files: dict[str, Any]
) -> None:
    token, sound = bound(served, tenant), {key: path.read_bytes() for key, path in files.items()}
    strange = trustme.CA().issue_cert("localhost").private_key_pem.bytes()
    with served.another(**files, tls=trusting(authority)) as (site, server):
        for key, content in (
            ("tls_certificate", trustme.CA().issue_cert("localhost").cert_chain_pems[0].bytes()),
            ("tls_certificate", sound["tls_certificate"][:200]),
            ("tls_key", strange),
            ("tls_client_ca", b"no certificate"),
            ("tls_client_ca", None),
        ):
            if content is None:
                files[key].unlink()
            else:
                files[key].write_bytes(content)
            with pytest.raises(ConfigInvalid, match=r"api\.tls_"):
                served.run(server.apply(served.parts.config.api.model_copy(update=files)))
            assert status(site, token) == 200, key
            files[key].write_bytes(sound[key])
        served.run(server.apply(served.parts.config.api.model_copy(update=files)))
        assert status(site, token) == 200
