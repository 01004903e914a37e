"""Listeners: who may connect, how often, who operators are, how serving ends, what is logged and measured."""

import base64
import grp
import json
import logging
import os
import socket
import ssl
import stat
import subprocess
import time
import uuid
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import aiohttp.web
import pytest
import trustme
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from appliance.api.connections import Door
from appliance.errors import ApplianceError, ConfigInvalid
from appliance.health import Readiness
from appliance.residency import Residency
from tests import images
from tests.serving import Served, Site, Tenant, connect, ended


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def told(site: Site, gauge: str) -> float:
    """What /metrics says of a gauge."""
    text = site.call("GET", "/metrics", operator=True).body.decode()
    (value,) = [line.split(" ")[1] for line in text.splitlines() if line.startswith(f"{gauge} ")]
    return float(value)


def test_the_internals_of_aiohttp_that_connections_build_on() -> None:
    """Public or not, these are what `connections` overrides and calls: a change must be looked at."""
    for name in ("connection_made", "connection_lost", "handle_error", "log_exception", "force_close"):
        assert callable(getattr(aiohttp.web.RequestHandler, name)), name
    for name in ("pre_shutdown", "shutdown", "__call__"):
        assert callable(getattr(aiohttp.web.Server, name)), name
    assert {"_kwargs", "_loop"} <= set(aiohttp.web.Server.__init__.__code__.co_names)


def test_connections_from_one_address_are_counted(served: Served) -> None:
    with served.another(max_connections_per_address=3) as (site, server):
        held = [connect(site) for _ in range(3)]
        until(lambda: server.open_connections == 3)
        assert ended(connect(site))
        held.pop().close()
        until(lambda: server.open_connections == 2)
        assert site.call("GET", "/healthz").status == 200
        served.run(
            server.apply(served.parts.config.api.model_copy(update={"max_connections_per_address": 2}))
        )
        until(lambda: server.open_connections == 2)
        assert ended(connect(site))
        for connection in held:
            connection.close()


def test_one_host_has_no_more_connections_by_the_addresses_of_its_ipv6_network() -> None:
    door = Door(2)
    sources = ["2001:db8::1", "2001:db8::2", "2001:db8::ffff:1", "2001:db8:0:1::1", "192.0.2.1", "192.0.2.2"]
    assert [door.enter(address) for address in sources] == [True, True, False, True, True, True]
    door.leave("2001:db8::1")
    assert door.enter("2001:db8::3")
    assert not door.enter("2001:db8::1")
    assert door.open == 5


def test_an_undeclared_address_is_refused_before_it_is_heard(served: Served) -> None:
    def declared(network: str) -> Residency:
        return Residency(site="x", country="CZ", eea=False, destinations=(), clients=(ip_network(network),))

    with served.another(residency=declared("10.0.0.0/8")) as (site, _):
        assert ended(connect(site))
        assert site.call("GET", "/readyz", operator=True).status == 200
    with served.another(residency=declared("127.0.0.0/8")) as (site, _):
        assert site.call("GET", "/healthz").status == 200


def test_headers_have_the_keep_alive_time_to_arrive(served: Served) -> None:
    with served.another(keep_alive_seconds=0.3) as (site, _):
        for sent in (b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: "):
            with connect(site) as connection:
                connection.sendall(sent)
                assert ended(connection)
        with connect(site) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            assert ended(connection)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("localhost")
    chain, key = folder / "chain.pem", folder / "key.pem"
    for number, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(chain, append=number > 0)
    issued.private_key_pem.write_to_path(key)
    return chain, key


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_tls_is_1_3_and_nothing_older(
    served: Served, authority: trustme.CA, certificate: tuple[Path, Path]
) -> None:
    chain, key = certificate
    context = trusting(authority)
    with served.another(tls_certificate=chain, tls_key=key, tls=context) as (site, server):
        assert site.call("GET", "/healthz").status == 200
        assert site.call("GET", "/healthz", operator=True).status == 200
        old = trusting(authority)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError), old.wrap_socket(connect(site), server_hostname="localhost"):
            pass
        renewed = trustme.CA()
        issued = renewed.issue_cert("localhost")
        issued.private_key_and_cert_chain_pem.write_to_path(chain)
        issued.private_key_pem.write_to_path(key)
        named = {"tls_certificate": chain, "tls_key": key}
        served.run(server.apply(served.parts.config.api.model_copy(update=named)))
        with trusting(renewed).wrap_socket(connect(site), server_hostname="localhost") as renewed_connection:
            assert renewed_connection.version() == "TLSv1.3"


