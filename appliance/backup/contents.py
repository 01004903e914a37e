"""What a backup is made of, and the manifest that holds it together.

    DIR/<UTC time>-<ledger entry>/
      manifest                       a line for each file, in clear, under a MAC
      ledger                         the database, sealed
      bundles/<object>               files of bundles, sealed, each with its place before its content
      images/<dataset>/<object>      as they lie in the store
      tombstones                     what was erased or ended up to the end of the backup, sealed
    KEYRINGS/
      keyring-<UTC time>-<ledger entry>, tombstones-<UTC time>-<ledger entry>

What is sealed here is sealed like an image (`vault.sealed`), under keys of the appliance's own: a container
that belongs to no customer, so that no customer's erasure destroys it and every rotation carries it on.

The manifest tells sizes and SHA-256 of ciphertext, which say nothing that the folder does not show: anybody
can prove that a copy is whole. That it is the one which was made, the MAC proves to who has the keyring.
"""

import hashlib
import hmac
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Literal
from uuid import UUID, uuid5

import msgspec

from appliance.errors import BackupInvalid, Conflict, NotFound
from appliance.vault import Container, Keyring, Name

MANIFEST, LEDGER, TOMBSTONES, BUNDLES, IMAGES = "manifest", "ledger", "tombstones", "bundles", "images"
KEYRING = "keyring"

APPLIANCE = UUID(int=0)
"""Whose the keys of backups are: no customer's."""
BACKUPS = UUID("6d1b3c7e-52ae-4b43-9df0-1f3f64a5f3d1")
"""Their container in every keyring."""

_FIRST_LINE = b"appliance backup 1\n"
_MAC = "backup manifest"
_LINE = re.compile(r"([0-9a-f]{64}) ([0-9]{1,18}) ([a-z0-9/]{1,200})")
_ABSENT = re.compile(r"absent (damaged|missing) (images/[0-9a-f]{32}/[0-9a-f]{32})")
_LAST_LINE = re.compile(r"mac ([0-9a-f]{64})")
_NAME = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9]{1,18}")
_LONGEST_LINE = 4096

