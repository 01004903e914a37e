"""The real server with all its real parts inside the test process, on a uvloop thread of its own.

The model is a small one made here: fast, and its classes and vectors can be foreseen from an image's colours.
"""

import asyncio
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import uvloop
from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver
from onnx import TensorProto, helper, numpy_helper

from appliance import vault
from appliance.accounts.agreements import Agreements
from appliance.accounts.audit import Actor, AuditLog, Entry, entries
from appliance.accounts.certificates import Certificates
from appliance.accounts.compliance import Compliance
from appliance.accounts.customers import CustomerId, Customers
from appliance.accounts.forward import ForwardTime
from appliance.accounts.grants import Grants
from appliance.accounts.quotas import Quotas, defaults
from appliance.accounts.rights import Scope
from appliance.accounts.rotations import Rotations
from appliance.accounts.tokens import Tokens
from appliance.accounts.transparency.tree import AuditTree
from appliance.api.parts import Parts
from appliance.api.server import Server
from appliance.asynchronous.requests import Requests
from appliance.asynchronous.webhooks import Webhooks
from appliance.backup.source import Backups
from appliance.config import Api, Config, Datasets, Lifecycle, Operator, Recognition, Section
from appliance.daemon.statement import residency_statement
from appliance.datasets.images import Clocks, open_images
from appliance.health import Readiness
from appliance.ledger import Ledger
from appliance.metrics import Registry
from appliance.outbound import Outbound
from appliance.privacy.erasure import Erasure
from appliance.privacy.portability import Portability
from appliance.privacy.records import Records
from appliance.recognition.bundles import Bundle, Bundles
from appliance.recognition.decoders import Decoders
from appliance.recognition.embedding import Embedding
from appliance.recognition.engine import Engine
from appliance.recognition.staging import from_folder, from_path
from appliance.residency import Residency
from appliance.search.collections import Collections
from appliance.search.replies import Replies
from appliance.search.sync.feeds import Feeds
from appliance.search.sync.synchronisation import Synchronisation
from appliance.volume import HeldFolder, Space
from tests import bundles

T = TypeVar("T")


def anybody(_: object) -> None:
    """Trusts every maker of bundles."""


ACTOR = Actor("system", "test")
NOW = 1_800_000_000.0
COLOURS = ("red", "green", "blue")
DIM = 48
SECONDS = 30.0  # an answer that takes longer is a hang
LOCAL: dict[str, Any] = {"listen": ("127.0.0.1:0",), "failed_tokens_per_minute": 1_000_000}
"""Of `[api]`: all clients of the tests have one address, and some send nothing but refused tokens."""


def colour_bundle(folder: Path) -> Path:
    """A backbone of 4 x 4 mean colours: `logits` for the strongest of COLOURS, `embedding` of 48 numbers."""
    averaging = np.zeros((DIM, 3), np.float32)
    for channel in range(3):
        averaging[channel * 16 : channel * 16 + 16, channel] = 1 / 400
    shape = numpy_helper.from_array(np.array([-1, DIM], np.int64), "shape")
    weights = numpy_helper.from_array(averaging, "weights")
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    nodes = [
        helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("AveragePool", ["levels"], ["cells"], kernel_shape=[56, 56], strides=[56, 56]),
        helper.make_node("Reshape", ["cells", "shape"], ["flat"]),
        helper.make_node("Add", ["flat", "one"], ["lit"]),  # black too has a direction
        helper.make_node("LpNormalization", ["lit"], ["embedding"], axis=1, p=2),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 224, 224, 3])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(COLOURS)]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", DIM]),
        ],
        [shape, weights, one],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    outputs: dict[str, tuple[int, ...]] = {"logits": (len(COLOURS),), "embedding": (DIM,)}
    routes = ("photo/tags/v2/tags",)
    return bundles.write(folder, model, name="colours", labels=COLOURS, outputs=outputs, routes=routes)


