"""Who may connect, how often, and who they are: decided once, before the first byte of a request is read."""

import asyncio
import contextlib
import logging
import os
import re
import socket
import ssl
import struct
from asyncio import AbstractEventLoop, BaseTransport
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from aiohttp import web

from appliance.api.answers import INTERNAL, JSON, Refused, refusal
from appliance.api.payload import new_id
from appliance.api.sources import source

_SO_PEERGROUPS = 59  # <asm-generic/socket.h>; Python has no name for it
_PEERGROUPS_BYTES = 1024  # the largest buffer that Python's getsockopt takes: 256 groups
# RFC 4514, 3; all others keep the names that OpenSSL has for them.
_ATTRIBUTES = {
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "streetAddress": "street",
    "domainComponent": "DC",
    "userId": "UID",
}
_CUT_SECONDS = 1.0  # for handlers that are cancelled at the end of a drain
_LINGER_SECONDS = 5.0  # how long the rest of a refused upload is read and dropped, so that the answer is seen

log = logging.getLogger("appliance.api")

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Door:
    """Admits connections: at most `limit` at a time from one `source`, none from where nobody may."""

    def __init__(self, limit: int | None, allows: Callable[[str], bool] | None = None) -> None:
        self.limit = limit
        self._allows = allows
        self._open: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Whether a connection from `address` may stay; if so `leave` must follow."""
        if self._allows is not None and not self._allows(address):
            log.warning("connection refused: %s is not declared in the residency file", address)
            return False
        client = source(address)
        if self.limit is not None and self._open[client] >= self.limit:
            log.warning("connection refused: %s has %d open already", client, self.limit)
            return False
        self._open[client] += 1
        return True

    def leave(self, address: str) -> None:
        client = source(address)
        self._open[client] -= 1
        if not self._open[client]:
            del self._open[client]

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return self._open.total()


class Connection(web.RequestHandler):
    """aiohttp's connection behind a door; its own refusals are JSON and name nothing of what was sent."""

    __slots__ = (
        "_address",
        "_clock",
        "_door",
        "_ending",
        "_group",
        "_patience",
        "_proven",
        "_proven_until",
        "_stalled",
        "paced",
        "uid",
    )

    def __init__(
        self,
        server: "HttpServer",
        door: Door,
        group: int | None,
        patience: Callable[[int], float],
        *,
        clock: Callable[[], float],
        loop: AbstractEventLoop,
        **settings: object,
    ) -> None:
        super().__init__(server, loop=loop, **settings)  # type: ignore[arg-type]
        self._door = door
        self._group = group
        self._clock = clock
        self._patience = patience
        self._stalled: asyncio.TimerHandle | None = None
        self.paced = False  # what is being sent has a deadline of its own
        self._address: str | None = None
        self._ending: asyncio.Task[object] | None = None
        self.uid: int | None = None  # of an operator on the Unix socket, None for everybody else
        self._proven: str | None = None
        self._proven_until = 0.0

    def enter(self, transport: BaseTransport) -> bool:
        """Whether the door lets it in, which is asked once; if not, it is cut off without a word."""
        if self._address is None:
            peer = transport.get_extra_info("peername")
            address = _plain(str(peer[0])) if isinstance(peer, tuple) else ""
            if not self._door.enter(address):
                self.force_close()
                transport.abort()  # type: ignore[attr-defined]
                return False
            self._address = address
        return True

    def leave(self) -> None:
        """Tells the door that it has ended, once however often it is called."""
        if self._address is not None:
            self._door.leave(self._address)
            self._address = None

    def connection_made(self, transport: BaseTransport) -> None:
        if not self.enter(transport):
            return
        if not self._address:
            self.uid = operator_uid(transport.get_extra_info("socket"), self._group)
        elif certificate := transport.get_extra_info("peercert"):
            self._proven = subject_of(certificate["subject"])
            self._proven_until = ssl.cert_time_to_seconds(certificate["notAfter"])
        super().connection_made(transport)
        if self.transport is not None:  # whatever the system does not take counts as not taken
            self.transport.set_write_buffer_limits(high=1, low=0)

    def pause_writing(self) -> None:
        """The client does not take its answer as fast as it is given: it has as long as a body may take."""
        super().pause_writing()
        if self._address and not self.paced and self.transport is not None:
            seconds = self._patience(self.transport.get_write_buffer_size())
            self._stalled = self._loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._wait_no_more()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._wait_no_more()
        self.leave()
        super().connection_lost(exc)
        if self._ending is not None:
            self._ending.cancel()

    def _wait_no_more(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def data_received(self, data: bytes) -> None:
        """Parses what came. aiohttp keeps what breaks a body for the request after it; whoever reads it now
        would wait for the rest in vain."""
        super().data_received(data)
        reading = self._current_request
        if reading is not None and self._messages and not reading.content.is_eof():
            broken = getattr(self._messages[-1][0], "exc", None)
            if broken is not None:
                reading.content.set_exception(broken)

    @property
    def address(self) -> str:
        """Where the client connects from; empty for a Unix socket."""
        return self._address or ""

    @property
    def subject(self) -> str | None:
        """Of the certificate that the client has proven to have, for as long as it is valid.

        A handshake that resumes a session looks at no certificate, and a connection may outlast its own.
        """
        return self._proven if self._clock() < self._proven_until else None

    def end_with_client(self) -> None:
        """From now on the caller's task is cancelled when the client leaves: nobody else needs its answer."""
        self._ending = asyncio.current_task()
        if self.transport is None and self._ending is not None:  # it has left already
            self._ending.cancel()

    def outlast_client(self) -> None:
        """Undoes it."""
        self._ending = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it quotes the request, headers and all
    ) -> web.StreamResponse:
        """The answer to a request that could not be parsed, or that broke what should never break."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        request_id = new_id()
        log.info("request %s could not be read: %d %s", request_id, status, type(exc).__name__)
        reason = "the request is not valid HTTP" if status < 500 else INTERNAL
        document = refusal(Refused(status, reason), request_id, problem=False).document
        headers = {"Server": "appliance", "X-Request-Id": request_id, "Content-Type": JSON}
        response = web.Response(status=status, body=msgspec.json.encode(document), headers=headers)
        response.force_close()
        return response

    def log_exception(self, *args: object, **details: object) -> None:  # noqa: ARG002 - as above
        error = details.get("exc_info")
        log.error("a connection failed: %s", type(error).__name__)


class HttpServer(web.Server):
    """The connections of one listener."""

    def __init__(
        self,
        handler: Handler,
        door: Door,
        *,
        keep_alive_seconds: float,
        clock: Callable[[], float],
        patience: Callable[[int], float],
        group: int | None = None,
    ) -> None:
        """`patience` tells in how many seconds a client has to take so many bytes."""
        super().__init__(
            self._count,
            keepalive_timeout=keep_alive_seconds,  # counted from the connection on: it bounds the headers too
            access_log=None,
            auto_decompress=False,
            lingering_time=_LINGER_SECONDS,
        )
        self._handler = handler
        self._door = door
        self._clock = clock
        self._group = group
        self._patience = patience
        self._under_way = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    @property
    def loop(self) -> AbstractEventLoop:
        """Where its connections live."""
        return self._loop

    def __call__(self) -> Connection:
        return Connection(
            self,
            self._door,
            self._group,
            self._patience,
            clock=self._clock,
            loop=self._loop,
            **self._kwargs,
        )

    async def drain(self, seconds: float) -> None:
        """Lets the requests under way end, uploads included, then closes every connection.

        What lasts longer than `seconds` is cut off. aiohttp's own shutdown drops whatever arrives from its
        first moment on, so that an upload would never end: it comes second.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), seconds)
        self.pre_shutdown()
        await self.shutdown(max(deadline - loop.time(), _CUT_SECONDS))

    async def _count(self, request: web.BaseRequest) -> web.StreamResponse:
        self._under_way += 1
        self._quiet.clear()
        try:
            return await self._handler(request)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._quiet.set()


