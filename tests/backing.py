"""Backups of a store that is open, and restores into folders of their own, without HTTP between."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from appliance.backup.receiving import Received, receive
from appliance.backup.restoration import Restored, restore
from appliance.backup.source import Backups
from appliance.backup.verification import Verified, opened, verify
from appliance.datasets.records import Dataset, Image
from appliance.vault import Keyring
from tests.storing import ACTOR, OPERATOR, ROOT, Stand


def silent(step: str, done: int, total: int) -> None:
    """Tells nothing."""


@dataclass(frozen=True)
class Shelf:
    """Where backups and their keyrings lie."""

    backups: Path
    keyrings: Path

    @classmethod
    def under(cls, folder: Path) -> "Shelf":
        """Two folders in `folder`, made when they are not there."""
        shelf = cls(folder / "backups", folder / "keyrings")
        for path in (shelf.backups, shelf.keyrings):
            path.mkdir(exist_ok=True)
        return shelf

    async def take(self, stand: Stand, *, keep_days: float = 30) -> Received:
        """A backup of what is open."""
        async with source(stand) as backups:
            making = await backups.begin(ACTOR)
            try:
                return await receive(
                    making.pieces(), self.backups, self.keyrings, keep_days=keep_days, progress=silent
                )
            finally:
                making.close()


@contextlib.asynccontextmanager
async def source(stand: Stand) -> AsyncIterator[Backups]:
    """What gives out backups of an open store."""
    async with Backups(
        stand.ledger,
        stand.keyring,
        stand.state,
        lambda: contextlib.nullcontext(stand.files),
        version="test",
        reserve_bytes=0,
        clock=stand.clock,
    ) as backups:
        yield backups


async def put_back(
    backup: Path, keyring: Path, state: Path, *, root: bytes = ROOT, newer: Path | None = None
) -> Restored:
    """A restore into `state`, at a time after all others."""
    await asyncio.to_thread(state.mkdir, exist_ok=True)
    return await restore(
        backup,
        keyring,
        state,
        bytearray(root),
        newer=newer,
        clock=lambda: 1_900_000_000.0,
        actor=OPERATOR,
        progress=silent,
    )


def proven(backup: Path, keyring: Path, *, root: bytes = ROOT, newer: Path | None = None) -> Verified:
    """What `restore --verify-only` says."""
    keys = Keyring.open(keyring, bytearray(root))
    try:
        with opened(backup, keys, newer) as found:
            return verify(found, keys, silent)
    finally:
        keys.wipe()


async def filled(at: Stand, name: str = "Summer", images: int = 3) -> tuple[Dataset, list[Image]]:
    """A dataset of a customer with some images in it."""
    dataset = await at.datasets.add(ACTOR, await at.customer(), name)
    stored = [
        await at.store.put(ACTOR, dataset, f"{name} {number} ".encode() * 3000, b'{"shelf": "secret shelf"}')
        for number in range(images)
    ]
    return dataset, stored
