"""How a backup travels over the operator socket: frames, each with its kind and its length before it."""

import struct
from collections.abc import AsyncIterable, AsyncIterator
from enum import IntEnum

from appliance.errors import BackupInvalid

LARGEST = 1 << 20
_HEAD = struct.Struct(">BI")


class Kind(IntEnum):
    """What a frame holds."""

    HEADER = 1  # of the manifest, as JSON; the first frame
    FILE = 2  # the path of a file in the backup, which ends the one before
    APART = 3  # the name of a file that goes beside the keyring
    DATA = 4  # the next bytes of the file
    ABSENT = 5  # reason and path of an image that could not be copied
    END = 6  # the digest of the manifest, 32 bytes, and its MAC, 32 bytes; the last frame
    FAILED = 7  # why the backup ended before its end, as text; the last frame


_KINDS = frozenset(map(int, Kind))


def frame(kind: Kind, content: bytes | memoryview = b"") -> bytes:
    """One frame. Raises ValueError above LARGEST."""
    if len(content) > LARGEST:
        raise ValueError("a frame is too large")
    return _HEAD.pack(kind, len(content)) + content


async def frames(pieces: AsyncIterable[bytes]) -> AsyncIterator[tuple[Kind, bytes]]:
    """The frames of a stream, which may be cut anywhere. Raises BackupInvalid for what is none."""
    pending = bytearray()
    async for piece in pieces:
        pending += piece
        at = 0
        while len(pending) - at >= _HEAD.size:
            kind, size = _HEAD.unpack_from(pending, at)
            if size > LARGEST or kind not in _KINDS:
                raise BackupInvalid(["the daemon sends something else than a backup: is it another version?"])
            if len(pending) - at - _HEAD.size < size:
                break
            start = at + _HEAD.size
            yield Kind(kind), bytes(pending[start : start + size])
            at = start + size
        del pending[:at]
    if pending:
        raise BackupInvalid(["the daemon went away before the backup was whole"])
