"""The route table: what is served where, who may call it, and what the audit log keeps of it.

The table is data. The server, the OpenAPI document's test and the attacks of the promise tests all read it:
a new row is served, documented and attacked, or the tests fail.
"""

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from appliance.accounts.audit import Event
from appliance.accounts.tokens import Scope
from appliance.api.account import Account
from appliance.api.answers import Answer, Refused
from appliance.api.asynchronous import PATH as REQUEST
from appliance.api.asynchronous import Asynchronous
from appliance.api.call import Call
from appliance.api.colours import Colours
from appliance.api.management import Management
from appliance.api.open_inference import OpenInference
from appliance.api.payload import Form
from appliance.api.probes import Probes
from appliance.api.recognition import Recognition
from appliance.api.similarity import Similarity
from appliance.errors import NotInstalled

PREFIX = "/localhost"  # the official client posts its token to the cloud unless its endpoint holds this word
MANAGEMENT = "/appliance/"

READ: Literal["read"] = "read"  # nothing for the audit log: the route changes nothing


class Access(Enum):
    """Who may call a route that no scope guards."""

    OPEN = "open"
    TOKEN = "any valid token"  # noqa: S105
    OPERATOR = "operator"  # peers of the operator socket only


class Surface(Enum):
    """Where a listener stands."""

    PUBLIC = "public"  # `[api] listen`: customers, by token
    OPERATOR = "operator"  # `[operator] listen`: probes and scrapers
    SOCKET = "socket"  # the operator socket: people on this machine, by peer credentials


PUBLIC = frozenset({Surface.PUBLIC})
MANAGED = frozenset({Surface.PUBLIC, Surface.SOCKET})
EVERYWHERE = frozenset(Surface)
OPERATORS = frozenset({Surface.OPERATOR})


@dataclass(frozen=True)
class Route:
    """One row. `path` holds {id}, {name} or {version} for a segment; `handler` is a method of a family."""

    method: str
    path: str
    handler: Callable[[Any, Call], Awaitable[Answer]]
    access: Scope | Access
    audit: Event | Literal["read"]
    form: Form = Form.NOTHING
    surfaces: frozenset[Surface] = PUBLIC

    @property
    def problem(self) -> bool:
        """Whether its refusals are problem+json."""
        return self.path.startswith(MANAGEMENT)


def _search(prefix: str) -> tuple[Route, ...]:
    read, write = Scope.SEARCH_READ, Scope.SEARCH_WRITE
    return (
        Route("POST", f"{prefix}/insert", Similarity.insert, write, Event.SEARCH_INSERT, Form.RECORDS),
        Route("POST", f"{prefix}/update", Similarity.update, write, Event.SEARCH_UPDATE, Form.IDS),
        Route("POST", f"{prefix}/delete", Similarity.delete, write, Event.SEARCH_DELETE, Form.IDS),
        Route("POST", f"{prefix}/get", Similarity.get, read, READ, Form.IDS),
        Route("POST", f"{prefix}/visualKNN", Similarity.visual_knn, read, READ, Form.QUERY),
        Route("POST", f"{prefix}/visualRankRecords", Similarity.visual_rank_records, read, READ, Form.QUERY),
        Route("POST", f"{prefix}/random", Similarity.random, read, READ, Form.FIELDS),
        Route("POST", f"{prefix}/allRecords", Similarity.all_records, read, READ, Form.FIELDS),
        Route("POST", f"{prefix}/ping", Similarity.ping, read, READ, Form.FIELDS),
    )


def _model(path: str) -> tuple[Route, ...]:
    infer = Scope.INFER
    return (
        Route("GET", path, OpenInference.model, infer, READ),
        Route("GET", f"{path}/ready", OpenInference.model_ready, infer, READ),
        Route("POST", f"{path}/infer", OpenInference.infer, infer, READ, Form.BYTES),
    )


_V1 = "/appliance/v1"
_ADMIN, _OPERATOR = Scope.ADMIN, Access.OPERATOR

