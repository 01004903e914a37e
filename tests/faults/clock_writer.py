"""Processes of a store with access grants that open one, and wait to be killed.

    python -m tests.faults.clock_writer

It is driven and speaks as `store_writer`; the mode is what the clock says, in unix seconds.
"""

import os
from pathlib import Path

from appliance.accounts.audit import Actor
from appliance.accounts.forward import ForwardTime, latest_time
from appliance.accounts.grants import Access, Grants
from tests.faults.store_writer import main, say
from tests.storing import Clock, Stand, stand

ADMIN = Actor("token", "aaaaaaaaaa", "req-1")


async def forward_time(one: Stand) -> ForwardTime:
    """As the daemon begins it."""
    now = one.clock()
    latest = await one.ledger.read(lambda connection: latest_time(connection, now))
    return ForwardTime(latest, one.clock, Clock(0.0))


async def child(state: Path, mode: str) -> None:
    async with stand(state, clock=Clock(float(mode)), monotonic=Clock(0.0)) as one:
        customer, time = await one.customer(), await forward_time(one)
        grants = Grants(one.ledger, one.keyring, one.customers, time.now, four_eyes=False)
        await one.customers.claim(ADMIN, customer)  # as the first call with a token does
        await grants.open(ADMIN, customer, Access("1001", 2, images=("an image",)), "as asked")
        await one.datasets.add(ADMIN, customer, f"at {mode}")
        say("ready", os.getpid())
        os.read(0, 1)


if __name__ == "__main__":
    main(child)
