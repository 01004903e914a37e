"""What was erased is gone: from every byte of the volume, and from what is restored from older backups."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import apsw
import pytest

from appliance.accounts.certificates import verified
from appliance.accounts.customers import CustomerId
from appliance.asynchronous.requests import State
from appliance.errors import Unauthenticated
from appliance.vault import Keyring
from tests.backing import Shelf, put_back
from tests.erasing import OPERATOR, TOKEN, Everything, Held, everything, fill
from tests.plaintext import Plaintext
from tests.storing import ROOT

SEALED = (
    ("datasets", "name", "customer = :id"),
    ("collections", "name", "customer = :id"),
    ("aliases", "name", "customer = :id"),
    ("requests", "response", "customer = :id"),
    ("requests", "webhook", "customer = :id"),
    ("search_replies", "reply", "customer = :id"),
    ("images", "meta_data", "dataset IN (SELECT number FROM datasets WHERE customer = :id)"),
    ("labels", "words", "dataset IN (SELECT number FROM datasets WHERE customer = :id)"),
    ("objects", "words", "dataset IN (SELECT number FROM datasets WHERE customer = :id)"),
    ("records", "words", "collection IN (SELECT number FROM collections WHERE customer = :id)"),
    ("frames", "content", "collection IN (SELECT number FROM collections WHERE customer = :id)"),
    ("feeds", "source", "collection IN (SELECT number FROM collections WHERE customer = :id)"),
)


@dataclass
class Traces:
    """What must be nowhere: what the customer wrote and sent, its keys as they rest, what they sealed."""

    plain: Plaintext
    keys: Plaintext
    sealed: Plaintext


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Everything]:
    state = tmp_path / "state"
    state.mkdir()
    async with everything(state) as parts:
        yield parts


def traces(state: Path, held: Held, keyring: Keyring) -> Traces:
    found = Traces(Plaintext(), Plaintext(), Plaintext())
    for word in held.words:
        found.plain.add_word(word)
    for image in held.images:
        found.plain.add(image)
    for wrapped in wrapped_keys(keyring, held.id):
        found.keys.add(wrapped)
    with closing(apsw.Connection(str(state / "ledger.db"), flags=apsw.SQLITE_OPEN_READONLY)) as ledger:
        for table, column, condition in SEALED:
            blobs = ledger.execute(
                f"SELECT {column} FROM {table} WHERE {column} IS NOT NULL AND {condition}", {"id": held.id}
            ).fetchall()
            assert blobs, table
            for (blob,) in blobs:
                assert isinstance(blob, bytes)
                found.sealed.add(blob)
    for path in (state / "images").glob("*/*"):
        if UUID(held.id).bytes in path.read_bytes()[:64]:
            found.sealed.add(path.read_bytes()[64:])
    return found


def wrapped_keys(keyring: Keyring, customer: CustomerId) -> list[bytes]:
    """The keys of a customer as the keyring's file has them."""
    held = keyring._now[0].customers[UUID(customer).bytes]
    return [held.key.key, *(key.key for container in held.containers.values() for key in container.keys)]


def places(state: Path, wanted: Plaintext) -> dict[str, int]:
    """In which files of a folder how many pieces are found."""
    found = {path: len(wanted.places(path.read_bytes())) for path in state.rglob("*") if path.is_file()}
    return {path.name: count for path, count in found.items() if count}


async def test_no_byte_of_an_erased_customer_is_on_the_volume(parts: Everything) -> None:
    state = parts.stand.state
    bob = await fill(parts)
    alice = await fill(parts, records=600, images=8)
    left, others = (traces(state, held, parts.stand.keyring) for held in (alice, bob))
    for wanted in (left.plain, left.keys, left.sealed):
        assert places(state, wanted) != {}, "it was not found while it was there"
    await parts.erasure.erase(OPERATOR, alice.id, alice.name)
    assert places(state, left.plain) == {}
    assert places(state, left.keys) == {}
    # Where SQLite builds a page anew, fragments of what nothing opens any more stay between its cells.
    fragments = places(state, left.sealed)
    assert set(fragments) <= {"ledger.db"}
    assert sum(fragments.values()) < len(left.sealed) / 20
    for wanted in (others.keys, others.sealed):
        assert places(state, wanted) != {}


