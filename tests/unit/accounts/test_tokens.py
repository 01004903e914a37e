"""Tokens: issued once, verified in memory, refused alike, rotated with an overlap."""

import asyncio
import gc
import logging
import secrets
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from appliance.accounts import tokens as issuing
from appliance.accounts.audit import Actor, Event
from appliance.accounts.customers import CustomerId
from appliance.accounts.live_tokens import LiveTokens
from appliance.accounts.rights import ALL_SCOPES, Rights, Scope, parse_scopes
from appliance.accounts.tokens import Principal, Tokens, _base62, operator_principal
from appliance.errors import CapacityExceeded, Conflict, InvalidInput, NotFound, Unauthenticated
from tests.unit.accounts.conftest import Accounts

DAY = 86400


@pytest.fixture
async def customer(accounts: Accounts) -> CustomerId:
    return (await accounts.customers.add(accounts.actor, "Zoo")).id


@pytest.fixture
async def other(accounts: Accounts) -> CustomerId:
    return (await accounts.customers.add(accounts.actor, "Atelier")).id


async def test_a_token_stands_for_its_customer_now_and_after_a_restart(
    accounts: Accounts, customer: CustomerId
) -> None:
    issued = await accounts.tokens.add(accounts.actor, customer, {Scope.INFER})
    expected = Principal(customer, issued.id, frozenset({Scope.INFER}), operator=False)
    assert accounts.tokens.verify(issued.token) == expected
    assert (await accounts.reloaded()).verify(issued.token) == expected


async def test_the_first_token_may_everything_and_later_ones_not_administer(
    accounts: Accounts, customer: CustomerId, other: CustomerId
) -> None:
    first = await accounts.tokens.add(accounts.actor, customer)
    second = await accounts.tokens.add(accounts.actor, customer)
    elsewhere = await accounts.tokens.add(accounts.actor, other)
    assert accounts.tokens.verify(first.token).scopes == ALL_SCOPES
    assert accounts.tokens.verify(second.token).scopes == ALL_SCOPES - {Scope.ADMIN}
    assert accounts.tokens.verify(elsewhere.token).scopes == ALL_SCOPES


async def test_two_first_tokens_at_once_give_one_administrator(
    accounts: Accounts, customer: CustomerId
) -> None:
    await asyncio.gather(*(accounts.tokens.add(accounts.actor, customer) for _ in range(5)))
    listed = await accounts.tokens.list(customer)
    assert sum(Scope.ADMIN in token.scopes for token in listed) == 1


