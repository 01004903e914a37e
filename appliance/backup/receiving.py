"""From the stream of a backup to its folder."""

from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.backup.contents import Absent, Header
from appliance.backup.destination import Destination
from appliance.backup.wire import Kind, frames
from appliance.errors import ApplianceError, BackupInvalid

Progress = Callable[[str, int, int], None]
"""What is done, how many bytes of it, and of how many; 0 of 0 where nobody knows."""

_DIGEST = 32


class BackupFailed(ApplianceError):
    """The appliance could not go on with a backup: its own words."""


@dataclass(frozen=True, slots=True)
class Received:
    """A backup that is published; `absent` names the images that the appliance could not give."""

    header: Header
    folder: Path
    keyring: Path
    tombstones: Path
    files: int
    bytes: int
    absent: list[str]
    removed: list[Path]


async def receive(
    pieces: AsyncIterable[bytes], folder: Path, keyrings: Path, *, keep_days: float, progress: Progress
) -> Received:
    """Write a backup into `folder` and its keyring into `keyrings`, and give it its name when all is proven.

    Blocks on the disk. Of the keyrings there only those younger than `keep_days`, and this one, stay. Raises
    BackupInvalid, BackupFailed, Conflict, StorageFailed: then nothing is there that looks like a backup.
    """
    arriving = frames(pieces)
    header = await _header(arriving)
    with Destination(folder, keyrings, header) as destination:
        ended = False
        async for kind, content in arriving:
            if kind is Kind.FAILED:
                raise BackupFailed(content.decode(errors="replace"))
            _take(destination, kind, content)
            progress("copying", destination.bytes, header.bytes)
            ended = kind is Kind.END
        if not ended:
            raise BackupInvalid(["the daemon went away before the backup was whole"])
        removed = destination.publish(keep_days, lambda what: progress(what, 0, 0))
        return Received(
            header,
            destination.target,
            destination.keyring,
            destination.tombstones,
            destination.files,
            destination.bytes,
            destination.absent,
            removed,
        )


async def _header(arriving: AsyncIterator[tuple[Kind, bytes]]) -> Header:
    try:
        kind, content = await anext(arriving)
    except StopAsyncIteration:
        raise BackupFailed("the daemon sent nothing") from None
    if kind is Kind.FAILED:
        raise BackupFailed(content.decode(errors="replace"))
    try:
        return msgspec.json.decode(content, type=Header)
    except msgspec.MsgspecError:
        raise BackupInvalid(["the daemon sends something else than a backup: another version?"]) from None


def _take(destination: Destination, kind: Kind, content: bytes) -> None:
    match kind:
        case Kind.DATA:
            destination.data(content)
        case Kind.FILE:
            destination.file(content.decode("ascii", "replace"))
        case Kind.APART:
            destination.apart(content.decode("ascii", "replace"))
        case Kind.ABSENT:
            reason, _, path = content.decode("ascii", "replace").partition(" ")
            destination.leave_out(Absent(path, "damaged" if reason == "damaged" else "missing"))
        case Kind.END if len(content) == 2 * _DIGEST:
            destination.end(content[:_DIGEST], content[_DIGEST:])
        case _:
            raise BackupInvalid(["the daemon sends something else than a backup: another version?"])
