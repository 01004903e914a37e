"""The files of a log, as https://c2sp.org/tlog-tiles lays them out.

    tile/<level>/<N>[.p/<W>]    up to 256 hashes of complete subtrees of 256**level entries, one after another
    tile/entries/<N>[.p/<W>]    the entries of the tile at level 0, a length of two bytes before each

N counts tiles of a level, written as x001/x234/067. A tile of fewer than 256 hashes has its width behind it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from appliance.accounts.transparency.merkle import HASH_BYTES, WIDTH, leaf_hash, tile_hash, tree_hash

MAX_ENTRY_BYTES = 0xFFFF

File = tuple[str, bytes]
"""A path within the folder of the log, and what belongs there."""


def tile_path(level: int, index: int) -> str:
    """Of a full tile of hashes."""
    return f"tile/{level}/{_number(index)}"


def bundle_path(index: int) -> str:
    """Of a full bundle of entries."""
    return f"tile/entries/{_number(index)}"


def partial_path(full: str, width: int) -> str:
    """Of a tile or bundle that is not full yet."""
    return f"{full}.p/{width}"


def bundle(entries: list[bytes]) -> bytes:
    """Entries as a file holds them; each has at most MAX_ENTRY_BYTES."""
    return b"".join(len(entry).to_bytes(2) + entry for entry in entries)


def first_entries(whole: bytes, count: int) -> bytes:
    """A bundle of no more than the first `count` entries of another."""
    end = 0
    for _ in range(count):
        end += 2 + int.from_bytes(whole[end : end + 2])
    return whole[:end]


def hashes_of(tile: bytes) -> list[bytes]:
    """The hashes that a tile holds."""
    return [tile[at : at + HASH_BYTES] for at in range(0, len(tile), HASH_BYTES)]


@dataclass
class Edge:
    """The right edge of a tree of `size` entries: its tiles that are not full yet, from which it grows."""

    size: int = 0
    levels: list[list[bytes]] = field(default_factory=list)
    """Of each level the hashes behind its last full tile."""
    entries: list[bytes] = field(default_factory=list)
    """Those behind the last full bundle."""

    def copy(self) -> "Edge":
        """One that grows for itself."""
        return Edge(self.size, [list(tile) for tile in self.levels], list(self.entries))

    def add(self, entry: bytes) -> list[File]:
        """Append an entry; the full tiles and the bundle that it completes, mostly none."""
        self.entries.append(entry)
        full = list(self._add_hash(0, leaf_hash(entry)))
        if full:
            full.append((bundle_path(self.size // WIDTH), bundle(self.entries)))
            self.entries = []
        self.size += 1
        return full

    def partial(self) -> list[File]:
        """The tiles and the bundle of this size that are not full."""
        files = []
        for level, tile in enumerate(self.levels):
            if tile:
                path = tile_path(level, self.size // WIDTH ** (level + 1))
                files.append((partial_path(path, len(tile)), b"".join(tile)))
        if self.entries:
            path = partial_path(bundle_path(self.size // WIDTH), len(self.entries))
            files.append((path, bundle(self.entries)))
        return files

    def complete(self, level: int, index: int) -> bytes:
        """The hash of a subtree that is in no full tile yet; see `merkle.Complete`."""
        return self.levels[level][index % WIDTH]

    def root(self) -> bytes:
        """The hash of the whole tree."""
        return tree_hash(self.size, self.complete)

    def _add_hash(self, level: int, value: bytes) -> Iterator[File]:
        if level == len(self.levels):
            self.levels.append([])
        tile = self.levels[level]
        tile.append(value)
        if len(tile) == WIDTH:
            self.levels[level] = []
            yield tile_path(level, self.size // WIDTH ** (level + 1)), b"".join(tile)
            yield from self._add_hash(level + 1, tile_hash(tile))


def widths(size: int) -> Iterator[tuple[int, int, int]]:
    """Level, index and width of every tile at the right edge of a tree that is not full."""
    level = 0
    while count := size // WIDTH**level:
        if width := count % WIDTH:
            yield level, count // WIDTH, width
        level += 1


def under_way(signed: int, size: int) -> Iterator[str]:
    """The folders, and those above them, in which something is written or removed while a tree grows from
    `signed` entries to `size`: a crash may leave each of them without a file.
    """
    level = 0
    while size > signed and size // WIDTH**level:
        span = WIDTH ** (level + 1)
        for index in range(signed // span, (size - 1) // span + 1):
            for full in (tile_path(level, index), *([] if level else [bundle_path(index)])):
                *parts, _ = partial_path(full, 1).split("/")
                yield from ("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        level += 1


def _number(index: int) -> str:
    digits = f"{index % 1000:03}"
    while index := index // 1000:
        digits = f"x{index % 1000:03}/{digits}"
    return digits
