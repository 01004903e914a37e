"""A clock that leaps is not believed at once; one that goes on, and one that is set back, is."""

import logging

import pytest

from appliance.datasets.leaps import DOUBT_SECONDS, LEAP_SECONDS, Leaps

NOW = 1_800_000_000.0


class Clocks:
    """Both clocks of a machine; `pass_by` moves them together, setting `wall` is a leap."""

    def __init__(self) -> None:
        self.wall, self.monotonic = NOW, 100.0

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds

    def leaps(self, latest: float, until: float = 0.0) -> Leaps:
        return Leaps(latest, until, lambda: self.wall, lambda: self.monotonic)


@pytest.mark.parametrize("latest", [0.0, NOW, NOW - LEAP_SECONDS, NOW + 1e6])
def test_a_new_appliance_and_one_that_was_down_for_days_believe_their_clock(latest: float) -> None:
    clocks = Clocks()
    leaps = clocks.leaps(latest)
    assert not leaps.doubted()
    clocks.pass_by(400 * 86_400)
    assert not leaps.doubted()


def test_a_clock_that_leapt_while_the_appliance_was_down_is_believed_a_day_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clocks = Clocks()
    leaps = clocks.leaps(NOW - LEAP_SECONDS - 1)
    with caplog.at_level(logging.ERROR):
        assert leaps.doubted()
    assert "7 days ahead" in caplog.text
    clocks.pass_by(DOUBT_SECONDS - 1)
    assert leaps.doubted()
    clocks.pass_by(1)
    assert not leaps.doubted()


def test_a_clock_that_leaps_while_the_appliance_runs_is_doubted_anew_each_time() -> None:
    clocks = Clocks()
    leaps = clocks.leaps(NOW)
    for _ in range(2):
        assert not leaps.doubted()
        clocks.wall += LEAP_SECONDS + 1
        assert leaps.doubted()
        clocks.pass_by(DOUBT_SECONDS)
    clocks.wall -= 400 * 86_400
    assert not leaps.doubted()


@pytest.mark.parametrize("set_right", [0.0, 400 * 86_400.0])
def test_a_restart_does_not_end_a_doubt_nor_does_it_outlast_a_day(set_right: float) -> None:
    clocks = Clocks()
    first = clocks.leaps(NOW - LEAP_SECONDS - 1)
    assert first.doubted()
    assert first.until == NOW + DOUBT_SECONDS
    clocks.pass_by(3600)
    clocks.wall -= set_right
    again = clocks.leaps(clocks.wall, first.until)
    assert again.doubted()
    clocks.pass_by(DOUBT_SECONDS - (1 if set_right else 3601))
    assert again.doubted()
    clocks.pass_by(1)
    assert not again.doubted()
