"""What the volume itself knows, beside the sealed files: how far the ledger had come, what time was believed.

A ledger that is older than the files cannot tell so, nor can a clock tell that it was set. It is one record
under one MAC, so that no bit of it flips unnoticed, and less than a sector, written in place.
"""

import hmac
import os
import struct
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Self

from appliance.datasets.leaps import UNKNOWN, Belief
from appliance.vault import Keys
from appliance.volume import DataFolder

WITNESS = "witness"
"""Its name in the folder of the containers."""
_FIELDS = struct.Struct(">Q?6d")
_LABEL = "witness"
_MAC_BYTES = 32
_BELIEF_AT, _FORMER_LABEL = 9, "believed time"


@dataclass(frozen=True, slots=True)
class Record:
    """What the next run has to know, whatever becomes of the ledger."""

    acknowledged: int = 0
    """The newest audit entry that was acknowledged: a ledger that ends before it is older than the files."""
    doubted: bool = False
    """Files without a row may be images of another ledger."""
    belief: Belief = UNKNOWN

    def sealed(self, keys: Keys) -> bytes:
        """For the disk, 89 bytes: number, doubt and belief, big-endian, and their HMAC-SHA256."""
        fields = _FIELDS.pack(self.acknowledged, self.doubted, *astuple(self.belief))
        return fields + keys.mac(_LABEL, fields)

    @classmethod
    def opened(cls, data: bytes, keys: Keys) -> Self | None:
        """What was `sealed`, None for anything else.

        Before, the MAC was over the belief alone. Such a record is taken as it is: the start that reads it
        writes a whole one.
        """
        fields, mac = data[: _FIELDS.size], data[_FIELDS.size :][:_MAC_BYTES]
        whole = hmac.compare_digest(keys.mac(_LABEL, fields), mac)
        if not whole and not hmac.compare_digest(keys.mac(_FORMER_LABEL, fields[_BELIEF_AT:]), mac):
            return None
        acknowledged, doubted, *belief = _FIELDS.unpack(fields)
        return cls(acknowledged, doubted, Belief(*belief))


def acknowledged(images: Path) -> int | None:
    """How far the ledger had come by the record in the folder of the containers, None where there is none.

    It is not proven: who has no key can only hold it against a ledger. Raises OSError.
    """
    try:
        fd = os.open(images / WITNESS, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        data = os.read(fd, _FIELDS.size)
    finally:
        os.close(fd)
    return int(_FIELDS.unpack(data)[0]) if len(data) == _FIELDS.size else None


class Witness:
    """The record of one data folder. `record` is what it has to say, `keep` makes that durable."""

    def __init__(self, folder: DataFolder, keys: Keys) -> None:
        self._folder = folder
        self._keys = keys
        self._kept = self.record = Record()

    def read(self, top: int) -> Record | None:
        """What lies in the folder `top`; None where nothing does, or not what was written. Raises OSError."""
        try:
            fd = os.open(WITNESS, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=top)
        except FileNotFoundError:
            return None
        try:
            return Record.opened(os.read(fd, _FIELDS.size + _MAC_BYTES), self._keys)
        finally:
            os.close(fd)

    def keep(self, top: int) -> None:
        """Write the `record` where the disk has another one. Raises OSError."""
        record = self.record
        if record == self._kept:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(WITNESS, flags, 0o600, dir_fd=top)
        try:
            new = os.fstat(fd).st_size == 0
            os.pwrite(fd, record.sealed(self._keys), 0)
            self._folder.sync(fd)
            if new:
                self._folder.sync(top)
        finally:
            os.close(fd)
        self._kept = record
