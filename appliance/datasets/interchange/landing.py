"""Where an export lands on this machine: a new folder, tar or zip file that is there when it is whole."""

import contextlib
import os
import shutil
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO

from appliance.datasets.interchange.archive import MOST_PART, Archive, Member
from appliance.errors import Conflict, StorageFailed
from appliance.volume import create, publish_tree, sync_folder

_PARTIAL = ".partial"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Progress = Callable[[int, int], None]
"""Called with the count of files and bytes that are there."""


async def land(pieces: AsyncIterator[bytes], target: Path, progress: Progress) -> int:
    """Write the export that `pieces` are as `target`: a tar or a zip file by its ending, else a folder.

    How many files it has. Everything is for the user alone (0600), and durable on return. Until then it is
    called TARGET.partial (of a name that is too long for that the start), which is removed when this fails.
    Blocks on the disk. Raises Conflict where either exists, StorageFailed, InvalidInput for what is no
    archive of ours, and what `pieces` raises.
    """
    with _landing(target) as partial:
        if target.suffix.lower() == ".tar":
            return await _as_tar(pieces, partial, target, progress)
        if target.suffix.lower() == ".zip":
            return await _as_zip(pieces, partial, target, progress)
        return await _as_folder(pieces, partial, target, progress)


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


async def _as_tar(pieces: AsyncIterator[bytes], partial: Path, target: Path, progress: Progress) -> int:
    count = size = 0
    with os.fdopen(create(partial), "wb") as file:

        async def copied() -> AsyncIterator[bytes]:
            async for piece in pieces:
                file.write(piece)
                yield piece

        async for member in Archive(copied()):
            count, size = count + 1, size + member.size
            progress(count, size)
        _publish(file, partial, target)
    return count


async def _as_zip(pieces: AsyncIterator[bytes], partial: Path, target: Path, progress: Progress) -> int:
    count = size = 0
    with os.fdopen(create(partial), "wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:  # images do not shrink
            async for member in Archive(pieces):
                info = zipfile.ZipInfo(member.name)
                info.external_attr = 0o600 << 16
                with archive.open(info, "w", force_zip64=True) as opened:
                    async for piece in member.pieces():
                        opened.write(piece)
                count, size = count + 1, size + member.size
                progress(count, size)
        _publish(file, partial, target)
    return count


async def _as_folder(pieces: AsyncIterator[bytes], partial: Path, target: Path, progress: Progress) -> int:
    count = size = 0
    root = _made(partial)
    try:
        async for member in Archive(pieces):
            await _write(root, member)
            count, size = count + 1, size + member.size
            progress(count, size)
    finally:
        os.close(root)
    publish_tree(partial, target)
    return count


def _made(folder: Path) -> int:
    folder.mkdir(mode=0o700)
    return os.open(folder, _FOLDER)


async def _write(root: int, member: Member) -> None:
    """A file below the folder, through descriptors alone: no name that is there already leads elsewhere."""
    *folders, name = member.name.split("/")
    with contextlib.ExitStack() as stack:
        folder = root
        for part in folders:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o700, dir_fd=folder)
            folder = os.open(part, _FOLDER, dir_fd=folder)
            stack.callback(os.close, folder)
        file = stack.enter_context(os.fdopen(create(name, dir_fd=folder), "wb"))
        async for piece in member.pieces():
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
