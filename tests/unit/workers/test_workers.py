"""Child processes: what passes between daemon and child, what a child may do, and what a bad one costs."""

import asyncio
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from appliance.channel import MESSAGE_BYTES, Limits
from appliance.errors import CapacityExceeded, InvalidImage, TooLarge, WorkerLost, WorkerRefused
from appliance.workers import RELEASE_BYTES, Memory, Worker
from tests.unit.workers.waiting import until

TARGETS = "tests.unit.workers.worker_targets"
REPOSITORY = Path(__file__).parents[3]


def worker(target: str, settings: dict[str, Any] | None = None, **options: Any) -> Worker:
    return Worker(target, f"{TARGETS}:{target}", settings or {}, **options)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_settings_go_in_and_info_comes_out() -> None:
    settings = {"number": 7, "nested": {"list": [1, 2]}, "bytes": b"\x00\xff"}
    async with worker("echo", settings) as child:
        assert child.info["settings"] == settings
        assert child.pid == child.info["pid"] != os.getpid()


async def test_concurrent_calls_each_get_their_own_answer() -> None:
    bodies = [f"request {number}".encode() for number in range(200)]
    async with worker("echo") as child:
        assert await asyncio.gather(*(child.call(body, 10) for body in bodies)) == bodies


async def test_answers_may_come_in_any_order() -> None:
    bodies = [b"first", b"second", b"third"]
    async with worker("backwards") as child:
        assert await asyncio.gather(*(child.call(body, 10) for body in bodies)) == bodies


async def test_a_message_larger_than_any_socket_buffer_arrives_whole() -> None:
    body = os.urandom(5_000_000)
    async with worker("echo") as child:
        assert await child.call(body, 10) == body


async def test_a_message_over_the_limit_is_refused_before_it_is_sent() -> None:
    async with worker("echo") as child:
        with pytest.raises(TooLarge, match=str(MESSAGE_BYTES)):
            await child.call(bytes(MESSAGE_BYTES), 10)
        assert await child.call(b"still here", 10) == b"still here"
        assert child.restarts == 0


async def test_a_child_takes_what_has_arrived_at_once() -> None:
    async with worker("batches") as child:
        first = asyncio.ensure_future(child.call(b"wait", 10))
        await asyncio.sleep(0)
        rest = await asyncio.gather(*(child.call(b"more", 10) for _ in range(7)))
        # The eight were sent in one step of the loop, so the child met the seven when it had waited.
        assert await first == b"8"
        assert rest == [b"8"] * 7


async def test_a_refusal_is_raised_as_the_error_it_names_and_costs_nothing() -> None:
    async with worker("echo") as child:
        before = child.pid
        with pytest.raises(InvalidImage, match="not an image"):
            await child.call(b"refuse", 10)
        assert await child.call(b"next", 10) == b"next"
        assert child.pid == before


async def test_bulk_is_worked_on_in_place() -> None:
    memory = Memory(1 << 20)
    try:
        async with worker("upper_case", memories=[memory]) as child:
            memory.view[1000:1005] = b"hello"
            assert await child.call(b"1000 5", 10) == b"done"
            assert bytes(memory.view[998:1007]) == b"\0\0HELLO\0\0"
    finally:
        memory.close()


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 100), (5, 4096), (100, RELEASE_BYTES), (4096, 3 * RELEASE_BYTES + 17)]
)
def test_wiping_leaves_zeros_inside_and_everything_else_outside(offset: int, length: int) -> None:
    memory = Memory(5 * RELEASE_BYTES)
    try:
        memory.view[:] = b"\xaa" * memory.size
        memory.wipe(offset, length)
        assert not any(memory.view[offset : offset + length])
        assert bytes(memory.view[:offset]) == b"\xaa" * offset
        assert bytes(memory.view[offset + length :]) == b"\xaa" * (memory.size - offset - length)
    finally:
        memory.close()


def test_wiping_a_large_region_gives_its_pages_back() -> None:
    memory = Memory(3 * RELEASE_BYTES)
    try:
        memory.view[:] = b"\xaa" * memory.size
        full = os.fstat(memory.fd).st_blocks * 512
        memory.wipe(0, 2 * RELEASE_BYTES)
        assert full == memory.size
        assert os.fstat(memory.fd).st_blocks * 512 == RELEASE_BYTES
    finally:
        memory.close()


