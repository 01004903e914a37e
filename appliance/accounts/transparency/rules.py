"""What is asked of the entries of the audit log beside that they are those that were signed."""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from appliance.accounts import certificates
from appliance.accounts.audit import Event
from appliance.accounts.customers import HAS_CLAIMED
from appliance.accounts.token_rows import TOLD_OF_RECOVERY
from appliance.accounts.transparency.judgement import Judgement, Rule
from appliance.accounts.transparency.leaves import Recorded
from appliance.accounts.transparency.rows import Endings, Held, Issued, Standing, Written
from appliance.accounts.transparency.signing import Overdue
from appliance.ledger import Connection

_SET_BACK_MS = 60_000
"""So much earlier than one before it an entry may be: acts look at the clock before they get their turn."""


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


class Alterations:
    """That something else has changed how the ledger is built while a daemon ran: it wrote nothing until that
    was undone.
    """

    def __init__(self) -> None:
        self._told: list[int] = []

    def see(self, entry: Recorded) -> None:
        if entry.event == Event.LEDGER_ALTER:
            self._told.append(entry.seq)

    def judge(self, connection: Connection) -> Judgement:  # noqa: ARG002 - the entries tell it
        return Judgement(
            remarks=[
                f"entry {seq}: something else had changed how the ledger is built, and nothing more was"
                " written until that was undone"
                for seq in self._told
            ]
        )


@dataclass(slots=True)
class _Approved:
    """What a customer has let an operator see, as the entry says that made the grant live.

    Entries of before name no images, and tell how many: `count`, and `seen` are those that were opened.
    """

    customer: str | None
    operator: object
    until: int
    dataset: object
    named: frozenset[str] | None
    count: int = 0
    seen: set[str | None] = field(default_factory=set)

    def covers(self, entry: Recorded) -> bool:
        """Whether a read by this operator is of what the grant is for."""
        if entry.event == Event.DATASET_EXPORT:
            return self.dataset == entry.subject
        if self.dataset is not None:
            return self.dataset == entry.details.get("dataset")
        if self.named is not None:
            return entry.subject in self.named
        if entry.subject not in self.seen and len(self.seen) == self.count:
            return False
        self.seen.add(entry.subject)
        return True


class OperatorReads:
    """That an operator has opened images under a live grant of its own alone, and those that it is for.

    What a grant is for is what the log says that its customer has opened or approved, not its row.
    """

    _OPENED = frozenset({Event.GRANT_OPEN, Event.GRANT_APPROVE})
    _ENDED = frozenset({Event.GRANT_REVOKE, Event.GRANT_DENY})
    _READS = frozenset({Event.IMAGE_OPEN, Event.DATASET_EXPORT})

    def __init__(self) -> None:
        self._live: dict[str, _Approved] = {}
        self._ends: list[tuple[int, str]] = []  # a heap, so that what has long ended is not remembered

    def see(self, entry: Recorded) -> str | None:
        if entry.event in self._OPENED and isinstance(until := entry.details.get("until"), int):
            self._open(entry, until)
        elif entry.event in self._ENDED:
            self._live.pop(str(entry.subject), None)
        elif entry.event == Event.BACKUP_RESTORE:  # which ends all
            self._live.clear()
        elif entry.event in self._READS and entry.actor.kind == "operator":
            return self._read(entry)
        return None

    def judge(self, connection: Connection) -> Judgement:  # noqa: ARG002 - the entries tell it
        return Judgement()

    def _open(self, entry: Recorded, until: int) -> None:
        if entry.actor.kind != "token" or entry.subject is None:
            return
        while self._ends and self._ends[0][0] < entry.time - _SET_BACK_MS:
            self._live.pop(heapq.heappop(self._ends)[1], None)
        images, operator = entry.details.get("images"), entry.details.get("operator")
        named = frozenset(map(str, images)) if isinstance(images, list) else None
        count = images if isinstance(images, int) else 0
        dataset = entry.details.get("dataset")
        self._live[entry.subject] = _Approved(entry.customer, operator, until, dataset, named, count)
        heapq.heappush(self._ends, (until, entry.subject))

    def _read(self, entry: Recorded) -> str | None:
        grant = str(entry.details.get("grant"))
        approved = self._live.get(grant)
        who = f"entry {entry.seq}: operator {entry.actor.id} has read images"
        if (
            approved is None
            or (approved.customer, approved.operator) != (entry.customer, entry.actor.id)
            or entry.time >= approved.until
        ):
            return f"{who} without a live grant"
        if not approved.covers(entry):
            return f"{who} that grant {grant} is not for: it was widened after its customer had approved it"
        return None


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
        " UNION ALL SELECT 'image', value FROM certificates,"
        " json_each(iif(json_valid(statement), statement, '{}'), '$.ids') WHERE kind = 'image'"
    )
    _UNDER_WAY = (
        "SELECT 'customer', id FROM customers WHERE erasing IS NOT NULL"
        " UNION ALL SELECT 'dataset', id FROM datasets"
        " UNION ALL SELECT 'collection', coalesce(emptied, id) FROM collections WHERE removed"
        " UNION ALL SELECT 'image', id FROM images"
    )
    _SINCE = "SELECT coalesce(max(seq), 0) FROM certified_since"

    def __init__(self) -> None:
        self._erased: dict[tuple[str, str], tuple[int, str | None]] = {}
        self._first: int | None = None

    def see(self, entry: Recorded) -> None:
        if (kind := self._KINDS.get(entry.event)) and entry.subject is not None:
            self._erased[kind, entry.subject] = entry.seq, entry.customer
        if entry.event == Event.ERASURE_CERTIFY and self._first is None:
            self._first = entry.seq

    def judge(self, connection: Connection) -> Judgement:
        findings, remarks = list[str](), list[str]()
        since: int = connection.execute(self._SINCE).get
        if self._first is not None and since >= self._first:
            findings.append(
                f"the ledger says that there are certificates since entry {since}, and entry {self._first}"
                " tells of one: that was changed"
            )
            since = self._first - 1
        if exempt := sum(seq <= since for seq, _ in self._erased.values()):
            remarks.append(f"{exempt} erasures up to entry {since} are from before there were certificates")
        certified = _pairs(connection.execute(self._CERTIFIED))
        missing = {
            erased: seq
            for erased, (seq, customer) in self._erased.items()
            if seq > since and erased not in certified and ("customer", customer) not in certified
        }
        under_way = missing.keys() & _pairs(connection.execute(self._UNDER_WAY)) if missing else frozenset()
        findings += [
            f"entry {seq}: the erasure of {kind} {subject} has no certificate"
            for (kind, subject), seq in missing.items()
            if (kind, subject) not in under_way
        ]
        if under_way:
            remarks.append(f"{len(under_way)} erasures have not ended, and have no certificate yet")
        return Judgement(findings, remarks)


