"""The folder of sealed files of one ledger: another one in its place is told, however alike it looks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from appliance.ledger import Connection, Ledger
from appliance.volume import DataFolder


@asynccontextmanager
async def data_folder(path: Path, ledger: Ledger, *, encrypted: bool) -> AsyncIterator[DataFolder]:
    """The folder at `path`, made for a new ledger; `encrypted` demands LUKS below.

    Raises VolumeOffline when it lies on a volume that is not fit, or is not this ledger's; StorageFailed.
    """
    expected = await ledger.read(_known)
    folder = DataFolder(path, encrypted=encrypted, expected=expected)
    await asyncio.to_thread(folder.open)
    try:
        if expected is None:
            await ledger.write(lambda connection: _remember(connection, folder.id))
        yield folder
    finally:
        folder.close()


def _known(connection: Connection) -> str | None:
    found: str | None = connection.execute("SELECT id FROM data_folder").get
    return found


def _remember(connection: Connection, identity: str) -> None:
    connection.execute("INSERT INTO data_folder (id) VALUES (?)", (identity,))
