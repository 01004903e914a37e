"""Publishes the audit log under STATE/audit: tiles, entries, and a signed checkpoint when any came.

    checkpoint    the newest signed head        key    the public key that it is signed by
    tile/         see `tiles`

The rows of the ledger are the log; what lies here is made from them, once they are durable. Tiles are durable
before the checkpoint that speaks of them, so that whatever a crash leaves is the start of what comes next: it
is written anew, the same. A log gets its name with its first checkpoint, over all entries of then: one that
has none, or that of a log without entries in its place, is not what a crash left. Once something is signed
nothing contradicts it any more: where the ledger does not go on from there, nothing is signed and a person
has to look. No clock has a say in it: heads grow by entries.
"""

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from appliance.accounts.audit import Actor, Event, Selection, record
from appliance.accounts.transparency.checkpoints import MAX_BYTES, Checkpoint, LogKey, parse, sign
from appliance.accounts.transparency.leaves import last_seq, leaves, origin
from appliance.accounts.transparency.merkle import (
    HASH_BYTES,
    WIDTH,
    Complete,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
)
from appliance.accounts.transparency.signing import EVERY_SECONDS, waited
from appliance.accounts.transparency.tiles import (
    Edge,
    hashes_of,
    partial_path,
    tile_path,
    widths,
)
from appliance.errors import (
    ApplianceError,
    AuditBroken,
    Conflict,
    InvalidInput,
    NotFound,
    StorageFailed,
    VolumeFull,
)
from appliance.ledger import Connection, Ledger
from appliance.vault import NODE, Keys
from appliance.volume import HeldFolder, failing_as_storage, sync_folder, write_atomically

T = TypeVar("T")

FOLDER, CHECKPOINT, KEY = "audit", "checkpoint", "key"

_LINES = 500
"""Entries of a piece: read and written in a few milliseconds."""

_MOVE = (
    "nothing is signed over it. If a backup was restored, stop the daemon, move STATE/audit away, keep it,"
    " and start: a new log begins with the entries that were restored. If not, keep both: it was changed"
)

_ACTOR = Actor("system", "audit")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Proof:
    """Hashes that lead to the root of `checkpoint`, as RFC 6962 orders them."""

    checkpoint: Checkpoint
    hashes: list[bytes]


