"""Tokens that are not valid, many of them: whoever sends them waits, and nobody else beside him."""

import socket
from dataclasses import dataclass

import pytest

from appliance.api.guessing import Guessing
from appliance.errors import Overloaded
from tests.serving import Served, Site, Tenant

WRONG = "xapp_" + "0" * 59


@dataclass
class Seconds:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def refused(guessing: Guessing, address: str) -> int | None:
    """The seconds that a guess from there is told to wait, None where it is answered as the first ones."""
    try:
        guessing.refused(address)
    except Overloaded as error:
        return error.retry_after
    return None


def test_a_source_that_guesses_waits_and_others_do_not() -> None:
    clock = Seconds()
    guessing = Guessing(3, clock)
    assert [refused(guessing, "192.0.2.1") for _ in range(5)] == [None, None, None, 20, 20]
    assert refused(guessing, "192.0.2.2") is None
    clock.now = 19
    assert refused(guessing, "192.0.2.1") == 1
    clock.now = 20  # what was refused with 429 did not count
    assert [refused(guessing, "192.0.2.1") for _ in range(2)] == [None, 20]


def test_one_host_does_not_get_by_with_the_addresses_of_its_ipv6_network() -> None:
    guessing = Guessing(2, Seconds())
    sources = ["2001:db8::1", "2001:db8::2", "2001:db8::ffff:1", "2001:db8:0:1::1"]
    assert [refused(guessing, source) for source in sources] == [None, None, 30, None]


def test_not_all_of_many_sources_are_remembered() -> None:
    guessing = Guessing(2, Seconds())
    for number in range(11_000):
        refused(guessing, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(guessing._refused) == 10_000


def ask(site: Site, token: str, path: str = "/account/v2/user") -> tuple[int, dict[str, str]]:
    answer = site.call("GET", path, headers={"authorization": f"Token {token}"})
    return answer.status, dict(answer.headers)


def test_guesses_are_answered_429_and_lose_their_connection_while_genuine_tokens_pass(
    served: Served, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    with served.another(failed_tokens_per_minute=2) as (site, _):
        assert [ask(site, WRONG)[0] for _ in range(2)] == [401, 401]
        for path in ("/account/v2/user", "/appliance/v1/tokens"):
            status, headers = ask(site, WRONG, path)
            assert status == 429
            assert 1 <= int(headers["retry-after"]) <= 30
            assert headers["connection"] == "close"
        assert ask(site, tenant.token)[0] == 200
        assert site.call("GET", "/account/v2/user").status == 401, "who sends no token guesses none"
        assert site.call("GET", "/healthz").status == 200
        with socket.create_connection((site.host, site.port), timeout=20) as connection:
            asked = f"GET /account/v2/user HTTP/1.1\r\nHost: x\r\nAuthorization: Token {WRONG}\r\n\r\n"
            connection.sendall(asked.encode() * 3)
            said = b"".join(iter(lambda: connection.recv(65536), b""))
            assert said.count(b"HTTP/1.1 429") == 1
    assert sum("answered 429" in record.getMessage() for record in caplog.records) == 1
    assert WRONG not in caplog.text


def test_the_local_socket_counts_nothing(served: Served) -> None:
    with served.another(failed_tokens_per_minute=1) as (site, _):
        signed = {"authorization": f"Token {WRONG}"}
        for _ in range(3):
            assert site.operate("GET", "/appliance/v1/tokens", headers=signed).status == 401
