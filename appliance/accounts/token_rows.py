"""The rows of tokens, each under a MAC over all that it says: COVERED says what that is.

One that something else than this module has written or changed is no token, whatever it says. A MAC does not
tell an older row that was put back with the MAC that it had: that a token was revoked the audit log tells,
which is asked as well, see `endings`; what else such a row may have said, `audit verify` finds.
"""

import hmac
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import msgspec

from appliance.accounts.audit import AUDITED, Actor
from appliance.accounts.customers import CustomerId
from appliance.accounts.endings import CUSTOMER_RESUMED_AT, REVOKED_BY_LOG_ALONE, TOKEN_REVOKED_AT
from appliance.accounts.rights import Rights, Scope
from appliance.errors import Conflict, NotFound, Unauthenticated
from appliance.ledger import Connection
from appliance.vault import Keys

_RIGHTS = ("customer", "scopes", "collections", "tasks", "requests_per_minute", "bytes_per_minute")
_TIMES = ("created_at", "expires_at", "revoked_at")
COVERED = ("id", "mac", *_RIGHTS, "client_subject", "recovery", *_TIMES, "holder", "rotated_from", "seq")
"""The columns under the MAC, in the order that it has them."""
UNCOVERED = ("last_used_at", "row_mac")
"""The others: the MAC itself, and what is written once a minute for all that were used, and only shown."""
COVERED_SINCE = 31
"""Since this schema: the first start of a daemon under it gives rows of before theirs, later ones none."""

TOLD_OF_RECOVERY = """event = 'token.add' AND instr(details, '"recovery":true')"""
"""Of a row of the audit log, as an expression of SQL: whether it tells of a token of recovery."""
RECOVERY_SECONDS = 86400
"""For so long a customer sees in its audit log that an operator has issued a token, before that is taken."""

_LABEL = "rows of tokens"
_AT_ONCE = 10_000
_NUMBERS = {"requests_per_minute", "bytes_per_minute", "recovery", *_TIMES, "seq"}
# Texts as bytes: what a hand made of one need not be a text.
_READ = ", ".join(name if name in _NUMBERS else f"CAST(tokens.{name} AS BLOB)" for name in COVERED)
_HELD = f"{_READ}, CAST(row_mac AS BLOB)"
_END = len(COVERED)
_RECOVERY, _CREATED = COVERED.index("recovery"), COVERED.index("created_at")
_OF_RIGHTS = slice(COVERED.index("customer"), _RECOVERY)
_VALID_FROM = (
    f"iif(recovery, max(created_at, coalesce((SELECT {CUSTOMER_RESUMED_AT} FROM customers"  # noqa: S608
    f" WHERE customers.id = tokens.customer), 0)) + {RECOVERY_SECONDS * 1000}, NULL)"
)
_SHOWN = f"{_HELD}, {TOKEN_REVOKED_AT}, last_used_at, {_VALID_FROM}"
_STARTED = (
    "SELECT 1 FROM audit INDEXED BY audit_of_starts WHERE event = 'daemon.start'"  # noqa: S608
    f" AND iif(json_valid(details), json_extract(details, '$.schema') >= {COVERED_SINCE}, 0) LIMIT 1"
)
_WITHOUT = "SELECT 1 FROM tokens WHERE row_mac = x'' LIMIT 1"
# What the log has told the customer of a token of recovery its row may not have said otherwise even then.
_CONTRADICTED = (
    "SELECT tokens.id FROM audit INDEXED BY audit_of_recoveries CROSS JOIN tokens ON tokens.id = subject"  # noqa: S608
    f" WHERE {TOLD_OF_RECOVERY} AND (NOT recovery OR created_at <> time)"
)
_TOLD_OF_DAMAGE = (
    "SELECT 1 FROM audit INDEXED BY audit_of_damaged_tokens WHERE event = 'token.damaged' AND subject = ?"
)

_log = logging.getLogger(__name__)

