"""The end of what parts do by themselves."""

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any, TypeVar

from appliance.errors import ApplianceError
from appliance.unforeseen import frames_of

_log = logging.getLogger(__name__)

T = TypeVar("T")


async def end_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancel them, and return when all have ended.

    Gathered, for `suppress(CancelledError)` around an `await` takes a cancellation of the caller for the end
    of the task: here it is raised, once all have ended. What tasks raised is not, so that the fault of one
    keeps nobody from stopping the next: what nobody foresaw is logged, the rest was told where it arose.
    """
    for task in tasks:
        task.cancel()
    for task, outcome in zip(tasks, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
        if isinstance(outcome, Exception) and not isinstance(outcome, ApplianceError):
            _log.error("%s: %s\n%s", task.get_name(), type(outcome).__name__, frames_of(outcome))


async def uninterrupted(work: Awaitable[T]) -> T:
    """Its result; cancelled, it ends first: what it works on is not to be closed beneath it."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
