"""The whole server goes: an orderly reboot, and the plug pulled during inserts."""

import pytest

from tests.e2e.client import Client, Load
from tests.e2e.guest import Guest
from tests.e2e.playbook import STATE

CONTROL = f"{STATE}/control"  # written last before a cut, and not flushed: its content must be gone


def test_rebooted_server_serves_again_without_hands(deployed: Guest, customer: Client) -> None:
    with Load(customer, "rebooted", writers=1) as load:
        load.wait(3)
    deployed.reboot()
    customer.wait_ready()
    customer.assert_stored(load.acknowledged)
    assert deployed.output("systemctl is-system-running --wait || systemctl --failed") == "running"


@pytest.mark.parametrize("cut", range(1, 6))
def test_power_cut_during_inserts_loses_nothing_acknowledged(
    deployed: Guest, customer: Client, cut: int
) -> None:
    with Load(customer, f"cut{cut}", writers=3) as load:
        load.wait(2 + cut)
        deployed.run(f"echo content >{CONTROL}")
        deployed.cut()
    deployed.boot()
    customer.wait_ready()
    customer.assert_stored(load.acknowledged)
    assert deployed.output(f"cat {CONTROL} 2>/dev/null | tr -d '\\0' | wc -c") == "0", "it was no power cut"
    deployed.run(f"rm -f {CONTROL}")
