"""Tokens: 256 random bits that stand for a customer and a set of scopes; only a MAC of each is kept."""

import hmac
import secrets
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

from appliance.accounts.audit import SUSPENDED, Actor, Event, record
from appliance.accounts.customers import CustomerId, Customers
from appliance.errors import Conflict, Forbidden, InvalidInput, NotFound, Unauthenticated
from appliance.ledger import Connection, Ledger
from appliance.vault import Keys

# xapp_ + 10 (public id) + 43 (256 bits) + 6 (CRC32 of all before): GitHub's scheme. The prefix and checksum
# let a secret scanner find leaked tokens, base62 lets a double click select one.
_PREFIX = "xapp_"
_ID, _SECRET, _CHECKSUM = 10, 43, 6
_LENGTH = len(_PREFIX) + _ID + _SECRET + _CHECKSUM
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

_MAC_LABEL = "tokens"
_REFUSED = "the token is missing or not valid"
MAX_OVERLAP_SECONDS = 30 * 86400
MAX_LIFETIME_SECONDS = 10 * 366 * 86400
RECOVERY_SECONDS = 86400
"""For so long a customer sees in its audit log that an operator has issued a token, before that is taken."""

_CLAIMED = (
    "the customer has used a token of its own, and issues them itself: with one that has the scope admin, by"
    " POST /appliance/v1/tokens. For one that has lost all there is `appliance token add CUSTOMER --recovery`"
)


class Scope(StrEnum):
    """What a token may do."""

    INFER = "infer"
    SEARCH_READ = "search:read"
    SEARCH_WRITE = "search:write"
    DATASETS_READ = "datasets:read"
    DATASETS_WRITE = "datasets:write"
    TRAIN = "train"
    ADMIN = "admin"


