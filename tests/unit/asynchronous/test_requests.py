"""The rows of asynchronous requests: across restarts, to the end of their time, sealed where it matters."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from appliance import vault
from appliance.accounts.audit import Actor
from appliance.accounts.customers import CustomerId, Customers
from appliance.accounts.forward import note_correction
from appliance.asynchronous.requests import LONGEST_PAUSE_SECONDS, LOST, Requests, State, Webhook
from appliance.errors import Conflict, NotFound, VolumeFull
from appliance.ledger import Connection, Ledger
from appliance.metrics import Registry

ACTOR = Actor("system", "test")
HOOK = Webhook("https://hooks.example/told", {"Authorization": "Bearer secret"})
KEEP = 1000.0


class Machine:
    """The ledger in a folder, opened again and again, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 1_800_000_000.0
        self.known = 0.0
        self._stack = AsyncExitStack()

    def believed(self) -> float:
        return self.known or self.now

    def rests_from(self) -> float:
        return self.believed()

    async def start(self) -> Requests:
        await self._stack.aclose()
        ledger = await self._stack.enter_async_context(Ledger(self.folder, Registry()))
        self.ledger = ledger
        self.customers = await self._stack.enter_async_context(Customers(ledger, lambda: self.now))
        self.keyring = await vault.open_keyring(self.folder, ledger, bytearray(range(32)))
        self._stack.callback(self.keyring.wipe)
        requests = Requests(ledger, self.keyring, lambda: self.now, KEEP)
        requests.go_by(self)
        return await self._stack.enter_async_context(requests)

    async def customer(self) -> CustomerId:
        return (await self.customers.add(ACTOR, "somebody")).id

    async def stop(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    await machine.stop()


async def test_what_had_not_ended_at_a_restart_has_failed_and_is_told(machine: Machine) -> None:
    requests = await machine.start()
    customer = await machine.customer()
    waiting, _ = await requests.add(ACTOR, customer, "x", webhook=HOOK)
    running, _ = await requests.add(ACTOR, customer, "x")
    done, _ = await requests.add(ACTOR, customer, "x")
    await requests.move(running.id, State.PROCESSING)
    await requests.finish(done.id, State.DONE, b'{"records":[]}')
    requests = await machine.start()
    for lost in (waiting, running):
        found = await requests.get(customer, lost.id)
        assert found.state is State.FAILED
        assert LOST.encode() in (found.response or b"")
    assert (await requests.get(customer, done.id)).response == b'{"records":[]}'
    (due,) = await requests.due(9)
    assert (due.request.id, due.webhook, due.attempts) == (waiting.id, HOOK, 1)


async def test_on_a_full_volume_lost_requests_end_with_the_next_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = await machine.start()
    customer = await machine.customer()
    lost, _ = await requests.add(ACTOR, customer, "x")

    async def refused(*_: object, **__: object) -> None:
        raise VolumeFull("its volume is full")

    with monkeypatch.context() as full:
        full.setattr(Ledger, "write", refused)
        requests = await machine.start()
        assert (await requests.get(customer, lost.id)).state is State.CREATED
        with pytest.raises(VolumeFull):
            await requests.add(ACTOR, customer, "x")
    for _ in range(2):
        one, _ = await requests.add(ACTOR, customer, "x")
        assert (await requests.get(customer, lost.id)).state is State.FAILED
        assert (await requests.get(customer, one.id)).state is State.CREATED


async def test_an_ended_request_ends_no_second_time(machine: Machine) -> None:
    requests = await machine.start()
    customer = await machine.customer()
    request, _ = await requests.add(ACTOR, customer, "x")
    await requests.cancel(ACTOR, customer, request.id)
    await requests.move(request.id, State.PROCESSING)
    await requests.finish(request.id, State.DONE, b"{}")
    found = await requests.get(customer, request.id)
    assert (found.state, found.response) == (State.CANCELLED, None)


async def test_what_was_lost_is_sent_again_under_its_key(machine: Machine) -> None:
    """Its images are gone and nobody has judged them; what was judged is answered again."""
    requests = await machine.start()
    customer = await machine.customer()
    lost, _ = await requests.add(ACTOR, customer, "x", key="lost", digest=b"d")
    judged, _ = await requests.add(ACTOR, customer, "x", key="judged", digest=b"d")
    await requests.finish(judged.id, State.FAILED, b"{}")
    requests = await machine.start()
    with pytest.raises(Conflict, match="another request"):
        await requests.add(ACTOR, customer, "x", key="lost", digest=b"other")
    again, new = await requests.add(ACTOR, customer, "x", key="lost", digest=b"d")
    assert new
    assert (again.state, again.id != lost.id) == (State.CREATED, True)
    assert await requests.add(ACTOR, customer, "x", key="lost", digest=b"d") == (again, False)
    assert (await requests.get(customer, lost.id)).state is State.FAILED
    same, new = await requests.add(ACTOR, customer, "x", key="judged", digest=b"d")
    assert (same.id, same.state, new) == (judged.id, State.FAILED, False)


async def test_a_request_is_forgotten_when_its_time_has_passed(machine: Machine) -> None:
    requests = await machine.start()
    customer = await machine.customer()
    request, _ = await requests.add(ACTOR, customer, "x", key="k", digest=b"d")
    machine.now += 10 * KEEP
    assert (await requests.get(customer, request.id)).state is State.CREATED, "it has not ended yet"
    await requests.finish(request.id, State.DONE, b"{}")
    machine.now += KEEP - 1
    assert (await requests.get(customer, request.id)).state is State.DONE
    machine.now += 1
    with pytest.raises(NotFound):
        await requests.get(customer, request.id)
    assert await requests.list(customer, 1) == ([], 0)
    another, new = await requests.add(ACTOR, customer, "x", key="k", digest=b"other")
    assert new
    assert another.id != request.id
    rows = await machine.ledger.read(
        lambda connection: connection.execute("SELECT id FROM requests").fetchall()
    )
    assert rows == [(another.id,)], "the row itself is gone"


async def test_what_a_caller_sent_and_was_answered_rests_sealed(machine: Machine) -> None:
    requests = await machine.start()
    customer = await machine.customer()
    request, _ = await requests.add(ACTOR, customer, "x", key="order of a patient", digest=b"of its content")
    answer = b'{"records":[{"_id":"patient 7","diagnosis":"a secret"}]}'
    await requests.finish(request.id, State.DONE, answer)
    await machine.stop()
    files = b"".join(path.read_bytes() for path in machine.folder.iterdir() if path.is_file())
    for written in (b"patient 7", b"a secret", b"order of a patient", b"of its content"):
        assert written not in files
    requests = await machine.start()
    assert (await requests.get(customer, request.id)).response == answer
    assert [one.response for one in (await requests.list(customer, 1))[0]] == [answer]
    again, new = await requests.add(ACTOR, customer, "x", key="order of a patient", digest=b"of its content")
    assert (again.id, again.response, new) == (request.id, answer, False)


async def test_without_the_customers_key_no_response_and_no_webhook_opens(machine: Machine) -> None:
    requests = await machine.start()
    customer, other = await machine.customer(), (await machine.customers.add(ACTOR, "another")).id
    gone, _ = await requests.add(ACTOR, customer, "x", webhook=HOOK)
    kept, _ = await requests.add(ACTOR, other, "x", webhook=HOOK)
    running, _ = await requests.add(ACTOR, customer, "x")
    for request in (gone, kept):
        await requests.finish(request.id, State.DONE, b'{"records":[]}')
    machine.keyring.destroy_customer(UUID(customer))
    await requests.finish(running.id, State.DONE, b'{"records":[]}')
    requests = await machine.start()
    lost = await requests.get(customer, gone.id)
    assert lost.state is State.FAILED
    assert b"send it again" in (lost.response or b"")
    assert (await requests.get(other, kept.id)).response == b'{"records":[]}'
    due = {one.request.id: one.webhook for one in await requests.due(9)}
    assert due == {gone.id: None, kept.id: HOOK}
    assert {one.customer for one in machine.keyring.generations()} == {UUID(other)}, "no key was made anew"


async def test_an_idempotency_key_is_its_senders_own(machine: Machine) -> None:
    requests = await machine.start()
    customer = await machine.customer()
    first, second = (Actor("token", name) for name in ("first", "second"))
    mine, _ = await requests.add(first, customer, "x", key="k", digest=b"d")
    other, new = await requests.add(second, customer, "x", key="k", digest=b"other")
    assert (new, other.id != mine.id) == (True, True)
    again, new = await requests.add(first, customer, "x", key="k", digest=b"d")
    assert (again.id, new) == (mine.id, False)
    with pytest.raises(Conflict):
        await requests.add(second, customer, "x", key="k", digest=b"d")


async def test_a_webhook_is_sealed_where_it_lies(machine: Machine) -> None:
    requests = await machine.start()
    customer = await machine.customer()
    mine, _ = await requests.add(ACTOR, customer, "x", webhook=HOOK)
    other, _ = await requests.add(ACTOR, customer, "x", webhook=Webhook("https://hooks.example/other"))
    for request in (mine, other):
        await requests.finish(request.id, State.DONE, b"{}")
    await machine.stop()
    files = b"".join(path.read_bytes() for path in machine.folder.iterdir() if path.is_file())
    assert b"Bearer secret" not in files
    assert b"hooks.example" not in files
    requests = await machine.start()
    (first,) = await requests.due(9)
    (second,) = await requests.due(9, besides=[mine.id])
    assert first.webhook == HOOK
    assert second.webhook == Webhook("https://hooks.example/other")
    assert await requests.due(9, customers=[customer]) == []
    assert await requests.next_due(customers=[customer]) is None
    await machine.customers.suspend(ACTOR, customer)
    assert await requests.due(9) == []
    assert await requests.next_due() is None
    await machine.customers.resume(ACTOR, customer)
    # Bound to its request: what lies in another row does not open.
    await machine.ledger.write(
        lambda connection: connection.execute(
            "UPDATE requests SET webhook = (SELECT webhook FROM requests WHERE id = ?) WHERE id = ?",
            (mine.id, other.id),
        ).fetchall()
    )
    (moved,) = await requests.due(9, besides=[mine.id])
    assert moved.webhook is None
    await requests.told(other.id, None)
    await requests.told(mine.id, None)
    assert await requests.next_due() is None
    # Due, and nowhere to be told of: no row that a request can have.
    await machine.ledger.write(
        lambda connection: connection.execute("UPDATE requests SET due_at = 1").fetchall()
    )
    assert await requests.due(9) == []
    assert await requests.next_due() is None


async def test_damaged_rows_stand_in_no_others_way(machine: Machine) -> None:
    requests = await machine.start()
    customers = [(await machine.customers.add(ACTOR, name)).id for name in ("a", "b", "c", "d")]
    added = [(await requests.add(ACTOR, one, "x", webhook=HOOK))[0] for one in customers]
    for request in added:
        await requests.finish(request.id, State.DONE, b"{}")
    nameless, often, never, whole = added

    def damage(connection: Connection) -> None:
        change = "UPDATE requests SET {} WHERE id = ?"
        connection.execute(change.format("status = 'FOO'"), (nameless.id,))
        connection.execute(change.format("attempts = 9223372036854775807"), (often.id,))
        connection.execute(change.format("attempts = -9223372036854775808"), (never.id,))

    await machine.ledger.write(damage)
    due = {one.request.id: one for one in await requests.due(9)}
    assert due[nameless.id].webhook is None
    assert due[whole.id].webhook == HOOK
    assert due[never.id].attempts == 1
    assert (await requests.get(customers[0], nameless.id)).state is State.FAILED
    assert len((await requests.list(customers[0], 1))[0]) == 1
    for one in due.values():
        await requests.told(one.request.id, None)
    assert await requests.due(9) == []


@pytest.mark.parametrize(
    "damaged",
    [b"", b'{"records":[]}', bytes(3), bytes(100)],
    ids=["nothing", "in clear", "too short", "of no key"],
)
async def test_a_request_whose_response_is_damaged_has_failed_and_says_so(
    machine: Machine, damaged: bytes
) -> None:
    requests = await machine.start()
    customer = await machine.customer()
    request, _ = await requests.add(ACTOR, customer, "x", webhook=HOOK)
    await requests.finish(request.id, State.DONE, b'{"records":[]}')
    await machine.ledger.write(
        lambda connection: connection.execute("UPDATE requests SET response = ?", (damaged,)).fetchall()
    )
    found = await requests.get(customer, request.id)
    assert found.state is State.FAILED
    said = msgspec.json.decode(found.response or b"")
    assert said["status"] == {"code": 500, "text": said["detail"]}
    assert "damaged: send it again" in said["detail"]
    (due,) = await requests.due(9)
    assert due.webhook is None


async def test_a_webhook_that_a_clock_ahead_put_off_is_due_when_it_is_set_right(machine: Machine) -> None:
    requests = await machine.start()
    request, _ = await requests.add(ACTOR, await machine.customer(), "x", webhook=HOOK)
    await requests.finish(request.id, State.DONE, b"{}")
    machine.now += LONGEST_PAUSE_SECONDS
    await requests.told(request.id, LONGEST_PAUSE_SECONDS)
    assert await requests.due(9) == []
    machine.now -= 1
    (due,) = await requests.due(9)
    assert due.request.id == request.id
    await requests.told(request.id, 5)
    assert await requests.due(9) == []


async def test_results_and_webhooks_survive_a_clock_that_leaps(machine: Machine) -> None:
    requests = await machine.start()
    customer = await machine.customer()
    told, _ = await requests.add(ACTOR, customer, "x", webhook=HOOK)
    await requests.finish(told.id, State.DONE, b"{}")
    await requests.told(told.id, 30.0)
    machine.known = machine.now + 1
    machine.now += 30 * 86_400
    await requests.add(ACTOR, customer, "x")
    assert (await requests.get(customer, told.id)).state is State.DONE, "also while the clock is ahead"
    requests = await machine.start()
    machine.now -= 30 * 86_400
    machine.known = 0.0
    assert (await requests.get(customer, told.id)).state is State.DONE
    machine.now += 30
    due = await requests.due(9)
    assert [one.request.id for one in due] == [told.id]


async def test_a_result_grows_no_older_by_a_clock_that_is_set_right(machine: Machine) -> None:
    requests = await machine.start()
    customer = await machine.customer()
    request, _ = await requests.add(ACTOR, customer, "x")
    await requests.finish(request.id, State.DONE, b"{}")
    set_at, seconds = machine.now, 6 * 365 * 86_400.0
    await machine.ledger.write(
        lambda connection: note_correction(connection, set_at, seconds, set_at + seconds)
    )
    machine.now += seconds + KEEP - 1
    assert (await requests.get(customer, request.id)).state is State.DONE
    await requests.add(ACTOR, customer, "x")
    assert (await requests.get(customer, request.id)).state is State.DONE
    machine.now += 1
    with pytest.raises(NotFound):
        await requests.get(customer, request.id)


async def test_of_a_customer_that_asks_on_and_on_the_last_results_are_kept(machine: Machine) -> None:
    await machine.start()
    requests = Requests(machine.ledger, machine.keyring, lambda: machine.now, KEEP, most=3)
    requests.go_by(machine)
    customer, other = await machine.customer(), (await machine.customers.add(ACTOR, "other")).id
    theirs, _ = await requests.add(ACTOR, other, "x")
    await requests.finish(theirs.id, State.DONE, b"{}")
    running, _ = await requests.add(ACTOR, customer, "x")
    telling, _ = await requests.add(ACTOR, customer, "x", webhook=HOOK)
    await requests.finish(telling.id, State.DONE, b"{}")
    ended = []
    for _ in range(4):
        request, _ = await requests.add(ACTOR, customer, "x")
        await requests.finish(request.id, State.DONE, b"{}")
        ended.append(request.id)
    for kept in (running.id, telling.id, *ended[1:]):
        await requests.get(customer, kept)
    with pytest.raises(NotFound):
        await requests.get(customer, ended[0])
    await requests.get(other, theirs.id)
    await requests.told(telling.id, None)
    await requests.finish(running.id, State.DONE, b"{}")
    await requests.add(ACTOR, customer, "x")
    assert (await requests.list(customer, 1))[1] == 3


async def test_a_clock_that_was_set_back_makes_no_result_old(machine: Machine) -> None:
    requests = await machine.start()
    customer = await machine.customer()
    machine.known = machine.now + 10 * KEEP
    request, _ = await requests.add(ACTOR, customer, "x")
    await requests.finish(request.id, State.DONE, b"{}")
    await requests.add(ACTOR, customer, "x")
    assert (await requests.get(customer, request.id)).state is State.DONE
    machine.known += KEEP
    with pytest.raises(NotFound):
        await requests.get(customer, request.id)