ROUTES: tuple[Route, ...] = (
    Route("POST", "/authorization/v2/authorize", Account.authorize, Access.TOKEN, READ, Form.FIELDS),
    Route("GET", "/account/v2/user", Account.user, Access.TOKEN, READ),
    Route("GET", "/account/v2/details", Account.details, Access.TOKEN, READ),
    Route("GET", "/account/v2/workspace", Account.workspaces, Access.TOKEN, READ),
    Route("POST", "/recognition/v2/classify", Recognition.classify, Scope.INFER, READ, Form.RECORDS),
    Route("POST", "/photo/tags/v2/tags", Recognition.tags, Scope.INFER, READ, Form.RECORDS),
    Route("POST", "/tagging/{id}/v2/tags", Recognition.tags, Scope.INFER, READ, Form.RECORDS),
    Route("POST", "/detection/v2/detect", Recognition.detect, Scope.INFER, READ, Form.RECORDS),
    Route("POST", "/photo/v2/descriptor", Recognition.descriptor, Scope.INFER, READ, Form.RECORDS),
    Route(
        "POST", "/similarity/training/v2/descriptor", Recognition.descriptor, Scope.INFER, READ, Form.RECORDS
    ),
    Route("POST", "/dom_colors/generic/v2/dominantcolor", Colours.generic, Scope.INFER, READ, Form.RECORDS),
    Route("POST", "/dom_colors/product/v2/dominantcolor", Colours.product, Scope.INFER, READ, Form.RECORDS),
    Route("POST", REQUEST, Asynchronous.submit, Scope.INFER, Event.REQUEST_ADD, Form.RECORDS),
    Route("GET", REQUEST, Asynchronous.list, Scope.INFER, READ),
    Route("GET", f"{REQUEST}/{{id}}", Asynchronous.get, Scope.INFER, READ),
    Route("GET", f"{REQUEST}/{{id}}/status", Asynchronous.status, Scope.INFER, READ),
    Route("POST", f"{REQUEST}/{{id}}/cancel", Asynchronous.cancel, Scope.INFER, Event.REQUEST_CANCEL),
    *_search("/similarity/photos/v2"),
    *_search("/similarity/products-new/v2"),
    *_search("/similarity/custom/v2"),
    *_search("/photo/search/v2"),
    *_search("/similarity/products/v2"),
    Route("GET", "/v2", OpenInference.server, Access.TOKEN, READ),
    Route("GET", "/v2/health/live", OpenInference.live, Access.OPEN, READ),
    Route("GET", "/v2/health/ready", OpenInference.ready, Access.OPEN, READ),
    Route("POST", "/v2/repository/index", OpenInference.index, Scope.INFER, READ, Form.FIELDS),
    *_model("/v2/models/{name}"),
    *_model("/v2/models/{name}/versions/{version}"),
    Route(
        "POST",
        f"{_V1}/customers",
        Management.add_customer,
        _OPERATOR,
        Event.CUSTOMER_ADD,
        Form.FIELDS,
        MANAGED,
    ),
    Route("GET", f"{_V1}/customers", Management.list_customers, _ADMIN, READ, surfaces=MANAGED),
    Route("GET", f"{_V1}/customers/{{id}}", Management.get_customer, _ADMIN, READ, surfaces=MANAGED),
    Route("POST", f"{_V1}/tokens", Management.add_token, _ADMIN, Event.TOKEN_ADD, Form.FIELDS, MANAGED),
    Route("GET", f"{_V1}/tokens", Management.list_tokens, _ADMIN, READ, surfaces=MANAGED),
    Route(
        "POST",
        f"{_V1}/tokens/{{id}}/rotate",
        Management.rotate_token,
        _ADMIN,
        Event.TOKEN_ROTATE,
        Form.FIELDS,
        MANAGED,
    ),
    Route(
        "DELETE",
        f"{_V1}/tokens/{{id}}",
        Management.revoke_token,
        _ADMIN,
        Event.TOKEN_REVOKE,
        surfaces=MANAGED,
    ),
    Route(
        "POST",
        f"{_V1}/collections",
        Management.add_collection,
        _ADMIN,
        Event.COLLECTION_ADD,
        Form.FIELDS,
        MANAGED,
    ),
    Route("GET", f"{_V1}/collections", Management.list_collections, _ADMIN, READ, surfaces=MANAGED),
    Route("GET", f"{_V1}/collections/{{id}}", Management.get_collection, _ADMIN, READ, surfaces=MANAGED),
    Route(
        "DELETE",
        f"{_V1}/collections/{{id}}",
        Management.remove_collection,
        _ADMIN,
        Event.COLLECTION_REMOVE,
        surfaces=MANAGED,
    ),
    Route(
        "POST",
        f"{_V1}/bundles",
        Management.install_bundle,
        _OPERATOR,
        Event.BUNDLE_INSTALL,
        Form.FILES,
        MANAGED,
    ),
    Route("GET", f"{_V1}/bundles", Management.list_bundles, _OPERATOR, READ, surfaces=MANAGED),
    Route("GET", f"{_V1}/bundles/verification", Management.verify_bundles, _OPERATOR, READ, surfaces=MANAGED),
    Route(
        "POST",
        f"{_V1}/bundles/{{name}}/{{version}}/activate",
        Management.activate_bundle,
        _OPERATOR,
        Event.BUNDLE_ACTIVATE,
        surfaces=MANAGED,
    ),
    Route(
        "DELETE",
        f"{_V1}/bundles/{{name}}/{{version}}",
        Management.remove_bundle,
        _OPERATOR,
        Event.BUNDLE_REMOVE,
        surfaces=MANAGED,
    ),
    Route("GET", f"{_V1}/webhook-secret", Management.webhook_secret, _ADMIN, READ, surfaces=MANAGED),
    Route("GET", f"{_V1}/status", Management.status, _OPERATOR, READ, surfaces=MANAGED),
    Route("GET", "/healthz", Probes.healthz, Access.OPEN, READ, surfaces=EVERYWHERE),
    Route("GET", "/readyz", Probes.readyz, Access.OPEN, READ, surfaces=EVERYWHERE),
    Route("GET", "/metrics", Probes.metrics, Access.OPEN, READ, surfaces=OPERATORS),
)


