"""Whether what rests in the ledger is what was stored: plain functions on a connection, within a transaction.

Two kinds of rows are proven. A frame is sound when it opens and has a vector of length 1 of every record that
it has to have; a record, when its id and metadata open and there is a frame at all that may have its vector.
Known damage is remembered by the keys of both, in a table for each kind.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId
from appliance.errors import NotFound, SealBroken
from appliance.ledger import Connection
from appliance.search import frames
from appliance.search.loading import sound_labels
from appliance.search.numbering import label_of, number_of, span
from appliance.search.records import CollectionId
from appliance.search.seals import ContainerId, Seals
from appliance.vault import Keyring

Kind = Literal["vectors", "records"]

_FRAMES_AT_ONCE = 16
"""Of 64 KiB: read and opened in a few milliseconds."""
_RECORDS_AT_ONCE = 1_000
_SYSTEM = Actor("system", "search")

_FRAMES = (
    "SELECT key, frames.count, content, dim, id, customer, container FROM frames"
    " JOIN collections ON number = collection WHERE NOT removed AND key BETWEEN ? AND ? ORDER BY key LIMIT ?"
)
_FRAME_AHEAD = (
    "SELECT key FROM frames JOIN collections ON number = collection WHERE NOT removed AND key > ?"
    " ORDER BY key LIMIT 1 OFFSET ?"
)
_RECORDS = (
    "SELECT key, handle, words, id, customer, container,"
    " EXISTS (SELECT 1 FROM frames WHERE frames.key BETWEEN collection << 32 AND records.key) FROM records"
    " JOIN collections ON number = collection WHERE NOT removed AND key BETWEEN ? AND ? ORDER BY key LIMIT ?"
)
_LAST = (1 << 63) - 1
_KNOWN: dict[Kind, str] = {"vectors": "damaged_frames", "records": "damaged_records"}


@dataclass(frozen=True, slots=True)
class Proven:
    """A row that was looked at. `sound` is None where there is no key to tell."""

    kind: Kind
    key: int
    records: int
    size: int
    customer: CustomerId
    collection: CollectionId
    sound: bool | None

    @property
    def known(self) -> str:
        """The table of what is damaged of its kind."""
        return _KNOWN[self.kind]


class Known(NamedTuple):
    """How much is known to be damaged, of collections that were not removed meanwhile."""

    frames: int
    records: int


def page(connection: Connection, keyring: Keyring, after: int) -> tuple[list[Proven], int]:
    """The rows whose keys come next, and up to which key that is all of them; no rows: there are no more."""
    last: int = connection.execute(_FRAME_AHEAD, (after, _FRAMES_AT_ONCE - 1)).get or _LAST
    proven = _records(connection, keyring, after + 1, last, _RECORDS_AT_ONCE)
    if len(proven) == _RECORDS_AT_ONCE:
        last = proven[-1].key
    proven += _frames(connection, keyring, after + 1, last, _FRAMES_AT_ONCE)
    return proven, max((one.key for one in proven), default=after)


def at(connection: Connection, keyring: Keyring, keys: Iterable[int]) -> list[Proven]:
    """The records of these keys that exist, and the frames that have to have their vectors."""
    proven: list[Proven] = []
    inside: dict[int, None] = {}
    for key in keys:
        proven += _records(connection, keyring, key, key, 1)
        if (frame := frames.frame_of(connection, number_of(key), label_of(key))) is not None:
            inside[frame] = None
    for frame in inside:
        proven += _frames(connection, keyring, frame, frame, 1)
    return proven


def note(connection: Connection, looked: Sequence[Proven], now: int) -> list[Proven]:
    """Remember what was found; the damaged ones that are news.

    Audited once for a collection and a kind, until nothing of that kind is damaged there any more.
    """
    connection.execute("DELETE FROM damaged_frames WHERE key NOT IN (SELECT key FROM frames)")
    connection.execute("DELETE FROM damaged_records WHERE key NOT IN (SELECT key FROM records)")
    for one in looked:
        if one.sound:
            connection.execute(f"DELETE FROM {one.known} WHERE key = ?", (one.key,))  # noqa: S608
    news = [one for one in looked if one.sound is False and not _is_known(connection, one)]
    first: dict[tuple[CustomerId, CollectionId, Kind], int] = {}
    for one in news:
        subject = one.customer, one.collection, one.kind
        if subject in first or not _any_known(connection, one):
            first[subject] = first.get(subject, 0) + one.records
    for one in news:
        connection.execute(f"INSERT INTO {one.known} VALUES (?, ?)", (one.key, now))  # noqa: S608
    for (customer, collection, kind), count in first.items():
        details: dict[str, object] = {"damaged": kind, "records": count}
        record(connection, now, _SYSTEM, Event.SEARCH_DAMAGED, customer, collection, details)
    return news


def damaged(connection: Connection) -> Known:
    """What is known by now."""
    return Known(
        _count(connection, "damaged_frames", "frames"), _count(connection, "damaged_records", "records")
    )


def _count(connection: Connection, known: str, rows: str) -> int:
    query = (
        f"SELECT count(*) FROM {known} JOIN {rows} USING (key)"  # noqa: S608 - names of tables
        " JOIN collections ON number = collection WHERE NOT removed"
    )
    count: int = connection.execute(query).get
    return count


def _is_known(connection: Connection, one: Proven) -> bool:
    query = f"SELECT 1 FROM {one.known} WHERE key = ?"  # noqa: S608
    return connection.execute(query, (one.key,)).get is not None


def _any_known(connection: Connection, one: Proven) -> bool:
    """Whether damage of its kind is known of its collection."""
    query = f"SELECT 1 FROM {one.known} WHERE key BETWEEN ? AND ? LIMIT 1"  # noqa: S608
    return connection.execute(query, span(number_of(one.key))).get is not None


def _frames(connection: Connection, keyring: Keyring, first: int, last: int, most: int) -> list[Proven]:
    rows: Iterator[Any] = connection.execute(_FRAMES, (first, last, most))
    proven = []
    for key, count, content, dim, identity, customer, container in rows:
        seals = Seals(keyring, customer, ContainerId(container))
        sound: bool | None
        try:
            frame = frames.opened(seals, key, count, dim, content)
        except NotFound:  # destroyed with its collection just now, or a finding of its own
            sound = None
        else:
            needed = frames.records_of(connection, number_of(key), label_of(key))
            sound = frame is not None and set(needed) <= set(sound_labels(frame).tolist())
        proven.append(Proven("vectors", key, count, len(content), customer, identity, sound))
    return proven


def _records(connection: Connection, keyring: Keyring, first: int, last: int, most: int) -> list[Proven]:
    rows: Iterator[Any] = connection.execute(_RECORDS, (first, last, most))
    proven = []
    for key, handle, words, identity, customer, container, framed in rows:
        sound: bool | None
        try:
            Seals(keyring, customer, ContainerId(container)).open_words(key, handle, words)
        except NotFound:
            sound = None
        except SealBroken:
            sound = False
        else:
            sound = bool(framed)
        proven.append(Proven("records", key, 1, len(words), customer, identity, sound))
    return proven