class AuditTree:
    """The published log. Between `async with` it follows the ledger: at the start, each minute, at the end.

    `finding` is why nothing is signed at present, for a person, None while all is well.
    """

    def __init__(self, ledger: Ledger, keys: Keys, state: Path) -> None:
        """`keys` are the appliance's own."""
        self._ledger = ledger
        self._keys = keys
        self._state = state
        self._published = state / FOLDER
        self._draft = state / f".{FOLDER}.draft"
        self._folder = self._published  # or the draft, until a checkpoint is in it
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit-tree")
        self._publishing = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._origin = ""
        self._edge = Edge()
        self._head: Checkpoint | None = None
        self._notes = frozenset[str]()  # what may lie there as the checkpoint: the head, or one after it
        self._broken: AuditBroken | None = None
        self.finding: str | None = None

    async def __aenter__(self) -> Self:
        """Go on from the checkpoint that is there; where that cannot be, `finding` says why.

        Raises StorageFailed for a state folder that is gone.
        """
        self._held = await asyncio.to_thread(HeldFolder, self._state)
        try:
            await self._open()
        except (AuditBroken, StorageFailed) as error:
            self._broken = AuditBroken([str(error)])
            self._note(error)
        self._work = asyncio.get_running_loop().create_task(self._follow(), name="audit tree")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping.set()
        await asyncio.gather(self._work, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)
        self._held.close()

    @property
    def broken(self) -> bool:
        """Whether the ledger is not known to go on from what was signed, as an older one."""
        return self._broken is not None

    async def publish(self) -> Checkpoint:
        """Sign a head over all entries that are durable now, unless the newest is; the newest.

        Raises AuditBroken where the log does not go on from it, StorageFailed, VolumeFull.
        """
        async with self._publishing:
            if self._broken is not None:
                raise self._broken
            try:
                await self._run(self._held.check)
                await self._run(self._begin if self._head is None else self._check_head)
                while found := await self._ledger.read(self._next):
                    await self._run(self._append, found)
                if self._head is None or self._edge.size > self._head.size:
                    await self._run(self._sign)
            except AuditBroken as error:
                self._broken = error
                raise
            return self.checkpoint()

    def checkpoint(self) -> Checkpoint:
        """The newest signed head, from memory. Raises NotFound when there is none."""
        if self._head is None:
            raise NotFound("no checkpoint is signed yet: the daemon signs one within a minute of its start")
        return self._head

    async def inclusion(self, seq: int) -> Proof:
        """That entry `seq` is in the log. Raises Conflict while no checkpoint covers it, StorageFailed."""
        head = self._sound_head()
        if seq > head.size:
            raise Conflict(f"entry {seq} is under no checkpoint yet: ask again in a minute")
        return await self._run(lambda: Proof(head, inclusion_proof(seq - 1, head.size, self._reading())))

    async def consistency(self, size: int) -> Proof:
        """That the log begins with what a checkpoint of so many entries had.

        Raises InvalidInput for more entries than are signed, StorageFailed.
        """
        head = self._sound_head()
        if size > head.size:
            raise InvalidInput(f"from: the newest checkpoint has {head.size} entries")
        return await self._run(lambda: Proof(head, consistency_proof(size, head.size, self._reading())))

    async def leaf(self, chosen: Selection, seq: int) -> bytes | None:
        """Entry `seq` as it is in the tree, None where it is not among those that are chosen."""
        found = await self._ledger.read(lambda c: leaves(c, chosen, after=seq - 1, limit=1))
        return found[0][1] if found and found[0][0] == seq else None

    async def lines(self, chosen: Selection, *, after: int) -> AsyncIterator[bytes]:
        """The chosen entries with a higher seq, oldest first, each a line: the leaf itself, then a newline.

        Many in one piece. Raises StorageFailed, also for one that is damaged.
        """
        while page := await self._ledger.read(partial(leaves, chosen=chosen, after=after, limit=_LINES)):
            after = page[-1][0]
            yield b"".join(data + b"\n" for _, data in page)

    def _sound_head(self) -> Checkpoint:
        head = self.checkpoint()
        if self._broken is not None:
            raise StorageFailed(
                told="the audit log is not signed any further: an operator sees why in `status`"
            )
        return head

    async def _follow(self) -> None:
        while not self._stopping.is_set():
            await self._try()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), EVERY_SECONDS)
        await self._try()

    async def _try(self) -> None:
        try:
            await self.publish()
        except (AuditBroken, StorageFailed, VolumeFull) as error:
            self._note(error)
        else:
            self.finding = None

    def _note(self, error: ApplianceError) -> None:
        if self.finding != str(error):
            _log.error("the audit log is not published: %s", error)
        self.finding = str(error)

    async def _run(self, work: Callable[..., T], *given: object) -> T:
        """On the one thread that touches the files and the edge."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *given))

    async def _open(self) -> None:
        self._origin, count = await self._ledger.read(lambda c: (origin(c), last_seq(c)))
        head = await self._run(self._newest)
        if head is None:
            self._folder = self._draft
            return
        self._head, self._notes = head, frozenset({head.note})
        if head.origin != self._origin:
            names = f"the log {head.origin}, the ledger's is {self._origin}"
            raise AuditBroken([f"{self._folder} is {names}: {_MOVE}"])
        if count < head.size:
            few = f"the ledger ends with entry {count}, the checkpoint in {self._folder} covers {head.size}"
            raise AuditBroken([f"{few}: {_MOVE}"])
        start = max(head.size - 1, 0) // WIDTH * WIDTH
        last = await self._ledger.read(lambda c: leaves(c, Selection(), after=start, limit=head.size - start))
        await self._run(self._check_key)
        await self._run(self._resume, head, last)
        with suppress(VolumeFull):
            await self._note_overdue(head.size)

    async def _note_overdue(self, signed: int) -> None:
        """What is signed from now on looks as all else: that it was not for too long stands in the log."""
        found = await self._ledger.read(partial(waited, signed=signed))
        if found is None:
            return
        first, last, _ = found
        _log.error("entries %d to %d of the audit log have waited too long for a checkpoint", first, last)
        details: dict[str, object] = {"count": last - first + 1}

        def act(connection: Connection) -> None:
            now = int(connection.execute("SELECT time FROM audit WHERE seq = ?", (last,)).get)
            record(connection, now, _ACTOR, Event.AUDIT_OVERDUE, None, None, details)

        await self._ledger.write(act)

    def _next(self, connection: Connection) -> list[tuple[int, bytes]]:
        """The entries that follow, up to the end of their tile."""
        size = self._edge.size
        return leaves(connection, Selection(), after=size, limit=WIDTH - size % WIDTH)

    def _newest(self) -> Checkpoint | None:
        """The checkpoint that is there, proven; what crashes left of files is gone after it."""
        with failing_as_storage(self._folder):
            if self._draft.exists():
                shutil.rmtree(self._draft)
            for draft in self._folder.rglob(".*.draft"):
                draft.unlink()
            try:
                note = (self._folder / CHECKPOINT).read_bytes()
            except FileNotFoundError:
                if self._folder.exists() and any(self._folder.iterdir()):
                    raise AuditBroken(
                        [f"{self._folder / CHECKPOINT} is missing beside what it speaks of: {_MOVE}"]
                    ) from None
                return None
        try:
            return parse(note, self._keys.public(NODE))
        except InvalidInput as error:
            raise AuditBroken([f"{self._folder / CHECKPOINT}: {error}: {_MOVE}"]) from None

    def _begin(self) -> None:
        """A log that nobody knows of yet; what an attempt before has made of it is taken up."""
        with failing_as_storage(self._folder):
            _make_folders(self._folder)
        self._check_key()

    def _check_key(self) -> None:
        """The public key lies beside what it proves."""
        file, key = self._folder / KEY, f"{LogKey(self._origin, self._keys.public(NODE))}\n".encode()
        with failing_as_storage(file), suppress(FileNotFoundError):
            if file.read_bytes() == key:
                return
            raise AuditBroken([f"{file} is not the key of this log: {_MOVE}"])
        write_atomically(file, key)

    def _check_head(self) -> None:
        """What was signed last still lies there: who puts an older one in its place, or takes it away, has
        nothing signed over it.
        """
        file = self._folder / CHECKPOINT
        with failing_as_storage(file):
            try:
                with file.open("rb") as opened:
                    lies = opened.read(MAX_BYTES + 1)
            except FileNotFoundError:
                lies = b""
        if lies not in {note.encode() for note in self._notes}:
            raise AuditBroken([f"{file} is not what was signed last, something else has changed it: {_MOVE}"])

    def _resume(self, head: Checkpoint, last: list[tuple[int, bytes]]) -> None:
        """Take up the edge that `head` was signed over, of which `last` are the entries of the last tile."""
        edge = Edge(head.size)
        while WIDTH ** len(edge.levels) <= head.size:
            edge.levels.append([])
        for level, index, width in widths(head.size):
            edge.levels[level] = hashes_of(self._tile(level, index, width))
        if edge.root() != head.root:
            raise AuditBroken([f"the tiles in {self._folder} are not those that were signed: {_MOVE}"])
        if last:
            width = len(last)
            signed = hashes_of(self._tile(0, (head.size - 1) // WIDTH, width))
            for (seq, data), signed_hash in zip(last, signed, strict=True):
                if leaf_hash(data) != signed_hash:
                    raise AuditBroken([f"entry {seq} of the ledger is not the one that was signed: {_MOVE}"])
        if head.size % WIDTH:
            edge.entries = [data for _, data in last]
        self._edge = edge

    def _append(self, found: list[tuple[int, bytes]]) -> None:
        edge = self._edge.copy()
        for seq, data in found:
            if seq != edge.size + 1:
                raise AuditBroken([f"entry {edge.size + 1} is missing in the ledger: {_MOVE}"])
            for path, content in edge.add(data):
                self._write(path, content)
                self._remove_partial(path)
        self._edge = edge

    def _sign(self) -> None:
        for path, content in self._edge.partial():
            self._write(path, content)
        head = sign(self._keys, self._origin, self._edge.size, self._edge.root())
        self._notes |= {head.note}  # from here on: a failed sync leaves the one or the other
        write_atomically(self._folder / CHECKPOINT, head.note.encode())
        if self._head is None:
            self._name()
        self._head, self._notes = head, frozenset({head.note})

    def _name(self) -> None:
        """Have the draft be the log, whole as it is."""
        with failing_as_storage(self._published):
            if self._folder == self._draft:
                self._draft.rename(self._published)
                self._folder = self._published
            sync_folder(self._state)

    def _write(self, path: str, content: bytes) -> None:
        """A tile or bundle, whose content its path determines: one that is there is not written again."""
        file = self._folder / path
        with failing_as_storage(file):
            with suppress(FileNotFoundError):
                if file.read_bytes() == content:
                    return
                raise AuditBroken([f"{file} is not what the entries of the ledger make: {_MOVE}"])
            _make_folders(file.parent)
        write_atomically(file, content)

    def _remove_partial(self, full: str) -> None:
        """What a full tile takes the place of."""
        folder = (self._folder / partial_path(full, 1)).parent
        with failing_as_storage(folder), suppress(FileNotFoundError):
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()

    def _reading(self) -> Complete:
        """The hashes of complete subtrees, each tile read once."""
        tiles: dict[tuple[int, int], list[bytes]] = {}

        def complete(level: int, index: int) -> bytes:
            tile = level, index // WIDTH
            if tile[1] == self._edge.size // WIDTH ** (level + 1):
                return self._edge.complete(level, index)
            if tile not in tiles:
                tiles[tile] = hashes_of(self._tile(*tile, WIDTH))
            return tiles[tile][index % WIDTH]

        return complete

    def _tile(self, level: int, index: int, width: int) -> bytes:
        """The first hashes of a tile. Raises AuditBroken when they are not there."""
        full = tile_path(level, index)
        for path in (full, partial_path(full, width)):
            with failing_as_storage(self._folder / path), suppress(FileNotFoundError):
                data = (self._folder / path).read_bytes()
                if len(data) >= width * HASH_BYTES:
                    return data[: width * HASH_BYTES]
        raise AuditBroken([f"{self._folder / full}: missing or cut: {_MOVE}"])


def _make_folders(folder: Path) -> None:
    """A folder and those above it, durably. Raises OSError."""
    if not folder.exists():
        _make_folders(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder.parent)
