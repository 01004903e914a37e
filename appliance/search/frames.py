"""Vectors at rest: packed and sealed in frames, each a row of the ledger.

A frame holds vectors of ascending labels: none below the label in its row's key, all below that of the next
frame. What one transaction inserts becomes a frame, or joins the frames right before it while these are no
more than twice as large: a vector is then sealed anew about log2 of a frame's rows times, and a million
single inserts leave as few frames as a bulk import.

The frames are in the ledger rather than in an append-only file beside it, so that there is one commit, one
recovery and one backup; and so that a deleted vector really goes. Its frame is sealed anew without it in the
transaction that deletes its record, and SQLite overwrites the old one, where a file would keep it until a
compaction.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from appliance.errors import SealBroken
from appliance.ledger import Connection
from appliance.search.exact import Positions
from appliance.search.numbering import key_of, label_of, span
from appliance.search.records import Vector
from appliance.search.seals import Seals

FRAME_BYTES = 64 << 10
"""Of vectors in a frame, at most: what a deletion has to seal anew. Four times as large they are read a third
faster (measured on 100,000 of 256 dimensions), and every deletion writes four times as much."""
_YOUNG = 16
"""So many frames are joined at once, at most."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Labels, int64 and ascending, and their vectors: float32 (len(labels), dim)."""

    labels: Positions
    rows: Vector


def add(connection: Connection, seals: Seals, number: int, labels: Positions, rows: Vector) -> None:
    """Store vectors (n, dim) under ascending labels that are higher than all before."""
    dim = rows.shape[1]
    most = _most(dim)
    parts, first = [Frame(labels, rows)], key_of(number, int(labels[0]))
    count = len(labels)
    young: list[Any] = connection.execute(
        "SELECT key, count FROM frames WHERE key BETWEEN ? AND ? ORDER BY key DESC LIMIT ?",
        (span(number)[0], first, _YOUNG),
    ).fetchall()
    for key, held in young:
        if held > 2 * count or held + count > most:
            break
        frame = _stored(connection, seals, key, dim)
        if frame is None:
            break
        connection.execute("DELETE FROM frames WHERE key = ?", (key,))
        parts.append(frame)
        first, count = key, count + held
    joined = _joined(parts[::-1])
    for low in range(0, count, most):
        part = Frame(joined.labels[low : low + most], joined.rows[low : low + most])
        _insert(connection, seals, number, first if low == 0 else key_of(number, int(part.labels[0])), part)


def remove(connection: Connection, seals: Seals, number: int, dim: int, labels: Iterable[int]) -> None:
    """Take vectors out whose records are gone; a frame that does not open goes with its last record."""
    for key, gone in _by_frame(connection, number, labels).items():
        # Ascending: the frame before each, which it may join, has become small already.
        _take_out(connection, seals, number, dim, key, gone)


def read(
    connection: Connection, seals: Seals, number: int, dim: int, labels: Iterable[int]
) -> dict[int, Vector]:
    """The vectors of those of these labels that have one in a frame that opens."""
    found: dict[int, Vector] = {}
    for key, inside in _by_frame(connection, number, labels).items():
        if (frame := _stored(connection, seals, key, dim)) is not None:
            there = np.flatnonzero(np.isin(frame.labels, inside)).tolist()
            found |= {int(frame.labels[place]): frame.rows[place] for place in there}
    return found


def load(  # noqa: PLR0917
    connection: Connection, seals: Seals, number: int, dim: int, after: int, limit: int
) -> list[tuple[int, Frame | None]]:
    """Up to `limit` frames from above label `after` (-1: all) on, each behind the label in its key.

    None for one that does not open, or whose content is not what its row says.
    """
    first, last = span(number)
    stored = connection.execute(
        "SELECT key, count, content FROM frames WHERE key BETWEEN ? AND ? ORDER BY key LIMIT ?",
        (first + after + 1, last, limit),
    )
    return [(label_of(key), opened(seals, key, count, dim, content)) for key, count, content in stored]


