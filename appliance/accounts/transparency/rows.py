"""What rows of tokens, agreements and grants say, held against what the audit log has told of them."""

from collections import defaultdict
from collections.abc import Iterator

from appliance.accounts.audit import Event
from appliance.accounts.endings import TOLD_OF_REVOCATION
from appliance.accounts.holders import FOUNDER, given, passed
from appliance.accounts.rights import Scope
from appliance.accounts.transparency.judgement import Judgement
from appliance.accounts.transparency.leaves import Recorded
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


class Held:
    """That a token is held by whom `holders` left it to, going by the log alone, and since that entry.

    Nobody approves anything with what nobody holds: so rows of before there were holders may say that.
    """

    _ROWS = "SELECT id, holder FROM tokens WHERE holder IS NOT NULL"
    _SINCE = (
        "SELECT audit.seq, tokens.id FROM audit CROSS JOIN tokens"  # noqa: S608
        f" ON tokens.id = iif(event = 'token.add', subject, {_told('successor')})"
        " WHERE event IN ('token.add', 'token.rotate') AND tokens.seq <> audit.seq - 1"
        " AND (tokens.seq > 0 OR audit.seq > (SELECT min(seq) + 1 FROM tokens WHERE seq > 0))"
    )

    def __init__(self) -> None:
        self._holders: dict[str, str] = {}
        self._founders: dict[str | None, set[str]] = defaultdict(set)  # those that are not revoked

    def see(self, entry: Recorded) -> None:
        if entry.event == Event.TOKEN_ADD and entry.subject is not None:
            self._hold(entry, entry.subject, self._of_issued(entry, entry.subject))
        elif entry.event == Event.TOKEN_ROTATE and entry.subject is not None:
            self._hold(entry, str(entry.details.get("successor")), self._of_successor(entry, entry.subject))
            if entry.details.get("overlap_seconds") == 0:
                self._founders[entry.customer].discard(entry.subject)
        elif entry.event == Event.TOKEN_REVOKE:
            self._founders[entry.customer].discard(str(entry.subject))
        elif entry.event == Event.BACKUP_RESTORE:  # which revokes tokens that it does not name
            self._founders.clear()

    def judge(self, connection: Connection) -> Judgement:
        return Judgement(self._findings(connection))

    def _findings(self, connection: Connection) -> Iterator[str]:
        for token, holder in connection.execute(self._ROWS):
            if self._holders.get(token) != holder:
                yield f"token {token} is another one's than its row says, by the log: that was changed"
        for seq, token in connection.execute(self._SINCE):
            yield f"entry {seq}: token {token} is of then, and its row says otherwise: that was changed"

    def _hold(self, entry: Recorded, token: str, holder: str | None) -> None:
        if holder is not None:
            self._holders[token] = holder
        if holder == FOUNDER:
            self._founders[entry.customer].add(token)

    def _of_issued(self, entry: Recorded, token: str) -> str | None:
        if entry.actor.kind == "token":
            return given(self._holders.get(entry.actor.id), token)
        first = entry.details.get("recovery") or not self._founders[entry.customer]
        return FOUNDER if Scope.ADMIN in entry.details.get("scopes", ()) and first else None

    def _of_successor(self, entry: Recorded, token: str) -> str | None:
        holder = self._holders.get(token)
        if entry.actor.kind != "token" or entry.actor.id == token:
            return holder
        return passed(holder, self._holders.get(entry.actor.id))
