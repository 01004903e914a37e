"""A backup as the appliance gives it out, while it goes on serving.

The order makes it consistent. The ledger is copied first, as it is at one moment; every image that it speaks
of has its file then, because a row comes after its file. Files of images that are deleted while they are
copied are left out, and the tombstones, which come last, tell of them. The keyring is read after everything
that it has to open, and before the tombstones: whatever has lost its key by then is among them.
"""

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

import msgspec

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId
from appliance.backup import tombstones
from appliance.backup.contents import (
    BUNDLES,
    IMAGES,
    KEYRING,
    LEDGER,
    TOMBSTONES,
    Absent,
    File,
    Header,
    Listing,
    mac,
    make_keys,
    name_of,
)
from appliance.backup.snapshot import SealedPages
from appliance.backup.wire import Kind, frame
from appliance.datasets import rows
from appliance.datasets.files import SealedFiles
from appliance.datasets.leaps import Belief
from appliance.datasets.records import DatasetId, Image
from appliance.datasets.witness import Record
from appliance.errors import ApplianceError, Conflict, NotFound, SealBroken
from appliance.ledger import Connection, Ledger
from appliance.vault import Container, Keyring, Sealer
from appliance.volume import HeldFolder

ImagesAtHand = Callable[[], AbstractContextManager[SealedFiles]]
"""The stored images, open within the block; entering and leaving it blocks on the disk."""

_PIECE = 256 << 10
_ROWS_AT_ONCE = 500

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Part:
    """A dataset as the copied ledger has it: images from `position` on came later."""

    number: int
    id: DatasetId
    customer: CustomerId
    position: int


@dataclass(frozen=True, slots=True)
class _State:
    """What the copied ledger says of itself."""

    header: Header
    datasets: list[_Part]
    pins: list[str]


