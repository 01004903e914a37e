"""What was ended, so that no older backup brings it back: erased customers, images, datasets and collections,
revoked tokens and agreements, links that were given out, what a suspended customer may do, and that operators
issue a customer's tokens. Ids and times.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from appliance.accounts import token_rows
from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.endings import (
    AGREEMENT_REVOKED_AT,
    CUSTOMER_CLAIMED_AT,
    CUSTOMER_ERASED_AT,
    CUSTOMER_SUSPENDED_AT,
    TOKEN_REVOKED_AT,
)
from appliance.datasets import rows
from appliance.errors import BackupInvalid
from appliance.ledger import Connection
from appliance.vault import Keys, SealedFile

Kind = Literal[
    "image", "dataset", "collection", "token", "agreement", "links", "suspension", "customer", "claim"
]

COLLECTIONS_HAVE_KEYS = 14
CUSTOMERS_ARE_SUSPENDED = 12
CUSTOMERS_ARE_CLAIMED = 21
CUSTOMERS_ARE_ERASED = 23
"""Since these schemas."""
_ROWS_AT_ONCE = 1000
_KINDS: tuple[tuple[Kind, str], ...] = (
    ("image", "SELECT 1 FROM images WHERE id = ?"),
    ("dataset", "SELECT 1 FROM datasets WHERE id = ?"),
    ("collection", "SELECT 1 FROM collections WHERE id = ? AND ? IN ('', {key}) AND NOT removed"),
    ("token", "SELECT 1 FROM tokens WHERE id = ? AND revoked_at IS NULL"),
    ("agreement", "SELECT 1 FROM agreements WHERE id = ? AND revoked_at IS NULL"),
    ("links", "SELECT 1 FROM datasets WHERE id = ?"),
    ("suspension", "SELECT 1 FROM customers WHERE id = ?{suspended}"),
    ("customer", "SELECT 1 FROM customers WHERE id = ?{erased}"),
    ("claim", "SELECT 1 FROM customers WHERE id = ?{claimed}"),
)
_ERASE = (
    "UPDATE customers SET name = id, erased_at = :value, suspended_at = coalesce(suspended_at, :value),"
    " erasing = '{}' WHERE id = :id AND erased_at IS NULL"
)
_REPLAYED: tuple[tuple[Kind, str], ...] = (
    ("dataset", "UPDATE datasets SET erased_at = :value WHERE id = :id AND erased_at IS NULL"),
    ("collection", "UPDATE collections SET removed = 1 WHERE id = :id"),
    ("agreement", "UPDATE agreements SET revoked_at = :value WHERE id = :id AND revoked_at IS NULL"),
    ("links", "UPDATE datasets SET visibility = :text, epoch = max(epoch, :value) WHERE id = :id"),
    ("customer", _ERASE),
    ("suspension", "UPDATE customers SET suspended_at = :value WHERE id = :id AND suspended_at IS NULL"),
    ("claim", "UPDATE customers SET claimed_at = :value WHERE id = :id AND claimed_at IS NULL"),
)
_RECORDED: dict[Kind, Event] = {
    "customer": Event.CUSTOMER_ERASE,
    "suspension": Event.CUSTOMER_SUSPEND,
    "claim": Event.CUSTOMER_CLAIM,
}
"""What the restored log is told too, for rows of customers are held against it."""
# What goes after the keys of its customer have gone.
_DATASETS_OF_ERASED = (
    f"SELECT datasets.id, {CUSTOMER_ERASED_AT} AS at FROM customers JOIN datasets ON customer = customers.id"  # noqa: S608
    " WHERE at IS NOT NULL AND datasets.erased_at IS NULL"
)
_COLLECTIONS_OF_ERASED = (
    f"SELECT collections.id, {CUSTOMER_ERASED_AT} AS at"  # noqa: S608
    " FROM customers JOIN collections ON customer = customers.id WHERE at IS NOT NULL AND NOT removed"
)
_TOLD: tuple[tuple[Kind, str], ...] = (
    ("token", f"SELECT id, {TOKEN_REVOKED_AT} AS at FROM tokens WHERE at IS NOT NULL"),  # noqa: S608
    ("agreement", f"SELECT id, {AGREEMENT_REVOKED_AT} AS at FROM agreements WHERE at IS NOT NULL"),  # noqa: S608
    ("links", "SELECT id, epoch, visibility FROM datasets WHERE erased_at IS NULL"),
    ("suspension", f"SELECT id, {CUSTOMER_SUSPENDED_AT} AS at FROM customers WHERE at IS NOT NULL"),  # noqa: S608
    ("customer", f"SELECT id, {CUSTOMER_ERASED_AT} AS at FROM customers WHERE at IS NOT NULL"),  # noqa: S608
    ("claim", f"SELECT id, {CUSTOMER_CLAIMED_AT} AS at FROM customers WHERE at IS NOT NULL"),  # noqa: S608
    ("collection", _COLLECTIONS_OF_ERASED),
)
_BEING_DELETED = (
    "SELECT images.id, deleted_at, datasets.id FROM images JOIN datasets ON number = dataset"
    " WHERE deleted_at IS NOT NULL"
)


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line of an export: how far the audit log had come."""

    entry: int
    made_at: int


