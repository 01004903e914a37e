"""What strace says about a daemon and its children."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.running import RunningAppliance

CALLS = (
    "open,openat,openat2,creat,memfd_create,link,linkat,rename,renameat,renameat2,"
    "connect,sendto,sendmsg,sendmmsg"
)
OPENED = re.compile(r'\b(?:open|openat|openat2|creat)\((?:\w+(?:<(.*?)>)?, )?"([^"]*)"')
FAILED = re.compile(r"= -1 E\w+ ")
WRITING = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TMPFILE|creat\(")
TO_INET = re.compile(r'(?:inet_addr\(|inet_pton\(AF_INET6, )"([0-9a-f.:]+)"')


def addresses(calls: Iterable[str]) -> set[str]:
    """Internet addresses that traced calls connect or send to."""
    return {match[1] for call in calls if (match := TO_INET.search(call))}


@dataclass(frozen=True)
class Traced:
    """A daemon under strace -f, the folder its HOME points to, and what strace wrote so far."""

    appliance: RunningAppliance
    home: Path
    log: Path

    def calls(self) -> list[str]:
        """Every traced call of the daemon and its children until now, one text each."""
        return self.log.read_text(errors="replace").splitlines()

    def opened_for_writing(self) -> set[str]:
        """Paths of files that some process opened so that it could write, O_TMPFILE ones included."""
        return opened_for_writing(self.calls())


def opened_for_writing(calls: Iterable[str]) -> set[str]:
    found = set()
    for call in calls:
        match = OPENED.search(call)
        if match and WRITING.search(call) and not FAILED.search(call):
            found.add(str(Path(match[1] or "/", match[2])))
    return found
