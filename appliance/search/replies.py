"""What changes were answered, remembered for a day: the same change under the same key is made once.

A reply is written in the transaction of its change, so that either both are durable or none is. It holds ids
of records and what became of each, and nothing else of them: what they held may be changed or erased since.
It is found by a keyed hash, rests sealed under its collection's key, and goes with that.
"""

import hmac
from dataclasses import dataclass

from appliance.accounts.customers import CustomerId
from appliance.accounts.forward import RestTime, resting
from appliance.errors import Conflict, TooLarge
from appliance.ledger import Connection, Ledger
from appliance.search.entries import find_collection
from appliance.search.records import CollectionId
from appliance.search.seals import Seals
from appliance.vault import Keyring

KEEP_SECONDS = 86_400
MAX_REPLY_BYTES = 1 << 20
MAX_REPLIES = 10_000
"""Of one customer, 10 GiB at the worst: beyond it the oldest are forgotten, which is harmless where it is
long ago. A change that is made again finds its ids inserted, its fields set, its records gone.
"""
_SPARE = 100
"""A part in so many may be beyond: to find the oldest of 10,000 takes 2 ms of the ledger's one writer."""
_FORGOTTEN_AT_ONCE = 64
"""Of ended replies, with each new one: they never pile up, and none of their deletions takes long."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it is to be given again: the status of HTTP, and JSON."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Asked:
    """A change that is to be made once: of which collection, under which key of whose token, and what.

    Another token's key is another key, and so is another collection's. `digest` is a hash of what is asked.
    """

    customer: CustomerId
    collection: CollectionId
    token: str
    key: str
    digest: bytes


class Repeated(Exception):
    """The change was made before: `reply` is what it is answered again."""

    def __init__(self, reply: Reply) -> None:
        super().__init__("answered before")
        self.reply = reply


class Replies:
    """The remembered replies of all customers, the last `most` of each and some hundred more.

    Their day goes by `rest`, a time which no clock that is set moves.
    """

    def __init__(self, ledger: Ledger, keyring: Keyring, rest: RestTime, most: int = MAX_REPLIES) -> None:
        self._most = most
        self._ledger = ledger
        self._keyring = keyring
        self._rest = rest

    async def check(self, asked: Asked) -> None:
        """Raises Repeated when this was answered, Conflict when something else was under its key.

        Raises NotFound for the collection.
        """
        await self._ledger.read(lambda connection: self._check(connection, asked))

    def keep(self, connection: Connection, asked: Asked, reply: Reply) -> None:
        """Remember a reply, within the transaction of its change.

        What it raises undoes the change: as `check`, for another call may have been first, and TooLarge above
        1 MiB.
        """
        if len(reply.body) > MAX_REPLY_BYTES:
            raise TooLarge(
                f"an answer that is remembered has at most {MAX_REPLY_BYTES} bytes:"
                " change fewer records at once"
            )
        connection.execute(
            "DELETE FROM search_replies WHERE number IN"  # noqa: S608
            f" (SELECT number FROM search_replies WHERE until <= {resting('?1')} LIMIT ?2)",
            (self._believed(), _FORGOTTEN_AT_ONCE),
        )
        self._check(connection, asked)
        number, seals = self._of(connection, asked)
        handle = seals.reply_handle(asked.token, asked.key)
        connection.execute(
            "DELETE FROM search_replies WHERE customer = ? AND handle = ?", (asked.customer, handle)
        )
        connection.execute(
            "INSERT INTO search_replies (customer, handle, collection, digest, status, reply, until)"  # noqa: S608
            f" VALUES (?1, ?2, ?3, ?4, ?5, ?6, {resting('?7')} + ?8)",
            (
                asked.customer,
                handle,
                number,
                seals.reply_digest(asked.digest),
                reply.status,
                seals.seal_reply(handle, reply.body),
                int(self._rest.rests_from() * 1000),
                KEEP_SECONDS * 1000,
            ),
        )
        # By a keyed hash: nobody chooses whose turn it is, and no other customer's keys take it away.
        if int.from_bytes(handle[:4]) % (1 + self._most // _SPARE) == 0:
            self._forget_oldest(connection, asked.customer)

    def _forget_oldest(self, connection: Connection, customer: CustomerId) -> None:
        connection.execute(
            # The index of handles has the numbers: no reply is read for it.
            "DELETE FROM search_replies WHERE number IN (SELECT number FROM search_replies"
            " INDEXED BY search_replies_once WHERE customer = ?1 ORDER BY number"
            " LIMIT max(0, (SELECT count(*) FROM search_replies INDEXED BY search_replies_once"
            " WHERE customer = ?1) - ?2))",
            (customer, self._most),
        )

    def _check(self, connection: Connection, asked: Asked) -> None:
        _, seals = self._of(connection, asked)
        handle = seals.reply_handle(asked.token, asked.key)
        row = connection.execute(
            "SELECT digest, status, reply FROM search_replies"  # noqa: S608
            f" WHERE customer = ?1 AND handle = ?2 AND until > {resting('?3')}",
            (asked.customer, handle, self._believed()),
        ).fetchone()
        if row is None:
            return
        if not hmac.compare_digest(row[0], seals.reply_digest(asked.digest)):
            raise Conflict("Idempotency-Key: another request was sent with it")
        raise Repeated(Reply(row[1], seals.open_reply(handle, row[2])))

    def _of(self, connection: Connection, asked: Asked) -> tuple[int, Seals]:
        """The number of the collection, and its seals."""
        entry = find_collection(connection, asked.customer, asked.collection)
        return entry.number, Seals(self._keyring, asked.customer, entry.container)

    def _believed(self) -> int:
        return int(self._rest.believed() * 1000)
