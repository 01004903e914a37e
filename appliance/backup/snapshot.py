"""The copy of the ledger while it waits to be sent: pages on the volume that nobody can read.

It is taken at the speed of the disk, so that a slow receiver keeps no reader in the way of the ledger's log.
The file has no name, so that a crash leaves nothing, and its key is in this process alone: of what the ledger
forgets later, no copy in clear stays in the blocks that are given back.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from appliance.errors import StorageFailed, VolumeFull
from appliance.ledger import PAGE_BYTES
from appliance.vault import Keys

_LABEL = "page"
_OVERHEAD = 28  # nonce and tag of a page
_PIECE = 64 * PAGE_BYTES
_SLOT = PAGE_BYTES + _OVERHEAD


class SealedPages:
    """Pages under a key of their own, until `close`; see `ledger.Pages`. For one thread at a time."""

    def __init__(self, folder: Path, expected: int, reserve: int) -> None:
        """`expected` bytes have to find room in `folder`, and `reserve` bytes more must stay free.

        Raises VolumeFull, StorageFailed.
        """
        wanted = -(-expected // PAGE_BYTES) * _SLOT
        space = os.statvfs(folder)
        free = space.f_bavail * space.f_frsize
        if free - wanted < reserve:
            raise VolumeFull(
                f"{folder}: {free >> 20} MiB are free; the copy of the ledger needs {wanted >> 20} MiB for a"
                f" while, and {reserve >> 20} MiB have to stay free"
            )
        try:
            self._fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageFailed(f"{folder}: {error.strerror}") from error
        self._folder = folder
        self._keys = Keys(os.urandom(32))
        self.size = 0

    def read(self, offset: int, size: int) -> bytes:
        """Raises StorageFailed, SealBroken."""
        start = offset - offset % PAGE_BYTES
        stop = min(offset + size, self.size)
        whole = b"".join(self._page(at) for at in range(start, stop, PAGE_BYTES))
        return whole[offset - start :][:size]

    def write(self, offset: int, page: bytes) -> None:
        """Raises StorageFailed."""
        number = offset // PAGE_BYTES
        if offset % PAGE_BYTES or len(page) != PAGE_BYTES:
            raise StorageFailed("SQLite wrote something else than a page")
        sealed = self._keys.seal(_LABEL, page, number.to_bytes(8))
        try:
            written = os.pwrite(self._fd, sealed, number * _SLOT)
        except OSError as error:
            raise StorageFailed(f"{self._folder}: the copy of the ledger: {error.strerror}") from error
        if written != _SLOT:
            raise StorageFailed(f"{self._folder}: the copy of the ledger: the volume is full")
        self.size = max(self.size, offset + PAGE_BYTES)

    def pieces(self) -> Iterator[bytes]:
        """All pages in their order, many at once. Raises as `read`."""
        for offset in range(0, self.size, _PIECE):
            yield self.read(offset, _PIECE)

    def close(self) -> None:
        """Gives the room back; twice is as good as once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._keys.wipe()

    def _page(self, offset: int) -> bytes:
        number = offset // PAGE_BYTES
        try:
            sealed = os.pread(self._fd, _SLOT, number * _SLOT)
        except OSError as error:
            raise StorageFailed(f"{self._folder}: the copy of the ledger: {error.strerror}") from error
        return self._keys.unseal(_LABEL, sealed, number.to_bytes(8))