async def test_the_secret_is_nowhere(
    accounts: Accounts, customer: CustomerId, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    issued = await accounts.tokens.add(accounts.actor, customer)
    secret = issued.token[15:]
    shown = repr(issued) + repr(await accounts.tokens.list()) + repr(await accounts.log()) + caplog.text
    assert secret not in shown
    stored = (tmp_path / "ledger.db").read_bytes() + (tmp_path / "ledger.db-wal").read_bytes()
    assert issued.id.encode() in stored
    assert secret.encode() not in stored


Spoil = Callable[[Accounts, str, str], Awaitable[str]]


async def malformed(accounts: Accounts, token_id: str, text: str) -> str:
    return text[:-1]


async def unknown(accounts: Accounts, token_id: str, text: str) -> str:
    return accounts.tokens._mint()[0].token


async def revoked(accounts: Accounts, token_id: str, text: str) -> str:
    await accounts.tokens.revoke(accounts.actor, None, token_id)
    return text


async def expired(accounts: Accounts, token_id: str, text: str) -> str:
    accounts.clock.now += DAY
    return text


async def another_secret(accounts: Accounts, token_id: str, text: str) -> str:
    """Well formed, with a known id and the checksum right: only the MAC can tell."""
    body = "xapp_" + token_id + "0" * 43
    return body + _base62(zlib.crc32(body.encode()), 6)


async def empty(accounts: Accounts, token_id: str, text: str) -> str:
    return ""


@pytest.mark.parametrize("spoil", [malformed, unknown, revoked, expired, another_secret, empty])
async def test_every_refusal_reads_the_same(accounts: Accounts, customer: CustomerId, spoil: Spoil) -> None:
    ends = int((accounts.clock.now + DAY) * 1000)
    issued = await accounts.tokens.add(accounts.actor, customer, expires_at=ends)
    assert accounts.tokens.verify(issued.token).customer == customer
    text = await spoil(accounts, issued.id, issued.token)
    for tokens in (accounts.tokens, await accounts.reloaded()):
        with pytest.raises(Unauthenticated) as refused:
            tokens.verify(text)
        assert str(refused.value) == "the token is missing or not valid"
        assert refused.value.__cause__ is None


async def test_a_token_ends_on_the_millisecond(accounts: Accounts, customer: CustomerId) -> None:
    start = accounts.clock.now
    issued = await accounts.tokens.add(accounts.actor, customer, expires_at=int(start * 1000) + 1500)
    accounts.clock.now = start + 1.499
    accounts.tokens.verify(issued.token)
    accounts.clock.now = start + 1.5
    with pytest.raises(Unauthenticated):
        accounts.tokens.verify(issued.token)


async def test_what_cannot_be_issued(accounts: Accounts, customer: CustomerId) -> None:
    with pytest.raises(NotFound):
        await accounts.tokens.add(accounts.actor, CustomerId("nobody"))
    with pytest.raises(InvalidInput, match="scopes"):
        await accounts.tokens.add(accounts.actor, customer, set())
    with pytest.raises(InvalidInput, match="expires_at"):
        await accounts.tokens.add(accounts.actor, customer, expires_at=int(accounts.clock.now * 1000))
    with pytest.raises(InvalidInput, match="ten years"):
        await accounts.tokens.add(accounts.actor, customer, expires_at=253_402_343_999_000)  # the year 10000
    assert await accounts.tokens.list() == []


def test_scopes_by_name() -> None:
    assert parse_scopes(["infer", "search:read", "infer"]) == {Scope.INFER, Scope.SEARCH_READ}
    with pytest.raises(InvalidInput, match=r"infer, search:read, .*admin$"):
        parse_scopes(["infer", "root"])


async def test_a_list_is_of_one_customer_and_tells_states(
    accounts: Accounts, customer: CustomerId, other: CustomerId
) -> None:
    first = await accounts.tokens.add(accounts.actor, customer)
    accounts.clock.now += 1
    ends = int(accounts.clock.now * 1000) + 1
    second = await accounts.tokens.add(accounts.actor, customer, {Scope.INFER}, ends)
    elsewhere = await accounts.tokens.add(accounts.actor, other)
    await accounts.tokens.revoke(accounts.actor, customer, first.id)
    listed = await accounts.tokens.list(customer)
    assert [(token.id, token.revoked_at is not None, token.expires_at) for token in listed] == [
        (first.id, True, None),
        (second.id, False, ends),
    ]
    assert {token.id for token in await accounts.tokens.list()} == {first.id, second.id, elsewhere.id}


async def test_another_customers_token_does_not_exist(
    accounts: Accounts, customer: CustomerId, other: CustomerId
) -> None:
    issued = await accounts.tokens.add(accounts.actor, customer)
    messages = set()
    for token_id in (issued.id, "absent"):
        for act in (accounts.tokens.revoke, accounts.tokens.rotate):
            with pytest.raises(NotFound) as refused:
                await act(accounts.actor, other, token_id)
            messages.add(str(refused.value))
    assert messages == {"no such token"}
    assert accounts.tokens.verify(issued.token).customer == customer


async def test_revoking_twice_is_recorded_once(accounts: Accounts, customer: CustomerId) -> None:
    issued = await accounts.tokens.add(accounts.actor, customer)
    await accounts.tokens.revoke(accounts.actor, customer, issued.id)
    (revoked_first,) = await accounts.tokens.list()
    accounts.clock.now += 60
    await accounts.tokens.revoke(accounts.actor, customer, issued.id)
    assert await accounts.tokens.list() == [revoked_first]
    assert [entry.event for entry in await accounts.log()].count(Event.TOKEN_REVOKE) == 1


async def test_a_token_knows_of_what_its_lists_name(accounts: Accounts, customer: CustomerId) -> None:
    scopes, searched, asked = {Scope.INFER, Scope.SEARCH_READ}, ["c-1", "c-2"], ["t-1"]
    issued = await accounts.tokens.add(accounts.actor, customer, scopes, collections=searched, tasks=asked)
    rotated = await accounts.tokens.rotate(accounts.actor, customer, issued.id)
    for tokens in (accounts.tokens, await accounts.reloaded()):
        for text in (issued.token, rotated.token):
            principal = tokens.verify(text)
            assert principal.collections == frozenset(searched)
            assert principal.tasks == frozenset(asked)
    _, added, _ = await accounts.log()
    assert added.details == {"scopes": sorted(scopes), "collections": searched, "tasks": asked}


async def test_a_list_leaves_no_scope_that_sees_beyond_it(accounts: Accounts, customer: CustomerId) -> None:
    add, actor = accounts.tokens.add, accounts.actor
    for scope in (Scope.ADMIN, Scope.TRAIN, Scope.DATASETS_READ, Scope.DATASETS_WRITE):
        with pytest.raises(InvalidInput, match=f"tasks: the scopes {scope}"):
            await add(actor, customer, {Scope.INFER, scope}, tasks=["t"])
    with pytest.raises(InvalidInput, match="collections: the scopes admin"):
        await add(actor, customer, ALL_SCOPES, collections=["c"])
    for bad in ([], ["two words"], [""], ["x" * 65], [str(n) for n in range(1001)]):
        with pytest.raises(InvalidInput, match="collections: 1 to 1000 ids"):
            await add(actor, customer, collections=bad)
    assert await accounts.tokens.list() == []
    search = await add(actor, customer, collections=["c"])
    asks = await add(actor, customer, tasks=["t"])
    listed = {token.id: token.scopes for token in await accounts.tokens.list()}
    assert listed[search.id] == ALL_SCOPES - {Scope.ADMIN}
    assert listed[asks.id] == {Scope.INFER, Scope.SEARCH_READ, Scope.SEARCH_WRITE}


async def test_the_last_use_is_shown_at_once_and_written_now_and_then(
    accounts: Accounts, customer: CustomerId
) -> None:
    issued = await accounts.tokens.add(accounts.actor, customer)
    idle = await accounts.tokens.add(accounts.actor, customer)

    async def shown(tokens: Tokens) -> dict[str, int | None]:
        return {token.id: token.last_used_at for token in await tokens.list(customer)}

    accounts.clock.now += 5
    used = int(accounts.clock.now * 1000)
    accounts.tokens.verify(issued.token)
    assert await shown(accounts.tokens) == {issued.id: used, idle.id: None}
    assert await shown(await accounts.reloaded()) == {issued.id: None, idle.id: None}
    await accounts.tokens.last_uses.write()
    assert await shown(accounts.tokens) == await shown(await accounts.reloaded())
    accounts.clock.now += 1
    with pytest.raises(Unauthenticated):
        accounts.tokens.verify(issued.token[:-1] + ("A" if issued.token[-1] != "A" else "B"))
    assert await shown(accounts.tokens) == {issued.id: used, idle.id: None}


async def test_the_last_uses_are_written_at_a_stop(accounts: Accounts, customer: CustomerId) -> None:
    issued = await accounts.tokens.add(accounts.actor, customer)
    async with Tokens(accounts.ledger, accounts.keys, accounts.customers, accounts.clock) as tokens:
        tokens.verify(issued.token)
    (token,) = await (await accounts.reloaded()).list()
    assert token.last_used_at == int(accounts.clock.now * 1000)


async def test_a_thousand_tokens_in_little_memory_and_nothing_for_the_collector(
    accounts: Accounts, customer: CustomerId
) -> None:
    rights = Rights(customer, ALL_SCOPES)
    live = LiveTokens[Rights]()
    gc.collect()
    before = len(gc.get_objects())
    tracemalloc.start()
    try:
        for number in range(1000):
            live.put(f"{number:010}", secrets.token_bytes(32), Rights(customer, frozenset(Scope)), None)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken / 1000 < 256
    assert len(gc.get_objects()) - before < 20
    assert live.rights("0000000000", bytes(32), 0) is None
    live.put("known", bytes(32), rights, 10)
    assert [live.rights("known", bytes(32), now) for now in (9, 10)] == [rights, None]
    live.end("known", 5)
    live.end("unknown", 5)
    assert live.rights("known", bytes(32), 5) is None


async def test_a_customer_has_so_many_that_are_not_revoked(
    accounts: Accounts, customer: CustomerId, other: CustomerId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuing, "MAX_TOKENS", 2)
    first = await accounts.tokens.add(accounts.actor, customer)
    second = await accounts.tokens.add(accounts.actor, customer, {Scope.INFER})
    with pytest.raises(CapacityExceeded, match="2 tokens"):
        await accounts.tokens.add(accounts.actor, customer, {Scope.INFER})
    with pytest.raises(CapacityExceeded, match="2 tokens"):
        await accounts.tokens.rotate(accounts.actor, customer, first.id)
    await accounts.tokens.add(accounts.actor, other)
    await accounts.customers.claim(accounts.actor, customer)
    await accounts.tokens.add(accounts.actor, customer, recovery=True)  # there is always a way back
    admin = Actor("token", first.id)
    for issued in (first, second):
        await accounts.tokens.revoke(admin, customer, issued.id)
    await accounts.tokens.add(admin, customer, {Scope.INFER})


async def test_a_customer_s_lists_are_so_long(
    accounts: Accounts, customer: CustomerId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuing, "MAX_LISTS", 100)
    listed = [f"{number:036}" for number in range(3)]
    await accounts.tokens.add(accounts.actor, customer, {Scope.INFER}, collections=listed)
    with pytest.raises(CapacityExceeded, match="lists"):
        await accounts.tokens.add(accounts.actor, customer, {Scope.INFER}, collections=listed)


async def test_rotation_overlaps(accounts: Accounts, customer: CustomerId) -> None:
    old = await accounts.tokens.add(accounts.actor, customer, {Scope.INFER})
    new = await accounts.tokens.rotate(accounts.actor, customer, old.id)
    for tokens in (accounts.tokens, await accounts.reloaded()):
        assert tokens.verify(old.token).scopes == tokens.verify(new.token).scopes == {Scope.INFER}
    accounts.clock.now += DAY
    for tokens in (accounts.tokens, await accounts.reloaded()):
        assert tokens.verify(new.token).token_id == new.id
        with pytest.raises(Unauthenticated):
            tokens.verify(old.token)


async def test_rotation_without_overlap_ends_the_old_token_at_once(
    accounts: Accounts, customer: CustomerId
) -> None:
    old = await accounts.tokens.add(accounts.actor, customer)
    await accounts.tokens.rotate(accounts.actor, None, old.id, 0)
    with pytest.raises(Unauthenticated):
        accounts.tokens.verify(old.token)


async def test_a_successor_lives_as_long_as_its_predecessor_was_meant_to(
    accounts: Accounts, customer: CustomerId
) -> None:
    start = int(accounts.clock.now * 1000)
    old = await accounts.tokens.add(accounts.actor, customer, expires_at=start + 10 * DAY * 1000)
    accounts.clock.now += 9.5 * DAY
    new = await accounts.tokens.rotate(accounts.actor, customer, old.id)
    ends = {token.id: token.expires_at for token in await accounts.tokens.list()}
    assert ends[old.id] == start + 10 * DAY * 1000  # the overlap never lengthens a life
    assert ends[new.id] == start + int(19.5 * DAY * 1000)


async def test_what_cannot_be_rotated(accounts: Accounts, customer: CustomerId) -> None:
    tokens, actor = accounts.tokens, accounts.actor
    rotated, dead = await tokens.add(actor, customer), await tokens.add(actor, customer)
    late = await tokens.add(actor, customer, expires_at=int(accounts.clock.now * 1000) + 1000)
    await tokens.rotate(actor, customer, rotated.id)
    await tokens.revoke(actor, customer, dead.id)
    accounts.clock.now += 1
    for token_id in (rotated.id, dead.id, late.id):
        with pytest.raises(Conflict):
            await tokens.rotate(actor, customer, token_id)
    for overlap in (-1, 30 * DAY + 1):
        with pytest.raises(InvalidInput, match="overlap_seconds"):
            await tokens.rotate(actor, customer, rotated.id, overlap)
    assert len(await tokens.list()) == 4


async def test_every_act_is_recorded_with_its_actor(accounts: Accounts, customer: CustomerId) -> None:
    by_token = Actor("token", "abc", "req-2")
    first = await accounts.tokens.add(accounts.actor, customer, {Scope.TRAIN, Scope.INFER})
    second = await accounts.tokens.rotate(by_token, customer, first.id, 60)
    await accounts.tokens.revoke(by_token, customer, second.id)
    _, added, rotated, ended = await accounts.log()
    assert (added.event, added.actor, added.subject) == (Event.TOKEN_ADD, accounts.actor, first.id)
    assert added.details == {"scopes": ["infer", "train"]}
    assert (rotated.event, rotated.actor, rotated.subject) == (Event.TOKEN_ROTATE, by_token, first.id)
    assert rotated.details == {"successor": second.id, "overlap_seconds": 60}
    assert (ended.event, ended.customer, ended.subject) == (Event.TOKEN_REVOKE, customer, second.id)


def test_operators_may_everything_and_are_no_customer() -> None:
    operator = operator_principal(1000)
    assert (operator.customer, operator.scopes, operator.operator) == (None, ALL_SCOPES, True)
    assert operator.actor("req") == Actor("operator", "1000", "req")


async def test_a_token_acts_under_its_public_id(accounts: Accounts, customer: CustomerId) -> None:
    issued = await accounts.tokens.add(accounts.actor, customer)
    assert accounts.tokens.verify(issued.token).actor() == Actor("token", issued.id, None)
    assert issued.token.startswith(f"xapp_{issued.id}")


@pytest.mark.parametrize("how", ["revoked", "rotated"])
async def test_a_row_that_was_put_back_brings_no_revoked_token_back(
    accounts: Accounts, customer: CustomerId, how: str
) -> None:
    """As a whole, and so with the MAC that it had."""
    ended, other = [await accounts.tokens.add(accounts.actor, customer, {Scope.INFER}) for _ in range(2)]
    query = "SELECT revoked_at, row_mac, id FROM tokens"
    older = await accounts.ledger.read(lambda connection: connection.execute(query).fetchall())
    if how == "revoked":
        await accounts.tokens.revoke(accounts.actor, customer, ended.id)
    else:
        await accounts.tokens.rotate(accounts.actor, customer, ended.id, overlap_seconds=0)
    await accounts.tokens.rotate(accounts.actor, customer, other.id, overlap_seconds=60)
    await accounts.ledger.write(
        lambda connection: connection.executemany(
            "UPDATE tokens SET revoked_at = ?, row_mac = ? WHERE id = ? AND revoked_at IS NOT NULL", older
        )
    )
    tokens = await accounts.reloaded()
    assert tokens.damaged == []
    with pytest.raises(Unauthenticated):
        tokens.verify(ended.token)
    assert tokens.verify(other.token).token_id == other.id, "one that was rotated with an overlap goes on"
    listed = {token.id: token.revoked_at for token in await tokens.list(customer)}
    assert listed[ended.id] == int(accounts.clock.now * 1000)
    assert listed[other.id] is None
    with pytest.raises(Conflict, match="revoked or expired"):
        await tokens.rotate(accounts.actor, customer, ended.id)