ALL_SCOPES = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request speaks for: one customer through a token, or an operator through the local socket."""

    customer: CustomerId | None
    token_id: str | None
    scopes: frozenset[Scope]
    operator: bool
    uid: int | None = None

    def actor(self, request: str | None = None) -> Actor:
        """The same as the audit log names it."""
        if self.token_id is not None:
            return Actor("token", self.token_id, request)
        return Actor("operator", str(self.uid), request)


def operator_principal(uid: int) -> Principal:
    """The principal of a peer on the operator socket: no customer, every scope."""
    return Principal(None, None, ALL_SCOPES, operator=True, uid=uid)


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token; times are unix milliseconds, None for never.

    `valid_from` is set for a `recovery` token alone: it is refused before.
    """

    id: str
    customer: CustomerId
    scopes: frozenset[Scope]
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    recovery: bool = False
    valid_from: int | None = None


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token at the one moment its text is known; the text is kept out of repr and so out of logs."""

    id: str
    token: str = field(repr=False)


@dataclass(slots=True)
class _Live:
    """A token in memory: what `verify` needs and nothing to forge it from."""

    mac: bytes
    principal: Principal
    expires_at: float  # unix milliseconds, infinity for never
    recovery_of: int | None = None  # when a recovery token was issued


class Tokens:
    """The tokens of all customers: the truth in the ledger, those not revoked also in memory."""

    def __init__(self, ledger: Ledger, keys: Keys, customers: Customers, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._keys = keys
        self._customers = customers
        self._clock = clock
        self._live: dict[str, _Live] = {}
        self._nobody = _Live(secrets.token_bytes(32), Principal(None, None, frozenset(), operator=False), 0)

    async def __aenter__(self) -> Self:
        rows = await self._ledger.read(_not_revoked)
        self._live = {token.id: _live(token, mac) for token, mac in rows}
        return self

    async def __aexit__(self, *_: object) -> None:
        self._live.clear()

    async def add(
        self,
        actor: Actor,
        customer: CustomerId,
        scopes: Collection[Scope] | None = None,
        expires_at: int | None = None,
        *,
        recovery: bool = False,
    ) -> IssuedToken:
        """Issue a token, durably and audited; its text is shown here and never again.

        Without `scopes` the first token of a customer gets all, later ones all but admin. `expires_at` is
        unix milliseconds. Raises NotFound for the customer, InvalidInput for no scopes, a time passed or one
        beyond MAX_LIFETIME_SECONDS; Forbidden for an operator once the customer is claimed.

        Then an operator may issue one of `recovery`, by default for admin alone: it is refused for
        RECOVERY_SECONDS, counted anew from the end of a suspension, and the customer may revoke it. Raises
        InvalidInput for admin with datasets:read, and Conflict before the customer is claimed and while it is
        suspended, and so cannot see it.
        """
        if not self._customers.known(customer):
            raise NotFound("no such customer")
        now = self._now()
        if scopes is not None and not scopes:
            raise InvalidInput("scopes: at least one is needed")
        if recovery:
            scopes = _recovery_scopes(actor, scopes)
        if expires_at is not None and not now < expires_at <= now + MAX_LIFETIME_SECONDS * 1000:
            raise InvalidInput("expires_at: must lie within the next ten years; leave it out for never")
        issued, mac = self._mint()

        def act(connection: Connection) -> Token:
            granted = frozenset(scopes) if scopes is not None else _default_scopes(connection, customer)
            _check_issuer(connection, actor, customer, recovery=recovery)
            token = Token(issued.id, customer, granted, now, expires_at, None, recovery)
            _insert(connection, token, mac, None)
            details: dict[str, object] = {"scopes": sorted(granted)} | (
                {"recovery": True} if recovery else {}
            )
            record(connection, now, actor, Event.TOKEN_ADD, customer, issued.id, details)
            return token

        await self._ledger.write(act, then=lambda token: self._remember(token, mac))
        return issued

    async def list(self, customer: CustomerId | None = None) -> list[Token]:
        """The tokens of one customer, or of all with None, oldest first, revoked ones included."""
        return await self._ledger.read(lambda connection: _tokens(connection, customer))

    async def revoke(self, actor: Actor, customer: CustomerId | None, token_id: str) -> None:
        """End a token now; a second time changes nothing.

        Raises NotFound when it does not exist or, with `customer`, belongs to another one.
        """
        now = self._now()

        def act(connection: Connection) -> None:
            token = _owned(connection, customer, token_id)
            if token.revoked_at is None:
                connection.execute("UPDATE tokens SET revoked_at = ? WHERE id = ?", (now, token_id))
                record(connection, now, actor, Event.TOKEN_REVOKE, token.customer, token_id)

        await self._ledger.write(act, then=lambda _: self._forget(token_id))

    async def rotate(
        self, actor: Actor, customer: CustomerId | None, token_id: str, overlap_seconds: int = 86400
    ) -> IssuedToken:
        """Issue a successor with the same scopes and lifetime; the old token ends after the overlap.

        Raises NotFound as `revoke`, InvalidInput for an overlap outside 0 to 30 days, Conflict when the
        token is revoked, expired, or has a successor, Forbidden for an operator once the customer is claimed.
        """
        if not 0 <= overlap_seconds <= MAX_OVERLAP_SECONDS:
            raise InvalidInput(f"overlap_seconds: 0 to {MAX_OVERLAP_SECONDS}")
        now = self._now()
        ends = now + overlap_seconds * 1000
        issued, mac = self._mint()

        def act(connection: Connection) -> tuple[Token, Token]:
            old = _owned(connection, customer, token_id)
            _check_issuer(connection, actor, old.customer, recovery=False)
            if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
                raise Conflict("the token is revoked or expired: add a new one")
            if connection.execute("SELECT 1 FROM tokens WHERE rotated_from = ?", (token_id,)).get:
                raise Conflict("the token has been rotated already")
            lifetime = None if old.expires_at is None else old.expires_at - old.created_at
            expires_at = None if lifetime is None else now + lifetime
            new = Token(issued.id, old.customer, old.scopes, now, expires_at, None)
            _insert(connection, new, mac, old.id)
            shortened = ends if old.expires_at is None else min(ends, old.expires_at)
            connection.execute("UPDATE tokens SET expires_at = ? WHERE id = ?", (shortened, old.id))
            details: dict[str, object] = {"successor": new.id, "overlap_seconds": overlap_seconds}
            record(connection, now, actor, Event.TOKEN_ROTATE, old.customer, old.id, details)
            return _with_expiry(old, shortened), new

        def remember(tokens: tuple[Token, Token]) -> None:
            old, new = tokens
            self._remember(new, mac)
            self._live[old.id].expires_at = old.expires_at or 0

        await self._ledger.write(act, then=remember)
        return issued

    def verify(self, text: str) -> Principal:
        """Whose token this is; from memory, without awaiting, in time that does not depend on the secret.

        Raises Unauthenticated with one and the same message for a malformed, unknown, expired or revoked
        token, and for one of recovery that is not valid yet; Forbidden for a genuine one of a suspended
        customer.
        """
        if not _well_formed(text):
            raise Unauthenticated(_REFUSED)
        live = self._live.get(text[len(_PREFIX) : len(_PREFIX) + _ID], self._nobody)
        genuine = hmac.compare_digest(self._keys.mac(_MAC_LABEL, text.encode("ascii")), live.mac)
        now, customer = self._clock() * 1000, live.principal.customer
        if not genuine or now >= live.expires_at:
            raise Unauthenticated(_REFUSED)
        if customer is not None and self._customers.suspended(customer):
            raise Forbidden(SUSPENDED)
        if live.recovery_of is not None and customer is not None:
            began = max(live.recovery_of, self._customers.resumed_at(customer))
            if now < began + RECOVERY_SECONDS * 1000:
                raise Unauthenticated(_REFUSED)
        return live.principal

    def is_first_use(self, principal: Principal) -> bool:
        """Whether the use of a token is yet to be noted for its customer, from memory."""
        return principal.customer is not None and not self._customers.claimed(principal.customer)

    async def note_use(self, principal: Principal, request: str) -> None:
        """Note durably that the customer uses its tokens; once for each customer, see `Customers.claim`."""
        if principal.customer is not None:
            await self._customers.claim(principal.actor(request), principal.customer)

    def _now(self) -> int:
        return int(self._clock() * 1000)

    def _mint(self) -> tuple[IssuedToken, bytes]:
        public = "".join(secrets.choice(_BASE62) for _ in range(_ID))
        body = _PREFIX + public + _base62(int.from_bytes(secrets.token_bytes(32)), _SECRET)
        text = body + _base62(zlib.crc32(body.encode("ascii")), _CHECKSUM)
        return IssuedToken(public, text), self._keys.mac(_MAC_LABEL, text.encode("ascii"))

    def _remember(self, token: Token, mac: bytes) -> None:
        self._live[token.id] = _live(token, mac)

    def _forget(self, token_id: str) -> None:
        self._live.pop(token_id, None)


def parse_scopes(names: Collection[str]) -> frozenset[Scope]:
    """Scopes from their names. Raises InvalidInput listing what exists when one does not."""
    try:
        return frozenset(Scope(name) for name in names)
    except ValueError:
        raise InvalidInput(f"scopes: each must be one of {', '.join(Scope)}") from None


def _well_formed(text: str) -> bool:
    # The checksum is for those who scan for lost tokens; whether it is right, the MAC says as well.
    return len(text) == _LENGTH and text.startswith(_PREFIX) and text.isascii()


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return "".join(reversed(digits))


def _live(token: Token, mac: bytes) -> _Live:
    principal = Principal(token.customer, token.id, token.scopes, operator=False)
    expires_at = float("inf") if token.expires_at is None else token.expires_at
    return _Live(mac, principal, expires_at, token.created_at if token.recovery else None)


def _with_expiry(token: Token, expires_at: int) -> Token:
    return replace(token, expires_at=expires_at)


def _recovery_scopes(actor: Actor, scopes: Collection[Scope] | None) -> frozenset[Scope]:
    if actor.kind == "token":
        raise InvalidInput("recovery: for operators alone; a customer that has a token issues others")
    asked = frozenset({Scope.ADMIN} if scopes is None else scopes)
    if {Scope.ADMIN, Scope.DATASETS_READ} <= asked:
        raise InvalidInput("scopes: a token of recovery has admin or datasets:read, never both")
    return asked


def _check_issuer(connection: Connection, actor: Actor, customer: CustomerId, *, recovery: bool) -> None:
    claimed_at, suspended_at = connection.execute(
        "SELECT claimed_at, suspended_at FROM customers WHERE id = ?", (customer,)
    ).fetchall()[0]
    if recovery and claimed_at is None:
        raise Conflict("the customer has used no token yet: issue an ordinary one, without recovery")
    if recovery and suspended_at is not None:
        raise Conflict("the customer is suspended, and could not see this: resume it first")
    if actor.kind == "operator" and claimed_at is not None and not recovery:
        raise Forbidden(_CLAIMED)


def _default_scopes(connection: Connection, customer: CustomerId) -> frozenset[Scope]:
    has_one = connection.execute("SELECT 1 FROM tokens WHERE customer = ? LIMIT 1", (customer,)).get
    return ALL_SCOPES - {Scope.ADMIN} if has_one else ALL_SCOPES


_RESUMED = "coalesce((SELECT resumed_at FROM customers WHERE customers.id = tokens.customer), 0)"
_VALID_FROM = f"iif(recovery, max(created_at, {_RESUMED}) + {RECOVERY_SECONDS * 1000}, NULL)"
_COLUMNS = f"id, customer, scopes, created_at, expires_at, revoked_at, recovery, {_VALID_FROM}"


def _insert(connection: Connection, token: Token, mac: bytes, rotated_from: str | None) -> None:
    connection.execute(
        "INSERT INTO tokens (id, customer, scopes, created_at, expires_at, recovery, mac, rotated_from)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            token.id,
            token.customer,
            " ".join(sorted(token.scopes)),
            token.created_at,
            token.expires_at,
            token.recovery,
            mac,
            rotated_from,
        ),
    )


def _owned(connection: Connection, customer: CustomerId | None, token_id: str) -> Token:
    row = connection.execute(f"SELECT {_COLUMNS} FROM tokens WHERE id = ?", (token_id,)).fetchone()  # noqa: S608
    if row is None or (customer is not None and row[1] != customer):
        raise NotFound("no such token")
    return _token(row)


def _tokens(connection: Connection, customer: CustomerId | None) -> list[Token]:
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM tokens WHERE ?1 IS NULL OR customer = ?1 ORDER BY created_at, id",  # noqa: S608
        (customer,),
    )
    return [_token(row) for row in rows]


def _not_revoked(connection: Connection) -> list[tuple[Token, bytes]]:
    rows = connection.execute(f"SELECT {_COLUMNS}, mac FROM tokens WHERE revoked_at IS NULL")  # noqa: S608
    return [(_token(row), row[-1]) for row in rows]


def _token(row: tuple[Any, ...]) -> Token:
    scopes = frozenset(Scope(name) for name in row[2].split())
    return Token(row[0], row[1], scopes, row[3], row[4], row[5], bool(row[6]), row[7])
