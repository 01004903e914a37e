"""The callers' ids of recent hits, so that a query which asks for ids alone reads and unseals nothing."""

from collections.abc import Iterable, Sequence

MOST = 16_384
_ID_BYTES = 200
"""Of one, with its place in the dict, where it is of 36 characters."""


class RecentIds:
    """Ids by label, of the last MOST hits that were different; on the event loop only."""

    def __init__(self) -> None:
        self._ids: dict[int, str] = {}  # least recently used first

    @property
    def bytes(self) -> int:
        """What they take in memory, about."""
        return _ID_BYTES * len(self._ids)

    def find(self, labels: Sequence[int]) -> list[str] | None:
        """Their ids, None unless all are known."""
        try:
            found = [self._ids[label] for label in labels]
        except KeyError:
            return None
        for label in labels:
            del self._ids[label]
        self._ids.update(zip(labels, found, strict=True))
        return found

    def remember(self, ids: Iterable[tuple[int, str]]) -> None:
        """Those that were hit longest ago make room."""
        self._ids.update(ids)
        while len(self._ids) > MOST:
            del self._ids[next(iter(self._ids))]

    def forget(self, label: int) -> None:
        self._ids.pop(label, None)
