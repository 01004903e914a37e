"""What searches have lately had to do with, so that asking for it again reads and unseals nothing."""

from collections.abc import Iterable, Sequence

MOST = 16_384
MOST_ASKED = 4_096
_FEW_NEW = 256
"""A bulk import would drive out what searches hit."""
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

    def expect(self, ids: Sequence[tuple[int, str]]) -> None:
        """Of new records, which are soon hit where others are; of so many that few are, nothing is kept."""
        if self._ids and len(ids) <= _FEW_NEW:
            self.remember(ids)

    def forget(self, label: int) -> None:
        self._ids.pop(label, None)


class RecentLabels:
    """Labels by id, of the last MOST_ASKED records that were asked for; on the event loop only."""

    def __init__(self) -> None:
        self._labels: dict[str, int] = {}  # least recently used first
        self._ids: dict[int, str] = {}

    @property
    def bytes(self) -> int:
        """What they take in memory, about."""
        return 2 * _ID_BYTES * len(self._labels)

    def find(self, external: str) -> int | None:
        """The label that the id had when it was asked for."""
        label = self._labels.pop(external, None)
        if label is not None:
            self._labels[external] = label
        return label

    def remember(self, external: str, label: int) -> None:
        """Those that were asked for longest ago make room."""
        self._labels[external] = label
        self._ids[label] = external
        if len(self._labels) > MOST_ASKED:
            del self._ids[self._labels.pop(next(iter(self._labels)))]

    def forget(self, label: int) -> None:
        external = self._ids.pop(label, None)
        if external is not None:
            del self._labels[external]
