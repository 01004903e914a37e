"""./dev run: what a newcomer sees, what a stop and a crash do, and what an interrupted first run leaves."""

import os
import queue
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

import pytest

from demo.state import prepare
from tests import images
from tests.running import CopyState, RunningAppliance, free_port

SECONDS = 60.0


class DemoRun:
    """`./dev run` after its installation steps, with what it says so far."""

    def __init__(self, state: Path, port: int, *arguments: str) -> None:
        command = [sys.executable, "-m", "demo", "--port", str(port), "--state", str(state), *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.said = ""
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)

    def until(self, text: str) -> str:
        """Everything said until a line holds `text`; fails when it ends or hangs before."""
        while text not in self.said:
            line = self._lines.get(timeout=SECONDS)
            assert line is not None, f"it ended: {self.said}"
            self.said += line
        return self.said

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.end()

    def end(self) -> int:
        """The exit code, when it ends by itself."""
        code = self.process.wait(SECONDS)
        while (line := self._lines.get(timeout=SECONDS)) is not None:
            self.said += line
        return code


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five photos in two levels, one of them broken, and a file that is none."""
    album = tmp_path / "my photos"
    (album / "2024" / "sea").mkdir(parents=True)
    for number, name in enumerate(["one.jpg", "TWO.JPEG", "2024/three.jpg", "2024/sea/čtyři.jpg"]):
        (album / name).write_bytes(images.jpeg(100, seed=number))
    (album / "2024" / "broken.png").write_bytes(images.truncated())
    (album / "notes.txt").write_text("no photo")
    return album


def test_a_first_and_a_second_run(copy_state: CopyState, folder: Path) -> None:
    state = copy_state()
    port = free_port()
    for name in ("demo.token", "demo.collection", "demo.task"):  # as if the first run had been interrupted
        (state.folder / name).unlink()
    with DemoRun(state.folder, port, str(folder)) as first:
        await_port(first, port)
        for path in (state.token_file, state.collection_file, state.task_file):
            assert re.fullmatch(r"\S{30,70}\s*", path.read_text()), path
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        said = first.until("Ctrl-C")
        assert "skipped 2024/broken.png: the image is truncated or damaged" in said
        assert "5/5" in said
        assert "0.0000" in said
        assert "curl " in said
        assert re.search(r"operator +127\.0\.0\.1:\d+", said)
        assert int((state.folder / "lock").read_text()) != first.process.pid
        assert state.ask("status")["profile"] == "demo"
        assert first.stop(signal.SIGINT) == 0
    assert not answers(port)

    with DemoRun(state.folder, port, str(folder)) as second:
        said = second.until("Ctrl-C")
        assert "4 of 5 photos are there already" in said
        assert float(re.search(r"ready after [\d.]+ s, ([\d.]+) s of CPU", said)[1]) > 0.1  # type: ignore[index]
        os.kill(int((state.folder / "lock").read_text()), signal.SIGKILL)
        assert second.end() == 128 + signal.SIGKILL
    assert not answers(port)


def test_the_printed_lines_work_when_pasted(copy_state: CopyState, folder: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    state = copy_state()
    with DemoRun(state.folder, free_port(), str(folder)) as running:
        said = running.until("Ctrl-C")
        pasted = re.findall(r"^ *curl (?:.*\\\n)*.*$", said, re.MULTILINE)
        assert len(pasted) == 2
        for line in pasted:
            done = subprocess.run(
                ["sh", "-c", f"{line} --silent --show-error"], capture_output=True, text=True, check=True
            )
            assert '"code":200' in done.stdout, (line, done.stdout)
        command = next(line for line in said.splitlines() if line.startswith("command"))
        subprocess.run(shlex.split(command)[1:], capture_output=True, check=True)


def test_two_daemons_on_one_state_folder(copy_state: CopyState) -> None:
    state = copy_state()
    configured = state.config.read_bytes()
    with RunningAppliance(state, state.port) as first:
        logged = state.log.read_bytes()
        with DemoRun(state.folder, free_port()) as second:
            assert second.end() == 1
        assert f"pid {first.pid}" in second.said
        assert state.config.read_bytes() == configured
        assert state.log.read_bytes().startswith(logged)


def test_a_configuration_error_ends_it_with_78(copy_state: CopyState) -> None:
    state = copy_state()
    (state.folder / "residency.toml").write_text('site = "x"\ncountry = "US"\n')
    with DemoRun(state.folder, free_port()) as running:
        assert running.end() == 78
        assert "residency.toml" in running.said
        assert "country" in running.said


def test_an_edited_configuration_is_kept(copy_state: CopyState) -> None:
    state = copy_state()
    edited = state.config.read_text() + '\n[log]\nlevel = "debug"  # mine\n'
    state.config.write_text(edited)
    prepare(state.folder, 12345, print)
    assert state.config.read_text() == edited.replace(str(state_port(edited)), "12345")


def state_port(text: str) -> int:
    found = re.search(r"127\.0\.0\.1:(\d{2,5})\"\]", text)
    assert found
    return int(found[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def await_port(running: DemoRun, port: int) -> None:
    deadline = time.monotonic() + SECONDS
    while not answers(port):
        assert running.process.poll() is None, running.said
        assert time.monotonic() < deadline
        time.sleep(0.005)
