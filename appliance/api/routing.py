"""What a route is, and how a request finds its own."""

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import Any, Literal

from appliance.accounts.audit import Event
from appliance.accounts.rights import Scope
from appliance.api.answers import Answer, Refused
from appliance.api.call import Call
from appliance.api.payload import Form
from appliance.errors import InvalidInput, NotInstalled

PREFIX = "/localhost"  # the official client posts its token to the cloud unless its endpoint holds this word
MANAGEMENT = "/appliance/"

# Nothing for the audit log: the route changes nothing. The store itself logs what `store_images` has it keep.
READ: Literal["read"] = "read"

# What goes on when the volume has no room left: it deletes, or ends a right or limits it, of which there is
# only so much; and an operator's backup. All other acts that the log tells of would take the room of these.
_WITHOUT_ROOM = frozenset(
    {
        Event.CUSTOMER_SUSPEND,
        Event.CUSTOMER_ERASE,
        Event.CUSTOMER_LIMIT,
        Event.TOKEN_REVOKE,
        Event.TOKEN_LIMIT,
        Event.AGREEMENT_REVOKE,
        Event.GRANT_DENY,
        Event.GRANT_REVOKE,
        Event.COLLECTION_EMPTY,
        Event.COLLECTION_REMOVE,
        Event.SNAPSHOT_REMOVE,
        Event.ALIAS_REMOVE,
        Event.SEARCH_DELETE,
        Event.FEED_REMOVE,
        Event.BUNDLE_REMOVE,
        Event.REQUEST_CANCEL,
        Event.DATASET_CHANGE,
        Event.DATASET_ERASE,
        Event.IMAGE_DELETE,
        Event.TASK_DELETE,
        Event.LABEL_DELETE,
        Event.LABEL_WIPE,
        Event.OBJECT_DELETE,
        Event.VERIFICATION_DELETE,
        Event.POINT_DELETE,
        Event.BACKUP_MAKE,
    }
)


class Access(Enum):
    """Who may call a route that no scope guards."""

    OPEN = "open"
    LINK = "a signed link, or a token"
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
LOCAL = frozenset({Surface.SOCKET})


@dataclass(frozen=True)
class Route:
    """One row. `path` holds {id}, {snapshot}, {name} or {version} for a segment; `handler` is a method of a
    family."""

    method: str
    path: str
    handler: Callable[[Any, Call], Awaitable[Answer]]
    access: Scope | Access
    audit: Event | Literal["read"]
    form: Form = Form.NOTHING
    surfaces: frozenset[Surface] = PUBLIC

    @property
    def ends_with_client(self) -> bool:
        """Whether a client that leaves ends its call: it changes nothing, and takes long."""
        gives = self.audit in {Event.DATASET_EXPORT, Event.CUSTOMER_EXPORT}
        return gives or (self.audit == READ and self.form.carries_images)

    @property
    def needs_room(self) -> bool:
        """Whether it is refused on a volume that has none left."""
        return self.audit != READ and self.audit not in _WITHOUT_ROOM

    @property
    def problem(self) -> bool:
        """Whether its refusals are problem+json."""
        return self.path.startswith(MANAGEMENT)


_ID, _WORD = "[A-Za-z0-9-]{1,64}", "[A-Za-z0-9.-]{1,64}"  # ids, and names and versions as of bundles


def _segment(named: re.Match[str]) -> str:
    return f"(?P<{named[1]}>{_ID if named[1] == 'id' else _WORD})"


def _any_name(named: re.Match[str]) -> str:
    return _segment(named) if named[1] == "id" else f"(?P<{named[1]}>[^/]+)"


@dataclass(frozen=True)
class Match:
    """The row that a request meant, the segments for its {id}, and the path without the prefix."""

    route: Route
    parameters: dict[str, str]
    path: str

    def check_names(self) -> None:
        """Raises InvalidInput for what no name can be, as those of the management may be."""
        for name, given in self.parameters.items():
            if re.fullmatch(_WORD, given) is None:
                raise InvalidInput(
                    f"{name}: 1 to 64 letters, digits, dots and hyphens, of ASCII, are expected"
                )


class Table:
    """The rows of one surface, looked up by method and path."""

    def __init__(self, routes: Iterable[Route], surface: Surface) -> None:
        self._exact: dict[str, dict[str, Route]] = {}
        self._patterns: dict[re.Pattern[str], dict[str, Route]] = {}
        self._misnamed: dict[re.Pattern[str], dict[str, Route]] = {}
        """Of the management: with anything in the place of a name."""
        for route in routes:
            if surface not in route.surfaces:
                continue
            if "{" in route.path:
                pattern = re.compile(re.sub(r"\{(\w+)\}", _segment, route.path))
                self._patterns.setdefault(pattern, {})[route.method] = route
                if route.problem:
                    misnamed = re.compile(re.sub(r"\{(\w+)\}", _any_name, route.path))
                    self._misnamed.setdefault(misnamed, {})[route.method] = route
            else:
                self._exact.setdefault(route.path, {})[route.method] = route

    def find(self, method: str, path: str) -> Match:
        """The row for a request, with or without the prefix and one trailing slash; never a redirect.

        One of the management is found whatever stands for a name in it: see `Match.check_names`. Raises
        NotInstalled for a path that is not in the table, Refused (405) for another method.
        """
        path = strip_prefix(path)
        bare = path[:-1] if len(path) > 1 and path.endswith("/") else path
        methods, parameters = self._exact.get(bare), dict[str, str]()
        if methods is None:
            for pattern, rows in chain(self._patterns.items(), self._misnamed.items()):
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
