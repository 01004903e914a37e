"""Tars (POSIX.1-2017: ustar and pax; GNU's long names): read strictly and as they come, and written.

Nothing is unpacked. Plain files and folders alone are read, under relative names that lead nowhere else. What
is held is a header, or the one file that is asked for: every length is judged before a byte of what it
announces is read.
"""

import asyncio
import re
import tarfile
import time
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from appliance.errors import InvalidInput, TooLarge

MOST_MEMBERS = 2_000_000
MOST_NAME = 1024  # bytes of UTF-8
MOST_PART = 255  # as in filesystems
MOST_DEPTH = 32
MOST_EXTENSION = 64 << 10  # of a header that tells what does not fit into the next one
MOST_RECORDS = 1000  # of a pax header

END = bytes(2 * tarfile.BLOCKSIZE)
"""What goes after all files."""

_BLOCK = tarfile.BLOCKSIZE
_MOST_BEHIND = 16 << 20  # zeros after the end: writers fill up to a multiple of their own
_TURN_SECONDS = 0.002  # of reading headers, hundreds of which come in one piece, until others get their turn
_SHARDS = 64  # of the names that are known: a table of two million grows for 60 ms
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_NOT_UTF_8 = re.compile("[\ud800-\udfff]")  # what surrogateescape makes of it
_NOT_IN_NAMES = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")  # Unicode's category Cc, and the backslash
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


def checked(name: str) -> str:
    """The name of a file in an archive, without `.` and double slashes.

    Raises InvalidInput for one that is absolute, leads outside (`..`), is too long or too deep, or holds a
    control character, a backslash or bytes that are not UTF-8.
    """
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if _NOT_UTF_8.search(name):
        raise InvalidInput(f"{shown(name)}: the name is not UTF-8")
    if name.startswith("/"):
        raise InvalidInput(f"{shown(name)}: the name is absolute")
    if ".." in parts:
        raise InvalidInput(f"{shown(name)}: the name leads out of the archive")
    if _NOT_IN_NAMES.search(name):
        raise InvalidInput(f"{shown(name)}: the name holds a control character or a backslash")
    size = len(name.encode())
    if size > MOST_NAME or len(parts) > MOST_DEPTH:
        raise InvalidInput(f"{shown(name)}: a name has at most {MOST_NAME} bytes and {MOST_DEPTH} parts")
    if size > MOST_PART and any(len(part.encode()) > MOST_PART for part in parts):
        raise InvalidInput(f"{shown(name)}: between two slashes of a name are at most {MOST_PART} bytes")
    if not parts:
        raise InvalidInput("a file without a name")
    return "/".join(parts)


def shown(name: str) -> str:
    """A name as it may stand in a message, whatever it holds."""
    return ascii(name if len(name) <= 200 else f"{name[:200]}...")


def header(name: str, size: int) -> bytes:
    """What goes before a file of this size (ustar, or pax where that is not enough): no time, no owner."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.PAX_FORMAT)


def padding(size: int) -> bytes:
    """What goes after a file of this size."""
    return bytes(-size % _BLOCK)


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive; `size` is how many bytes it announces."""

    name: str
    size: int
    _source: "_Source"

    async def read(self) -> bytearray:
        """All of it, once. Raises InvalidInput when the archive ends before."""
        return await self._source.take(self.size)

    async def pieces(self) -> AsyncIterator[memoryview]:
        """As `read`, as it comes."""
        end = self._source.position + self.size
        while self._source.position < end:
            yield await self._source.next(end - self._source.position)