Reason = Literal["damaged", "missing"]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a backup says about itself; times are unix milliseconds, `bytes` what images have sealed.

    `made_at` is by the clock, `believed_at` the time that retention goes by, 0 where nobody knows it.
    """

    backup: UUID
    made_at: int
    version: str
    schema: int
    entry: int  # the newest of the audit log: of two backups the higher one is the newer
    keyring: str
    keyring_number: int
    images: int
    bytes: int
    believed_at: int = 0

    @property
    def name(self) -> str:
        """The name of its folder."""
        moment = datetime.fromtimestamp(self.made_at / 1000, UTC)
        return f"{moment:%Y%m%dT%H%M%SZ}-{self.entry}"


@dataclass(frozen=True, slots=True)
class File:
    """A file of a backup."""

    path: str
    size: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Absent:
    """An image that the backup does not have, because its file was not what was sealed, or not there."""

    path: str
    reason: Reason


class Listing:
    """The manifest as it grows. The appliance and whoever receives a backup make the same one."""

    def __init__(self, header: Header) -> None:
        self._running = hashlib.sha256()
        self.start = self._counted(_FIRST_LINE + msgspec.json.encode(header) + b"\n")

    @property
    def digest(self) -> bytes:
        """SHA-256 of all lines so far."""
        return self._running.digest()

    def line(self, entry: File | Absent) -> bytes:
        """The next line."""
        if isinstance(entry, Absent):
            return self._counted(f"absent {entry.reason} {entry.path}\n".encode())
        return self._counted(f"{entry.digest.hex()} {entry.size} {entry.path}\n".encode())

    def _counted(self, line: bytes) -> bytes:
        self._running.update(line)
        return line


class Manifest:
    """The manifest of the backup at `folder`: its `header`, and its `entries` as often as they are asked for.

    Raises BackupInvalid for what cannot be one.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        """`name` is what the backup is called, by default as its folder is."""
        name = name or folder.absolute().name
        self._path = folder / MANIFEST
        self._digest = self._mac = b""
        if not _NAME.fullmatch(name):
            raise BackupInvalid([f"{folder}: not the folder of a backup, which is called TIME-ENTRY"])
        with self._opened() as lines:
            self._start = lines.read(), lines.read()
        if self._start[0] != _FIRST_LINE:
            raise self.invalid("not the manifest of a backup that this version reads")
        try:
            self.header = msgspec.json.decode(self._start[1], type=Header)
        except msgspec.MsgspecError:
            raise self.invalid("its header was changed") from None
        if self.header.name != name:
            raise self.invalid(f"it belongs to {self.header.name}: the folder was given another name")

    def entries(self) -> Iterator[File | Absent]:
        """Every line, in the order in which the backup was made."""
        with self._opened() as lines:
            if (lines.read(), lines.read()) != self._start:
                raise self.invalid("it changes while it is read")
            while True:
                digest = lines.digest
                text = lines.read().decode("ascii", "replace").removesuffix("\n")
                if (found := _LINE.fullmatch(text)) is not None:
                    yield File(found[3], int(found[2]), bytes.fromhex(found[1]))
                elif (absent := _ABSENT.fullmatch(text)) is not None:
                    yield Absent(absent[2], "damaged" if absent[1] == "damaged" else "missing")
                elif (last := _LAST_LINE.fullmatch(text)) is not None and lines.at_end():
                    self._digest, self._mac = digest, bytes.fromhex(last[1])
                    return
                else:
                    raise self.invalid("it was cut or changed")

    def prove(self, keys: Container) -> None:
        """That what `entries` gave, to its end, is what was made. Raises BackupInvalid."""
        if not hmac.compare_digest(mac(keys, self._digest), self._mac):
            raise self.invalid("it was changed since the backup was made")

    def invalid(self, reason: str) -> BackupInvalid:
        """The error to raise."""
        return BackupInvalid([f"{self._path}: {reason}"])

    @contextmanager
    def _opened(self) -> Iterator["_Lines"]:
        try:
            with self._path.open("rb") as file:
                yield _Lines(file, self)
        except OSError as error:
            raise self.invalid(f"{error.strerror}: this is no whole backup") from None


class _Lines:
    """Lines of bounded length, and the digest of those that were read."""

    def __init__(self, file: BinaryIO, manifest: Manifest) -> None:
        self._file = file
        self._manifest = manifest
        self._running = hashlib.sha256()

    @property
    def digest(self) -> bytes:
        return self._running.digest()

    def read(self) -> bytes:
        line = self._file.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise self._manifest.invalid("it was cut")
        self._running.update(line)
        return line

    def at_end(self) -> bool:
        return not self._file.read(1)


def mac(keys: Container, digest: bytes) -> bytes:
    """What the last line of a manifest says of all others, whose SHA-256 is `digest`."""
    return keys.mac(_MAC, digest)


def last_line(value: bytes) -> bytes:
    """The end of a manifest."""
    return f"mac {value.hex()}\n".encode()


def keys_of(keyring: Keyring) -> Container:
    """What backups are sealed under. Raises BackupInvalid when this appliance never made one."""
    try:
        return keyring.container(APPLIANCE, BACKUPS)
    except NotFound:
        reason = "this keyring is older than the first backup: give the one that was made with it, or a newer"
        raise BackupInvalid([reason]) from None


def make_keys(keyring: Keyring) -> Container:
    """As `keys_of`, made when there are none yet. Blocks on the disk. Raises StorageFailed."""
    try:
        return keyring.add(APPLIANCE, BACKUPS, "document")
    except Conflict:
        return keyring.container(APPLIANCE, BACKUPS)


def name_of(backup: UUID, path: str) -> Name:
    """Under which a file is sealed that this backup alone has."""
    return Name(APPLIANCE, BACKUPS, uuid5(backup, path))


def bundle_name(path: str) -> Name:
    """Under which the file at `path` in a backup is sealed, one of a bundle."""
    return Name(APPLIANCE, BACKUPS, UUID(hex=path.removeprefix(f"{BUNDLES}/")))
