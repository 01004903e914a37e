"""One open collection: changes go to the ledger first and into RAM once they are durable."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from appliance import config
from appliance.accounts.audit import Actor, Event, record
from appliance.errors import InvalidInput, NotFound
from appliance.ledger import Connection, Ledger
from appliance.search import exact, rows
from appliance.search.columns import Columns
from appliance.search.exact import Positions
from appliance.search.filters import Filter
from appliance.search.loading import Page, sound_vector
from appliance.search.reading import Reading, matches
from appliance.search.records import (
    AnyVector,
    Collection,
    Hit,
    Inserted,
    Metadata,
    NewRecord,
    Record,
    Upserted,
    Vector,
    encode_id,
    encode_metadata,
)
from appliance.search.sealed import SealedGraphs
from appliance.search.segments import Scans, Segments

A = TypeVar("A")
T = TypeVar("T")

MAX_PAGE = 10_000
_METADATA_PAGE = 1_000
_DELETED_AT_ONCE = 256
"""Of a filter's records: erasing so many keeps other writes waiting for a few milliseconds."""
_RACES = 3


Also = Callable[[Connection, A], object]
"""What else happens in the transaction of a change, with its outcome; what it raises undoes the change."""


def nothing(_connection: Connection, _outcome: object) -> None:
    """Also nothing."""


