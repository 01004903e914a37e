"""What rows of customers, tokens, agreements and grants say, held against what the audit log has told."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import msgspec

from appliance.accounts.audit import EntryDamaged, Event, Selection, rows
from appliance.accounts.endings import TOLD_OF_REVOCATION
from appliance.accounts.holders import FOUNDER, given, passed
from appliance.accounts.rights import Scope
from appliance.accounts.transparency.judgement import Judgement
from appliance.accounts.transparency.leaves import Recorded, leaf, recorded
from appliance.ledger import Connection

# A damaged row of the log need not be JSON: that it is damaged is found elsewhere.
_DETAILS = "iif(json_valid(details), details, '{}')"


def _told(name: str) -> str:
    return f"json_extract({_DETAILS}, '$.{name}')"


class Endings:
    """That what was revoked or denied, or rotated with an overlap, has ended in its row too."""

    _OF_TOKENS = (
        "SELECT audit.seq, subject FROM audit CROSS JOIN tokens ON id = subject WHERE revoked_at IS NULL"
    )
    _OF_AGREEMENTS = "SELECT seq, subject FROM audit CROSS JOIN agreements ON id = subject"
    _OF_GRANTS = "SELECT audit.seq, subject FROM audit CROSS JOIN grants ON id = subject"
    _OVERLAP = _told("overlap_seconds")
    _OVERLAPPED = (
        f"{_OF_TOKENS} AND event = 'token.rotate' AND {_OVERLAP} > 0"
        f" AND (expires_at IS NULL OR expires_at > time + 1000 * {_OVERLAP})"
    )
    _BACK = (
        ("token", f"{_OF_TOKENS} AND {TOLD_OF_REVOCATION}"),
        ("token", _OVERLAPPED),
        ("agreement", f"{_OF_AGREEMENTS} WHERE event = 'agreement.revoke' AND revoked_at IS NULL"),
        ("grant", f"{_OF_GRANTS} WHERE event IN ('grant.revoke', 'grant.deny') AND closed IS NULL"),
    )

    def see(self, entry: Recorded) -> None:
        """The ledger has both sides."""

    def judge(self, connection: Connection) -> Judgement:
        return Judgement(self._findings(connection))

    def _findings(self, connection: Connection) -> Iterator[str]:
        for kind, query in self._BACK:
            for seq, subject in connection.execute(query):
                yield f"entry {seq}: it ended {kind} {subject}, and the row says otherwise: that was changed"


class Standing:
    """That customers are erased, suspended and resumed in their rows as the log has told it.

    By the order of its entries, of which none comes after an erasure. What a customer is called the log does
    not know, nor whom a restore of before suspended or erased again: rows that say more than it are told.
    """

    _ROWS = (
        "SELECT id, erased_at IS NOT NULL AND name = id, coalesce(suspended_at, erased_at) IS NOT NULL,"
        " resumed_at FROM customers"
    )

    def __init__(self) -> None:
        self._erased: dict[str, int] = {}
        self._suspended: dict[str, int] = {}
        self._resumed: dict[str, tuple[int, int]] = {}
        self._again: list[tuple[str, int]] = []

    def see(self, entry: Recorded) -> None:
        customer = str(entry.subject)
        if entry.event == Event.CUSTOMER_ERASE:
            if customer in self._erased:
                self._again.append((customer, entry.seq))
            self._erased[customer] = entry.seq
        elif entry.event == Event.CUSTOMER_SUSPEND:
            self._suspended[customer] = entry.seq
        elif entry.event == Event.CUSTOMER_RESUME:
            self._suspended.pop(customer, None)
            self._resumed[customer] = entry.seq, entry.time

    def judge(self, connection: Connection) -> Judgement:
        rows = {str(identity): said for identity, *said in connection.execute(self._ROWS)}
        return Judgement(list(self._findings(rows)), list(self._remarks(rows)))

    def _findings(self, rows: dict[str, list[Any]]) -> Iterator[str]:
        nothing = [0, 0, None]
        for customer, seq in self._erased.items():
            if not rows.get(customer, nothing)[0]:
                yield _otherwise(seq, "erased", customer)
        for customer, seq in self._suspended.items():
            if customer not in self._erased and not rows.get(customer, nothing)[1]:
                yield _otherwise(seq, "suspended", customer)
        for customer, (seq, time) in self._resumed.items():
            if customer not in self._erased and rows.get(customer, nothing)[2] != time:
                yield _otherwise(seq, "resumed", customer)

    def _remarks(self, rows: dict[str, list[Any]]) -> Iterator[str]:
        for customer, seq in self._again:
            yield f"entry {seq}: customer {customer} was erased again: its row had been put back"
        ended = self._erased.keys() | self._suspended.keys()
        if alone := [customer for customer, said in rows.items() if said[1] and customer not in ended]:
            yield (
                f"{len(alone)} customers are suspended or erased by their rows alone, first {min(alone)}:"
                " by a restore of an earlier version, or that was changed"
            )


def _otherwise(seq: int, what: str, customer: str) -> str:
    return f"entry {seq}: it {what} customer {customer}, and the row says otherwise: that was changed"


class Issued:
    """That a token is of the customer, scopes and lists that it was issued with, its successor too."""

    _LISTS = ("scopes", "collections", "tasks")
    _OTHERWISE = " OR ".join(
        (
            "tokens.customer IS NOT audit.customer",
            f"{_told('bound')} AND client_subject IS NULL",
            *(f"'[\"' || replace({name}, ' ', '\",\"') || '\"]' IS NOT {_told(name)}" for name in _LISTS),
        )
    )
    _ADDED = (
        "SELECT audit.seq, tokens.id FROM audit CROSS JOIN tokens ON tokens.id = subject"  # noqa: S608
        f" WHERE event = 'token.add' AND ({_OTHERWISE})"
    )
    _ROTATED = (
        "SELECT audit.seq, tokens.id FROM audit CROSS JOIN tokens AS old ON old.id = subject"  # noqa: S608
        f" CROSS JOIN tokens ON tokens.id = {_told('successor')} WHERE event = 'token.rotate' AND ("
        + " OR ".join(f"tokens.{name} IS NOT old.{name}" for name in ("customer", *_LISTS, "client_subject"))
        + ")"
    )

    def see(self, entry: Recorded) -> None:
        """The ledger has both sides."""

    def judge(self, connection: Connection) -> Judgement:
        return Judgement(self._findings(connection))

    def _findings(self, connection: Connection) -> Iterator[str]:
        for query in (self._ADDED, self._ROTATED):
            for seq, token in connection.execute(query):
                yield f"entry {seq}: token {token} was issued for else than its row says: that was changed"


class Written:
    """That the row of each token is as the appliance wrote it, as far as the daemon has seen, which has the
    key: it goes on until the token is revoked.
    """

    def __init__(self) -> None:
        self._changed: dict[str, int] = {}

    def see(self, entry: Recorded) -> None:
        if entry.event == Event.TOKEN_DAMAGED:
            self._changed[str(entry.subject)] = entry.seq
        elif entry.event == Event.TOKEN_REVOKE:
            self._changed.pop(str(entry.subject), None)

    def judge(self, connection: Connection) -> Judgement:
        return Judgement(
            f"entry {seq}: the row of token {token} was not as the appliance had written it: that was changed"
            for token, seq in self._changed.items()
            if connection.execute("SELECT 1 FROM tokens WHERE id = ?", (token,)).get
        )


class Held:
    """That a token is held by whom `holders` left it to, going by the log alone, and since that entry.

    Nobody approves anything with what nobody holds: so rows of before there were holders may say that. Those
    that say else got it from migration 028: to it a founder is the first token with admin that a customer
    had, by time and id, whether it was revoked or not, and each of recovery.
    """

    _ROWS = "SELECT id, holder FROM tokens WHERE holder IS NOT NULL"
    _SINCE = (
        "SELECT audit.seq, tokens.id FROM audit CROSS JOIN tokens"  # noqa: S608
        f" ON tokens.id = iif(event = 'token.add', subject, {_told('successor')})"
        " WHERE event IN ('token.add', 'token.rotate') AND tokens.seq <> audit.seq - 1"
        " AND (tokens.seq > 0 OR audit.seq > (SELECT min(seq) + 1 FROM tokens WHERE seq > 0))"
    )
    _BEFORE = "SELECT min(seq) FROM tokens WHERE seq > 0"
    """How far the log went when the first token was issued that has its holder from then."""
    _EVENTS = Selection(
        events=(Event.TOKEN_ADD, Event.TOKEN_ROTATE, Event.TOKEN_REVOKE, Event.BACKUP_RESTORE)
    )

    def see(self, entry: Recorded) -> None:
        """The ledger has both sides."""

    def judge(self, connection: Connection) -> Judgement:
        return Judgement(self._findings(connection))

    def _findings(self, connection: Connection) -> Iterator[str]:
        told: int | None = connection.execute(self._BEFORE).get
        before = math.inf if told is None else told
        replayed = _Replayed(before, _first_founders(self._entries(connection), before))
        for entry in self._entries(connection):
            replayed.follow(entry)
        for token, holder in connection.execute(self._ROWS):
            if replayed.holders.get(token) != holder:
                yield f"token {token} is another one's than its row says, by the log: that was changed"
        for seq, token in connection.execute(self._SINCE):
            yield f"entry {seq}: token {token} is of then, and its row says otherwise: that was changed"

    def _entries(self, connection: Connection) -> Iterator[Recorded]:
        """Those that are told of tokens; damaged ones are found elsewhere."""
        for row in rows(connection, self._EVENTS, after=0, limit=-1):
            with suppress(EntryDamaged, msgspec.DecodeError):
                yield recorded(leaf(row))


def _first_founders(entries: Iterable[Recorded], before: float) -> frozenset[str]:
    """The founders of before, as migration 028 chose them."""
    admins, recovered = set[str](), set[str]()
    first: dict[str | None, tuple[int, str]] = {}
    for entry in entries:
        if entry.seq > before:
            break
        token = _made(entry)
        if token is None:
            continue
        if entry.subject in admins or Scope.ADMIN in entry.details.get("scopes", ()):
            admins.add(token)
            made = entry.time, token
            first[entry.customer] = min(first.get(entry.customer, made), made)
        if token in admins and entry.details.get("recovery"):
            recovered.add(token)
    return frozenset(recovered | {token for _, token in first.values()})


def _made(entry: Recorded) -> str | None:
    """The token that an entry tells was made."""
    if entry.event == Event.TOKEN_ADD:
        return entry.subject
    return str(entry.details.get("successor")) if entry.event == Event.TOKEN_ROTATE else None


class _Replayed:
    """Who holds which token, entry by entry; up to `before` as migration 028 has it with these `founders`."""

    def __init__(self, before: float, founders: frozenset[str]) -> None:
        self._before = before
        self._chosen = founders
        self._founders: dict[str | None, set[str]] = defaultdict(set)  # those that are not revoked
        self.holders: dict[str, str] = {}

    def follow(self, entry: Recorded) -> None:
        subject = str(entry.subject)
        if (token := _made(entry)) is not None:
            holder = self._of_before(entry, token) if entry.seq <= self._before else self._of(entry, token)
            if holder is not None:
                self.holders[token] = holder
            if holder == FOUNDER:
                self._founders[entry.customer].add(token)
        if entry.event == Event.TOKEN_REVOKE or entry.details.get("overlap_seconds") == 0:
            self._founders[entry.customer].discard(subject)
        elif entry.event == Event.BACKUP_RESTORE:  # which revokes tokens that it does not name
            self._founders.clear()

    def _of_before(self, entry: Recorded, token: str) -> str | None:
        by_token, subject = entry.actor.kind == "token", str(entry.subject)
        if token in self._chosen:
            return FOUNDER
        if entry.event == Event.TOKEN_ADD:
            return given(self.holders.get(entry.actor.id), token) if by_token else None
        return None if by_token and entry.actor.id != subject else self.holders.get(subject)

    def _of(self, entry: Recorded, token: str) -> str | None:
        by_token, actor = entry.actor.kind == "token", entry.actor.id
        if entry.event == Event.TOKEN_ROTATE:
            holder = self.holders.get(str(entry.subject))
            return passed(holder, self.holders.get(actor)) if by_token and actor != entry.subject else holder
        if by_token:
            return given(self.holders.get(actor), token)
        first = entry.details.get("recovery") or not self._founders[entry.customer]
        return FOUNDER if Scope.ADMIN in entry.details.get("scopes", ()) and first else None
