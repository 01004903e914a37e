"""The machine while it runs: what is found stops storing at once, and is audited when it begins and ends."""

from pathlib import Path

import pytest

from appliance.accounts.audit import Event
from appliance.accounts.compliance import Compliance
from appliance.errors import ResidencyBroken, StorageFailed
from appliance.residency import Facts, Finding
from appliance.volume import VolumeFacts
from tests.unit.accounts.conftest import Accounts

FACTS = Facts(VolumeFacts(Path("/data"), "ext4", "luks", False, 1, 2, 3), (), 0)
SWAP = Finding("refuse", "swap", "/dev/sdb is plain")
TOLD = Finding("warn", "processor", "is not said")


class Machine:
    """What its rules find; a test changes it."""

    def __init__(self) -> None:
        self.found: list[Finding] = []

    def verify(self, _: Facts) -> list[Finding]:
        return self.found


async def told(accounts: Accounts) -> list[tuple[str, str | None]]:
    return [(row.event, row.subject) for row in await accounts.log()]


async def test_a_finding_stops_storing_and_is_audited_once_at_either_end(accounts: Accounts) -> None:
    machine = Machine()
    compliance = Compliance(machine.verify, accounts.ledger, accounts.clock)
    compliance.require()
    machine.found = [SWAP, Finding("refuse", "swap", "/dev/sdc is plain"), TOLD]
    for _ in range(3):
        assert compliance.judge(FACTS) == machine.found
        await compliance.record()
    with pytest.raises(ResidencyBroken, match="/dev/sdb is plain, /dev/sdc is plain"):
        compliance.require()
    assert await told(accounts) == [(Event.RESIDENCY_BREAK, "swap")]
    assert "/dev/sdc" in str((await accounts.log())[0].details["reason"])
    machine.found = [TOLD]
    for _ in range(3):
        compliance.judge(FACTS)
        await compliance.record()
    compliance.require()
    assert (compliance.facts, compliance.findings) == (FACTS, (TOLD,))
    assert await told(accounts) == [(Event.RESIDENCY_BREAK, "swap"), (Event.RESIDENCY_RESTORE, "swap")]


async def test_a_judgement_is_recorded_by_itself(accounts: Accounts) -> None:
    machine = Machine()
    async with Compliance(machine.verify, accounts.ledger, accounts.clock) as compliance:
        machine.found = [SWAP]
        compliance.judge(FACTS)
        while not await told(accounts):
            pass
    assert await told(accounts) == [(Event.RESIDENCY_BREAK, "swap")]


async def test_what_a_ledger_does_not_take_is_recorded_with_the_next_judgement(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_: object) -> None:
        raise StorageFailed("ledger.db: disk I/O error")

    machine = Machine()
    compliance = Compliance(machine.verify, accounts.ledger, accounts.clock)
    machine.found = [SWAP]
    compliance.judge(FACTS)
    with monkeypatch.context() as broken:
        broken.setattr(accounts.ledger, "write", fails)
        await compliance.record()
    with pytest.raises(ResidencyBroken):  # the image does not wait for the row
        compliance.require()
    compliance.judge(FACTS)
    await compliance.record()
    assert await told(accounts) == [(Event.RESIDENCY_BREAK, "swap")]