class Archive:
    """The files of a tar in their order, and where they end; to be gone through once.

    Raises InvalidInput, saying what and where, for all that is not such an archive, and TooLarge for more
    than `most` members, or files and folders that their names make. A member that is not read before the next
    is asked for is passed over. Others get their turn on the loop every few milliseconds by the `clock`, in
    seconds, however much comes in one piece.
    """

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        most: int = MOST_MEMBERS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._source = _Source(pieces)
        self._most = most
        self._names = _Names()
        self._clock = clock
        self._turn_ends = clock() + _TURN_SECONDS

    async def __aiter__(self) -> AsyncIterator[Member]:
        try:
            source, count = self._source, 0
            while (header := await self._header()) is not None:
                count += 1
                if count > self._most:
                    raise self._too_many()
                if header.isdir():
                    if header.name.strip("./"):
                        self._names.add_folder(checked(header.name))
                        self._check_room()
                    await source.skip(_padded(header.size))
                    continue
                name = self._file(header)
                end = source.position + header.size
                yield Member(name, header.size, source)
                await source.skip(end - source.position + _padded(header.size) - header.size)
            await self._end()
        finally:
            await self._names.forget()

    async def _header(self) -> tarfile.TarInfo | None:
        """The next file or folder, with what the extensions before it say; None at the end."""
        extensions: dict[bytes, str] = {}
        while True:
            at = self._source.position
            header = await self._block()
            if header is None:
                if extensions:
                    raise InvalidInput(f"at byte {at}: the archive ends behind an extended header")
                return None
            kind = header.type
            if kind not in {
                tarfile.XHDTYPE,
                tarfile.XGLTYPE,
                tarfile.GNUTYPE_LONGNAME,
                tarfile.GNUTYPE_LONGLINK,
                tarfile.SOLARIS_XHDTYPE,
            }:
                return _extended(header, extensions)
            if not 0 <= header.size <= MOST_EXTENSION:
                raise InvalidInput(f"at byte {at}: an extended header has at most {MOST_EXTENSION} bytes")
            if kind in extensions:
                raise InvalidInput(f"at byte {at}: two extended headers of one kind for one file")
            body = bytes(await self._source.take(header.size))
            await self._source.skip(_padded(header.size) - header.size)
            if kind == tarfile.GNUTYPE_LONGNAME:
                extensions[kind] = body.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif kind == tarfile.GNUTYPE_LONGLINK:
                extensions[kind] = ""  # where a link leads: links are refused by their own header
            else:
                _of_pax(kind, dict(_records(body, at)), extensions)

    async def _block(self) -> tarfile.TarInfo | None:
        if self._clock() >= self._turn_ends:
            await asyncio.sleep(0)
            self._turn_ends = self._clock() + _TURN_SECONDS
        at = self._source.position
        block = bytes(await self._source.take(_BLOCK, first=at == 0))
        if block == bytes(_BLOCK):
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            if at == 0:
                raise InvalidInput(_what_else(block)) from None
            raise InvalidInput(f"at byte {at}: the header of a file is damaged") from None
        if header.size < 0:
            raise InvalidInput(f"at byte {at}: the header of a file is damaged")
        return header

    def _file(self, header: tarfile.TarInfo) -> str:
        name = checked(header.name)
        if header.type not in {tarfile.REGTYPE, tarfile.AREGTYPE} or header.name.endswith("/"):
            kind = _KINDS.get(header.type, "something else")
            raise InvalidInput(f"{shown(name)} is {kind}: files and folders alone are taken")
        self._names.add_file(name)
        self._check_room()
        return name

    def _check_room(self) -> None:
        if self._names.count > self._most:  # a file's name may make dozens
            raise self._too_many()

    def _too_many(self) -> TooLarge:
        return TooLarge(f"the archive has more than {self._most} members, or folders in their names")

    async def _end(self) -> None:
        """Reads what follows the first block of the end mark: one more, and zeros to fill up with."""
        behind = 0
        while piece := await self._source.some(_MOST_BEHIND):
            behind += len(piece)
            if behind > _MOST_BEHIND or bytes(piece).strip(b"\0"):
                raise InvalidInput(f"at byte {self._source.position}: something follows the archive's end")


class _Names:
    """The files and folders of an archive, however their letters are composed; `count` is how many."""

    def __init__(self) -> None:
        # Hashes, and whether they are those of folders: two million names are too much to keep.
        self._known: list[dict[int, bool]] = [{} for _ in range(_SHARDS)]
        self.count = 0

    def add_file(self, name: str) -> None:
        """Raises InvalidInput where a file or a folder has this name, or a file that of a folder in it."""
        *folders, last = unicodedata.normalize("NFC", name).split("/")
        known = hash((self._walk(name, folders), last))
        is_folder = self._known[known % _SHARDS].get(known)
        if is_folder:
            raise _two_kinds(name)
        if is_folder is not None:
            raise InvalidInput(f"{shown(name)}: two files have this name")
        self._add(known, is_folder=False)

    def add_folder(self, name: str) -> None:
        """It and all that it is in; it may be known. Raises InvalidInput where one of them is a file."""
        self._walk(name, unicodedata.normalize("NFC", name).split("/"))

    async def forget(self) -> None:
        """Gives the memory back part by part, with turns for others: two million at once take 100 ms."""
        for part in self._known:
            part.clear()
            await asyncio.sleep(0)

    def _walk(self, name: str, folders: list[str]) -> int:
        """Adds folders, each in the one before; the hash of the last."""
        known = 0
        for folder in folders:
            known = hash((known, folder))
            is_folder = self._known[known % _SHARDS].get(known)
            if is_folder is None:
                self._add(known, is_folder=True)
            elif not is_folder:
                raise _two_kinds(name)
        return known

    def _add(self, known: int, *, is_folder: bool) -> None:
        self._known[known % _SHARDS][known] = is_folder
        self.count += 1


