"""An audit log on a real ledger with its published tree, and how somebody lays hands on it."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.transparency.tree import AuditTree
from appliance.ledger import Connection, Ledger
from appliance.metrics import Registry
from appliance.vault import Keyring, open_keyring

ACTOR = Actor("operator", "0", "a-request")
ROOT = bytes(range(32))
NOW_MS = 1_800_000_000_000
CUSTOMERS = ("one", "another", None)


@dataclass(frozen=True)
class Log:
    state: Path
    ledger: Ledger
    keyring: Keyring
    tree: AuditTree

    async def add(self, count: int = 1, *, event: Event = Event.LABEL_ADD, time: int = NOW_MS) -> None:
        """So many entries in one transaction, of several customers in turn."""

        def act(connection: Connection) -> None:
            for number in range(count):
                customer = CUSTOMERS[number % len(CUSTOMERS)]
                record(connection, time, ACTOR, event, customer, f"subject-{number}", {"n": number})

        await self.ledger.write(act)


@asynccontextmanager
async def opened(state: Path, root: bytes = ROOT) -> AsyncIterator[Log]:
    """Open ledger and tree of a folder; entering a second time is a restart."""
    await asyncio.to_thread(state.mkdir, exist_ok=True)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        ledger = await enter(Ledger(state, Registry()))
        keyring = await open_keyring(state, ledger, bytearray(root))
        stack.callback(keyring.wipe)
        yield Log(state, ledger, keyring, await enter(AuditTree(ledger, keyring.service, state)))


async def published(state: Path, *sizes: int) -> None:
    """A log that had a checkpoint of each of these sizes, closed."""
    async with opened(state) as log:
        before = 0
        for size in sizes:
            await log.add(size - before)
            await log.tree.publish()
            before = size


@contextmanager
def unguarded(state: Path) -> Iterator[Connection]:
    """A closed ledger as somebody has it who can write its file: its schema is as before in the end."""
    connection = apsw.Connection(str(state / "ledger.db"))
    try:
        query = "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' AND instr(name, '_never_')"
        guards = connection.execute(query).fetchall()
        for name, _ in guards:
            connection.execute(f"DROP TRIGGER {name}")
        yield connection
        for _, sql in guards:
            connection.execute(str(sql))
    finally:
        connection.close()


def edit(state: Path, *statements: str) -> None:
    """Change the rows of a closed ledger."""
    with unguarded(state) as connection:
        for statement in statements:
            connection.execute(statement)


def files(state: Path) -> dict[str, bytes]:
    """The published log, by paths."""
    folder = state / "audit"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copy(state: Path, name: str) -> Path:
    """Another folder with the same state."""
    target = state.with_name(name)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(state, target)
    return target
