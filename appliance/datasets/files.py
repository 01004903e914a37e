"""Sealed files on the volume: written durably, many with the same syncs, opened, and removed for good.

A file is made without a name, so that a crash leaves nothing of it; it gets its name when its bytes are on
the disk, and whoever waits is told when the name is as well.
"""

import asyncio
import contextlib
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self
from uuid import UUID

from prometheus_client import Counter, Histogram

from appliance.datasets.leaps import Belief
from appliance.datasets.threads import Outcome, Threads, tell
from appliance.datasets.witness import WITNESS, Record, Witness
from appliance.errors import NotFound, SealBroken, StorageFailed
from appliance.metrics import Registry
from appliance.vault import Container, Keys, Name, SealedFile, Sealer, sealed_size
from appliance.volume import DataFolder, NotAtHand, open_at_hand, write_whole

Buffer = bytes | bytearray | memoryview

_PIECE = 1 << 20
_FILES_AT_ONCE = 256
_SYNCED_SINGLY = 2  # above, one sync of the whole filesystem costs less than one of each file
_SEALING_THREADS = 2
_READING_THREADS = 4
# Not blocking: a pipe in a file's place would wait for a writer, and no file does.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_UNTOLD = _READ | os.O_NOATIME
_A_FILE, _THE_FOLDER = "a sealed file", "the folder of sealed files"
_REMOVED = "its dataset was erased while it was written"


@dataclass(slots=True, eq=False)
class _Draft:
    """A file on its way: sealed into one without a name, `fd`, then made durable together with others."""

    name: Name
    keys: Container
    content: Sequence[Buffer]
    durable: asyncio.Future[None]
    fd: int = -1


class OpenFile:
    """A sealed file that is open until `close`; of one reader at a time, on any thread."""

    __slots__ = ("_fd", "_folder", "_reading", "_sealed")

    def __init__(self, fd: int, sealed: SealedFile, folder: DataFolder, reading: Threads) -> None:
        self._fd = fd
        self._sealed = sealed
        self._folder = folder
        self._reading = reading

    @property
    def length(self) -> int:
        """Bytes of what was sealed."""
        return self._sealed.length

    @property
    def size(self) -> int:
        """Bytes of the sealed file itself."""
        return self._sealed.size

    @property
    def etag(self) -> str:
        """32 hexadecimal digits: the same for as long as the file is, and telling nothing of its content."""
        return self._sealed.etag

    @property
    def key(self) -> bytes:
        """What opens this file and no other, 44 bytes: see SealedFile."""
        return self._sealed.key

    def read(self, start: int, stop: int) -> memoryview:
        """The bytes from `start` up to `stop`, each proven. Blocks on the disk.

        Raises SealBroken, StorageFailed, VolumeOffline, and ValueError for a range outside of `length`.
        """
        with _through(self._folder.reading(), _A_FILE):
            return self._sealed.read(start, stop)

    async def fetch(self, start: int, stop: int) -> memoryview:
        """As `read`, for the event loop: at once where the disk need not be waited for."""
        # A hop to a thread and back costs more than opening 256 KiB, which no thread does beside the loop.
        try:
            return self._sealed.read_at_hand(start, stop)
        except NotAtHand:
            return await self._reading.run(self.read, start, stop)

    async def fetch_sealed(self, start: int, stop: int) -> memoryview:
        """As `read_sealed`, for the event loop."""
        return await self._reading.run(self.read_sealed, start, stop)

    def read_sealed(self, start: int, stop: int) -> memoryview:
        """Bytes of the sealed file as it lies there. Blocks on the disk. Raises as `read`."""
        with _through(self._folder.reading(), _A_FILE):
            data = os.pread(self._fd, stop - start, start)
        if len(data) != stop - start:
            raise StorageFailed("a sealed file was cut while it was read")
        return memoryview(data)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)


