"""What the log of a ledger holds, and how somebody else lays hands on its schema while it is open."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw


def log_is_empty(folder: Path) -> bool:
    """Whether the log of FOLDER/ledger.db has no byte of anything in it, or is not there.

    It keeps its room on the volume, so its size tells nothing.
    """
    log = folder / "ledger.db-wal"
    return not log.exists() or not any(log.read_bytes())


@contextmanager
def altered(folder: Path) -> Iterator[None]:
    """Within the block FOLDER/ledger.db has a view that is none of its, and takes nothing."""
    connection = apsw.Connection(str(folder / "ledger.db"))
    try:
        connection.execute("CREATE VIEW v1 AS SELECT 1")
        yield
        connection.execute("DROP VIEW v1")
    finally:
        connection.close()
