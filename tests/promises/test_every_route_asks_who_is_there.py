"""Every route asks who is there: all routes on all listeners, by all kinds of tokens, none missing.

What a cell of this matrix expects is derived from the route table alone. A new route is in it without a word
here: where its expectation or its request cannot be derived, a test fails.
"""

import base64
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from appliance.accounts.agreements import AgreementId
from appliance.accounts.audit import Actor, Event
from appliance.accounts.rights import ALL_SCOPES, Scope
from appliance.api.payload import Form
from appliance.api.routes import ROUTES
from appliance.api.routing import READ, Access, Route, Surface
from tests.serving import ACTOR, Reply, Served
from tests.victims import (
    LISTED,
    OF_NO_TASK,
    OPERATOR,
    PUBLIC,
    SECRET,
    Request,
    Victim,
    aimed,
    named,
    names_a_task,
    new_victim,
    only_looks,
    serving,
)

CELLS = [(surface, route) for surface in Surface for route in ROUTES]
SEARCHING = frozenset({Scope.SEARCH_READ, Scope.SEARCH_WRITE})
EXPORTING = frozenset({Scope.ADMIN, Scope.DATASETS_READ, Scope.SEARCH_READ})  # it shows all that these do
ABSENT = frozenset({404, 405})


@dataclass(frozen=True)
class Kind:
    """A kind of credential. `answered` is what a token is answered with wherever one is asked for, None for a
    valid one, which has these scopes and knows of the victim's `collections` and `tasks` or not.
    """

    answered: int | None = None
    scopes: frozenset[Scope] = frozenset()
    collections: bool = True
    tasks: bool = True

    @property
    def listed(self) -> bool:
        return not (self.collections and self.tasks)


NONE = "none"
KINDS = {
    NONE: Kind(401),
    "no token": Kind(401),
    "unknown": Kind(401),
    "forged": Kind(401),
    "cut off": Kind(401),
    "of another scheme": Kind(401),
    "expired": Kind(401),
    "revoked": Kind(401),
    "of recovery, within its day": Kind(401),
    "bound to a certificate": Kind(401),
    "of a suspended customer": Kind(403),
    **{f"{scope} alone": Kind(scopes=frozenset({scope})) for scope in Scope},
    "of other collections": Kind(scopes=ALL_SCOPES - {Scope.ADMIN}, collections=False),
    "of other tasks": Kind(scopes=frozenset(LISTED), tasks=False),
}


def expected(surface: Surface, route: Route, name: str) -> frozenset[int] | None:
    """The statuses of the refusal in one cell of the matrix, None where the route is served."""
    kind = KINDS[name]
    if surface not in route.surfaces:
        return ABSENT
    if route.access is Access.OPEN or (surface is Surface.SOCKET and name == NONE):  # a peer is an operator
        return None
    if kind.answered is not None:
        return frozenset({kind.answered})
    if (refusal := refused(route, kind)) is not None:
        return frozenset({refusal})
    return None


def refused(route: Route, kind: Kind) -> int | None:
    """What a valid token is answered with where it is not served."""
    match route.access:
        case Access.OPERATOR:
            return 403
        case Access.TOKEN:
            authorizes = route.path == "/authorization/v2/authorize"  # the request is for search
            lacks = authorizes and kind.scopes.isdisjoint(SEARCHING)
            return 403 if lacks or (kind.listed and route.path.endswith("/usage")) else None
        case Access.LINK:
            return None if Scope.DATASETS_READ in kind.scopes else 403
        case Scope() as scope if scope not in kind.scopes:
            return 403
        case Scope.ADMIN if route.audit is Event.CUSTOMER_EXPORT:
            return None if kind.scopes >= EXPORTING else 403
        case Scope() if not kind.tasks and route.path.endswith((*OF_NO_TASK, "/request")):
            return None if route.method == "GET" else 403
        case Scope.SEARCH_READ | Scope.SEARCH_WRITE if not kind.collections and not only_looks(route):
            return 404
        case Scope.INFER if not kind.tasks and names_a_task(route):
            return 404
        case _:
            return None


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("who is there")) as served:
        yield served


@pytest.fixture(scope="module")
def victim(served: Served) -> Victim:
    return new_victim(served, "victim")


@pytest.fixture(scope="module")
def authorizations(served: Served, victim: Victim) -> Mapping[str, str | None]:
    """A header for each of KINDS."""
    tokens, tenant = served.parts.tokens, victim.tenant
    suspended = served.tenant("suspended")
    served.run(served.parts.customers.suspend(ACTOR, suspended.id))

    def issue(actor: Actor = ACTOR, **asked: object) -> str:
        return served.run(tokens.add(actor, tenant.id, **asked)).token  # type: ignore[arg-type]

    expired = issue(expires_at=int(served.clock * 1000) + 1)
    served.clock += 1
    revoked = served.run(tokens.add(ACTOR, tenant.id))
    served.run(tokens.revoke(ACTOR, tenant.id, revoked.id))
    genuine, other = tenant.token, [str(uuid.uuid4())]
    middle = "A" if genuine[20] != "A" else "B"
    signed = {
        "no token": "none of ours",
        "unknown": "xapp_" + "0" * (len(genuine) - 5),
        "forged": genuine[:20] + middle + genuine[21:],
        "cut off": genuine[:-1],
        "expired": expired,
        "revoked": revoked.token,
        "of recovery, within its day": issue(OPERATOR, recovery=True),
        "bound to a certificate": issue(client_subject="CN=till 7"),
        "of a suspended customer": suspended.token,
        **{f"{scope} alone": issue(scopes={scope}) for scope in Scope},
        "of other collections": issue(scopes=ALL_SCOPES - {Scope.ADMIN}, collections=other),
        "of other tasks": issue(scopes=LISTED, tasks=other),
    }
    basic = f"Basic {base64.b64encode(genuine.encode()).decode()}"
    return {NONE: None, "of another scheme": basic} | {name: f"Token {text}" for name, text in signed.items()}