class SealedFiles:
    """The sealed files of all datasets: FOLDER/<container>/<object>, ids in hexadecimal.

    Whatever is wrong with the volume the data folder says, as VolumeOffline; after a failed sync until a
    restart. No method may be cancelled while it runs.
    """

    def __init__(self, folder: DataFolder, keys: Keys, registry: Registry) -> None:
        self._folder = folder
        self._witness = Witness(folder, keys)
        self._sealing = Threads(_SEALING_THREADS, "sealing")
        self._changing = Threads(1, "sealed-files")
        self._reading = Threads(_READING_THREADS, "reading")
        self._sealed: deque[_Draft] = deque()
        self._written = Counter("appliance_store_sealed_bytes", "Sealed bytes written", registry=registry)
        self._together = Histogram(
            "appliance_store_files_per_sync",
            "Files made durable by the same syncs",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=registry,
        )

    async def __aenter__(self) -> Self:
        for threads in (self._sealing, self._changing, self._reading):
            threads.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for threads in (self._sealing, self._changing, self._reading):
            threads.close()

    async def write(self, name: Name, keys: Container, content: Sequence[Buffer]) -> None:
        """Seal `content`, one part after the other, as the file of `name`; durable on return.

        Before it, what the witness was told to `note`. Files that are written at the same time share their
        syncs. Raises VolumeFull when the volume cannot hold it, StorageFailed,
        VolumeOffline: nothing of it is there then.
        """
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        draft = _Draft(name, keys, content, durable)
        self._sealing.submit(partial(self._prepare, draft))
        await durable

    async def remove(self, names: Iterable[Name]) -> None:
        """Remove files, durably; what is not there is no error. Raises StorageFailed, VolumeOffline."""
        await self._changing.run(self._unlink, list(names))

    async def remove_container(self, container: UUID) -> None:
        """Remove a container's folder with all that is in it. Raises StorageFailed, VolumeOffline."""
        await self._changing.run(self._unlink_all, container)

    def note(
        self, *, acknowledged: int = 0, doubted: bool | None = None, belief: Belief | None = None
    ) -> None:
        """Have the witness say this from the next `write` or `witness` on; its number never goes back.

        Call it on the event loop.
        """
        record = self._witness.record
        self._witness.record = replace(
            record,
            acknowledged=max(record.acknowledged, acknowledged),
            doubted=record.doubted if doubted is None else doubted,
            belief=belief or record.belief,
        )

    async def witness(self) -> None:
        """What was noted is durable on return. Raises StorageFailed, VolumeOffline, VolumeFull."""
        await self._changing.run(self._keep_witness)

    def witnessed(self) -> Record | None:
        """What the last run left, None where that is lost or is not what it wrote. Blocks.

        Raises StorageFailed, VolumeOffline.
        """
        with _through(self._folder.reading(), WITNESS) as top:
            return self._witness.read(top)

    async def load(self, name: Name, keys: Container, ahead: int = 0) -> OpenFile:
        """As `open`, for the event loop: at once where the disk need not be waited for."""
        try:
            return self._opened(self._folder.at_hand(), name, keys, ahead, wait=False)
        except NotAtHand:
            return await self._reading.run(self.open, name, keys, ahead)

    def open(self, name: Name, keys: Container, ahead: int = 0) -> OpenFile:
        """The file of `name`, proven to be what was sealed under this name. Blocks on the disk.

        One of up to `ahead` sealed bytes is read whole, so that `fetch` needs no thread. Raises NotFound,
        SealBroken, StorageFailed, VolumeOffline.
        """
        with _through(self._folder.reading(), _path(name)) as top:
            return self._opened(top, name, keys, ahead, wait=True)

    def _opened(self, top: int, name: Name, keys: Container, ahead: int, *, wait: bool) -> OpenFile:
        try:
            fd = _open(_path(name), top) if wait else open_at_hand(_path(name), _UNTOLD, top)
        except FileNotFoundError:
            raise NotFound(f"object {name.object} has no file") from None
        try:
            _check_plain(fd, name)
            sealed = SealedFile(fd, name, keys.object_key, ahead, wait=wait)
            return OpenFile(fd, sealed, self._folder, self._reading)
        except BaseException:
            os.close(fd)
            raise

    def containers(self) -> list[UUID]:
        """The containers that have a folder. Blocks on the disk. Raises StorageFailed, VolumeOffline."""
        with _through(self._folder.reading(), _THE_FOLDER) as top:
            return _ids(top)

    def objects(self, container: UUID) -> list[UUID]:
        """The objects of a container that have a file. Blocks on the disk. Raises as `containers`."""
        with (
            _through(self._folder.reading(), container.hex) as top,
            contextlib.suppress(FileNotFoundError),
            self._folder.subfolder(top, container.hex) as folder,
        ):
            return _ids(folder)
        return []

    def _prepare(self, draft: _Draft) -> None:
        try:
            draft.fd = self._seal(draft)
        except BaseException as error:  # noqa: BLE001 - it belongs to the one who waits on the loop
            tell([(draft.durable, None, error)])
            return
        draft.content = ()
        self._sealed.append(draft)
        self._changing.submit(self._commit)

    def _seal(self, draft: _Draft) -> int:
        """A file without a name that holds all of it, not yet durable; its descriptor."""
        name, keys = draft.name, draft.keys
        size = sealed_size(sum(len(part) for part in draft.content))
        sealer = Sealer(name, keys.generation, keys.object_key(keys.generation))
        with ExitStack() as unless_sealed:
            with (
                _through(self._folder.writing(), name.container.hex) as top,
                self._container_folder(top, name.container) as folder,
            ):
                try:
                    fd = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=folder)
                except OSError:
                    if os.fstat(folder).st_nlink == 0:
                        raise NotFound(_REMOVED) from None
                    raise
                unless_sealed.callback(os.close, fd)
                pieces = _sealed(sealer, draft.content)
                if size <= _PIECE:
                    _write(fd, list(pieces))  # which finds room for all of it, or fails
                else:
                    os.posix_fallocate(fd, 0, size)
                    for piece in pieces:
                        _write(fd, [piece])
            unless_sealed.pop_all()
        self._written.inc(size)
        return fd

    @contextmanager
    def _container_folder(self, top: int, container: UUID) -> Iterator[int]:
        """Made where it is missing. Raises NotFound when the container is removed meanwhile."""
        try:
            with self._folder.subfolder(top, container.hex, create=True) as folder:
                yield folder
        except FileNotFoundError:
            raise NotFound(_REMOVED) from None

    def _commit(self) -> None:
        """Make durable what has been sealed so far, all together; nothing is left where others came first."""
        batch = [self._sealed.popleft() for _ in range(min(len(self._sealed), _FILES_AT_ONCE))]
        if not batch:
            return
        outcomes: list[Outcome]
        try:
            gone = self._make_durable(batch)
        except BaseException as error:  # noqa: BLE001 - it belongs to those who would wait for ever
            outcomes = [(draft.durable, None, error) for draft in batch]
        else:
            outcomes = [
                (draft.durable, None, NotFound(_REMOVED) if draft.name.container in gone else None)
                for draft in batch
            ]
        tell(outcomes)

    def _make_durable(self, batch: list[_Draft]) -> set[UUID]:
        """Sync the files of a batch, give them their names, sync these. All of it, or none has a name.

        Returns the containers that were removed before it came to this: their files have no name.
        """
        try:
            with _through(self._folder.writing(), _THE_FOLDER) as top:
                self._witness.keep(top)
                if len(batch) > _SYNCED_SINGLY:
                    self._folder.sync_all()
                else:
                    for draft in batch:
                        self._folder.sync(draft.fd)
                gone = self._give_names(top, batch)
        finally:
            for draft in batch:
                os.close(draft.fd)
        self._together.observe(len(batch))
        return gone

    def _give_names(self, top: int, batch: list[_Draft]) -> set[UUID]:
        wanted = {draft.name.container for draft in batch}
        folders: dict[UUID, int] = {}
        named: list[_Draft] = []
        with ExitStack() as stack:
            for container in wanted:
                with contextlib.suppress(FileNotFoundError):
                    folders[container] = stack.enter_context(self._folder.subfolder(top, container.hex))
            try:
                for draft in (draft for draft in batch if draft.name.container in folders):
                    # With dst_dir_fd CPython calls linkat(AT_SYMLINK_FOLLOW); link() would not follow it.
                    link, folder = f"/proc/self/fd/{draft.fd}", folders[draft.name.container]
                    os.link(link, draft.name.object.hex, dst_dir_fd=folder)
                    named.append(draft)
                for folder in folders.values():
                    self._folder.sync(folder)
            except BaseException:
                for draft in named:
                    with contextlib.suppress(OSError):
                        os.unlink(draft.name.object.hex, dir_fd=folders[draft.name.container])
                raise
        return wanted - folders.keys()

    def _keep_witness(self) -> None:
        with _through(self._folder.writing(), WITNESS) as top:
            self._witness.keep(top)

    def _unlink(self, names: list[Name]) -> None:
        with _through(self._folder.writing(), _THE_FOLDER) as top:
            for container in {name.container for name in names}:
                with (
                    contextlib.suppress(FileNotFoundError),
                    self._folder.subfolder(top, container.hex) as folder,
                ):
                    for name in names:
                        if name.container == container:
                            with contextlib.suppress(FileNotFoundError):
                                os.unlink(name.object.hex, dir_fd=folder)
                    self._folder.sync(folder)

    def _unlink_all(self, container: UUID) -> None:
        with (
            _through(self._folder.writing(), container.hex) as top,
            contextlib.suppress(FileNotFoundError),
        ):
            with self._folder.subfolder(top, container.hex) as folder:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        os.unlink(entry.name, dir_fd=folder)
                self._folder.sync(folder)
            os.rmdir(container.hex, dir_fd=top)
            self._folder.sync(top)


