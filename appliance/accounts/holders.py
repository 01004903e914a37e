"""Who holds which token, for what two people have to agree on (four eyes).

A token is shown to whoever has it issued, and its successor to whoever rotates it. So all that comes of a
token is held by who holds that one, save for what the customer's first token gives to its people. What an
operator issued beside the first, and what comes of that, is nobody's.
"""

from appliance.accounts.audit import Actor
from appliance.errors import Forbidden
from appliance.ledger import Connection

FOUNDER = "founder"
"""The holder of the first token with admin that a customer was given, and of one of recovery."""

AUDITED = "(SELECT coalesce(max(seq), 0) FROM audit)"
"""SQL: how far the audit log goes. It tells what was there before what, whatever the clock was set to."""

_NOBODY = (
    "two people have to approve here, and this token is of none of them: it is the first one, one of"
    " recovery, or goes back to an operator. Issue an admin token for each person with the first one, and"
    " have them approve the next request"
)
_LATER = "two people have to approve here, with tokens that were issued before the request: make it again"
_SAME = (
    "whoever holds this token has approved already: one of the two was issued or rotated by the other, or"
    " both by a third one of the same person. A second person has to approve"
)


def of_issued(
    connection: Connection, actor: Actor, customer: str, token: str, *, admin: bool, recovery: bool
) -> str | None:
    """Who will hold a token that is being issued; its row is not there yet."""
    if actor.kind == "token":
        return given(_holder(connection, actor.id), token)
    query = "SELECT 1 FROM tokens WHERE customer = ? AND holder = ? AND revoked_at IS NULL"
    founded = connection.execute(query, (customer, FOUNDER)).get
    return FOUNDER if admin and (recovery or not founded) else None


def of_successor(connection: Connection, actor: Actor, token: str, holder: str | None) -> str | None:
    """Who will hold the successor of a token of this holder."""
    if actor.kind != "token" or actor.id == token:
        return holder
    return passed(holder, _holder(connection, actor.id))


def given(issuer: str | None, token: str) -> str | None:
    """Who holds a token that somebody's token has issued, by the holder of that one."""
    return token if issuer == FOUNDER else issuer


def passed(holder: str | None, rotator: str | None) -> str | None:
    """Who holds the successor of a token that another one has rotated, by the holders of both."""
    return holder if rotator == FOUNDER else rotator


def check_speaks(connection: Connection, token: str, grant: str) -> None:
    """That an approval by this token is that of one person more. Raises Forbidden, which says why not."""
    query = "SELECT holder, seq FROM tokens WHERE id = ?"
    holder, issued = connection.execute(query, (token,)).fetchone() or (None, 0)
    if holder in {None, FOUNDER}:
        raise Forbidden(_NOBODY)
    if issued >= connection.execute("SELECT seq FROM grants WHERE id = ?", (grant,)).get:
        raise Forbidden(_LATER)
    query = "SELECT 1 FROM grant_approvals JOIN tokens ON tokens.id = token WHERE grant_id = ? AND holder = ?"
    if connection.execute(query, (grant, holder)).get:
        raise Forbidden(_SAME)


def _holder(connection: Connection, token: str) -> str | None:
    found: str | None = connection.execute("SELECT holder FROM tokens WHERE id = ?", (token,)).get
    return found