@dataclass(frozen=True)
class Reply:
    """One HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> int:
        """The wire code in the body."""
        return int(self.document["status"]["code"])


@dataclass(frozen=True)
class Site:
    """The addresses of one running server, and how to ask them."""

    host: str
    port: int
    operator_port: int
    socket: Path
    tls: ssl.SSLContext | None = None

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        operator: bool = False,
    ) -> Reply:
        """One request on a connection of its own; with `operator` to the operator's TCP listener."""
        connection: http.client.HTTPConnection
        port = self.operator_port if operator else self.port
        if self.tls is not None and not operator:
            connection = http.client.HTTPSConnection("localhost", port, timeout=SECONDS, context=self.tls)
        else:
            connection = http.client.HTTPConnection(self.host, port, timeout=SECONDS)
        return _ask(connection, method, path, body, headers)

    def operate(
        self,
        method: str,
        path: str,
        document: object = None,
        *,
        body: bytes | None = None,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request over the operator's Unix socket, with a JSON document or another body."""
        if document is not None:
            body = json.dumps(document).encode()
        typed = {} if body is None else {"content-type": content_type}
        return _ask(_UnixConnection(self.socket), method, path, body, typed | dict(headers or {}))

    def raw(self, sent: bytes) -> bytes:
        """What comes back for these bytes until the server closes the connection."""
        with socket.create_connection((self.host, self.port), timeout=SECONDS) as connection:
            connection.sendall(sent)
            return b"".join(iter(lambda: connection.recv(65536), b""))


def connect(site: Site) -> socket.socket:
    """A connection whose client has said nothing yet."""
    return socket.create_connection((site.host, site.port), timeout=20)


def ended(connection: socket.socket) -> bool:
    """Whether the server ends the connection without a word; closes our side."""
    with connection:
        try:
            return connection.recv(1) == b""
        except ConnectionResetError:
            return True


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("appliance", timeout=SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(SECONDS)
        self.sock.connect(str(self._path))


def _ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None,
    headers: Mapping[str, str] | None,
) -> Reply:
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


@dataclass(frozen=True)
class Tenant:
    """A customer with a collection and its first token, which has all scopes."""

    id: CustomerId
    token: str
    collection: str

    def headers(self, **changed: str) -> dict[str, str]:
        """For JSON on the tenant's collection; `changed` names others, underscores for hyphens."""
        usual = {
            "authorization": f"Token {self.token}",
            "collection-id": self.collection,
            "content-type": "application/json",
        }
        return usual | {name.replace("_", "-"): value for name, value in changed.items()}


class Served:
    """All parts and a server on them, as a context. `clock` may be moved by tests."""

    parts: Parts
    site: Site
    bundle: Bundle

    def __init__(
        self,
        folder: Path,
        residency: Residency | None = None,
        resolver: type[AbstractResolver] = ThreadedResolver,
    ) -> None:
        """`residency` is where feeds and links may lead, `resolver` asks for their names; clients come from
        anywhere.
        """
        self._folder = folder
        self._residency = residency
        self._resolver = resolver
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="served")
        self._stack = AsyncExitStack()
        self._count = 0
        self.clock = NOW
        self.readiness = Readiness("ready")

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self.run(self._open())
        except BaseException:
            self.__exit__()  # a thread that is left behind keeps the test process from ending
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T], seconds: float = 60) -> T:
        """Runs `work` on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    async def _close(self) -> None:
        await self._stack.aclose()
        # As at the end of asyncio.run: aiohttp may still wait for the rest of a refused upload.
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _open(self) -> None:
        enter = self._stack.enter_async_context
        registry = Registry()
        settings = self._config(Api(**LOCAL))
        ledger = await enter(Ledger(self._folder, registry))
        customers = await enter(Customers(ledger, lambda: self.clock))
        keyring = await vault.open_keyring(self._folder, ledger, bytearray(range(32)))
        keys = keyring.service
        tokens = await enter(Tokens(ledger, keys, customers, lambda: self.clock))
        quotas = await enter(Quotas(ledger, defaults(settings), lambda: self.clock))
        agreements = await enter(Agreements(ledger, keyring, customers, lambda: self.clock))
        forward = ForwardTime(0.0, lambda: self.clock, lambda: self.clock)
        graphs, snapshots = self._folder / "graphs", self._folder / "snapshots"
        self.volume = HeldFolder(self._folder)
        self._stack.callback(self.volume.close)
        space = Space(self.volume, fraction=0, least_bytes=1 << 20, ballast_bytes=1 << 20)
        collections = await enter(
            Collections(
                ledger,
                keyring,
                settings.search,
                lambda: self.clock,
                registry,
                graphs=graphs,
                snapshots=snapshots,
                space=space,
                quotas=quotas,
            )
        )
        installed = await enter(Bundles(ledger, self._folder / "bundles", lambda: self.clock, trust=anybody))
        decoders = await enter(Decoders(settings.recognition, registry))
        engine = await enter(Engine(settings.recognition, registry))
        self.bundle = await installed.install(ACTOR, from_folder(colour_bundle(self._folder / "built")))
        await engine.load(self.bundle)
        self.images = await enter(
            open_images(
                self._folder,
                settings.datasets,
                ledger,
                keyring,
                space=space,
                agreements=agreements,
                codec=decoders,
                encrypted=False,
                clocks=Clocks(lambda: self.clock, lambda: self.clock, forward.now),
                registry=registry,
                quotas=quotas,
            )
        )
        outbound = await enter(Outbound(self._residency, registry, resolver=self._resolver))
        requests = Requests(ledger, keyring, lambda: self.clock, settings.requests.keep_seconds)
        requests.go_by(self.images.upkeep.leaps)
        await enter(requests)
        self.ledger, self.keyring, self._keys = ledger, keyring, keys
        self.parts = Parts(
            config=settings,
            residency=None,
            space=space,
            customers=customers,
            tokens=tokens,
            quotas=quotas,
            agreements=agreements,
            grants=(grants := Grants(ledger, keyring, customers, forward.now, four_eyes=False)),
            audit=AuditLog(ledger),
            audit_tree=await enter(AuditTree(ledger, keys, self._folder)),
            certificates=(certificates := Certificates(ledger, keyring.service)),
            records=Records(
                ledger, keyring, settings, self._residency, self._status, registry, lambda: self.clock
            ),
            rotations=Rotations(ledger, keyring, customers, lambda: self.clock),
            collections=collections,
            replies=Replies(ledger, keyring, self.images.upkeep.leaps),
            bundles=installed,
            decoders=decoders,
            engine=engine,
            outbound=outbound,
            synchronisation=await enter(
                Synchronisation(
                    ledger,
                    keyring,
                    collections=collections,
                    customers=customers,
                    outbound=outbound,
                    embed=Embedding(installed, decoders, engine),
                    settings=settings.search,
                    clock=lambda: self.clock,
                    registry=registry,
                )
            ),
            images=self.images,
            requests=requests,
            webhooks=Webhooks(requests, outbound, keys, lambda: self.clock),
            status=self._status,
            residency_statement=self._residency_statement,
            readiness=lambda: self.readiness,
            registry=registry,
            clock=lambda: self.clock,
            backups=await enter(
                Backups(
                    ledger,
                    keyring,
                    self._folder,
                    lambda: nullcontext(self.images.files),
                    version="test",
                    reserve_bytes=0,
                    clock=lambda: self.clock,
                )
            ),
            erasure=await enter(
                Erasure(
                    ledger,
                    keyring,
                    customers=customers,
                    tokens=tokens,
                    agreements=agreements,
                    collections=collections,
                    datasets=self.images.datasets,
                    clock=lambda: self.clock,
                )
            ),
            portability=Portability(
                ledger,
                customers,
                tokens,
                quotas,
                agreements,
                grants,
                AuditLog(ledger),
                certificates,
                requests,
                collections,
                Feeds(ledger, keyring, lambda: self.clock),
                self.images,
                lambda: self.clock,
            ),
        )
        self.server = await enter(Server(self.parts))
        self.site = _site(self.server)

    def install(self, folder: Path, *, activate: bool = True) -> Bundle:
        """One more bundle, or what another tool has exported, as an operator installs it."""

        async def installed() -> Bundle:
            assert self.parts.engine is not None
            bundle = await self.parts.bundles.install(ACTOR, from_path(folder), activate=activate)
            await self.parts.engine.load(bundle)
            return bundle

        return self.run(installed())

    async def _status(self) -> dict[str, object]:
        return {"state": self.readiness.state}

    def _residency_statement(self) -> bytes:
        return residency_statement(
            self._keys,
            self.parts.config,
            self._residency,
            version="test",
            compliance=Compliance(lambda _: [], self.ledger, lambda: self.clock),
            outbound=self.parts.outbound,
            listeners=self.server.listeners(),
            began=NOW,
            now=self.clock,
        )

    def _config(self, api: Api, group: str = "nobody knows") -> Config:
        self._count += 1
        return Config(
            profile="demo",
            state=self._folder,
            api=api,
            operator=Operator(
                listen="127.0.0.1:0", socket=self._folder / f"operator{self._count}.sock", group=group
            ),
            recognition=Recognition(decoders=2),
            datasets=Datasets(reserve_bytes=1 << 20, reserve_fraction=0, ballast_bytes=1 << 20),
            lifecycle=Lifecycle(lame_duck_seconds=0, drain_seconds=10),
        )

    @contextmanager
    def another(
        self,
        *,
        residency: Residency | None = None,
        tls: ssl.SSLContext | None = None,
        group: str = "nobody knows",
        sections: Mapping[str, Section] | None = None,
        **api: Any,
    ) -> Iterator[tuple[Site, Server]]:
        """A second server on the same parts with other settings in `[api]` or sections, closed after it."""
        settings = self._config(Api(**(LOCAL | api)), group)
        settings = settings.model_copy(update=dict(sections or {}))
        registry = Registry()
        outbound = Outbound(residency, registry)
        webhooks = Webhooks(self.parts.requests, outbound, self._keys, lambda: self.clock)
        parts = replace(
            self.parts,
            config=settings,
            residency=residency,
            outbound=outbound,
            webhooks=webhooks,
            registry=registry,
        )
        server = Server(parts)
        stack = AsyncExitStack()
        self.run(stack.enter_async_context(outbound))
        self.run(stack.enter_async_context(webhooks))
        self.run(stack.enter_async_context(server))
        try:
            yield _site(server, tls), server
        finally:
            self.run(stack.aclose())

    def tenant(self, name: str) -> Tenant:
        """A new customer with a collection of its own, which issues its tokens itself."""
        return self.run(self._tenant(name))

    async def _tenant(self, name: str) -> Tenant:
        customer = await self.parts.customers.add(ACTOR, name)
        token = await self.parts.tokens.add(ACTOR, customer.id)
        await self.parts.customers.claim(ACTOR, customer.id)  # as one that has used it
        collection = await self.collection(customer.id, "photos")
        return Tenant(customer.id, token.token, collection)

    async def collection(self, customer: CustomerId, name: str, backbone: str | None = None) -> str:
        """A new collection, of the installed backbone or another one."""
        pin = backbone or f"{self.bundle.name}@{self.bundle.version}"
        return (await self.parts.collections.add(ACTOR, customer, name, pin, DIM)).id

    def token(self, tenant: Tenant, *scopes: Scope) -> str:
        """Another token of the tenant, with these scopes only."""
        return self.run(self.parts.tokens.add(ACTOR, tenant.id, scopes)).token

    def audited(self, tenant: Tenant) -> list[Entry]:
        """The tenant's rows of the audit log."""
        return self.run(self.ledger.read(lambda connection: entries(connection, tenant.id)))


def _site(server: Server, tls: ssl.SSLContext | None = None) -> Site:
    bound = server.listeners()
    host, port = bound["api"][0].rsplit(":", 1)
    return Site(host, int(port), int(bound["operator"][0].rsplit(":", 1)[1]), Path(bound["socket"][0]), tls)
