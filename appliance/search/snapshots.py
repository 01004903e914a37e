"""Snapshots: a collection as it was at one moment, to go back to or to fill another one with.

A snapshot is a file on the volume of the state (see `snapshot_files`), sealed under its collection's key:
who removes or empties the collection destroys what opens its snapshots, and they go with it. The files are
all that is known of them: a copy of the ledger without them lacks nothing that it speaks of. What is made or
removed is in the audit log first.
"""

import asyncio
import threading
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NewType, TypeVar
from uuid import UUID

from appliance import config
from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId
from appliance.errors import CapacityExceeded, Conflict, NotFound, SealBroken, StorageFailed
from appliance.ledger import Connection, Ledger
from appliance.search import copying, entries
from appliance.search.container_files import Writing, listed
from appliance.search.copying import Stored
from appliance.search.entries import Entry
from appliance.search.erased import Erased, erased_from, without
from appliance.search.records import Collection, CollectionId, Record, Vector, check_name, decode_metadata
from appliance.search.refilling import Content, Refilling
from appliance.search.seals import Seals
from appliance.search.snapshot_files import (
    Manifest,
    SavedSnapshot,
    SnapshotFolder,
    SnapshotReading,
    encode,
    most_bytes,
)
from appliance.vault import Keyring
from appliance.volume import Space

SnapshotId = NewType("SnapshotId", str)

T = TypeVar("T")

Records = list[tuple[Record, Vector]]

Noting = Callable[..., None]
"""Writes the row of the audit log of a restore: a `Note`, with what else it shall tell."""

_AT_ONCE = 256
"""Records of one batch, which is a transaction when it is restored."""
_HELD = 16 << 20
"""Bytes of a batch, about, where records are large."""
_GROWTH = 2
"""So many times its size must be free to restore one: it joins the ledger before anything leaves it."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot of a collection, `bytes` as it rests; `created_at` in unix milliseconds.

    When, and how many records, is None of one that is damaged: it cannot be restored.
    """

    id: SnapshotId
    collection: CollectionId
    created_at: int | None
    records: int | None
    bytes: int


