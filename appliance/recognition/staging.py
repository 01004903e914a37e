"""A bundle on its way in: its files as a stream, written as they come, and verified when all are there."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from appliance.errors import InvalidInput, StorageFailed
from appliance.recognition import manifest

P = ParamSpec("P")
T = TypeVar("T")

_PIECE = 1 << 20
_EXPORTED = "config.json"  # what Hugging Face's tools leave beside a model

# Each name with its content in pieces; a content is read to its end before the next name is asked for.
Files = AsyncIterable[tuple[str, AsyncIterable[bytes]]]


async def from_path(path: Path, name: str | None = None) -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
    """The files of a bundle, or of the bundle that another tool's export becomes (see `exports.convert`).

    Raises what `from_folder` and `exports.convert` raise, InvalidInput too for a name given to a bundle,
    which has one.
    """
    if path.suffix != ".onnx" and not (path / _EXPORTED).exists():
        if name is not None:
            raise InvalidInput(f"{path}: --name is for exports; a bundle has a name")
        async for file, content in from_folder(path):
            yield file, content
        return
    # Late: a bundle is installed without the libraries that take models apart.
    from appliance.recognition import exports  # noqa: PLC0415

    for file, whole in (await asyncio.to_thread(exports.convert, path, name)).items():
        yield file, _pieces(whole)


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    view = memoryview(content)
    for start in range(0, len(view), _PIECE):
        yield bytes(view[start : start + _PIECE])


async def from_folder(path: Path) -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
    """The files of a bundle on this machine. Raises InvalidInput, `path` named, for what no bundle holds.

    A content is opened when it is read, so the names may be collected before.
    """
    try:
        names = await asyncio.to_thread(manifest.files, path)
    except InvalidInput as refusal:
        raise InvalidInput(f"{path}: {refusal}") from refusal
    for name in names:
        yield name, _content(path, name)


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
