"""What it takes to have a collection hold what somebody wants it to: ids to insert, to update and to delete.

The caller says the ids that are to be there, each with a hash of its own making or without one. The hash of
what is there lies in a field of its metadata, where the caller put it.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import msgspec

from appliance import config
from appliance.accounts.customers import CustomerId
from appliance.errors import InvalidInput, Overloaded, TooLarge
from appliance.ledger import Connection, Ledger
from appliance.search import rows
from appliance.search.entries import Entry, find_collection
from appliance.search.records import CollectionId, Metadata, encode_id
from appliance.search.seals import Seals
from appliance.search.sync import items
from appliance.search.sync.formats import Objects
from appliance.search.sync.mapping import Raw

T = TypeVar("T")

MOST_DESIRED = 1_000_000
MOST_HASH = 256

_AT_ONCE = 4  # of different customers
_PIECE = 32 << 10  # of JSON: its parsing holds the loop for a few milliseconds
_BATCH = 500
_PAGE = 5000


class _Desired(NamedTuple):
    id: str
    hash: str | None


@dataclass(slots=True)
class Difference:
    """Ids as pieces of JSON, without the commas between the pieces."""

    insert: list[bytes] = field(default_factory=list)
    update: list[bytes] = field(default_factory=list)
    delete: list[bytes] = field(default_factory=list)
    unchanged: int = 0

    def document(self) -> list[bytes]:
        """`{"insert": [...], "update": [...], "delete": [...], "unchanged": N}` in pieces."""
        pieces: list[bytes] = []
        for number, name in enumerate(("insert", "update", "delete")):
            pieces.append(f'{"," if number else "{"}"{name}":['.encode())
            ids: list[bytes] = getattr(self, name)
            for place, some in enumerate(ids):
                pieces += [b",", some] if place else [some]
            pieces.append(b"]")
        return [*pieces, f',"unchanged":{self.unchanged}}}'.encode()]


class Differences:
    """Compares what callers want with what is there: one call of each customer at a time, and few in all."""

    def __init__(self, ledger: Ledger, seals: Callable[[Entry], Seals], settings: config.Search) -> None:
        self._ledger = ledger
        self._seals = seals
        self._settings = settings
        self._under_way: set[CustomerId] = set()

    async def between(
        self,
        customer: CustomerId,
        collection: CollectionId,
        pieces: AsyncIterator[bytes],
        *,
        lines: bool,
        hash_field: str,
    ) -> Difference:
        """What `pieces` want, objects with `id` and perhaps `hash` in a JSON array, or `lines` of them.

        A record without a hash in its field, or with another one, is to be updated; one that is wanted
        without a hash is right as it is. What is written meanwhile is seen or not. Raises NotFound,
        InvalidInput naming the item, TooLarge for more than MOST_DESIRED, Overloaded, and what `pieces`
        raises.
        """
        with self._only_one(customer):
            await self._read(customer, collection, lambda *_: None)
            difference, seen = Difference(), set[bytes]()
            async for wanted in self._wanted(pieces, lines=lines):
                compare = partial(_compared, wanted=wanted, hash_field=hash_field)
                compared = await self._read(customer, collection, compare)
                before = len(seen)
                seen.update(handle for handle, _ in compared)
                if len(seen) < before + len(compared):
                    raise InvalidInput("an id comes more than once")
                _note(difference, wanted, [need for _, need in compared])
            after: int | None = -1
            while after is not None:
                page = partial(items.unseen, seen=seen, after=after, limit=_PAGE, of_feed=False)
                ids, after = await self._read(customer, collection, page)
                _add(difference.delete, ids)
            return difference

    async def _wanted(self, pieces: AsyncIterator[bytes], *, lines: bool) -> AsyncIterator[list[_Desired]]:
        reader, waiting, count = Objects((), lines=lines), list[_Desired](), 0
        async for piece in pieces:
            for start in range(0, len(piece), _PIECE):
                for raw in _items(reader, piece[start : start + _PIECE]):
                    count += 1
                    waiting.append(self._desired(raw, count))
                while len(waiting) >= _BATCH:
                    yield waiting[:_BATCH]
                    del waiting[:_BATCH]
        for raw in _items(reader, None):
            count += 1
            waiting.append(self._desired(raw, count))
        if waiting:
            yield waiting

    def _desired(self, raw: Raw, number: int) -> _Desired:
        if number > MOST_DESIRED:
            raise TooLarge(f"more than {MOST_DESIRED} ids")
        identity, digest = raw.get("id"), raw.get("hash")
        if not isinstance(digest, str | None) or len(digest or "") > MOST_HASH:
            raise InvalidInput(f"item {number}: hash: a string of at most {MOST_HASH} characters is expected")
        try:
            encode_id(identity, self._settings.max_id_bytes)
        except InvalidInput as error:
            raise InvalidInput(f"item {number}: {error}".replace("_id:", "id:")) from None
        return _Desired(str(identity), digest)

    async def _read(
        self,
        customer: CustomerId,
        collection: CollectionId,
        query: Callable[[Connection, Seals, int], T],
    ) -> T:
        def act(connection: Connection) -> T:
            entry = find_collection(connection, customer, collection)
            return query(connection, self._seals(entry), entry.number)

        return await self._ledger.read(act)

    @contextmanager
    def _only_one(self, customer: CustomerId) -> Iterator[None]:
        if customer in self._under_way:
            raise Overloaded("a comparison of this customer is under way: wait for its end", retry_after=10)
        if len(self._under_way) >= _AT_ONCE:
            raise Overloaded("as many comparisons are under way as there may be: try again", retry_after=30)
        self._under_way.add(customer)
        try:
            yield
        finally:
            self._under_way.remove(customer)


def _items(reader: Objects, piece: bytes | None) -> list[Raw]:
    """Those that end in a piece, or at the end (None)."""
    try:
        return reader.close() if piece is None else reader.feed(piece)
    except InvalidInput as error:
        raise InvalidInput(str(error).replace("the feed", "the body")) from None


def _compared(
    connection: Connection, seals: Seals, number: int, wanted: Sequence[_Desired], hash_field: str
) -> list[tuple[bytes, str]]:
    """Of each the handle, and "insert", "update" or "unchanged"."""
    compared = []
    for one in wanted:
        handle, need = seals.handle(one.id.encode()), "unchanged"
        record = rows.record_by_handle(connection, seals, number, handle)
        if record is None:
            need = "insert"
        elif record[1] is None or one.hash not in {None, _hash(record[1].metadata, hash_field)}:
            need = "update"
        compared.append((handle, need))
    return compared


def _hash(metadata: Metadata, hash_field: str) -> str:
    """What a record has in the field, empty for what is no text: it is no hash that anybody can want."""
    found = metadata.get(hash_field)
    return found if isinstance(found, str) else ""


def _note(difference: Difference, wanted: Sequence[_Desired], needs: Sequence[str]) -> None:
    named = list(zip(wanted, needs, strict=True))
    _add(difference.insert, [one.id for one, need in named if need == "insert"])
    _add(difference.update, [one.id for one, need in named if need == "update"])
    difference.unchanged += needs.count("unchanged")


def _add(pieces: list[bytes], ids: Sequence[str]) -> None:
    if ids:
        pieces.append(msgspec.json.encode(ids)[1:-1])
