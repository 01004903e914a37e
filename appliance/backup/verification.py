"""A backup proven with its keyring: the manifest's MAC, every file's digest, every seal, every row's image.

Constant memory but for the images that were erased since: the ledger is queried where it lies, sealed, and
the manifest has its images in the order of the ledger's rows.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from appliance.backup import tombstones
from appliance.backup.contents import (
    BACKUPS,
    IMAGES,
    LEDGER,
    TOMBSTONES,
    Absent,
    File,
    Header,
    Manifest,
    bundle_name,
    keys_of,
    name_of,
)
from appliance.backup.integrity import compare, differs, surplus
from appliance.backup.tombstones import Ended
from appliance.errors import BackupInvalid, NotFound, SealBroken, StorageFailed
from appliance.ledger import Connection, newest, reading
from appliance.vault import Container, Keyring, Name, SealedFile, name_in

Progress = Callable[[str, int, int], None]

_LIVING = (
    "SELECT datasets.id, datasets.customer, images.id FROM images"
    " JOIN datasets ON datasets.number = images.dataset"
    " WHERE images.deleted_at IS NULL AND datasets.erased_at IS NULL ORDER BY images.key"
)
_HEADER_BYTES = 64


class _SealedLedger:
    """The pages of a sealed database; see `ledger.Pages`."""

    def __init__(self, file: SealedFile) -> None:
        self._file = file
        self.size = file.length

    def read(self, offset: int, size: int) -> bytes:
        stop = min(offset + size, self.size)
        return b"".join(bytes(piece) for piece in self._file.pieces(offset, stop))

    def write(self, offset: int, page: bytes) -> None:
        raise StorageFailed(
            f"the ledger of a backup is read alone: {len(page)} bytes for {offset} are refused"
        )


@dataclass(frozen=True, slots=True)
class Opened:
    """A backup that is open: what its own files say, and what of its ledger has ended."""

    folder: Path
    header: Header
    keys: Container
    ledger: SealedFile
    connection: Connection
    ended: Ended


@dataclass
class Verified:
    """What a backup holds. `damaged` images were so before the backup; `ended` will not come back."""

    files: int = 0
    bytes: int = 0
    images: int = 0
    damaged: list[str] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=dict)


_WITH_KEYS: tuple[tuple[tombstones.Kind, int, str], ...] = (
    ("dataset", 8, "SELECT id, customer, id FROM datasets WHERE erased_at IS NULL"),
    (
        "collection",
        tombstones.COLLECTIONS_HAVE_KEYS,
        "SELECT id, customer, container FROM collections WHERE NOT removed",
    ),
)
"""What has keys of its own, and since which schema."""

Each = Callable[[File], None]
"""What is to be done with a file that is as it was made, and stays."""


@contextmanager
def opened(folder: Path, keyring: Keyring, newer: Path | None = None) -> Iterator[Opened]:
    """The backup at `folder`, whose ledger can be asked within the block.

    `newer` is an export of tombstones. Raises BackupInvalid when it is another appliance's, when keyring or
    tombstones are older than it, and when ledger or tombstones are not what was made.
    """
    header = Manifest(folder).header
    if header.keyring != keyring.id.hex():
        raise BackupInvalid([f"{folder} is a backup of another appliance: the keyring does not belong to it"])
    if header.schema > newest():
        raise BackupInvalid(
            [f"{folder} was made by a newer version ({header.version}): restore it with that"]
        )
    keys = keys_of(keyring)
    with ExitStack() as stack:
        try:
            own = _sealed(stack, folder / TOMBSTONES, name_of(header.backup, TOMBSTONES), keys)
            ledger = _sealed(stack, folder / LEDGER, name_of(header.backup, LEDGER), keys)
            connection = stack.enter_context(reading(_SealedLedger(ledger)))
            ended = Ended()
            ended.add(connection, tombstones.read(own)[1])
        except SealBroken as error:
            raise _changed(folder, error) from error
        if newer is not None:
            _add_newer(ended, connection, header, newer, keys)
        _add_destroyed(ended, connection, header, keyring)
        yield Opened(folder, header, keys, ledger, connection, ended)


def verify(backup: Opened, keyring: Keyring, progress: Progress, each: Each | None = None) -> Verified:
    """Prove all of it; `each` gets every file that is sound and not ended, in the manifest's order.

    Raises BackupInvalid, which names every file in question.
    """
    found = Verified(ended=backup.ended.counts())
    manifest = Manifest(backup.folder)
    problems = _sound_ledger(backup)
    rows = _Rows(backup)
    present = 0
    for entry in manifest.entries():
        if isinstance(entry, Absent):
            rows.take(entry.path)
            found.damaged.append(f"{backup.folder / entry.path}: {entry.reason} before the backup was made")
            continue
        present += (backup.folder / entry.path).is_file()
        if (problem := differs(backup.folder, entry)) is not None:
            problems.append(problem)
            if entry.path.startswith(f"{IMAGES}/"):
                rows.take(entry.path)
            continue
        found.files += 1
        found.bytes += entry.size
        progress("verifying", found.bytes, max(found.bytes, backup.header.bytes))
        problem, stays = _proven(backup, keyring, rows, entry, found)
        if problem is not None:
            problems.append(problem)
        elif stays and each is not None:
            each(entry)
    rows.end()
    manifest.prove(backup.keys)
    problems += rows.problems + surplus(backup.folder, present)
    if problems:
        raise BackupInvalid(problems)
    return found


def _proven(
    backup: Opened, keyring: Keyring, rows: "_Rows", entry: File, found: Verified
) -> tuple[str | None, bool]:
    """What is wrong with a file whose bytes are right, and whether it stays: what has ended does not."""
    path = backup.folder / entry.path
    if not entry.path.startswith(f"{IMAGES}/"):
        try:
            with path.open("rb") as file:
                SealedFile(file.fileno(), _own_name(backup, entry.path), backup.keys.object_key).verify()
        except SealBroken as error:
            return f"{path}: {error}", False
        return None, True
    name = rows.take(entry.path)
    if name is None:
        return None, False
    try:
        keys = keyring.container(name.customer, name.container)
        with path.open("rb") as file:
            SealedFile(file.fileno(), name, keys.object_key).verify()
    except SealBroken as error:  # its digest is right: it was copied as it lay
        found.damaged.append(f"{path}: damaged before the backup was made: {error}")
    found.images += 1
    return None, True


class _Rows:
    """The images of the ledger, taken in their order as the manifest names their files."""

    def __init__(self, backup: Opened) -> None:
        self._rows: Iterator[Any] = iter(backup.connection.execute(_LIVING))
        self._backup = backup
        self.problems: list[str] = []

    def take(self, path: str) -> Name | None:
        """The name of the image at `path`, None when it has ended or has no row.

        Rows before it have no file: they were erased while the backup was made, or something is wrong.
        """
        for dataset, customer, image in self._rows:
            name = Name(UUID(customer), UUID(dataset), UUID(image))
            if path == f"{IMAGES}/{name.container.hex}/{name.object.hex}":
                return None if self._has_ended(dataset, image) else name
            self._miss(dataset, image)
        self.problems.append(f"{self._backup.folder / path}: its ledger has no such image")
        return None

    def end(self) -> None:
        """No more files: rows that are left have none."""
        for dataset, _, image in self._rows:
            self._miss(dataset, image)

    def _miss(self, dataset: str, image: str) -> None:
        if not self._has_ended(dataset, image):
            self.problems.append(f"{self._backup.folder}: image {image} of dataset {dataset} has no file")

    def _has_ended(self, dataset: str, image: str) -> bool:
        ended = self._backup.ended
        return image in ended.images or dataset in ended.datasets


def _own_name(backup: Opened, path: str) -> Name:
    if path in {LEDGER, TOMBSTONES}:
        return name_of(backup.header.backup, path)
    return bundle_name(path)


def _sealed(stack: ExitStack, path: Path, name: Name, keys: Container) -> SealedFile:
    """Raises SealBroken, also for a file that is not there."""
    try:
        file = stack.enter_context(path.open("rb"))
    except OSError as error:
        raise SealBroken(f"{path}: {error.strerror}") from None
    return SealedFile(file.fileno(), name, keys.object_key)


def _changed(folder: Path, error: SealBroken) -> BackupInvalid:
    """The error that names all that is wrong with a backup whose ledger cannot be asked."""
    return BackupInvalid(compare(folder) or [f"{folder}: {error}"])


def _sound_ledger(backup: Opened) -> list[str]:
    try:
        ((answer,), *_) = backup.connection.execute("PRAGMA quick_check").fetchall()
    except SealBroken as error:
        raise _changed(backup.folder, error) from error
    return [] if answer == "ok" else [f"{backup.folder / LEDGER}: {answer}"]


def _add_newer(ended: Ended, connection: Connection, header: Header, path: Path, keys: Container) -> None:
    with ExitStack() as stack:
        try:
            start = stack.enter_context(path.open("rb")).read(_HEADER_BYTES)
        except OSError as error:
            raise BackupInvalid([f"{path}: {error.strerror}"]) from None
        name = name_in(start)
        if name is None or name.container != BACKUPS:
            raise BackupInvalid([f"{path} is no export of tombstones"])
        try:
            file = _sealed(stack, path, name, keys)
            file.verify()
        except SealBroken as error:
            raise BackupInvalid([f"{path}: {error}"]) from error
        origin, endings = tombstones.read(file)
        if origin.entry < header.entry:
            reason = f"it ends at ledger entry {origin.entry}, the backup at {header.entry}"
            raise BackupInvalid([f"{path} is older than the backup: {reason}. Give the newest one"])
        ended.add(connection, endings)


def _add_destroyed(ended: Ended, connection: Connection, header: Header, keyring: Keyring) -> None:
    """A container whose key a newer keyring no longer has was erased: that is what destroying a key means."""
    lost: list[tuple[tombstones.Kind, str]] = []
    for kind, since, query in _WITH_KEYS:
        if header.schema < since:
            continue
        for identity, customer, container in connection.execute(query).fetchall():
            if identity in ended.of[kind]:
                continue
            try:
                keyring.container(UUID(str(customer)), UUID(str(container)))
            except NotFound:
                lost.append((kind, str(identity)))
    if lost and keyring.number < header.keyring_number:
        reason = f"it is number {keyring.number}, the backup needs {header.keyring_number}"
        what = f"{reason}: {len(lost)} datasets and collections have no key in it"
        raise BackupInvalid(
            [f"the keyring is older than the backup ({what}): give the one made with it, or a newer"]
        )
    for kind, identity in lost:
        ended.of[kind][identity] = tombstones.Ending(kind, identity, 0)
