"""What is asked of the entries of the audit log beside that they are those that were signed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from appliance.accounts.audit import Event
from appliance.accounts.transparency.leaves import Recorded
from appliance.ledger import Connection

_SET_BACK_MS = 60_000
"""So much earlier than one before it an entry may be: acts look at the clock before they get their turn."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a rule has found: `findings` are what must not be, `remarks` what a person should know."""

    findings: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


class Rule(Protocol):
    """A rule over what the entries say."""

    def see(self, entry: Recorded) -> None:
        """Called with each entry, in their order."""

    def judge(self, connection: Connection) -> Judgement:
        """Called in the end, with the ledger at the same moment."""


class Chronology:
    """That time goes on: a clock that was set back is no forgery, and is told."""

    def __init__(self) -> None:
        self._latest = 0
        self._back: list[int] = []

    def see(self, entry: Recorded) -> None:
        if entry.time < self._latest - _SET_BACK_MS:
            self._back.append(entry.seq)
        self._latest = max(self._latest, entry.time)

    def judge(self, connection: Connection) -> Judgement:  # noqa: ARG002 - the entries tell it
        if not self._back:
            return Judgement()
        told = f"{len(self._back)} entries are earlier than one before them, first entry {self._back[0]}"
        return Judgement(remarks=[f"{told}: the clock was set back"])


class OperatorReads:
    """That an operator has opened images under a live grant of its own alone."""

    _OPENED = frozenset({Event.GRANT_OPEN, Event.GRANT_APPROVE})
    _ENDED = frozenset({Event.GRANT_REVOKE, Event.GRANT_DENY})
    _READS = frozenset({Event.IMAGE_OPEN, Event.DATASET_EXPORT})

    def __init__(self) -> None:
        self._live: dict[object, tuple[object, int]] = {}
        self._findings: list[str] = []

    def see(self, entry: Recorded) -> None:
        if entry.event in self._OPENED and isinstance(until := entry.details.get("until"), int):
            self._live[entry.subject] = entry.details.get("operator"), until
        elif entry.event in self._ENDED:
            self._live.pop(entry.subject, None)
        elif entry.event == Event.BACKUP_RESTORE:  # which ends all
            self._live.clear()
        elif entry.event in self._READS and entry.actor.kind == "operator":
            operator, until = self._live.get(str(entry.details.get("grant")), (None, 0))
            if operator != entry.actor.id or entry.time >= until:
                told = f"entry {entry.seq}: operator {entry.actor.id} has read images without a live grant"
                self._findings.append(told)

    def judge(self, connection: Connection) -> Judgement:  # noqa: ARG002 - the entries tell it
        return Judgement(findings=self._findings)


class Erasures:
    """That each erasure which has ended has its certificate."""

    _KINDS: ClassVar[dict[str, str]] = {
        Event.CUSTOMER_ERASE: "customer",
        Event.DATASET_ERASE: "dataset",
        Event.COLLECTION_REMOVE: "collection",
        Event.COLLECTION_EMPTY: "collection",
        Event.IMAGE_DELETE: "image",
    }
    _CERTIFIED = (
        "SELECT kind, subject FROM certificates WHERE kind IN ('customer', 'dataset', 'collection')"
        " UNION ALL SELECT 'image', value FROM certificates, json_each(statement, '$.ids')"
        " WHERE kind = 'image'"
    )
    _UNDER_WAY = (
        "SELECT 'customer', id FROM customers WHERE erasing IS NOT NULL"
        " UNION ALL SELECT 'dataset', id FROM datasets"
        " UNION ALL SELECT 'collection', coalesce(emptied, id) FROM collections WHERE removed"
        " UNION ALL SELECT 'image', id FROM images"
    )

    def __init__(self) -> None:
        self._erased: dict[tuple[str, str], tuple[int, str | None]] = {}

    def see(self, entry: Recorded) -> None:
        if (kind := self._KINDS.get(entry.event)) and entry.subject is not None:
            self._erased[kind, entry.subject] = entry.seq, entry.customer

    def judge(self, connection: Connection) -> Judgement:
        since: int = connection.execute("SELECT seq FROM certified_since").get
        certified = _pairs(connection.execute(self._CERTIFIED))
        missing = {
            erased: seq
            for erased, (seq, customer) in self._erased.items()
            if seq > since and erased not in certified and ("customer", customer) not in certified
        }
        under_way = missing.keys() & _pairs(connection.execute(self._UNDER_WAY)) if missing else frozenset()
        findings = [
            f"entry {seq}: the erasure of {kind} {subject} has no certificate"
            for (kind, subject), seq in missing.items()
            if (kind, subject) not in under_way
        ]
        remarks = [f"{len(under_way)} erasures have not ended, and have no certificate yet"]
        return Judgement(findings, remarks if under_way else [])


RULES: tuple[Callable[[], Rule], ...] = (Chronology, OperatorReads, Erasures)


def _pairs(rows: Iterable[tuple[object, ...]]) -> frozenset[tuple[str, str]]:
    return frozenset((str(kind), str(subject)) for kind, subject in rows)