Row = Sequence[Any]
"""The columns of COVERED, and what was asked for behind them."""


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token; times are unix milliseconds, None for never.

    `valid_from` is set for a `recovery` token alone: it is refused before. `holder` is as `holders` has it,
    `seq` how far the audit log went when it was issued.
    """

    id: str
    rights: Rights
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    last_used_at: int | None = None
    valid_from: int | None = None
    holder: str | None = None
    seq: int = 0

    @property
    def customer(self) -> CustomerId:
        return self.rights.customer

    @property
    def scopes(self) -> frozenset[Scope]:
        return self.rights.scopes


class RowChanged(Conflict):
    """Something else than the appliance has changed the row of a token; `customer` is whose it says to be."""

    def __init__(self, token_id: str, customer: str) -> None:
        super().__init__(
            f"something else than the appliance has changed the row of token {token_id}, which is not taken:"
            " revoke it, and issue another one"
        )
        self.customer = customer


def live(
    connection: Connection, keys: Keys, changed: Callable[[str], object]
) -> Iterator[tuple[str, bytes, Rights, int | None]]:
    """Of all that are not revoked, by their rows and by the log, what verifying them takes: id, MAC of the
    text, rights, end. `changed` is called with the ids of those whose rows are not as they were written.
    """
    ended = {row[0] for row in connection.execute(REVOKED_BY_LOG_ALONE)}
    rows: Iterator[Row] = connection.execute(f"SELECT {_HELD} FROM tokens WHERE revoked_at IS NULL")  # noqa: S608
    rights = cache(_rights)  # most of a million tokens share theirs
    mac, encoded, same = keys.mac, msgspec.msgpack.encode, hmac.compare_digest  # a million times
    for row in rows:
        if not same(mac(_LABEL, encoded(row[:_END])), row[_END]):
            changed(_text(row[0]))
        elif (token_id := row[0].decode()) not in ended:
            granted = rights(row[_OF_RIGHTS])
            if row[_RECOVERY]:
                granted = replace(granted, recovery_of=row[_CREATED])
            yield token_id, row[1], granted, row[_CREATED + 1]


def find(connection: Connection, keys: Keys, token_id: str) -> Token:
    """Raises NotFound, RowChanged."""
    return _token(_held(connection, keys, token_id))


def acting(connection: Connection, keys: Keys, actor: Actor) -> Token | None:
    """The token by which somebody acts, None for an operator, and for one that is not there.

    Raises Unauthenticated for one whose row was changed since it was verified.
    """
    if actor.kind != "token":
        return None
    try:
        return find(connection, keys, actor.id)
    except NotFound:
        return None
    except RowChanged as changed:
        raise Unauthenticated(str(changed)) from None


def listed(connection: Connection, keys: Keys, customer: CustomerId | None) -> list[Token]:
    """Those of one customer, or of all with None, oldest first, without those whose rows were changed."""
    rows: Iterator[Row] = connection.execute(
        f"SELECT {_SHOWN} FROM tokens WHERE ?1 IS NULL OR customer = ?1 ORDER BY created_at, id",  # noqa: S608
        (customer,),
    )
    tokens = []
    for row in rows:
        if _genuine(keys, row):
            tokens.append(_token(row))
        else:
            _complain(_text(row[0]))
    return tokens


def insert(connection: Connection, keys: Keys, token: Token, mac: bytes, rotated_from: str | None) -> None:
    """A new token; `mac` is that of its text."""
    rights = token.rights
    written: dict[str, Any] = {
        "id": token.id,
        "mac": mac,
        "customer": rights.customer,
        "scopes": _words(rights.scopes),
        "collections": _words(rights.collections),
        "tasks": _words(rights.tasks),
        "requests_per_minute": rights.requests_per_minute,
        "bytes_per_minute": rights.bytes_per_minute,
        "client_subject": rights.client_subject,
        "recovery": int(rights.recovery_of is not None),
        "created_at": token.created_at,
        "expires_at": token.expires_at,
        "revoked_at": None,
        "holder": token.holder,
        "rotated_from": rotated_from,
        "seq": connection.execute(f"SELECT {AUDITED}").get,
    }
    columns, marks = ", ".join(written), ", ".join("?" * len(written))
    connection.execute(
        f"INSERT INTO tokens ({columns}, row_mac) VALUES ({marks}, ?)",  # noqa: S608
        (*written.values(), _mac_over(keys, written)),
    )


def change(connection: Connection, keys: Keys, token_id: str, **columns: int | str | None) -> None:
    """Have a token say so from now on, and all else as before. Raises NotFound, RowChanged."""
    row = _held(connection, keys, token_id)
    changed = dict(zip(COVERED, row, strict=False)) | columns
    changes = ", ".join(f"{name} = ?" for name in columns)
    connection.execute(
        f"UPDATE tokens SET {changes}, row_mac = ? WHERE id = ?",  # noqa: S608
        (*columns.values(), _mac_over(keys, changed), token_id),
    )


def end(connection: Connection, keys: Keys, token_id: str, at: int) -> bool:
    """Revoke a token, whether its row is as it was written or not: only then it is under its MAC again.

    Whether it was not revoked. Nobody believes the holder that a changed row names, also of a revoked token.
    """
    try:
        token = find(connection, keys, token_id)
    except NotFound:
        return False
    except RowChanged:
        connection.execute(
            "UPDATE tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (at, token_id)
        )
        return bool(connection.changes())
    if token.revoked_at is None:
        change(connection, keys, token_id, revoked_at=at)
    return token.revoked_at is None


def erase_some(connection: Connection, keys: Keys, customer: CustomerId, most: int) -> list[str]:
    """The ids of some tokens of a customer, whose rows go with this; none are left when it is empty."""
    query = "SELECT id FROM tokens WHERE customer = ? LIMIT ?"
    ids = [str(row[0]) for row in connection.execute(query, (customer, most))]
    marks = ", ".join("?" * len(ids))
    later = f"SELECT id FROM tokens WHERE rotated_from IN ({marks})"  # noqa: S608
    for (successor,) in connection.execute(later, ids).fetchall():
        try:
            change(connection, keys, str(successor), rotated_from=None)
        except RowChanged:  # it is no token, and does not become one by this
            connection.execute("UPDATE tokens SET rotated_from = NULL WHERE id = ?", (successor,))
    connection.execute(f"DELETE FROM tokens WHERE id IN ({marks})", ids)  # noqa: S608
    return ids


def waiting(connection: Connection) -> bool:
    """Whether there are rows of before there were MACs, and no daemon has started with them since."""
    return not connection.execute(_STARTED).get and bool(connection.execute(_WITHOUT).get)


def adopt(connection: Connection, keys: Keys) -> None:
    """Give rows of before there were MACs theirs, as they are, where any are `waiting`."""
    if not waiting(connection):
        return
    contradicted = {row[0] for row in connection.execute(_CONTRADICTED)}
    after = ""
    page = f"SELECT tokens.id, {_HELD} FROM tokens WHERE id > ? ORDER BY id LIMIT {_AT_ONCE}"  # noqa: S608
    while found := connection.execute(page, (after,)).fetchall():
        vouched = [
            (_mac(keys, row), token_id)
            for token_id, *row in found
            if row[_END] == b"" and token_id not in contradicted
        ]
        connection.executemany("UPDATE tokens SET row_mac = ? WHERE id = ?", vouched)
        after = str(found[-1][0])


def told_of_damage(connection: Connection, token_id: str) -> bool:
    """Whether the log knows already that the row of a token was changed."""
    return bool(connection.execute(_TOLD_OF_DAMAGE, (token_id,)).get)


def _held(connection: Connection, keys: Keys, token_id: str) -> Row:
    """The columns of _SHOWN, as this module has written them. Raises NotFound, RowChanged."""
    row: Row | None = connection.execute(
        f"SELECT {_SHOWN} FROM tokens WHERE id = ?",  # noqa: S608
        (token_id,),
    ).fetchone()
    if row is None:
        raise NotFound("no such token")
    if not _genuine(keys, row):
        _complain(token_id)
        raise RowChanged(token_id, _text(row[2]))
    return row


def _genuine(keys: Keys, row: Row) -> bool:
    return hmac.compare_digest(_mac(keys, row), row[_END])


def _mac(keys: Keys, row: Row) -> bytes:
    return keys.mac(_LABEL, msgspec.msgpack.encode(row[:_END]))


def _mac_over(keys: Keys, written: Mapping[str, Any]) -> bytes:
    """Of what is meant to be written, and never of what a row says afterwards: a trigger that somebody has
    put into the ledger would have the last word in it.
    """
    values = (written[name] for name in COVERED)
    return _mac(keys, [value.encode() if isinstance(value, str) else value for value in values])


def _complain(token_id: str) -> None:
    _log.error("the row of token %s is not as it was written: it is not taken", token_id)


def _token(row: Row) -> Token:
    """Of a row of _SHOWN that is as it was written."""
    columns = dict(zip(COVERED, row, strict=False))
    rights, created_at = _rights(row[_OF_RIGHTS]), row[_CREATED]
    revoked_at, last_used_at, valid_from = row[_END + 1 :]
    return Token(
        row[0].decode(),
        replace(rights, recovery_of=created_at) if row[_RECOVERY] else rights,
        created_at,
        columns["expires_at"],
        revoked_at,
        last_used_at,
        valid_from,
        None if columns["holder"] is None else columns["holder"].decode(),
        columns["seq"],
    )


def _rights(columns: Row) -> Rights:
    customer, scopes, collections, tasks, requests_per_minute, bytes_per_minute, client_subject = columns
    return Rights(
        CustomerId(customer.decode()),
        frozenset(Scope(name) for name in scopes.decode().split()),
        _ids(collections),
        _ids(tasks),
        requests_per_minute,
        bytes_per_minute,
        None if client_subject is None else client_subject.decode(),
    )


def _words(ids: Collection[str] | None) -> str | None:
    return None if ids is None else " ".join(sorted(ids))


def _ids(words: bytes | None) -> frozenset[str] | None:
    return None if words is None else frozenset(words.decode().split())


def _text(column: bytes) -> str:
    """Of what need not be one."""
    return column.decode(errors="replace")
