"""The names of collections: sealed under each one's key, and found by a keyed hash.

The hash is under the service's key and bound to the customer: equal names of two customers look different,
and whoever has the ledger alone cannot try names.
"""

from collections.abc import Iterable
from functools import partial

from appliance.accounts.customers import CustomerId
from appliance.errors import NotFound, SealBroken
from appliance.ledger import Connection, Ledger
from appliance.search import entries
from appliance.search.entries import Entry
from appliance.search.records import CollectionId
from appliance.search.seals import HANDLE_BYTES, Seals
from appliance.vault import Keyring

_LABEL = "search/name"
_AT_ONCE = 256


def handle_of(keyring: Keyring, customer: CustomerId, name: str) -> bytes:
    """What a name is found by."""
    return keyring.service.mac(_LABEL, f"{customer}/{name}".encode())[:HANDLE_BYTES]


def opened(keyring: Keyring, entry: Entry) -> str:
    """The name of a collection. Raises NotFound when its key is gone, SealBroken when it was changed."""
    return Seals(keyring, entry.customer, entry.container).open_name(entry.name)


async def fill_handles(ledger: Ledger, keyring: Keyring) -> None:
    """Give a handle to every collection that was made without; one whose name does not open stays so.

    Some in a transaction each: the next start goes on where this one was interrupted.
    """
    without = await ledger.read(entries.without_handle)
    for low in range(0, len(without), _AT_ONCE):
        handles = [(entry.id, _handle(keyring, entry)) for entry in without[low : low + _AT_ONCE]]
        found = [(collection, handle) for collection, handle in handles if handle is not None]
        if found:
            await ledger.write(partial(_set, handles=found))


async def free(ledger: Ledger, gone: list[Entry]) -> None:
    """Take the handles of collections whose key is gone: their names can be given to others."""
    if gone:
        await ledger.write(partial(_set, handles=[(entry.id, None) for entry in gone]))


def _handle(keyring: Keyring, entry: Entry) -> bytes | None:
    try:
        return handle_of(keyring, entry.customer, opened(keyring, entry))
    except (NotFound, SealBroken):
        return None


def _set(connection: Connection, handles: Iterable[tuple[CollectionId, bytes | None]]) -> None:
    for collection, handle in handles:
        entries.set_handle(connection, collection, handle)
