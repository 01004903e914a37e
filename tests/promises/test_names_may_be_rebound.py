"""A name server in the hands of an attacker: what a declared name means is looked at for every connection."""

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from ipaddress import ip_network
from typing import Any, ClassVar

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from appliance.api.routing import Route
from appliance.errors import InvalidInput
from appliance.residency import Destination, Residency
from tests.hosts import Host
from tests.linking import TAKING, Linking
from tests.resolving import resolved
from tests.serving import Served
from tests.waiting import eventually

DECLARED = "127.0.0.0/30"
NEAR = "127.0.0.9"  # of the same machine, listening on the same port, and not declared
ELSEWHERE = [
    *(NEAR, "::1", f"::ffff:{NEAR}", "0.0.0.0", "::", "64:ff9b::7f00:9", "2002:7f00:9::"),
    *("169.254.169.254", "fd00:ec2::254", "10.0.0.1", "100.64.0.1"),
]


class Rebinding(AbstractResolver):
    """Every name has the addresses that are set at the moment."""

    addresses: ClassVar[list[str]] = ["127.0.0.1"]

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return resolved(host, port, self.addresses)

    async def close(self) -> None:
        """Nothing is held."""


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as host:
        host.parting = True  # so that every fetch connects anew
        yield host


@pytest.fixture(scope="module")
def canaries(host: Host) -> Iterator[list[socket.socket]]:
    """They listen where the host does, on other addresses."""
    with ExitStack() as stack:
        v4 = stack.enter_context(socket.create_server((NEAR, host.port)))
        v6 = stack.enter_context(socket.create_server(("::1", host.port), family=socket.AF_INET6))
        yield [v4, v6]


@pytest.fixture(scope="module")
def linking(tmp_path_factory: pytest.TempPathFactory, host: Host) -> Iterator[Linking]:
    folder = tmp_path_factory.mktemp("rebound")
    declared = Destination.model_validate(host.declaration | {"cidrs": [DECLARED]})
    residency = Residency("Prague", "CZ", False, (declared,), (ip_network("127.0.0.0/8"),))
    with Served(folder, residency, Rebinding) as served:
        webhooks = served.parts.webhooks
        served.run(webhooks.__aenter__())
        yield Linking(served, folder / "bundles")
        served.run(webhooks.__aexit__())


@pytest.fixture(autouse=True)
def bound() -> Iterator[None]:
    yield
    Rebinding.addresses = ["127.0.0.1"]


def has_refused(linking: Linking, more_than: int) -> bool:
    return int(traffic(linking).refused) > more_than


def traffic(linking: Linking) -> Any:
    return linking.served.parts.outbound.traffic()[0]


@pytest.mark.parametrize("route", TAKING, ids=lambda route: str(route.path))
def test_images_come_from_declared_addresses_alone(
    linking: Linking, host: Host, canaries: list[socket.socket], route: Route
) -> None:
    link = f"{host.address}/red"
    before = traffic(linking)
    linking.images(route, [link])
    good = traffic(linking)
    assert good.received_bytes > before.received_bytes
    assert good.refused == before.refused
    for address in ELSEWHERE:
        Rebinding.addresses = [address]
        for answer in linking.images(route, [link]):
            assert answer.status < 500, answer.body
    after = traffic(linking)
    assert (after.received_bytes, after.allowed) == (good.received_bytes, good.allowed)
    assert after.refused >= good.refused + len(ELSEWHERE)
    assert select.select(canaries, [], [], 0)[0] == []


def test_of_several_addresses_the_declared_one_alone_is_asked(
    linking: Linking, host: Host, canaries: list[socket.socket]
) -> None:
    before = traffic(linking)
    Rebinding.addresses = [NEAR, "::1", "127.0.0.1"]
    linking.images(TAKING[0], [f"{host.address}/red"])
    after = traffic(linking)
    assert after.received_bytes > before.received_bytes
    assert after.allowed == before.allowed + 1
    assert select.select(canaries, [], [], 0)[0] == []


def test_a_webhook_whose_host_has_moved_is_not_called(
    linking: Linking, host: Host, canaries: list[socket.socket]
) -> None:
    """It was declared when the request came in."""
    for address in (NEAR, "::1"):
        Rebinding.addresses = [address]
        before = traffic(linking)
        (accepted,) = linking.webhooks([f"{host.address}/hook"])
        assert accepted.status == 201, accepted.body
        eventually(partial(has_refused, linking, before.refused), "the call is refused")
        assert traffic(linking).allowed == before.allowed
    assert host.told.empty()
    assert select.select(canaries, [], [], 0)[0] == []


def test_a_feed_whose_host_has_moved_is_not_read(
    linking: Linking, host: Host, canaries: list[socket.socket]
) -> None:
    async def fetch() -> None:
        async with linking.served.parts.outbound.feed(f"{host.address}/feed.xml", {}, 1 << 20):
            pass

    for address in ELSEWHERE:
        Rebinding.addresses = [address]
        with pytest.raises(InvalidInput):
            linking.served.run(fetch())
    assert select.select(canaries, [], [], 0)[0] == []
