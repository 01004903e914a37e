"""From a backup to a state folder that a daemon can go on with.

Everything is put together and proven in STATE/.restore, and moved into its place at the end. For as long as
that folder is there nothing starts on the state, so that a restore that was interrupted is told from a whole
one; the next restore takes away what it left.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from appliance.accounts import grants
from appliance.accounts.audit import Actor, Event, record
from appliance.backup import tombstones
from appliance.backup.contents import BUNDLES, IMAGES, KEYRING, LEDGER, TOMBSTONES, File, Header, bundle_name
from appliance.backup.verification import Opened, Progress, Verified, opened, verify
from appliance.datasets.rows import last_entry
from appliance.datasets.witness import WITNESS, Record
from appliance.errors import BackupInvalid, Conflict, NotFound, StorageFailed
from appliance.ledger import Connection, Ledger
from appliance.metrics import Registry
from appliance.vault import Keyring, SealedFile, ballast_of
from appliance.volume import (
    create,
    failing_as_storage,
    remove_tree,
    sync_filesystem,
    sync_folder,
    write_atomically,
    write_whole,
)

STAGED = ".restore"

_KEY_OF_DATASET = "SELECT customer, id FROM datasets WHERE id = ?"
_KEY_OF_COLLECTION = "SELECT customer, container FROM collections WHERE id = ?"
_DATABASE = "ledger.db"
_PARTS = (IMAGES, BUNDLES, KEYRING, _DATABASE)
_OWN = frozenset({*_PARTS, f"{_DATABASE}-wal", f"{_DATABASE}-shm"})
_PIECE = 1 << 20
_LONGEST_PLACE = 512


@dataclass(frozen=True, slots=True)
class Restored:
    """What a state folder now holds."""

    header: Header
    verified: Verified
    entry: int


def check_whole(state: Path) -> None:
    """Raises StorageFailed when a restore into this folder was interrupted: nothing may start on it."""
    if (state / STAGED).exists():
        reason = f"a restore into {state} was interrupted, what lies there is not whole"
        raise StorageFailed(f"{reason}: run `appliance restore` again, which clears it away")


def check_empty(state: Path) -> None:
    """Raises Conflict when the folder has a state already, other than what an interrupted restore left."""
    if (state / STAGED).exists() or not state.exists():
        return
    if found := sorted(_OWN & {path.name for path in state.iterdir()}):
        reason = f"{state} has a state already ({', '.join(found)}), and a restore never goes over one"
        raise Conflict(f"{reason}: stop the daemon and move these away, or give an empty folder with --state")


async def restore(
    folder: Path,
    keyring: Path,
    state: Path,
    root: bytearray,
    *,
    newer: Path | None,
    clock: Callable[[], float],
    actor: Actor,
    progress: Progress,
) -> Restored:
    """Restore the backup at `folder` into `state`, which the caller has locked and `check_empty` found empty.

    `newer` is the newest export of tombstones: what they tell of is erased before this returns. Takes `root`
    over. Raises BackupInvalid, which names every file in question, KeyringInvalid, NotFound without a
    keyring, StorageFailed: the folder is as it was then.
    """
    try:
        staged = _stage(state, keyring)
        done = await _put_together(folder, staged, root, newer, actor, int(clock() * 1000), progress)
        with failing_as_storage(state):
            progress("making it durable", 0, 0)
            _publish(staged, state)
    except BaseException:
        # What could not be undone is told by its mark.
        with suppress(OSError, StorageFailed):
            _clear(state)
        raise
    return done


async def _put_together(  # noqa: PLR0917 - as `restore` has them
    folder: Path,
    staged: Path,
    root: bytearray,
    newer: Path | None,
    actor: Actor,
    now: int,
    progress: Progress,
) -> Restored:
    keys = Keyring.open(staged / KEYRING, root)
    try:
        with opened(folder, keys, newer) as backup, failing_as_storage(staged):
            verified = verify(backup, keys, progress, _Copier(backup, staged).copy)
            progress("erasing what has ended", 0, 0)
            entry = await _replayed(staged, backup, keys, actor, now)
            write_atomically(staged / IMAGES / WITNESS, Record(entry).sealed(keys.service))
            for customer in backup.ended.of["customer"]:
                keys.destroy_customer(UUID(customer))
            for dataset in backup.ended.datasets:
                _destroy(keys, backup.connection, _KEY_OF_DATASET, dataset)
            if backup.header.schema >= tombstones.COLLECTIONS_HAVE_KEYS:
                for collection in backup.ended.of["collection"]:
                    _destroy(keys, backup.connection, _KEY_OF_COLLECTION, collection)
            return Restored(backup.header, verified, entry)
    finally:
        keys.wipe()


class _Copier:
    """Puts files into the staged state as they are proven."""

    def __init__(self, backup: Opened, staged: Path) -> None:
        self._backup = backup
        self._staged = staged

    def copy(self, entry: File) -> None:
        """Raises BackupInvalid, OSError."""
        if entry.path == LEDGER:
            _write(self._staged / _DATABASE, (bytes(piece) for piece in self._backup.ledger.pieces()))
        elif entry.path.startswith(f"{BUNDLES}/"):
            self._bundle(entry)
        elif entry.path.startswith(f"{IMAGES}/"):
            self._image(entry)
        else:
            assert entry.path == TOMBSTONES  # they are replayed, not kept

    def _image(self, entry: File) -> None:
        target = self._staged / entry.path
        target.parent.mkdir(mode=0o700, exist_ok=True)
        running = hashlib.sha256()
        with (self._backup.folder / entry.path).open("rb") as file:

            def pieces() -> Iterator[bytes]:
                while data := file.read(_PIECE):
                    running.update(data)
                    yield data

            _write(target, pieces())
        if running.digest() != entry.digest:  # it was right a moment ago
            raise BackupInvalid([f"{self._backup.folder / entry.path}: changed while it was restored"])

    def _bundle(self, entry: File) -> None:
        own = self._backup.keys
        with (self._backup.folder / entry.path).open("rb") as file:
            pieces = SealedFile(file.fileno(), bundle_name(entry.path), own.object_key).pieces()
            first = bytes(next(pieces))
            place, newline, rest = first.partition(b"\n")
            parts = place.decode().split("/")
            if not newline or len(place) > _LONGEST_PLACE or {"", ".", ".."} & set(parts):
                raise BackupInvalid([f"{self._backup.folder / entry.path}: it has no place in a bundle"])
            target = self._staged.joinpath(BUNDLES, *parts)
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

            def content() -> Iterator[bytes]:
                yield rest
                for piece in pieces:
                    yield bytes(piece)

            _write(target, content())


def _stage(state: Path, keyring: Path) -> Path:
    """The folder in which the state is put together, with its keyring."""
    staged = state / STAGED
    with failing_as_storage(state):
        _clear(state)
        staged.mkdir(mode=0o700)
        sync_folder(state)
        for name in (IMAGES, BUNDLES):
            (staged / name).mkdir(mode=0o700)
        write_atomically(staged / KEYRING, keyring.read_bytes())
    return staged


async def _replayed(staged: Path, backup: Opened, keys: Keyring, actor: Actor, now: int) -> int:
    """The ledger without what has ended, and with an entry of its own; the number of that."""
    details: dict[str, object] = {"entry": backup.header.entry, **backup.ended.counts()}

    def act(connection: Connection) -> int:
        tombstones.replay(connection, keys.service, actor, backup.ended, now)
        grants.close_all(connection, keys.service, now)  # any may have been revoked since
        connection.execute("DELETE FROM data_folder")  # the next start makes one on the volume that it finds
        record(connection, now, actor, Event.BACKUP_RESTORE, None, str(backup.header.backup), details)
        return last_entry(connection)

    async with Ledger(staged, Registry()) as ledger:
        entry = await ledger.write(act)
        if not await ledger.empty_log():
            raise StorageFailed(f"{staged / _DATABASE}: its log cannot be emptied")
    return entry


def _destroy(keys: Keyring, connection: Connection, query: str, identity: str) -> None:
    """An older keyring still has the key of what was erased since."""
    customer, container = connection.execute(query, (identity,)).get
    with suppress(NotFound):
        keys.container(UUID(str(customer)), UUID(str(container)))
        keys.destroy(UUID(str(customer)), UUID(str(container)))


def _publish(staged: Path, state: Path) -> None:
    # The log was emptied; the room that it and the keyring keep is made anew.
    for name in (f"{_DATABASE}-wal", f"{_DATABASE}-shm", ballast_of(KEYRING)):
        (staged / name).unlink(missing_ok=True)
    _hand_over(state)
    sync_filesystem(staged)
    for name in _PARTS:
        (staged / name).rename(state / name)
    sync_folder(state)
    sync_folder(staged)
    staged.rmdir()
    sync_folder(state)


def _clear(state: Path) -> None:
    """Take away what an interrupted restore left; its own mark goes last."""
    if not (state / STAGED).exists():
        return
    left = [*state.glob(".*.removed"), *(state / name for name in _OWN)]
    for path in left:
        if path.is_dir():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)
    sync_folder(state)
    remove_tree(state / STAGED)


def _hand_over(state: Path) -> None:
    """To the user whom the state folder belongs to: what root made would not be the daemon's."""
    owner = state.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    with suppress(FileNotFoundError):
        os.chown(state / "lock", owner.st_uid, owner.st_gid, follow_symlinks=False)
    for _, folders, names, fd in os.fwalk(state / STAGED):
        for name in (".", *folders, *names):
            os.chown(name, owner.st_uid, owner.st_gid, dir_fd=fd, follow_symlinks=False)


def _write(path: Path, pieces: Iterator[bytes]) -> None:
    """Made durable in the end, all files together."""
    fd = create(path)
    try:
        for piece in pieces:
            write_whole(fd, piece)
    finally:
        os.close(fd)
