"""What retention goes by when a clock leaps: no time that nobody counted, until it was doubted for a day."""

import logging
from typing import Any

import pytest

from appliance.datasets.leaps import DOUBT_SECONDS, LEAP_SECONDS, Belief, Leaps

NOW = 1_800_000_000.0
HOUR, DAY = 3600.0, 86_400.0


class Machine:
    """Both clocks of a machine, and what one run of the appliance leaves for the next.

    `pass_by` moves the clocks together, setting `wall` is a leap.
    """

    def __init__(self) -> None:
        self.wall, self.monotonic = NOW, 100.0
        self.leaps = Leaps(Belief(NOW, NOW), self._clock, self._counted)

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds

    def restart(self, off: float = 0.0) -> None:
        """After so many seconds without power, which `monotonic` knows nothing of."""
        left = self.leaps.belief()
        self.wall += off
        self.monotonic = 100.0
        self.leaps = Leaps(left, self._clock, self._counted)

    def corrected(self) -> list[tuple[float, Any]]:
        """What has to be corrected now, and then is: until when, and by how many seconds."""
        found = self.leaps.correction()
        if found is not None:
            self.leaps.correct(found)
        return [] if found is None else [(found.until, found.seconds)]

    def doubts(self) -> bool:
        return self.leaps.until() > 0

    def _clock(self) -> float:
        return self.wall

    def _counted(self) -> float:
        return self.monotonic


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.mark.parametrize("off", [0.0, 600.0, LEAP_SECONDS])
def test_time_that_passes_and_short_absences_are_believed(machine: Machine, off: float) -> None:
    machine.pass_by(400 * DAY)
    assert machine.leaps.believed() == machine.wall
    machine.restart(off)
    assert machine.leaps.believed() == machine.wall
    assert not machine.doubts()
    assert machine.leaps.ahead() == 0.0