def test_released_memory_is_zero_and_takes_no_pages() -> None:
    memory = Memory(RELEASE_BYTES // 4)
    try:
        memory.view[:] = b"\xaa" * memory.size
        memory.release()
        assert os.fstat(memory.fd).st_blocks == 0
        assert not any(memory.view)
    finally:
        memory.close()


def test_a_forgotten_view_keeps_nothing_and_does_not_fail_the_end(caplog: pytest.LogCaptureFixture) -> None:
    memory = Memory(2 * RELEASE_BYTES)
    memory.view[:] = b"\xaa" * memory.size
    forgotten = memory.view[:100]
    descriptor = os.dup(memory.fd)
    memory.close()
    assert "stays mapped" in caplog.text
    assert os.fstat(descriptor).st_blocks == 0
    assert bytes(forgotten) == bytes(100)
    os.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memory.fd)


async def test_no_one_resizes_shared_memory_under_the_daemon() -> None:
    memory = Memory(1 << 16)
    try:
        async with worker("shrink", memories=[memory]) as child:
            outcomes = (await child.call(b"try", 10)).split()
        assert outcomes
        assert set(outcomes) == {b"refused"}
        assert len(bytes(memory.view)) == 1 << 16
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fd, 1 << 20)
    finally:
        memory.close()


async def test_a_child_inherits_its_channel_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "of the daemon")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)  # which OpenCV sets when a test imports it
    descriptor = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    memory = Memory(4096)
    try:
        async with worker("report", memories=[memory]) as child:
            info = child.info
    finally:
        memory.close()
        os.close(descriptor)
    kinds = sorted(re.sub(r"[:\[ ].*", "", link.lstrip("/")) for link in info["descriptors"].values())
    # The map keeps a descriptor of the memory; output and errors are one pipe to the daemon's log.
    assert kinds == ["memfd", "pipe", "pipe", "socket"]
    assert info["environment"] == {
        "CUDA_VISIBLE_DEVICES": "1",
        "LC_ALL": "C.UTF-8",
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_MMAP_THRESHOLD_": "4194304",
        "MALLOC_TRIM_THRESHOLD_": "16777216",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
    }


async def test_a_child_is_confined_before_its_target_is_imported() -> None:
    limits = Limits(address_space_bytes=1 << 30, file_bytes=0, nice=3)
    async with worker("report", limits=limits) as child:
        info = child.info
    assert info["address_space"] == [1 << 30, 1 << 30]
    assert info["file_size"] == [0, 0]
    assert info["core"] == [0, 0]
    assert info["nice"] == min(os.nice(0) + 3, 19)
    assert (info["dumpable"], info["no_new_privileges"]) == (0, 1)
    assert info["session"]
    assert info["folder"] == "/"


async def test_a_child_is_limited_when_it_is_known_what_it_needs() -> None:
    async with worker("report") as child:
        assert child.pid is not None
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        for size in (2 << 30, 1 << 30, 3 << 30):
            child.limit_address_space(size)
            assert resource.prlimit(child.pid, resource.RLIMIT_AS) == (size, most)
        psutil.Process(child.pid).kill()
        await until(lambda: child.restarts == 1 and child.serving)
        assert resource.prlimit(child.pid, resource.RLIMIT_AS) == resource.getrlimit(resource.RLIMIT_AS)