def operator_uid(peer: socket.socket, group: int | None) -> int | None:
    """The uid of a Unix peer that is an operator: root, the daemon's own user, or a member of `group`.

    None for everybody else. The kernel's credentials of the peer at connect(2), all its groups included.
    """
    _, uid, gid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid in {0, os.geteuid()}:
        return int(uid)
    if group is None:
        return None
    try:
        raw = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _PEERGROUPS_BYTES)
    except OSError:  # more groups than fit: only the first one counts
        raw = b""
    groups = {gid, *struct.unpack(f"{len(raw) // 4}I", raw)}
    return int(uid) if group in groups else None


def subject_of(names: Sequence[Sequence[tuple[str, str]]]) -> str:
    """A certificate's subject, as `ssl` tells it, in the form of RFC 4514: "CN=till 7,O=Acme".

    As `openssl x509 -noout -subject -nameopt RFC2253,-esc_msb` prints it.
    """
    return ",".join(
        "+".join(f"{_ATTRIBUTES.get(name, name)}={_escaped(value)}" for name, value in relative)
        for relative in reversed(names)
    )


def _escaped(value: str) -> str:
    escaped = re.sub(r'([,+"\\<>;])', r"\\\1", value)
    if escaped[:1] in {" ", "#"}:
        escaped = "\\" + escaped
    return escaped[:-1] + "\\ " if escaped.endswith(" ") and len(value) > 1 else escaped


def _plain(address: str) -> str:
    return address.partition("%")[0].removeprefix("::ffff:")
