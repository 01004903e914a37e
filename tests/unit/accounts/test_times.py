"""The times of accounts, whatever is done to the clock: no end is undone, no wait is cut short."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.accounts.times import Times

NOW = 1_800_000_000.0
HOUR, DAY = 3600.0, 86_400.0


class Machine:
    """Both clocks of a machine, and the times of one run of the appliance on it."""

    def __init__(self, *, believed: float = NOW, latest: float = NOW, clock: float = NOW) -> None:
        self.wall, self.counted = clock, 100.0
        self.times = Times(latest, lambda: self.wall, lambda: self.counted)
        self.times.go_by(believed)

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.counted += seconds
        self.times.ended()

    def set_by(self, seconds: float) -> None:
        self.wall += seconds
        self.times.ended()


@pytest.mark.parametrize("back", [5.0, HOUR, 365 * DAY])
def test_what_has_ended_stays_so_when_the_clock_is_set_back(back: float) -> None:
    machine = Machine()
    machine.pass_by(HOUR)
    machine.set_by(-back)
    assert machine.times.ended() == NOW + HOUR
    machine.pass_by(10.0)
    assert machine.times.ended() == machine.times.forward() == NOW + HOUR + 10


@pytest.mark.parametrize("ahead", [1.0, HOUR, DAY, 365 * DAY])
@pytest.mark.parametrize("stood", [0.0, DAY - 1])
def test_what_a_wrong_clock_ended_comes_back_when_it_is_set_right(ahead: float, stood: float) -> None:
    machine = Machine()
    machine.set_by(ahead)
    machine.pass_by(stood)
    assert machine.times.ended() == NOW + ahead + stood
    assert machine.times.proven() == NOW + stood
    machine.set_by(-ahead)
    assert machine.times.ended() == machine.times.proven() == NOW + stood
    machine.pass_by(3 * DAY)  # it leaves nothing behind
    assert machine.times.ended() == machine.times.proven() == machine.wall


def test_a_leap_that_has_stood_for_a_day_is_there_for_good() -> None:
    machine = Machine()
    machine.set_by(60 * HOUR)  # as after a weekend without power
    machine.pass_by(DAY - 1)
    machine.pass_by(1.0)
    assert machine.times.proven() == machine.wall
    machine.set_by(-30 * DAY)
    assert machine.times.ended() == NOW + 60 * HOUR + DAY


def test_of_leaps_one_after_the_other_each_has_its_day() -> None:
    machine = Machine()
    machine.set_by(10 * HOUR)
    machine.pass_by(23 * HOUR)
    machine.set_by(5 * DAY)
    machine.pass_by(HOUR)
    assert machine.times.proven() == NOW + DAY
    machine.pass_by(23 * HOUR)
    assert machine.times.proven() == machine.wall


def test_a_clock_that_is_always_a_little_fast_is_followed() -> None:
    machine = Machine()
    for _ in range(30 * 24):
        machine.set_by(1.0)
        machine.pass_by(HOUR)
    assert machine.wall - 60 < machine.times.proven() <= machine.wall


@pytest.mark.parametrize(
    ("believed", "latest", "past"),
    [
        (NOW - 600, NOW, NOW),  # noted a while before a crash, the forward time just then
        (NOW, NOW - 20, NOW),
        (NOW - 60, NOW + 365 * DAY, NOW + 60),  # it was a year ahead once, and is set back
        (0.0, NOW, NOW - 10 * DAY),  # nobody knows, as after a restore
    ],
)
def test_a_start_begins_with_what_was_believed(believed: float, latest: float, past: float) -> None:
    machine = Machine(believed=believed, latest=latest, clock=NOW - 10 * DAY)
    assert machine.times.proven() == believed
    assert machine.times.ended() == past


@pytest.mark.parametrize(("set_back", "past"), [(False, NOW), (True, NOW + 60)])
def test_a_clock_that_was_once_far_ahead_ends_nothing_early_unless_it_was_set_back_since(
    past: float, *, set_back: bool
) -> None:
    times = Times(NOW + 365 * DAY, lambda: NOW, lambda: 100.0, set_back=set_back)
    times.go_by(NOW - 60)
    assert times.ended() == past
    assert times.proven() == NOW - 60


def test_a_clock_that_is_hours_ahead_at_a_start_and_then_set_back_undoes_no_end() -> None:
    machine = Machine(believed=NOW - 60, latest=NOW, clock=NOW + 7 * HOUR)
    machine.set_by(-7 * HOUR - 40)
    assert NOW <= machine.times.ended() <= NOW + 15 * 60


def test_a_single_command_goes_by_the_clock() -> None:
    times = Times(NOW + DAY, lambda: NOW, lambda: 100.0)
    assert times.ended() == times.proven() == NOW
    assert times.forward() == NOW + DAY


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.integers(0, 30 * 3600)),
        st.tuples(st.just("set"), st.integers(-40 * 3600, 40 * 3600)),
        st.tuples(st.just("set"), st.integers(-400, 400).map(lambda days: days * 86_400)),
        st.tuples(st.just("wait"), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(steps=_STEPS)
def test_no_setting_of_the_clock_shortens_a_wait(steps: Sequence[tuple[str, int]]) -> None:
    machine = Machine()
    waiting: list[tuple[float, float]] = []  # until when, and from when on as seconds are counted
    for step, number in steps:
        if step == "pass":
            machine.pass_by(number)
        elif step == "set":
            machine.set_by(number)
        else:
            waiting.append((machine.times.ended() + DAY, machine.counted))
        proven = machine.times.proven()
        assert all(proven < until for until, since in waiting if machine.counted - since < DAY)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(steps=_STEPS)
def test_no_setting_of_the_clock_undoes_an_end(steps: Sequence[tuple[str, int]]) -> None:
    """Nor does it, where no wrong clock stood for a day, bring one forward for longer than it is wrong."""
    machine, right, wrong_since, stood = Machine(), NOW, None, False
    for step, number in steps:
        if step == "pass":
            right += number
            machine.pass_by(number)
        elif step == "set":
            machine.set_by(number)
        else:
            machine.set_by(right - machine.wall)
            if not stood:
                assert machine.times.ended() == right
        if machine.wall <= right:
            wrong_since = None
        elif wrong_since is None:
            wrong_since = machine.counted
        stood = stood or (wrong_since is not None and machine.counted - wrong_since >= DAY)
        assert machine.times.ended() >= right
