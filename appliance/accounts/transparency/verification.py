"""Compares ledger, tiles and checkpoints of a state folder, without a key and whether a daemon runs or not.

Everything is hashed again from the rows. What only a copy elsewhere can tell, that all of it was made anew or
cut at its end, a checkpoint tells that somebody has kept.
"""

import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.accounts.audit import EntryDamaged
from appliance.accounts.transparency.checkpoints import (
    MAX_BYTES,
    Checkpoint,
    LogKey,
    parse,
    parse_key,
    parse_own,
)
from appliance.accounts.transparency.drafts import Drafts, file_of
from appliance.accounts.transparency.leaves import all_leaves, last_seq, origin, recorded, rows_after
from appliance.accounts.transparency.merkle import HASH_BYTES, WIDTH
from appliance.accounts.transparency.rules import all_rules
from appliance.accounts.transparency.tiles import (
    Edge,
    bundle_path,
    first_entries,
    partial_path,
    tile_path,
    under_way,
    widths,
)
from appliance.accounts.transparency.tree import CHECKPOINT, FOLDER, KEY
from appliance.errors import AuditBroken, InvalidInput
from appliance.ledger import Connection, differences, log_damage, looking_into, shipped

_NAMED = 50
"""Findings; of more, how many."""

_TILE = re.compile(
    r"tile/(entries|[0-9]|[1-5][0-9]|6[0-3])/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?"
)


@dataclass(frozen=True, slots=True)
class Verified:
    """A log that is whole: of its `entries` the first `signed` are under the newest checkpoint."""

    origin: str
    key: LogKey
    entries: int
    signed: int
    root: bytes
    remarks: list[str]


def verify(
    state: Path, *, kept: bytes | None = None, key: str | None = None, acknowledged: int | None = None
) -> Verified:
    """Prove the audit log of a state folder.

    `kept` is a checkpoint that was fetched earlier, `key` the key that was noted then: without it
    the one beside the log is believed. `acknowledged` is an entry that something beside ledger and log has
    seen: what `datasets.witness` says, before this is called. Raises AuditBroken, which names everything that
    is not as it was signed, StorageFailed, InvalidInput for what is no key.
    """
    found = _Findings()
    trusted = None if key is None else parse_key(key)
    folder = state / FOLDER
    if not folder.exists():
        found.add(
            f"{folder} is not there: a daemon that has started gives it its name when the first checkpoint is"
            " in it, which takes a while for many entries; else it was taken away"
        )
    beside = _key(folder / KEY, trusted, found)
    known = trusted or beside
    file = folder / CHECKPOINT  # read before the rows: those that it covers are there
    head = _checkpoint(_read(file, MAX_BYTES, found), parse_own, file, known, found)
    claim = _checkpoint(kept, parse, "the checkpoint that was kept", known, found)
    with looking_into(state) as connection:
        _compare_schema(connection, found)
        comparison = _Comparison(folder, known, head, claim, found)
        comparison.run(connection)
        name = origin(connection)
    comparison.look_for_others(state)
    entries = comparison.entries
    if head is not None:
        _compare_head(head, comparison.roots.get(head.size), entries, name, found)
    if claim is not None:
        _compare_kept(claim, comparison.roots.get(claim.size), entries, name, found)
    if acknowledged is not None and acknowledged > entries:
        found.add(
            f"images were stored up to entry {acknowledged}, by images/witness, and the ledger has {entries}:"
            " an older ledger was put back, with its log or without, or that file was changed"
        )
    found.raise_any()
    assert head is not None  # whatever keeps one from being read is a finding
    assert known is not None
    remarks = comparison.remarks + _unsigned(head, entries)
    return Verified(name, known, entries, head.size, head.root, remarks)


