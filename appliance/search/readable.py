"""One collection as it is read: vectors in RAM while it is used, all else opened from the ledger."""

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from functools import partial, wraps
from itertools import islice
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from prometheus_client import Counter

from appliance import config
from appliance.errors import InvalidInput, NotFound
from appliance.ledger import Connection, Ledger
from appliance.search import exact, rows
from appliance.search.columns import Columns
from appliance.search.damages import Damages
from appliance.search.exact import Distances, Positions
from appliance.search.filters import Filter
from appliance.search.graph_files import GraphFolder
from appliance.search.loading import is_sound, load_page
from appliance.search.reading import Reading, matches
from appliance.search.recent import RecentIds, RecentLabels
from appliance.search.records import AnyVector, Collection, Hit, Record, Vector, encode_id
from appliance.search.residents import Residents, held
from appliance.search.scans import Scans
from appliance.search.sealed import SealedGraphs
from appliance.search.seals import Seals
from appliance.search.segments import Sealing, Segments

A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")

MAX_PAGE = 10_000
_METADATA_PAGE = 1_000
_RACES = 3
_OPEN_BYTES = 7168
"""What a collection takes in memory beside what grows with its records (measured, rounded up)."""


C = TypeVar("C", bound="ReadableCollection")


def lasting(
    operation: Callable[Concatenate[C, P], Awaitable[T]],
) -> Callable[Concatenate[C, P], Coroutine[Any, Any, T]]:
    """For what callers ask of a collection: where a restored snapshot has taken its place, of that."""

    @wraps(operation)
    async def within(collection: C, *args: P.args, **kwargs: P.kwargs) -> T:
        while True:
            try:
                return await operation(collection, *args, **kwargs)
            except NotFound:
                if collection.successor is None:
                    raise
                collection = await collection.successor()

    return within  # type: ignore[return-value]  # `wraps` names its first argument


