"""What the service manager offers: readiness, watchdog, credentials, the journal. All of it optional."""

import logging
import os
import socket
import sys
from pathlib import Path

_log = logging.getLogger(__name__)

NOTIFY_SECONDS = 0.2

# Priorities of sd-daemon(3): a line on stderr that starts with <N> is filed under N by the journal.
_PRIORITY = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def notify(*lines: str) -> None:
    """Tell the manager, e.g. "READY=1"; without NOTIFY_SOCKET nothing happens, a failure is only logged.

    A manager that does not read is waited for NOTIFY_SECONDS, never longer.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(NOTIFY_SECONDS)
            channel.connect(address)
            channel.sendall("\n".join(lines).encode())
    except OSError as error:
        _log.warning("the service manager was not told %s: %s", lines, error)


def watchdog_seconds() -> float | None:
    """After how much silence the manager kills this process, None when no watchdog watches it."""
    pid = os.environ.get("WATCHDOG_PID")
    if pid is not None and pid != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdigit() and int(microseconds) > 0 else None


def credential(name: str) -> bytes | None:
    """The credential of that file name in $CREDENTIALS_DIRECTORY, None when the manager passed none."""
    if not name or "/" in name or name.startswith("."):
        raise ValueError(f"{name!r} is not the name of a credential")
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return None
    try:
        return (Path(folder) / name).read_bytes()
    except FileNotFoundError:
        return None


def log_handler() -> logging.Handler:
    """A handler for the journal when stderr is connected to it, else for stderr, one line a record."""
    to_journal = _stderr_is_the_journal()
    if to_journal:
        try:
            from systemd.journal import JournalHandler  # noqa: PLC0415 - an optional extra
        except ImportError:
            pass
        else:
            journal: logging.Handler = JournalHandler(SYSLOG_IDENTIFIER="appliance")
            journal.setFormatter(logging.Formatter("%(name)s: %(message)s"))
            return journal
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(prefix_priority=to_journal))
    return handler


class _OneLine(logging.Formatter):
    """Line breaks, of a traceback or smuggled into a message, become visible escapes."""

    def __init__(self, *, prefix_priority: bool) -> None:
        super().__init__(
            "%(name)s: %(message)s" if prefix_priority else "%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
        self._prefix_priority = prefix_priority

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record).replace("\r", "\\r").replace("\n", "\\n")
        if not self._prefix_priority:
            return line
        priority = next((number for level, number in _PRIORITY if record.levelno >= level), 7)
        return f"<{priority}>{line}"


def _stderr_is_the_journal() -> bool:
    """JOURNAL_STREAM is "device:inode" of the stream the manager gave us (systemd.exec(5))."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
