"""A state folder's keyring: made once, kept with its ledger, never silently replaced."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from appliance import metrics
from appliance.errors import KeyringInvalid
from appliance.ledger import Ledger
from appliance.vault import Keyring, Keys, create_root, open_keyring

ROOT = create_root()


@asynccontextmanager
async def opened(state: Path, root: bytes = ROOT) -> AsyncIterator[Keyring]:
    async with Ledger(state, metrics.create()) as ledger:
        yield await open_keyring(state, ledger, bytearray(root))


async def test_it_is_made_once_and_found_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as first:
        tokens = first.service.subkey("tokens")
    async with opened(tmp_path) as again:
        assert (again.id, again.service.subkey("tokens")) == (first.id, tokens)
    assert tokens != Keys(ROOT).subkey("tokens")


async def test_a_missing_keyring_is_never_replaced(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    (tmp_path / "keyring").unlink()
    with pytest.raises(KeyringInvalid, match=r"missing.*restore it from its backup"):
        async with opened(tmp_path):
            pass
    assert not (tmp_path / "keyring").exists()


async def test_another_ledgers_keyring_is_refused(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        async with opened(tmp_path / name):
            pass
    (tmp_path / "one" / "keyring").write_bytes((tmp_path / "other" / "keyring").read_bytes())
    with pytest.raises(KeyringInvalid, match="another ledger"):
        async with opened(tmp_path / "one"):
            pass


async def test_another_root_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    with pytest.raises(KeyringInvalid, match="another root key"):
        async with opened(tmp_path, create_root()):
            pass


async def test_a_start_that_died_between_the_two_is_finished(tmp_path: Path) -> None:
    identity = Keyring.create(tmp_path / "keyring", bytes(ROOT)).id
    async with opened(tmp_path) as keyring:
        assert keyring.id == identity


async def test_what_a_crash_left_of_a_change_is_gone_with_the_keys_in_it(tmp_path: Path) -> None:
    """A process that dies before the rename leaves a whole keyring behind, which the root opens."""
    customer, container = uuid.uuid4(), uuid.uuid4()
    async with opened(tmp_path) as keyring:
        keyring.add(customer, container, "dataset")
    draft = tmp_path / ".keyring.0123456789ab.draft"
    draft.write_bytes((tmp_path / "keyring").read_bytes())
    (tmp_path / ".keyring-of-mine.draft").write_bytes(b"")
    async with opened(tmp_path) as keyring:
        assert not draft.exists()
        assert keyring.container(customer, container).generation == 1
    assert (tmp_path / ".keyring-of-mine.draft").exists()


async def test_the_root_is_wiped_once_the_keyring_is_open(tmp_path: Path) -> None:
    async with Ledger(tmp_path, metrics.create()) as ledger:
        for _ in range(2):
            root = bytearray(ROOT)
            await open_keyring(tmp_path, ledger, root)
            assert root == bytes(32)


async def test_tokens_from_before_there_was_a_keyring_go_on(tmp_path: Path) -> None:
    async with Ledger(tmp_path, metrics.create()) as ledger:

        def earlier(connection: object) -> None:
            connection.execute("INSERT INTO customers (id, name, created_at) VALUES ('c', 'c', 0)")  # type: ignore[attr-defined]
            connection.execute(  # type: ignore[attr-defined]
                "INSERT INTO tokens (id, customer, mac, scopes, created_at) VALUES ('t', 'c', ?, '', 0)",
                (bytes(32),),
            )

        await ledger.write(earlier)
        keyring = await open_keyring(tmp_path, ledger, bytearray(ROOT))
        assert keyring.service.subkey("tokens") == Keys(ROOT).subkey("tokens")
