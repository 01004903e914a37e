"""A customer that was erased stays so: whoever puts its rows back is found, and they go again."""

import asyncio
import shutil
from pathlib import Path
from uuid import UUID

import pytest

from appliance.accounts.audit import Event, entries
from appliance.accounts.transparency import verification
from appliance.accounts.transparency.tree import AuditTree
from appliance.errors import AuditBroken, Forbidden, NotFound, Unauthenticated
from tests.auditing import copy, edit
from tests.erasing import OPERATOR, Everything, Held, everything, fill

OLD_ROWS = (
    "ATTACH '{before}' AS before",
    "INSERT OR REPLACE INTO customers SELECT * FROM before.customers WHERE id = '{id}'",
    "INSERT INTO tokens SELECT * FROM before.tokens WHERE customer = '{id}'",
    "INSERT INTO agreements SELECT * FROM before.agreements WHERE customer = '{id}'",
    "INSERT INTO aliases SELECT * FROM before.aliases WHERE customer = '{id}'",
    "INSERT INTO collections SELECT * FROM before.collections WHERE customer = '{id}'",
    "DETACH before",
)
CHANGES = (
    OLD_ROWS,
    ("UPDATE customers SET erased_at = NULL, suspended_at = NULL WHERE id = '{id}'",),
    ("UPDATE customers SET name = '{name}' WHERE id = '{id}'",),
)
IDS = ("old rows", "marks taken", "name")


async def publish(parts: Everything, state: Path) -> None:
    async with AuditTree(parts.stand.ledger, parts.stand.keyring.service, state) as tree:
        await tree.publish()


async def lived(state: Path) -> Held:
    """A closed state whose Alice was erased; beside it the ledger as it was before."""
    async with everything(state) as parts:
        alice = await fill(parts)
    await asyncio.to_thread(shutil.copy, state / "ledger.db", state.with_name("before.db"))
    async with everything(state) as parts:
        await parts.erasure.erase(OPERATOR, alice.id, alice.name)
        await publish(parts, state)
    return alice


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Held]:
    state = tmp_path_factory.mktemp("erased") / "state"
    state.mkdir()
    return state, asyncio.run(lived(state))


def put_back(closed: tuple[Path, Held], *statements: str) -> Path:
    state, alice = closed
    changed = copy(state, "changed")
    known = {"before": state.with_name("before.db"), "id": alice.id, "name": alice.name}
    edit(changed, *(statement.format(**known) for statement in statements))
    return changed


@pytest.mark.parametrize("statements", CHANGES, ids=IDS)
def test_rows_that_are_back_are_found(closed: tuple[Path, Held], statements: tuple[str, ...]) -> None:
    assert verification.verify(closed[0]).remarks == []
    with pytest.raises(AuditBroken) as broken:
        verification.verify(put_back(closed, *statements))
    erased = f"it erased customer {closed[1].id}, and the row says otherwise: that was changed"
    assert [finding for finding in broken.value.findings if finding.endswith(erased)]


@pytest.mark.parametrize("statements", CHANGES, ids=IDS)
async def test_rows_that_are_back_are_nobodys_and_go_again(
    closed: tuple[Path, Held], statements: tuple[str, ...]
) -> None:
    state, alice = put_back(closed, *statements), closed[1]
    async with everything(state) as parts:
        with pytest.raises((Forbidden, Unauthenticated)):
            parts.tokens.verify(alice.token)
        assert await parts.names() == []
        for refused in (
            parts.stand.customers.get(alice.id),
            parts.stand.customers.resume(OPERATOR, alice.id),
            parts.tokens.add(OPERATOR, alice.id),
            parts.stand.datasets.add(OPERATOR, alice.id, "new"),
        ):
            with pytest.raises(NotFound):
                await refused
        await asyncio.gather(*parts.erasure._tasks.values())
        assert await parts.rows(alice.id) == {}
        assert UUID(alice.id) not in {one.customer for one in parts.stand.keyring.generations()}
        log = await parts.stand.ledger.read(lambda connection: entries(connection, alice.id))
        again = [entry for entry in log if entry.event is Event.CUSTOMER_ERASE]
        assert [entry.actor.kind for entry in again] == ["operator", "system"]
        await publish(parts, state)
    assert alice.name.encode() not in b"".join(path.read_bytes() for path in state.glob("ledger.db*"))
    assert verification.verify(state).remarks == [
        f"entry {again[-1].seq}: customer {alice.id} was erased again: its row had been put back"
    ]


async def test_an_erasure_that_nobody_has_touched_is_done_once(closed: tuple[Path, Held]) -> None:
    state, alice = copy(closed[0], "untouched"), closed[1]
    async with everything(state):
        pass
    async with everything(state) as parts:
        log = await parts.stand.ledger.read(lambda connection: entries(connection, alice.id))
    assert [entry.event for entry in log].count(Event.CUSTOMER_ERASE) == 1