class _Findings:
    def __init__(self) -> None:
        self._named: list[str] = []
        self._more = 0

    def add(self, text: str) -> None:
        if len(self._named) < _NAMED:
            self._named.append(text)
        else:
            self._more += 1

    def raise_any(self) -> None:
        if self._named:
            raise AuditBroken(self._named + ([f"and {self._more} findings more"] if self._more else []))


def _key(file: Path, trusted: LogKey | None, found: _Findings) -> LogKey | None:
    data = _read(file, MAX_BYTES, found)
    if data is None:
        return None
    try:
        key = parse_key(data.decode("ascii", "replace"))
    except InvalidInput as error:
        found.add(f"{file}: {error}")
        return None
    if data != f"{key}\n".encode():
        found.add(f"{file} was changed")
    if trusted is not None and trusted.public != key.public:
        found.add(f"{file} is another key than the one that was given")
    return key


def _checkpoint(
    note: bytes | None,
    read: Callable[[bytes, str], Checkpoint],
    named: object,
    key: LogKey | None,
    found: _Findings,
) -> Checkpoint | None:
    if note is None or key is None:
        return None
    try:
        return read(note, key.public)
    except InvalidInput as error:
        found.add(f"{named}: {error}")
        return None


def _read(file: Path, most: int, found: _Findings) -> bytes | None:
    try:
        with file.open("rb") as opened:
            data = opened.read(most + 1)
    except OSError as error:
        found.add(f"{file}: {error.strerror}")
        return None
    if len(data) > most:
        found.add(f"{file}: longer than it can be")
        return None
    return data


def _compare_schema(connection: Connection, found: _Findings) -> None:
    """First: what all else is read by."""
    for difference in differences(connection, shipped()):
        found.add(f"the ledger is not built as the appliance builds it: {difference}")
    for damage in log_damage(connection):
        found.add(f"the table of the audit log and its indices differ: {damage}")


def _compare_head(head: Checkpoint, root: bytes | None, entries: int, name: str, found: _Findings) -> None:
    if head.origin != name:
        found.add(
            f"the checkpoint is of the log {head.origin}, the ledger's log is {name}: the ledger was restored"
            " from a backup, or is another appliance's"
        )
    if head.size > entries:
        found.add(
            f"the checkpoint covers {head.size} entries and the ledger has {entries}: an older ledger was put"
            " back, or entries were taken from its end"
        )
    elif root != head.root:
        found.add(f"the first {head.size} entries of the ledger are not those that were signed")


def _compare_kept(kept: Checkpoint, root: bytes | None, entries: int, name: str, found: _Findings) -> None:
    restored = "" if kept.origin == name else f"; the ledger was restored since, its log is {name}"
    if kept.size > entries:
        found.add(
            f"the checkpoint that was kept covers {kept.size} entries and the ledger has {entries}: entries"
            f" were taken from its end{restored}"
        )
    elif root != kept.root:
        found.add(
            f"the first {kept.size} entries are not those that the checkpoint which was kept covers: the log"
            f" was made anew{restored}"
        )


def _unsigned(head: Checkpoint, entries: int) -> list[str]:
    if entries == head.size:
        return []
    which = f"{entries - head.size} entries, from {head.size + 1} on, are under no checkpoint yet"
    return [f"{which}: a running daemon signs them within a minute, until then nothing proves them"]


