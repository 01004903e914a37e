"""What a collection's rows are sealed with: the key that each collection has of its own in the keyring.

Every blob is AES-256-GCM under a subkey of its kind and bound to the key of its row (and a record's words to
its handle too), so that nothing opens in another row's or collection's place. Destroying the key is the
erasure: no name, id, metadata or vector opens again.
"""

from typing import NewType
from uuid import UUID

from appliance.accounts.customers import CustomerId
from appliance.errors import NotFound
from appliance.vault import Container, Keyring, Name, SealedFile, Sealer

ContainerId = NewType("ContainerId", str)
"""What the keyring knows a collection's key by: the collection's id, and another once it has been emptied."""

HANDLE_BYTES = 16
"""128 bits: among 2^32 ids, more than a collection takes, two share a handle with a chance of 2^-65."""


class Seals:
    """One collection's seals, on any thread. The keyring is asked each time: keys rotate, and end.

    Everything raises NotFound once the key is destroyed; what opens raises SealBroken for what was changed,
    or was sealed for another row.
    """

    def __init__(self, keyring: Keyring, customer: CustomerId, container: ContainerId) -> None:
        self._keyring = keyring
        self._customer = UUID(customer)
        self._container = UUID(container)

    def seal_name(self, name: str) -> bytes:
        return self._keys().seal("name", name.encode(), self._container.bytes)

    def open_name(self, sealed: bytes) -> str:
        return self._keys().unseal("name", sealed, self._container.bytes).decode()

    def handle(self, external: bytes) -> bytes:
        """What a record is found by: a keyed hash of the exact bytes of the caller's id."""
        return self._keys().mac("record id", external)[:HANDLE_BYTES]

    def seal_words(self, key: int, handle: bytes, external: bytes, metadata: bytes) -> bytes:
        """The caller's id, which has no NUL in it, and its metadata for the row `key`."""
        return self._keys().seal("record", external + b"\0" + metadata, key.to_bytes(8) + handle)

    def open_words(self, key: int, handle: bytes, words: bytes) -> tuple[bytes, bytes]:
        """The caller's id and its metadata."""
        opened = self._keys().unseal("record", words, key.to_bytes(8) + handle)
        external, _, metadata = opened.partition(b"\0")
        return external, metadata

    def seal_frame(self, key: int, content: bytes) -> bytes:
        return self._keys().seal("frame", content, key.to_bytes(8))

    def open_frame(self, key: int, sealed: bytes) -> bytes:
        return self._keys().unseal("frame", sealed, key.to_bytes(8))

    def seal_reply(self, handle: bytes, reply: bytes) -> bytes:
        """What the change of this `reply_handle` was answered."""
        return self._keys().seal("reply", reply, handle)

    def open_reply(self, handle: bytes, sealed: bytes) -> bytes:
        return self._keys().unseal("reply", sealed, handle)

    def reply_handle(self, token: str, key: str) -> bytes:
        """What a reply is found by: a keyed hash of an Idempotency-Key and its token, 32 bytes."""
        return self._keys().mac("idempotency key", f"{token}\0{key}".encode())

    def reply_digest(self, content: bytes) -> bytes:
        """A keyed hash of the hash of what was asked."""
        return self._keys().mac("reply digest", content)

    def seal_feed(self, kind: str, content: bytes, of: str = "") -> bytes:
        """Something of the feed that the collection follows, and of the run of this id."""
        return self._keys().seal(f"feed {kind}", content, self._container.bytes + of.encode())

    def open_feed(self, kind: str, sealed: bytes, of: str = "") -> bytes:
        return self._keys().unseal(f"feed {kind}", sealed, self._container.bytes + of.encode())

    def digest(self, kind: str, content: bytes) -> bytes:
        """What tells whether something of an item has changed: a keyed hash of 16 bytes."""
        return self._keys().mac(f"item {kind}", content)[:HANDLE_BYTES]

    def sealer(self, graph: UUID) -> Sealer:
        """For the file of a graph: see `graph_files`."""
        keys = self._keys()
        name = Name(self._customer, self._container, graph)
        return Sealer(name, keys.generation, keys.object_key(keys.generation))

    def sealed_file(self, fd: int, graph: UUID) -> SealedFile:
        """A graph's file, its start and its length proven."""
        return SealedFile(fd, Name(self._customer, self._container, graph), self._keys().object_key)

    @property
    def container(self) -> UUID:
        return self._container

    def _keys(self) -> Container:
        try:
            return self._keyring.container(self._customer, self._container)
        except NotFound:
            raise NotFound("no such collection") from None