class Certified:
    """That each certificate which the log tells of is there, and each that is there as it was signed."""

    _MISSING = (
        "SELECT seq, subject FROM audit WHERE event = ? AND NOT EXISTS"
        " (SELECT 1 FROM certificates WHERE id = audit.subject) ORDER BY seq"
    )

    def __init__(self, public: str | None) -> None:
        """`public` is the appliance's own key, in base64; None where it cannot be read, which is told."""
        self._public = public

    def see(self, entry: Recorded) -> None:
        """The ledger has both sides."""

    def judge(self, connection: Connection) -> Judgement:
        return Judgement(self._findings(connection))

    def _findings(self, connection: Connection) -> Iterator[str]:
        for seq, certificate in connection.execute(self._MISSING, (Event.ERASURE_CERTIFY.value,)):
            yield f"entry {seq}: the certificate {certificate} of an erasure is missing"
        if self._public is not None:
            for certificate in certificates.changed(connection, self._public):
                yield f"the certificate {certificate} of an erasure is not as the appliance signed it"


class Claims:
    """That a customer which has used a token of its own counts as one, and issues its tokens itself."""

    _UNCLAIMED = f"SELECT id FROM customers WHERE claimed_at IS NULL AND erased_at IS NULL AND {HAS_CLAIMED}"  # noqa: S608

    def see(self, entry: Recorded) -> None:
        """The ledger has both sides."""

    def judge(self, connection: Connection) -> Judgement:
        return Judgement(
            f"customer {row[0]} has used a token, and its row says that it has not: that was changed"
            for row in connection.execute(self._UNCLAIMED)
        )


class Recoveries:
    """That a token of recovery counts as one, from when its customer was told of it."""

    _AT_ONCE = (
        "SELECT audit.seq, tokens.id FROM audit CROSS JOIN tokens ON tokens.id = audit.subject"  # noqa: S608
        f" WHERE {TOLD_OF_RECOVERY} AND (NOT recovery OR created_at <> audit.time)"
    )

    def see(self, entry: Recorded) -> None:
        """The ledger has both sides."""

    def judge(self, connection: Connection) -> Judgement:
        return Judgement(
            f"entry {seq}: token {token} is one of recovery, and its row says otherwise: that was changed"
            for seq, token in connection.execute(self._AT_ONCE)
        )


def all_rules(public: str | None, signed: int | None) -> list[Rule]:
    """One of each; `public` as `Certified` takes it, `signed` as `Overdue`."""
    return [
        Overdue(signed),
        Alterations(),
        Chronology(),
        OperatorReads(),
        Erasures(),
        Certified(public),
        Claims(),
        Recoveries(),
        Standing(),
        Endings(),
        Issued(),
        Held(),
        Written(),
    ]


def _pairs(rows: Iterable[tuple[object, ...]]) -> frozenset[tuple[str, str]]:
    return frozenset((str(kind), str(subject)) for kind, subject in rows)
