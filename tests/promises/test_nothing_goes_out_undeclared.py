"""The promise "everything stays in the EU", at the gate: no form of an address gets past what is declared."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Iterator, Sequence
from ipaddress import ip_network
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from appliance.errors import InvalidInput
from appliance.metrics import Registry
from appliance.outbound import Outbound, admits
from appliance.outbound.urls import parsed, redirected
from appliance.residency import Destination, Residency
from tests.resolving import resolved
from tests.ssrf import forms

PORT = 8081  # nobody listens: a connection would be seen where it is made
HOST = "photos.example"


class Connections:
    """Every address that this process tries to connect to, whichever library does it."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.watching = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.watching and event == "socket.connect":
            self.seen.append(arguments[1])


_CONNECTIONS = Connections()


@pytest.fixture
def connections() -> Iterator[list[Any]]:
    _CONNECTIONS.seen.clear()
    _CONNECTIONS.watching = True
    yield _CONNECTIONS.seen
    _CONNECTIONS.watching = False


def destination(*cidrs: str, host: str = HOST) -> Destination:
    return Destination.model_validate(
        {
            "name": "shop",
            "host": host,
            "local": True,
            "cidrs": cidrs,
            "port": PORT,
            "country": "CZ",
            "purpose": "photos",
            "uses": ["images", "webhooks", "feeds"],
            "tls": False,
        }
    )


def answering(*addresses: str) -> type[AbstractResolver]:
    """A name server in the hands of an attacker: every name has these addresses."""

    class Resolver(AbstractResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
        ) -> list[ResolveResult]:
            return resolved(host, port, addresses)

        async def close(self) -> None:
            pass

    return Resolver


async def attempt(url: str, declared: Sequence[Destination], *answers: str) -> None:
    residency = Residency("Prague", "CZ", eea=False, destinations=tuple(declared), clients=())
    async with Outbound(residency, Registry(), resolver=answering(*answers)) as way:
        with pytest.raises(InvalidInput):
            async with way.image(url):
                pass
        with pytest.raises(InvalidInput):
            async with way.feed(url, {}, 1 << 20):
                pass
        with contextlib.suppress(InvalidInput):
            assert await way.post(url, b"{}", {}) is None


@pytest.mark.parametrize("url", forms(HOST, PORT))
async def test_no_form_of_an_address_gets_a_socket(connections: list[Any], url: str) -> None:
    await attempt(url, [destination("192.0.2.0/24")], "127.0.0.1", "10.0.0.1", "169.254.169.254")
    assert connections == []


# What a name may resolve to while everything is declared: none of these is an ordinary machine.
MEANT = [
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "169.254.169.254", "169.254.170.2", "169.254.1.1"),
    *("100.100.100.200", "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.0.8"),
    *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1"),
    *("2002:7f00:1::", "2001:0:7f00:1::", "fe80::1", "fec0::1", "ff02::1", "fd00:ec2::254"),
]


@pytest.mark.parametrize("address", MEANT)
async def test_a_wide_network_declares_no_special_address(connections: list[Any], address: str) -> None:
    everything = {"cidrs": (ip_network("0.0.0.0/0"), ip_network("::/0"))}  # more than a file may say
    wide = destination("192.0.2.0/24").model_copy(update=everything)
    await attempt(f"http://{HOST}:{PORT}/", [wide], address)
    literal = destination("192.0.2.0/24", host=address).model_copy(update=everything)
    shown = f"[{address}]" if ":" in address else address
    await attempt(f"http://{shown}:{PORT}/", [literal], address)
    assert connections == []


async def test_a_name_that_is_rebound_between_two_fetches_gets_one_of_them(connections: list[Any]) -> None:
    mine = destination("127.0.0.0/30", "192.0.2.1/32")
    residency = Residency("Prague", "CZ", eea=False, destinations=(mine,), clients=())
    answers = iter(["127.0.0.1", "127.0.0.9"])

    class Rebinding(answering()):  # type: ignore[misc] # a class made at run time
        async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
            found: list[ResolveResult] = await answering(next(answers))().resolve(host, port, family)
            return found

    async with Outbound(residency, Registry(), resolver=Rebinding) as way:
        for _ in range(2):
            with pytest.raises(InvalidInput):
                async with way.image(f"http://{HOST}:{PORT}/"):
                    pass
    assert connections == [("127.0.0.1", PORT)]


@pytest.mark.parametrize(
    ("cidr", "address", "expected"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("127.0.0.1/32", "127.0.0.1", True),
        ("127.0.0.0/8", "127.0.0.1", True),
        ("100.64.0.0/10", "100.64.0.1", True),
        ("100.64.0.0/10", "100.100.100.200", False),
        ("fd00::/16", "fd00:ec2::254", False),
        ("169.254.0.0/16", "169.254.1.1", True),
        ("169.254.0.0/16", "169.254.169.254", False),
        ("169.254.169.254/32", "169.254.169.254", True),
        ("10.0.0.0/8", "::ffff:10.0.0.1", False),
        ("64:ff9b::/96", "64:ff9b::a00:1", True),
        ("2001:db8::/32", "2001:db8::1", True),
        ("2001:db8::/32", "2001:db9::1", False),
        ("fe80::/10", "fe80::1%eth0", True),
        ("10.0.0.0/8", "photos.example", False),
        ("10.0.0.0/8", "", False),
    ],
)
def test_what_a_network_admits(cidr: str, address: str, expected: bool) -> None:
    declared = destination("192.0.2.0/24").model_copy(
        update={"cidrs": (ip_network(cidr),)}
    )  # as if it could be
    assert admits(declared, address) is expected


async def test_single_addresses_are_reached_without_asking_a_name_server(connections: list[Any]) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    mine = destination("127.0.0.1/32").model_copy(update={"port": port})
    residency = Residency("Prague", "CZ", eea=False, destinations=(mine,), clients=())

    async def handler(_: web.BaseRequest) -> web.Response:
        return web.Response(body=b"x", content_type="image/png")

    server = await asyncio.get_running_loop().create_server(web.Server(handler), "127.0.0.1", port)
    async with (
        server,
        Outbound(residency, Registry(), resolver=answering("10.9.9.9")) as way,
        way.image(f"http://{HOST}:{port}/") as image,
    ):
        assert image == b"x"
    assert connections == [("127.0.0.1", port)]


_PIECES = st.one_of(
    st.sampled_from(["http://", "https://", "xn--", "xn--a", "a.b", "::1", "%-", ".."]),
    st.sampled_from("[]@:%/?#1-|{t\u3002\u200d\u2460\ufb00\U0001f600"),
)


_BASE = URL(f"http://{HOST}:{PORT}/")


@given(st.lists(_PIECES, max_size=8).map("".join))
@example("//[h]@")
@example("http://[t:%-]")
@example("\udcff")
def test_whatever_a_host_redirects_to_it_is_understood_or_refused(location: str) -> None:
    try:
        address = redirected(_BASE, location)
    except InvalidInput:
        return
    assert address.host


@given(st.lists(_PIECES, max_size=8).map(lambda pieces: "http://" + "".join(pieces)))
@example("http://xn--a/")
@example("http://[h]@")
@example("http://[t:%-]")
def test_whatever_the_address_looks_like_it_is_understood_or_refused(url: str) -> None:
    try:
        address = parsed(url)
    except InvalidInput:
        return
    assert address.host
    assert address.raw_host
    assert str(address)