def _two_kinds(name: str) -> InvalidInput:
    return InvalidInput(f"{shown(name)}: a file and a folder have one name")


class _Source:
    """Bytes as they come, in the amounts that are asked for; `position` counts what was handed on."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        self.position = 0

    async def some(self, most: int) -> memoryview:
        """At most so many bytes, none at the end."""
        while not self._rest:
            try:
                self._rest = memoryview(await anext(self._pieces))
            except StopAsyncIteration:
                break
        piece, self._rest = self._rest[:most], self._rest[most:]
        self.position += len(piece)
        return piece

    async def take(self, size: int, *, first: bool = False) -> bytearray:
        """Exactly so many bytes. Raises InvalidInput when there are fewer."""
        taken = bytearray()
        while len(taken) < size:
            piece = await self.some(size - len(taken))
            if not piece:
                raise InvalidInput(_what_else(taken) if first else self._cut())
            taken += piece
        return taken

    async def skip(self, size: int) -> None:
        """Passes so many bytes over. Raises InvalidInput when there are fewer."""
        end = self.position + size
        while self.position < end:
            await self.next(end - self.position)

    async def next(self, most: int) -> memoryview:
        """At most so many bytes, and at least one. Raises InvalidInput at the end."""
        if piece := await self.some(most):
            return piece
        raise InvalidInput(self._cut())

    def _cut(self) -> str:
        return f"the archive breaks off at byte {self.position}: send it again from the start"


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _extended(header: tarfile.TarInfo, extensions: dict[bytes, str]) -> tarfile.TarInfo:
    """The header, changed by what the extended ones before it say; pax goes before GNU."""
    if tarfile.GNUTYPE_LONGNAME in extensions:
        header.name = extensions[tarfile.GNUTYPE_LONGNAME]
    header.name = extensions.get(b"path", header.name)
    if b"size" in extensions:
        size = extensions[b"size"]
        if not (size.isascii() and size.isdigit() and len(size) < 19):
            raise InvalidInput(f"{shown(header.name)}: the size is no number")
        header.size = int(size)
    if b"sparse" in extensions:
        raise InvalidInput(f"{shown(header.name)} is a sparse file: files and folders alone are taken")
    if header.isdir():
        header.size = 0  # POSIX: whatever stands there, nothing follows
    return header


def _of_pax(kind: bytes, records: dict[str, str], extensions: dict[bytes, str]) -> None:
    """What of a pax header matters here: names and sizes; times, owners and comments do not."""
    extensions[kind] = ""
    if kind == tarfile.XGLTYPE:
        del extensions[kind]  # for all that follows, and there may be several
        if records.keys() & {"path", "size"}:
            raise InvalidInput("a global header gives all files one name or size")
        return
    for key in ("path", "size"):
        if key in records:
            extensions[key.encode()] = records[key]
    if any(key.startswith("GNU.sparse.") for key in records):
        extensions[b"sparse"] = ""


def _records(body: bytes, at: int) -> Iterator[tuple[str, str]]:
    """The records of a pax header: `length key=value`, the length that of the whole line."""
    start = count = 0
    while start < len(body):
        count += 1
        if count > MOST_RECORDS:
            raise InvalidInput(f"at byte {at}: an extended header has at most {MOST_RECORDS} records")
        digits, _, _ = body[start : start + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        line = body[start + len(digits) + 1 : start + length]
        key, equals, value = line.partition(b"=")
        if start + length > len(body) or not equals or not value.endswith(b"\n"):
            raise InvalidInput(f"at byte {at}: an extended header is damaged")
        yield key.decode("utf-8", "replace"), value[:-1].decode("utf-8", "surrogateescape")
        start += length


def _what_else(start: bytes | bytearray) -> str:
    """What it is that does not begin like a tar."""
    if not start:
        return "the body is empty: a tar archive is expected"
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            return f"the archive is compressed ({name}): send the tar plain"
    if start.startswith(b"PK\x03\x04"):
        return "this is a zip file: send a tar archive, or use `appliance dataset import`"
    return "this is no tar archive"
