"""What HTTP adds to a search: the real server in this process, the client in another one."""

import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from appliance.search.collections import OpenCollection
from appliance.search.records import CollectionId
from tests.bench import load, spent
from tests.bench.load import Client
from tests.bench.nearest.direct import TARGETS, Direct
from tests.bench.nearest.embeddings import Embeddings, K
from tests.bench.nearest.filled import FOLDER, insert
from tests.bench.report import Report
from tests.serving import ACTOR, Served, Tenant

PATH = "/similarity/photos/v2/visualKNN"
REQUESTS, TOGETHER, ROUNDS = 200, 10, 7


@dataclass(frozen=True)
class _Site:
    """The server with its collection, and who asks it."""

    served: Served
    tenant: Tenant
    opened: OpenCollection
    client: Client

    def cpu_seconds(self) -> float:
        """Of the server: this process, which waits meanwhile, and the graph process."""
        child = self.served.parts.collections.graph_process
        return time.process_time() + (spent.cpu_milliseconds([child]) / 1000 if child else 0)

    def cost(self, work: Callable[[], object]) -> float:
        before = self.cpu_seconds()
        work()
        return self.cpu_seconds() - before

    def request(self, document: object) -> bytes:
        headers = self.tenant.headers(collection_id=self.opened.collection.id)
        named = {name.title(): value for name, value in headers.items()}
        return load.request(PATH, json.dumps(document).encode(), named)

    def ask(self, request: bytes, count: int) -> None:
        outcome = self.client.closed(self.served.site.port, request, at_once=1, count=count)
        assert outcome.count(200) == count, {answer.status for answer in outcome.answers}


def measure(report: Report, data: Embeddings, direct: Direct) -> None:
    """Queries name stored records: an image would bring a decoder and a model into the figures."""
    folder = FOLDER / "served"
    folder.mkdir(parents=True)
    with Served(folder) as served, Client() as client:
        tenant = served.tenant("somebody")
        backbone = f"{served.bundle.name}@{served.bundle.version}"
        collections = served.parts.collections

        async def fill() -> OpenCollection:
            added = await collections.add(ACTOR, tenant.id, "bench", backbone, data.dim)
            opened = await collections.open(tenant.id, CollectionId(added.id))
            await insert(opened, data.vectors)
            await opened.seal()
            return opened

        site = _Site(served, tenant, served.run(fill(), seconds=600), client)
        _single(report, site, data)
        _ten_in_a_call(report, site, data, direct)


def _single(report: Report, site: _Site, data: Embeddings) -> None:
    """Each round about one record, which both ways ask for over and over."""
    costs, vectors = list[tuple[float, float]](), list[float]()
    for number in range(ROUNDS):
        request = site.request({"query_record": {"_id": f"r{number}"}, "k": K})

        async def bare(query: object = data.vectors[number]) -> None:
            for _ in range(REQUESTS):
                await site.opened.search(query, K, metadata=False)  # type: ignore[arg-type]

        async def stored(name: str = f"r{number}") -> None:
            for _ in range(REQUESTS):
                await site.opened.vectors([name])

        site.ask(request, 20)
        whole = site.cost(lambda request=request: site.ask(request, REQUESTS))  # type: ignore[misc]
        costs.append((whole / REQUESTS, site.cost(lambda bare=bare: site.served.run(bare())) / REQUESTS))  # type: ignore[misc]
        vectors.append(site.cost(lambda stored=stored: site.served.run(stored())) / REQUESTS)  # type: ignore[misc]
    whole, search = (statistics.median(column) for column in zip(*costs, strict=True))
    above = statistics.median(one - other for one, other in costs)
    report.figure(
        f"{data.name}: HTTP on top of a search, one query a call",
        1000 * above,
        "ms CPU",
        at_most=0.35,
        note=f"{1000 * whole:.3f} in all, search {1000 * search:.3f}; "
        f"reading the record's vector is {1000 * statistics.median(vectors):.3f} of it",
    )


def _ten_in_a_call(report: Report, site: _Site, data: Embeddings, direct: Direct) -> None:
    """With the configured ef of the server, against hnswlib at the ef for the higher recall."""
    few = itertools.cycle(range(0, REQUESTS, TOGETHER))
    target = max(TARGETS)
    costs = list[tuple[float, float]]()
    for _ in range(ROUNDS):
        first = next(few)
        records = [{"_id": f"r{number}"} for number in range(first, first + TOGETHER)]
        request, calls = site.request({"records": records, "k": K}), REQUESTS // TOGETHER
        site.ask(request, 5)
        own = site.cost(lambda request=request, calls=calls: site.ask(request, calls))  # type: ignore[misc]
        began = time.process_time()
        for _ in range(calls):
            direct.search(data.vectors[first : first + TOGETHER], target)
        costs.append((own / REQUESTS, (time.process_time() - began) / REQUESTS))
    report.figure(
        "... ten queries in one call: queries per CPU s / hnswlib's",
        statistics.median(other / own for own, other in costs),
        "x",
        at_least=0.75,
        note=f"{1000 * statistics.median(own for own, _ in costs):.3f} ms, hnswlib "
        f"{1000 * statistics.median(other for _, other in costs):.3f} ms at ef {direct.efs[target]}",
    )
