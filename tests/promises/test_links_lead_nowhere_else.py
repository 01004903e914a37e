"""Whatever a customer writes as a link, in every field that takes one: nobody but declared hosts is asked."""

import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from html import escape
from typing import Any, Self

import pytest

from appliance.accounts.agreements import Kind
from appliance.errors import InvalidInput
from appliance.outbound import UNDECLARED
from tests.hosts import NAME, Host
from tests.serving import ACTOR, Reply, Served, Tenant
from tests.ssrf import forms

AT_ONCE = 10  # records in one call


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
def tenant(served: Served) -> Tenant:
    """A customer whom nothing else would refuse."""
    tenant = served.tenant("attacker")
    served.run(served.parts.agreements.sign(ACTOR, tenant.id, Kind.TRAINING_DATA))
    return tenant


class Features:
    """Each puts links into a field of its own; True for each that was refused as bad input."""

    def __init__(self, served: Served, tenant: Tenant) -> None:
        self._served = served
        self._tenant = tenant

    def _ask(self, method: str, path: str, document: object) -> Reply:
        body = json.dumps(document).encode()
        return self._served.site.call(method, path, body, self._tenant.headers())

    def _records(self, path: str, links: list[str], **fields: object) -> Iterator[bool]:
        for start in range(0, len(links), AT_ONCE):
            some = links[start : start + AT_ONCE]
            records = [{"_id": f"{start + at}", "_url": link} for at, link in enumerate(some)]
            answer = self._ask("POST", path, {"records": records, **fields})
            assert answer.status < 500, answer.body
            if answer.status != 200:
                yield from (answer.status in {400, 411} for _ in some)
                continue
            answered: Any = answer.document.get("records") or answer.document["answer_records"]
            yield from (record["_status"]["code"] == 400 for record in answered)

    def _each(self, method: str, path: str, documents: list[dict[str, object]]) -> Iterator[bool]:
        for document in documents:
            answer = self._ask(method, path, document)
            assert answer.status < 500, answer.body
            yield answer.status == 400

    def classification(self, links: list[str]) -> Iterator[bool]:
        return self._records("/recognition/v2/classify", links, task_id=self._served.bundle.task)

    def tags(self, links: list[str]) -> Iterator[bool]:
        return self._records("/photo/tags/v2/tags", links)

    def colours(self, links: list[str]) -> Iterator[bool]:
        return self._records("/dom_colors/generic/v2/dominantcolor", links)

    def hashes(self, links: list[str]) -> Iterator[bool]:
        return self._records("/image_matching/v2/visual_hash", links)

    def insertion(self, links: list[str]) -> Iterator[bool]:
        return self._records("/similarity/photos/v2/insert", links)

    def query(self, links: list[str]) -> Iterator[bool]:
        documents: list[dict[str, object]] = [{"query_record": {"_url": link}} for link in links]
        return self._each("POST", "/similarity/photos/v2/visualKNN", documents)

    def training(self, links: list[str]) -> Iterator[bool]:
        documents: list[dict[str, object]] = [{"_url": link} for link in links]
        return self._each("POST", "/recognition/v2/training-image/", documents)

    def webhooks(self, links: list[str]) -> Iterator[bool]:
        asked = {"type": "custom-recognition", "task_id": self._served.bundle.task, "records": [{}]}
        documents: list[dict[str, object]] = [asked | {"webhook": {"endpoint": link}} for link in links]
        return self._each("POST", "/account/v2/request/", documents)

    def feeds(self, links: list[str]) -> Iterator[bool]:
        documents: list[dict[str, object]] = [{"url": link} for link in links]
        path = f"/appliance/v1/collections/{self._tenant.collection}/source"
        return self._each("PUT", path, documents)


FEATURES: list[Callable[[Features, list[str]], Iterator[bool]]] = [
    *(Features.classification, Features.tags, Features.colours, Features.hashes, Features.insertion),
    *(Features.query, Features.training, Features.webhooks, Features.feeds),
]


def allowed(served: Served) -> int:
    return sum(one.allowed for one in served.parts.outbound.traffic())


def refused(served: Served) -> int:
    return {one.destination: one.refused for one in served.parts.outbound.traffic()}[UNDECLARED]


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.__name__)
def test_every_form_is_refused_by_every_feature(
    served: Served,
    tenant: Tenant,
    canary: Canary,
    feature: Callable[[Features, list[str]], Iterator[bool]],
) -> None:
    links = forms(NAME, canary.port)
    connections, refusals = allowed(served), refused(served)
    outcomes = dict(zip(links, feature(Features(served, tenant), links), strict=True))
    assert [link for link, was_refused in outcomes.items() if not was_refused] == []
    assert not canary.heard()
    assert allowed(served) == connections
    assert refused(served) >= refusals + len(links) - 1  # an empty one may be taken for none


def test_items_of_a_feed_are_links_too(served: Served, tenant: Tenant, host: Host, canary: Canary) -> None:
    links = [link for link in forms(NAME, canary.port) if link.isprintable() and link]
    items = "".join(
        f"<item><g:id>{number}</g:id><g:image_link>{escape(link)}</g:image_link></item>"
        for number, link in enumerate(links)
    )
    host.pictures["/feed.xml"] = f"<rss><channel>{items}</channel></rss>".encode()
    path = f"/appliance/v1/collections/{tenant.collection}/source"
    document = json.dumps({"url": f"{host.address}/feed.xml"}).encode()
    assert served.site.call("PUT", path, document, tenant.headers()).status == 200
    assert served.site.call("POST", f"{path}/run", b"", tenant.headers()).status == 202
    deadline = time.monotonic() + 30
    while True:
        run = served.site.call("GET", f"{path}/runs", headers=tenant.headers()).document["runs"][0]
        if run["state"] not in {"waiting", "running"}:
            break
        assert time.monotonic() < deadline, run
    assert (run["report"]["added"], run["report"]["failed"]) == (0, len(links))
    assert not canary.heard()


def test_redirects_are_links_too(served: Served, tenant: Tenant, host: Host, canary: Canary) -> None:
    """Of images and of feeds; a webhook follows none."""
    links = [link for link in forms(NAME, canary.port) if link.isprintable() and link.isascii()]
    host.redirects.update({f"/{number}": link for number, link in enumerate(links)})
    features, asked = Features(served, tenant), [f"{host.address}/{number}" for number in range(len(links))]
    assert list(features.classification(asked)) == [True] * len(links)

    async def fetch(url: str) -> None:
        async with served.parts.outbound.feed(url, {}, 1 << 20):
            pass

    for url in asked:
        with pytest.raises(InvalidInput):
            served.run(fetch(url))
    assert not canary.heard()
