"""Whether a ledger is built as the migrations build it, and its log's indices hold what their rows say.

The appliance puts its MAC on rows, and believes what its queries find. A trigger of somebody else's would
write rows that nobody meant, and an index with other entries than its rows would hide what the log has told.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import apsw

from appliance.errors import StorageFailed
from appliance.ledger.migrations import APPLICATION_ID, Migration, migrate

_OBJECTS = (
    "SELECT type, name, tbl_name, sql FROM sqlite_schema"
    " WHERE NOT (type = 'table' AND name IN ('sqlite_stat1', 'sqlite_stat4'))"  # ANALYZE makes these
)
_PARTIAL = (
    "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'audit' AND instr(sql, 'WHERE')"
)
_GOES = "clear_"
"""Tables of what rested in clear before a migration: the appliance drops them once it is sealed."""
_OF_CUSTOMERS = "audit_by_customer"
_TOLD_OF_CUSTOMERS = "event IN ('customer.claim', 'customer.suspend', 'customer.resume', 'customer.erase')"

_EVENT = re.compile(r"'[a-z]+\.[a-z]+'")
"""In the condition of an index of the log: each is for some events, and most entries are of none of them."""


@dataclass(frozen=True, slots=True)
class _Index:
    """An index of the log: which rows are looked up in it, and by which columns."""

    name: str
    condition: str
    columns: tuple[str, ...]


def check(connection: apsw.Connection, steps: list[Migration]) -> None:
    """Raises StorageFailed for a ledger that something else has built or changed. It writes nothing.

    What `migrate` refuses by its numbers it leaves to that. Of a log of a million entries it takes some
    tenths of a second.
    """
    found = differences(connection, steps)
    if found:
        raise StorageFailed(
            f"{connection.filename} is not built as the appliance builds it: {'; '.join(found[:10])}."
            " Something else has changed the ledger, and nothing that it says is certain: keep a copy of it,"
            " and restore a backup"
        )
    if lying := list(_lying(connection)):
        raise StorageFailed(
            f"{connection.filename}: {', '.join(lying)} hide entries of the audit log, or have some that are"
            " not in it. Something else has changed the ledger, or its disk has: keep a copy of it,"
            " and restore a backup"
        )


def differences(connection: apsw.Connection, steps: list[Migration]) -> list[str]:
    """What stands in the schema that these migrations do not make, or not so, and what is missing there.

    Nothing for a file that is no ledger, or of a newer version than `steps`.
    """
    version = connection.execute("PRAGMA user_version").get
    made = [step for step in steps if step.number <= version]
    if connection.pragma("application_id") != APPLICATION_ID or version > steps[-1].number:
        return []
    expected = apsw.Connection(":memory:")
    try:
        if made:
            migrate(expected, made)
        ours, theirs = (Counter(one.execute(_OBJECTS)) for one in (expected, connection))
    finally:
        expected.close()
    known, there = ({row[:2] for row in rows} for rows in (ours, theirs))
    return sorted(
        {f"{row[0]} {row[1]} is {'another' if row[:2] in known else 'none of its'}" for row in theirs - ours}
        | {
            f"{row[0]} {row[1]} is missing"
            for row in ours - theirs
            if row[:2] not in there and not str(row[2]).startswith(_GOES)
        }
    )


def log_damage(connection: apsw.Connection) -> list[str]:
    """What SQLite finds in the audit log's table and each of its indices, entry by entry: [] when sound.

    It takes some seconds a million entries, and believes the text of the schema: see `differences`.
    """
    found = connection.execute("PRAGMA integrity_check('audit')").fetchall()
    return [str(row[0]) for row in found if row[0] != "ok"]


def _lying(connection: apsw.Connection) -> Iterator[str]:
    """The indices that do not find what reading the whole log without one does, which is done once."""
    indices = list(_asked(connection))
    if not indices:
        return
    columns = sorted({column for index in indices for column in index.columns} | {"seq"})
    told = [defaultdict[tuple[object, ...], list[int]](list) for _ in indices]
    conditions = [f"({index.condition})" for index in indices]
    events = ", ".join(sorted({event for condition in conditions for event in _EVENT.findall(condition)}))
    scan = (
        f"SELECT {', '.join(columns + conditions)} FROM audit NOT INDEXED"  # noqa: S608
        f" WHERE event IN ({events}) AND ({' OR '.join(conditions)}) ORDER BY seq"
    )
    for row in connection.execute(scan):
        values = dict(zip(columns, row, strict=False))
        for index, rows, met in zip(indices, told, row[len(columns) :], strict=True):
            if met:
                rows[tuple(values[column] for column in index.columns)].append(values["seq"])
    for index, rows in zip(indices, told, strict=True):
        if not _finds(connection, index, rows):
            yield index.name


def _asked(connection: apsw.Connection) -> Iterator[_Index]:
    for name, sql in connection.execute(_PARTIAL).fetchall():
        assert isinstance(name, str)
        assert isinstance(sql, str)
        first = connection.execute("SELECT name FROM pragma_index_info(?)", (name,)).fetchone()
        assert first is not None
        yield _Index(name, sql.partition("WHERE")[2], first)
    if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (_OF_CUSTOMERS,)).get:
        # Of this one, which has an entry for each row, what is asked of it about customers.
        yield _Index(_OF_CUSTOMERS, _TOLD_OF_CUSTOMERS, ("customer", "seq"))


def _finds(connection: apsw.Connection, index: _Index, told: dict[tuple[object, ...], list[int]]) -> bool:
    """Asked as the appliance asks it, by the order of the log too. An index of few rows has nothing else."""
    by = f"FROM audit INDEXED BY {index.name} WHERE {index.condition}"
    asked = " AND ".join(f"{column} IS ?" for column in index.columns)
    found = (
        [row[0] for row in connection.execute(f"SELECT seq {by} AND {asked} ORDER BY seq", key)] == seqs
        for key, seqs in told.items()
    )
    if index.name == _OF_CUSTOMERS:
        return all(found)
    entries = connection.execute(f"SELECT count(*) {by}").get
    return bool(entries == sum(map(len, told.values()))) and all(found)
