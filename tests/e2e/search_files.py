"""Run in the guest: prints every file changed since a time that holds one of some pieces of bytes.

Arguments: seconds since 1970, then the pieces in hexadecimal. Searched is every filesystem that keeps what is
written to it, as the machine sees it and as the daemon does, and the journal's messages.
"""

import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator

KERNEL = ("/proc", "/sys", "/dev/pts", "/dev/mqueue")


def changed(root: str, since: float, seen: set[tuple[int, int]]) -> Iterator[str]:
    for folder, folders, names in os.walk(root or "/"):
        inside = folder[len(root) :].rstrip("/")
        folders[:] = [name for name in folders if f"{inside}/{name}" not in KERNEL]
        for name in names:
            path = f"{root}{inside}/{name}"
            try:
                found = os.lstat(path)
            except OSError:
                continue
            key = (found.st_dev, found.st_ino)
            if stat.S_ISREG(found.st_mode) and found.st_mtime >= since and key not in seen:
                seen.add(key)
                yield path


def main(since: float, pieces: list[bytes]) -> None:
    pattern = re.compile(b"|".join(map(re.escape, pieces)))
    show = ["systemctl", "show", "--property=MainPID", "--value", "appliance.service"]
    daemon = subprocess.run(show, capture_output=True, text=True, check=True).stdout.strip()
    seen: set[tuple[int, int]] = set()
    for root in ("", f"/proc/{daemon}/root"):
        for path in changed(root, since, seen):
            try:
                with open(path, "rb") as file:  # noqa: PTH123
                    content = file.read()
            except OSError:
                continue
            if pattern.search(content):
                print(path)
    journal = subprocess.run(
        ["journalctl", "--all", "--output=export", f"--since=@{int(since)}"], capture_output=True, check=True
    )
    assert journal.stdout, "the journal shows nothing: nothing was proved by searching it"
    if pattern.search(journal.stdout):
        print("journal")


main(float(sys.argv[1]), [bytes.fromhex(word) for word in sys.argv[2:]])
