"""What a power cut would take, told from a trace of system calls: a model of files, names and syncs.

A kill leaves the page cache, so that a store which never synced would pass every kill. The model drops what
no sync covered: bytes count from the sync of their file that began after they were written, names from the
sync of their folder that began after they were given, both only once that sync has returned well.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CALLS = (
    "openat,write,writev,pwrite64,fallocate,ftruncate,fsync,fdatasync,syncfs,link,linkat,rename,renameat,renameat2,"
    "mkdir,mkdirat,unlink,unlinkat,rmdir"
)
_LINE = re.compile(r"^(\d+) +(.*)$")
_RESUMED = re.compile(r"^<\.\.\. (\w+) resumed>(.*)$")
_CALL = re.compile(r"^(\w+)\((.*)\) += (-?\d+)(.*)$")
_FD = re.compile(r"^(\d+)<([^>]*)>")
_AT = re.compile(r'^(?:AT_FDCWD|\d+)(?:<([^>]*)>)?, "([^"]*)"(.*)$')
_UNSEEN = ("/ledger.db-shm", "/lock", "/.probe")  # made anew by each start


@dataclass(frozen=True)
class Call:
    """A system call that returned: what it was, and between which lines of the trace it ran."""

    name: str
    arguments: str
    result: int
    began: int
    ended: int
    skipped: bool  # by the tracer, which only said that it had been done

    @property
    def syncs(self) -> bool:
        return self.name in {"fsync", "fdatasync", "syncfs"}


def calls(trace: list[str]) -> list[Call]:
    """The calls of a trace of `strace -f -y`, in order of their end."""
    found = []
    open_calls: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(trace):
        split = _LINE.match(line)
        if split is None:
            continue
        thread, text = split.groups()
        began = number
        if text.endswith("<unfinished ...>"):
            open_calls[thread] = number, text.removesuffix("<unfinished ...>")
            continue
        resumed = _RESUMED.match(text)
        if resumed is not None:
            if thread not in open_calls:
                continue
            began, start = open_calls.pop(thread)
            text = start + resumed[2]
        match = _CALL.match(text)
        if match is not None:
            name, arguments, result, rest = match.groups()
            found.append(Call(name, arguments, int(result), began, number, "INJECTED" in rest))
    return found


@dataclass
class _Content:
    """Bytes of a file or names of a folder: when they last changed, and up to when they are on the disk."""

    label: str
    changed: int = -1
    kept: int = -1

    @property
    def clean(self) -> bool:
        return self.changed <= self.kept


@dataclass
class Model:
    """Reads calls in order; `broken` says each promise that a power cut could have broken."""

    state: str
    broken: list[str] = field(default_factory=list)
    _by_fd: dict[int, _Content] = field(default_factory=dict)
    _files: dict[str, _Content] = field(default_factory=dict)
    _folders: dict[str, _Content] = field(default_factory=dict)
    _together: bool = False
    acknowledged: int = 0

    def read(self, trace: list[Call]) -> list[str]:
        steps = [(call.began, 0, call) for call in trace] + [(call.ended, 1, call) for call in trace]
        for _, end, call in sorted(steps, key=lambda step: step[:2]):
            if call.skipped:
                continue
            if end:
                self._ended(call)
            else:
                self._began(call)
        return self.broken

    def _began(self, call: Call) -> None:
        """What must hold before a call is made."""
        match call.name:
            case "write" if call.arguments.startswith("1<"):
                self._said(call.arguments)
            case "linkat":
                source = re.match(r'^AT_FDCWD(?:<[^>]*>)?, "/proc/self/fd/(\d+)"', call.arguments)
                if source is not None and self._path(call.arguments.split(", ", 2)[2]) is not None:
                    self._require(self._by_fd[int(source[1])], "is given a name")
            case "rename" | "renameat" | "renameat2":
                path = self._path(call.arguments)
                if path is not None:
                    self._require(self._file(path), "is given a name")
            case "pwrite64" if self._named(call).endswith("ledger.db-wal") and not self._together:
                for path, folder in self._folders.items():
                    if path.startswith(f"{self.state}/images"):
                        self._require(folder, "has names that a row may speak of")
            case "ftruncate" if self._named(call).endswith("ledger.db-wal"):
                self._require(self._file(f"{self.state}/ledger.db"), "is all that there is without the log")

    def _ended(self, call: Call) -> None:
        if call.result < 0:
            return
        match call.name:
            case "write" | "writev" | "pwrite64" | "fallocate" | "ftruncate":
                self._written(call)
            case "fsync" | "fdatasync":
                fd = _FD.match(call.arguments)
                if fd is not None and self._inside(fd[2]):
                    is_folder = fd[2] in self._folders
                    content = self._folders[fd[2]] if is_folder else self._of(int(fd[1]), fd[2])
                    content.kept = max(content.kept, call.began)
            case "syncfs":
                for content in self._everything():
                    content.kept = max(content.kept, call.began)
            case "openat":
                self._opened(call)
            case _:
                self._renamed(call)

    def _written(self, call: Call) -> None:
        fd = _FD.match(call.arguments)
        # Cutting the log changes nothing that it would bring back: what it held is in the database by then.
        if fd is None or not self._inside(fd[2]) or (call.name == "ftruncate" and fd[2].endswith("-wal")):
            return
        self._of(int(fd[1]), fd[2]).changed = call.ended

    def _opened(self, call: Call) -> None:
        path = self._path(call.arguments)
        if path is None:
            return
        if "O_TMPFILE" in call.arguments:
            self._by_fd[call.result] = _Content(f"a file without a name in {path}")
        elif "O_DIRECTORY" in call.arguments or Path(path).is_dir():
            self._folder(path)
        else:
            if "O_CREAT" in call.arguments and path not in self._files and not path.endswith(_UNSEEN):
                self._name_changed(path, call)
            self._by_fd[call.result] = self._file(path)

    def _renamed(self, call: Call) -> None:
        """The calls that give and take names."""
        path = self._path(call.arguments)
        match call.name:
            case "linkat":
                source = re.match(r'^AT_FDCWD(?:<[^>]*>)?, "/proc/self/fd/(\d+)"', call.arguments)
                target = self._path(call.arguments.split(", ", 2)[2])
                if source is not None and target is not None:
                    self._files[target] = self._by_fd[int(source[1])]
                    self._name_changed(target, call)
            case "rename" | "renameat":
                names = 2 if call.name == "renameat" else 1  # with the folder that each is in
                target = self._path(call.arguments.split(", ", names)[names])
                if path is not None and target is not None:
                    self._files[target] = self._files.pop(path)
                    self._name_changed(target, call)
            case "mkdir" | "mkdirat":
                if path is not None:
                    self._folder(path)
                    self._name_changed(path, call)
            case "unlink" | "unlinkat" | "rmdir":
                if path is not None and not path.endswith(_UNSEEN):
                    self._files.pop(path, None)
                    self._folders.pop(path, None)
                    self._name_changed(path, call)
            case other:
                raise AssertionError(other)  # a call that gives names in a way that this knows nothing of

    def _said(self, arguments: str) -> None:
        text = json.loads('"' + arguments.split(', "', 1)[1].rsplit('"', 1)[0] + '"')
        words = json.loads(text)
        if words[1:2] == ["group"]:
            self._together = words[0] == "begin"
        elif words[0] == "done" and not self._together:
            self.acknowledged += 1
            what = f"is not on the disk when {words[1]} {words[2]} is acknowledged"
            for content in self._everything():
                # The database lags behind its log, which has it all. The rest of an erasure goes by itself.
                own = words[1] != "erase" or content.label in {
                    f"{self.state}/keyring",
                    f"the folder {self.state}",
                }
                if own and not content.label.endswith("ledger.db"):
                    self._require(content, what)

    def _require(self, content: _Content, what: str) -> None:
        if not content.clean:
            self.broken.append(f"{content.label.removeprefix(self.state)} {what}")

    def _everything(self) -> Iterator[_Content]:
        yield from self._files.values()
        yield from self._by_fd.values()
        yield from self._folders.values()

    def _name_changed(self, path: str, call: Call) -> None:
        self._folder(path.rpartition("/")[0]).changed = call.ended

    def _of(self, fd: int, path: str) -> _Content:
        """The file of a descriptor: one without a name is known by its number alone."""
        return self._files[path] if path in self._files else self._by_fd.setdefault(fd, _Content(path))

    def _file(self, path: str) -> _Content:
        return self._files.setdefault(path, _Content(path))

    def _folder(self, path: str) -> _Content:
        return self._folders.setdefault(path, _Content(f"the folder {path}"))

    def _named(self, call: Call) -> str:
        fd = _FD.match(call.arguments)
        return fd[2] if fd is not None and self._inside(fd[2]) else ""

    def _path(self, arguments: str) -> str | None:
        """The path that the first argument of a call names, when it is within the state folder."""
        at = _AT.match(arguments)
        if at is not None:
            path = str(Path(at[1] or "/", at[2]))
        else:
            plain = re.match(r'^"([^"]*)"', arguments)
            path = plain[1] if plain is not None else ""
        return path if self._inside(path) else None

    def _inside(self, path: str) -> bool:
        return path == self.state or (path.startswith(self.state + "/") and not path.endswith(_UNSEEN))
