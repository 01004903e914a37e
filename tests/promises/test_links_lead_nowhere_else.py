"""Whatever a customer writes as a link, in every field that takes one: nobody but declared hosts is asked."""

import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from html import escape
from typing import Self

import pytest

from appliance.accounts.audit import Event, entries
from appliance.accounts.egress import SECONDS, Egress
from appliance.api.asynchronous import PATH as REQUEST
from appliance.api.routing import Route
from appliance.errors import InvalidInput
from appliance.outbound import UNDECLARED
from tests.hosts import NAME, Host
from tests.linking import FEATURES, TAKING, WAYS, Linking, ways_out
from tests.serving import Served
from tests.ssrf import forms


class Canary:
    """Listens on this machine, on a port that nothing declares: who is led astray is heard."""

    def __init__(self) -> None:
        with ExitStack() as stack:
            v4 = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            self.port = int(v4.getsockname()[1])
            v6 = stack.enter_context(socket.create_server(("::1", self.port), family=socket.AF_INET6))
            self._listening = (v4, v6)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def heard(self) -> bool:
        """Whether somebody connected."""
        return bool(select.select(self._listening, [], [], 0)[0])


class Audited:
    """What the audit log has of connections, which follows the gate's counters by a clock of its own."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._seconds = 0.0
        self._egress = Egress(
            served.ledger, served.parts.outbound, lambda: served.clock, lambda: self._seconds
        )

    def refused(self, destination: str) -> int:
        """How many refused connections it tells of in all."""
        self._seconds += SECONDS
        self._served.run(self._egress.write())
        rows = self._served.run(
            self._served.ledger.read(lambda connection: entries(connection, limit=1_000_000))
        )
        refused = (row for row in rows if row.event == Event.OUTBOUND_REFUSE and row.subject == destination)
        return sum(int(str(row.details["connections"])) for row in refused)


@pytest.fixture(scope="module")
def canary() -> Iterator[Canary]:
    with Canary() as canary:
        yield canary


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as host:
        yield host


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, host: Host) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("links"), host.residency) as served:
        yield served


@pytest.fixture(scope="module")
def linking(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Linking:
    return Linking(served, tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def audited(served: Served) -> Audited:
    return Audited(served)


def allowed(served: Served) -> int:
    return sum(one.allowed for one in served.parts.outbound.traffic())


def refused(served: Served, destination: str) -> int:
    return {one.destination: one.refused for one in served.parts.outbound.traffic()}[destination]


def received(served: Served) -> int:
    return sum(one.received_bytes for one in served.parts.outbound.traffic())


def test_every_way_out_is_one_that_is_tried_here() -> None:
    assert ways_out() == set(WAYS)


@pytest.mark.parametrize("route", TAKING, ids=lambda route: str(route.path))
def test_every_route_that_takes_images_takes_them_from_a_declared_host(
    linking: Linking, host: Host, route: Route
) -> None:
    """Without this the refusals below could be others than the gate's."""
    before = received(linking.served)
    answers = linking.images(route, [f"{host.address}/red"])
    assert received(linking.served) > before, [answer.body[:300] for answer in answers]


@pytest.mark.parametrize("feature", FEATURES)
def test_every_form_is_refused_by_every_feature(
    linking: Linking, canary: Canary, audited: Audited, feature: str
) -> None:
    served, links = linking.served, forms(NAME, canary.port)
    connections, refusals, told = (
        allowed(served),
        refused(served, UNDECLARED),
        audited.refused(UNDECLARED),
    )
    answers = linking.features()[feature](links)
    assert [answer.body for answer in answers if answer.status >= 500] == []
    assert any(b"url" in answer.body or b"webhook" in answer.body for answer in answers)
    assert not canary.heard()
    assert allowed(served) == connections
    more = refused(served, UNDECLARED) - refusals
    assert more >= len(links) - 1  # an empty one may be taken for none
    assert audited.refused(UNDECLARED) == told + more


def test_items_of_a_feed_are_links_too(linking: Linking, host: Host, canary: Canary) -> None:
    links = [link for link in forms(NAME, canary.port) if link.isprintable() and link]
    items = "".join(
        f"<item><g:id>{number}</g:id><g:image_link>{escape(link)}</g:image_link></item>"
        for number, link in enumerate(links)
    )
    host.pictures["/feed.xml"] = f"<rss><channel>{items}</channel></rss>".encode()
    path = f"/appliance/v1/collections/{linking.tenant.collection}/source"
    assert linking.ask("PUT", path, {"url": f"{host.address}/feed.xml"}).status == 200
    assert linking.ask("POST", f"{path}/run", {}).status == 202
    deadline = time.monotonic() + 30
    while True:
        run = linking.ask("GET", f"{path}/runs", None).document["runs"][0]
        if run["state"] not in {"waiting", "running"}:
            break
        assert time.monotonic() < deadline, run
    assert (run["report"]["added"], run["report"]["failed"]) == (0, len(links))
    assert not canary.heard()


ONE_OF_EACH = list({route.handler: route for route in TAKING if route.path != REQUEST}.values())
"""The routes that share no handler."""


@pytest.mark.parametrize("route", ONE_OF_EACH, ids=lambda route: str(route.path))
def test_redirects_of_images_are_links_too(
    linking: Linking, host: Host, canary: Canary, audited: Audited, route: Route
) -> None:
    served, name = linking.served, str(host.declaration["name"])
    links = [link for link in forms(NAME, canary.port) if link.isprintable() and link.isascii()]
    host.redirects.update({f"/{number}": link for number, link in enumerate(links)})
    refusals, told = refused(served, name), audited.refused(name)
    asked = [f"{host.address}/{number}" for number in range(len(links))]
    for answer in linking.images(route, asked):
        assert answer.status < 500, answer.body
    assert not canary.heard()
    more = refused(served, name) - refusals
    assert more >= len(links) - 2  # two lead to where they are: round and round
    assert audited.refused(name) == told + more


def test_redirects_of_feeds_are_links_too(linking: Linking, host: Host, canary: Canary) -> None:
    """A webhook follows none."""
    served = linking.served
    links = [link for link in forms(NAME, canary.port) if link.isprintable() and link.isascii()]
    host.redirects.update({f"/{number}": link for number, link in enumerate(links)})

    async def fetch(url: str) -> None:
        async with served.parts.outbound.feed(url, {}, 1 << 20):
            pass

    for number in range(len(links)):
        with pytest.raises(InvalidInput):
            served.run(fetch(f"{host.address}/{number}"))
    assert not canary.heard()
