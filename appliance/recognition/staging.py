"""A bundle on its way in: its files as a stream, written as they come, and verified when all are there."""

import asyncio
import contextlib
import tarfile
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO, ParamSpec, TypeVar

import zstandard

from appliance.errors import InvalidInput, StorageFailed
from appliance.recognition import manifest

P = ParamSpec("P")
T = TypeVar("T")

_PIECE = 1 << 20
_WINDOW = 1 << 27  # what `zstd --long` needs: the most memory that an archive may ask for
_EXPORTED = "config.json"  # what Hugging Face's tools leave beside a model

# Each name with its content in pieces; a content is read to its end before the next name is asked for.
Files = AsyncIterable[tuple[str, AsyncIterable[bytes]]]


async def from_path(path: Path, name: str | None = None) -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
    """The files of a bundle (folder or archive), or of what another tool's export becomes (see `exports`).

    Raises what `from_folder`, `from_archive` and `from_export` raise, InvalidInput too for a name given to a
    bundle, which has one.
    """
    if _is_archive(path):
        if name is not None:
            raise InvalidInput(f"{path}: --name is for exports; a bundle has a name")
        async for file, content in from_archive(path):
            yield file, content
        return
    if path.suffix != ".onnx" and not (path / _EXPORTED).exists():
        if name is not None:
            raise InvalidInput(f"{path}: --name is for exports; a bundle has a name")
        async for file, content in from_folder(path):
            yield file, content
        return
    # Late: a bundle is installed without the libraries that take models apart.
    from appliance.recognition.conversion import from_export  # noqa: PLC0415

    async for file, content in from_export(path, name):
        yield file, content


async def from_folder(path: Path) -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
    """The files of a bundle on this machine. Raises InvalidInput, `path` named, for what no bundle holds,
    before the first file is handed on; a file that is too large only then is refused as it is read.

    A content is opened when it is read, so the names may be collected before.
    """
    try:
        names = await asyncio.to_thread(_within_limits, path)
    except InvalidInput as refusal:
        raise InvalidInput(f"{path}: {refusal}") from refusal
    for name in names:
        yield name, _content(path, name)


def _within_limits(folder: Path) -> list[str]:
    """The names of the files, after a look at how large they are: a model may be on its way for minutes."""
    names = manifest.files(folder)
    for name in names:
        try:
            size = (folder / name).lstat().st_size
        except OSError as error:
            raise InvalidInput(f"{name} cannot be read: {error.strerror}") from error
        if size > manifest.limit(name):
            raise InvalidInput(f"{name} has more than {manifest.limit(name)} bytes")
    return names


async def from_archive(path: Path) -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
    """The files of a bundle in a .tar or .tar.zst, read in one pass; nothing is unpacked to a disk.

    Its members may lie under `./` or in one folder. Raises InvalidInput for anything that is no plain file of
    a bundle, links and sparse files included, and for more bytes than such a file may have.
    """
    with contextlib.ExitStack() as stack, _refusing(path):
        stream = stack.enter_context(path.open("rb"))
        if path.suffix != ".tar":
            unpacked = zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(stream)
            archive = stack.enter_context(tarfile.open(fileobj=unpacked, mode="r|"))
        else:
            archive = stack.enter_context(tarfile.open(fileobj=stream, mode="r|"))
        members = 0
        while (member := await asyncio.to_thread(archive.next)) is not None:
            members += 1
            if members > 2 * manifest.MOST_FILES:
                raise InvalidInput(f"{path}: more than {manifest.MOST_FILES} files")
            if member.isdir():
                continue
            name = _member(member)
            if not member.isreg() or member.issparse():
                raise InvalidInput(f"{path}: {name} is not a plain file")
            if member.size > manifest.limit(name):
                raise InvalidInput(f"{path}: {name} has more than {manifest.limit(name)} bytes")
            content = archive.extractfile(member)
            assert content is not None
            yield name, _read(path, content)


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read: {error.strerror or error}") from error
    except (tarfile.TarError, zstandard.ZstdError, EOFError) as error:
        raise InvalidInput(f"{path}: is no archive of a bundle: {error}") from error


def _is_archive(path: Path) -> bool:
    return path.name.endswith((".tar", ".tar.zst", ".tzst"))


def _member(member: tarfile.TarInfo) -> str:
    parts = [part for part in member.name.split("/") if part != "."]
    if len(parts) > 1 and parts[0] != manifest.LICENCES:
        parts = parts[1:]
    return "/".join(parts)


async def _read(path: Path, content: IO[bytes]) -> AsyncIterator[bytes]:
    with _refusing(path):
        while piece := await asyncio.to_thread(content.read, _PIECE):
            yield piece


async def receive(files: Files, staged: Path) -> manifest.Verified:
    """Write the files into the new folder `staged` and verify them there. One piece is held at a time.

    Raises InvalidInput with the first reason found, StorageFailed, and whatever `files` raises; the folder is
    then left as it is.
    """
    await _on_disk(staged.parent, (staged / manifest.LICENCES).mkdir, mode=0o700, parents=True)
    received: set[str] = set()
    async for name, content in files:
        limit = manifest.limit(name)
        if name in received:
            raise InvalidInput(f"{name} came twice")
        received.add(name)
        if len(received) > manifest.MOST_FILES:
            raise InvalidInput(f"more than {manifest.MOST_FILES} files")
        size = 0
        file = await _on_disk(staged.parent, (staged / name).open, "xb")
        try:
            async for piece in content:
                size += len(piece)
                if size > limit:
                    raise InvalidInput(f"{name} has more than {limit} bytes")
                await _on_disk(staged.parent, file.write, piece)
        finally:
            await _on_disk(staged.parent, file.close)
    return await asyncio.to_thread(manifest.verify, staged)


async def _content(folder: Path, name: str) -> AsyncIterator[bytes]:
    try:
        pieces = manifest.chunks(folder, name)
        while piece := await asyncio.to_thread(next, pieces, b""):
            yield piece
    except InvalidInput as refusal:
        raise InvalidInput(f"{folder}: {refusal}") from refusal


async def _on_disk(folder: Path, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return await asyncio.to_thread(act, *args, **kwargs)
    except OSError as error:
        raise StorageFailed(f"{folder}: {error.strerror}") from error
