"""Rates: a minute's worth at once, then as it comes back, and never more than is remembered."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.accounts.rates import MINUTE, Rates


@dataclass
class Seconds:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_minutes_worth_at_once_and_then_as_it_comes_back() -> None:
    clock = Seconds()
    rates = Rates[str](clock, most=10)
    for _ in range(6):
        assert rates.wait("a", 6) == 0
        rates.spend("a", 6, 1)
    assert rates.wait("a", 6) == 10
    assert rates.wait("b", 6) == 0
    clock.now = 9.9
    assert 0 < rates.wait("a", 6) < 0.2
    clock.now = 10
    assert rates.wait("a", 6) == 0
    rates.spend("a", 6, 1)
    assert rates.wait("a", 6) == 10
    clock.now = 70
    for _ in range(6):
        assert rates.wait("a", 6) == 0
        rates.spend("a", 6, 1)
    assert rates.wait("a", 6) == 10


def test_more_than_is_left_is_waited_for_and_what_is_given_back_counts() -> None:
    clock = Seconds()
    rates = Rates[str](clock, most=10)
    rates.spend("a", 60, 180)
    assert rates.wait("a", 60) == 121
    rates.spend("a", 60, -150)
    assert rates.wait("a", 60) == 0
    rates.spend("a", 60, -1000)
    rates.spend("a", 60, 60)
    assert rates.wait("a", 60) == 1


def test_so_many_are_remembered_and_the_idle_are_forgotten_first() -> None:
    rates = Rates[int](Seconds(), most=3)
    for who in (1, 2, 3, 1, 4):
        rates.spend(who, 1, 1)
    assert len(rates) == 3
    assert [who for who in (1, 2, 3, 4) if rates.wait(who, 1) == 0] == [2]


@settings(derandomize=True, deadline=None)
@given(
    st.integers(1, 100),
    st.lists(st.tuples(st.floats(0, 100, allow_nan=False), st.integers(1, 5)), max_size=60),
)
def test_in_no_stretch_of_time_more_than_a_minutes_worth_and_what_came_back(
    limit: int, asked: list[tuple[float, int]]
) -> None:
    clock = Seconds()
    rates = Rates[str](clock, most=10)
    served: list[float] = []
    for pause, times in asked:
        clock.now += pause
        for _ in range(times):
            if rates.wait("a", limit) == 0:
                rates.spend("a", limit, 1)
                served.append(clock.now)
    for first, began in enumerate(served):
        for last in range(first, len(served)):
            assert last - first + 1 <= limit + (served[last] - began) * limit / MINUTE + 0.01