async def test_datasets_and_collections_that_are_erased_are_gone_as_well(parts: Everything) -> None:
    one, state = parts.stand, parts.stand.state
    alice = await fill(parts, records=300)
    left, keys = traces(state, alice, one.keyring), Plaintext()
    containers = one.keyring._now[0].customers[UUID(alice.id).bytes].containers
    for identity, container in containers.items():
        if identity != UUID(alice.id).bytes:  # under which its requests rest
            for key in container.keys:
                keys.add(key.key)
    assert places(state, keys) != {}
    for dataset in await one.datasets.list(alice.id):
        await one.datasets.erase(TOKEN, dataset)
    await parts.collections.remove(TOKEN, alice.id, alice.collection)
    for alias in parts.collections.aliases.list(alice.id):
        await parts.collections.aliases.remove(TOKEN, alice.id, alias.name)
    await asyncio.gather(*one.datasets._erasing)
    while not await one.ledger.empty_log():
        pass
    assert places(state, keys) == {}
    assert sum(places(state, left.sealed).values()) < len(left.sealed) / 20


async def test_a_backup_of_before_does_not_bring_it_back(parts: Everything, tmp_path: Path) -> None:
    """With the keyring and the ledger of before, and the newest tombstones: it is erased once more."""
    shelf = Shelf.under(tmp_path)
    bob, alice = await fill(parts), await fill(parts)
    before = await shelf.take(parts.stand)
    left = traces(parts.stand.state, alice, parts.stand.keyring)
    await parts.erasure.erase(OPERATOR, alice.id, alice.name)
    newest = await shelf.take(parts.stand)
    for name, keyring in (("older keyring", before.keyring), ("newest keyring", newest.keyring)):
        restored = await put_back(before.folder, keyring, tmp_path / name, newer=newest.tombstones)
        assert restored.verified.ended["customers"] == 1
        assert places(tmp_path / name, left.keys) == {}
        async with everything(tmp_path / name) as again:
            assert await again.names() == [bob.name]
            await _ended(again)
            assert await again.rows(alice.id) == {}
            with pytest.raises(Unauthenticated):
                again.tokens.verify(alice.token)
            (found,) = [one for one in await again.certificates.list(alice.id) if one.kind == "customer"]
            verified(again.certificates.envelope(found), again.certificates.public_key)
        assert places(tmp_path / name, left.plain) == {}
    # The newest backup never had it.
    await put_back(newest.folder, newest.keyring, tmp_path / "after", newer=newest.tombstones)
    assert places(tmp_path / "after", left.plain) == {}
    async with everything(tmp_path / "after") as again:
        assert again.erasure._tasks == {}
        assert [one.kind for one in await again.certificates.list(alice.id)][-1] == "customer"


async def test_no_key_that_is_left_opens_it_in_an_older_backup(parts: Everything, tmp_path: Path) -> None:
    """What the keyring of now opens of a backup of then: everybody's but that customer's."""
    shelf = Shelf.under(tmp_path)
    bob, alice = await fill(parts), await fill(parts)
    before = await shelf.take(parts.stand)
    await parts.erasure.erase(OPERATOR, alice.id, alice.name)
    newest = await shelf.take(parts.stand)
    keyring = Keyring.open(newest.keyring, bytearray(ROOT))
    held = {customer for customer, _, _ in keyring.containers()}
    keyring.wipe()
    assert (UUID(bob.id) in held, UUID(alice.id) in held) == (True, False)
    # Also where nobody hands in the tombstones.
    await put_back(before.folder, newest.keyring, tmp_path / "without")
    words = Plaintext()
    for word in alice.words:
        if word != alice.name:
            words.add_word(word)
    assert places(tmp_path / "without", words) == {}
    async with everything(tmp_path / "without") as again:
        assert await again.stand.datasets.list(alice.id) == []
        assert await again.collections.list(alice.id) == []
        ((lost,), _) = await again.requests.list(alice.id, 1)
        assert (lost.state, b"damaged" in (lost.response or b"")) == (State.FAILED, True)
        ((kept,), _) = await again.requests.list(bob.id, 1)
        assert kept.state is State.DONE
        assert {one.request.customer: one.webhook is None for one in await again.requests.due(9)} == {
            alice.id: True,
            bob.id: False,
        }


async def _ended(parts: Everything) -> None:
    await asyncio.gather(*parts.erasure._tasks.values())