def test_a_certificate_that_cannot_be_used(served: Served, tmp_path: Path) -> None:
    chain = tmp_path / "chain.pem"
    chain.write_text("no certificate")
    with pytest.raises(ConfigInvalid, match=r"api\.tls_certificate"):  # noqa: SIM117
        with served.another(tls_certificate=chain, tls_key=chain):
            pass


def test_an_address_that_is_taken_is_named(served: Served) -> None:
    taken = f"127.0.0.1:{served.site.port}"
    with pytest.raises(ApplianceError, match=taken):  # noqa: SIM117
        with served.another(listen=("127.0.0.1:0", taken)):
            pass


def test_the_operator_socket_is_for_owner_and_group_and_goes_with_the_server(served: Served) -> None:
    with served.another() as (site, _):
        assert stat.S_IMODE(site.socket.stat().st_mode) == 0o660
        assert site.operate("GET", "/appliance/v1/status").status == 200
    assert not site.socket.exists()


def test_a_socket_left_behind_is_replaced(served: Served) -> None:
    left = served.parts.config.state / f"operator{served._count + 1}.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(left))
    with served.another() as (site, _):
        assert site.socket == left
        assert site.operate("GET", "/healthz").status == 200


_ASK = """
use IO::Socket::UNIX;
my $socket = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die $!;
print $socket "GET $ARGV[1] HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n";
print scalar <$socket>;
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize(("member", "status"), [(False, "403 Forbidden"), (True, "200 OK")])
def test_operators_are_told_from_other_users_by_the_kernel(served: Served, member: bool, status: str) -> None:
    group = grp.getgrall()[-1]
    identity: dict[str, Any] = {
        "user": 65534,
        "group": 65534,
        "extra_groups": [group.gr_gid] if member else [],
    }
    with served.another(group=group.gr_name) as (site, _):
        assert site.socket.stat().st_gid == group.gr_gid
        modes = {
            path: path.stat().st_mode for path in [site.socket, *site.socket.parents] if "pytest" in str(path)
        }

        def said(path: str) -> str:
            # Perl is on every Debian, and the interpreter of the tests may lie where nobody else can read it.
            command = ["perl", "-e", _ASK, str(site.socket), path]
            answer = subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=30, **identity
            )
            return str(answer.stdout).strip()

        try:
            for path in modes:
                path.chmod(0o777)
            assert said("/appliance/v1/status") == said("/appliance/v1/customers") == f"HTTP/1.1 {status}"
            assert said("/healthz") == "HTTP/1.1 200 OK"
        finally:
            for path, mode in modes.items():
                path.chmod(stat.S_IMODE(mode))


def test_readiness_is_its_own_word(served: Served) -> None:
    site = served.site
    try:
        for state, status in (("starting", 503), ("degraded", 200), ("failed", 503), ("draining", 503)):
            served.readiness = Readiness(state)  # type: ignore[arg-type]
            for operator in (False, True):
                answer = site.call("GET", "/readyz", operator=operator)
                assert (answer.status, answer.document) == (status, {"state": state})
                assert site.call("GET", "/healthz", operator=operator).status == 200
            assert site.call("GET", "/account/v2/user").status == 401, "a lame duck serves"
    finally:
        served.readiness = Readiness("ready")


def insertion(tenant: Tenant, name: str) -> bytes:
    encoded = base64.b64encode(images.encoded(Image.new("RGB", (64, 64), "red"), "PNG")).decode()
    body = json.dumps({"records": [{"_id": name, "_base64": encoded}]}).encode()
    headers = {"Host": "x", **tenant.headers(content_length=str(len(body)))}
    lines = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
    return f"POST /similarity/photos/v2/insert HTTP/1.1\r\n{lines}\r\n".encode() + body


def is_stored(site: Site, tenant: Tenant, name: str) -> bool:
    body = json.dumps({"records": [{"_id": name}]}).encode()
    return site.call("POST", "/similarity/photos/v2/get", body, tenant.headers()).status == 200


def test_draining_ends_what_has_begun(served: Served, tenant: Tenant) -> None:
    name = str(uuid.uuid4())
    whole = insertion(tenant, name)
    with served.another() as (site, server):
        begun, idle = connect(site), connect(site)
        begun.sendall(whole[:-10])
        until(lambda: server.open_connections == 2)
        served._loop.call_soon_threadsafe(server.stop_accepting)
        until(lambda: not server.listeners()["api"])
        with pytest.raises(ConnectionRefusedError):
            connect(site)
        begun.sendall(whole[-10:])
        said = begun.recv(65536)
        assert said.startswith(b"HTTP/1.1 200")
        assert b"Connection: close" in said
        assert ended(begun)
    assert ended(idle)
    assert is_stored(served.site, tenant, name)


def test_a_caller_that_hangs_up_does_not_tear_an_insert(served: Served, tenant: Tenant) -> None:
    names = [str(uuid.uuid4()) for _ in range(5)]
    for name in names:
        with connect(served.site) as connection:
            connection.sendall(insertion(tenant, name))
    until(lambda: all(is_stored(served.site, tenant, name) for name in names))


def test_a_caller_that_hangs_up_in_its_body_leaves_nothing(
    served: Served, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    name = str(uuid.uuid4())
    with caplog.at_level(logging.INFO):
        with connect(served.site) as connection:
            connection.sendall(insertion(tenant, name)[:-10])
        until(
            lambda: any(
                record.getMessage().endswith("insert") or " 499 " in record.getMessage()
                for record in caplog.records
            )
        )
    assert not is_stored(served.site, tenant, name)
    until(lambda: served.server.held_bytes == 0)


def test_the_access_line_says_who_what_and_how_long_and_nothing_they_sent(
    served: Served, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    path = f"/appliance/v1/collections/{tenant.collection}?customer={tenant.id}&secret=hunter2"
    headers = tenant.headers(user_agent="Ximilar Client/Python: xapp_", content_type="secret/type")
    with caplog.at_level(logging.INFO, logger="appliance.access"):
        answer = served.site.call("GET", path, headers=headers)
        until(lambda: bool(caplog.records))
    (record,) = [record for record in caplog.records if record.name == "appliance.access"]
    request, customer, method, route, status, milliseconds = record.getMessage().split(" ")
    assert request == answer.headers["x-request-id"]
    assert customer == tenant.id
    assert (method, route, status) == ("GET", "/appliance/v1/collections/{id}", "200")
    assert float(milliseconds) > 0


def test_metrics_name_routes_and_stages_and_nobody(served: Served, tenant: Tenant) -> None:
    served.site.call("GET", "/account/v2/user", headers=tenant.headers())
    served.site.call("PROPFIND", "/who/knows")
    answer = served.site.call("GET", "/metrics", operator=True)
    assert answer.headers["content-type"].startswith("text/plain; version=")
    text = answer.body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    labels = [sample.labels for sample in families["appliance_api_requests"].samples]
    assert {"route": "/account/v2/user", "method": "GET", "status": "200"} in labels
    assert {"route": "unmatched", "method": "OTHER", "status": "404"} in labels
    stages = {sample.labels["stage"] for sample in families["appliance_api_stage_seconds"].samples}
    assert {"body", "total"} <= stages <= {"body", "fetch", "decode", "infer", "search", "total"}
    assert tenant.id not in text
    assert served.site.call("GET", "/metrics").status == 404


def test_metrics_tell_how_many_are_connected_and_what_their_bodies_take(
    served: Served, tenant: Tenant
) -> None:
    started = insertion(tenant, str(uuid.uuid4()))[:-10]
    with served.another() as (site, server):
        with connect(site) as sending, connect(site):
            sending.sendall(started)
            body = len(started.partition(b"\r\n\r\n")[2])
            until(lambda: server.open_connections == 2 and server.held_bytes == body)
            assert told(site, "appliance_api_connections_open") == 2
            assert told(site, "appliance_api_bodies_held_bytes") == body
        until(lambda: told(site, "appliance_api_connections_open") == 0)
        until(lambda: told(site, "appliance_api_bodies_held_bytes") == 0)


def test_a_fault_is_a_500_without_details_and_a_traceback_without_data(
    served: Served, tenant: Tenant, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise KeyError("what the caller sent")

    monkeypatch.setattr(served.parts.customers, "get", fail)
    with caplog.at_level(logging.ERROR):
        answer = served.site.call("GET", "/account/v2/user", headers=tenant.headers())
    assert answer.status == answer.code == 500
    assert "KeyError" not in answer.body.decode()
    (record,) = caplog.records
    assert "KeyError" in record.getMessage()
    assert "in fail" in record.getMessage()
    assert answer.headers["x-request-id"] in record.getMessage()
    assert "what the caller sent" not in caplog.text.replace('raise KeyError("what the caller sent")', "")
