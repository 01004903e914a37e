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
ADDRESS = re.compile(r"\{sa_family=AF_(\w+)([^}]*)\}")
INTERNET = re.compile(r'htons\((\d+)\).*(?:inet_addr\(|inet_pton\(AF_INET6, )"([0-9a-f.:]+)"')
UNIX = re.compile(r'sun_path=(@?)"([^"]*)"')


def tracer(log: Path) -> list[str]:
    """The words before a command line that have strace write CALLS of it and of its children to `log`."""
    words = ["strace", "-f", "-q", "--seccomp-bpf"]  # calls that are not asked for cost nothing
    words += ["-y", "-s", "0", "-e", f"trace={CALLS}", "-e", "signal=SIGSEGV,SIGABRT"]
    return [*words, "-o", str(log)]


def reached(calls: Iterable[str]) -> set[str]:
    """What traced calls connect or send to by its address, tried or done.

    "ADDRESS PORT" of the Internet, a path or @NAME of a Unix socket, the name of any other family.
    """
    found = set()
    for call in calls:
        for family, rest in ADDRESS.findall(call):
            if family in {"INET", "INET6"}:
                match = INTERNET.search(rest)
                found.add(f"{match[2]} {match[1]}" if match else rest)
            elif family == "UNIX":
                match = UNIX.search(rest)
                found.add(f"{match[1]}{match[2]}" if match else rest)
            else:
                found.add(family)
    return found


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
