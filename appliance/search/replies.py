"""What changes were answered, remembered for a day: the same change under the same key is made once.

A reply is written in the transaction of its change, so that either both are durable or none is. It may hold
metadata: it rests sealed under its collection's key, and goes with that.
"""

import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from appliance.accounts.customers import CustomerId
from appliance.errors import Conflict, NotFound, TooLarge
from appliance.ledger import Connection, Ledger
from appliance.search.entries import find_collection
from appliance.search.records import CollectionId
from appliance.search.seals import ContainerId, Seals
from appliance.vault import Keyring

KEEP_SECONDS = 86_400
MAX_REPLY_BYTES = 1 << 20
_DIGEST = "search/digest"
_FORGOTTEN_AT_ONCE = 64
"""Of ended replies, with each new one: they never pile up, and none of their deletions takes long."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it was given: the status of HTTP, and JSON."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Asked:
    """A change that is to be made once: whose, of which collection, under which key, and what."""

    customer: CustomerId
    collection: CollectionId
    key: str
    digest: bytes


class Repeated(Exception):
    """The change was made before: `reply` is what it was answered."""

    def __init__(self, reply: Reply) -> None:
        super().__init__("answered before")
        self.reply = reply


class Replies:
    """The remembered replies of all customers."""

    def __init__(self, ledger: Ledger, keyring: Keyring, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._keyring = keyring
        self._clock = clock

    def digest(self, content: Iterable[bytes]) -> bytes:
        """A digest of what is asked that tells nothing to anybody without the keys; takes its time."""
        running = hmac.new(self._keyring.service.subkey(_DIGEST), digestmod="sha256")
        for piece in content:
            running.update(len(piece).to_bytes(8, "big"))
            running.update(piece)
        return running.digest()

    async def check(self, asked: Asked) -> None:
        """Raises Repeated when this was answered, Conflict when something else was under its key."""
        await self._ledger.read(lambda connection: self._check(connection, asked))

    def keep(self, connection: Connection, asked: Asked, reply: Reply) -> None:
        """Remember a reply, within the transaction of its change.

        What it raises undoes the change: as `check`, for another call may have been first, and TooLarge above
        1 MiB.
        """
        if len(reply.body) > MAX_REPLY_BYTES:
            raise TooLarge(
                f"an answer that is remembered has at most {MAX_REPLY_BYTES} bytes:"
                " change fewer records at once, or ask for fewer fields with fields_to_return"
            )
        now = self._now()
        connection.execute(
            "DELETE FROM search_replies WHERE number IN"
            " (SELECT number FROM search_replies WHERE until <= ? LIMIT ?)",
            (now, _FORGOTTEN_AT_ONCE),
        )
        self._check(connection, asked)
        connection.execute(
            "DELETE FROM search_replies WHERE customer = ? AND key = ?", (asked.customer, asked.key)
        )
        entry = find_collection(connection, asked.customer, asked.collection)
        connection.execute(
            "INSERT INTO search_replies (customer, key, collection, digest, status, reply, until)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                asked.customer,
                asked.key,
                entry.number,
                asked.digest,
                reply.status,
                self._seals(asked.customer, entry.container).seal_reply(asked.key, reply.body),
                now + KEEP_SECONDS * 1000,
            ),
        )

    def _check(self, connection: Connection, asked: Asked) -> None:
        row = connection.execute(
            "SELECT digest, status, reply, container FROM search_replies"
            " JOIN collections ON collections.number = collection"
            " WHERE search_replies.customer = ? AND key = ? AND until > ?",
            (asked.customer, asked.key, self._now()),
        ).fetchone()
        if row is None:
            return
        if not hmac.compare_digest(row[0], asked.digest):
            raise Conflict("Idempotency-Key: another request was sent with it")
        try:
            body = self._seals(asked.customer, row[3]).open_reply(asked.key, row[2])
        except NotFound:  # its collection is gone, and being erased
            return
        raise Repeated(Reply(row[1], body))

    def _seals(self, customer: CustomerId, container: ContainerId) -> Seals:
        return Seals(self._keyring, customer, container)

    def _now(self) -> int:
        return int(self._clock() * 1000)
