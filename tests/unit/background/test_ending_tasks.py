"""How what a part does by itself is ended."""

import asyncio

import pytest

from appliance.background import end_tasks
from appliance.errors import StorageFailed

SENT = "what a caller sent"


async def test_all_are_cancelled_and_have_ended_when_it_returns() -> None:
    ended = list[int]()

    async def work(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(number)

    tasks = [asyncio.get_running_loop().create_task(work(number)) for number in range(3)]
    await asyncio.sleep(0)
    await end_tasks(*tasks)
    assert sorted(ended) == [0, 1, 2]
    await end_tasks()


async def test_a_cancellation_of_the_caller_is_raised_once_the_tasks_have_ended() -> None:
    going = asyncio.Event()

    async def slow_to_end() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            going.set()
            await asyncio.Event().wait()

    loop = asyncio.get_running_loop()
    task = loop.create_task(slow_to_end())
    await asyncio.sleep(0)
    caller = loop.create_task(end_tasks(task))
    await going.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert task.cancelled()


async def test_what_nobody_foresaw_is_logged_by_its_place_and_never_by_its_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fault() -> None:
        raise KeyError(SENT)

    async def told_already() -> None:
        raise StorageFailed("the ledger says so itself")

    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(fault(), name="upkeep"), loop.create_task(told_already(), name="scrub")]
    await asyncio.sleep(0)
    await end_tasks(*tasks)
    (record,) = caplog.records
    assert record.getMessage().startswith("upkeep: KeyError\n")
    assert "in fault" in record.getMessage()
    assert SENT not in record.getMessage()
