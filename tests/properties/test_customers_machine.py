"""Customers against a model, whatever is done in whatever order, by the appliance or by a hand on the ledger.

As long as no hand is on them rows say what the log says, and the log alone is enough to know it.
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from appliance.accounts.audit import Selection, rows
from appliance.accounts.customers import CustomerId
from appliance.accounts.endings import CUSTOMER_ERASED_AT, CUSTOMER_RESUMED_AT, CUSTOMER_SUSPENDED_AT
from appliance.accounts.transparency.leaves import leaf, recorded
from appliance.accounts.transparency.rows import Standing
from appliance.errors import NotFound
from appliance.ledger import Connection
from tests.erasing import OPERATOR, Everything, everything

BY_ROWS = "SELECT id, suspended_at IS NOT NULL, erased_at IS NOT NULL, resumed_at FROM customers"
BY_LOG = (
    f"SELECT id, {CUSTOMER_SUSPENDED_AT} IS NOT NULL, {CUSTOMER_ERASED_AT} IS NOT NULL, {CUSTOMER_RESUMED_AT}"
    " FROM customers"
)
BACK = "UPDATE customers SET suspended_at = NULL, erased_at = NULL, resumed_at = NULL"

which = st.integers(0, 1000)


@dataclass
class Known:
    """What the model has of a customer; `touched`: its row says less than what was done."""

    name: str
    suspended: bool = False
    resumed_at: int | None = None
    erased: bool = False
    touched: bool = False


class _UndoneError(Exception):
    """Takes rows out of an act that is to change nothing."""


def by_log_alone(connection: Connection) -> None:
    connection.execute(BACK)
    raise _UndoneError(connection.execute(BY_LOG).fetchall())


def found(connection: Connection) -> list[str]:
    rule = Standing()
    for row in rows(connection, Selection(), after=0, limit=-1):
        rule.see(recorded(leaf(row)))
    return list(rule.judge(connection).findings)


class Machine(RuleBasedStateMachine):
    parent: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.state = self.parent / str(len(list(self.parent.iterdir())))
        self.state.mkdir()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.model: dict[CustomerId, Known] = {}
        self.ahead = 0.0
        self.run(self.open())
        for _ in range(2):
            self.create()

    def run(self, act: Any) -> Any:
        return self.runner.run(act)

    async def open(self) -> None:
        self.parts: Everything = await self.stack.enter_async_context(everything(self.state))
        self.customers = self.parts.stand.customers
        self.clock = self.parts.stand.clock
        self.clock.now += self.ahead

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()

    def one(self, number: int) -> tuple[CustomerId, Known]:
        return list(self.model.items())[number % len(self.model)]

    @rule()
    def create(self) -> None:
        name = f"customer {len(self.model)}"
        self.model[self.run(self.customers.add(OPERATOR, name)).id] = Known(name)

    @rule(number=which)
    def suspend(self, number: int) -> None:
        customer, known = self.one(number)
        if known.erased:
            with pytest.raises(NotFound):
                self.run(self.customers.suspend(OPERATOR, customer))
            return
        self.run(self.customers.suspend(OPERATOR, customer))
        known.suspended, known.touched = True, False

    @rule(number=which)
    def resume(self, number: int) -> None:
        customer, known = self.one(number)
        if known.erased:
            with pytest.raises(NotFound):
                self.run(self.customers.resume(OPERATOR, customer))
            return
        self.run(self.customers.resume(OPERATOR, customer))
        if known.suspended:
            known.resumed_at = int(self.clock.now * 1000)
        known.suspended, known.touched = False, False

    @rule(number=which)
    def erase(self, number: int) -> None:
        customer, known = self.one(number)
        if not known.erased:
            self.run(self.parts.erasure.erase(OPERATOR, customer, known.name))
            known.erased, known.touched = True, False

    @rule(seconds=st.sampled_from([-86_400.0, -1.0, 1.0, 3600.0]))
    def set_the_clock(self, seconds: float) -> None:
        self.ahead += seconds
        self.clock.now += seconds

    @rule(number=which)
    def put_the_row_back(self, number: int) -> None:
        customer, known = self.one(number)
        self.run(
            self.parts.stand.ledger.write(
                lambda connection: connection.execute(f"{BACK} WHERE id = ?", (customer,)).get
            )
        )
        known.touched = known.erased or known.suspended or known.resumed_at is not None

    @rule()
    def restart(self) -> None:
        """Which erases again whom a hand has put back."""
        self.run(self.stack.aclose())
        self.run(self.open())
        self.run(asyncio.wait_for(self.erased_again(), 60))
        for known in self.model.values():
            known.touched = known.touched and not known.erased

    async def erased_again(self) -> None:
        await asyncio.gather(*self.parts.erasure._tasks.values())

    @invariant()
    def it_says_what_was_done(self) -> None:
        living = {customer: known for customer, known in self.model.items() if not known.erased}
        told = {one.id: one for one in self.run(self.customers.list())}
        assert told.keys() == living.keys()
        for customer, known in living.items():
            assert (told[customer].suspended_at is not None) == known.suspended
            assert told[customer].resumed_at == known.resumed_at
            assert self.customers.suspended(customer) == known.suspended
        assert all(self.customers.suspended(one) for one, known in self.model.items() if known.erased)

    @invariant()
    def the_log_alone_says_what_the_rows_say(self) -> None:
        ledger = self.parts.stand.ledger
        by_rows = {row[0]: row for row in self.run(ledger.read(lambda one: one.execute(BY_ROWS).fetchall()))}
        with pytest.raises(_UndoneError) as undone:
            self.run(ledger.write(by_log_alone))
        by_log = {row[0]: row for row in undone.value.args[0]}
        for customer, known in self.model.items():
            if not known.touched:
                told = 3 if known.erased else 4  # of an erased one nobody asks when it was resumed
                assert by_log[customer][:told] == by_rows[customer][:told]

    @invariant()
    def verification_finds_whose_rows_say_otherwise(self) -> None:
        findings = " ".join(self.run(self.parts.stand.ledger.read(found)))
        for customer, known in self.model.items():
            assert (customer in findings) == known.touched


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("examples", "steps"), [(10, 20), pytest.param(200, 40, marks=pytest.mark.full)])
def test_the_log_and_the_rows_agree(tmp_path: Path, examples: int, steps: int) -> None:
    Machine.parent = tmp_path
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        ),
    )
