"""Images that rest for days, while somebody sets the clock: none goes early, none stays too long."""

import logging
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from appliance.ledger import Connection
from appliance.ledger.database import open_writer
from appliance.ledger.migrations import migrate, shipped
from tests.resting import AHEAD, DAY, HOUR, MINUTE, STEPS, Appliance, Step


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    connection = open_writer(tmp_path_factory.mktemp("rests") / "ledger.db")
    migrate(connection, shipped())
    connection.pragma("synchronous", 0)  # no example loses power
    logging.disable(logging.ERROR)  # of each doubt the log has a line
    yield connection
    logging.disable(logging.NOTSET)
    connection.close()


_A_DAY = [("run", 13 * HOUR), ("run", 13 * HOUR)]


@settings(
    max_examples=600,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(ahead=st.sampled_from(AHEAD), steps=STEPS)
@example(  # stored while the clock is wrong, which then goes back and ahead
    -100 * DAY,
    [
        *[("upload", 0), ("set", 40 * DAY), ("upload", 0), ("set", -3 * HOUR), ("set", "right")],
        *[("upload", 0), *_A_DAY],
    ],
)
@example(  # stored when the clock is right, which steps a little before it is believed
    -2190 * DAY,
    [("upload", 0), ("set", "right"), ("upload", 0), ("set", 2 * MINUTE), *_A_DAY, *[("run", DAY)] * 30],
)
@example(  # killed when the ledger has the correction, and the disk not yet what is believed by it
    0,
    [
        *[("upload", 0), ("set", 60 * DAY), ("kill at a correction", 9 * DAY), ("run", DAY), ("upload", 0)],
        *[*_A_DAY, ("upload", 0), ("stop", HOUR)],
    ],
)
def test_images_rest_for_their_days(ledger: Connection, ahead: int, steps: Sequence[Step]) -> None:
    appliance = Appliance(ledger, ahead)
    for step in steps:
        appliance.take(step)
        appliance.check()