class OpenCollection:
    """A collection whose vectors are in RAM. Obtained from `Collections.open`; raises NotFound once removed.

    A record with a damaged vector (see `Collections.open`) is fetched, paged, updated and deleted like any
    other, but no search finds it.
    """

    def __init__(
        self,
        number: int,
        collection: Collection,
        *,
        ledger: Ledger,
        settings: config.Search,
        clock: Callable[[], float],
        graphs: SealedGraphs,
        scans: Scans,
    ) -> None:
        self._number = number
        self._collection = collection
        self._ledger = ledger
        self._settings = settings
        self._clock = clock
        self._scans = scans
        self._segments = Segments(settings, collection.dim, graphs, scans, self._moved)
        self._columns = Columns(self._metadata_page, self._segments.view)
        self._reading = Reading(self._read, number, self._segments)
        self._damaged: set[int] = set()
        self._removed = False

    @property
    def collection(self) -> Collection:
        """The collection with its present count."""
        return dataclasses.replace(self._collection, count=self.count)

    @property
    def count(self) -> int:
        """Records, damaged ones included."""
        return self._segments.count + len(self._damaged)

    @property
    def damaged(self) -> int:
        """Records whose stored vector is no vector of this collection."""
        return len(self._damaged)

    @property
    def graphed(self) -> int | None:
        """How many records the graph in use knows; None while there is none and every search is exact."""
        return self._segments.known

    def rename(self, name: str) -> None:
        """Follow the ledger, where the collection has this name now."""
        self._collection = dataclasses.replace(self._collection, name=name)

    def check(self, new: NewRecord) -> None:
        """Raise the InvalidInput that `insert` would raise for this record."""
        self._row(new)

    async def insert(
        self, actor: Actor, records: Sequence[NewRecord], also: Also[list[Inserted]] = nothing
    ) -> list[Inserted]:
        """Store the records that are new, in one durable transaction; searchable on return.

        An outcome for each: "duplicate" for an id that exists already or came earlier in this call (nothing
        is overwritten), "full" when the collection's capacity is reached. Raises InvalidInput, which names
        the record and the field, before anything is stored; StorageFailed when nothing could be.
        """
        prepared = [_at(position, self._row, new) for position, new in enumerate(records)]

        def act(connection: Connection) -> tuple[list[Inserted], list[int]]:
            outcomes, labels = rows.insert(connection, self._number, prepared, self._settings.capacity)
            self._audit(connection, actor, Event.SEARCH_INSERT, {"inserted": len(labels)})
            also(connection, outcomes)
            return outcomes, labels

        def apply(committed: tuple[list[Inserted], list[int]]) -> None:
            outcomes, labels = committed
            self._add(
                labels, [n for n, outcome in enumerate(outcomes) if outcome == "inserted"], records, prepared
            )

        return (await self._write(act, apply))[0]

    async def upsert(
        self, actor: Actor, records: Sequence[NewRecord], also: Also[list[Upserted]] = nothing
    ) -> list[Upserted]:
        """Store each record, in the place of the one with its id if there is one: vector and metadata.

        All in one durable transaction. A search or a listing meanwhile has the old or the new one of each,
        never both and never neither. What is replaced becomes the youngest in order of insertion. "full"
        where a new one finds no room. Raises as `insert`.
        """
        prepared = [_at(position, self._row, new) for position, new in enumerate(records)]

        def act(connection: Connection) -> tuple[list[Upserted], list[int], dict[int, str]]:
            outcomes, labels, replaced = rows.upsert(
                connection, self._number, prepared, self._settings.capacity
            )
            counts: dict[str, object] = {"inserted": len(labels) - len(replaced), "replaced": len(replaced)}
            self._audit(connection, actor, Event.SEARCH_UPSERT, counts)
            also(connection, outcomes)
            return outcomes, labels, replaced

        def apply(committed: tuple[list[Upserted], list[int], dict[int, str]]) -> None:
            outcomes, labels, replaced = committed
            stored = [n for n, outcome in enumerate(outcomes) if outcome != "full"]
            # All without a pause between: nobody sees one without the other.
            self._reading.note(replaced)
            self._add(labels, stored, records, prepared)
            self._kill(list(replaced), replaced=True)

        return (await self._write(act, apply))[0]

    async def update(
        self,
        actor: Actor,
        changes: Sequence[tuple[str, Metadata]],
        also: Also[list[Record | None]] = nothing,
    ) -> list[Record | None]:
        """Set the given metadata fields of each id, keeping the others; all or nothing, durable on return.

        The whole record after the change, None for an id that does not exist. Raises InvalidInput.
        """
        limit = self._settings.max_metadata_bytes
        for position, (_, fields) in enumerate(changes):
            _at(position, partial(encode_metadata, max_bytes=limit), fields)
        encoded = [
            (_at(position, self._encoded_id, external), fields)
            for position, (external, fields) in enumerate(changes)
        ]

        def act(connection: Connection) -> list[tuple[int, Record] | None]:
            updated = rows.update(connection, self._number, encoded, limit)
            found = sum(change is not None for change in updated)
            self._audit(connection, actor, Event.SEARCH_UPDATE, {"updated": found})
            also(connection, [change and change[1] for change in updated])
            return updated

        def apply(committed: list[tuple[int, Record] | None]) -> None:
            view = self._segments.view()
            for change in committed:
                if change is not None:
                    for slot in view.slots(np.array([change[0]])).tolist():
                        self._columns.set(change[0], slot, change[1])

        return [change and change[1] for change in await self._write(act, apply)]

    async def delete(self, actor: Actor, ids: Sequence[str], also: Also[list[bool]] = nothing) -> list[bool]:
        """Erase records and their vectors, durably; in no later answer on return. Whether each existed."""
        encoded = [_at(position, self._encoded_id, external) for position, external in enumerate(ids)]

        def act(connection: Connection) -> list[int | None]:
            labels = rows.delete(connection, self._number, encoded)
            found = sum(label is not None for label in labels)
            self._audit(connection, actor, Event.SEARCH_DELETE, {"deleted": found})
            also(connection, [label is not None for label in labels])
            return labels

        def apply(committed: list[int | None]) -> None:
            self._kill([label for label in committed if label is not None])

        return [label is not None for label in await self._write(act, apply)]

    async def delete_matching(self, actor: Actor, wanted: Filter) -> int:
        """Erase the records that match, as `delete` does, in steps of 256; how many went.

        Each is durable by itself: what interrupts the call leaves those before it erased. A record that is
        inserted meanwhile stays, and so does one that an update takes out of the filter. Raises InvalidInput
        for a filter without conditions, which every record matches.
        """
        if wanted.everything:
            raise InvalidInput("filter: without a condition it matches every record")
        labels = await self._matching(wanted)
        if self._damaged:  # no column has them: whether they match is seen where they are erased
            labels = np.union1d(labels, np.fromiter(self._damaged, np.int64))
        gone = 0
        for low in range(0, len(labels), _DELETED_AT_ONCE):
            gone += await self._delete_some(actor, wanted, labels[low : low + _DELETED_AT_ONCE].tolist())
        return gone

    async def _delete_some(self, actor: Actor, wanted: Filter, labels: list[int]) -> int:
        def act(connection: Connection) -> list[int]:
            gone = rows.delete_matching(connection, self._number, labels, partial(matches, wanted))
            self._audit(connection, actor, Event.SEARCH_DELETE, {"deleted": len(gone)})
            return gone

        gone = await self._write(act, self._kill)
        return len(gone)

    def _add(
        self, labels: list[int], stored: list[int], records: Sequence[NewRecord], prepared: list[rows.Row]
    ) -> None:
        """Take the records at the positions `stored` into RAM, under these labels."""
        if not stored or self._removed:
            return
        joined = b"".join(prepared[n].vector for n in stored)
        vectors = np.frombuffer(joined, np.float32).reshape(len(stored), self._collection.dim)
        slot = self._segments.append(labels, [records[n].id for n in stored], vectors)
        for offset, n in enumerate(stored):
            new = records[n]
            self._columns.set(labels[offset], slot + offset, Record(new.id, new.metadata))
        self._segments.tend()

    def _kill(self, labels: list[int], *, replaced: bool = False) -> None:
        for label in labels:
            if not self._segments.kill(label, replaced=replaced):
                self._damaged.discard(label)
        self._segments.tend()

    async def get(self, ids: Sequence[str]) -> list[Record | None]:
        """The records of these ids, None for one that does not exist."""
        encoded = [_at(position, self._encoded_id, external) for position, external in enumerate(ids)]
        return await self._read(partial(rows.records_by_id, number=self._number, external_ids=encoded))

    async def vectors(self, ids: Sequence[str]) -> list[Vector | None]:
        """The vectors, float32 of shape (dim,) and length 1; None where there is none to search by."""
        encoded = [_at(position, self._encoded_id, external) for position, external in enumerate(ids)]
        found = await self._read(partial(rows.current, number=self._number, external_ids=encoded))
        return [None if one is None else sound_vector(one[0], self._collection.dim) for one in found]

    async def search(
        self, vector: AnyVector, k: int, wanted: Filter | None = None, *, metadata: bool = True
    ) -> list[Hit]:
        """The k records nearest to a vector of any length: always min(k, those that match), ascending.

        Records at equal distance come in order of insertion. While the collection is small or has no graph,
        and where few records match, the answer is exact; else it is the graph's, whose recall `[search] ef`
        decides.
        `metadata=False` leaves the hits' metadata empty and saves reading it. Raises InvalidInput.
        """
        exact.check_k(k)
        query = exact.normalised(vector, self._collection.dim, "query vector")
        races = 0
        while True:
            self._require_present()
            if wanted is None or wanted.everything:
                labels, distances = await self._segments.nearest(query, k)
            else:
                labels, distances = await self._segments.nearest_matching(
                    query, k, partial(self._columns.matching, wanted)
                )
            ids = self._segments.ids(labels)
            hits = zip(ids, distances.tolist(), strict=True)
            if not metadata:
                return [Hit(external, distance, {}) for external, distance in hits]
            found = await self._reading.records(labels)
            if None not in found:
                return [
                    Hit(record.id, distance, record.metadata)
                    for record, (_, distance) in zip(found, hits, strict=True)
                    if record is not None
                ]
            # Short of a hit that was deleted or replaced meanwhile: search again, unless that overtakes
            # every search.
            races += 1
            if races > _RACES:
                return await self._as_now(ids, query, wanted)

    async def _as_now(self, ids: Sequence[str], query: Vector, wanted: Filter | None) -> list[Hit]:
        """Those of these records that exist and match, by their distances, all of one moment."""
        encoded = [self._encoded_id(external) for external in ids]
        hits = []
        for found in await self._read(partial(rows.current, number=self._number, external_ids=encoded)):
            vector = found and sound_vector(found[0], self._collection.dim)
            if found is None or vector is None or not (wanted is None or matches(wanted, found[1])):
                continue
            distance = float(exact.distances(vector[np.newaxis], query)[0])
            hits.append(Hit(found[1].id, distance, found[1].metadata))
        return sorted(hits, key=lambda hit: hit.distance)

    async def sample(self, count: int, wanted: Filter | None, rng: np.random.Generator) -> list[Record]:
        """`count` different records that match (all, if there are fewer), drawn at random."""
        exact.check_k(count)
        with self._reading.following() as replaced:
            labels = await self._matching(wanted)
            chosen = rng.choice(labels, min(count, len(labels)), replace=False)
            return await self._reading.present(chosen, replaced, wanted)

    async def page(self, page: int, size: int) -> tuple[list[Record], bool]:
        """Page 1, 2, ... of `size` records in order of insertion, and whether another one follows."""
        _check_size(size)
        if not 1 <= page <= self._settings.capacity:
            raise InvalidInput("page: an integer from 1 on is needed")
        with self._reading.following() as replaced:
            labels = await self._matching(None)
            first = (page - 1) * size
            records = await self._reading.present(labels[first : first + size], replaced)
        return records, first + size < len(labels)

    async def after(
        self, label: int, size: int, wanted: Filter | None = None
    ) -> tuple[list[Record], int | None]:
        """Up to `size` records that match and came after `label` (-1: all), and the label to go on after.

        None: none follows. Through all pages, each record that is there all the while comes once, whatever is
        written; one that is replaced meanwhile may come a second time, as it is then.
        """
        _check_size(size)
        with self._reading.following() as replaced:
            labels = await self._matching(wanted)
            first = int(np.searchsorted(labels, label, side="right"))
            page = labels[first : first + size]
            records = await self._reading.present(page, replaced, wanted)
        return records, int(page[-1]) if first + size < len(labels) else None

    async def all(self, wanted: Filter | None = None) -> list[Record]:
        """Every record that matches, in order of insertion."""
        with self._reading.following() as replaced:
            return await self._reading.present(await self._matching(wanted), replaced, wanted)

    async def seal(self) -> None:
        """Build a graph over every record now instead of when the exact tail has grown; see `[search]`."""
        await self._segments.seal()

    async def settle(self) -> None:
        """Return when no graph is being built and no memory compacted."""
        await self._segments.settle()

    def reserve(self, records: int) -> None:
        """Before the first `adopt`: make room."""
        self._segments.reserve(records)

    def adopt(self, loaded: Page) -> None:
        """Take over a page of records from the ledger, in order of their labels."""
        self._segments.append(loaded.labels, loaded.ids, loaded.vectors)
        self._damaged.update(loaded.damaged)

    def mark_removed(self) -> None:
        """Refuse every later call: the ledger has the collection no more."""
        self._removed = True

    async def close(self) -> None:
        """Stop the upkeep and drop the graph."""
        await self._segments.close()

    def _row(self, new: NewRecord) -> rows.Row:
        return rows.Row(
            self._encoded_id(new.id),
            exact.normalised(new.vector, self._collection.dim).tobytes(),
            encode_metadata(new.metadata, self._settings.max_metadata_bytes),
        )

    def _encoded_id(self, external: object) -> bytes:
        return encode_id(external, self._settings.max_id_bytes)

    def _require_present(self) -> None:
        if self._removed:
            raise NotFound("no such collection")

    def _audit(self, connection: Connection, actor: Actor, event: Event, details: dict[str, object]) -> None:
        now = int(self._clock() * 1000)
        record(connection, now, actor, event, self._collection.customer, self._collection.id, details)

    async def _write(self, act: Callable[[Connection], T], apply: Callable[[T], None]) -> T:
        self._require_present()
        return await self._ledger.write(act, then=apply)

    async def _read(self, query: Callable[[Connection], T]) -> T:
        self._require_present()
        return await self._ledger.read(query)

    async def _metadata_page(self, after: int) -> list[tuple[int, Record]]:
        return await self._read(
            partial(rows.load_records, number=self._number, after=after, limit=_METADATA_PAGE)
        )

    async def _matching(self, wanted: Filter | None) -> Positions:
        """Labels, ascending, of the records that match; without a filter the damaged ones too."""
        self._require_present()
        if wanted is None or wanted.everything:
            view = self._segments.view()
            labels = view.labels[view.alive]
            if self._damaged:
                labels = np.union1d(labels, np.fromiter(self._damaged, np.int64))
            return labels
        matching, view = await self._columns.matching(wanted)
        mask = await self._scans.run(matching.effort, matching.mask)
        return view.labels[mask & view.alive]

    def _moved(self, old_slots: Positions) -> None:
        self._columns.move(old_slots)


def _check_size(size: int) -> None:
    if not 1 <= size <= MAX_PAGE:
        raise InvalidInput(f"size: an integer from 1 to {MAX_PAGE} is needed")


def _at(position: int, check: Callable[[A], T], given: A) -> T:
    """`check(given)`, its complaint saying which record it is about."""
    try:
        return check(given)
    except InvalidInput as error:
        raise type(error)(f"record {position}: {error}") from None
