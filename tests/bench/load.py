"""A load client in a process of its own, so that its CPU time and its interpreter are not the server's.

Closed: so many requests on the way at any time. Open: requests fall due at their times, whatever has become
of the others, and their latency counts from then.
"""

import asyncio
import contextlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from time import perf_counter as clock  # uvloop's own counts in milliseconds
from typing import Any, Self

import numpy as np
import uvloop

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
CLOSES = re.compile(rb"\r\nconnection: *close\r\n", re.IGNORECASE)
LARGEST_ANSWER = 1 << 20
LOST = 0  # in the place of a status: the connection was refused or broke off


@dataclass(frozen=True)
class Answer:
    """When it came, in seconds from the beginning, how long it took, and its status."""

    at: float
    seconds: float
    status: int


@dataclass(frozen=True)
class Outcome:
    """All answers of one load, and how long it lasted."""

    answers: Sequence[Answer]
    seconds: float

    def count(self, *statuses: int) -> int:
        return sum(answer.status in statuses for answer in self.answers)

    @property
    def rate(self) -> float:
        """Answers with status 200 a second."""
        return self.count(200) / self.seconds

    def quantile(self, share: float, *statuses: int) -> float:
        """Milliseconds within which this share of the answers with these statuses (200) came."""
        kept = [one.seconds for one in self.answers if one.status in (statuses or (200,))]
        return 1000 * float(np.quantile(kept, share)) if kept else float("nan")


class Client:
    """The process, as a context. `port` is one of 127.0.0.1; a request is its bytes, head and body."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()  # so that a process that dies is noticed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def closed(self, port: int, request: bytes, *, at_once: int, count: int) -> Outcome:
        return self._ask("closed", port, request, at_once, count)

    def open(self, port: int, request: bytes, *, due: Sequence[float]) -> Outcome:
        """`due`: when each request falls due, in seconds from the beginning."""
        return self._ask("open", port, request, due)

    def _ask(self, *work: Any) -> Outcome:
        self._ours.send(work)
        outcome = self._ours.recv()
        assert isinstance(outcome, Outcome), outcome
        return outcome


def request(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """A POST on a connection that is kept."""
    head = {"Host": "localhost", "Content-Length": str(len(body)), **headers}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def evenly(rate: float, seconds: float) -> list[float]:
    """Requests at equal distances."""
    return [number / rate for number in range(int(rate * seconds))]


def at_random(rate: float, seconds: float, seed: int) -> list[float]:
    """Requests of many who know nothing of each other (Poisson)."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds))
    return [float(moment) for moment in np.cumsum(gaps)]


def _serve(asker: "Connection[Any, Any]") -> None:
    """The process's main."""
    while True:
        kind, *work = asker.recv()
        asker.send(uvloop.run(_closed(*work) if kind == "closed" else _open(*work)))


@dataclass
class _Pool:
    """Connections that nobody uses at the moment; a new one is made where there is none."""

    port: int
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def ask(self, request: bytes) -> int:
        """The status of the answer, which is read to its end; LOST where there is none."""
        writer = None
        try:
            if self.idle:
                reader, writer = self.idle.pop()
            else:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=LARGEST_ANSWER)
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if length := LENGTH.search(head):
                await reader.readexactly(int(length[1]))
            else:
                await reader.readuntil(b"\r\n0\r\n\r\n")  # chunked: the last chunk is empty
        except (OSError, EOFError):
            if writer is not None:
                writer.close()
            return LOST
        if CLOSES.search(head):
            writer.close()
        else:
            self.idle.append((reader, writer))
        return int(head[9:12])

    def close(self) -> None:
        for _, writer in self.idle:
            writer.close()


async def _closed(port: int, request: bytes, at_once: int, count: int) -> Outcome:
    numbers, answers, began = itertools.count(), list[Answer](), clock()

    async def one_after_the_other(pool: _Pool) -> None:
        while next(numbers) < count:
            asked = clock()
            status = await pool.ask(request)
            answers.append(Answer(clock() - began, clock() - asked, status))

    with contextlib.closing(_Pool(port)) as pool:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                _ = group.create_task(one_after_the_other(pool))
        return Outcome(answers, clock() - began)


async def _open(port: int, request: bytes, due: Sequence[float]) -> Outcome:
    answers, began = list[Answer](), clock()

    async def ask(pool: _Pool, moment: float) -> None:
        status = await pool.ask(request)
        answers.append(Answer(clock() - began, clock() - began - moment, status))

    with contextlib.closing(_Pool(port)) as pool:
        async with asyncio.TaskGroup() as group:
            for moment in due:
                if (wait := moment - (clock() - began)) > 0:
                    await asyncio.sleep(wait)
                _ = group.create_task(ask(pool, moment))
        return Outcome(answers, clock() - began)