@pytest.fixture(scope="module", autouse=True)
def unharmed(served: Served, victim: Victim, authorizations: Mapping[str, str | None]) -> Iterator[None]:
    """After all of it the victim has what it had before."""
    assert authorizations
    before = victim.belongings(served)
    assert SECRET in str(before)
    yield
    assert victim.belongings(served) == before


def request(served: Served, surface: Surface, route: Route, victim: Victim) -> Request:
    """What asks for the victim's things; what operators alone may do asks for nobody's."""
    if Surface.PUBLIC in route.surfaces:
        return aimed(served, route, victim, "/localhost{}/" if surface is Surface.PUBLIC else "{}")
    path = route.path.replace("{id}", str(uuid.UUID(int=0)))
    body = None if route.form is Form.NOTHING else b"{}"
    return Request(path, body, {"content-type": "application/json"})


def ask(served: Served, surface: Surface, route: Route, asked: Request, authorization: str | None) -> Reply:
    headers = asked.headers | ({} if authorization is None else {"authorization": authorization})
    if surface is Surface.SOCKET:
        return served.site.operate(route.method, asked.path, body=asked.body, headers=headers)
    operator = surface is Surface.OPERATOR
    return served.site.call(route.method, asked.path, asked.body, headers, operator=operator)


def labelled(one: Surface | Route) -> str:
    return one.value if isinstance(one, Surface) else named(one)


def test_every_kind_of_token_is_there(authorizations: Mapping[str, str | None]) -> None:
    assert authorizations.keys() == KINDS.keys()


@pytest.mark.parametrize(("surface", "route"), CELLS, ids=labelled)
def test_every_route_asks_every_kind_of_token(
    served: Served,
    victim: Victim,
    authorizations: Mapping[str, str | None],
    surface: Surface,
    route: Route,
) -> None:
    """Where a kind is served and the route changes something, nothing is sent: see below."""
    asked = request(served, surface, route, victim)
    for name, authorization in authorizations.items():
        statuses = expected(surface, route, name)
        if statuses is None and route.audit != READ:
            continue
        answer = ask(served, surface, route, asked, authorization)
        if statuses is None:
            assert answer.status < 500, (name, answer.body)
            assert answer.status not in {401, 403}, (name, answer.body)
        else:
            assert answer.status in statuses, (name, answer.body)
            assert not leaked(answer, victim), name


def leaked(answer: Reply, victim: Victim) -> set[str]:
    """What a refusal says of the victim, the ids that it was asked for among it."""
    text = answer.body.decode(errors="replace") + str(answer.headers)
    own = {victim.tenant.id, victim.tenant.collection, victim.token_id, victim.request, SECRET}
    return {secret for secret in own | set(victim.stored.ids.values()) if secret in text}


@pytest.mark.parametrize("route", PUBLIC, ids=named)
def test_the_scope_alone_is_enough_so_that_the_others_fail_for_the_right_reason(
    served: Served, route: Route
) -> None:
    owner = new_victim(served, f"owner {uuid.uuid4()}")
    if route.form in {Form.UPLOAD, Form.ARCHIVE}:
        accepting = served.parts.agreements.accept(ACTOR, owner.tenant.id, AgreementId(owner.agreement))
        served.run(accepting)
    signed = f"Token {fitting(served, route, owner)}"
    answer = ask(served, Surface.PUBLIC, route, aimed(served, route, owner), signed)
    if route.access is Access.OPERATOR:
        assert answer.status == 403
    elif route.access is Scope.TRAIN:
        assert answer.status == 409
    elif "/model/" in route.path:
        assert answer.document["detail"] == "no such model"
    elif route.path.endswith("/confirm"):
        assert answer.document["detail"] == "no run of this source waits for a confirmation"
    else:
        assert answer.status in {200, 201, 202, 204, 411}, answer.body


def fitting(served: Served, route: Route, owner: Victim) -> str:
    """A token with the scopes of the route and no other."""
    if route.audit is Event.CUSTOMER_EXPORT:
        return served.token(owner.tenant, *EXPORTING)
    if isinstance(route.access, Scope):
        return served.token(owner.tenant, route.access)
    return served.token(
        owner.tenant, Scope.DATASETS_READ if route.access is Access.LINK else Scope.SEARCH_READ
    )
