"""Tables in memory that strangers and customers fill: none of them grows by a hundred thousand keys."""

import contextlib
import hashlib
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address

import psutil
import pytest

from appliance.accounts.customers import CustomerId
from appliance.accounts.live_tokens import LiveTokens
from appliance.accounts.rates import MINUTE
from appliance.accounts.rights import ALL_SCOPES, Rights
from appliance.accounts.tokens import Principal
from appliance.api.answers import encode
from appliance.api.call import Measures
from appliance.api.connections import Door
from appliance.api.guessing import Guessing
from appliance.api.throttle import Throttle
from appliance.config import Api
from appliance.errors import InvalidInput, Overloaded, Unauthenticated
from appliance.ledger import Connection
from appliance.metrics import Registry, expose
from appliance.outbound import Outbound
from appliance.search.records import CollectionId
from appliance.search.replies import KEEP_SECONDS, MAX_REPLIES, Asked, Repeated, Replies, Reply
from tests.serving import Served, Tenant

MANY = 100_000
ENOUGH = 20_000
"""Where each takes long: more than the largest table that is bounded there."""
OWNER = CustomerId("00000000-0000-4000-8000-000000000000")


def entries(thing: object) -> int:
    """How many there are in all tables of one of the appliance's objects, and of what it is made of."""
    if isinstance(thing, dict):
        return len(thing) + sum(map(entries, thing.values()))
    if isinstance(thing, list | set | deque):
        return len(thing) + sum(map(entries, thing))
    if type(thing).__module__.startswith("appliance"):
        return sum(map(entries, getattr(thing, "__dict__", {}).values()))
    return 0


Address = Callable[[int], str]


@pytest.mark.parametrize(
    "address",
    [lambda n: str(IPv4Address(n)), lambda n: str(IPv6Address(n << 64))],
    ids=["IPv4", "IPv6"],
)
def test_sources_that_guess(address: Address) -> None:
    guessing = Guessing(20, clock=float)
    for number in range(ENOUGH):
        guessing.refused(address(number))
    assert entries(guessing) == 10_000


def test_addresses_that_connect() -> None:
    door = Door(1)
    for number in range(MANY):
        address = str(IPv4Address(number))
        assert door.enter(address)
        door.leave(address)
    assert (door.open, entries(door)) == (0, 0)


