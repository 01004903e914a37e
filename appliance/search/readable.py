"""One collection in memory, as it is read: vectors in RAM, all else opened from the ledger."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np
from prometheus_client import Counter

from appliance import config
from appliance.errors import InvalidInput, NotFound
from appliance.ledger import Connection, Ledger
from appliance.search import exact, rows
from appliance.search.columns import Columns
from appliance.search.damages import Damages
from appliance.search.exact import Positions
from appliance.search.filters import Filter
from appliance.search.graph_files import GraphFolder
from appliance.search.loading import Page, is_sound
from appliance.search.reading import Reading, matches
from appliance.search.recent import RecentIds
from appliance.search.records import AnyVector, Collection, Hit, Record, Vector, encode_id
from appliance.search.sealed import SealedGraphs
from appliance.search.seals import Seals
from appliance.search.segments import Scans, Segments

A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")

MAX_PAGE = 10_000
_METADATA_PAGE = 1_000
_RACES = 3


class ReadableCollection:
    """What an open collection answers. Everything raises NotFound once it is removed or emptied.

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
    ) -> None:
        self._number = number
        self._collection = collection
        self._seals = seals
        self._ledger = ledger
        self._settings = settings
        self._scans = scans
        self._segments = Segments(settings, collection.dim, graphs, scans, self._moved, folder=folder)
        self._columns = Columns(self._metadata_page, self._segments.view)
        self._damages = Damages(collection.id, self._segments, damages)
        self._reading = Reading(self._read, self._damages.sound)
        self._recent = RecentIds()
        self._removed = False

    @property
    def collection(self) -> Collection:
        """The collection with its present count."""
        return dataclasses.replace(self._collection, count=self.count)

    @property
    def count(self) -> int:
        """Records, damaged ones included."""
        return self._segments.count + len(self._damages.labels)

    @property
    def damaged(self) -> int:
        """Records that no search finds: their vector, or their id and metadata, are not what was stored."""
        return len(self._damages.labels)

    @property
    def graphed(self) -> int | None:
        """How many records the graph in use knows; None while there is none and every search is exact."""
        return self._segments.known

    def rename(self, name: str) -> None:
        """Follow the ledger, where the collection has this name now."""
        self._collection = dataclasses.replace(self._collection, name=name)

    async def get(self, ids: Sequence[str]) -> list[Record | None]:
        """The records of these ids, None for one that does not exist."""
        encoded = [at(position, self._encoded_id, external) for position, external in enumerate(ids)]
        return self._damages.sound(await self._read(rows.records_by_id, external_ids=encoded))

    async def vectors(self, ids: Sequence[str]) -> list[Vector | None]:
        """The vectors, float32 of shape (dim,) and length 1; None where there is none to search by."""
        encoded = [at(position, self._encoded_id, external) for position, external in enumerate(ids)]
        found = await self._read(rows.current, external_ids=encoded)
        vectors = [None if one is None else one[0] for one in found]
        return [None if vector is None or not is_sound(vector) else vector for vector in vectors]

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
            if not metadata and (ids := self._recent.find(labels.tolist())) is not None:
                hits = zip(ids, distances.tolist(), strict=True)
                return [Hit(external, distance, {}) for external, distance in hits]
            damaged = self.damaged
            with self._reading.following() as replaced:
                found = await self._reading.records(labels, metadata=metadata)
            known = [record for record in found if record is not None]
            if len(known) == len(found):
                break
            # Short of a hit that was deleted or replaced meanwhile, or does not open: search again, unless
            # changes overtake every search.
            races += self.damaged == damaged
            if races > _RACES:
                named = zip(labels.tolist(), found, strict=True)
                now = [record.id if record else replaced.get(label, "") for label, record in named]
                return await self._as_now([one for one in now if one], query, wanted, metadata=metadata)
        if not metadata and len(self._segments.view().slots(labels)) == len(labels):  # none deleted meanwhile
            self._recent.remember(zip(labels.tolist(), (record.id for record in known), strict=True))
        return [
            Hit(record.id, distance, record.metadata)
            for record, distance in zip(known, distances.tolist(), strict=True)
        ]

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
        """Take over a page of vectors from the ledger, in order of their labels."""
        for frame in loaded.sound:
            self._segments.append(frame.labels, frame.rows)
        self._damages.note_vectors(loaded.damaged)

    async def reconcile(self, check: Callable[[], None]) -> None:
        """After the last `adopt`: what has a record and no vector is damaged, and vectors need a record.

        `check` raises NotFound when the collection has been erased meanwhile, and no record is there.
        """
        if self.count == self._collection.count:
            return
        known = np.array(await self._ledger.read(partial(rows.labels, number=self._number)), np.int64)
        check()
        view = self._segments.view()
        for label in np.setdiff1d(view.labels, known).tolist():
            self._segments.kill(label)
        missing = np.setdiff1d(known, view.labels).tolist()
        self._damages.note_vectors(label for label in missing if label not in self._damages.labels)

    def mark_removed(self) -> None:
        """Refuse every later call: the ledger has the collection no more."""
        self._removed = True

    async def close(self) -> None:
        """Stop the upkeep and drop the graph."""
        await self._segments.close()

    def _encoded_id(self, external: object) -> bytes:
        return encode_id(external, self._settings.max_id_bytes)

    def _require_present(self) -> None:
        if self._removed:
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
