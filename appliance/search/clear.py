"""Collections of the time before they had keys: what was in clear is sealed by the first start since.

Migration 014 has moved the old rows aside. Each step is one transaction that seals some and deletes them, so
a start that is killed goes on where it was. In the end the tables are dropped, which overwrites their pages,
and the log is cut: no byte in clear is in any file.
"""

import asyncio
from functools import partial
from typing import Any
from uuid import UUID

import numpy as np

from appliance.accounts.customers import CustomerId
from appliance.errors import NotFound
from appliance.ledger import Connection, Ledger
from appliance.search import frames, rows
from appliance.search.numbering import label_of, span
from appliance.search.records import Vector
from appliance.search.seals import ContainerId, Seals
from appliance.vault import Keyring

_RECORDS = 256


async def seal_clear_rows(ledger: Ledger, keyring: Keyring) -> None:
    """Seal every name, record and vector that is in clear, each collection under a key of its own.

    Replies, which the service's key sealed, are forgotten.

    A vector that is damaged stays reported as damaged: one of another width becomes zeros. Raises
    StorageFailed, VolumeFull; the next call goes on.
    """
    if not await ledger.read(_anything_clear):
        return
    for number, identity, customer, dim, name, removed in await ledger.read(_clear_collections):
        if removed:
            while await ledger.write(partial(_erase_some, number=number)):
                pass
            continue
        await asyncio.to_thread(_ensure_key, keyring, UUID(customer), UUID(identity))
        seals = Seals(keyring, CustomerId(customer), ContainerId(identity))
        await ledger.write(partial(_seal_name, seals=seals, number=number, name=name))
        while await ledger.write(partial(_seal_some, seals=seals, number=number, dim=dim)):
            pass
    await ledger.write(_drop)
    while not await ledger.empty_log():
        pass


def _anything_clear(connection: Connection) -> bool:
    return bool(connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'clear_collections'").get)


def _clear_collections(connection: Connection) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = connection.execute(
        "SELECT number, id, customer, dim, name, removed FROM clear_collections ORDER BY number"
    ).fetchall()
    return found


def _ensure_key(keyring: Keyring, customer: UUID, collection: UUID) -> None:
    try:
        keyring.container(customer, collection)
    except NotFound:
        keyring.add(customer, collection, "collection")


def _seal_name(connection: Connection, seals: Seals, number: int, name: str) -> None:
    connection.execute("UPDATE collections SET name = ? WHERE number = ?", (seals.seal_name(name), number))


def _seal_some(connection: Connection, seals: Seals, number: int, dim: int) -> bool:
    """Some records of a collection; whether there were any."""
    found: list[tuple[Any, ...]] = connection.execute(
        "SELECT key, external_id, vector, metadata FROM clear_records"
        " WHERE key BETWEEN ? AND ? ORDER BY key LIMIT ?",
        (*span(number), _RECORDS),
    ).fetchall()
    if not found:
        return False
    for key, external_id, _, metadata in found:
        rows.add_record(connection, seals, key, seals.handle(external_id), external_id, metadata)
    labels = np.array([label_of(key) for key, *_ in found])
    frames.add(connection, seals, number, labels, np.stack([_vector(row[2], dim) for row in found]))
    connection.execute("DELETE FROM clear_records WHERE key BETWEEN ? AND ?", (found[0][0], found[-1][0]))
    return True


def _vector(stored: bytes, dim: int) -> Vector:
    """As it was; zeros for what is none."""
    if len(stored) != 4 * dim:
        return np.zeros(dim, np.float32)
    return np.frombuffer(stored, np.float32)


def _erase_some(connection: Connection, number: int) -> bool:
    """Some records of a collection whose removal was interrupted; whether there were any."""
    connection.execute(
        "DELETE FROM clear_records WHERE key IN"
        " (SELECT key FROM clear_records WHERE key BETWEEN ? AND ? LIMIT ?)",
        (*span(number), _RECORDS),
    )
    return bool(connection.changes())


def _drop(connection: Connection) -> None:
    connection.execute("DROP TABLE clear_records")
    connection.execute("DROP TABLE clear_replies")
    connection.execute("DROP TABLE clear_collections")
