"""The erasure of a customer: nothing of it is left but ids, and nothing of anybody else is touched."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest

from appliance.accounts.audit import Actor, Event, entries
from appliance.accounts.certificates import Certificate, verified
from appliance.accounts.customers import CustomerId
from appliance.accounts.quotas import Quotas, defaults
from appliance.accounts.seals import Seals
from appliance.config import Config
from appliance.errors import Forbidden, InvalidInput, NotFound, StorageFailed, Unauthenticated
from tests.erasing import DIM, OPERATOR, TOKEN, Everything, Held, everything, fill
from tests.ledgers import log_is_empty
from tests.storing import read


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Everything]:
    async with everything(tmp_path) as parts:
        yield parts


async def intact(parts: Everything, held: Held) -> bool:
    """Whether a customer has all that it had."""
    one, images = parts.stand, []
    for dataset in await one.datasets.list(held.id):
        images += [await read(one, image) for image in await one.store.list(dataset)]
    opened = await parts.collections.open(held.id, held.collection)
    assert parts.tokens.verify(held.token).customer == held.id
    return sorted(images) == sorted(held.images) and opened.count > 0


def held_up(parts: Everything, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """Erasures wait when keys are destroyed, which the first event tells, until the second one."""
    keyless, gate = asyncio.Event(), asyncio.Event()
    erase_all = parts.collections.erase_all

    async def waiting(actor: Actor, customer: CustomerId) -> None:
        keyless.set()
        await gate.wait()
        await erase_all(actor, customer)

    monkeypatch.setattr(parts.collections, "erase_all", waiting)
    return keyless, gate


async def certificates(parts: Everything, customer: CustomerId) -> list[Certificate]:
    return await parts.certificates.list(customer)


async def test_nothing_is_left_but_ids_and_nobody_else_is_touched(parts: Everything, tmp_path: Path) -> None:
    bob = await fill(parts)
    alice = await fill(parts, records=600)
    assert (
        set(await parts.rows(alice.id))
        == set(await parts.rows(bob.id))
        >= {*("agreements", "aliases", "collections", "datasets", "requests", "search_replies", "tokens")}
    )
    made = await parts.erasure.erase(OPERATOR, alice.id, alice.name)
    assert await parts.rows(alice.id) == {}
    assert log_is_empty(tmp_path)
    held = {customer for customer, _, _ in parts.stand.keyring.containers()}
    assert UUID(alice.id) not in held
    assert UUID(alice.id) not in {one.customer for one in parts.stand.keyring.generations()}
    assert await parts.names() == [bob.name]
    assert await intact(parts, bob)
    assert made.kind == "customer"
    with pytest.raises(NotFound):
        await parts.erasure.erase(OPERATOR, alice.id, alice.name)


async def test_its_certificate_says_what_there_was(parts: Everything) -> None:
    alice = await fill(parts)
    made = await parts.erasure.erase(OPERATOR, alice.id, alice.name)
    statement = verified(parts.certificates.envelope(made), parts.certificates.public_key)
    assert (statement.subject, statement.keys) == (alice.id, (alice.id,))
    assert statement.counts == {
        "datasets": 2,
        "images": 6,
        "collections": 1,
        "records": 20,
        "aliases": 1,
        "requests": 1,
        "agreements": 1,
        "tokens": 2,
    }
    kinds = [one.kind for one in await certificates(parts, alice.id)]
    assert sorted(kinds) == ["collection", "customer", "dataset", "dataset"]
    assert kinds[-1] == "customer"


async def test_the_log_keeps_ids_and_counts(parts: Everything) -> None:
    alice = await fill(parts)
    await parts.erasure.erase(OPERATOR, alice.id, alice.name)
    log = await parts.stand.ledger.read(lambda connection: entries(connection, alice.id))
    (erased,) = [one for one in log if one.event is Event.CUSTOMER_ERASE]
    assert (erased.actor, erased.subject, erased.details["images"]) == (OPERATOR, alice.id, 6)
    assert [word for word in alice.words if word in str(log)] == []


async def test_the_name_is_to_be_said(parts: Everything) -> None:
    alice = await fill(parts)
    for name in ("", alice.name.upper(), alice.name[:-1], alice.id):
        with pytest.raises(InvalidInput, match="name"):
            await parts.erasure.erase(OPERATOR, alice.id, name)
    with pytest.raises(NotFound):
        await parts.erasure.erase(OPERATOR, CustomerId("nobody"), alice.name)
    assert await intact(parts, alice)


async def test_from_the_first_transaction_on_it_is_suspended_for_good(
    parts: Everything, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await fill(parts)
    keyless, gate = held_up(parts, monkeypatch)
    erasing = asyncio.ensure_future(parts.erasure.erase(OPERATOR, alice.id, alice.name))
    await keyless.wait()
    assert UUID(alice.id) not in {one.customer for one in parts.stand.keyring.generations()}
    with pytest.raises(Forbidden, match="suspended"):
        parts.tokens.verify(alice.token)
    for refused in (
        parts.stand.customers.resume(OPERATOR, alice.id),
        parts.tokens.add(OPERATOR, alice.id),
        parts.collections.add(OPERATOR, alice.id, "new", "test@1", DIM),
        parts.collections.get(alice.id, alice.collection),
        parts.stand.datasets.add(OPERATOR, alice.id, "new"),
    ):
        with pytest.raises(NotFound):
            await refused
    assert await parts.names() == []
    gate.set()
    await erasing
    # Nor is a key left that one of these had made.
    assert UUID(alice.id) not in {one.customer for one in parts.stand.keyring.generations()}
    with pytest.raises(Unauthenticated):
        parts.tokens.verify(alice.token)
    assert await parts.rows(alice.id) == {}


async def test_what_was_under_way_leaves_no_key_and_no_limit(tmp_path: Path) -> None:
    """Neither at once nor after a restart: whoever still asks is told that there is no such customer."""
    async with everything(tmp_path) as parts:
        alice = await fill(parts)
        await parts.erasure.erase(OPERATOR, alice.id, alice.name)
        await refused_and_keyless(parts, alice.id)
    async with everything(tmp_path) as parts:
        await refused_and_keyless(parts, alice.id)


async def refused_and_keyless(parts: Everything, customer: CustomerId) -> None:
    one = parts.stand
    async with Quotas(one.ledger, defaults(Config(profile="demo")), one.clock) as quotas:
        for refused in (
            one.datasets.add(OPERATOR, customer, "new"),
            one.datasets.default(customer),
            Seals(one.keyring).seal(customer, "reason", b"late", "id"),
            quotas.limit(OPERATOR, customer, {"images": 1}),
        ):
            with pytest.raises(NotFound):
                await refused
    assert UUID(customer) not in {held.customer for held in one.keyring.generations()}


async def test_a_key_that_an_older_version_left_goes_with_the_next_start(tmp_path: Path) -> None:
    async with everything(tmp_path) as parts:
        alice = await fill(parts)
        await parts.erasure.erase(OPERATOR, alice.id, alice.name)
        parts.stand.keyring._ended.clear()
        parts.stand.keyring.add(UUID(alice.id), UUID(alice.id), "document")
    async with everything(tmp_path) as parts:
        assert parts.stand.keyring.generations() == []


async def test_what_holds_it_up_is_told_and_the_next_call_goes_on(
    parts: Everything, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await fill(parts)

    async def offline(*_: object) -> None:
        raise StorageFailed("the volume is away")

    with monkeypatch.context() as away:
        away.setattr(parts.stand.files, "remove_container", offline)
        with pytest.raises(StorageFailed):
            await parts.erasure.erase(OPERATOR, alice.id, alice.name)
    assert parts.erasure.held_up == {alice.id}
    assert "datasets" in await parts.rows(alice.id)
    assert "customer" not in [one.kind for one in await certificates(parts, alice.id)]
    made = await parts.erasure.erase(OPERATOR, alice.id, "whatever")
    assert made.kind == "customer"
    assert parts.erasure.held_up == set()
    assert await parts.rows(alice.id) == {}


async def test_a_caller_who_goes_away_stops_nothing(
    parts: Everything, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await fill(parts, records=600)
    keyless, gate = held_up(parts, monkeypatch)
    erasing = asyncio.ensure_future(parts.erasure.erase(OPERATOR, alice.id, alice.name))
    await keyless.wait()
    erasing.cancel()
    await asyncio.gather(erasing, return_exceptions=True)
    gate.set()
    await asyncio.gather(*parts.erasure._tasks.values())
    assert await parts.rows(alice.id) == {}
    assert (await certificates(parts, alice.id))[-1].kind == "customer"


async def test_the_name_can_be_anothers_again(parts: Everything) -> None:
    alice = await fill(parts)
    await parts.erasure.erase(OPERATOR, alice.id, alice.name)
    again = await parts.stand.customers.add(OPERATOR, alice.name)
    assert again.id != alice.id
    assert await parts.names() == [alice.name]


async def test_each_kind_of_erasure_has_its_certificate(parts: Everything) -> None:
    alice, one = await fill(parts), parts.stand
    opened = await parts.collections.open(alice.id, alice.collection)
    known = [record.id for record in (await opened.all())[:3]]
    await opened.delete(TOKEN, [*known, known[0], "never was"])
    await opened.delete(TOKEN, ["never was"])
    named = next(dataset for dataset in await one.datasets.list(alice.id) if dataset.name is not None)
    images = await one.store.list(named)
    await one.store.delete_all(TOKEN, images[:2])
    await one.store.delete_all(TOKEN, images[:2])
    await parts.collections.empty(TOKEN, alice.id, alice.collection)
    await parts.collections.remove(TOKEN, alice.id, alice.collection)
    await one.datasets.erase(TOKEN, named)
    await asyncio.gather(*one.datasets._erasing)
    found = [
        verified(parts.certificates.envelope(one), parts.certificates.public_key)
        for one in await certificates(parts, alice.id)
    ]
    assert [(one.kind, one.subject, one.counts) for one in found] == [
        ("record", alice.collection, {"records": 3}),
        ("image", named.id, {"images": 2}),
        ("collection", alice.collection, {"records": 17}),
        ("collection", alice.collection, {"records": 0}),
        ("dataset", named.id, {"images": 1}),
    ]
    record, image, emptied, removed, dataset = found
    assert record.ids == tuple(parts.certificates.digest(alice.id, word.encode()) for word in known)
    assert image.ids == tuple(one.id for one in images[:2])
    assert emptied.keys == (alice.collection,)
    assert removed.keys != emptied.keys
    assert dataset.keys == (named.id,)
    about = await parts.certificates.list(alice.id, about=known[1])
    assert [one.id for one in about] == [record.id]