class ReadableCollection:
    """What an open collection answers. Everything raises NotFound once it is removed or emptied.

    It is a resident (see `residents`): what needs its memory is `held`, and loads it where it was dropped.

    A record with a damaged vector (see `Collections.open`) is fetched, paged, updated and deleted like any
    other, but no search finds it. One whose id and metadata do not open is in no answer from the first time
    that it is read; it can be deleted or replaced, and until then its id is taken.
    """

    def __init__(
        self,
        number: int,
        collection: Collection,
        *,
        seals: Seals,
        ledger: Ledger,
        settings: config.Search,
        graphs: SealedGraphs,
        folder: GraphFolder,
        scans: Scans,
        damages: Counter,
        doubt: Callable[[int], None],
        residents: Residents,
    ) -> None:
        self.customer = collection.customer
        self.place = residents.place(self)
        self.removed = False
        self.successor: Callable[[], Awaitable[Any]] | None = None
        """Opens what has taken its place, where a snapshot was restored; it is removed then."""
        self._number = number
        self._collection = collection
        self._seals = seals
        self._ledger = ledger
        self._settings = settings
        self._graphs = graphs
        self._scans = scans
        self._folder = folder
        self._damages_found = damages
        self._doubt = doubt
        self._begin()

    def _begin(self) -> None:
        """Have nothing in memory."""
        self._segments = Segments(
            self._settings,
            self._collection.dim,
            self._graphs,
            self._scans,
            folder=self._folder,
            moved=self._moved,
            target=self._collection.recall,
        )
        self._columns = Columns(self._metadata_page, self._segments.view)
        self._damages = Damages(self._collection.id, self._segments, self._damages_found, self._doubt)
        self._reading = Reading(self._read, self._damages.sound)
        self._recent = RecentIds()
        self._asked = RecentLabels()

    @property
    def collection(self) -> Collection:
        """The collection with its present count."""
        return dataclasses.replace(self._collection, count=self.count)

    @property
    def count(self) -> int:
        """Records, damaged ones included."""
        if not self.place.loaded:
            return self._collection.count
        return self._segments.count + len(self._damages.labels)

    @property
    def damaged(self) -> int:
        """Records that no search finds: their vector, or their id and metadata, are not what was stored.

        Known of a collection in memory, 0 of another.
        """
        return len(self._damages.labels)

    @property
    def graphed(self) -> int | None:
        """How many records the graphs in use know; None while there is none and every search is exact."""
        return self._segments.known

    @property
    def expected_bytes(self) -> int:
        return _OPEN_BYTES + self._segments.expected_bytes(self._collection.count)

    @property
    def memory_bytes(self) -> int:
        recent = self._recent.bytes + self._asked.bytes
        return _OPEN_BYTES + self._segments.bytes + self._columns.bytes + recent

    @property
    def tended(self) -> bool:
        return self._segments.tended

    @property
    def sealing(self) -> Sealing:
        """How the records are held, and what the graphs are tuned to."""
        return self._segments.sealing

    def rename(self, name: str) -> None:
        """Follow the ledger, where the collection has this name now."""
        self._collection = dataclasses.replace(self._collection, name=name)

    def aim(self, recall: float) -> None:
        """Follow the ledger, where this is the recall that is asked of the graphs."""
        self._collection = dataclasses.replace(self._collection, recall=recall)
        self._segments.aim(recall)
        if self.place.loaded:
            self._segments.tend()

    @held
    async def ready(self) -> None:
        """Be in memory. What was removed or emptied raises NotFound."""
        self._require_present()

    @lasting
    @held
    async def get(self, ids: Sequence[str]) -> list[Record | None]:
        """The records of these ids, None for one that does not exist."""
        encoded = [at(position, self._encoded_id, external) for position, external in enumerate(ids)]
        return self._damages.sound(await self._read(rows.records_by_id, external_ids=encoded))

    @lasting
    @held
    async def vectors(self, ids: Sequence[str]) -> list[Vector | None]:
        """The vectors, float32 of shape (dim,) and length 1; None where there is none to search by."""
        for position, external in enumerate(ids):
            at(position, self._encoded_id, external)
        self._require_present()
        vectors = [self._vector_of(self._asked.find(external)) for external in ids]
        if unknown := [position for position, vector in enumerate(vectors) if vector is None]:
            again = await self._vectors([ids[position] for position in unknown])
            for position, vector in zip(unknown, again, strict=True):
                vectors[position] = vector
        return vectors

    @lasting
    @held
    async def search(
        self,
        vector: AnyVector,
        k: int,
        wanted: Filter | None = None,
        *,
        metadata: bool = True,
        exactly: bool = False,
    ) -> list[Hit]:
        """The k records nearest to a vector of any length: always min(k, those that match), ascending.

        Records at equal distance come in order of insertion. While the collection is small or has no graph,
        where few records match, and with `exactly`, the answer is exact; else it is the graphs', of the
        collection's recall. `metadata=False` leaves the hits' metadata empty and saves reading it. Raises
        InvalidInput.
        """
        (hits,) = await self._search([vector], k, wanted, metadata=metadata, exactly=exactly)
        return hits

    @lasting
    @held
    async def search_many(
        self,
        vectors: Sequence[AnyVector],
        k: int,
        wanted: Filter | None = None,
        *,
        metadata: bool = True,
        exactly: bool = False,
    ) -> list[list[Hit]]:
        """What `search` finds for each of the vectors, which costs less than so many searches."""
        return await self._search(vectors, k, wanted, metadata=metadata, exactly=exactly)

    async def _search(
        self,
        vectors: Sequence[AnyVector],
        k: int,
        wanted: Filter | None,
        *,
        metadata: bool,
        exactly: bool,
    ) -> list[list[Hit]]:
        exact.check_k(k)
        queries = np.empty((len(vectors), self._collection.dim), np.float32)
        for position, vector in enumerate(vectors):
            queries[position] = exact.normalised(vector, self._collection.dim, "query vector")
        answers: list[list[Hit] | None] = [None] * len(queries)
        races = 0
        while pending := [position for position, hits in enumerate(answers) if hits is None]:
            self._require_present()
            some = queries if len(pending) == len(queries) else queries[pending]
            found = await self._nearest(some, k, wanted, exactly=exactly)
            if not metadata:
                for position, one in zip(pending, found, strict=True):
                    answers[position] = self._recently(*one)
            unread = [
                (position, one)
                for position, one in zip(pending, found, strict=True)
                if answers[position] is None
            ]
            if not unread:
                break
            damaged = self.damaged
            with self._reading.following() as replaced:
                records = await self._records([one for _, (one, _) in unread], metadata=metadata)
            missed: list[tuple[int, list[str]]] = []
            for (position, (labels, distances)), named in zip(unread, records, strict=True):
                known = [record for record in named if record is not None]
                if len(known) == len(named):
                    answers[position] = [
                        Hit(record.id, distance, record.metadata)
                        for record, distance in zip(known, distances.tolist(), strict=True)
                    ]
                else:
                    pairs = zip(labels.tolist(), named, strict=True)
                    now = [record.id if record else replaced.get(label, "") for label, record in pairs]
                    missed.append((position, [one for one in now if one]))
            # Short of a hit that was deleted or replaced meanwhile, or does not open: search again, unless
            # changes overtake every search.
            races += self.damaged == damaged
            if races > _RACES:
                for position, ids in missed:
                    answers[position] = await self._as_now(ids, queries[position], wanted, metadata=metadata)
        return [hits for hits in answers if hits is not None]

    async def _nearest(
        self, queries: Vector, k: int, wanted: Filter | None, *, exactly: bool
    ) -> list[exact.Found]:
        if wanted is None or wanted.everything:
            return await self._segments.nearest(queries, k, exactly=exactly)
        matching = partial(self._columns.matching, wanted)
        return await self._segments.nearest_matching(queries, k, matching, exactly=exactly)

    async def _vectors(self, ids: Sequence[str]) -> list[Vector | None]:
        """By ids whose labels are to be read. The vectors are in memory: their frames need not be opened."""
        encoded = [self._encoded_id(external) for external in ids]
        found = await self._read(rows.records_by_id, external_ids=encoded)
        vectors = list[Vector | None]()
        for external, one, record in zip(ids, found, self._damages.sound(found), strict=True):
            vectors.append(None if one is None or record is None else self._vector_of(one[0]))
            if one is not None and vectors[-1] is not None:
                self._asked.remember(external, one[0])
        # Durable and not in memory yet, replaced since it was read, or damaged.
        if unclear := [n for n, record in enumerate(found) if record is not None and vectors[n] is None]:
            now = await self._read(rows.current, external_ids=[encoded[n] for n in unclear])
            for n, current in zip(unclear, now, strict=True):
                vector = None if current is None else current[0]
                vectors[n] = vector if vector is not None and is_sound(vector) else None
        return vectors

    def _vector_of(self, label: int | None) -> Vector | None:
        """A copy of the vector in memory, None where the record does not live there."""
        if label is None:
            return None
        view = self._segments.view()
        found = view.rows(view.slots(np.array([label])))
        return found[0] if len(found) else None

    def _recently(self, labels: Positions, distances: Distances) -> list[Hit] | None:
        """Hits of these labels by their ids alone; None where that takes reading."""
        ids = self._recent.find(labels.tolist())
        if ids is None:
            return None
        return [Hit(external, away, {}) for external, away in zip(ids, distances.tolist(), strict=True)]

    async def _records(self, found: Sequence[Positions], *, metadata: bool) -> list[list[Record | None]]:
        """Of each answer what its labels stand for, None where one stands for nothing any more."""
        read = iter(await self._reading.records(np.concatenate(found), metadata=metadata))
        records = [list(islice(read, len(labels))) for labels in found]
        if not metadata:
            view = self._segments.view()
            for labels, named in zip(found, records, strict=True):
                ids = [record.id for record in named if record is not None]
                # None of them deleted meanwhile.
                if len(view.slots(labels)) == len(ids) == len(labels):
                    self._recent.remember(zip(labels.tolist(), ids, strict=True))
        return records

    async def _as_now(
        self, ids: Sequence[str], query: Vector, wanted: Filter | None, *, metadata: bool
    ) -> list[Hit]:
        """Those of these records that exist and match, by their distances, all of one moment."""
        encoded = [self._encoded_id(external) for external in ids]
        hits = []
        for found in await self._read(rows.current, external_ids=encoded):
            vector = found and found[0]
            if found is None or vector is None or not is_sound(vector):
                continue
            if wanted is None or matches(wanted, found[1]):
                distance = float(exact.distances(vector[np.newaxis], query)[0])
                hits.append(Hit(found[1].id, distance, found[1].metadata if metadata else {}))
        return sorted(hits, key=lambda hit: hit.distance)

    @lasting
    @held
    async def sample(self, count: int, wanted: Filter | None, rng: np.random.Generator) -> list[Record]:
        """`count` different records that match (all, if there are fewer), drawn at random."""
        exact.check_k(count)
        with self._reading.following() as replaced:
            labels = await self._matching(wanted)
            chosen = rng.choice(labels, min(count, len(labels)), replace=False)
            return await self._reading.present(chosen, replaced, wanted)

    @lasting
    @held
    async def page(self, page: int, size: int) -> tuple[list[Record], bool]:
        """Page 1, 2, ... of `size` records in order of insertion, and whether another one follows."""
        _check_size(size)
        if page < 1:
            raise InvalidInput("page: an integer from 1 on is needed")
        with self._reading.following() as replaced:
            labels = await self._matching(None)
            first = (page - 1) * size
            records = await self._reading.present(labels[first : first + size], replaced)
        return records, first + size < len(labels)

    @lasting
    @held
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

    @lasting
    @held
    async def all(self, wanted: Filter | None = None) -> list[Record]:
        """Every record that matches, in order of insertion."""
        with self._reading.following() as replaced:
            return await self._reading.present(await self._matching(wanted), replaced, wanted)

    async def stored(self, size: int) -> AsyncIterator[list[tuple[Record, Vector]]]:
        """Every sound record of this moment with its vector, in order of insertion, up to `size` at a time.

        One that is deleted before its turn is left out; one that is updated or replaced meanwhile comes once,
        as it was or as it is.
        """
        with self._reading.following() as replaced:
            labels = await self._known()
            for low in range(0, len(labels), size):
                some = labels[low : low + size].tolist()
                found = await self._read(rows.current_by_label, labels=some)
                gone = [place for place, one in enumerate(found) if one is None]
                renewed = {place: known for place in gone if (known := replaced.get(some[place]))}
                encoded = [self._encoded_id(external) for external in renewed.values()]
                again = await self._read(rows.current, external_ids=encoded) if encoded else []
                for place, one in zip(renewed, again, strict=True):
                    found[place] = one
                present = [(one[1], one[0]) for one in found if one is not None]
                yield [
                    (record, vector) for record, vector in present if vector is not None and is_sound(vector)
                ]

    @held
    async def seal(self) -> None:
        """Build one graph over every record now, whatever is due; see `[search]`."""
        await self._segments.seal()

    @held
    async def settle(self) -> None:
        """Return when no graph is being built and no memory compacted."""
        await self._segments.settle()

    async def load(self) -> None:
        """Read every vector from the ledger, a page at a time. NotFound when it is removed meanwhile."""
        self._segments.reserve(self._collection.count)
        last = -1
        while (page := await self._read(load_page, dim=self._collection.dim, after=last)).last >= 0:
            for frame in page.sound:
                self._segments.append(frame.labels, frame.rows)
            self._damages.note_vectors(page.damaged)
            last = page.last
        await self._reconcile()

    async def _reconcile(self) -> None:
        """What has a record and no vector is damaged, and vectors need a record."""
        if self._segments.count + self.damaged == self._collection.count:
            return
        known = np.array(await self._ledger.read(partial(rows.labels, number=self._number)), np.int64)
        self._require_present()  # erased meanwhile, it would have no record
        view = self._segments.view()
        for label in np.setdiff1d(view.labels, known).tolist():
            self._segments.kill(label)
        missing = np.setdiff1d(known, view.labels).tolist()
        self._damages.note_vectors(label for label in missing if label not in self._damages.labels)

    def unload(self) -> None:
        """Drop what is in memory; the graph as well."""
        if self.place.loaded:
            self._collection = self.collection
        self._segments.drop()
        self._begin()

    def mark_removed(self, successor: Callable[[], Awaitable[Any]] | None = None) -> None:
        """Refuse every later call, or leave it to the successor: the ledger has these records no more."""
        self.successor = successor
        self.removed = True

    async def close(self) -> None:
        """Stop the upkeep and drop the graphs."""
        await self._segments.close()

    def _encoded_id(self, external: object) -> bytes:
        return encode_id(external, self._settings.max_id_bytes)

    def _require_present(self) -> None:
        if self.removed:
            raise NotFound("no such collection")

    async def _read(
        self,
        query: Callable[Concatenate[Connection, Seals, int, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """`query` of `rows` about this collection."""
        self._require_present()

        def act(connection: Connection) -> T:
            return query(connection, self._seals, self._number, *args, **kwargs)

        found = await self._ledger.read(act)
        self._require_present()  # removed meanwhile, with its key: what did not open is not damaged
        return found

    async def _metadata_page(self, after: int) -> list[tuple[int, Record]]:
        while page := await self._read(rows.load_records, after=after, limit=_METADATA_PAGE):
            self._damages.sound(page)
            if sound := [(label, record) for label, record in page if record is not None]:
                return sound
            after = page[-1][0]
        return []

    @held
    async def _known(self) -> Positions:
        return await self._matching(None)

    async def _matching(self, wanted: Filter | None) -> Positions:
        """Labels, ascending, of the records that match; without a filter the damaged ones too."""
        self._require_present()
        if wanted is None or wanted.everything:
            view = self._segments.view()
            labels = view.labels[view.alive]
            if self._damages.labels:
                labels = np.union1d(labels, np.fromiter(self._damages.labels, np.int64))
            return labels
        matching, view = await self._columns.matching(wanted)
        mask = await self._scans.run(matching.effort, matching.mask)
        return view.labels[mask & view.alive]

    def _moved(self, old_slots: Positions) -> None:
        self._columns.move(old_slots)


def _check_size(size: int) -> None:
    if not 1 <= size <= MAX_PAGE:
        raise InvalidInput(f"size: an integer from 1 to {MAX_PAGE} is needed")


def at(position: int, check: Callable[[A], T], given: A) -> T:
    """`check(given)`, its complaint saying which record it is about."""
    try:
        return check(given)
    except InvalidInput as error:
        raise type(error)(f"record {position}: {error}") from None
