"""One request from its head to its access line: checked, matched, authenticated, read, handled, answered."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from aiohttp import HttpVersion10, HttpVersion11, web

from appliance.accounts.customers import CustomerId
from appliance.accounts.rights import Scope
from appliance.accounts.tokens import Principal, Tokens, operator_principal
from appliance.api.answers import (
    INTERNAL,
    Answer,
    Refused,
    Stream,
    encode,
    encode_in_steps,
    is_long,
    refusal,
)
from appliance.api.body import Bodies
from appliance.api.call import Call, Measures
from appliance.api.connections import Connection
from appliance.api.guessing import Guessing
from appliance.api.payload import new_id
from appliance.api.routing import MANAGEMENT, READ, Access, Match, Route, Surface, Table, strip_prefix
from appliance.api.throttle import Throttle
from appliance.errors import (
    ApplianceError,
    Forbidden,
    InvalidInput,
    Overloaded,
    Unauthenticated,
    VolumeFull,
)
from appliance.recognition.turns import Shares
from appliance.unforeseen import frames_of
from appliance.volume import Space

_SCHEMES = {"token", "jwt", "bearer"}
_NOBODY = Principal(None, None, frozenset(), operator=False)
_HEADERS = {"Server": "appliance", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
_STALLED_SECONDS = 600.0  # an operator's disk that takes nothing for so long has failed
_CLIENT_GONE = 499  # nginx's code: logged and counted, never sent

log = logging.getLogger("appliance.api")
access_log = logging.getLogger("appliance.access")

Bound = Callable[[Call], Awaitable[Answer]]


@dataclass
class _Trace:
    """What is known of a request so far; the access line says it."""

    id: str
    began: float
    route: str = "unmatched"
    customer: str = "-"
    problem: bool = False
    last: bool = False  # the connection ends with the answer


class Gate:
    """The request handler of one listener: calls it for every request, never raises, always answers JSON."""

    def __init__(
        self,
        routes: Iterable[Route],
        surface: Surface,
        *,
        families: Iterable[object],
        tokens: Tokens,
        guessing: Guessing | None,
        throttle: Throttle,
        bodies: Bodies,
        measures: Measures,
        seeing: Shares,
        admit: Callable[[CustomerId | None], None],
        space: Space,
    ) -> None:
        self._table = Table(routes, surface)
        self._surface = surface
        self._handlers = _bound((r for r in routes if surface in r.surfaces), list(families))
        self._tokens = tokens
        self._guessing = guessing
        self._throttle = throttle
        self._bodies = bodies
        self._measures = measures
        self._admit = admit  # raises Overloaded unless one more image of this customer may come in
        self._space = space
        self._auth, self._answering = measures.cpu("auth"), measures.cpu("answer")
        self._seeing = seeing  # calls with images under way
        self.closing = False  # set while draining: every answer then ends its connection

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        trace = _Trace(new_id(), time.perf_counter())
        try:
            answer = await self._answer(request, trace)
            if answer.stream is not None:
                return await self._send(request, trace, answer, answer.stream)
            body = answer.text
            if is_long(answer.document):
                body = await encode_in_steps(answer.document)
            elif answer.document is not None:
                with self._answering:
                    body = encode(answer.document)
        except ApplianceError as error:
            local = self._surface is Surface.SOCKET
            answer = refusal(error, trace.id, problem=trace.problem, to_operator=local)
            body = encode(answer.document)
        except ConnectionError:
            answer, body = Answer(status=_CLIENT_GONE), None
        except asyncio.CancelledError:
            self._respond(request, trace, Answer(status=_CLIENT_GONE), None)
            raise
        except Exception as error:  # noqa: BLE001 - the last line of defence: nothing may leave but this answer
            log.error("request %s failed: %s\n%s", trace.id, type(error).__name__, frames_of(error))  # noqa: TRY400
            answer = refusal(Refused(500, INTERNAL), trace.id, problem=trace.problem)
            body = encode(answer.document)
        with self._answering:
            return self._respond(request, trace, answer, body)

    async def _answer(self, request: web.BaseRequest, trace: _Trace) -> Answer:
        path = request.raw_path.partition("?")[0]
        trace.problem = strip_prefix(path).startswith(MANAGEMENT)
        trace.last = True  # who sent on a head that is refused may have read another one
        _check_head(request)
        trace.last = _ends_connection(request)
        match = self._table.find(request.method, path)
        route = match.route
        trace.route = route.path
        with self._auth:
            principal = self._principal(request, route, trace)
        if self._tokens.is_first_use(principal):
            await self._tokens.note_use(principal, trace.id)
        trace.customer = principal.customer or ("operator" if principal.operator else "-")
        declared = request.content_length or 0
        self._throttle.admit(principal, declared)
        try:
            return await self._admitted(request, match, principal, trace)
        finally:
            self._throttle.settle(principal, request.content.total_bytes - declared)

    async def _admitted(
        self, request: web.BaseRequest, match: Match, principal: Principal, trace: _Trace
    ) -> Answer:
        match.check_names()
        sees = match.route.form.carries_images
        if sees:  # one that would wait in vain is refused before its body is read
            self._check_room(principal)
        ends = match.route.ends_with_client
        self._seeing.take(principal.customer, sees)
        try:
            with _ending_with_client(request.protocol) if ends else nullcontext():
                return await self._call(request, match, principal, trace)
        finally:
            self._seeing.give(principal.customer, sees)

    def _check_room(self, principal: Principal) -> None:
        if not self._seeing.fits(principal.customer):
            taken = self._seeing.taken
            raise Overloaded(f"{taken} calls with images are under way, as many as the queue holds")
        self._admit(principal.customer)

    async def _call(
        self, request: web.BaseRequest, match: Match, principal: Principal, trace: _Trace
    ) -> Answer:
        with self._measures.stage("body"):
            body = await self._bodies.read(request, match.route.form, principal.customer)
        try:
            # Behind the body: with it a change is made also for a caller that leaves meanwhile.
            room = await self._room(match.route)
            call = Call(
                id=trace.id,
                principal=principal,
                path=match.path,
                parameters=match.parameters,
                query=request.query,
                raw_query=request.raw_path.partition("?")[2],
                headers=request.headers,
                payload=body.payload,
                measures=self._measures,
                began=trace.began,
                ending_with_client=partial(_ending_with_client, request.protocol),
                room=room,
            )
            return await self._handlers[match.route](call)
        finally:
            await body.release()

    async def _room(self, route: Route) -> bool:
        """What a call is told of it. Raises VolumeFull where the route is nothing without."""
        if route.audit == READ:
            return True
        try:
            await asyncio.to_thread(self._space.check_some)
        except VolumeFull:
            if route.needs_room:
                raise
            return False
        return True

    def _principal(self, request: web.BaseRequest, route: Route, trace: _Trace) -> Principal:
        if route.access is Access.OPEN:
            return _NOBODY
        if route.access is Access.LINK and "Authorization" not in request.headers:
            return _NOBODY
        if self._surface is Surface.SOCKET:
            connection = request.protocol
            if not isinstance(connection, Connection) or connection.uid is None:
                raise Forbidden("only root, the daemon's user and the operators' group may use this socket")
            if "Authorization" not in request.headers:
                return operator_principal(connection.uid)
            # A customer's token that was given to an operator: what it may do, and nothing more.
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() not in _SCHEMES:
            raise Unauthenticated("the token is missing or not valid")
        principal = self._verified(request, token.strip(), trace)
        if route.access is Access.OPERATOR:
            raise Forbidden("only operators may do this, through the operator socket")
        if isinstance(route.access, Scope) and route.access not in principal.scopes:
            raise Forbidden(f"the token lacks the scope {route.access}")
        return principal

    def _verified(self, request: web.BaseRequest, token: str, trace: _Trace) -> Principal:
        connection = request.protocol
        subject = connection.subject if isinstance(connection, Connection) else None
        try:
            return self._tokens.verify(token, subject)
        except Unauthenticated:
            if self._guessing is not None and isinstance(connection, Connection):
                try:
                    self._guessing.refused(connection.address)
                except Overloaded:
                    trace.last = True
                    raise
            raise

    async def _send(
        self, request: web.BaseRequest, trace: _Trace, answer: Answer, stream: Stream
    ) -> web.StreamResponse:
        """Sends a stream; one that cannot go on, or whose reader is too slow, ends with its connection."""
        headers = {
            **_HEADERS,
            "X-Request-Id": trace.id,
            **answer.headers,
            "Content-Type": answer.content_type,
        }
        response = web.StreamResponse(status=answer.status, headers=headers)
        response.content_length = stream.length
        if self.closing or trace.last:
            response.force_close()
        whole = None if stream.length is None else self._bodies.patience(stream.length)
        piecewise = None
        if stream.length is None:
            piecewise = _STALLED_SECONDS if self._surface is Surface.SOCKET else self._bodies.patience(0)
        _pace(request, paced=True)
        try:
            async with asyncio.timeout(whole):
                await response.prepare(request)
                if request.method != "HEAD":
                    async for piece in stream.pieces:
                        async with asyncio.timeout(piecewise):
                            await response.write(piece)
                        del piece  # before the next one is made
                await response.write_eof()
        except Exception as error:  # noqa: BLE001 - whatever it is, no second answer may follow this head
            if isinstance(error, ApplianceError):
                log.error("request %s broke off: %s", trace.id, error)  # noqa: TRY400 - its message says all
            elif not isinstance(error, (TimeoutError, ConnectionError)):
                frames = frames_of(error)
                log.error("request %s broke off: %s\n%s", trace.id, type(error).__name__, frames)  # noqa: TRY400
            if request.transport is not None:
                request.transport.abort()  # the only way to say that what came is not all
            answer = Answer(status=_CLIENT_GONE)
        finally:
            stream.close()
            _pace(request, paced=False)
        self._tell(request, trace, answer)
        return response

    def _respond(
        self, request: web.BaseRequest, trace: _Trace, answer: Answer, body: bytes | None
    ) -> web.StreamResponse:
        headers = {**_HEADERS, "X-Request-Id": trace.id, **answer.headers}
        if body is not None:
            headers["Content-Type"] = answer.content_type
        response = web.Response(status=answer.status, body=body, headers=headers)
        if self.closing or trace.last or answer.status == 408:
            response.force_close()
        self._tell(request, trace, answer)
        return response

    def _tell(self, request: web.BaseRequest, trace: _Trace, answer: Answer) -> None:
        seconds = time.perf_counter() - trace.began
        self._measures.answered(trace.route, _method(request), str(answer.status), seconds)
        access_log.info(
            "%s %s %s %s %d %.1f",
            trace.id,
            trace.customer,
            _method(request),
            trace.route,
            answer.status,
            seconds * 1000,
        )


def _bound(routes: Iterable[Route], families: list[object]) -> dict[Route, Bound]:
    bound: dict[Route, Bound] = {}
    for route in routes:
        owner = next(
            family
            for family in families
            if getattr(type(family), route.handler.__name__, None) is route.handler
        )
        bound[route] = partial(route.handler, owner)
    return bound


def _pace(request: web.BaseRequest, *, paced: bool) -> None:
    """Whether what is sent now has a deadline of its own."""
    if isinstance(request.protocol, Connection):
        request.protocol.paced = paced


def _method(request: web.BaseRequest) -> str:
    # A method is any token to the parser: only the usual ones become labels.
    return request.method if request.method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} else "OTHER"


@contextmanager
def _ending_with_client(connection: object) -> Iterator[None]:
    if not isinstance(connection, Connection):
        yield
        return
    connection.end_with_client()
    try:
        yield
    finally:
        connection.outlast_client()


def _ends_connection(request: web.BaseRequest) -> bool:
    """Whether the parser may misread what follows the request.

    The last trailer of a chunked body becomes a header of the next request, and what comes along with a head
    that asks for an upgrade is dropped.
    """
    return "Transfer-Encoding" in request.headers or "Upgrade" in request.headers


def _check_head(request: web.BaseRequest) -> None:
    """Refuses what the parser lets through and proxies read differently from us."""
    if not request.raw_path.startswith("/"):
        raise InvalidInput("the request target must be a path")
    if request.version not in {HttpVersion10, HttpVersion11}:
        raise Refused(505, "HTTP/1.1 is spoken here")
    codings = [value.lower() for value in request.headers.getall("Transfer-Encoding", [])]
    if codings and request.version < HttpVersion11:
        raise InvalidInput("HTTP/1.0 has no Transfer-Encoding")
    if codings not in ([], ["chunked"]):
        raise Refused(501, "Transfer-Encoding: chunked alone is understood")
    if any(value.lower() != "identity" for value in request.headers.getall("Content-Encoding", [])):
        raise Refused(415, "Content-Encoding is not undone; send the body as it is")
    if len(request.headers.getall("Authorization", ())) > 1:
        raise InvalidInput("Authorization stands twice in the request: send one token")
    if request.headers.get("Expect", "100-continue").lower() != "100-continue":
        raise Refused(417, "Expect: only 100-continue is known")
