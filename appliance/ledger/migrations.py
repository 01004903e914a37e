"""The schema, as numbered SQL files beside this module, applied in order and all or nothing."""

import re
from dataclasses import dataclass
from pathlib import Path

import apsw

from appliance.errors import StorageFailed

APPLICATION_ID = (
    0x41504C31  # "APL1" in the file header: file(1) and we tell our ledger from any other database
)


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema; `number` is the user_version the database has after it."""

    number: int
    name: str
    sql: str


def shipped(folder: Path = Path(__file__).parent) -> list[Migration]:
    """The migrations NNN_name.sql of `folder`, by number. Raises ValueError for two with one number."""
    found = sorted(folder.glob("[0-9][0-9][0-9]_*.sql"))
    steps = [Migration(int(path.name[:3]), path.stem, path.read_text("utf-8")) for path in found]
    if len({step.number for step in steps}) != len(steps):
        raise ValueError(f"two migrations share a number: {[step.name for step in steps]}")
    return steps


def newest() -> int:
    """The number of the newest schema that this version knows."""
    return shipped()[-1].number


def migrate(connection: apsw.Connection, steps: list[Migration]) -> None:
    """Bring the database to the newest step in one transaction; a failing step leaves it as it was.

    Raises StorageFailed for a file that is another application's, or whose schema is newer than `steps`.
    """
    version = _number(connection, "user_version")
    application = _number(connection, "application_id")
    newest = steps[-1].number if steps else 0
    empty = connection.execute("SELECT count(*) FROM sqlite_schema").get == 0
    if application != APPLICATION_ID and not (empty and version == 0 and application == 0):
        raise StorageFailed(f"{connection.filename} is not a ledger (application id {application:#x})")
    if version > newest:
        raise StorageFailed(
            f"{connection.filename} has schema {version}, this version knows up to {newest}: "
            "start the newer version, or restore a backup made by this one"
        )
    pending = [step for step in steps if step.number > version]
    if not pending:
        return
    with connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        for step in pending:
            _apply(connection, step)
        connection.execute(f"PRAGMA user_version = {newest}")


def _apply(connection: apsw.Connection, step: Migration) -> None:
    if re.search(r"^\s*(COMMIT|ROLLBACK|END\s+TRANSACTION)\b", step.sql, re.IGNORECASE | re.MULTILINE):
        raise ValueError(f"migration {step.name} ends the transaction that makes it all or nothing")
    connection.execute(step.sql)


def _number(connection: apsw.Connection, pragma: str) -> int:
    value = connection.pragma(pragma)
    assert isinstance(value, int)
    return value