def _take_out(  # noqa: PLR0917
    connection: Connection, seals: Seals, number: int, dim: int, key: int, labels: list[int]
) -> None:
    frame = _stored(connection, seals, key, dim)
    if frame is None:
        if not records_of(connection, number, label_of(key)):
            connection.execute("DELETE FROM frames WHERE key = ?", (key,))
        return
    kept = ~np.isin(frame.labels, labels)
    connection.execute("DELETE FROM frames WHERE key = ?", (key,))
    if not kept.any():
        return
    left = Frame(frame.labels[kept], frame.rows[kept])
    before: tuple[int, int] | None = connection.execute(
        "SELECT key, count FROM frames WHERE key BETWEEN ? AND ? ORDER BY key DESC LIMIT 1",
        (span(number)[0], key),
    ).fetchone()
    # Half, so that frames do not join and part in turns.
    if before is not None and before[1] + len(left.labels) <= _most(dim) // 2:
        neighbour = _stored(connection, seals, before[0], dim)
        if neighbour is not None:
            connection.execute("DELETE FROM frames WHERE key = ?", (before[0],))
            key, left = before[0], _joined([neighbour, left])
    _insert(connection, seals, number, key, left)


def records_of(connection: Connection, number: int, first: int) -> list[int]:
    """Labels of the records whose vectors the frame of this first label has to have."""
    key = key_of(number, first)
    found = connection.execute(
        "SELECT key FROM records WHERE key >= ?1"
        " AND key < coalesce((SELECT min(key) FROM frames WHERE key > ?1 AND key <= ?2), ?2 + 1)"
        " ORDER BY key",
        (key, span(number)[1]),
    )
    return [label_of(row[0]) for row in found]


def _by_frame(connection: Connection, number: int, labels: Iterable[int]) -> dict[int, list[int]]:
    """The keys, ascending, of the frames that have to have these labels' vectors, each with its labels."""
    inside: dict[int, list[int]] = {}
    for label in sorted(labels):
        if (key := frame_of(connection, number, label)) is not None:
            inside.setdefault(key, []).append(label)
    return inside


def frame_of(connection: Connection, number: int, label: int) -> int | None:
    """The key of the frame that has to have this label's vector."""
    found: int | None = connection.execute(
        "SELECT max(key) FROM frames WHERE key BETWEEN ? AND ?", (span(number)[0], key_of(number, label))
    ).get
    return found


def _stored(connection: Connection, seals: Seals, key: int, dim: int) -> Frame | None:
    count, content = connection.execute("SELECT count, content FROM frames WHERE key = ?", (key,)).get
    return opened(seals, key, count, dim, content)


def opened(seals: Seals, key: int, count: int, dim: int, sealed: bytes) -> Frame | None:
    """The content of a row; None where it does not open, or is not what the row says.

    Raises NotFound when its key is destroyed.
    """
    try:
        content = seals.open_frame(key, sealed)
    except SealBroken:
        return None
    if len(content) != count * 4 * (1 + dim):
        return None
    labels = np.frombuffer(content, "<u4", count).astype(np.int64)
    return Frame(labels, np.frombuffer(content, "<f4", offset=4 * count).reshape(count, dim))


def _insert(connection: Connection, seals: Seals, number: int, key: int, frame: Frame) -> None:
    content = frame.labels.astype("<u4").tobytes() + frame.rows.astype("<f4", copy=False).tobytes()
    connection.execute(
        "INSERT INTO frames (key, collection, count, content) VALUES (?, ?, ?, ?)",
        (key, number, len(frame.labels), seals.seal_frame(key, content)),
    )


def _joined(parts: list[Frame]) -> Frame:
    return Frame(
        np.concatenate([part.labels for part in parts]), np.concatenate([part.rows for part in parts])
    )


def _most(dim: int) -> int:
    """Vectors of this width in a frame."""
    return max(1, FRAME_BYTES // (4 * (1 + dim)))