class Ending(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One thing that ended. `value` is when, in unix milliseconds, 0 for nobody knows; of links the epoch.

    A suspension and a claim have their customer's id; a suspension that was over when the export was made is
    none. `text` is of an image its dataset, of links the dataset's visibility, of a collection that was
    emptied the container of the key that it had until then: under a later key it has not ended.
    """

    kind: Kind
    id: str
    value: int
    text: str = ""


@dataclass
class Ended:
    """Of all that was ended that which a ledger still has: by kind, then by id."""

    of: dict[Kind, dict[str, Ending]] = field(default_factory=lambda: {kind: {} for kind, _ in _KINDS})

    @property
    def images(self) -> dict[str, Ending]:
        """Those of erased datasets need not be among them."""
        return self.of["image"]

    @property
    def datasets(self) -> dict[str, Ending]:
        """The erased ones."""
        return self.of["dataset"]

    def counts(self) -> dict[str, int]:
        """How many of each kind will be ended again; links always are."""
        return {f"{kind}s": len(found) for kind, found in self.of.items() if kind != "links"}

    def add(self, connection: Connection, endings: Iterable[Ending]) -> None:
        """Keep of these what this ledger still has."""
        known = dict(_KINDS)
        schema: Any = connection.execute("PRAGMA user_version").get
        key = "container" if schema >= COLLECTIONS_HAVE_KEYS else "id"
        known["collection"] = known["collection"].format(key=key)
        suspended = " AND suspended_at IS NULL" if schema >= CUSTOMERS_ARE_SUSPENDED else ""
        known["suspension"] = known["suspension"].format(suspended=suspended)
        erased = " AND erased_at IS NULL" if schema >= CUSTOMERS_ARE_ERASED else ""
        known["customer"] = known["customer"].format(erased=erased)
        claimed = " AND claimed_at IS NULL" if schema >= CUSTOMERS_ARE_CLAIMED else ""
        known["claim"] = known["claim"].format(claimed=claimed)
        for ending in endings:
            given = (ending.id, ending.text) if ending.kind == "collection" else (ending.id,)
            if connection.execute(known[ending.kind], given).get == 1:
                self.of[ending.kind][ending.id] = ending


def export(connection: Connection, made_at: int) -> Iterator[bytes]:
    """Lines of JSON. What was ended before the call is among them. Raises apsw.Error."""
    ((entry,),) = _rows(connection, "SELECT coalesce(max(seq), 0) FROM audit")
    yield msgspec.json.encode(Origin(entry, made_at)) + b"\n"
    for ending in _all(connection):
        yield msgspec.json.encode(ending) + b"\n"


def read(file: SealedFile) -> tuple[Origin, Iterator[Ending]]:
    """What an export says. Raises SealBroken, BackupInvalid."""
    lines = _lines(file)
    try:
        origin = msgspec.json.decode(next(lines, b""), type=Origin)
    except msgspec.MsgspecError:
        raise BackupInvalid(["tombstones: not of a kind that this version reads"]) from None
    return origin, _decoded(lines)


def replay(connection: Connection, keys: Keys, actor: Actor, ended: Ended, now: int) -> None:
    """End it all again in a ledger that still has it, within an act of `Ledger.write`. `keys` are the
    appliance's own, `actor` is who restores: the log tells of customers that are ended so.

    Images lose their rows and keep a tombstone. Customers, datasets and collections are out of sight at once;
    the next start erases what is theirs, as it does after an erasure that a stop interrupted.
    """
    for kind, statement in _REPLAYED:
        for ending in ended.of[kind].values():
            value = ending.value if kind == "links" else ending.value or now
            connection.execute(statement, {"id": ending.id, "value": value, "text": ending.text})
            if (event := _RECORDED.get(kind)) and connection.changes():
                record(connection, now, actor, event, ending.id, ending.id)
    token_rows.adopt(connection, keys)
    for ending in ended.of["token"].values():
        token_rows.end(connection, keys, ending.id, ending.value or now)
    for ending in ended.images.values():
        image = rows.image(connection, None, ending.id)
        if image is not None:
            at = ending.value or now
            rows.begin_deleting(connection, image, at)
            rows.finish_deleting(connection, [image], at)


def _all(connection: Connection) -> Iterator[Ending]:
    yield from _erased(connection)
    seq = 0
    page = "SELECT seq, event, subject, time, details FROM audit WHERE seq > ? ORDER BY seq LIMIT ?"
    while found := _rows(connection, page, seq, _ROWS_AT_ONCE):
        for _, event, subject, time, details in found:
            if event == Event.COLLECTION_REMOVE:
                yield Ending("collection", subject, time)
            if event == Event.COLLECTION_EMPTY and (key := msgspec.json.decode(details).get("container")):
                yield Ending("collection", subject, time, key)
        seq = found[-1][0]
    for kind, query in _TOLD:
        for row in _rows(connection, query):
            yield Ending(kind, *row)


def _erased(connection: Connection) -> Iterator[Ending]:
    # Before the tombstones: what is being erased gets its own while they are read, anywhere among them.
    for row in _rows(connection, "SELECT id, erased_at FROM datasets WHERE erased_at IS NOT NULL"):
        yield Ending("dataset", *row)
    for row in _rows(connection, _DATASETS_OF_ERASED):
        yield Ending("dataset", *row)
    for row in _rows(connection, _BEING_DELETED):
        yield Ending("image", *row)
    after = ""
    page = "SELECT id, dataset, erased_at FROM tombstones WHERE id > ? ORDER BY id LIMIT ?"
    while found := _rows(connection, page, after, _ROWS_AT_ONCE):
        for identity, dataset, erased_at in found:
            if identity == dataset:
                yield Ending("dataset", identity, erased_at)
            else:
                yield Ending("image", identity, erased_at, dataset)
        after = found[-1][0]


def _rows(connection: Connection, query: str, *bound: object) -> list[Any]:
    return connection.execute(query, bound).fetchall()


def _lines(file: SealedFile) -> Iterator[bytes]:
    rest = b""
    for piece in file.pieces():
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines


def _decoded(lines: Iterable[bytes]) -> Iterator[Ending]:
    decoder = msgspec.json.Decoder(Ending)
    for line in lines:
        try:
            yield decoder.decode(line)
        except msgspec.MsgspecError:
            raise BackupInvalid(["tombstones: a line is not of a kind that this version reads"]) from None