@pytest.mark.parametrize("running", [True, False])
def test_a_clock_that_leaps_is_believed_a_day_later(
    machine: Machine, running: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        if running:
            machine.wall += 6.9 * DAY
        else:
            machine.restart(6.9 * DAY)
        assert machine.leaps.believed() == NOW
    assert "166 hours ahead" in caplog.text
    machine.pass_by(DOUBT_SECONDS - 1)
    assert machine.leaps.believed() == NOW + DOUBT_SECONDS - 1
    assert machine.leaps.ahead() == pytest.approx(6.9 * DAY)
    assert machine.leaps.until() == NOW + DOUBT_SECONDS
    machine.pass_by(1)
    assert machine.corrected() == ([(NOW, pytest.approx(6.9 * DAY))] if running else [])
    assert machine.leaps.believed() == machine.wall
    assert not machine.doubts()


@pytest.mark.parametrize("restarting", [True, False])
def test_small_leaps_share_six_hours_a_day(machine: Machine, restarting: bool) -> None:
    for number in range(124):
        if restarting:
            machine.restart(5.9 * HOUR)
        else:
            machine.wall += 5.9 * HOUR
        machine.pass_by(60)
        assert machine.leaps.believed() <= NOW + number * 60 + 60 + LEAP_SECONDS
        assert machine.doubts() == (number > 0)
    machine.wall = NOW + 124 * 60
    assert machine.leaps.believed() <= NOW + 124 * 60 + LEAP_SECONDS
    assert not machine.doubts(), "it was set right"


def test_small_leaps_are_believed_again_after_a_day(machine: Machine) -> None:
    for _ in range(5):
        machine.restart(LEAP_SECONDS)
        assert machine.leaps.believed() == machine.wall
        machine.pass_by(DAY)
        assert not machine.doubts()


def test_a_clock_that_is_slewed_is_no_leap_though_nothing_is_left_to_believe(machine: Machine) -> None:
    machine.restart(LEAP_SECONDS)
    for _ in range(1000):
        machine.pass_by(1.0)
        machine.wall += 0.01
        assert not machine.doubts()
    assert machine.leaps.believed() == pytest.approx(machine.wall)


def test_a_clock_that_is_set_right_again_leaves_nothing_behind(machine: Machine) -> None:
    machine.restart(30 * DAY)
    assert machine.leaps.stamp().created == machine.wall
    machine.pass_by(HOUR)
    machine.restart(-30 * DAY)
    assert not machine.doubts()
    assert machine.leaps.believed() == machine.leaps.stamp().created == machine.wall == NOW + HOUR


def test_a_clock_that_is_behind_stamps_nothing_earlier_than_what_is_believed(machine: Machine) -> None:
    machine.restart(-40 * DAY)
    assert machine.leaps.stamp().created == NOW
    machine.pass_by(HOUR)
    assert machine.leaps.stamp().created == machine.leaps.believed() == NOW + HOUR
    machine.restart(40 * DAY)
    assert machine.leaps.stamp().created == machine.leaps.believed() == NOW + HOUR
    assert not machine.doubts()


def test_a_restart_neither_ends_a_doubt_nor_begins_it_anew(machine: Machine) -> None:
    machine.restart(6.9 * DAY)
    for _ in range(4):
        machine.pass_by(5 * HOUR)
        machine.restart(HOUR)
        assert machine.doubts()
    machine.pass_by(4 * HOUR - 1)
    assert machine.doubts()
    machine.pass_by(1)
    assert machine.leaps.believed() == machine.wall


@pytest.mark.parametrize("running", [True, False])
def test_another_leap_of_more_than_a_day_is_doubted_for_a_day_of_its_own(
    machine: Machine, running: bool
) -> None:
    machine.restart(2 * DAY)
    machine.pass_by(DOUBT_SECONDS - 60)
    if running:
        machine.wall += 7 * DAY
    else:
        machine.restart(7 * DAY)
    assert machine.doubts()
    machine.pass_by(DOUBT_SECONDS - 1)
    assert machine.leaps.believed() < machine.wall - 9 * DAY + 1
    machine.pass_by(1)
    set_at = NOW + 2 * DAY + DOUBT_SECONDS - 60
    assert machine.corrected() == ([(set_at, pytest.approx(7 * DAY))] if running else [])
    assert machine.leaps.believed() == machine.wall


def test_an_appliance_that_is_off_every_night_is_at_most_some_days_behind(machine: Machine) -> None:
    for _ in range(60):
        machine.pass_by(8 * HOUR)
        assert machine.leaps.believed() >= machine.wall - 3 * DAY
        machine.restart(16 * HOUR)


@pytest.mark.parametrize("off", [0.0, HOUR, 2 * DAY])
def test_a_setting_is_corrected_by_what_it_was_though_the_appliance_was_off_since(
    machine: Machine, off: float
) -> None:
    machine.pass_by(HOUR)
    machine.wall += 2000 * DAY
    assert machine.doubts()
    machine.restart(off)
    machine.pass_by(DAY)
    assert machine.corrected() == [(NOW + HOUR, pytest.approx(2000 * DAY))]
    assert machine.leaps.believed() == machine.wall
    machine.restart()
    assert machine.leaps.correction() is None


def test_what_is_set_back_again_is_not_corrected(machine: Machine) -> None:
    machine.wall += 30 * DAY
    assert machine.doubts()
    machine.wall -= 20 * DAY
    machine.pass_by(DAY)
    assert machine.corrected() == [(NOW, pytest.approx(10 * DAY))]
    assert not machine.doubts()


def test_a_day_that_was_over_at_the_stop_is_not_begun_anew(machine: Machine) -> None:
    """Nor is the correction lost that was not made before it."""
    machine.pass_by(HOUR)
    machine.wall += 60 * DAY
    assert machine.doubts()
    machine.pass_by(DAY + 300)
    machine.restart()
    assert machine.corrected() == [(NOW + HOUR, 60 * DAY)]
    assert not machine.doubts()
    assert machine.leaps.believed() == machine.wall
