"""The keyring of a state folder and its ledger: each is nothing without the other."""

import asyncio
from pathlib import Path

from appliance.errors import KeyringInvalid, NotFound
from appliance.ledger import Connection, Ledger
from appliance.vault.keyring import Keyring
from appliance.volume import remove_drafts

FILE = "keyring"


async def open_keyring(state: Path, ledger: Ledger, root: bytearray) -> Keyring:
    """STATE/keyring, made when the state is new. Takes `root` over: it is wiped whatever happens.

    Raises KeyringInvalid when it is damaged, made for another root, or another ledger's, and when it is
    missing although the ledger has one: a new one would open nothing of what is there. Raises StorageFailed.
    """
    path = state / FILE
    known, tokens = await ledger.read(_known)
    try:
        await asyncio.to_thread(remove_drafts, path)  # each is a copy with keys that may be destroyed since
        keyring = await asyncio.to_thread(Keyring.open, path, root)
    except NotFound:
        if known is not None:
            reason = f"{path} is missing, and without it nothing that rests here can be opened"
            raise KeyringInvalid(f"{reason}: restore it from its backup") from None
        # Before there was a keyring the root itself was the service key: tokens of that time go on.
        service = bytes(root) if tokens else None
        keyring = await asyncio.to_thread(Keyring.create, path, root, service)
    finally:
        root[:] = bytes(len(root))
    if known is None:
        await ledger.write(lambda connection: _remember(connection, keyring.id))
    elif known != keyring.id:
        keyring.wipe()
        reason = f"{path} belongs to another ledger than the one beside it"
        raise KeyringInvalid(f"{reason}: restore both from the same appliance")
    return keyring


def _known(connection: Connection) -> tuple[bytes | None, bool]:
    row = connection.execute("SELECT id FROM keyring").fetchone()
    tokens = connection.execute("SELECT 1 FROM tokens LIMIT 1").fetchone()
    return None if row is None else row[0], tokens is not None


def _remember(connection: Connection, identity: bytes) -> None:
    connection.execute("INSERT INTO keyring (id) VALUES (?)", (identity,))