def _segment(named: re.Match[str]) -> str:
    letters = "[A-Za-z0-9-]" if named[1] == "id" else "[A-Za-z0-9.-]"  # of bundles' names and versions
    return f"(?P<{named[1]}>{letters}{{1,64}})"


@dataclass(frozen=True)
class Match:
    """The row that a request meant, the segments for its {id}, and the path without the prefix."""

    route: Route
    parameters: dict[str, str]
    path: str


class Table:
    """The rows of one surface, looked up by method and path."""

    def __init__(self, routes: Iterable[Route], surface: Surface) -> None:
        self._exact: dict[str, dict[str, Route]] = {}
        self._patterns: dict[re.Pattern[str], dict[str, Route]] = {}
        for route in routes:
            if surface not in route.surfaces:
                continue
            if "{" in route.path:
                pattern = re.compile(re.sub(r"\{(\w+)\}", _segment, route.path))
                self._patterns.setdefault(pattern, {})[route.method] = route
            else:
                self._exact.setdefault(route.path, {})[route.method] = route

    def find(self, method: str, path: str) -> Match:
        """The row for a request, with or without the prefix and one trailing slash; never a redirect.

        Raises NotInstalled for a path that is not in the table, Refused (405) for another method.
        """
        path = strip_prefix(path)
        bare = path[:-1] if len(path) > 1 and path.endswith("/") else path
        methods, parameters = self._exact.get(bare), dict[str, str]()
        if methods is None:
            for pattern, rows in self._patterns.items():
                if (found := pattern.fullmatch(bare)) is not None:
                    methods, parameters = rows, found.groupdict()
                    break
            else:
                raise NotInstalled("nothing is served at this path")
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            raise Refused(405, "the method is not allowed here", {"Allow": ", ".join(sorted(methods))})
        return Match(route, parameters, bare)


def strip_prefix(path: str) -> str:
    """The path without `/localhost`, under which every route is served a second time."""
    return path[len(PREFIX) :] if path.startswith(PREFIX + "/") else path
