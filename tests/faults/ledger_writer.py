"""A small process that writes to a ledger and says on stdout what was acknowledged. Run by the ledger tests.

    python -m tests.faults.ledger_writer FOLDER MODE COUNT

Each line is one JSON list: ["opened"], ["acknowledged", id], ["refused", id, reason], ["closed"],
["failed", reason]. An act inserts a customer and its audit row, `COUNT` of them for the modes that end.

concurrent    eight writers, until killed
premature     the control: as concurrent, but says "acknowledged" before it writes
sequential    one act after another
heavy         one act after another, each of about 50 pages
"""

import asyncio
import itertools
import json
import os
import sys
from pathlib import Path

from appliance.accounts.audit import Actor, Event, record
from appliance.errors import StorageFailed, VolumeFull
from appliance.ledger import Connection, Ledger
from appliance.metrics import Registry

WRITERS = 8
BURST = 200
ACTOR = Actor("system", "test")


def say(*words: str) -> None:
    os.write(1, json.dumps(words).encode() + b"\n")


async def insert(ledger: Ledger, name: str, padding: str = "") -> None:
    def act(connection: Connection) -> None:
        values = (name, name + padding)
        connection.execute("INSERT INTO customers (id, name, created_at) VALUES (?, ?, 0)", values)
        record(connection, 0, ACTOR, Event.CUSTOMER_ADD, name, name)

    await ledger.write(act)


async def concurrent(ledger: Ledger, writer: int) -> None:
    for number in itertools.count():
        name = f"{os.getpid()}-{writer}-{number}"
        await insert(ledger, name)
        say("acknowledged", name)


async def premature(ledger: Ledger, writer: int) -> None:
    for start in itertools.count(0, BURST):
        burst = [f"{os.getpid()}-{writer}-{start + number}" for number in range(BURST)]
        for name in burst:
            say("acknowledged", name)
        await asyncio.gather(*(insert(ledger, name) for name in burst))


async def sequential(ledger: Ledger, count: int, padding: str) -> None:
    for number in range(count):
        name = f"{os.getpid()}-{number}"
        try:
            await insert(ledger, name, padding)
        except (StorageFailed, VolumeFull) as error:
            say("refused", name, str(error))
        else:
            say("acknowledged", name)


async def main(folder: Path, mode: str, count: int) -> None:
    try:
        async with Ledger(folder, Registry()) as ledger:
            say("opened")
            match mode:
                case "concurrent":
                    await asyncio.gather(*(concurrent(ledger, writer) for writer in range(WRITERS)))
                case "premature":
                    await asyncio.gather(*(premature(ledger, writer) for writer in range(WRITERS)))
                case "sequential":
                    await sequential(ledger, count, "")
                case "heavy":
                    await sequential(ledger, count, "x" * 200_000)
                case _:
                    raise ValueError(mode)
        say("closed")
    except StorageFailed as error:
        say("failed", str(error))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
