"""One open collection: changes go to the ledger first and into RAM once they are durable."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
from prometheus_client import Counter

from appliance import config
from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.certificates import Certificates, Erased
from appliance.errors import InvalidInput
from appliance.ledger import Connection, Ledger
from appliance.search import exact, rows
from appliance.search.erased import leave_out
from appliance.search.filters import Filter
from appliance.search.graph_files import GraphFolder
from appliance.search.readable import MAX_PAGE, ReadableCollection, at, lasting
from appliance.search.reading import matches
from appliance.search.records import (
    Collection,
    Inserted,
    Metadata,
    NewRecord,
    Record,
    Upserted,
    encode_metadata,
)
from appliance.search.residents import Residents, held
from appliance.search.scans import Scans
from appliance.search.sealed import SealedGraphs
from appliance.search.seals import Seals
from appliance.volume import Space

__all__ = ["MAX_PAGE", "Also", "OpenCollection", "nothing"]

A = TypeVar("A")
T = TypeVar("T")

_DELETED_AT_ONCE = 256
"""Of a filter's records: erasing so many keeps other writes waiting for a few milliseconds."""


Also = Callable[[Connection, A], object]
"""What else happens in the transaction of a change, with its outcome; what it raises undoes the change."""


def nothing(_connection: Connection, _outcome: object) -> None:
    """Also nothing."""


