"""The listeners: public TCP, operator TCP, operator Unix socket; opened last, closed first."""

import asyncio
import contextlib
import grp
import logging
import os
import socket
import ssl
import stat
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

from aiohttp import http_parser
from prometheus_client import Gauge

from appliance.api.account import Account
from appliance.api.agreements import Agreements
from appliance.api.aliases import Aliases
from appliance.api.annotate import Annotate
from appliance.api.asynchronous import Asynchronous
from appliance.api.audit import Audit
from appliance.api.backups import Backups
from appliance.api.body import Bodies
from appliance.api.call import Measures
from appliance.api.collections import Collections
from appliance.api.colours import Colours
from appliance.api.connections import Door, HttpServer
from appliance.api.datasets import Datasets
from appliance.api.descriptors import Descriptors
from appliance.api.evidence import Evidence
from appliance.api.feeds import Feeds
from appliance.api.files import Files
from appliance.api.gate import Gate
from appliance.api.grants import Grants
from appliance.api.guessing import Guessing
from appliance.api.handshakes import Handshake
from appliance.api.image_matching import ImageMatching
from appliance.api.installed_tasks import InstalledTasks
from appliance.api.interchange import Interchange
from appliance.api.keys import KeyManagement
from appliance.api.labels import Labels
from appliance.api.limits import Limits
from appliance.api.management import Management
from appliance.api.objects import Objects
from appliance.api.open_inference import OpenInference
from appliance.api.parts import Parts
from appliance.api.privacy import Privacy
from appliance.api.probes import Probes
from appliance.api.recognition import Recognition
from appliance.api.routes import ROUTES
from appliance.api.routing import Surface
from appliance.api.showing import Showing
from appliance.api.similarity import Similarity
from appliance.api.similarity_changes import SimilarityChanges
from appliance.api.snapshots import Snapshots
from appliance.api.tasks import Tasks
from appliance.api.throttle import Throttle
from appliance.api.tls import server_context
from appliance.api.training_images import TrainingImages
from appliance.api.transfers import Transfers
from appliance.api.vision import Vision
from appliance.config import Api, listen_address
from appliance.datasets.images import Images
from appliance.errors import ApplianceError, ConfigInvalid, SelfTestFailed
from appliance.recognition.engine import Priority
from appliance.recognition.turns import Shares

__all__ = ["Parts", "Server", "check_parser"]

_BACKLOG = 1024
_UNSENT_BYTES = 128 << 10  # what the kernel takes of an answer ahead: for a slow reader it is megabytes else
_SOCKET_MODE = 0o660
_SOCKET_PATH_BYTES = 107  # sun_path of unix(7), with its closing zero

log = logging.getLogger("appliance.api")


def check_parser() -> None:
    """Raises SelfTestFailed unless aiohttp parses HTTP in C.

    Nearly all of its request smuggling faults were in the Python parser, which it falls back to in silence.
    """
    if os.environ.get("AIOHTTP_NO_EXTENSIONS"):
        raise SelfTestFailed("AIOHTTP_NO_EXTENSIONS is set: unset it, HTTP is parsed in C only")
    if http_parser.HttpRequestParser is not getattr(http_parser, "HttpRequestParserC", None):
        raise SelfTestFailed("aiohttp's C parser is not loaded: install aiohttp from its binary wheel")


class _Site(NamedTuple):
    """Where connections are accepted, and who speaks HTTP on them."""

    listening: asyncio.Server
    http: HttpServer


