"""A dataset on this machine (a folder, a zip file or a tar) as the tar that an import takes.

Everything is judged by its name and its size before the first byte is sent, and read when it is due: nothing
is unpacked to a disk, and a piece of one file is held at a time.
"""

import asyncio
import os
import stat
import zipfile
from collections.abc import AsyncIterator, Callable, Container, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from appliance.datasets.interchange import zips
from appliance.datasets.interchange.archive import (
    END,
    MOST_MEMBERS,
    Archive,
    checked,
    header,
    padding,
    shown,
)
from appliance.datasets.interchange.formats import kind_of
from appliance.datasets.interchange.importing import MOST_ANNOTATIONS, MOST_IMAGE
from appliance.datasets.sources import Source
from appliance.errors import InvalidInput, TooLarge

_PIECE = 1 << 20
_MOST_RATIO = 300  # of a packed file to what it unpacks to, beyond a few MiB: images hardly shrink at all
_UNSUSPICIOUS = 16 << 20

Open = Callable[[], AbstractContextManager[IO[bytes]]]
Progress = Callable[[int, int], None]
"""Called with the count of files and bytes that were sent, or passed over because they are held."""


@dataclass(frozen=True, slots=True)
class File:
    """A file that is to be sent, by its name in the archive."""

    name: str
    size: int
    open: Open


@dataclass(slots=True)
class Found:
    """What there is to send, in the order of its names; `ignored` files are no part of a dataset."""

    files: list[File]
    ignored: int = 0

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def of_folder(folder: Path) -> Found:
    """The files below a folder. Links to files within it are followed.

    Raises InvalidInput for links that leave it, links to folders, devices, pipes, and names that no archive
    may have.
    """
    found = Found([])
    root = folder.resolve()
    for top, folders, names in os.walk(folder, onerror=_raise_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if (Path(top) / name).is_symlink():
                raise InvalidInput(f"{shown(str(Path(top) / name))}: links to folders are not followed")
        for name in sorted(names):
            path = Path(top) / name
            relative = checked(path.relative_to(folder).as_posix())
            if kind_of(relative) == "other":
                found.ignored += 1
            else:
                found.files.append(_file(path, root, relative))
    found.files.sort(key=lambda file: file.name)
    return found


def _file(path: Path, root: Path, name: str) -> File:
    try:
        target = path.resolve(strict=True)
        status = target.stat()
    except (OSError, RuntimeError) as error:
        raise InvalidInput(f"{shown(str(path))}: cannot be read: {error}") from None
    if not target.is_relative_to(root):
        raise InvalidInput(f"{shown(str(path))}: the link leads out of the folder")
    if not stat.S_ISREG(status.st_mode):
        raise InvalidInput(f"{shown(str(path))}: is no plain file")
    return File(name, status.st_size, partial(_opened, target))


def _opened(path: Path) -> IO[bytes]:
    try:
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise InvalidInput(f"{shown(str(path))}: cannot be read: {error.strerror}") from None


def of_zip(archive: zipfile.ZipFile, size: int) -> Found:
    """The files in a zip file of `size` bytes, which stays open.

    Raises InvalidInput for encrypted ones, links, and names that no archive may have; TooLarge for what
    unpacks to more than an image or a description may have.
    """
    members = [one for one in archive.infolist() if not one.filename.endswith("/")]
    if len(members) > MOST_MEMBERS:
        raise TooLarge(f"the zip file has more than {MOST_MEMBERS} members")
    if sum(one.compress_size for one in members) > size:
        raise InvalidInput("the members of the zip file overlap: it is made to unpack to more than it holds")
    found, names = Found([]), set[str]()
    for member in members:
        name = checked(member.filename.replace("\\", "/"))  # some tools of Windows write these
        if name in names:
            raise InvalidInput(f"{shown(name)}: two members have this name")
        names.add(name)
        if (kind := kind_of(name)) == "other":
            found.ignored += 1
            continue
        if zips.is_encrypted(member):
            raise InvalidInput(f"{shown(name)}: is encrypted: unpack the zip file and import the folder")
        if stat.S_IFMT(member.external_attr >> 16) not in {0, stat.S_IFREG}:
            raise InvalidInput(f"{shown(name)}: is no plain file")
        most = MOST_IMAGE if kind == "image" else MOST_ANNOTATIONS
        if member.file_size > max(most, _UNSUSPICIOUS) or (
            member.file_size > _UNSUSPICIOUS and member.file_size > _MOST_RATIO * member.compress_size
        ):
            raise TooLarge(f"{shown(name)}: unpacks to {member.file_size} bytes, which it cannot be meant to")
        found.files.append(File(name, member.file_size, partial(archive.open, member)))
    found.files.sort(key=lambda file: file.name)
    return found


async def as_tar(found: Found, held: Container[bytes], progress: Progress) -> AsyncIterator[bytes]:
    """The tar of these files; one whose digest is `held` goes without a byte (see `Source.digest`).

    Raises InvalidInput when a file is not as it was found.
    """
    count = size = 0
    for file in found.files:
        known = Source(file.name, file.size).digest in held
        yield header(file.name, 0 if known else file.size)
        if not known:
            async for piece in _pieces(file):
                yield piece
            yield padding(file.size)
        count, size = count + 1, size + file.size
        progress(count, size)
    yield END


async def again_as_tar(
    pieces: AsyncIterator[bytes], held: Container[bytes], progress: Progress
) -> AsyncIterator[bytes]:
    """A tar as `as_tar` would send its files; of those that are no part of a dataset, the names alone.

    Raises as `Archive`, and TooLarge for what is larger than an image or a description may be.
    """
    count = size = 0
    async for member in Archive(pieces):
        kind = kind_of(member.name)
        if kind == "other" or Source(member.name, member.size).digest in held:
            yield header(member.name, 0)
        elif member.size > (MOST_IMAGE if kind == "image" else MOST_ANNOTATIONS):
            raise TooLarge(f"{shown(member.name)}: {member.size} bytes are more than it may have")
        else:
            yield header(member.name, member.size)
            async for piece in member.pieces():
                yield bytes(piece)
            yield padding(member.size)
        count, size = count + 1, size + member.size
        progress(count, size)
    yield END


async def of_file(path: Path) -> AsyncIterator[bytes]:
    """The bytes of a file on this machine."""
    with _opened(path) as opened:
        while piece := await asyncio.to_thread(opened.read, _PIECE):
            yield piece


async def _pieces(file: File) -> AsyncIterator[bytes]:
    rest = file.size
    with zips.reading(file.name), file.open() as opened:
        while piece := await asyncio.to_thread(opened.read, min(_PIECE, rest + 1)):
            rest -= len(piece)
            if rest < 0:
                break
            yield piece
    if rest:
        raise InvalidInput(f"{shown(file.name)}: changed while it was read: run the import again")


def _raise_unreadable(error: OSError) -> Iterator[None]:
    raise InvalidInput(f"{shown(str(error.filename))}: cannot be read: {error.strerror}")