@contextmanager
def stored_alone(folder: Path, keys: Keys, *, encrypted: bool) -> Iterator[SealedFiles]:
    """The sealed files of a state that no daemon holds, to be read within the block. Blocks on the disk.

    Raises as `DataFolder.open`.
    """
    with DataFolder(folder, encrypted=encrypted) as opened:
        yield SealedFiles(opened, keys, Registry())


@contextmanager
def _through(way: AbstractContextManager[int], what: str) -> Iterator[int]:
    """`way` to the data folder, which lets errors pass that say nothing of the volume: they are of `what`."""
    try:
        with way as top:
            yield top
    except OSError as error:
        raise StorageFailed(f"{what}: {error.strerror}") from error


def _path(name: Name) -> str:
    return f"{name.container.hex}/{name.object.hex}"


def _open(path: str, top: int) -> int:
    try:
        return os.open(path, _UNTOLD, dir_fd=top)
    except PermissionError:  # of another user's file the time of a read is noted: `fetch` then waits aside
        return os.open(path, _READ, dir_fd=top)


def _check_plain(fd: int, name: Name) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise SealBroken(f"object {name.object} is no plain file")


def _ids(folder: int) -> list[UUID]:
    """What is named by an id in a folder."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(ValueError):
                found.append(UUID(hex=entry.name))
    return found


def _sealed(sealer: Sealer, content: Sequence[Buffer]) -> Iterator[bytes]:
    """The bytes of a sealed file, in pieces."""
    yield sealer.header
    for part in content:
        view = memoryview(part)
        for start in range(0, len(view), _PIECE):
            yield sealer.update(view[start : start + _PIECE])
    yield sealer.finish()


def _write(fd: int, pieces: list[bytes]) -> None:
    """All of them, in one call unless the kernel takes less."""
    written = os.writev(fd, pieces)
    if written < sum(map(len, pieces)):
        write_whole(fd, memoryview(b"".join(pieces))[written:])
