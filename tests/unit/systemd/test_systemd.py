"""What the service manager offers, with sockets, folders and streams of our own in its place."""

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.systemd import _OneLine, credential, log_handler, notify, watchdog_seconds


@pytest.mark.parametrize("abstract", [False, True])
def test_notify_sends_one_datagram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"@appliance-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1", "STATUS=serving")
        assert manager.recv(100) == b"READY=1\nSTATUS=serving"


def test_notify_without_a_manager_is_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    assert caplog.records == []
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")
    assert "was not told ('READY=1',)" in caplog.text


def test_a_manager_that_does_not_read_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        while "was not told" not in caplog.text:  # until its queue is full; without a limit this never ends
            notify("WATCHDOG=1")


@pytest.mark.parametrize(
    ("microseconds", "pid", "expected"),
    [
        ("30000000", None, 30.0),
        pytest.param("500000", str(os.getpid()), 0.5, id="its own"),
        ("30000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_the_watchdog(
    monkeypatch: pytest.MonkeyPatch, microseconds: str | None, pid: str | None, expected: float | None
) -> None:
    for name, value in (("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert watchdog_seconds() == expected


def test_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root.key").write_bytes(b"\x00\xff")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert credential("root.key") is None
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert credential("root.key") == b"\x00\xff"
    assert credential("other.key") is None


@pytest.mark.parametrize("name", ["", "../root.key", "/etc/passwd", "..", ".hidden"])
def test_what_is_no_name_of_a_credential(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a credential"):
        credential(name)


def test_without_a_journal_lines_go_to_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:1")
    handler = log_handler()
    assert isinstance(handler, logging.StreamHandler)
    assert handler.stream is sys.stderr


def test_a_record_is_one_line_whatever_is_in_it() -> None:
    error = ValueError("first\nsecond")
    record = logging.LogRecord("a.b", logging.ERROR, "", 0, "bad\r\ninput", (), (ValueError, error, None))
    line = _OneLine(prefix_priority=False).format(record)
    assert "\n" not in line
    assert "\r" not in line
    assert "ERROR a.b: bad\\r\\ninput\\nValueError: first\\nsecond" in line


@pytest.mark.parametrize(
    ("level", "prefix"),
    [(logging.CRITICAL, "<2>"), (logging.ERROR, "<3>"), (logging.WARNING, "<4>"), (20, "<6>"), (10, "<7>")],
)
def test_the_journal_reads_the_priority_from_the_line(level: int, prefix: str) -> None:
    record = logging.LogRecord("a", level, "", 0, "text", (), None)
    assert _OneLine(prefix_priority=True).format(record) == f"{prefix}a: text"


HANDLER = """
import os, sys
status = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
if sys.argv[1] == "absent":
    sys.modules["systemd.journal"] = None
from appliance.systemd import log_handler
print(type(log_handler()).__name__)
"""


@pytest.mark.parametrize(("extra", "handler"), [("installed", "JournalHandler"), ("absent", "StreamHandler")])
def test_stderr_connected_to_the_journal(extra: str, handler: str) -> None:
    if extra == "installed":
        pytest.importorskip("systemd.journal")
    found = subprocess.run(
        [sys.executable, "-c", HANDLER, extra], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout == f"{handler}\n"
