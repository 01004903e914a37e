"""Tokens and agreements while somebody sets the clock, across restarts too."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from appliance.accounts.agreements import Agreements, Kind
from appliance.accounts.contracts import Contract
from appliance.accounts.customers import CustomerId, Customers
from appliance.accounts.forward import is_set_back, latest_time, tell_time
from appliance.accounts.times import Times
from appliance.accounts.tokens import IssuedToken, Tokens
from appliance.datasets.leaps import Belief, Leaps
from appliance.errors import Forbidden, Unauthenticated
from appliance.ledger import Ledger
from appliance.metrics import Registry
from appliance.vault import Keyring, Keys
from tests.unit.accounts.conftest import OPERATOR, ROOT, Clock

SECOND, HOUR, DAY = 1.0, 3600.0, 86_400.0


@dataclass
class Run:
    """One run of an appliance, between a start and its end."""

    tokens: Tokens
    customers: Customers
    agreements: Agreements
    customer: CustomerId
    ledger: Ledger
    times: Times
    leaps: Leaps

    def takes(self, token: IssuedToken) -> bool:
        try:
            self.tokens.verify(token.token)
        except Unauthenticated:
            return False
        return True

    def allows(self) -> bool:
        """Whether the agreement on training data stands."""
        try:
            self.agreements.require(self.customer, Kind.TRAINING_DATA)
        except Forbidden:
            return False
        return True


class Machine:
    """Both clocks of a machine, and what lies on its disk from run to run."""

    def __init__(self, state: Path) -> None:
        self.wall, self.counted = Clock(), Clock(100.0)
        self._state = state
        self._keys = Keys(ROOT)
        self._noted = Belief(self.wall(), self.wall())

    def pass_by(self, seconds: float) -> None:
        self.wall.now += seconds
        self.counted.now += seconds

    def stamp(self, seconds: float = 0.0) -> int:
        """Unix milliseconds, so many seconds from now by the clock."""
        return int((self.wall.now + seconds) * 1000)

    def note(self, run: Run) -> None:
        """As retention does every few minutes."""
        self._noted = run.leaps.belief()

    async def tell(self, run: Run) -> None:
        """As links do twice a minute."""
        await run.ledger.write(partial(tell_time, time=run.times.forward(), clock=self.wall()))

    @asynccontextmanager
    async def run(self, *, crash: bool = False) -> AsyncIterator[Run]:
        """As the daemon puts it together; in a crash nothing is noted in the end."""
        path = self._state / "keyring of accounts"
        keyring = await asyncio.to_thread(_keyring, path)
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            ledger = await enter(Ledger(self._state, Registry()))
            latest = await ledger.read(partial(latest_time, now=self.wall()))
            set_back = await ledger.read(partial(is_set_back, now=self.wall()))
            times = Times(latest, self.wall, self.counted, set_back=set_back)
            customers = await enter(Customers(ledger, times.ended))
            tokens = await enter(Tokens(ledger, self._keys, customers, times.ended, times.proven))
            agreements = await enter(Agreements(ledger, keyring, customers, times.ended))
            leaps = Leaps(self._noted, self.wall, self.counted)
            times.go_by(leaps.believed())
            known = await customers.list()
            customer = known[0] if known else await customers.add(OPERATOR, "Zoo")
            run = Run(tokens, customers, agreements, customer.id, ledger, times, leaps)
            yield run
            if not crash:
                self.note(run)
                await self.tell(run)
        keyring.wipe()


def _keyring(path: Path) -> Keyring:
    root = bytearray(ROOT)
    return Keyring.open(path, root) if path.exists() else Keyring.create(path, root)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


async def claimed(run: Run) -> None:
    issued = await run.tokens.add(OPERATOR, run.customer)
    await run.tokens.note_use(run.tokens.verify(issued.token), "req-1")


@pytest.mark.parametrize("back", [5 * SECOND, HOUR, 400 * DAY])
@pytest.mark.parametrize("crash", [False, True])
async def test_set_back_it_revives_no_token_and_no_agreement(
    machine: Machine, back: float, *, crash: bool
) -> None:
    async with machine.run(crash=crash) as run:
        first = await run.tokens.add(OPERATOR, run.customer)
        await run.tokens.rotate(OPERATOR, run.customer, first.id, 0)
        ending = await run.tokens.add(OPERATOR, run.customer, expires_at=machine.stamp(HOUR))
        rotated = await run.tokens.add(OPERATOR, run.customer)
        await run.tokens.rotate(OPERATOR, run.customer, rotated.id, 60)
        contract = Contract(valid_until=machine.stamp(HOUR))
        await run.agreements.sign(OPERATOR, run.customer, Kind.TRAINING_DATA, contract)
        tokens = (first, ending, rotated)
        assert [run.takes(token) for token in tokens] == [False, True, True]
        assert run.allows()
        machine.pass_by(HOUR - 600)
        machine.note(run)
        machine.pass_by(600)
        assert not any(run.takes(token) for token in tokens)
        assert not run.allows()
        machine.wall.now -= back
        assert not any(run.takes(token) for token in tokens)
        assert not run.allows()
        machine.wall.now += back
        await machine.tell(run)
        machine.pass_by(29)  # it is not told again before the end
    machine.wall.now -= back
    async with machine.run() as run:
        assert not any(run.takes(token) for token in tokens)
        assert not run.allows()
        assert [one.state for one in await run.agreements.list()] == ["expired"]
        machine.pass_by(DAY)
        assert not any(run.takes(token) for token in tokens)
        assert not run.allows()


@pytest.mark.parametrize("ahead", [3700.0, 7 * HOUR, 400 * DAY])
async def test_nor_does_it_after_a_leap_ahead_and_a_crash(machine: Machine, ahead: float) -> None:
    async with machine.run(crash=True) as run:
        await machine.tell(run)
        machine.note(run)
        rotated = await run.tokens.add(OPERATOR, run.customer)
        await run.tokens.rotate(OPERATOR, run.customer, rotated.id, 2)
        machine.pass_by(5)
        assert not run.takes(rotated)
        machine.wall.now += ahead
        await machine.tell(run)  # as a link is refused
        machine.wall.now -= ahead
        machine.pass_by(11)
    machine.wall.now -= 40
    async with machine.run() as run:
        assert not run.takes(rotated)
        assert run.times.proven() < machine.wall.now + 100  # the leap counts for no wait


@pytest.mark.parametrize("ahead", [2 * HOUR, 2 * DAY, 400 * DAY])
async def test_set_ahead_by_mistake_it_ends_nothing_for_good(machine: Machine, ahead: float) -> None:
    async with machine.run() as run:
        contract = Contract(valid_until=machine.stamp(HOUR))
        await run.agreements.sign(OPERATOR, run.customer, Kind.TRAINING_DATA, contract)
        token = await run.tokens.add(OPERATOR, run.customer, expires_at=machine.stamp(HOUR))
        machine.wall.now += ahead
        assert not run.takes(token)
        assert not run.allows()
        machine.wall.now -= ahead
        assert run.takes(token)
        assert run.allows()
        machine.pass_by(HOUR - 1)
        assert run.takes(token)
        assert run.allows()
        machine.pass_by(1)
        assert not run.takes(token)
        assert not run.allows()


async def test_nor_when_it_is_set_right_while_the_appliance_is_off(machine: Machine) -> None:
    async with machine.run() as run:
        token = await run.tokens.add(OPERATOR, run.customer, expires_at=machine.stamp(30 * DAY))
        machine.wall.now += 400 * DAY
        assert not run.takes(token)
    machine.wall.now -= 400 * DAY
    async with machine.run() as run:
        assert run.takes(token)


def assert_waits_for_its_day(machine: Machine, run: Run, token: IssuedToken) -> None:
    assert not run.takes(token)
    machine.pass_by(DAY - 1)
    assert not run.takes(token)
    machine.pass_by(1)
    assert run.takes(token)


@pytest.mark.parametrize("ahead", [HOUR, DAY + 100, 400 * DAY])
async def test_set_ahead_it_has_no_token_of_recovery_taken_early(machine: Machine, ahead: float) -> None:
    async with machine.run() as run:
        await claimed(run)
        token = await run.tokens.add(OPERATOR, run.customer, recovery=True)
        machine.wall.now += ahead
        assert_waits_for_its_day(machine, run, token)
        machine.wall.now -= ahead + DAY
        assert run.takes(token)


@pytest.mark.parametrize("back", [HOUR, 400 * DAY])
async def test_one_that_is_issued_while_it_is_behind_waits_for_its_day(machine: Machine, back: float) -> None:
    async with machine.run() as run:
        await claimed(run)
        machine.wall.now -= back
        token = await run.tokens.add(OPERATOR, run.customer, recovery=True)
        machine.wall.now += back
        assert_waits_for_its_day(machine, run, token)


async def test_the_day_after_a_suspension_cannot_be_set_away_either(machine: Machine) -> None:
    async with machine.run() as run:
        await claimed(run)
        token = await run.tokens.add(OPERATOR, run.customer, recovery=True)
        await run.customers.suspend(OPERATOR, run.customer)
        machine.pass_by(3 * DAY)
        machine.wall.now -= 2 * DAY
        await run.customers.resume(OPERATOR, run.customer)
        machine.wall.now += 2 * DAY
        assert not run.takes(token)
        machine.pass_by(DAY)
        assert run.takes(token)


@pytest.mark.parametrize("off", [0.0, 6 * HOUR, 20 * HOUR, 400 * DAY])
async def test_a_wait_goes_on_over_a_restart_with_six_hours_at_most_on_trust(
    machine: Machine, off: float
) -> None:
    """Whether the appliance was off, or the clock was set meanwhile, cannot be told."""
    async with machine.run() as run:
        await claimed(run)
        token = await run.tokens.add(OPERATOR, run.customer, recovery=True)
        machine.pass_by(HOUR)
    machine.wall.now += off
    async with machine.run() as run:
        on_trust = off if off <= 6 * HOUR else 0.0
        machine.pass_by(DAY - HOUR - on_trust - 1)
        assert not run.takes(token)
        machine.pass_by(HOUR + 1)
        assert run.takes(token)


async def test_set_ahead_as_a_token_is_rotated_it_lengthens_no_life(machine: Machine) -> None:
    async with machine.run() as run:
        token = await run.tokens.add(OPERATOR, run.customer)
        machine.wall.now += 400 * DAY
        await run.tokens.rotate(OPERATOR, run.customer, token.id, 0)
        assert not run.takes(token)
        machine.wall.now -= 400 * DAY
        assert not run.takes(token)
    async with machine.run() as run:
        assert not run.takes(token)
