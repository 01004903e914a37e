"""Durable changes to files and folders: after a crash there is the old or the new, never a mixture."""

import ctypes
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from appliance.errors import StorageFailed

_REMOVED = ".removed"


def write_atomically(path: Path, data: bytes, mode: int = 0o600, *, dir_fd: int | None = None) -> None:
    """Replace the content of `path`: after a crash there is the old content or the new, never a mixture.

    With `dir_fd` the file is in the folder of that descriptor, wherever its path leads by now. Durable on
    return. Raises StorageFailed, which leaves the old content.
    """
    file = AtomicFile(path, mode, dir_fd=dir_fd)
    try:
        file.write(data)
        file.publish()
    finally:
        file.close()


class AtomicFile:
    """The content of `path` to be, written piece by piece: `write_atomically` for what is large.

    Until `publish` has returned, the old content is there after a crash. Raises StorageFailed.
    """

    def __init__(self, path: Path, mode: int = 0o600, *, dir_fd: int | None = None) -> None:
        self._path = path
        self._draft = f".{path.name}.{os.urandom(6).hex()}.draft"
        with failing_as_storage(path), ExitStack() as undo:
            self._folder = undo.enter_context(_folder(path.parent, dir_fd))
            self._fd = create(self._draft, dir_fd=self._folder)
            self._undo = undo.pop_all()
            self._undo.callback(self._discard)
            try:
                os.fchmod(self._fd, mode)
            except BaseException:
                self.close()
                raise

    def write(self, data: bytes | memoryview) -> None:
        with failing_as_storage(self._path):
            write_whole(self._fd, data)

    def publish(self) -> None:
        """Durable on return, under its name."""
        with failing_as_storage(self._path):
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1
            os.replace(self._draft, self._path.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self._draft = ""
            os.fsync(self._folder)

    def close(self) -> None:
        """Needed in the end; removes what was not published. Twice is as good as once."""
        self._undo.close()

    def _discard(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._draft:
            with suppress(OSError):
                os.unlink(self._draft, dir_fd=self._folder)


def create(path: Path | str, *, dir_fd: int | None = None) -> int:
    """A descriptor to write a new file by, for this user alone. Raises OSError, also when one is there."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o600, dir_fd=dir_fd)


def write_whole(fd: int, data: bytes | memoryview) -> None:
    """Write all of it, however little the kernel takes at once. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


@contextmanager
def failing_as_storage(path: Path) -> Iterator[None]:
    """Within the block an OSError is a StorageFailed that names its file, or `path` where that says more."""
    try:
        yield
    except OSError as error:
        absolute = isinstance(error.filename, str) and Path(error.filename).is_absolute()
        raise StorageFailed(f"{error.filename if absolute else path}: {error.strerror}") from error


@contextmanager
def _folder(path: Path, dir_fd: int | None) -> Iterator[int]:
    if dir_fd is not None:
        yield dir_fd
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def remove_drafts(path: Path) -> None:
    """Remove what crashes left of `write_atomically`, durably. Raises StorageFailed."""
    with failing_as_storage(path):
        left = list(path.parent.glob(f".{path.name}.*.draft"))
        for draft in left:
            draft.unlink(missing_ok=True)
        if left:
            sync_folder(path.parent)


def publish_tree(staged: Path, target: Path) -> None:
    """Make every file and folder of `staged` durable and give it the name `target`, on the same volume.

    After a crash `target` is either absent or whole. Raises StorageFailed when `target` exists, when the
    tree holds anything but files and folders, and for I/O errors; `staged` then stays where it is.
    """
    with failing_as_storage(target):
        if target.exists() or target.is_symlink():
            raise StorageFailed(f"{target} exists already")
        for folder, _, _ in os.walk(staged, topdown=False, onerror=_raise):
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_file(follow_symlinks=False):
                        _sync(Path(entry))
                    elif not entry.is_dir(follow_symlinks=False):
                        raise StorageFailed(f"{entry.path} is neither a file nor a folder")
            sync_folder(Path(folder))
        staged.rename(target)
        sync_folder(target.parent)
        if staged.parent != target.parent:
            sync_folder(staged.parent)


def remove_tree(path: Path) -> None:
    """Remove a folder with all it holds, or a file; symbolic links go, what they point to stays. Absent:
    nothing to do.

    The tree first loses its name, durably, so that a crash cannot leave half of it under that name; what a
    crash leaves is called `.NAME.<random>.removed`. Raises StorageFailed.
    """
    doomed = path if is_removed(path) else path.with_name(f".{path.name}.{os.urandom(6).hex()}{_REMOVED}")
    with failing_as_storage(path):
        try:
            path.rename(doomed)
        except FileNotFoundError:
            return
        sync_folder(path.parent)
        if not stat.S_ISDIR(doomed.lstat().st_mode):
            doomed.unlink()
            sync_folder(path.parent)
            return
        for _, folders, names, fd in os.fwalk(doomed, topdown=False, onerror=_raise):
            for name in names:
                os.unlink(name, dir_fd=fd)
            for name in folders:
                try:
                    os.rmdir(name, dir_fd=fd)
                except NotADirectoryError:  # a symbolic link to a folder
                    os.unlink(name, dir_fd=fd)
        doomed.rmdir()
        sync_folder(path.parent)


def is_removed(path: Path) -> bool:
    """Whether a crash left it while it was removed: going on with that is what remains to be done."""
    return path.name.startswith(".") and path.name.endswith(_REMOVED)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable. Raises OSError."""
    _sync(folder)


def sync_filesystem(folder: Path | int) -> None:
    """Make everything durable that was written so far to the filesystem of `folder`, a path or a descriptor.

    For many files that costs less than a sync of each; lost writes are told since Linux 5.8. Raises OSError.
    """
    fd = folder if isinstance(folder, int) else os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:  # syncfs(2), which the standard library lacks
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        if fd != folder:
            os.close(fd)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _raise(error: OSError) -> None:
    raise error
