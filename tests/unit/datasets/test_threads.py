"""Threads for short work: everything that was given is done, in order, and told to whoever waits."""

import asyncio
import threading

import pytest

from appliance.datasets.threads import Threads, tell
from tests.waiting import eventually


@pytest.fixture
def one() -> Threads:
    threads = Threads(1, "worker")
    threads.start()
    return threads


async def test_the_caller_gets_what_came_of_it(one: Threads) -> None:
    assert await one.run(int, "7") == 7
    with pytest.raises(ValueError, match="seven"):
        await one.run(int, "seven")
    assert await one.run(lambda: threading.current_thread().name) == "worker_0"
    one.close()


async def test_work_is_done_in_the_order_in_which_it_was_given(one: Threads) -> None:
    done: list[int] = []
    await asyncio.gather(*(one.run(done.append, number) for number in range(100)))
    assert done == [*range(100)]
    one.close()


async def test_a_caller_who_is_cancelled_stops_nothing(one: Threads) -> None:
    gate, done = threading.Event(), list[str]()
    held = asyncio.ensure_future(one.run(gate.wait))
    given_up = asyncio.ensure_future(one.run(done.append, "given up"))
    await asyncio.sleep(0)
    given_up.cancel()
    gate.set()
    await one.run(done.append, "next")
    assert done == ["given up", "next"]
    assert await held
    assert given_up.cancelled()
    one.close()


async def test_what_was_given_before_the_end_is_finished_and_nothing_is_taken_after_it(one: Threads) -> None:
    done: list[int] = []
    for number in range(100):
        one.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    one.close()
    assert done == [*range(100)]
    with pytest.raises(RuntimeError, match="nobody"):
        await one.run(int)


async def test_several_at_once_do_not_wait_for_each_other() -> None:
    threads = Threads(2, "worker")
    threads.start()
    met = threading.Barrier(2)
    assert sorted(await asyncio.gather(threads.run(met.wait, 10), threads.run(met.wait, 10))) == [0, 1]
    threads.close()


async def test_work_that_comes_piece_by_piece_stays_on_one_thread() -> None:
    threads = Threads(4, "worker")
    threads.start()
    names = set[str]()
    for _ in range(20):
        eventually(lambda: len(threads._resting) == 4, "all of them rest")
        names.add(await threads.run(lambda: threading.current_thread().name))
    assert len(names) == 1
    threads.close()


async def test_many_are_told_at_once_each_its_own() -> None:
    loop = asyncio.get_running_loop()
    well, ill, gone = loop.create_future(), loop.create_future(), loop.create_future()
    gone.cancel()
    await asyncio.to_thread(tell, [(gone, 1, None), (well, 2, None), (ill, None, OSError("no"))])
    assert await well == 2
    with pytest.raises(OSError, match="no"):
        await ill
