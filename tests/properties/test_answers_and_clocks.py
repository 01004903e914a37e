"""What was answered, while somebody sets the clock: nothing goes early, nothing stays too long."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from appliance.asynchronous.requests import RequestId, Requests, State
from appliance.errors import NotFound
from appliance.ledger.database import open_writer
from appliance.search.replies import KEEP_SECONDS, Asked, Repeated, Replies, Reply
from tests.resting import AHEAD, DAY, HOUR, STEPS, Appliance, Resting, Step
from tests.searching import ACTOR, Shelf, shelf

KEEP = 5 * DAY


class Machine:
    """Collections that stay open for all examples, and a connection beside them that corrects the clock."""

    def __init__(self, folder: Path) -> None:
        self._runner, self._stack = asyncio.Runner(), AsyncExitStack()
        self.things: Shelf = self.run(self._stack.enter_async_context(shelf(folder)))
        self.collection = self.run(self.things.collection(8)).collection.id
        self.connection = open_writer(folder / "ledger.db")
        self.connection.execute("PRAGMA synchronous = 0")  # no example loses power

    def run(self, work: Any) -> Any:
        return self._runner.run(work)

    def close(self) -> None:
        self.connection.close()
        self.run(self._stack.aclose())
        self._runner.close()


@dataclass(frozen=True)
class Answer:
    """A request and a change that were answered at once."""

    stored: Resting
    request: RequestId
    asked: Asked


class Answers(Appliance):
    """Its uploads are requests and changes that are answered."""

    def __init__(self, machine: Machine, ahead: float) -> None:
        super().__init__(machine.connection, ahead)
        self._machine, things = machine, machine.things
        self._requests = Requests(things.ledger, things.keyring, self.clock, KEEP)
        self._requests.go_by(self)
        self._replies = Replies(things.ledger, things.keyring, self)
        self._answers: list[Answer] = []
        for table in ("requests", "search_replies"):
            machine.connection.execute(f"DELETE FROM {table}")

    def upload(self) -> None:
        machine, things, stored = self._machine, self._machine.things, self.stored()
        request, _ = machine.run(self._requests.add(ACTOR, things.customer, "x"))
        machine.run(self._requests.finish(request.id, State.DONE, b"{}"))
        key = f"change {len(self._answers)}"
        asked = Asked(things.customer, machine.collection, "a token", key, bytes(32))
        keep = partial(self._replies.keep, asked=asked, reply=Reply(200, b"{}"))
        machine.run(things.ledger.write(keep))
        self._answers.append(Answer(stored, request.id, asked))

    def check(self) -> None:
        for one in self._answers:
            self._check(one.stored, KEEP, "request", found=self._has_request(one.request))
            self._check(one.stored, KEEP_SECONDS, "reply", found=self._has_reply(one.asked))

    def _check(self, stored: Resting, keep: float, what: str, *, found: bool) -> None:
        assert found or self.most(stored) >= keep, f"the {what} was forgotten early"
        assert not found or self.least(stored) < keep, f"the {what} is kept too long"

    def _has_request(self, request: RequestId) -> bool:
        try:
            self._machine.run(self._requests.get(self._machine.things.customer, request))
        except NotFound:
            return False
        return True

    def _has_reply(self, asked: Asked) -> bool:
        try:
            self._machine.run(self._replies.check(asked))
        except Repeated:
            return True
        return False


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    logging.disable(logging.ERROR)  # of each doubt the log has a line
    machine = Machine(tmp_path_factory.mktemp("answers"))
    yield machine
    machine.close()
    logging.disable(logging.NOTSET)


@settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(ahead=st.sampled_from(AHEAD), steps=STEPS)
@example(0, [("upload", 0), ("set", 30 * DAY), ("run", HOUR), ("upload", 0)])
@example(0, [("set", -400 * DAY), ("upload", 0), ("run", HOUR), *[("run", 40 * HOUR)] * 5])
@example(  # the clock was years behind, is set right, and steps a little before that is believed
    -2190 * DAY,
    [("upload", 0), ("set", "right"), ("upload", 0), ("set", 120), *[("run", 40 * HOUR)] * 5],
)
@example(  # what a wrong clock stamped is no older when that is set back and ahead
    -100 * DAY,
    [
        *[("upload", 0), ("set", 40 * DAY), ("upload", 0), ("set", -3 * HOUR), ("set", "right")],
        *[("upload", 0), ("run", 13 * HOUR), ("run", 13 * HOUR)],
    ],
)
def test_answers_are_kept_for_their_days(machine: Machine, ahead: int, steps: Sequence[Step]) -> None:
    appliance = Answers(machine, ahead)
    for step in steps:
        appliance.take(step)
        appliance.check()
