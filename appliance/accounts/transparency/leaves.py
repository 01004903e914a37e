"""What of a row goes into the tree: the row and nothing else, in one form that is read in one way only.

JSON with its keys in order and no space between, `details` as they were written (RFC 8785, but for those):

    {"actor":{"id":ID,"kind":KIND},"customer":ID,"details":{...},"event":EVENT,"request":ID,"seq":N,
     "subject":ID,"time":UNIX MILLISECONDS}

Entry N of the log is leaf N - 1. It holds ids, counts and times and no personal data: see `audit.record`.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from appliance.accounts.audit import EntryDamaged, Event, Selection, rows, text
from appliance.accounts.transparency.tiles import MAX_ENTRY_BYTES
from appliance.ledger import Connection


class _Actor(msgspec.Struct, frozen=True):
    id: str
    kind: str


class _Written(msgspec.Struct):
    """A leaf; the order of the fields is that of the keys."""

    actor: _Actor
    customer: str | None
    details: msgspec.Raw
    event: str
    request: str | None
    seq: int
    subject: str | None
    time: int


class Recorded(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A leaf as it is read again; `time` is unix milliseconds."""

    actor: _Actor
    customer: str | None
    details: dict[str, Any]
    event: str
    request: str | None
    seq: int
    subject: str | None
    time: int


def leaves(connection: Connection, chosen: Selection, *, after: int, limit: int) -> list[tuple[int, bytes]]:
    """Seq and leaf of at most `limit` rows with seq > `after`, ascending. Raises EntryDamaged."""
    return [(row[0], leaf(row)) for row in rows(connection, chosen, after=after, limit=limit)]


def all_leaves(connection: Connection) -> Iterator[tuple[int, bytes | EntryDamaged]]:
    """Every row, ascending: its seq, and its leaf or what is wrong with it."""
    for row in rows(connection, Selection(), after=0, limit=-1):
        try:
            yield row[0], leaf(row)
        except EntryDamaged as damage:
            yield row[0], damage


def leaf(row: tuple[Any, ...]) -> bytes:
    """Of a row as `audit.rows` has it. Raises EntryDamaged."""
    seq, time, kind, actor, request, event, customer, subject, details = row
    try:
        written = _Written(
            actor=_Actor(actor.decode(), kind.decode()),
            customer=text(customer),
            details=msgspec.Raw(details),
            event=event.decode(),
            request=text(request),
            seq=seq,
            subject=text(subject),
            time=time,
        )
    except UnicodeDecodeError:
        raise EntryDamaged(seq, "a text in it is none") from None
    encoded = msgspec.json.encode(written)
    if len(encoded) > MAX_ENTRY_BYTES:
        raise EntryDamaged(seq, f"it has more than {MAX_ENTRY_BYTES} bytes")
    return encoded


def recorded(data: bytes) -> Recorded:
    """What a leaf says. Raises msgspec.DecodeError for what is none."""
    return msgspec.json.decode(data, type=Recorded)


def last_seq(connection: Connection) -> int:
    """How many entries there are: their numbers have no gaps."""
    return int(connection.execute("SELECT coalesce(max(seq), 0) FROM audit").get)


def rows_after(connection: Connection, seq: int) -> int:
    """How many entries there really are behind this number: numbers of an edited ledger have gaps."""
    return int(connection.execute("SELECT count(*) FROM audit WHERE seq > ?", (seq,)).get)


def origin(connection: Connection) -> str:
    """What the log of this ledger is called: by its keyring, and by the last restore from a backup, if any.

    A restore goes on from an earlier entry than the log once had, and its heads may contradict those of
    before: so it is another log, with the same entries up to there, and a name of its own.
    """
    identity = connection.execute("SELECT id FROM keyring").fetchone()
    name = f"appliance/{identity[0].hex() if identity else None}"
    restored = connection.execute(
        "SELECT seq, time FROM audit WHERE event = ? ORDER BY seq DESC LIMIT 1", (Event.BACKUP_RESTORE.value,)
    ).fetchone()
    return name if restored is None else f"{name}/restored-{restored[0]}-{restored[1]}"