class Server:
    """Serves HTTP between `async with`. A process without an engine opens the operator socket only.

    Entering raises SelfTestFailed (see `check_parser`), ConfigInvalid for a certificate that cannot be used,
    and ApplianceError naming a listener that cannot be opened. Leaving closes the listeners, lets calls end
    for `lifecycle.drain_seconds`, then cuts them off.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._config = parts.config
        measures = Measures(parts.registry)
        vision = Vision(parts.bundles, parts.decoders, parts.engine, parts.outbound, measures)
        descriptors = Descriptors(parts.collections, vision)
        patient = vision.at(Priority.BULK)
        sink = None if parts.images is None else parts.images.sink
        self._asynchronous = Asynchronous(
            parts.requests,
            parts.webhooks,
            recognition=Recognition(patient, parts.bundles, parts.heads, sink),
            colours=Colours(patient),
            bundles=parts.bundles,
            limits=parts.config.requests,
            quotas=parts.quotas,
        )
        self._throttle = Throttle(parts.config.api)
        datasets = None if parts.images is None else parts.images.datasets
        families: list[object] = [
            Account(parts.customers, parts.bundles, datasets),
            Recognition(vision, parts.bundles, parts.heads, sink),
            Colours(vision),
            self._asynchronous,
            Similarity(descriptors, parts.config.search),
            ImageMatching(descriptors),
            SimilarityChanges(descriptors, parts.replies, parts.config.search, parts.collections),
            OpenInference(vision, parts.bundles, parts.readiness),
            Management(
                customers=parts.customers,
                tokens=parts.tokens,
                collections=parts.collections,
                bundles=parts.bundles,
                decoders=parts.decoders,
                engine=parts.engine,
                heads=parts.heads,
                webhooks=parts.webhooks,
                status=parts.status,
            ),
            Limits(
                parts.customers,
                parts.tokens,
                parts.quotas,
                self._throttle,
                parts.collections,
                datasets,
                self._asynchronous,
            ),
            Collections(parts.customers, parts.collections, parts.bundles),
            Aliases(parts.customers, parts.collections.aliases),
            Snapshots(parts.collections),
            Transfers(parts.collections, parts.config.search),
            Feeds(parts.synchronisation),
            Agreements(parts.customers, parts.agreements, parts.erasure),
            Grants(parts.grants, parts.customers, parts.images),
            Audit(parts.customers, parts.audit, parts.audit_tree, parts.grants),
            Privacy(parts.certificates, parts.records, parts.erasure, parts.portability),
            Evidence(parts.residency_statement),
            KeyManagement(parts.rotations, parts.config.vault.root_key),
            Probes(parts.readiness, parts.registry),
            Backups(parts.backups),
            Datasets(datasets, parts.customers),
            Interchange(parts.images, parts.grants, parts.tokens),
        ]
        if parts.images is not None:
            families += _of_images(parts, parts.images)
        self._bodies = bodies = Bodies(
            parts.config.api, Shares(parts.config.recognition.queue_bytes), measures.cpu("parse")
        )
        self._guessing = Guessing(parts.config.api.failed_tokens_per_minute)
        self._gates = {
            surface: Gate(
                ROUTES,
                surface,
                families=families,
                tokens=parts.tokens,
                guessing=self._guessing if surface is Surface.PUBLIC else None,
                throttle=self._throttle,
                bodies=bodies,
                measures=measures,
                seeing=Shares(parts.config.recognition.queue),
                admit=vision.check_room,
                space=parts.space,
            )
            for surface in (Surface if parts.engine is not None else [Surface.SOCKET])
        }
        allows = None if parts.residency is None else parts.residency.allows_client
        self._public_door = Door(parts.config.api.max_connections_per_address, allows)
        self._private_door = Door(None)
        Gauge(
            "appliance_api_connections_open", "Connections on the public listeners", registry=parts.registry
        ).set_function(lambda: self.open_connections)
        Gauge(
            "appliance_api_bodies_held_bytes",
            "What has arrived of bodies whose calls have not ended",
            registry=parts.registry,
        ).set_function(lambda: self.held_bytes)
        self._sites: dict[Surface, list[_Site]] = {surface: [] for surface in Surface}
        self._servers: list[HttpServer] = []
        self._socket: Path | None = None

    async def __aenter__(self) -> Self:
        check_parser()
        try:
            await self._asynchronous.__aenter__()
            await self._open_socket(self._config.operator_socket)
            if self._parts.engine is not None:
                tls = await asyncio.to_thread(server_context, self._config.api)
                if self._config.operator.listen is not None:
                    await self._open_tcp(
                        Surface.OPERATOR, "operator.listen", self._config.operator.listen, None
                    )
                for index, address in enumerate(self._config.api.listen):
                    await self._open_tcp(Surface.PUBLIC, f"api.listen.{index}", address, tls)
        except BaseException:
            self.stop_accepting()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop_accepting()
        await asyncio.sleep(0)  # what has been accepted this moment gets its handler
        seconds = self._config.lifecycle.drain_seconds
        await asyncio.gather(*(server.drain(seconds) for server in self._servers))
        await self._asynchronous.__aexit__()

    def listeners(self) -> dict[str, list[str]]:
        """The bound addresses: "api" and "operator" as HOST:PORT with the real port, "socket" as a path."""
        return {
            "api": self._addresses(Surface.PUBLIC),
            "operator": self._addresses(Surface.OPERATOR),
            "socket": [] if self._socket is None else [str(self._socket)],
        }

    @property
    def open_connections(self) -> int:
        """On the public listeners, now."""
        return self._public_door.open

    @property
    def held_bytes(self) -> int:
        """Of all bodies that have arrived, whole or in part, and whose calls have not ended."""
        return self._bodies.held

    async def apply(self, config: Api) -> None:
        """Takes what a reload may change: limits of addresses and rates, and the files of TLS read again.

        A new certificate and other authorities are for connections from now on; open ones go on as they are.
        Raises ConfigInvalid when a file cannot be used, ApplianceError when the addresses cannot be listened
        on anew; nothing is changed then.
        """
        if self._config.api.tls_certificate is not None:
            await self._listen_anew(await asyncio.to_thread(server_context, config))
        self._public_door.limit = config.max_connections_per_address
        self._guessing.per_minute = config.failed_tokens_per_minute
        self._throttle.config = config

    def stop_accepting(self) -> None:
        """Closes the listeners, removes the socket's file; open connections end with their next answer."""
        for gate in self._gates.values():
            gate.closing = True
        for sites in self._sites.values():
            while sites:
                sites.pop().listening.close()
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
            self._socket = None

    def _addresses(self, surface: Surface) -> list[str]:
        names = [bound.getsockname() for site in self._sites[surface] for bound in site.listening.sockets]
        return [f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}" for name in names]

    def _server(self, surface: Surface, door: Door, group: int | None = None) -> HttpServer:
        keep_alive = self._config.api.keep_alive_seconds
        server = HttpServer(
            self._gates[surface],
            door,
            keep_alive_seconds=keep_alive,
            clock=self._parts.clock,
            patience=self._bodies.patience,
            group=group,
        )
        self._servers.append(server)
        return server

    async def _open_tcp(self, surface: Surface, key: str, address: str, tls: ssl.SSLContext | None) -> None:
        host, port = listen_address(address)
        http = self._server(surface, self._public_door if surface is Surface.PUBLIC else self._private_door)
        try:
            site = await self._listen(http, tls, host=host, port=port)
        except OSError as error:
            raise ApplianceError(f"{key}: cannot listen on {address}: {error.strerror or error}") from None
        for bound in site.listening.sockets:
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        self._sites[surface].append(site)

    async def _listen(self, http: HttpServer, tls: ssl.SSLContext | None, **where: Any) -> _Site:
        seconds = self._config.api.keep_alive_seconds
        factory = http if tls is None else partial(Handshake, http, tls, seconds)
        listening = await asyncio.get_running_loop().create_server(factory, backlog=_BACKLOG, **where)
        return _Site(listening, http)

    async def _listen_anew(self, tls: ssl.SSLContext | None) -> None:
        """Goes on with another context on the same sockets of the kernel: nobody is refused meanwhile."""
        old, anew = self._sites[Surface.PUBLIC], list[_Site]()
        try:
            for site in old:
                for bound in site.listening.sockets:
                    anew.append(await self._listen(site.http, tls, sock=bound.dup()))
        except OSError as error:
            for site in anew:
                site.listening.close()
            raise ApplianceError(f"api.listen: cannot be opened anew: {error.strerror or error}") from None
        self._sites[Surface.PUBLIC] = anew
        for site in old:
            site.listening.close()

    async def _open_socket(self, path: Path) -> None:
        group = _group(self._config.operator.group)
        bound = _bind(path, group)
        http = self._server(Surface.SOCKET, self._private_door, group)
        loop = asyncio.get_running_loop()
        listening = await loop.create_unix_server(http, sock=bound, backlog=_BACKLOG)
        self._sites[Surface.SOCKET].append(_Site(listening, http))
        self._socket = path