class _Comparison:
    """One pass over the rows, beside the files that they make."""

    def __init__(
        self,
        folder: Path,
        key: LogKey | None,
        head: Checkpoint | None,
        kept: Checkpoint | None,
        found: _Findings,
    ) -> None:
        self._folder = folder
        self._signed = 0 if head is None else head.size
        self._sizes = {one.size for one in (head, kept) if one is not None}
        self._found = found
        self._edge = Edge()
        self._seen: set[str] = set()
        self._owner = folder.parent.stat().st_uid
        self._rules = all_rules(None if key is None else key.public, None if head is None else head.size)
        self._drafts = Drafts(folder)
        if key is not None:
            self._drafts.compare_checkpoint(CHECKPOINT, key)
            self._drafts.compare(KEY, f"{key}\n".encode())
        self.entries = 0
        self.roots: dict[int, bytes] = {}
        """By those sizes for which there is a checkpoint, what the rows hash to."""
        self.remarks: list[str] = []

    def run(self, connection: Connection) -> None:
        self._note_root()
        for seq, data in all_leaves(connection):
            self._fill(seq)
            if isinstance(data, EntryDamaged):
                self._found.add(str(data))
                self._add(b"")  # something has to stand in its place
            else:
                self._judge(seq, data)
                self._add(data)
            self.entries = seq
        for path, content in self._edge.partial():
            full, _, width = path.rpartition(".p/")
            self._compare(full, content, int(width))
        self._require_edge()
        for rule in self._rules:
            judgement = rule.judge(connection)
            self.remarks.extend(judgement.remarks)
            for finding in judgement.findings:
                self._found.add(finding)

    def look_for_others(self, state: Path) -> None:
        """Files and folders that are none of the log's, or not as it makes them. What came meanwhile a daemon
        may have published meanwhile.
        """
        files, folders = dict[Path, float](), list[Path]()
        self._require_own(self._folder, 0o700)
        for path in sorted(self._folder.rglob("*")):
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue  # a partial tile that became a full one
            if stat.S_ISDIR(status.st_mode):
                folders.append(path)
                self._require_own(path, 0o700)
            elif not stat.S_ISREG(status.st_mode):
                self._found.add(f"{path}: a file is expected, and this is a link or something else")
            else:
                files[path] = self._end_of(path)
                self._require_own(path, 0o600)
        with looking_into(state) as connection:
            entries = last_seq(connection)
            growing = min(entries, self._signed + rows_after(connection, self._signed))
        for path, end in files.items():
            if end > entries:
                self._found.add(f"{path}: nothing that the log has")
        known = {parent for path, end in files.items() if end <= entries for parent in path.parents}
        known |= {self._folder / name for name in under_way(self._signed, growing)}
        for path in folders:
            if path not in known and path.exists():
                self._found.add(f"{path}: no folder that the log has anything in")

    def _end_of(self, path: Path) -> float:
        """How many entries there must be for a file to be one of the log's."""
        name = str(path.relative_to(self._folder))
        if self._drafts.strange(path):
            return float("inf")
        file = file_of(name) or name
        return 0 if name in self._seen or file in {CHECKPOINT, KEY} else _end(file)

    def _require_own(self, path: Path, mode: int) -> None:
        """As the daemon makes it, whose the state folder is: of another's, or one that has a second name
        elsewhere, somebody else decides what it holds.

        Its group has no permission, and may be the one that a folder above hands down (S_ISGID, which then is
        handed down as well).
        """
        try:
            found = path.lstat()
        except OSError:
            return  # it has just gone, or its absence is found elsewhere
        if stat.S_ISLNK(found.st_mode):
            self._found.add(f"{path}: a folder is expected, and this is a link")
            return
        handed_down = stat.S_ISGID if stat.S_ISDIR(found.st_mode) else 0
        if (bits := stat.S_IMODE(found.st_mode) & ~handed_down) != mode:
            self._found.add(f"{path}: it has mode {bits:04o}, and was made with {mode:04o}")
        if found.st_uid != self._owner:
            self._found.add(f"{path}: it belongs to user {found.st_uid}, the state to user {self._owner}")
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
            self._found.add(f"{path}: it has {found.st_nlink} names (hard links), and was made with one")

    def _fill(self, seq: int) -> None:
        """Have each entry in its place in the tree, also where others before it are gone."""
        if seq == self.entries + 1:
            return
        first = self.entries + 1
        gone = f"entry {first} is" if seq == first + 1 else f"entries {first} to {seq - 1} are"
        self._found.add(f"{gone} missing in the ledger")
        while self._edge.size < min(seq - 1, max(self._sizes, default=0)):
            self._add(b"")

    def _judge(self, seq: int, data: bytes) -> None:
        try:
            entry = recorded(data)
        except msgspec.DecodeError:
            self._found.add(f"entry {seq} is nothing that was ever written")
            return
        for rule in self._rules:
            if finding := rule.see(entry):
                self._found.add(finding)

    def _add(self, data: bytes) -> None:
        for path, content in self._edge.add(data):
            self._compare(path, content, WIDTH)
        self._note_root()

    def _note_root(self) -> None:
        if self._edge.size in self._sizes:
            self.roots[self._edge.size] = self._edge.root()

    def _compare(self, full: str, content: bytes, width: int) -> None:
        """A tile or bundle that the rows make `width` wide, with its files and drafts that are there."""
        entries = full.startswith("tile/entries/")
        if width == WIDTH:
            self._drafts.compare(full, content)
            if not self._same(full, content, entries) and self._edge.size <= self._signed:
                self._found.add(f"{self._folder / full}: missing")
        folder = (self._folder / partial_path(full, width)).parent
        try:
            names = {file_of(path.name) or path.name for path in folder.iterdir()}
        except OSError:
            return
        for name in sorted(names):
            if name.isascii() and name.isdigit() and name[0] != "0" and int(name) <= min(width, WIDTH - 1):
                count = int(name)
                first = first_entries(content, count) if entries else content[: count * HASH_BYTES]
                self._drafts.compare(partial_path(full, count), first)
                self._same(partial_path(full, count), first, entries)

    def _same(self, path: str, content: bytes, entries: bool) -> bool:
        """Whether there is such a file; one that holds something else is a finding."""
        file = self._folder / path
        try:
            with file.open("rb") as opened:
                data = opened.read(len(content) + 1)
        except FileNotFoundError:
            return False
        except OSError as error:
            self._found.add(f"{file}: {error.strerror}")
            return True
        self._seen.add(path)
        if data != content:
            where = "" if entries or not path.startswith("tile/0/") else _where(path, data, content)
            self._found.add(f"{file} and the rows of the ledger differ{where}")
        return True

    def _require_edge(self) -> None:
        """The partial tiles of the newest checkpoint, each maybe a full one by now."""
        wanted = [(tile_path(level, index), width) for level, index, width in widths(self._signed)]
        if width := self._signed % WIDTH:
            wanted.append((bundle_path(self._signed // WIDTH), width))
        for full, width in wanted:
            lies = {full, partial_path(full, width)} & self._seen or (self._folder / full).exists()
            if not lies and self._edge.size >= self._signed:
                self._found.add(f"{self._folder / partial_path(full, width)}: missing")


def _where(path: str, data: bytes, content: bytes) -> str:
    """Which entries a tile of leaves and the rows do not agree on."""
    number = int(re.sub(r"\D", "", path.removeprefix("tile/0/").partition(".p/")[0]))
    differing = [
        str(number * WIDTH + at // HASH_BYTES + 1)
        for at in range(0, len(content), HASH_BYTES)
        if data[at : at + HASH_BYTES] != content[at : at + HASH_BYTES]
    ]
    if not differing:
        return ""
    return f": entry {', '.join(differing[:10])}{' and others' if len(differing) > 10 else ''}"


def _end(name: str) -> float:
    """How many entries there must be for such a file to be one of the log's."""
    found = _TILE.fullmatch(name)
    if found is None:
        return float("inf")
    level, width = 0 if found[1] == "entries" else int(found[1]), int(found[3] or WIDTH)
    index = int(re.sub(r"\D", "", found[2]))
    full = bundle_path(index) if found[1] == "entries" else tile_path(level, index)
    if name != (full if found[3] is None else partial_path(full, min(width, WIDTH - 1))):
        return float("inf")
    return (index * WIDTH + width) << 8 * level