class Snapshots:
    """The snapshots of all collections.

    Everything raises NotFound for a collection that does not exist, is another customer's (None: anybody's),
    or is removed meanwhile, and for a snapshot that the collection does not have; StorageFailed. What was
    begun goes on to its end when its caller is cancelled.
    """

    def __init__(
        self,
        ledger: Ledger,
        keyring: Keyring,
        settings: config.Search,
        clock: Callable[[], float],
        refilling: Refilling,
        *,
        folder: Path,
        space: Space,
    ) -> None:
        """`folder` is made with the first snapshot; `space` is that of its volume."""
        self._ledger = ledger
        self._keyring = keyring
        self._settings = settings
        self._clock = clock
        self._refilling = refilling
        self._folder = folder
        self._space = space
        self._making = asyncio.Lock()
        self._begun: tuple[UUID, UUID] | None = None
        """The container and the id of the one that is being made."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ending = threading.Event()

    async def close(self) -> None:
        """Interrupt what is under way; of a snapshot or a restored collection there is all or nothing."""
        self._ending.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def add(self, actor: Actor, customer: CustomerId | None, collection: CollectionId) -> Snapshot:
        """Copy all records as they are at one moment, durably and audited; one collection after the other.

        Raises CapacityExceeded when the collection has as many as it may, VolumeFull where too little would
        stay free, Conflict when a record is damaged.
        """
        return await self._to_its_end(self._add(actor, customer, collection))

    async def list(self, customer: CustomerId | None, collection: CollectionId) -> list[Snapshot]:
        """The oldest first."""
        entry, folder = await self._found(customer, collection)
        return [_snapshot(entry, one) for one in await asyncio.to_thread(folder.saved)]

    def ids(self, container: UUID) -> tuple[SnapshotId, ...]:
        """Of a collection's snapshots, the one that is being made included; on any thread, from the disk.

        Within an act: whatever an earlier one has stored is in none but these. Raises StorageFailed.
        """
        begun = self._begun
        found = set(listed(self._folder / container.hex))
        if begun is not None and begun[0] == container:
            found.add(begun[1])
        return tuple(SnapshotId(str(one)) for one in sorted(found))

    async def remove(
        self, actor: Actor, customer: CustomerId | None, collection: CollectionId, snapshot: str
    ) -> None:
        """Remove a snapshot, durably and audited; the collection stays as it is."""
        entry, folder = await self._found(customer, collection)
        identity = _identity(snapshot)
        await asyncio.to_thread(folder.require, identity)
        await self._ledger.write(self._note(actor, Event.SNAPSHOT_REMOVE, entry, identity))
        await asyncio.to_thread(folder.remove, identity)

    async def restore(
        self, actor: Actor, customer: CustomerId | None, collection: CollectionId, snapshot: str
    ) -> None:
        """Put a snapshot's records in the place of all that its collection has, durably and audited.

        All or nothing: every later call is about the records of the snapshot, in their order of then. One
        that is under way is about those of before or about these; `stored`, which reads on and on, raises
        NotFound when those of before are gone. Name, recall, aliases, feed and snapshots stay. Returns when
        the records of before are erased. Raises Conflict for a snapshot that is damaged, or of another
        backbone or dimension; CapacityExceeded, VolumeFull. All of these change nothing.
        """

        async def fill(entry: Entry, content: Content, note: Noting) -> asyncio.Future[None]:
            return await self._refilling.replace(entry, content, note)

        erased = await self._to_its_end(self._restore(actor, customer, collection, snapshot, fill))
        await asyncio.shield(erased)

    async def restore_into(
        self, actor: Actor, customer: CustomerId | None, collection: CollectionId, snapshot: str, name: str
    ) -> CollectionId:
        """Have a new collection of a snapshot's records, of the same customer, backbone and recall.

        It is there with all of them, or not at all. Raises as `restore`, InvalidInput for the name, Conflict
        when the customer has a collection of this name.
        """
        given = check_name(name)

        async def fill(entry: Entry, content: Content, note: Noting) -> CollectionId:
            into = Collection(
                CollectionId(str(uuid.uuid4())),
                entry.customer,
                given,
                entry.backbone,
                entry.dim,
                self._now(),
                content.records,
                entry.recall,
            )
            await self._refilling.add(into, content, partial(note, into=into.id))
            return into.id

        return await self._to_its_end(self._restore(actor, customer, collection, snapshot, fill))

    async def _add(self, actor: Actor, customer: CustomerId | None, collection: CollectionId) -> Snapshot:
        async with self._making:
            entry, folder = await self._found(customer, collection)
            most = self._settings.max_snapshots
            if await asyncio.to_thread(folder.count) >= most:
                fix = "remove one, or raise [search] max_snapshots"
                raise CapacityExceeded(f"a collection has at most {most} snapshots: {fix}")
            identity = uuid.uuid4()
            file = folder.writing(identity)
            self._begun = UUID(entry.container), identity
            try:
                # Behind every act that has not asked for it: what those delete, the copy does not have.
                await self._ledger.write(partial(entries.same_collection, entry=entry))
                manifest = await asyncio.to_thread(self._copy, entry, folder, file)
                note = self._note(actor, Event.SNAPSHOT_ADD, entry, identity, records=manifest.records)
                await self._ledger.write(note)
                await asyncio.to_thread(file.publish)
            except SealBroken as error:
                await self._ledger.read(partial(entries.same_collection, entry=entry))  # else its key is gone
                fix = (
                    "a snapshot has every record or is none; delete or replace what the log names as damaged,"
                    " or restore a backup"
                )
                raise Conflict(f"{error}: {fix}", told=f"{error.told}: {fix}") from None
            finally:
                self._begun = None
                await asyncio.to_thread(file.close)
        return _snapshot(entry, SavedSnapshot(identity, file.size, manifest))

    def _copy(self, entry: Entry, folder: SnapshotFolder, file: Writing) -> Manifest:
        """Write the file of a collection as it is now, all but its end; in a thread."""
        seals = self._seals(entry)
        batch = max(1, min(_AT_ONCE, _HELD // (self._settings.max_metadata_bytes + 4 * entry.dim)))
        with self._ledger.reading() as connection:
            connection.execute("BEGIN")  # all of one moment
            now = entries.same_collection(connection, entry)
            label = entries.next_label(connection, now.number)
            manifest = Manifest(now.backbone, now.dim, now.count, label, self._now())
            size = most_bytes(copying.sealed_bytes(connection, now.number))
            copied, last = 0, -1
            with self._space.room(size):
                folder.begin(file, manifest, size)
                while some := copying.read(connection, seals, now.number, now.dim, last, batch):
                    self._go_on()
                    file.write(encode(some))
                    copied, last = copied + len(some.labels), int(some.labels[-1])
            if copied != now.count:
                raise SealBroken(f"{now.count - copied} records are missing")
        return manifest

    async def stored(
        self, customer: CustomerId, collection: CollectionId, snapshot: str
    ) -> AsyncGenerator[Records]:
        """A snapshot's records in their order, without those that were erased from it. Raises SealBroken."""
        entry, folder = await self._found(customer, collection)
        file = await asyncio.to_thread(folder.opened, _identity(snapshot))
        try:
            erased = await self._ledger.read(partial(erased_from, container=entry.container))
            async with aclosing(self._batches(file, self._seals(entry), erased)) as batches:
                async for some in batches:
                    words = (
                        (external.decode(), decode_metadata(metadata)) for external, metadata in some.words
                    )
                    yield [(Record(*said), vector) for said, vector in zip(words, some.vectors, strict=True)]
        finally:
            await asyncio.to_thread(file.close)

    async def _restore(
        self,
        actor: Actor,
        customer: CustomerId | None,
        collection: CollectionId,
        snapshot: str,
        fill: Callable[[Entry, Content, Noting], Awaitable[T]],
    ) -> T:
        entry, folder = await self._found(customer, collection)
        identity = _identity(snapshot)
        try:
            file = await asyncio.to_thread(folder.opened, identity)
            try:
                manifest = file.manifest
                if (manifest.backbone, manifest.dim) != (entry.backbone, entry.dim):
                    raise Conflict(
                        f"the snapshot is of {manifest.dim} dimensions of {manifest.backbone}, the collection"
                        f" of {entry.dim} of {entry.backbone}: their vectors cannot be compared"
                    )
                await asyncio.to_thread(self._require_room, _GROWTH * file.size)
                erased = await self._ledger.read(partial(erased_from, container=entry.container))
                batches = self._batches(file, self._seals(entry), erased)
                content = Content(manifest.records, manifest.next_label, batches)

                def note(connection: Connection, records: int, **told: object) -> None:
                    if erased_from(connection, entry.container) != erased:
                        raise Conflict(
                            "records of it were erased meanwhile, nothing was changed: restore it again"
                        )
                    note_it = self._note(
                        actor, Event.SNAPSHOT_RESTORE, entry, identity, records=records, **told
                    )
                    note_it(connection)

                return await fill(entry, content, note)
            finally:
                await asyncio.to_thread(file.close)
        except SealBroken as error:
            kept = "the snapshot cannot be restored, nothing was changed"
            raise Conflict(f"{kept}: {error}", told=f"{kept}: {error.told}") from None

    async def _batches(self, file: SnapshotReading, seals: Seals, erased: Erased) -> AsyncGenerator[Stored]:
        """All records of a snapshot but the erased ones. Raises SealBroken."""
        count = 0
        while (some := await asyncio.to_thread(file.batch)) is not None:
            self._go_on()
            count += len(some.labels)
            some = await asyncio.to_thread(without, some, seals, erased)
            if some.words:
                yield some
        if count != file.manifest.records:
            raise SealBroken(f"it has {count} records instead of {file.manifest.records}")

    def _require_room(self, size: int) -> None:
        """Before the first batch, each of which takes its own."""
        with self._space.room(size):
            pass

    def _go_on(self) -> None:
        if self._ending.is_set():
            raise StorageFailed(told="the appliance stops; nothing was changed")

    async def _to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _found(
        self, customer: CustomerId | None, collection: CollectionId
    ) -> tuple[Entry, SnapshotFolder]:
        find = partial(entries.find_collection, customer=customer, id=collection)
        entry = await self._ledger.read(find)
        return entry, SnapshotFolder(self._folder, self._seals(entry))

    def _note(
        self, actor: Actor, event: Event, entry: Entry, snapshot: UUID, **details: object
    ) -> Callable[[Connection], None]:
        """The row of the audit log, in the transaction that it is called in."""

        def act(connection: Connection) -> None:
            entries.same_collection(connection, entry)
            told = {"snapshot": str(snapshot), **details}
            record(connection, self._now(), actor, event, entry.customer, entry.id, told)

        return act

    def _seals(self, entry: Entry) -> Seals:
        return Seals(self._keyring, entry.customer, entry.container)

    def _now(self) -> int:
        return int(self._clock() * 1000)


def _identity(snapshot: str) -> UUID:
    try:
        return UUID(snapshot)
    except ValueError:
        raise NotFound("the collection has no such snapshot") from None


def _snapshot(entry: Entry, saved: SavedSnapshot) -> Snapshot:
    manifest = saved.manifest
    return Snapshot(
        SnapshotId(str(saved.id)),
        entry.id,
        None if manifest is None else manifest.created_at,
        None if manifest is None else manifest.records,
        saved.size,
    )
