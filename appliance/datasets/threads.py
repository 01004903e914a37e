"""Threads that wait for the disk in the event loop's place, for work that is short and comes often."""

import asyncio
import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

Work = Callable[[], None]
Outcome = tuple[asyncio.Future[Any], object, BaseException | None]


class Threads:
    """`count` threads called NAME_0 and so on, which take work in the order in which it was given.

    Of those that rest the one that worked last goes on, whose memory and caches are warm: work that comes
    piece by piece stays on one thread. An executor wakes another one each time, and the locks of its futures
    cost as much as sealing 100 KB does.
    """

    def __init__(self, count: int, name: str) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Work] = deque()
        self._resting: list[queue.SimpleQueue[Work | None]] = []  # the one that is to go on first is the last
        self._threads = []
        for number in range(count):
            given: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
            thread = threading.Thread(target=self._run, args=[given], name=f"{name}_{number}", daemon=True)
            self._resting.insert(0, given)
            self._threads.append(thread)
        self._open = False

    def start(self) -> None:
        """Work is done from now on."""
        self._open = True
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Finish what was given, and end. Blocks."""
        with self._lock:
            self._open = False
            resting, self._resting = self._resting, []
        for one in resting:
            one.put(None)
        for thread in self._threads:
            thread.join()

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """What `work` returns or raises. When the caller is cancelled it runs all the same.

        Raises RuntimeError before `start` and after `close`.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.submit(partial(_carry_out, future, work, arguments))
        return await future

    def submit(self, work: Work) -> None:
        """Have `work` done, which raises nothing. From any thread. Raises as `run`."""
        with self._lock:
            if not self._open:
                raise RuntimeError("nobody is there to do the work")
            if not self._resting:
                self._waiting.append(work)
                return
            one = self._resting.pop()
        one.put(work)

    def _run(self, given: queue.SimpleQueue[Work | None]) -> None:
        work = given.get()
        while work is not None:
            work()
            work = None  # what it gave is the caller's alone while this waits
            work = self._next(given)

    def _next(self, given: queue.SimpleQueue[Work | None]) -> Work | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            if not self._open:
                return None
            self._resting.append(given)
        return given.get()


def tell(outcomes: Iterable[Outcome]) -> None:
    """Settle futures of one loop, each with its result or its error, from any thread: the loop wakes once."""
    told = list(outcomes)
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        told[0][0].get_loop().call_soon_threadsafe(_settle, told)


def _carry_out(future: asyncio.Future[T], work: Callable[..., T], arguments: tuple[object, ...]) -> None:
    try:
        result = work(*arguments)
    except BaseException as error:  # noqa: BLE001 - it belongs to the caller, who waits on the loop
        tell([(future, None, error)])
    else:
        tell([(future, result, None)])


def _settle(outcomes: list[Outcome]) -> None:
    for future, result, error in outcomes:
        if future.cancelled():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
