"""Children that die, hang or lie: what their callers get, what comes after, and who outlives whom."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from appliance.channel import MESSAGE_BYTES
from appliance.errors import InvalidImage, WorkerLost
from appliance.workers import Outcome, Worker
from tests.unit.workers.waiting import until

TARGETS = "tests.unit.workers.worker_targets"
REPOSITORY = Path(__file__).parents[2]


def worker(target: str, settings: dict[str, Any] | None = None, **options: Any) -> Worker:
    return Worker(target, f"{TARGETS}:{target}", settings or {}, **options)


async def test_what_a_child_answered_before_it_died_is_heard() -> None:
    """Also where the next request cannot be written any more, which ends the channel at once."""
    async with worker("echo", backoff_seconds=(0.001, 0.002)) as child:
        for _ in range(20):
            heard, *lost = await last_words(child)
            assert heard == b"last words"
            assert [type(outcome) for outcome in lost] == [WorkerLost, WorkerLost]


async def test_a_child_that_answers_one_after_the_other_does_not_hang() -> None:
    async with worker("unhurried", backoff_seconds=(0.001, 0.002)) as child:
        heard: list[Outcome] = []
        for number in range(6):
            child.submit(str(number).encode(), 0.8, heard.append)
        await until(lambda: len(heard) == 6)
        assert heard == [b"0", b"1", b"2", b"3", b"4", b"5"]
        assert child.restarts == 0
        for body in (b"6", b"hang", b"7"):
            child.submit(body, 0.8, heard.append)
        await until(lambda: len(heard) == 9)
        assert heard[6] == b"6"
        assert [type(outcome) for outcome in heard[7:]] == [WorkerLost, WorkerLost]


async def test_what_is_asked_of_a_child_that_hears_no_more_is_lost_and_not_an_error() -> None:
    async with worker("deaf", backoff_seconds=(0.001, 0.002)) as child:
        heard: list[Outcome] = []
        while not heard:
            if child.serving:
                child.submit(b"anything", 10, heard.append)
            await asyncio.sleep(0)
        await until(lambda: child.serving)
        assert all(isinstance(outcome, WorkerLost) for outcome in heard)
        assert child.restarts == 1


async def last_words(child: Worker) -> list[Outcome]:
    await child.until_serving()
    pid, heard = child.pid, list[Outcome]()
    assert pid is not None
    for body in (b"last words", b"die"):
        child.submit(body, 10, heard.append)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - the loop is held until it is gone
    child.submit(b"too late", 10, heard.append)
    await until(lambda: len(heard) == 3)
    return heard


@pytest.mark.parametrize(
    ("request_", "reason"),
    [(b"die", "was killed by SIGSEGV"), (b"fail", "exited with status 1"), (b"hang", "within 0.5 s")],
)
async def test_everyone_waiting_for_a_lost_child_hears_of_it_and_the_next_one_serves(
    request_: bytes, reason: str
) -> None:
    async with worker("echo", backoff_seconds=(0.01, 0.02)) as child:
        before = child.pid
        outcomes = await asyncio.gather(
            child.call(b"before", 10),
            child.call(request_, 0.5),
            child.call(b"behind", 10),
            return_exceptions=True,
        )
        assert outcomes[0] == b"before"
        assert all(isinstance(outcome, WorkerLost) and reason in str(outcome) for outcome in outcomes[1:])
        assert await child.call(b"after", 10) == b"after"
        assert child.restarts == 1
        assert child.pid != before


def framed(message: object) -> bytes:
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(4, "little") + body


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param((MESSAGE_BYTES + 1).to_bytes(4, "little"), id="announces too much"),
        pytest.param(b"\xff\xff\xff\xff" + b"x" * 1000, id="announces four gigabytes"),
        pytest.param(b"\x05\0\0\0\xc1\xc1\xc1\xc1\xc1", id="no msgpack"),
        pytest.param(framed({"id": 1}), id="another structure"),
        pytest.param(framed([0, "1", b""]), id="a wrong type"),
        pytest.param(framed([7, 1, b""]), id="an unknown kind"),
        pytest.param(framed([0, 99, b"an answer"]), id="an answer to nothing"),
        pytest.param(framed([0, 0, b"\x80"]), id="a second start"),
        pytest.param(framed([1, 1, "SystemExit", "an error it may not name"]), id="a foreign error"),
        pytest.param(framed([1, 1, "ConfigInvalid", "another"]), id="an error of another part"),
        pytest.param(framed([0, -1, b""]), id="a negative id"),
    ],
)
async def test_a_malformed_answer_is_the_death_of_its_sender(raw: bytes) -> None:
    async with worker("talks_nonsense", {"raw": raw}, backoff_seconds=(0.01, 0.02)) as child:
        before = child.pid
        assert before is not None
        with pytest.raises(WorkerLost, match="malformed"):
            await child.call(b"speak", 10)
        await child.until_serving()
        assert child.restarts == 1
        assert not psutil.pid_exists(before)


async def test_a_child_that_answers_twice_and_then_closes_is_replaced() -> None:
    twice = framed([0, 1, b"answer"]) + framed([0, 1, b"answer"])
    async with worker("talks_nonsense", {"raw": twice}, backoff_seconds=(0.01, 0.02)) as child:
        before = child.pid
        assert await child.call(b"speak", 10) == b"answer"
        await until(lambda: child.serving and child.pid != before)
        assert child.restarts == 1


async def test_a_child_that_dies_again_and_again_is_restarted_ever_more_slowly() -> None:
    async with worker("echo", backoff_seconds=(0.1, 0.4)) as child:
        moments = []
        for _ in range(4):
            moments.append(time.monotonic())
            with pytest.raises(WorkerLost):
                await child.call(b"die", 10)
        moments.append(time.monotonic())
        waits = [after - before for before, after in pairwise(moments)]
        # Each call waits for the restart that the one before it caused: 0.1, 0.2 and 0.4 s.
        assert waits[1] >= 0.1
        assert waits[2] >= 0.2
        assert waits[3] >= 0.4
        assert await child.call(b"fine", 10) == b"fine"


@pytest.mark.parametrize("answered", [b"fine", b"refuse"])
async def test_a_child_that_has_answered_anything_is_replaced_at_once(answered: bytes) -> None:
    async with worker("echo", backoff_seconds=(60.0, 60.0)) as child:
        for _ in range(3):
            with contextlib.suppress(InvalidImage):
                await child.call(answered, 10)
            with pytest.raises(WorkerLost):
                await child.call(b"die", 10)
        assert await child.call(b"fine", 10) == b"fine"


async def test_a_call_waits_for_a_restart_no_longer_than_it_may() -> None:
    async with worker("echo", backoff_seconds=(30.0, 30.0)) as child:
        with pytest.raises(WorkerLost):
            await child.call(b"die", 10)
        assert not child.serving
        assert child.pid is None
        with pytest.raises(WorkerLost, match="restarted"):
            await child.call(b"too early", 0.1)


async def test_a_stopped_child_is_taken_for_hung() -> None:
    async with worker("echo", backoff_seconds=(0.01, 0.02)) as child:
        assert child.pid is not None
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(WorkerLost, match="within"):
            await child.call(b"anyone", 0.3)
        assert await child.call(b"again", 10) == b"again"


async def test_signals_for_the_daemon_do_not_end_its_children() -> None:
    async with worker("echo") as child:
        assert child.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(child.pid, number)
        assert await child.call(b"still here", 10) == b"still here"
        assert child.restarts == 0


def test_children_die_with_a_daemon_that_is_killed() -> None:
    script = (
        "import asyncio\n"
        "from appliance.workers import Outcome, Worker\n"
        "async def main():\n"
        f"    async with Worker('orphan', '{TARGETS}:echo', {{}}) as child:\n"
        "        hung = asyncio.ensure_future(child.call(b'hang', 600))\n"
        "        print(child.pid, flush=True)\n"
        "        await hung\n"
        "asyncio.run(main())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment, text=True
    ) as daemon:
        assert daemon.stdout is not None
        orphan = psutil.Process(int(daemon.stdout.readline()))
        daemon.kill()
    orphan.wait(timeout=10)
