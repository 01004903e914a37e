"""Who holds which token, for what two people have to agree on (four eyes).

A token is shown to whoever has it issued, and its successor to whoever rotates it. So all that comes of a
token is held by who holds that one, save for what the customer's first token gives to its people. What an
operator issued beside the first, and what comes of that, is nobody's.
"""

from appliance.accounts import token_rows
from appliance.accounts.audit import Actor
from appliance.accounts.token_rows import RowChanged, Token
from appliance.errors import Forbidden, NotFound
from appliance.ledger import Connection
from appliance.vault import Keys

FOUNDER = "founder"
"""The holder of the first token with admin that a customer was given, and of one of recovery."""

_NOBODY = (
    "two people have to approve here, and this token is of none of them: it is the first one, one of"
    " recovery, or goes back to an operator. Issue an admin token for each person with the first one, and"
    " have them approve the next request"
)
_LATER = "two people have to approve here, with tokens that were issued before the request: make it again"
_CHANGED = (
    "something else than the appliance has changed the row of a token that has approved this, and nobody"
    " knows any more who that was: make the request again"
)
_SAME = (
    "whoever holds this token has approved already: one of the two was issued or rotated by the other, or"
    " both by a third one of the same person. A second person has to approve"
)


def of_issued(
    connection: Connection,
    actor: Actor,
    issuer: Token | None,
    customer: str,
    token: str,
    *,
    admin: bool,
    recovery: bool,
) -> str | None:
    """Who will hold a token that is being issued; its row is not there yet. `issuer` is the actor's own."""
    if actor.kind == "token":
        return given(None if issuer is None else issuer.holder, token)
    query = "SELECT 1 FROM tokens WHERE customer = ? AND holder = ? AND revoked_at IS NULL"
    founded = connection.execute(query, (customer, FOUNDER)).get
    return FOUNDER if admin and (recovery or not founded) else None


def of_successor(actor: Actor, rotator: Token | None, old: Token) -> str | None:
    """Who will hold the successor of a token. `rotator` is the actor's own."""
    if actor.kind != "token" or actor.id == old.id:
        return old.holder
    return passed(old.holder, None if rotator is None else rotator.holder)


def given(issuer: str | None, token: str) -> str | None:
    """Who holds a token that somebody's token has issued, by the holder of that one."""
    return token if issuer == FOUNDER else issuer


def passed(holder: str | None, rotator: str | None) -> str | None:
    """Who holds the successor of a token that another one has rotated, by the holders of both."""
    return holder if rotator == FOUNDER else rotator


def check_speaks(connection: Connection, keys: Keys, actor: Actor, grant: str) -> None:
    """That an approval by this token is that of one person more. Raises Forbidden, which says why not."""
    acting = token_rows.acting(connection, keys, actor)
    if acting is None or acting.holder in {None, FOUNDER}:
        raise Forbidden(_NOBODY)
    if acting.seq >= connection.execute("SELECT seq FROM grants WHERE id = ?", (grant,)).get:
        raise Forbidden(_LATER)
    approvals = connection.execute("SELECT token FROM grant_approvals WHERE grant_id = ?", (grant,))
    for (token,) in approvals.fetchall():
        try:
            approved = token_rows.find(connection, keys, str(token))
        except NotFound:
            continue
        except RowChanged:
            raise Forbidden(_CHANGED) from None
        if approved.holder == acting.holder:
            raise Forbidden(_SAME)
