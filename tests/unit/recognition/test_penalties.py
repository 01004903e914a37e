"""Who has to wait with a model, and for how long."""

import pytest

from appliance.errors import Overloaded
from appliance.recognition.penalties import FIRST_SECONDS, LONGEST_SECONDS, Penalties


class Seconds:
    """A clock that stands until it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Seconds:
    return Seconds()


@pytest.fixture
def penalties(clock: Seconds) -> Penalties:
    return Penalties(clock)


def left(penalties: Penalties, customer: str, pin: str) -> int:
    try:
        penalties.check(customer, pin)
    except Overloaded as refusal:
        return refusal.retry_after
    return 0


def test_it_is_for_one_customer_and_one_model(penalties: Penalties) -> None:
    penalties.add("zoo", "birds@1")
    assert left(penalties, "zoo", "birds@1") == FIRST_SECONDS
    for customer, pin in (("zoo", "birds@2"), ("bank", "birds@1")):
        assert left(penalties, customer, pin) == 0
        assert not penalties.watched(customer, pin)


def test_it_doubles_up_to_the_longest(penalties: Penalties, clock: Seconds) -> None:
    waits = []
    for _ in range(8):
        penalties.add("zoo", "birds@1")
        waits.append(left(penalties, "zoo", "birds@1"))
        clock.now += waits[-1]
        assert left(penalties, "zoo", "birds@1") == 0
        assert penalties.watched("zoo", "birds@1")
    assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600]


def test_who_does_nothing_for_long_begins_anew(penalties: Penalties, clock: Seconds) -> None:
    penalties.add("zoo", "birds@1")
    clock.now += FIRST_SECONDS + LONGEST_SECONDS
    assert not penalties.watched("zoo", "birds@1")
    penalties.add("zoo", "birds@1")
    assert left(penalties, "zoo", "birds@1") == FIRST_SECONDS


def test_a_suspect_is_watched_and_does_not_wait(penalties: Penalties, clock: Seconds) -> None:
    penalties.suspect("zoo", "birds@1")
    assert penalties.watched("zoo", "birds@1")
    assert left(penalties, "zoo", "birds@1") == 0
    penalties.add("zoo", "birds@1")
    penalties.suspect("zoo", "birds@1")
    assert left(penalties, "zoo", "birds@1") == FIRST_SECONDS
    clock.now += FIRST_SECONDS + LONGEST_SECONDS
    assert not penalties.watched("zoo", "birds@1")


def test_who_was_suspected_with_the_one_whose_fault_it_was_is_so_no_more(penalties: Penalties) -> None:
    for customer, pin in (("zoo", "birds@1"), ("bank", "birds@1"), ("bank", "notes@1")):
        penalties.suspect(customer, pin)
    penalties.add("zoo", "birds@1")
    assert not penalties.watched("bank", "birds@1")
    assert penalties.watched("bank", "notes@1")
    assert left(penalties, "zoo", "birds@1") == FIRST_SECONDS