class OpenCollection(ReadableCollection):
    """A collection that is read and changed. Obtained from `Collections.open`."""

    def __init__(
        self,
        number: int,
        collection: Collection,
        *,
        seals: Seals,
        ledger: Ledger,
        settings: config.Search,
        clock: Callable[[], float],
        graphs: SealedGraphs,
        folder: GraphFolder,
        scans: Scans,
        damages: Counter,
        doubt: Callable[[int], None],
        residents: Residents,
        certificates: Certificates,
        erased: Callable[[], None],
        space: Space,
        most: Callable[[], int],
        snapshots: Callable[[], Sequence[str]],
    ) -> None:
        """`erased` is told that records were deleted, whose bytes are still in the ledger's log; `most` tells
        how many records all collections of the customer may have together, `snapshots` the ids of those that
        the collection has by now; it is asked within the act that deletes. `space` is that of the ledger's
        volume."""
        super().__init__(
            number,
            collection,
            seals=seals,
            ledger=ledger,
            settings=settings,
            graphs=graphs,
            folder=folder,
            scans=scans,
            damages=damages,
            doubt=doubt,
            residents=residents,
        )
        self._clock = clock
        self._certificates = certificates
        self._erased = erased
        self._space = space
        self._most = most
        self._snapshots = snapshots

    def check(self, new: NewRecord) -> None:
        """Raise the InvalidInput that `insert` would raise for this record."""
        self._row(new)

    @lasting
    @held
    async def insert(
        self,
        actor: Actor,
        records: Sequence[NewRecord],
        also: Also[list[Inserted]] = nothing,
        *,
        event: Event = Event.SEARCH_INSERT,
    ) -> list[Inserted]:
        """Store the records that are new, in one durable transaction; searchable on return.

        An outcome for each: "duplicate" for an id that exists already or came earlier in this call (nothing
        is overwritten), "full" when the collection's capacity is reached, or its customer's. Raises
        InvalidInput, which names the record and the field, before anything is stored; VolumeFull where less
        than the reserve would stay free, StorageFailed: nothing is stored then.
        """
        prepared = [at(position, self._row, new) for position, new in enumerate(records)]

        def act(connection: Connection) -> tuple[list[Inserted], list[int]]:
            with self._space.room(_size(prepared)):
                outcomes, labels = rows.insert(connection, self._seals, self._number, prepared, self._quota)
            self._audit(connection, actor, event, {"inserted": len(labels)})
            also(connection, outcomes)
            return outcomes, labels

        def apply(committed: tuple[list[Inserted], list[int]]) -> None:
            outcomes, labels = committed
            self._add(
                labels, [n for n, outcome in enumerate(outcomes) if outcome == "inserted"], records, prepared
            )

        return (await self._write(act, apply))[0]

    @lasting
    @held
    async def upsert(
        self,
        actor: Actor,
        records: Sequence[NewRecord],
        also: Also[list[Upserted]] = nothing,
        *,
        event: Event = Event.SEARCH_UPSERT,
    ) -> list[Upserted]:
        """Store each record, in the place of the one with its id if there is one: vector and metadata.

        All in one durable transaction. A search or a listing meanwhile has the old or the new one of each,
        never both and never neither. What is replaced becomes the youngest in order of insertion. "full"
        where a new one finds no room. Raises as `insert`.
        """
        prepared = [at(position, self._row, new) for position, new in enumerate(records)]

        def act(connection: Connection) -> tuple[list[Upserted], list[int], dict[int, str]]:
            with self._space.room(_size(prepared)):
                outcomes, labels, replaced = rows.upsert(
                    connection, self._seals, self._number, prepared, self._quota
                )
            counts: dict[str, object] = {"inserted": len(labels) - len(replaced), "replaced": len(replaced)}
            self._audit(connection, actor, event, counts)
            also(connection, outcomes)
            self._reading.note(replaced)
            return outcomes, labels, replaced

        def apply(committed: tuple[list[Upserted], list[int], dict[int, str]]) -> None:
            outcomes, labels, replaced = committed
            stored = [n for n, outcome in enumerate(outcomes) if outcome != "full"]
            # All without a pause between: nobody sees one without the other.
            self._add(labels, stored, records, prepared)
            self._kill(list(replaced), replaced=True)
            self._reading.taken_over(replaced)

        return (await self._write(act, apply))[0]

    @lasting
    @held
    async def update(
        self,
        actor: Actor,
        changes: Sequence[tuple[str, Metadata]],
        also: Also[list[Record | None]] = nothing,
        *,
        whole: bool = False,
    ) -> list[Record | None]:
        """Set the given metadata fields of each id, keeping the others; all or nothing, durable on return.

        With `whole` no others are kept. The record after the change, None for an id that does not exist.
        Raises InvalidInput, and as `insert`.
        """
        limit = self._settings.max_metadata_bytes
        encode = partial(encode_metadata, max_bytes=limit)
        size = sum(len(at(position, encode, fields)) for position, (_, fields) in enumerate(changes))
        encoded = [
            (at(position, self._encoded_id, external), fields)
            for position, (external, fields) in enumerate(changes)
        ]

        def act(connection: Connection) -> list[rows.Found | None]:
            with self._space.room(size):
                updated = rows.update(connection, self._seals, self._number, encoded, limit, whole=whole)
            found = sum(change is not None and change[1] is not None for change in updated)
            self._audit(connection, actor, Event.SEARCH_UPDATE, {"updated": found})
            also(connection, [change and change[1] for change in updated])
            return updated

        def apply(committed: list[rows.Found | None]) -> None:
            view = self._segments.view()
            for change in committed:
                if change is not None and change[1] is not None:
                    for slot in view.slots(np.array([change[0]])).tolist():
                        self._columns.set(change[0], slot, change[1])

        committed = await self._write(act, apply)
        return self._damages.sound(committed)

    @lasting
    @held
    async def delete(
        self,
        actor: Actor,
        ids: Sequence[str],
        also: Also[list[bool]] = nothing,
        *,
        erase: bool = False,
    ) -> list[bool]:
        """Erase records and their vectors, durably; in no later answer on return. Whether each existed.

        Within about a second they are in no file any more, not even sealed, but for those of snapshots: one
        that has a record brings it back. With `erase` none does, nor what snapshots alone have of these ids.
        A certificate tells of it, and of the snapshots that may.
        """
        encoded = [at(position, self._encoded_id, external) for position, external in enumerate(ids)]

        def act(connection: Connection) -> list[int | None]:
            self._space.before_deletion()
            labels = rows.delete(connection, self._seals, self._number, encoded)
            found = sum(label is not None for label in labels)
            self._audit(connection, actor, Event.SEARCH_DELETE, {"deleted": found})
            paired = zip(encoded, labels, strict=True)
            gone = [external for external, label in paired if label is not None]
            self._certify(connection, gone, encoded if erase else None)
            also(connection, [label is not None for label in labels])
            return labels

        def apply(committed: list[int | None]) -> None:
            self._kill([label for label in committed if label is not None])

        return [label is not None for label in await self._write(act, apply)]

    @lasting
    @held
    async def delete_matching(self, actor: Actor, wanted: Filter, *, erase: bool = False) -> int:
        """Erase the records that match, as `delete` does, in steps of 256; how many went.

        Each is durable by itself: what interrupts the call leaves those before it erased. A record that is
        inserted meanwhile stays, and so does one that an update takes out of the filter. Raises InvalidInput
        for a filter without conditions, which every record matches.
        """
        if wanted.everything:
            raise InvalidInput("filter: without a condition it matches every record")
        labels = await self._matching(wanted)
        if self._damages.labels:  # no column has them: whether they match is seen where they are erased
            labels = np.union1d(labels, np.fromiter(self._damages.labels, np.int64))
        gone = 0
        for low in range(0, len(labels), _DELETED_AT_ONCE):
            some = labels[low : low + _DELETED_AT_ONCE].tolist()
            gone += await self._delete_some(actor, wanted, some, erase=erase)
        return gone

    @lasting
    @held
    async def note_export(self, actor: Actor) -> None:
        """Have the audit log say, durably, that the records are given out."""
        details: dict[str, object] = {"records": self.count}
        await self._write(
            lambda connection: self._audit(connection, actor, Event.SEARCH_EXPORT, details), lambda _: None
        )

    async def _delete_some(self, actor: Actor, wanted: Filter, labels: list[int], *, erase: bool) -> int:
        def act(connection: Connection) -> list[int]:
            self._space.before_deletion()
            gone = rows.delete_matching(
                connection, self._seals, self._number, labels, partial(matches, wanted)
            )
            self._audit(connection, actor, Event.SEARCH_DELETE, {"deleted": len(gone)})
            encoded = [external.encode() for external in gone.values()]
            self._certify(connection, encoded, encoded if erase else None)
            return list(gone)

        gone = await self._write(act, self._kill)
        return len(gone)

    def _add(
        self, labels: list[int], stored: list[int], records: Sequence[NewRecord], prepared: list[rows.Row]
    ) -> None:
        """Take the records at the positions `stored` into RAM, under these labels."""
        if not stored or self.removed:
            return
        slot = self._segments.append(labels, np.stack([prepared[n].vector for n in stored]))
        for offset, n in enumerate(stored):
            new = records[n]
            self._columns.set(labels[offset], slot + offset, Record(new.id, new.metadata))
        self._recent.expect([(label, records[n].id) for label, n in zip(labels, stored, strict=True)])
        self._segments.tend()

    def _kill(self, labels: list[int], *, replaced: bool = False) -> None:
        for label in labels:
            if not self._segments.kill(label, replaced=replaced):
                self._damages.forget(label)
            self._recent.forget(label)
            self._asked.forget(label)
        self._segments.tend()
        if labels:
            self._erased()

    @property
    def _quota(self) -> rows.Quota:
        return rows.Quota(self._settings.capacity, self._most())

    def _row(self, new: NewRecord) -> rows.Row:
        return rows.Row(
            self._encoded_id(new.id),
            exact.normalised(new.vector, self._collection.dim),
            encode_metadata(new.metadata, self._settings.max_metadata_bytes),
        )

    def _audit(self, connection: Connection, actor: Actor, event: Event, details: dict[str, object]) -> None:
        now = int(self._clock() * 1000)
        record(connection, now, actor, event, self._collection.customer, self._collection.id, details)

    def _certify(
        self, connection: Connection, gone: Sequence[bytes], from_snapshots: Sequence[bytes] | None
    ) -> None:
        """The ids of records that this act erases, and, unless None, of those that snapshots lose too."""
        snapshots = self._snapshots()
        if from_snapshots is not None and snapshots:
            leave_out(connection, self._seals, self._number, from_snapshots)
            gone, snapshots = from_snapshots, ()
        if gone:
            customer, subject = self._collection.customer, self._collection.id
            digests = [self._certificates.digest(customer, external) for external in dict.fromkeys(gone)]
            erased = Erased("record", customer, subject, ids=digests, snapshots=snapshots)
            self._certificates.add(connection, int(self._clock() * 1000), erased)

    async def _write(self, act: Callable[[Connection], T], apply: Callable[[T], None]) -> T:
        self._require_present()
        # To its end, and in memory until then, even when the caller is cancelled: RAM follows the ledger.
        return await asyncio.shield(asyncio.ensure_future(self._written(act, apply)))

    @held
    async def _written(self, act: Callable[[Connection], T], apply: Callable[[T], None]) -> T:
        return await self._ledger.write(act, then=apply)


def _size(prepared: Sequence[rows.Row]) -> int:
    """Bytes of the records, without what seals and indexes add: the reserve has room for that."""
    return sum(len(row.external_id) + row.vector.nbytes + len(row.metadata) for row in prepared)
