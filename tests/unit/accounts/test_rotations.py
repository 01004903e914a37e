"""Rotations of keys: done, recorded with ids and numbers, and never with a key."""

import uuid
from pathlib import Path

import pytest

from appliance.accounts.audit import Event
from appliance.accounts.customers import CustomerId
from appliance.accounts.rotations import Rotations
from appliance.errors import Conflict, InvalidInput, NotFound, StorageFailed
from appliance.vault import Keyring, create_root
from tests.unit.accounts.conftest import Accounts


@pytest.fixture
def root() -> bytes:
    return create_root()


@pytest.fixture
def keyring(tmp_path: Path, root: bytes) -> Keyring:
    return Keyring.create(tmp_path / "keyring", root)


@pytest.fixture
def rotations(accounts: Accounts, keyring: Keyring) -> Rotations:
    return Rotations(accounts.ledger, keyring, accounts.customers, accounts.clock)


async def test_a_customers_keys(accounts: Accounts, keyring: Keyring, rotations: Rotations) -> None:
    customer = (await accounts.customers.add(accounts.actor, "Zoo")).id
    dataset = uuid.uuid4()
    keyring.add(uuid.UUID(customer), dataset, "dataset")
    await rotations.rotate_customer(accounts.actor, customer)
    await rotations.rotate_container(accounts.actor, customer, str(dataset))
    overview = await rotations.overview()
    assert (overview.number, overview.rotation) == (keyring.number, None)
    (held,) = overview.customers
    assert (held.customer, held.generation) == (uuid.UUID(customer), 2)
    assert held.containers == ((dataset, "dataset", (1, 2)),)
    _, first, second = await accounts.log()
    assert (first.event, first.customer, first.subject) == (Event.KEY_ROTATE, customer, customer)
    assert (second.event, second.customer, second.subject) == (Event.KEY_ROTATE, customer, str(dataset))
    assert first.details == {"key": "customer", "number": keyring.number - 1}
    assert second.details == {"key": "container", "number": keyring.number}


async def test_what_has_no_key_or_is_another_customers(
    accounts: Accounts, keyring: Keyring, rotations: Rotations
) -> None:
    one, other = [(await accounts.customers.add(accounts.actor, name)).id for name in ("Zoo", "Atelier")]
    dataset = uuid.uuid4()
    keyring.add(uuid.UUID(one), dataset, "dataset")
    before, number = await accounts.log(), keyring.number
    for customer in (other, CustomerId(str(uuid.uuid4())), CustomerId("nobody")):
        with pytest.raises(NotFound):
            await rotations.rotate_customer(accounts.actor, customer)
    for customer, container in ((other, str(dataset)), (one, str(uuid.uuid4())), (one, "a-dataset")):
        with pytest.raises(NotFound):
            await rotations.rotate_container(accounts.actor, customer, container)
    assert (await accounts.log(), keyring.number) == (before, number)


async def test_a_root_from_the_first_step_to_the_last(
    accounts: Accounts, keyring: Keyring, rotations: Rotations, tmp_path: Path
) -> None:
    assert not await rotations.retire_root(accounts.actor)
    new = create_root()
    await rotations.rotate_root(accounts.actor, new)
    await rotations.rotate_root(accounts.actor, new)
    assert rotations.rotation == "restart"
    with pytest.raises(Conflict, match="old root"):
        await rotations.retire_root(accounts.actor)
    reopened = Keyring.open(tmp_path / "keyring", new)
    restarted = Rotations(accounts.ledger, reopened, accounts.customers, accounts.clock)
    assert restarted.rotation == "retire"
    assert await restarted.retire_root(accounts.actor)
    assert not await restarted.retire_root(accounts.actor)
    log = await accounts.log()
    assert [(entry.event, entry.customer, entry.subject) for entry in log] == [
        (Event.KEY_ROTATE, None, None),
        (Event.KEY_RETIRE, None, None),
    ]
    assert [entry.details for entry in log] == [
        {"key": "root", "number": 2},
        {"key": "root", "number": 3},
    ]


@pytest.mark.parametrize("size", [0, 31, 33])
async def test_what_is_no_root_key(rotations: Rotations, accounts: Accounts, size: int) -> None:
    with pytest.raises(InvalidInput, match=f"32 bytes, not {size}"):
        await rotations.rotate_root(accounts.actor, bytes(size))


async def test_a_keyring_that_cannot_be_written_leaves_no_row(
    accounts: Accounts, rotations: Rotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise StorageFailed("no space left")

    monkeypatch.setattr("appliance.vault.keyring.write_atomically", refuse)
    with pytest.raises(StorageFailed):
        await rotations.rotate_root(accounts.actor, create_root())
    assert (await accounts.log(), rotations.rotation) == ([], None)
