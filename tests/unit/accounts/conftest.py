"""Customers, tokens and agreements on a real ledger, with a clock that tests turn."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.accounts.agreements import Agreements
from appliance.accounts.audit import Actor, Entry, entries
from appliance.accounts.customers import Customers
from appliance.accounts.tokens import Tokens
from appliance.ledger import Ledger
from appliance.metrics import Registry
from appliance.vault import Keyring, Keys

ROOT = bytes(range(32))
OPERATOR = Actor("operator", "0", "req-1")


@dataclass
class Clock:
    """Unix seconds, as far as a test turned them."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Accounts:
    ledger: Ledger
    clock: Clock
    keys: Keys
    customers: Customers
    tokens: Tokens
    agreements: Agreements
    keyring: Keyring
    actor: Actor = OPERATOR

    async def reloaded(self) -> Tokens:
        """The tokens as a restart would load them."""
        return await Tokens(self.ledger, self.keys, self.customers, self.clock).__aenter__()

    async def log(self) -> list[Entry]:
        return await self.ledger.read(entries)


@pytest.fixture
async def accounts(tmp_path: Path) -> AsyncIterator[Accounts]:
    clock = Clock()
    keyring = Keyring.create(tmp_path / "keyring of accounts", bytearray(ROOT))
    keys = keyring.service
    async with (
        Ledger(tmp_path, Registry()) as ledger,
        Customers(ledger, clock) as customers,
        Tokens(ledger, keys, customers, clock) as tokens,
        Agreements(ledger, keyring, customers, clock) as agreements,
    ):
        yield Accounts(ledger, clock, keys, customers, tokens, agreements, keyring)


def resting(folder: Path) -> bytes:
    """All that the ledger has on the disk."""
    return b"".join(path.read_bytes() for path in folder.glob("ledger.db*"))
