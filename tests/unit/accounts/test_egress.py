"""Connections in the audit log: the first at once, a flood as one number a minute."""

from collections.abc import AsyncIterator

import pytest

from appliance.accounts.audit import Event
from appliance.accounts.egress import SECONDS, Egress
from appliance.errors import InvalidInput, StorageFailed
from appliance.metrics import Registry
from appliance.outbound import UNDECLARED, Outbound
from tests.unit.accounts.conftest import Accounts, Clock


@pytest.fixture
async def gate() -> AsyncIterator[Outbound]:
    async with Outbound(None, Registry()) as gate:
        yield gate


def attempt(gate: Outbound, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(InvalidInput):
            gate.check("http://169.254.169.254/", "images")


async def rows(accounts: Accounts) -> list[tuple[str, str | None, object]]:
    assert all(row.actor.id == "outbound" and row.customer is None for row in await accounts.log())
    return [(row.event, row.subject, row.details["connections"]) for row in await accounts.log()]


async def test_a_flood_is_one_row_a_minute(accounts: Accounts, gate: Outbound) -> None:
    seconds = Clock(0.0)
    egress = Egress(accounts.ledger, gate, accounts.clock, seconds)
    assert await egress.write() is None
    attempt(gate)
    await egress.write()
    assert await rows(accounts) == [(Event.OUTBOUND_REFUSE, UNDECLARED, 1)]
    attempt(gate, 5000)
    seconds.now = SECONDS - 1
    assert await egress.write() == 1
    assert len(await rows(accounts)) == 1
    seconds.now = SECONDS
    assert await egress.write() is None
    assert await rows(accounts) == [
        (Event.OUTBOUND_REFUSE, UNDECLARED, 1),
        (Event.OUTBOUND_REFUSE, UNDECLARED, 5000),
    ]
    seconds.now = 10 * SECONDS
    assert await egress.write() is None
    assert len(await rows(accounts)) == 2


async def test_it_follows_by_itself_and_writes_the_rest_at_its_end(
    accounts: Accounts, gate: Outbound
) -> None:
    async with Egress(accounts.ledger, gate, accounts.clock, Clock(0.0)):
        attempt(gate)
        while not await rows(accounts):
            pass
        attempt(gate, 7)
    assert [count for _, _, count in await rows(accounts)] == [1, 7]


async def test_what_a_ledger_does_not_take_is_written_later(
    accounts: Accounts, gate: Outbound, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_: object) -> None:
        raise StorageFailed("ledger.db: disk I/O error")

    egress = Egress(accounts.ledger, gate, accounts.clock, Clock(0.0))
    attempt(gate, 3)
    with monkeypatch.context() as broken:
        broken.setattr(accounts.ledger, "write", fails)
        assert await egress.write() == SECONDS
    assert await egress.write() is None
    assert [count for _, _, count in await rows(accounts)] == [3]
