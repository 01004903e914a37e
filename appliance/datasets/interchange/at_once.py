"""Several works at once, each on bytes that are held: so many of them, and so many bytes, and no more."""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self


class AtOnce:
    """At most `works` at once on at most `size` bytes together, or one on more.

    Leaving waits for all of them and raises what the first failed with, as `room` does meanwhile; an error
    within the block cancels them.
    """

    def __init__(self, works: int, size: int) -> None:
        self._works = works
        self._size = size
        self._tasks: dict[asyncio.Task[None], int] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._tasks and error is None:
                await self._some_end()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def room(self, size: int) -> None:
        """Return when one more work on `size` bytes may begin."""
        while self._tasks and (
            len(self._tasks) >= self._works or sum(self._tasks.values()) + size > self._size
        ):
            await self._some_end()

    def start(self, size: int, work: Coroutine[Any, Any, None]) -> None:
        """Begin a work; there must be room for it."""
        self._tasks[asyncio.get_running_loop().create_task(work)] = size

    async def _some_end(self) -> None:
        ended, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            del self._tasks[task]
        errors = [error for task in ended if (error := task.exception()) is not None]
        if errors:
            raise errors[0]
