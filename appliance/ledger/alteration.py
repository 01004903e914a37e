"""What somebody does to the schema of a ledger that is open: the next transaction finds it, and is refused.

A start compares the whole schema. A trigger that came later would act in each of the appliance's own
transactions until the next one. SQLite counts the changes of a schema in the header of its file
(https://sqlite.org/fileformat2.html#schema_cookie), which tells whether to compare again.
"""

import logging

import apsw

from appliance.errors import LedgerAltered, StorageFailed
from appliance.ledger.migrations import shipped
from appliance.ledger.schema import check

_log = logging.getLogger(__name__)


class Schema:
    """The schema of the writing connection, which is asked for it within each transaction.

    `alteration` is why the last one was refused, None while the schema is as the appliance makes it.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        """As it is now, which was found sound in the same transaction."""
        self._sound: int | None = _count(connection)
        self._refused: int | None = None
        self.alteration: str | None = None

    def require(self, connection: apsw.Connection) -> None:
        """To be called before anything else of a transaction. Raises LedgerAltered.

        Whatever leaves the schema as it was, as ANALYZE and VACUUM, is no alteration; nor is one that was
        undone.
        """
        count = _count(connection)
        if count == self._sound:
            return
        if count != self._refused:
            self._compare(connection, count)
        if self.alteration is not None:
            raise LedgerAltered(self.alteration)

    def keep(self, connection: apsw.Connection) -> None:
        """To be called last in a transaction: the appliance has changed what is changed since `require`."""
        self._sound = _count(connection)

    def _compare(self, connection: apsw.Connection, count: int) -> None:
        try:
            check(connection, shipped())
        except StorageFailed as difference:
            # From now on no count is known to be sound: this connection has taken up what is there.
            self._sound, self._refused, self.alteration = None, count, str(difference)
            _log.critical("nothing is written to the ledger: %s", difference)
        else:
            if self.alteration is not None:
                _log.warning("the ledger is again as the appliance builds it, and is written to")
            self._sound, self._refused, self.alteration = count, None, None


def require_sound(connection: apsw.Connection) -> None:
    """To be called where a statement was none: the schema may lack what it is about. Raises LedgerAltered."""
    try:
        check(connection, shipped())
    except StorageFailed as difference:
        raise LedgerAltered(str(difference)) from difference


def _count(connection: apsw.Connection) -> int:
    return int(connection.execute("PRAGMA schema_version").get)
