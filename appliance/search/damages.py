"""What of one collection is not what was stored: named once, and left out of answers."""

import logging
from collections.abc import Callable, Iterable

from prometheus_client import Counter

from appliance.search.records import CollectionId, Record
from appliance.search.rows import Found
from appliance.search.segments import Segments

_log = logging.getLogger(__name__)


class Damages:
    """The damaged records of one collection; on the event loop only."""

    def __init__(
        self, collection: CollectionId, segments: Segments, found: Counter, doubt: Callable[[int], None]
    ) -> None:
        """`found` counts them, `doubt` is told the label of each."""
        self._collection = collection
        self._segments = segments
        self._found = found
        self._doubt = doubt
        self._unreadable: set[int] = set()
        self.labels: set[int] = set()
        """Records that no search finds: their vector, or their id and metadata, are not what was stored."""

    def note_vectors(self, damaged: Iterable[int]) -> None:
        """Records that have no sound vector, each told once."""
        for label in damaged:
            self.labels.add(label)
            self._note(label, "vector", "searches leave it out")

    def sound(self, found: Iterable[Found | None]) -> list[Record | None]:
        """The records; one whose words do not open is noted, and no search finds it from now on."""
        records: list[Record | None] = []
        for one in found:
            records.append(None if one is None else one[1])
            if one is not None and one[1] is None and one[0] not in self._unreadable:
                self._unreadable.add(one[0])
                if self._segments.kill(one[0]):
                    self.labels.add(one[0])
                self._note(one[0], "id or metadata", "no answer has it")
        return records

    def forget(self, label: int) -> None:
        """It has been deleted."""
        self.labels.discard(label)
        self._unreadable.discard(label)

    def _note(self, label: int, what: str, so: str) -> None:
        self._found.inc()
        self._doubt(label)
        _log.error(
            "collection %s: the %s of record %d is damaged in the ledger; %s, delete it or restore a backup",
            self._collection,
            what,
            label,
            so,
        )
