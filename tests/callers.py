"""Everybody who may call: with a token of each scope, with narrow ones, and an operator on its socket."""

import socket
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import schemathesis
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection

from appliance.accounts.rights import ALL_SCOPES, Scope
from appliance.api.routes import ROUTES
from appliance.api.routing import OPERATORS, Access, Route, Surface, Table
from tests.serving import ACTOR, SECONDS, Served
from tests.victims import LISTED, new_victim

Case = schemathesis.Case[Any]

_ROUTES = {(route.method, route.path): route for route in ROUTES}
_TABLE = Table(ROUTES, Surface.PUBLIC)


@dataclass(frozen=True)
class Caller:
    """Who calls: with a token of these scopes, or without one, as an operator on the socket."""

    token: str | None
    scopes: frozenset[Scope] = ALL_SCOPES

    def lacks(self, route: Route) -> bool:
        """Whether no call of this route may be served to it."""
        if self.token is None:
            return False
        scope = route.access
        return scope is Access.OPERATOR or (isinstance(scope, Scope) and scope not in self.scopes)


class Prey:
    """A customer that has something of everything, and all its callers: the first may do everything."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._operators = _through(served.site.socket)
        self._cases = Counter[str]()  # by operation
        self._victim = new_victim(served, str(uuid.uuid4()))
        collections, tasks = [self._victim.tenant.collection], [str(served.bundle.task)]
        self._callers = [
            self._caller(ALL_SCOPES),
            *(self._caller(frozenset({scope})) for scope in Scope),
            self._caller(ALL_SCOPES - {Scope.ADMIN}, collections=collections),
            self._caller(frozenset(LISTED), collections=collections, tasks=tasks),
            Caller(None),
        ]

    def _caller(self, scopes: frozenset[Scope], **lists: list[str]) -> Caller:
        adding = self._served.parts.tokens.add(ACTOR, self._victim.tenant.id, scopes, **lists)  # type: ignore[arg-type]
        return Caller(self._served.run(adding).token, scopes)

    def callers(self, case: Case, *, everybody: bool) -> list[Caller]:
        """Who makes it: of an operation's first case everybody, then by turns who may do everything, and
        the others.
        """
        self._cases[case.operation.label] += 1
        number = self._cases[case.operation.label]
        if everybody or number == 1:
            return self._callers
        return [
            self._callers[0] if number % 2 == 0 else self._callers[1 + number // 2 % (len(self._callers) - 1)]
        ]

    def aim(self, case: Case) -> None:
        """Have every other case be about what is there, where that is not the end of it."""
        route = route_of(case)
        ends = route.method == "DELETE" or route.access is Access.OPERATOR
        if self._cases[case.operation.label] % 2 or ends or Surface.PUBLIC not in route.surfaces:
            return
        path = self._victim.target(route).partition("?")[0]
        case.path_parameters.update(_TABLE.find(route.method, path).parameters)
        case.headers["Collection-Id"] = self._victim.tenant.collection

    def ask(self, case: Case, caller: Caller) -> schemathesis.Response | None:
        """The answer; None for an operator where the socket does not serve it."""
        surfaces, site = route_of(case).surfaces, self._served.site
        if caller.token is None:
            if Surface.SOCKET not in surfaces:
                return None
            return case.call(base_url="http://appliance", session=self._operators)
        port = site.operator_port if surfaces == OPERATORS else site.port
        signed = {"Authorization": f"Token {caller.token}"}
        return case.call(base_url=f"http://{site.host}:{port}", headers=signed)


def route_of(case: Case) -> Route:
    """The row that a case is about; the described one where its method is none of the path's."""
    described = _ROUTES[case.operation.method.upper(), case.path]
    return _ROUTES.get((case.method.upper(), case.path), described)


def _through(path: Path) -> requests.Session:
    """Asks http://appliance over a Unix socket."""

    class Connection(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(SECONDS)
            connection.connect(str(path))
            return connection

    class Pool(HTTPConnectionPool):
        ConnectionCls = Connection

    class Adapter(HTTPAdapter):
        def get_connection_with_tls_context(self, *_: object, **__: object) -> HTTPConnectionPool:
            return Pool("appliance")

    session = requests.Session()
    session.mount("http://appliance", Adapter())
    return session
