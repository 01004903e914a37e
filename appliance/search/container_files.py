"""Files of collections, each sealed under its collection's key: FOLDER/<container>/<file>, ids in hex.

A file is a sealed object (see `vault.sealed`) that begins with what it says of itself:

    length of the manifest u32 | manifest, msgpack | content

Everything here blocks on the disk.
"""

import errno
import os
import stat
from collections.abc import Collection
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Generic, TypeVar
from uuid import UUID

import msgspec

from appliance.errors import SealBroken, VolumeFull
from appliance.search.seals import Seals
from appliance.vault import SealedFile, Sealer
from appliance.volume import AtomicFile, failing_as_storage, remove_tree, sync_folder

M = TypeVar("M", bound=msgspec.Struct)

UNREADABLE = "it is of a format that this version does not read"
_NO_FILE = {errno.ELOOP, errno.ENXIO}
"""What opening a symbolic link or a socket ends with."""
_LENGTH = 4
_LONGEST_MANIFEST = 4096


def head(manifest: msgspec.Struct) -> bytes:
    """What a file begins with."""
    encoded = msgspec.msgpack.encode(manifest)
    return len(encoded).to_bytes(_LENGTH, "big") + encoded


class Writing:
    """A file on its way, sealed as it comes: durable once `publish` has returned, `close` ends it anyhow."""

    def __init__(self, folder: Path, file: UUID) -> None:
        self._folder = folder
        self._id = file
        self._opened = ExitStack()
        self.size = 0
        """Bytes so far."""

    def open(self, seals: Seals, size: int, leaving: int) -> None:
        """Begin a file of up to `size` bytes as it rests; folders are made.

        Raises VolumeFull, before anything is written, where less than `leaving` would stay free; NotFound
        when the key is destroyed; StorageFailed.
        """
        folder = self._folder
        self._sealer: Sealer = seals.sealer(self._id)
        with failing_as_storage(folder):
            for path in (folder.parent, folder):
                with suppress(FileExistsError):
                    path.mkdir(mode=0o700)
                    sync_folder(path.parent)
        require_free(folder, size + leaving)
        self._file = self._opened.enter_context(closing(AtomicFile(folder / self._id.hex)))
        self._put(self._sealer.header)

    def write(self, piece: bytes) -> None:
        self._put(self._sealer.update(piece))

    def publish(self) -> None:
        self._put(self._sealer.finish())
        self._file.publish()

    def close(self) -> None:
        """Needed in the end; nothing is left of what was not published."""
        self._opened.close()

    def _put(self, sealed: bytes) -> None:
        self._file.write(sealed)
        self.size += len(sealed)


class Reading(Generic[M]):
    """A file that is read; `open` it first, `close` it in the end.

    Its manifest is of the type `kind`; the content is from `start` to `length`; `size` is that of the file.
    """

    def __init__(self, folder: Path, file: UUID, kind: type[M]) -> None:
        self._path = folder / file.hex
        self._id = file
        self._kind = kind
        self._opened = ExitStack()

    def open(self, seals: Seals) -> None:
        """SealBroken when it is not what was sealed, which only a plain file can be; NotFound when the key is
        destroyed, StorageFailed."""
        with failing_as_storage(self._path):
            fd = _plain_file(self._path)
            self._opened.callback(os.close, fd)
            self._file: SealedFile = seals.sealed_file(fd, self._id)
            self.length, self.size = self._file.length, self._file.size
            self.start = _LENGTH + self._manifest_bytes()
            self.manifest: M = self._read_manifest()

    def read(self, start: int, stop: int) -> memoryview:
        """Raises SealBroken, StorageFailed."""
        with failing_as_storage(self._path):
            return self._file.read(start, stop)

    def close(self) -> None:
        self._opened.close()

    def _manifest_bytes(self) -> int:
        length = int.from_bytes(self._file.read(0, min(_LENGTH, self.length)), "big")
        if self.length < _LENGTH or length > min(_LONGEST_MANIFEST, self.length - _LENGTH):
            raise SealBroken("it has no manifest")
        return length

    def _read_manifest(self) -> M:
        try:
            return msgspec.msgpack.decode(self._file.read(_LENGTH, self.start), type=self._kind)
        except msgspec.MsgspecError:
            raise SealBroken(UNREADABLE) from None


def _plain_file(path: Path) -> int:
    """A descriptor to read it by. Without O_NONBLOCK a pipe would have its reader wait for a writer."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise SealBroken("it is no plain file") from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SealBroken("it is no plain file")
    return fd


def require_free(folder: Path, size: int) -> None:
    """Raises VolumeFull unless so many bytes are free on the volume of a folder."""
    with failing_as_storage(folder):
        space = os.statvfs(folder)
    if (free := space.f_bavail * space.f_frsize) < size:
        raise VolumeFull(f"{folder}: {free} bytes are free, and {size} are needed")


def keep_only(folder: Path, containers: Collection[UUID]) -> None:
    """Remove what a crash left: folders of no such container, and files that were never finished.

    Raises StorageFailed.
    """
    names = {container.hex for container in containers}
    try:
        kept = list(os.scandir(folder))
    except FileNotFoundError:
        return
    with failing_as_storage(folder):
        for entry in kept:
            if not entry.is_dir(follow_symlinks=False):
                Path(entry).unlink()
            elif entry.name not in names:
                remove_tree(Path(entry))
            else:
                for draft in Path(entry).glob(".*"):
                    draft.unlink()


def listed(folder: Path) -> list[UUID]:
    """The files in the folder of a collection, which need not be there. Raises StorageFailed."""
    found = []
    with failing_as_storage(folder), suppress(FileNotFoundError):
        for path in sorted(folder.iterdir()):
            with suppress(ValueError):  # a draft, which the next start removes
                found.append(UUID(hex=path.name))
    return found


def unlink(folder: Path, *files: UUID) -> None:
    """Remove files of a collection, durably, and whatever else is in their place; those that are gone already
    are none. Raises StorageFailed."""
    with failing_as_storage(folder):
        for file in files:
            path = folder / file.hex
            if path.is_dir() and not path.is_symlink():
                remove_tree(path)
            else:
                path.unlink(missing_ok=True)
        sync_folder(folder)
