"""Customers never mix: every route of the table, attacked with what is another customer's.

The attacks are derived from the table, see `tests.victims`: a new route is attacked without a word here, and
one whose request cannot be derived fails the test.
"""

import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest

from appliance.accounts.audit import Event
from appliance.accounts.customers import CustomerId
from appliance.accounts.rights import Scope
from appliance.api.routing import Access, Route
from tests.serving import ACTOR, Reply, Served, Tenant
from tests.victims import (
    LISTED,
    OF_NO_TASK,
    PUBLIC,
    SCOPED,
    SECRET,
    Stored,
    Victim,
    aimed,
    named,
    names_a_task,
    names_the_victim,
    new_victim,
    noun,
    only_looks,
    serving,
)

SIGNED = [route for route in PUBLIC if route.access is not Access.OPEN]
NARROWED = [route for route in SCOPED if route.access in LISTED and route.audit is not Event.REQUEST_ADD]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("never mix")) as served:
        yield served


@pytest.fixture(scope="module")
def victim(served: Served) -> Victim:
    return new_victim(served, "victim")


@pytest.fixture(scope="module")
def attacker(served: Served) -> Tenant:
    return served.tenant("attacker")


@pytest.fixture(scope="module")
def narrow(served: Served, victim: Victim) -> str:
    """A token of the victim that knows of none of its collections and tasks."""
    other = [str(uuid.uuid4())]
    adding = served.parts.tokens.add(ACTOR, victim.tenant.id, LISTED, collections=other, tasks=other)
    return served.run(adding).token


@pytest.fixture
def unharmed(served: Served, victim: Victim, attacker: Tenant) -> Iterator[None]:
    """After the attack the victim has what it had before."""
    before = victim.belongings(served)
    assert SECRET in str(before)
    yield
    assert victim.belongings(served) == before


def attack(served: Served, route: Route, victim: Victim, authorization: str, form: str = "{}") -> Reply:
    asked = aimed(served, route, victim, form)
    headers = asked.headers | {"authorization": authorization}
    return served.site.call(route.method, asked.path, asked.body, headers)


def assert_nothing_leaks(answer: Reply, victim: Victim, *, known: frozenset[str] = frozenset()) -> None:
    text = answer.body.decode(errors="replace") + str(answer.headers)
    own = {
        victim.tenant.id,
        victim.tenant.collection,
        victim.token_id,
        victim.request,
        victim.agreement,
        victim.snapshot,
        victim.certificate,
        victim.grant,
        *victim.stored.ids.values(),
        SECRET,
    }
    for secret in own - known:
        assert secret not in text, secret


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("route", SIGNED, ids=named)
def test_another_customers_token_finds_nothing(
    served: Served, victim: Victim, attacker: Tenant, route: Route
) -> None:
    """Where the victim is named the answer is 404, byte for byte that for ids which never existed."""
    answer = attack(served, route, victim, f"Token {attacker.token}")
    # With the attacker's own image comes back what the attacker wrote beside it; a copy of all has that too.
    echoes = only_looks(route) or route.audit == Event.CUSTOMER_EXPORT
    echoed = {SECRET, victim.tenant.collection} if echoes else ()
    assert_nothing_leaks(answer, victim, known=frozenset(echoed))
    if route.access is Access.OPERATOR:
        assert answer.status == 403
    elif not names_the_victim(route):
        assert answer.status in {200, 201}
    else:
        absent = replace(victim.tenant, id=CustomerId(str(uuid.uuid4())), collection=str(uuid.uuid4()))
        request, agreement, grant = (str(uuid.uuid4()) for _ in range(3))
        nobody = Victim(absent, "0" * 10, request, agreement, grant, Stored.nothing())
        missing = attack(served, route, nobody, f"Token {attacker.token}")
        assert answer.status == missing.status == 404
        assert anonymous(answer) == anonymous(missing)


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("route", NARROWED, ids=named)
def test_a_token_finds_nothing_beyond_its_lists(
    served: Served, victim: Victim, narrow: str, route: Route
) -> None:
    """A collection that is not listed is answered byte for byte as one that never existed."""
    answer = attack(served, route, victim, f"Token {narrow}")
    if route.access is not Scope.INFER and not only_looks(route):
        absent = replace(victim.tenant, collection=str(uuid.uuid4()))
        nobody = replace(victim, tenant=absent)
        missing = attack(served, route, nobody, f"Token {victim.tenant.token}")
        assert answer.status == missing.status == 404
        assert anonymous(answer) == anonymous(missing)
    elif names_a_task(route):
        assert answer.status == 404, answer.body
        nouns = ("task", "model", "request")
        assert answer.document["detail"] in {"service not installed", *(f"no such {noun}" for noun in nouns)}
    elif route.path.endswith(OF_NO_TASK):
        assert answer.status == 403, answer.body
    else:
        assert answer.status == 200, answer.body
        assert victim.request not in answer.body.decode()


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("route", [route for route in SIGNED if route.problem], ids=named)
def test_naming_another_customer_in_the_query_finds_nothing(
    served: Served, victim: Victim, attacker: Tenant, route: Route
) -> None:
    query = f"{{}}?customer={victim.tenant.id}"
    answer = attack(served, route, victim, f"Token {attacker.token}", query)
    assert_nothing_leaks(answer, victim)
    lists_its_own = route.method == "GET" and noun(route) == "customers" and "{id}" not in route.path
    assert answer.status in ({200} if lists_its_own else {403, 404})


def anonymous(answer: Reply) -> tuple[bytes, dict[str, str]]:
    """The answer without what differs from call to call."""
    own = answer.headers["x-request-id"]
    headers = {name: value for name, value in answer.headers.items() if name not in {"date", "x-request-id"}}
    return answer.body.replace(own.encode(), b""), headers
