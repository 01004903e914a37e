"""Rows of customers on a real appliance: what the log has told counts, and `audit verify` finds the rest."""

import shutil
from dataclasses import dataclass

import pytest

from demo.state import DemoState, StepFailed
from tests.auditing import edit
from tests.running import CopyState, RunningAppliance

LIST = "/appliance/v1/collections"


@dataclass(frozen=True)
class Lived:
    """A stopped appliance with a customer that is suspended, and one that was erased; its ledger of before is
    beside it. Their tokens by what became of them.
    """

    state: DemoState
    customers: dict[str, str]
    tokens: dict[str, str]


@pytest.fixture
def lived(copy_state: CopyState) -> Lived:
    state, customers, tokens = copy_state(), {}, {}
    for what in ("suspended", "erased"):
        customers[what] = state.ask("customer", "add", f"{what} gallery")["id"]
        tokens[what] = state.ask("token", "add", customers[what])["token"]
    shutil.copy(state.folder / "ledger.db", state.folder.with_name("before.db"))
    with RunningAppliance(state, state.port):
        state.ask("customer", "suspend", "suspended gallery")
        state.ask("customer", "erase", "erased gallery", "--yes", "erased gallery")
    return Lived(state, customers, tokens)


def test_old_rows_that_are_put_back_open_nothing(lived: Lived) -> None:
    state = lived.state
    state.ask("audit", "verify")
    rows = "SELECT * FROM before.{table} WHERE {column} IN ('" + "', '".join(lived.customers.values()) + "')"
    edit(
        state.folder,
        f"ATTACH '{state.folder.with_name('before.db')}' AS before",
        f"INSERT OR REPLACE INTO customers {rows.format(table='customers', column='id')}",
        f"INSERT OR REPLACE INTO tokens {rows.format(table='tokens', column='customer')}",
        "DETACH before",
    )
    with pytest.raises(StepFailed) as refused:
        state.ask("audit", "verify")
    for what, customer in lived.customers.items():
        assert f"it {what} customer {customer}, and the row says otherwise" in str(refused.value)

    with RunningAppliance(state, state.port) as appliance:
        for token in lived.tokens.values():
            headers = {"Authorization": f"Token {token}"}
            assert appliance.call("GET", LIST, headers=headers).status in {401, 403}
        (listed,) = [one for one in state.ask("customer", "list")["customers"] if one["name"] != "demo"]
        assert listed["id"] == lived.customers["suspended"]
        assert listed["suspended_at"] is not None
        state.ask("customer", "resume", "suspended gallery")
        headers = {"Authorization": f"Token {lived.tokens['suspended']}"}
        assert appliance.call("GET", LIST, headers=headers).status == 200
    state.ask("audit", "verify")
    assert b"erased gallery" not in (state.folder / "ledger.db").read_bytes()
