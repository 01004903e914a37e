"""Has an export made into a bundle in a process of its own, which is locked in and then ends.

Its model and settings are a stranger's, and whoever installs them is often root: what their parsers can be
made to do must not happen there. What goes in and what comes out lies in anonymous memory, and in no file.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec

from appliance.background import uninterrupted
from appliance.channel import Channel, Limits
from appliance.errors import InvalidInput, StorageFailed, WorkerLost
from appliance.recognition import exports, manifest
from appliance.workers import Memory, Worker

# Of the processor; by the clock more, for a machine that is busy with serving.
CPU_SECONDS, SECONDS = 120, 600.0
# Python with its libraries; and the files as they came, the model parsed, as the checker's, and made anew.
_BASE_BYTES, _COPIES = 2 * 1024**3, 6
# What a bundle has more than the export: a manifest, and some nodes of the graph.
_ROOM = 16 * 1024**2
_PIECE = 1024**2


class _Contents(msgspec.Struct, frozen=True, array_like=True):
    """What lies in the memory, one after the other: the names of files with their sizes, and of what."""

    bundle: str
    files: list[tuple[str, int]]

    def places(self) -> Iterator[tuple[str, int, int]]:
        """The name of each file, and where it begins and ends."""
        ends = list(accumulate(size for _, size in self.files))
        for (name, size), end in zip(self.files, ends, strict=True):
            yield name, end - size, end


async def from_export(
    path: Path, name: str | None = None, *, target: str = f"{__name__}:main", cpu_seconds: int = CPU_SECONDS
) -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
    """The files of the bundle that `exports.convert` makes of what lies at `path`.

    Raises InvalidInput, `path` named, with the reason of a refusal, which also is that its conversion
    crashed or took too much; StorageFailed, and WorkerRefused where no process can be locked in.
    """
    with contextlib.ExitStack() as stack:
        with _naming(path):
            called = exports.bundle_name(path, name)
            files = await asyncio.to_thread(exports.gather, path)
            memory = Memory(sum(file.size for file in files) + _ROOM)
            stack.callback(memory.close)
            await uninterrupted(asyncio.to_thread(_fill, memory, files))
            given = _Contents(called, [(file.name, file.size) for file in files])
            made = await _converted(memory, given, target, cpu_seconds)
        for file, start, end in made.places():
            yield file, _pieces(memory, start, end)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageFailed(f"{path}: {error.strerror}") from error
    except InvalidInput as refusal:
        raise InvalidInput(f"{path}: {refusal}") from refusal


def _fill(memory: Memory, files: Sequence[exports.File]) -> None:
    start = 0
    for file in files:
        with file.path.open("rb") as content, memory.view[start : start + file.size] as view:
            if content.readinto(view) < file.size:
                raise InvalidInput(f"{file.path.name} became shorter while it was read")
        start += file.size


async def _converted(memory: Memory, given: _Contents, target: str, cpu_seconds: int) -> _Contents:
    limits = Limits(
        address_space_bytes=_BASE_BYTES + _COPIES * memory.size,
        cpu_seconds=cpu_seconds,
        file_bytes=0,
        nice=5,
        confined=True,
    )
    try:
        async with Worker("model conversion", target, {}, memories=(memory,), limits=limits) as worker:
            answer = await worker.call(msgspec.msgpack.encode(given), SECONDS)
        made = msgspec.msgpack.decode(answer, type=_Contents)
    except (WorkerLost, msgspec.DecodeError) as loss:
        limit = f"{cpu_seconds} s of the processor, or more memory than a conversion has"
        raise InvalidInput(f"the export crashed its conversion, or took {limit}") from loss
    # It may be in a stranger's hands: what it says is believed as far as it can be true.
    for name, start, end in made.places():
        if not 0 <= start <= end <= memory.size or end - start > manifest.limit(name):
            raise InvalidInput(f"its conversion told of {name} with more bytes than there can be")
    return made


async def _pieces(memory: Memory, start: int, end: int) -> AsyncIterator[bytes]:
    for first in range(start, end, _PIECE):
        yield bytes(memory.view[first : min(first + _PIECE, end)])


def main(channel: Channel, settings: dict[str, Any]) -> None:  # noqa: ARG001 - every child is called so
    """The conversion: answers one request, about the files in its memory, in whose place it puts others."""
    channel.ready({})
    while (request := channel.receive()) is not None:
        try:
            made = _convert(channel.memories[0], msgspec.msgpack.decode(request[1], type=_Contents))
        except InvalidInput as refusal:
            channel.refuse(request[0], refusal)
        except MemoryError:
            channel.refuse(request[0], InvalidInput("it needs more memory than its conversion has"))
        else:
            channel.send(request[0], msgspec.msgpack.encode(made))


def _convert(memory: memoryview, given: _Contents) -> _Contents:
    files = exports.convert(given.bundle, {name: memory[start:end] for name, start, end in given.places()})
    made = _Contents(given.bundle, [(name, len(content)) for name, content in files.items()])
    for name, start, end in made.places():
        if end > len(memory):
            raise InvalidInput(f"the bundle's {name} would be much larger than what it is made of")
        memory[start:end] = files[name]
    return made