class Backups:
    """Makes backups, one at a time, on a thread of its own."""

    def __init__(
        self,
        ledger: Ledger,
        keyring: Keyring,
        state: Path,
        images: ImagesAtHand,
        *,
        version: str,
        reserve_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        """`reserve_bytes` stay free on the volume of `state` while the ledger is copied there."""
        self._ledger = ledger
        self._keyring = keyring
        self._state = state
        self._images = images
        self._version = version
        self._reserve = reserve_bytes
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="backup")
        self._under_way = False

    async def __aenter__(self) -> Self:
        self._held = await asyncio.to_thread(HeldFolder, self._state)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._thread.shutdown)
        self._held.close()

    async def begin(self, actor: Actor) -> "Making":
        """A backup, audited before a byte of it leaves; it must be closed.

        Raises Conflict while another one is being made, StorageFailed, VolumeOffline.
        """
        if self._under_way:
            raise Conflict("a backup is being made already: wait for its end")
        self._under_way = True
        try:
            await asyncio.to_thread(self._held.check)
            backup, now = uuid4(), int(self._clock() * 1000)
            keys = await asyncio.get_running_loop().run_in_executor(self._thread, make_keys, self._keyring)

            def act(connection: Connection) -> None:
                count, size = _stored(connection)
                details: dict[str, object] = {"images": count, "bytes": size}
                record(connection, now, actor, Event.BACKUP_MAKE, None, str(backup), details)

            await self._ledger.write(act)
        except BaseException:
            self._under_way = False
            raise
        frames = self._frames(backup, now, keys)
        return Making(frames, self._thread, self._ended)

    def _ended(self) -> None:
        self._under_way = False

    def _frames(self, backup: UUID, now: int, keys: Container) -> Iterator[bytes]:
        """The whole backup, a piece at a time; what breaks it off is told in its last frame."""
        try:
            with ExitStack() as stack:
                images = stack.enter_context(self._images())
                believed = (images.witnessed() or Record()).belief
                pages = SealedPages(self._state, self._ledger.size_bytes(), self._reserve)
                stack.callback(pages.close)
                state = self._ledger.snapshot(
                    pages, lambda seen: self._described(seen, backup, now, believed)
                )
                sending = _Sending(state.header, keys)
                yield sending.begin()
                bundles = self._open_bundles(state.pins, stack)
                yield from sending.sealed(LEDGER, LEDGER, pages.pieces())
                pages.close()
                for place, fd in bundles:
                    yield from sending.bundle(place, fd)
                with self._ledger.reading() as connection:
                    for part in state.datasets:
                        yield from self._copied(sending, images, part, connection)
                    yield from sending.apart(KEYRING, self._keyring.copy())
                    lines = tombstones.export(connection, int(self._clock() * 1000))
                    yield from sending.sealed(TOMBSTONES, TOMBSTONES, lines)
                yield sending.end()
        except OSError as error:
            _log.error("the backup %s broke off: %s", backup, error)
            yield frame(Kind.FAILED, f"{error.filename or self._state}: {error.strerror}".encode())
        except ApplianceError as error:
            _log.error("the backup %s broke off: %s", backup, error)
            yield frame(Kind.FAILED, str(error).encode())

    def _described(self, connection: Connection, backup: UUID, now: int, believed: Belief) -> _State:
        count, size = _stored(connection)
        header = Header(
            backup=backup,
            made_at=now,
            version=self._version,
            schema=_number(connection, "PRAGMA user_version"),
            entry=rows.last_entry(connection),
            keyring=self._keyring.id.hex(),
            keyring_number=self._keyring.number,
            images=count,
            bytes=size,
            believed_at=int(believed.time * 1000),
        )
        parts = connection.execute(
            "SELECT number, id, customer, next_position FROM datasets WHERE erased_at IS NULL ORDER BY number"
        )
        datasets = [_Part(*row) for row in parts]
        pins = connection.execute("SELECT name || '@' || version FROM bundles ORDER BY number")
        return _State(header, datasets, [pin for (pin,) in pins])

    def _open_bundles(self, pins: list[str], stack: ExitStack) -> list[tuple[str, int]]:
        """The files of the bundles, open: one that is removed meanwhile can be read to its end all the same.

        Raises Conflict when one was removed right now.
        """
        opened = []
        for pin in pins:
            folder = self._state / BUNDLES / pin
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                try:
                    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                except FileNotFoundError:
                    break
                stack.callback(os.close, fd)
                opened.append((f"{pin}/{path.relative_to(folder)}", fd))
            if not (folder / "bundle.toml").is_file():
                if not self._is_installed(pin):
                    raise Conflict(f"the bundle {pin} was removed while the backup began: start it again")
                _log.error("bundle %s is damaged, and in the backup as it is", pin)
        return opened

    def _is_installed(self, pin: str) -> bool:
        with self._ledger.reading() as connection:
            asked = "SELECT count(*) FROM bundles WHERE name || '@' || version = ?"
            return bool(connection.execute(asked, (pin,)).get)

    def _copied(
        self, sending: "_Sending", images: SealedFiles, part: _Part, connection: Connection
    ) -> Iterator[bytes]:
        """The images of a dataset that the copied ledger has and that still are there."""
        try:
            keys = self._keyring.container(UUID(part.customer), UUID(part.id))
        except NotFound:
            return  # erased meanwhile: a tombstone tells of it
        after, end = (part.number << 32) - 1, (part.number << 32) + part.position
        while found := rows.images(connection, part.number, after, _ROWS_AT_ONCE):
            after = found[-1].key
            for image in found:
                if image.key < end:
                    yield from self._one(sending, images, image, keys, connection)

    def _one(
        self, sending: "_Sending", images: SealedFiles, image: Image, keys: Container, connection: Connection
    ) -> Iterator[bytes]:
        path = f"{IMAGES}/{image.name.container.hex}/{image.name.object.hex}"
        try:
            file = images.open(image.name, keys)
        except (NotFound, SealBroken) as error:
            if rows.image(connection, image.customer, image.id) is None:
                return  # deleted meanwhile
            reason: Any = "missing" if isinstance(error, NotFound) else "damaged"
            _log.error("the backup leaves out image %s, which is %s: %s", image.id, reason, error)
            yield sending.absent(Absent(path, reason))
            return
        try:
            ranges = range(0, file.size, _PIECE)
            pieces = (file.read_sealed(at, min(at + _PIECE, file.size)) for at in ranges)
            yield from sending.file(path, pieces)
        finally:
            file.close()