async def test_a_child_that_reads_memory_all_over_gets_huge_pages() -> None:
    async with worker("report", limits=Limits(huge_pages=True)) as child:
        assert child.info["environment"]["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"


async def test_a_child_that_cannot_start_says_why() -> None:
    with pytest.raises(WorkerRefused, match=r"libexample.so.1 is missing: install example"):
        await worker("refuses_to_start").__aenter__()
    with pytest.raises(WorkerRefused, match=r"SIGABRT: native library: cannot go on before it was ready"):
        await worker("dies_at_start").__aenter__()
    with pytest.raises(WorkerRefused, match="no_such_target"):
        await worker("no_such_target").__aenter__()


async def test_leaving_kills_the_child_and_closes_every_descriptor() -> None:
    before = open_descriptors()
    async with worker("echo") as child:
        pid = child.pid
        assert pid is not None
        waiting = asyncio.ensure_future(child.call(b"hang", 60))
        await asyncio.sleep(0)
    with pytest.raises(WorkerLost, match="stopped"):
        await waiting
    assert not psutil.pid_exists(pid)
    await until(lambda: open_descriptors() == before)


async def test_a_cancelled_call_leaves_the_child_and_the_others_alone() -> None:
    async with worker("batches") as child:
        first = asyncio.ensure_future(child.call(b"wait", 10))
        second = asyncio.ensure_future(child.call(b"more", 10))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == b"2"
        with pytest.raises(asyncio.CancelledError):
            await first
        assert child.restarts == 0


async def test_on_start_comes_before_every_other_call_also_after_a_restart() -> None:
    seen: list[bytes] = []

    async def restore() -> None:
        seen.append(await child.call(b"restored", 10))

    child = worker("echo", on_start=restore)
    async with child:
        with pytest.raises(WorkerLost):
            await child.call(b"die", 10)
        seen.append(await child.call(b"served", 10))
    assert seen == [b"restored", b"restored", b"served"]


async def test_an_on_start_that_fails_is_tried_again_with_a_new_child() -> None:
    attempts = 0

    async def fail_twice() -> None:
        nonlocal attempts
        attempts += 1
        if attempts in (2, 3):
            raise CapacityExceeded("not yet")

    async with worker("echo", on_start=fail_twice, backoff_seconds=(0.01, 0.02)) as child:
        with pytest.raises(WorkerLost):
            await child.call(b"die", 10)
        assert await child.call(b"back", 10) == b"back"
        assert (attempts, child.restarts) == (4, 3)


async def test_lines_of_a_child_reach_the_log_printable_and_bounded(caplog: pytest.LogCaptureFixture) -> None:
    async with worker("chatters") as child:
        await until(lambda: len(caplog.records) >= 100)
        assert child.restarts == 0
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 100
    assert all(line.isprintable() for line in said)
    assert said[0].endswith("says: line 0 [31m")


def test_the_same_on_the_loop_that_serves() -> None:
    async def main() -> list[bytes]:
        async with worker("echo", backoff_seconds=(0.01, 0.02)) as child:
            answers = [await child.call(b"before", 10)]
            for request in (b"die", b"hang"):
                with pytest.raises(WorkerLost):
                    await child.call(request, 0.5)
                answers.append(await child.call(b"after " + request, 10))
            return answers

    assert uvloop.run(main()) == [b"before", b"after die", b"after hang"]


def test_messages_of_any_size_keep_their_order_on_it() -> None:
    bodies = [os.urandom(10 if number % 3 else 3_000_000) for number in range(10)]

    async def main() -> list[bytes]:
        async with worker("echo") as child:
            return await asyncio.gather(*(child.call(body, 10) for body in bodies))

    assert uvloop.run(main()) == bodies


def test_no_path_is_opened_for_what_crosses(tmp_path: Path) -> None:
    """System calls of a daemon and its child between two marks: a start, bulk, a death and a restart."""
    trace = tmp_path / "trace"
    subprocess.run(
        ["strace", "-f", "-qq", "-o", trace, "-e", "trace=%file,memfd_create", sys.executable, __file__],
        check=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    calls = trace.read_text().splitlines()
    assert any("memfd_create" in call for call in calls)
    written = [
        call for call in calls if re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TMPFILE|creat\(|mkdir|rename", call)
    ]
    # The interpreter may keep the compiled form of a module it meets for the first time.
    assert [call for call in written if "__pycache__" not in call and "/dev/null" not in call] == []
    daemon = calls[0].split()[0]
    first, last = (
        next(i for i, call in enumerate(calls) if mark in call) for mark in ("/mark/one", "/mark/two")
    )
    ours = [
        call for call in calls[first + 1 : last] if call.startswith(f"{daemon} ") and "execve" not in call
    ]
    assert [call for call in ours if "open" in call] == []


async def _traced() -> None:
    memory = Memory(2 * RELEASE_BYTES)
    os.access("/mark/one", os.F_OK)
    async with worker("upper_case", memories=[memory]) as child:
        memory.view[:RELEASE_BYTES] = b"x" * RELEASE_BYTES
        await child.call(f"0 {RELEASE_BYTES}".encode(), 10)
        memory.wipe(0, RELEASE_BYTES)
        os.kill(child.pid or 0, 9)
        await until(lambda: child.restarts == 1 and child.serving)
    os.access("/mark/two", os.F_OK)
    memory.close()


if __name__ == "__main__":
    asyncio.run(_traced())
