"""Where an export lands on this machine: a new folder, tar or zip file that is there when it is whole."""

import contextlib
import csv
import io
import os
import shutil
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO

from appliance.datasets.interchange.archive import MOST_PART, Archive
from appliance.datasets.interchange.formats import LEFT_OUT
from appliance.errors import Conflict, StorageFailed
from appliance.volume import create, publish_tree, sync_folder

_PARTIAL = ".partial"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Progress = Callable[[int, int], None]
"""Called with the count of files and bytes that are there."""


class Landed:
    """An export as it lands: how many files it has, and which images are not in it, each with the reason."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._size = 0
        self.files = 0
        self.left_out: list[tuple[str, str]] = []

    async def members(
        self, pieces: AsyncIterator[bytes]
    ) -> AsyncIterator[tuple[str, AsyncIterator[bytes | memoryview]]]:
        """The files of the tar that `pieces` are: their names and their content, which may be passed over."""
        async for member in Archive(pieces):
            content: AsyncIterator[bytes | memoryview] = member.pieces()
            if member.name == LEFT_OUT:
                table = bytes(await member.read())
                self.left_out = _read(table)
                content = _at_once(table)
            yield member.name, content
            self.files, self._size = self.files + 1, self._size + member.size
            self._progress(self.files, self._size)


def _read(table: bytes) -> list[tuple[str, str]]:
    _, *rows = csv.reader(io.StringIO(table.decode(), newline=""))
    return [(name, reason) for name, reason in rows]


async def _at_once(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def land(pieces: AsyncIterator[bytes], target: Path, progress: Progress) -> Landed:
    """Write the export that `pieces` are as `target`: a tar or a zip file by its ending, else a folder.

    Everything is for the user alone (0600), and durable on return. Until then it is
    called TARGET.partial (of a name that is too long for that the start), which is removed when this fails.
    Blocks on the disk. Raises Conflict where either exists, StorageFailed, InvalidInput for what is no
    archive of ours, and what `pieces` raises.
    """
    landed = Landed(progress)
    write = {".tar": _as_tar, ".zip": _as_zip}.get(target.suffix.lower(), _as_folder)
    with _landing(target) as partial:
        await write(pieces, partial, target, landed)
    return landed


async def land_whole(pieces: AsyncIterator[bytes], target: Path, progress: Progress) -> int:
    """As `land`, but `pieces` are the file itself, whatever it holds; how many bytes it has."""
    size = 0
    with _landing(target) as partial, os.fdopen(create(partial), "wb") as file:
        async for piece in pieces:
            file.write(piece)
            size += len(piece)
            progress(0, size)
        _publish(file, partial, target)
    return size


@contextlib.contextmanager
def _landing(target: Path) -> Iterator[Path]:
    """What the target is called until it is whole."""
    _check_free(target)
    name = os.fsdecode(os.fsencode(target.name)[: MOST_PART - len(_PARTIAL)])
    partial = target.with_name(name + _PARTIAL)
    _check_free(partial)
    try:
        yield partial
    except OSError as error:
        raise StorageFailed(f"{target}: {error.strerror}") from error
    finally:
        _remove(partial)


def _check_free(path: Path) -> None:
    try:
        path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageFailed(f"{path}: {error.strerror}") from error
    raise Conflict(f"{path} exists already: remove it, or choose another name")


async def _as_tar(pieces: AsyncIterator[bytes], partial: Path, target: Path, landed: Landed) -> None:
    with os.fdopen(create(partial), "wb") as file:

        async def copied() -> AsyncIterator[bytes]:
            async for piece in pieces:
                file.write(piece)
                yield piece

        async for _ in landed.members(copied()):
            pass
        _publish(file, partial, target)


async def _as_zip(pieces: AsyncIterator[bytes], partial: Path, target: Path, landed: Landed) -> None:
    with os.fdopen(create(partial), "wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:  # images do not shrink
            async for name, content in landed.members(pieces):
                info = zipfile.ZipInfo(name)
                info.external_attr = 0o600 << 16
                with archive.open(info, "w", force_zip64=True) as opened:
                    async for piece in content:
                        opened.write(piece)
        _publish(file, partial, target)


async def _as_folder(pieces: AsyncIterator[bytes], partial: Path, target: Path, landed: Landed) -> None:
    root = _made(partial)
    try:
        async for name, content in landed.members(pieces):
            await _write(root, name, content)
    finally:
        os.close(root)
    publish_tree(partial, target)


def _made(folder: Path) -> int:
    folder.mkdir(mode=0o700)
    return os.open(folder, _FOLDER)


async def _write(root: int, path: str, content: AsyncIterator[bytes | memoryview]) -> None:
    """A file below the folder, through descriptors alone: no name that is there already leads elsewhere."""
    *folders, name = path.split("/")
    with contextlib.ExitStack() as stack:
        folder = root
        for part in folders:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o700, dir_fd=folder)
            folder = os.open(part, _FOLDER, dir_fd=folder)
            stack.callback(os.close, folder)
        file = stack.enter_context(os.fdopen(create(name, dir_fd=folder), "wb"))
        async for piece in content:
            file.write(piece)


def _publish(file: IO[bytes], partial: Path, target: Path) -> None:
    """Give a whole file its name, unless somebody else has taken that meanwhile."""
    file.flush()
    os.fsync(file.fileno())
    try:
        os.link(partial, target)
    except FileExistsError:
        raise Conflict(f"{target} exists already") from None
    except OSError:  # a filesystem without links
        partial.rename(target)
    sync_folder(target.parent)


def _remove(partial: Path) -> None:
    with contextlib.suppress(OSError):
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)
