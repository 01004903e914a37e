"""Free space on a volume: what must stay free when data comes in, and a ballast so that deleting works."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from appliance.errors import VolumeFull
from appliance.volume.ballast import Ballast, Folder

BALLAST = ".ballast"
_SOME_BYTES = 16 << 20
"""For what a ledger's own log keeps, and grows to, while deletions are under way."""


class Space:
    """Keeps what comes in from filling the volume of a folder; usable from any thread, blocks on the disk.

    It leaves `fraction` of the volume free, and at least `least_bytes`. A volume that others have filled
    all the same can take no deletion, because a deletion is itself a few durable writes: the ballast, a file
    of `ballast_bytes`, is given back for them, and before them, since a ledger refuses what finds no room.
    """

    def __init__(
        self,
        folder: Folder,
        *,
        fraction: float = 0.05,
        least_bytes: int = 20 << 30,
        ballast_bytes: int = 256 << 20,
        ledger: "Space | None" = None,
    ) -> None:
        """`ledger` is the space of the ledger's volume where that is another one: a deletion needs both."""
        self._folder = folder
        self._ledger = ledger
        self._fraction = fraction
        self._least_bytes = least_bytes
        self._ballast = Ballast(folder, BALLAST, ballast_bytes)
        self._spent = False
        self._free = 0  # as measured last
        self._promised = 0
        self._counting = threading.Lock()

    def on(self, folder: Folder) -> "Space":
        """This, where `folder` is on the same volume; or else the space of that one, with the same sizes.

        Raises what `folder` does.
        """
        other = Space(
            folder,
            fraction=self._fraction,
            least_bytes=self._least_bytes,
            ballast_bytes=self._ballast.size,
            ledger=self,
        )
        with self._folder.reading() as mine, folder.reading() as theirs:
            if os.fstat(mine).st_dev != os.fstat(theirs).st_dev:
                return other
        other.release_ballast()  # there is one for a volume
        return self

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Within the block `size` bytes may be written; what other blocks may still write is counted too.

        Raises VolumeFull when less than the reserve would stay free, VolumeOffline.
        """
        with self._counting:
            free, total = self._measure()
            reserve = max(int(total * self._fraction), self._least_bytes)
            if free - self._promised - size < reserve:
                wanted = f"{size} bytes more would leave less than {reserve >> 20} MiB"
                raise VolumeFull(f"{free >> 20} MiB are free on the volume: {wanted}")
            self._promised += size
        try:
            yield
        finally:
            with self._counting:
                self._promised -= size

    def check_some(self) -> None:
        """That the ledger may take in a few rows more: without a byte free they would take the room that its
        log keeps for deletions. Raises VolumeFull, VolumeOffline.
        """
        if self._ledger is not None:
            self._ledger.check_some()
        elif (free := self._measure()[0]) < _SOME_BYTES:
            raise VolumeFull(f"{free >> 20} MiB are free on the volume: nothing is taken in, only deleted")

    def before_deletion(self) -> bool:
        """Frees the ballast when less than its size is free; whether it did.

        Raises VolumeOffline, StorageFailed.
        """
        freed = self._ledger is not None and self._ledger.before_deletion()
        return (self._measure()[0] < self._ballast.size and self.release_ballast()) or freed

    def release_ballast(self) -> bool:
        """Frees the ballast, durably; False when it was gone.

        Raises VolumeOffline.
        """
        self._spent = True
        return self._ballast.release()

    def shortage(self) -> str | None:
        """What a person has to know while the ballast is spent; from memory."""
        if self._spent:
            return (
                f"{self._free >> 20} MiB are free on the volume, and the ballast that is kept for deletions"
                f" is spent: it comes back when {2 * self._ballast.size >> 20} MiB are. What would be stored"
                " is refused (507), and deletions have little room: delete now, remove what is not the"
                " appliance's, or make the volume larger"
            )
        return None if self._ledger is None else self._ledger.shortage()

    def restore_ballast(self) -> bool:
        """Makes the ballast where it is missing; False while there is not twice the room that it needs.

        Raises VolumeOffline, StorageFailed, VolumeFull when the room went to somebody else meanwhile.
        """
        if self._ledger is not None:
            self._ledger.restore_ballast()
        self._measure()
        try:
            restored = self._ballast.restore(leaving=self._ballast.size)
        except VolumeFull:
            self._spent = True
            raise
        self._spent = not restored
        return restored

    def _measure(self) -> tuple[int, int]:
        with self._folder.reading() as folder:
            space = os.fstatvfs(folder)
        self._free = space.f_bavail * space.f_frsize
        return self._free, space.f_blocks * space.f_frsize
