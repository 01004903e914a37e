"""What a feed asks for, found out while it is read: in memory, packed, and changing nothing yet."""

import zlib
from collections.abc import Iterator, Sequence

import msgspec

from appliance.search.sync.items import Need
from appliance.search.sync.parsing import Item

AT_ONCE = 64
"""Items that are seen to together: their images are fetched, and one transaction takes what comes of them."""

_BLOCK: msgspec.msgpack.Decoder[list[tuple[Need, Item]]] = msgspec.msgpack.Decoder(list[tuple[Need, Item]])


class Plan:
    """Items that need something, in the order of the feed, and the handles of all."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.matched = 0
        """How many records that the feed brought are still in it."""
        self.left = 0
        self._waiting: list[tuple[Need, Item]] = []
        self._blocks: list[bytes] = []

    def take(self, item: Item, handle: bytes, need: Need, *, known: bool) -> bool:
        """Note an item; `known`: the feed brought its record. False where the id came before."""
        if handle in self.seen:
            return False
        self.seen.add(handle)
        self.matched += known
        if need != "nothing" and not item.fault:
            self.left += 1
            self._waiting.append((need, item))
            if len(self._waiting) == AT_ONCE:
                self._pack()
        return True

    def blocks(self) -> Iterator[Sequence[tuple[Need, Item]]]:
        """The items that need something, some at a time; each is held until it is given out."""
        self._pack()
        self._blocks.reverse()
        while self._blocks:
            yield _BLOCK.decode(zlib.decompress(self._blocks.pop()))

    def _pack(self) -> None:
        if self._waiting:
            self._blocks.append(zlib.compress(msgspec.msgpack.encode(self._waiting), 1))
            self._waiting = []
