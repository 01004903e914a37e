"""Snapshots at rest: FOLDER/<container>/<snapshot>, see `container_files`. Everything here blocks.

The content is batches of records, by ascending label, each

    length u32 | msgpack: [labels, u32 little-endian; vectors, float32 little-endian; [[id, metadata], ...]]

Whoever has the collection's key can read a snapshot with nothing else; whoever has it not, nothing of it.
"""

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import msgspec
import numpy as np

from appliance.errors import NotFound, SealBroken, StorageFailed
from appliance.search.container_files import UNREADABLE, Reading, Writing, head, listed, unlink
from appliance.search.copying import Stored
from appliance.search.seals import Seals
from appliance.vault import sealed_size
from appliance.volume import failing_as_storage

FORMAT = 1
_LENGTH = 4
_FRAMING = 1 << 16
"""Bytes of a file beside records, at most: its manifest, and what is around them is less than their seals."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a snapshot says of itself; `created_at` in unix milliseconds; labels are below `next_label`."""

    backbone: str
    dim: int
    records: int
    next_label: int
    created_at: int
    format: int = FORMAT


class _Batch(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    labels: bytes
    vectors: bytes
    words: list[tuple[bytes, bytes]]


_BATCH = msgspec.msgpack.Decoder(_Batch)


@dataclass(frozen=True, slots=True)
class SavedSnapshot:
    """What is there, of `size` bytes. `manifest` is None when it is no file, or not what was sealed."""

    id: UUID
    size: int
    manifest: Manifest | None


def most_bytes(size: int) -> int:
    """Of the file of records that take `size` bytes as they rest in the ledger."""
    return sealed_size(size + _FRAMING)


class SnapshotFolder:
    """The files of one collection. All raise StorageFailed, and NotFound once its key is destroyed."""

    def __init__(self, folder: Path, seals: Seals) -> None:
        self._path = folder / seals.container.hex
        self._seals = seals

    def count(self) -> int:
        """How many there are."""
        return len(listed(self._path))

    def saved(self) -> list[SavedSnapshot]:
        """Every file, its manifest proven; the oldest snapshot first."""
        found = [one for one in map(self._saved, listed(self._path)) if one is not None]
        return sorted(found, key=lambda one: (one.manifest.created_at if one.manifest else 0, one.id))

    def writing(self, snapshot: UUID) -> Writing:
        """A new file, to be begun by `begin`; nothing is there before it is published."""
        return Writing(self._path, snapshot)

    def begin(self, file: Writing, manifest: Manifest, size: int) -> None:
        """Open the file of a snapshot of up to `size` bytes.

        Raises VolumeFull, before anything is written, where there is not so much room.
        """
        file.open(self._seals, size, leaving=0)
        file.write(head(manifest))

    def require(self, snapshot: UUID) -> None:
        """Raises NotFound when there is nothing of its name."""
        if not os.path.lexists(self._path / snapshot.hex):
            raise NotFound("the collection has no such snapshot")

    def opened(self, snapshot: UUID) -> "SnapshotReading":
        """To be closed. Raises NotFound when there is none, SealBroken when it is not what was sealed."""
        self.require(snapshot)
        file = SnapshotReading(self._path, snapshot)
        try:
            file.open(self._seals)
        except BaseException:
            file.close()
            raise
        return file

    def remove(self, snapshot: UUID) -> None:
        """Durable on return."""
        unlink(self._path, snapshot)

    def _saved(self, snapshot: UUID) -> SavedSnapshot | None:
        path = self._path / snapshot.hex
        try:
            try:
                with closing(SnapshotReading(self._path, snapshot)) as file:
                    file.open(self._seals)
                    return SavedSnapshot(snapshot, file.size, file.manifest)
            except SealBroken:
                with failing_as_storage(path):
                    return SavedSnapshot(snapshot, path.lstat().st_size, None)
        except StorageFailed:
            if os.path.lexists(path):
                raise
            return None  # removed meanwhile


class SnapshotReading(Reading[Manifest]):
    """A snapshot that is read; every byte is proven before it is given out."""

    def __init__(self, folder: Path, snapshot: UUID) -> None:
        super().__init__(folder, snapshot, Manifest)

    def open(self, seals: Seals) -> None:
        super().open(seals)
        if self.manifest.format != FORMAT:
            raise SealBroken(UNREADABLE)
        self._next = self.start

    def batch(self) -> Stored | None:
        """The next records, None after the last. Raises SealBroken."""
        if self._next == self.length:
            return None
        start = min(self._next + _LENGTH, self.length)
        end = start + int.from_bytes(self.read(self._next, start))
        if end > self.length:
            raise SealBroken(UNREADABLE)
        self._next = end
        try:
            return _decoded(_BATCH.decode(self.read(start, end)), self.manifest.dim)
        except (msgspec.MsgspecError, ValueError):
            raise SealBroken(UNREADABLE) from None


def encode(some: Stored) -> bytes:
    """A batch as it is written."""
    labels, vectors = some.labels.astype("<u4").tobytes(), some.vectors.astype("<f4").tobytes()
    encoded = msgspec.msgpack.encode(_Batch(labels, vectors, some.words))
    return len(encoded).to_bytes(_LENGTH) + encoded


def _decoded(batch: _Batch, dim: int) -> Stored:
    labels = np.frombuffer(batch.labels, "<u4").astype(np.int64)
    vectors = np.frombuffer(batch.vectors, "<f4").reshape(len(labels), dim)
    if not len(labels) or len(batch.words) != len(labels):
        raise ValueError
    return Stored(labels, vectors, batch.words)
