"""Turns and shares: nobody is passed over, nobody is kept out, and nobody needs it who is alone."""

from collections import defaultdict
from math import log

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.recognition.turns import Shares, Turns

CUSTOMERS = st.sampled_from("abcd")


def test_customers_take_turns_and_each_ones_stay_in_their_order() -> None:
    turns = Turns[str]()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        turns.append(item[0], item)
    assert list(turns) == ["a1", "a2", "a3", "b1", "b2", "c1"]
    assert [turns.take() for _ in range(len(turns))] == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_who_was_alone_and_had_its_turn_lets_one_that_comes_go_first() -> None:
    turns = Turns[str]()
    for item in ("a1", "a2", "a3"):
        turns.append("a", item)
    taken = [turns.take()]
    turns.append("b", "b1")
    taken += [turns.take(), turns.take()]
    turns.append("b", "b2")
    assert [*taken, turns.take(), turns.take()] == ["a1", "b1", "a2", "b2", "a3"]


def test_what_had_its_turn_is_first_once_more() -> None:
    turns = Turns[str]()
    for item in ("a1", "a2", "b1"):
        turns.append(item[0], item)
    taken = turns.take()
    turns.put_first("a", taken)
    assert turns.first == "a1"
    assert [turns.take() for _ in range(3)] == ["a1", "b1", "a2"]


def test_what_waits_no_more_is_in_nobodys_way() -> None:
    turns = Turns[str]()
    for item in ("a1", "a2", "b1", "b2"):
        turns.append(item[0], item)
    assert turns.remove("b", "b1")
    assert not turns.remove("b", "b1")
    assert not turns.remove("c", "c1")
    assert len(turns) == 3
    assert [turns.take() for _ in range(3)] == ["a1", "b2", "a2"]


@settings(derandomize=True, deadline=None)
@given(st.lists(st.one_of(CUSTOMERS, st.none()), max_size=200))
def test_whoever_waits_is_served_after_one_of_each_other_at_most(steps: list[str | None]) -> None:
    """A letter: one of this customer comes. None: the next is served."""
    turns, waiting = Turns[tuple[str, int]](), defaultdict[str, list[int]](list)
    passed: dict[str, int] = {}
    for number, step in enumerate(steps):
        if step is not None:
            turns.append(step, (step, number))
            if not waiting[step]:
                passed[step] = 0
            waiting[step].append(number)
        elif len(turns):
            customer, first = turns.take()
            assert first == waiting[customer].pop(0), "in the order in which they came"
            for other in passed:
                passed[other] += other != customer
            passed[customer] = 0
            assert all(count <= 3 for other, count in passed.items() if waiting[other])
        assert len(turns) == sum(map(len, waiting.values()))


def test_one_alone_may_have_all_and_another_gets_in_all_the_same() -> None:
    shares = Shares(8)
    for _ in range(8):
        assert shares.fits("a")
        shares.take("a")
    assert not shares.fits("a")
    for _ in range(4):
        assert shares.fits("b")
        shares.take("b")
    assert not shares.fits("b")
    assert shares.fits("c")
    for _ in range(8):
        shares.give("a")
    assert shares.fits("b")
    assert (shares.of("a"), shares.of("b"), shares.taken) == (0, 4, 4)


def test_what_is_larger_than_the_room_comes_into_an_empty_one_alone() -> None:
    shares = Shares(10)
    assert shares.fits("a", 11)
    shares.take("a", 11)
    assert not shares.fits("b", 6)
    assert shares.fits("b", 5)


@settings(derandomize=True, deadline=None)
@given(st.integers(4, 40), st.lists(st.tuples(CUSTOMERS, st.booleans()), max_size=300))
def test_the_room_is_never_overfilled_by_more_than_is_said(size: int, steps: list[tuple[str, bool]]) -> None:
    shares, most = Shares(size), size * (1 + log(4))
    for customer, comes in steps:
        others = len({one for one in "abcd" if shares.of(one)} - {customer})
        if comes and shares.fits(customer):
            shares.take(customer)
        elif comes:
            assert shares.of(customer) + 1 > size / (others + 1), "less than its share and refused"
        elif shares.of(customer):
            shares.give(customer)
        assert shares.taken <= most


def test_what_was_worth_several_turns_takes_them_from_its_customer() -> None:
    turns = Turns[str]()
    for item in ("a1", "a2", "a3", "b1", "b2", "b3", "b4"):
        turns.append(item[0], item)
    assert turns.take() == "a1"
    turns.charge("a", 2)
    assert [turns.take() for _ in range(len(turns))] == ["b1", "b2", "b3", "a2", "b4", "a3"]


def test_a_debt_is_remembered_of_those_that_come_one_by_one() -> None:
    turns = Turns[str]()
    for number in range(5):
        turns.append("b", f"b{number}")
    turns.charge("a", 3)
    served = []
    turns.append("a", "a0")
    while turns:
        served.append(turns.take())
    assert served == ["b0", "b1", "b2", "b3", "a0", "b4"]


def test_nobody_owes_turns_to_nobody() -> None:
    turns = Turns[str]()
    turns.charge("a", 1_000)
    for item in ("a1", "b1", "a2", "b2"):
        turns.append(item[0], item)
    turns.charge("c", 1_000)
    assert [turns.take() for _ in range(len(turns))] == ["a1", "b1", "a2", "b2"]
    turns.append("c", "c1")
    turns.append("a", "a3")
    assert turns.take() == "c1"


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(CUSTOMERS, st.sampled_from(["comes", "pays", "next"]), st.integers(0, 50))))
def test_whatever_is_owed_everybody_is_served_in_order(steps: list[tuple[str, str, int]]) -> None:
    turns, waiting = Turns[tuple[str, int]](), defaultdict[str, list[int]](list)
    for number, (customer, step, amount) in enumerate(steps):
        if step == "comes":
            turns.append(customer, (customer, number))
            waiting[customer].append(number)
        elif step == "pays":
            turns.charge(customer, amount)
        elif len(turns):
            served, first = turns.take()
            assert first == waiting[served].pop(0)
    while len(turns):
        served, first = turns.take()
        assert first == waiting[served].pop(0)
    assert not any(waiting.values())
