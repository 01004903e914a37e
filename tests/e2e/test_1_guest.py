"""The guest itself: what the other checks stand on."""

import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tests.e2e.guest import Guest

WRITE = """
import os
for name, durable in (("kept", True), ("lost", False)):
    with open(f"/root/{name}", "wb") as file:
        file.write(os.urandom(1 << 16))
        if durable:
            os.fsync(file.fileno())
    if durable:
        os.fsync(os.open("/root", os.O_RDONLY))
"""
START_AND_WAIT = """
import sys
from pathlib import Path
from tests.e2e import guest, image
started = guest.Guest(image.Image(Path("/nowhere")), Path(sys.argv[1]), guest.Hardware())
started._launch("sleep", "600")
print(started._children[0].pid, flush=True)
sys.stdin.read()
"""


def test_guest_boots_without_failed_units(guest: Guest) -> None:
    assert guest.output("systemctl is-system-running --wait || systemctl --failed") == "running"


def test_guest_reaches_nothing_outside(guest: Guest) -> None:
    """Neither this machine, by a port that listens here, nor a name, nor an address beyond."""
    connect = (
        "import socket, sys\n"
        "for host, port in (('10.0.2.2', int(sys.argv[1])), ('192.0.2.1', 443), ('deb.debian.org', 80)):\n"
        "    try:\n"
        "        socket.create_connection((host, port), timeout=5)\n"
        "        print('reached', host)\n"
        "    except OSError:\n"
        "        pass\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as here:
        assert guest.python(connect, str(here.getsockname()[1])) == ""


def test_power_cut_loses_what_was_not_flushed_and_nothing_else(guest: Guest) -> None:
    """The control of all power cuts: a cut that lost nothing would prove nothing."""
    guest.python(WRITE)
    guest.cut()
    guest.boot()
    assert guest.output("stat -c %s /root/kept") == str(1 << 16)
    assert guest.output("cat /root/lost 2>/dev/null | tr -d '\\0' | wc -c") == "0"
    guest.run("rm -f /root/kept /root/lost")


def test_guest_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", START_AND_WAIT, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":
            time.sleep(0.01)
        starter.send_signal(signal.SIGKILL)
        starter.communicate()
    with suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(10)
