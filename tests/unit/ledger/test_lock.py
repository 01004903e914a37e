"""The state lock: one holder, named by pid, gone with its process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.errors import StateInUse
from appliance.ledger import StateLock, holder

HOLDING = """
import sys
from pathlib import Path
from appliance.ledger import StateLock
lock = StateLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_the_file_contains_the_pid(tmp_path: Path) -> None:
    lock = StateLock(tmp_path)
    assert holder(tmp_path) is None
    lock.acquire()
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
    assert holder(tmp_path) == os.getpid()
    lock.release()
    lock.release()
    assert holder(tmp_path) is None


def test_the_file_keeps_its_block(tmp_path: Path) -> None:
    """On a full volume there is none for the pid of the next start."""
    blocks = []
    for _ in range(2):
        lock = StateLock(tmp_path)
        lock.acquire()
        os.fsync(lock._fd or -1)
        lock.release()
        blocks.append((tmp_path / "lock").stat().st_blocks)
    assert blocks[0] > 0
    assert blocks[0] == blocks[1]


def test_a_second_holder_is_refused_even_in_the_same_process(tmp_path: Path) -> None:
    first, second = StateLock(tmp_path), StateLock(tmp_path)
    first.acquire()
    with pytest.raises(StateInUse) as refused:
        second.acquire()
    told = str(refused.value)
    assert told.startswith(f"state folder {tmp_path} is held by the process with pid {os.getpid()}: ")
    assert "stop it" in told
    first.release()
    second.acquire()
    second.release()


def test_asking_does_not_take_the_lock_from_anybody(tmp_path: Path) -> None:
    lock = StateLock(tmp_path)
    lock.acquire()
    assert holder(tmp_path) == os.getpid()
    assert holder(tmp_path) == os.getpid()
    with pytest.raises(StateInUse):
        StateLock(tmp_path).acquire()
    lock.release()


def test_a_killed_holder_frees_the_folder(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert holder(tmp_path) == process.pid
        with pytest.raises(StateInUse, match=f"pid {process.pid}:"):
            StateLock(tmp_path).acquire()
        process.kill()
        process.wait()
        assert holder(tmp_path) is None
        lock = StateLock(tmp_path)
        lock.acquire()
        assert holder(tmp_path) == os.getpid()
        lock.release()


def test_a_holder_that_has_not_written_its_pid(tmp_path: Path) -> None:
    lock = StateLock(tmp_path)
    lock.acquire()
    (tmp_path / "lock").write_text("")
    assert holder(tmp_path) == 0
    with pytest.raises(StateInUse, match="just starting"):
        StateLock(tmp_path).acquire()
    lock.release()


def test_a_disk_that_is_gone_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(fd: int, length: int) -> None:
        raise OSError(30, "Read-only file system")

    lock = StateLock(tmp_path)
    lock.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", failing)
        lock.release()
    assert holder(tmp_path) is None