class Making:
    """One backup on its way out; `close` ends it wherever it is."""

    def __init__(
        self, frames: Iterator[bytes], thread: ThreadPoolExecutor, ended: Callable[[], None]
    ) -> None:
        self._frames = frames
        self._thread = thread
        self._ended = ended
        self._over = False

    async def pieces(self) -> AsyncIterator[bytes]:
        """The frames of `backup.wire`, many small ones in one piece."""
        loop = asyncio.get_running_loop()
        while piece := await loop.run_in_executor(self._thread, self._gather):
            yield piece
        self._end()

    def close(self) -> None:
        """Gives back what the backup holds, as soon as its thread lets go of it; does not wait."""
        loop = asyncio.get_running_loop()
        closing = loop.run_in_executor(self._thread, self._close)
        closing.add_done_callback(lambda _: self._end())

    def _end(self) -> None:
        if not self._over:  # the next one may be under way
            self._over = True
            self._ended()

    def _gather(self) -> bytes:
        """Some frames: a hop to the event loop for each would cost more than a small image."""
        gathered, size = [], 0
        for piece in self._frames:
            gathered.append(piece)
            size += len(piece)
            if size >= _PIECE:
                break
        return b"".join(gathered)

    def _close(self) -> None:
        close: Callable[[], None] = getattr(self._frames, "close")  # noqa: B009 - of a generator
        close()


class _Sending:
    """Frames for each part of a backup, and the manifest that grows with them."""

    def __init__(self, header: Header, keys: Container) -> None:
        self._header = header
        self._keys = keys
        self._listing = Listing(header)

    def begin(self) -> bytes:
        return frame(Kind.HEADER, msgspec.json.encode(self._header))

    def end(self) -> bytes:
        digest = self._listing.digest
        return frame(Kind.END, digest + mac(self._keys, digest))

    def absent(self, entry: Absent) -> bytes:
        self._listing.line(entry)
        return frame(Kind.ABSENT, f"{entry.reason} {entry.path}".encode())

    def file(self, path: str, pieces: Iterable[bytes | memoryview]) -> Iterator[bytes]:
        """A file as it lies."""
        yield frame(Kind.FILE, path.encode())
        running, size = hashlib.sha256(), 0
        for piece in pieces:
            running.update(piece)
            size += len(piece)
            yield frame(Kind.DATA, piece)
        self._listing.line(File(path, size, running.digest()))

    def bundle(self, place: str, fd: int) -> Iterator[bytes]:
        """A file of a bundle, sealed behind its place: its name may be a customer's."""
        inner = f"{BUNDLES}/{place}"
        path = f"{BUNDLES}/{name_of(self._header.backup, inner).object.hex}"

        def content() -> Iterator[bytes]:
            yield place.encode() + b"\n"
            offset = 0
            while data := os.pread(fd, _PIECE, offset):
                offset += len(data)
                yield data

        yield from self.sealed(path, inner, content())

    def sealed(self, path: str, inner: str, content: Iterator[bytes]) -> Iterator[bytes]:
        """A file that is sealed on its way, under a key that all backups of this appliance share."""
        generation = self._keys.generation
        name = name_of(self._header.backup, inner)
        sealer = Sealer(name, generation, self._keys.object_key(generation))

        def pieces() -> Iterator[bytes]:
            yield sealer.header
            for data in content:
                if sealed := sealer.update(data):
                    yield sealed
            yield sealer.finish()

        yield from self.file(path, pieces())

    def apart(self, name: str, content: bytes) -> Iterator[bytes]:
        """A file that goes beside the keyring; the manifest does not speak of it."""
        yield frame(Kind.APART, name.encode())
        for at in range(0, len(content), _PIECE):
            yield frame(Kind.DATA, content[at : at + _PIECE])


def _stored(connection: Connection) -> tuple[int, int]:
    """How many images there are, and their bytes as they were sent."""
    row = connection.execute(
        "SELECT coalesce(sum(images), 0), coalesce(sum(bytes), 0) FROM datasets WHERE erased_at IS NULL"
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _number(connection: Connection, query: str) -> int:
    return int(connection.execute(query).get)