def _of_images(parts: Parts, images: Images) -> list[object]:
    """The families of stored images."""
    datasets, annotations = images.datasets, images.annotations
    showing, installed = Showing(datasets, images.links, parts.config), InstalledTasks(parts.bundles)
    return [
        Files(images),
        Tasks(datasets, annotations, installed),
        Labels(datasets, annotations, installed),
        TrainingImages(images, showing, parts.outbound),
        Objects(images, showing),
        Annotate(datasets, annotations),
    ]


def _bind(path: Path, group: int | None) -> socket.socket:
    """A Unix socket at `path`, not listening yet: its mode is right before anybody can connect."""
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
        raise ConfigInvalid([f"operator.socket: {path}: longer than {_SOCKET_PATH_BYTES} bytes"])
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()  # of a daemon that was killed: the state's lock says that none runs
        bound.bind(str(path))
        path.chmod(_SOCKET_MODE)
    except OSError as error:
        bound.close()
        raise ApplianceError(f"operator.socket: cannot listen on {path}: {error.strerror}") from None
    if (
        group is not None and path.lstat().st_gid != group
    ):  # a folder with the setgid bit has given it already
        try:
            os.chown(path, -1, group)
        except PermissionError:
            log.warning("the operator socket is not given to its group: %s does not hand it on", path.parent)
    return bound


def _group(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