def test_tokens_that_are_held_to_a_rate() -> None:
    """The latest are remembered: who floods with others does not get round his own."""
    throttle = Throttle(Api(requests_per_minute=1, bytes_per_minute=1000), clock=float)
    principal = Principal(OWNER, "", ALL_SCOPES, operator=False)
    for number in range(MANY + MANY // 2):
        throttle.admit(replace(principal, token_id=f"{number}"), 100)
    assert entries(throttle) == 2 * MANY
    with pytest.raises(Overloaded) as refusal:
        throttle.admit(replace(principal, token_id=f"{MANY}"), 100)
    assert refusal.value.retry_after == MINUTE


def rights(number: int) -> Rights:
    return Rights(OWNER, ALL_SCOPES, frozenset([f"collection {number}"]))


def test_tokens_that_come_and_go_each_with_rights_of_its_own() -> None:
    live, mac = LiveTokens[Rights](), hashlib.sha256().digest()
    for number in range(MANY):
        live.put(f"{number:010}", mac, rights(number), None)
        live.drop(f"{number:010}")
    assert len(live) == 0
    assert entries(live) < 10


def test_one_token_whose_rights_change_on_and_on() -> None:
    live, mac = LiveTokens[Rights](), hashlib.sha256().digest()
    live.put("known", mac, rights(0), None)
    live.put("other", mac, rights(1), None)
    for number in range(2, MANY):
        live.change("known", rights(number))
    assert live.rights("known", mac, 0) == rights(MANY - 1)
    assert live.rights("other", mac, 0) == rights(1)
    assert entries(live) < 20


def test_tokens_that_are_forged(served: Served, tenant: Tenant) -> None:
    """None is noted as used, and none is known."""
    tokens, text = served.parts.tokens, tenant.token
    before = entries(tokens._live), entries(tokens.last_uses)
    for number in range(MANY):
        with contextlib.suppress(Unauthenticated):
            tokens.verify(f"xapp_{number:010}{text[15:]}")
    assert (entries(tokens._live), entries(tokens.last_uses)) == before
    assert tokens.verify(text).customer == tenant.id


async def test_links_that_lead_nowhere() -> None:
    registry = Registry()
    async with Outbound(None, registry) as outbound:
        before = entries(outbound)
        for number in range(ENOUGH):
            with contextlib.suppress(InvalidInput):
                outbound.check(f"https://host{number}.example/", "images")
        (undeclared,) = outbound.traffic()
        assert undeclared.refused == ENOUGH
        assert entries(outbound) == before
        assert len(expose(registry)[0]) < 10_000


def test_paths_and_methods_that_nobody_serves(served: Served) -> None:
    """The metrics of requests have a row for each route and answer, whatever is asked for."""
    rows = 0
    for number in range(30):
        assert served.site.call("GET", f"/nothing/{number}").status == 404
        served.site.call(("PROPFIND", "MKCOL", "REPORT")[number % 3], "/healthz")
        if number == 2:
            rows = len(expose(served.parts.registry)[0].splitlines())
    assert len(expose(served.parts.registry)[0].splitlines()) == rows


def test_answers_that_are_counted() -> None:
    measures = Measures(Registry())
    for number in range(MANY):
        measures.answered("unmatched", "OTHER", ("404", "405")[number % 2], 0.0)
    assert len(measures._answered) == 2


@pytest.mark.parametrize("many", [5000, pytest.param(MANY, marks=pytest.mark.full)])
def test_idempotency_keys_last_a_day(served: Served, tenant: Tenant, many: int) -> None:
    """They rest on the disk: of a flood over ten days a tenth is left, and nothing in memory."""
    replies, collection, began = served.parts.replies, CollectionId(tenant.collection), served.clock
    at_once, before = many // 100, vars(replies).copy()
    try:
        for start in range(0, many, at_once):
            served.clock = began + 10 * KEEP_SECONDS * start / many

            def act(connection: Connection, start: int = start) -> None:
                for number in range(start, start + at_once):
                    asked = Asked(tenant.id, collection, "a token", f"{many} {number}", bytes(32))
                    replies.keep(connection, asked, Reply(200, b"{}"))

            served.run(served.ledger.write(act))
    finally:
        served.clock = began
    query = "SELECT count(*) FROM search_replies"
    left = served.run(served.ledger.read(lambda connection: connection.execute(query).get))
    assert left <= many // 10 + at_once
    assert vars(replies) == before


@pytest.mark.parametrize("many", [MAX_REPLIES + 2000, pytest.param(MANY, marks=pytest.mark.full)])
def test_one_key_more_costs_no_more_where_ten_thousand_are_remembered(served: Served, many: int) -> None:
    """Of a hundred thousand keys of one customer in one hour: processor time of each, disk and memory."""
    tenant, replies = served.tenant(str(uuid.uuid4())), served.parts.replies
    collection, spent = CollectionId(tenant.collection), list[float]()
    body = encode({"answer_records": [{"_id": str(uuid.uuid4())}], "skipped_records": []})

    def used(connection: Connection) -> int:
        pages, free, size = (
            connection.execute(f"PRAGMA {name}").get for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    disk, memory = served.run(served.ledger.read(used)), psutil.Process().memory_info().rss
    for start in range(0, many, 1000):

        def act(connection: Connection, start: int = start) -> None:
            began = time.thread_time()
            for number in range(start, start + 1000):
                asked = Asked(tenant.id, collection, "a token", f"key {number}", bytes(32))
                replies.keep(connection, asked, Reply(200, body))
            spent.append(time.thread_time() - began)

        served.run(served.ledger.write(act))
    query = "SELECT count(*) FROM search_replies WHERE customer = ?"
    left = served.run(served.ledger.read(lambda connection: connection.execute(query, (tenant.id,)).get))
    assert MAX_REPLIES <= left <= MAX_REPLIES + 2000
    assert min(spent[-2:]) < 4 * min(spent[:2])
    assert served.run(served.ledger.read(used)) - disk < 600 * left
    assert psutil.Process().memory_info().rss - memory < 32 << 20


def test_of_a_customer_that_changes_on_and_on_the_last_answers_are_remembered(served: Served) -> None:
    tenant, other = served.tenant(str(uuid.uuid4())), served.tenant(str(uuid.uuid4()))
    replies = Replies(served.ledger, served.keyring, served.images.upkeep.leaps, most=3)

    def asked(by: Tenant, key: str) -> Asked:
        return Asked(by.id, CollectionId(by.collection), "a token", key, bytes(32))

    def known(by: Tenant, key: str) -> bool:
        try:
            served.run(replies.check(asked(by, key)))
        except Repeated:
            return True
        return False

    for by, key in ((other, "theirs"), *((tenant, f"{number}") for number in range(5))):
        keep = partial(replies.keep, asked=asked(by, key), reply=Reply(200, b"{}"))
        served.run(served.ledger.write(keep))
    assert [known(tenant, f"{number}") for number in range(5)] == [False, False, True, True, True]
    assert known(other, "theirs")
