"""Tokens: 256 random bits that stand for a customer and a set of scopes; only a MAC of each is kept."""

import logging
import secrets
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from appliance.accounts import holders, token_rows
from appliance.accounts.audit import SUSPENDED, Actor, Event, record
from appliance.accounts.customers import CustomerId, Customers, is_claimed
from appliance.accounts.endings import IS_SUSPENDED
from appliance.accounts.last_uses import LastUses
from appliance.accounts.live_tokens import LiveTokens
from appliance.accounts.rights import (
    ALL_SCOPES,
    BEYOND_TASKS,
    Rights,
    Scope,
    check_narrow,
    checked_subject,
    listed,
    told,
)
from appliance.accounts.token_rows import RECOVERY_SECONDS, RowChanged, Token
from appliance.errors import (
    CapacityExceeded,
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    Unauthenticated,
)
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
_ERASED_AT_ONCE = 256
_NAMED = 100  # damaged ones, in the journal: the audit log has them all
_LOADING = Actor("system", "tokens")
MAX_TOKENS, MAX_LISTS = 10_000, 16 << 20
"""Of one customer: those that are not revoked, and the characters of their lists; all of it is in memory."""
RATES = ("requests_per_minute", "bytes_per_minute")
MAX_RATE = 1 << 50

_KEPT = (
    "the customer has used a token of its own, and revokes them itself: without any it would see no token of"
    " recovery in its audit log. `appliance customer suspend` has none of them taken, at once"
)
_CLAIMED = (
    "the customer has used a token of its own, and issues them itself: with one that has the scope admin, by"
    " POST /appliance/v1/tokens. For one that has lost all there is `appliance token add CUSTOMER --recovery`"
)

_UNBOUND = (
    "the token that asks is bound to a client certificate, and the one it would rotate is not: its successor"
    " would be taken without any. Rotate it with one that is not bound, or issue one that is, and revoke it"
)


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request speaks for: one customer through a token, or an operator through the local socket.

    Of the collections and tasks that are not listed a token does not learn that they exist; None lists all.
    Rates are as in `Rights`.
    """

    customer: CustomerId | None
    token_id: str | None
    scopes: frozenset[Scope]
    operator: bool
    uid: int | None = None
    collections: frozenset[str] | None = None
    tasks: frozenset[str] | None = None
    requests_per_minute: int | None = None
    bytes_per_minute: int | None = None

    def actor(self, request: str | None = None) -> Actor:
        """The same as the audit log names it."""
        if self.token_id is not None:
            return Actor("token", self.token_id, request)
        return Actor("operator", str(self.uid), request)


def operator_principal(uid: int) -> Principal:
    """The principal of a peer on the operator socket: no customer, every scope."""
    return Principal(None, None, ALL_SCOPES, operator=True, uid=uid)


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token at the one moment its text is known; the text is kept out of repr and so out of logs."""

    id: str
    token: str = field(repr=False)


class Tokens:
    """The tokens of all customers: the truth in the ledger, those not revoked also in memory."""

    def __init__(
        self,
        ledger: Ledger,
        keys: Keys,
        customers: Customers,
        clock: Callable[[], float],
        proven: Callable[[], float] | None = None,
    ) -> None:
        """Tokens end by `clock`, those of recovery wait by `proven`, by default the same: see `Times`."""
        self._ledger = ledger
        self._keys = keys
        self._customers = customers
        self._clock = clock
        self._proven = proven or clock
        self._live = LiveTokens[Rights]()
        self.last_uses = LastUses(ledger)
        self.damaged: list[str] = []
        """Ids of tokens that are not taken: something else than the appliance has changed their rows."""

    async def __aenter__(self) -> Self:
        """Load them; the rows of a ledger from before they had MACs get theirs, once."""

        def load(connection: Connection) -> None:
            for token in token_rows.live(connection, self._keys, self.damaged.append):
                self._live.put(*token)

        if await self._ledger.read(token_rows.waiting):
            await self._ledger.write(lambda connection: token_rows.adopt(connection, self._keys))
        await self._ledger.read(load)
        if self.damaged:
            await self._tell_of_damage()
        await self.last_uses.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.last_uses.__aexit__()
        self._live.clear()

    async def add(
        self,
        actor: Actor,
        customer: CustomerId,
        scopes: Collection[Scope] | None = None,
        expires_at: int | None = None,
        *,
        collections: Collection[str] | None = None,
        tasks: Collection[str] | None = None,
        client_subject: str | None = None,
        recovery: bool = False,
    ) -> IssuedToken:
        """Issue a token, durably and audited; its text is shown here and never again.

        Without `scopes` the first token of a customer gets all, later ones all but admin. `expires_at` is
        unix milliseconds. `collections` and `tasks` are the ids of those that the token is to know of, all of
        its customer's with None; whether they exist is not looked at. A token with a list gets no scope that
        would see beyond it: see `rights.check_narrow`. What a token issues that is bound to a
        `client_subject` is bound as well, to the same one where none is named.

        Raises NotFound for the customer, InvalidInput for no scopes, a time passed or one beyond
        MAX_LIFETIME_SECONDS, a list, or a subject that is none; Forbidden for an operator once the customer
        is claimed, CapacityExceeded beyond MAX_TOKENS or MAX_LISTS.

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
        asked = Rights(
            customer,
            frozenset(scopes or ()),
            listed("collections", collections),
            listed("tasks", tasks),
            client_subject=checked_subject(client_subject),
            recovery_of=now if recovery else None,
        )
        check_narrow(asked)
        issued, mac = self._mint()

        def act(connection: Connection) -> Token:
            granted = (
                asked if scopes is not None else replace(asked, scopes=_default_scopes(connection, asked))
            )
            issuer = token_rows.acting(connection, self._keys, actor)
            if granted.client_subject is None and issuer is not None:
                granted = replace(granted, client_subject=issuer.rights.client_subject)
            _check_issuer(connection, actor, customer, recovery=recovery)
            if not recovery:
                _check_room(connection, customer)
            admin = Scope.ADMIN in granted.scopes
            holder = holders.of_issued(
                connection, actor, issuer, customer, issued.id, admin=admin, recovery=recovery
            )
            token = Token(issued.id, granted, now, expires_at, holder=holder)
            token_rows.insert(connection, self._keys, token, mac, None)
            record(connection, now, actor, Event.TOKEN_ADD, customer, issued.id, told(granted))
            return token

        await self._ledger.write(act, then=lambda token: self._remember(token, mac))
        return issued

    async def list(self, customer: CustomerId | None = None) -> list[Token]:
        """The tokens of one customer, or of all with None, oldest first, revoked ones included, `damaged`
        ones not.
        """
        found = await self._ledger.read(
            lambda connection: token_rows.listed(connection, self._keys, customer)
        )
        return [
            replace(token, last_used_at=self.last_uses.latest(token.id, token.last_used_at))
            for token in found
        ]

    async def revoke(self, actor: Actor, customer: CustomerId | None, token_id: str) -> None:
        """End a token now; a second time changes nothing.

        Raises NotFound when it does not exist or, with `customer`, belongs to another one; Forbidden for an
        operator once the customer is claimed, unless it is a token of recovery, or a damaged one.
        """
        now = self._now()

        def act(connection: Connection) -> None:
            try:
                token = self._owned(connection, customer, token_id)
                _check_revoker(connection, actor, token)
                owner: str = token.customer
            except RowChanged as changed:  # it is not taken: whoever ends it takes nothing away
                owner = changed.customer
                _check_owner(customer, owner)
            if token_rows.end(connection, self._keys, token_id, now):
                record(connection, now, actor, Event.TOKEN_REVOKE, owner, token_id)

        await self._ledger.write(act, then=lambda _: self._forget(token_id))

    async def rotate(
        self, actor: Actor, customer: CustomerId | None, token_id: str, overlap_seconds: int = 86400
    ) -> IssuedToken:
        """Issue a successor with the same rights and lifetime; the old token ends after the overlap.

        Without one it is revoked: no clock has a say in that.

        Raises NotFound as `revoke`, InvalidInput for an overlap outside 0 to 30 days, Conflict when the
        token is revoked, expired, damaged, or has a successor, Forbidden for an operator once the customer is
        claimed and for a token that is bound where this one is not, CapacityExceeded as `add`.
        """
        if not 0 <= overlap_seconds <= MAX_OVERLAP_SECONDS:
            raise InvalidInput(f"overlap_seconds: 0 to {MAX_OVERLAP_SECONDS}")
        now = self._now()
        issued, mac = self._mint()

        def act(connection: Connection) -> tuple[Token, Token]:
            old = self._owned(connection, customer, token_id)
            _check_issuer(connection, actor, old.customer, recovery=False)
            rotator = token_rows.acting(connection, self._keys, actor)
            bound = rotator is not None and rotator.rights.client_subject is not None
            if bound and old.rights.client_subject is None:
                raise Forbidden(_UNBOUND)
            _check_room(connection, old.customer)
            if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
                raise Conflict("the token is revoked or expired: add a new one")
            if connection.execute("SELECT 1 FROM tokens WHERE rotated_from = ?", (token_id,)).get:
                raise Conflict("the token has been rotated already")
            lifetime = None if old.expires_at is None else old.expires_at - old.created_at
            expires_at = None if lifetime is None else now + lifetime
            rights = replace(old.rights, recovery_of=None)
            holder = holders.of_successor(actor, rotator, old)
            new = Token(issued.id, rights, now, expires_at, holder=holder)
            token_rows.insert(connection, self._keys, new, mac, old.id)
            ended = _ended(old, now, overlap_seconds)
            ends = {"expires_at": ended.expires_at, "revoked_at": ended.revoked_at}
            token_rows.change(connection, self._keys, old.id, **ends)
            details: dict[str, object] = {"successor": new.id, "overlap_seconds": overlap_seconds}
            record(connection, now, actor, Event.TOKEN_ROTATE, old.customer, old.id, details)
            return ended, new

        def remember(tokens: tuple[Token, Token]) -> None:
            old, new = tokens
            self._remember(new, mac)
            if old.revoked_at is not None:
                self._live.drop(old.id)
            elif old.expires_at is not None:
                self._live.end(old.id, old.expires_at)

        await self._ledger.write(act, then=remember)
        return issued

    async def erase(self, customer: CustomerId) -> None:
        """Forget every token of a customer that is being erased, some at a time; not audited one by one."""

        def act(connection: Connection) -> Sequence[str]:
            return token_rows.erase_some(connection, self._keys, customer, _ERASED_AT_ONCE)

        def forget(ids: Sequence[str]) -> None:
            for token_id in ids:
                self._forget(token_id)

        while await self._ledger.write(act, then=forget):
            pass

    async def limit(self, actor: Actor, token_id: str, most: Mapping[str, int | None]) -> Token:
        """Set rates of a token (RATES), durably and audited; None is what the configuration says, 0 no rate.

        Raises NotFound, Conflict for a damaged one, InvalidInput for another rate or a number outside 0 to
        MAX_RATE.
        """
        for name, number in most.items():
            if name not in RATES or not (number is None or 0 <= number <= MAX_RATE):
                raise InvalidInput(f"{name}: one of {', '.join(RATES)}, 0 to {MAX_RATE}")
        now = self._now()

        def act(connection: Connection) -> Token:
            token = token_rows.find(connection, self._keys, token_id)
            if most:
                token_rows.change(connection, self._keys, token_id, **most)
            record(connection, now, actor, Event.TOKEN_LIMIT, token.customer, token_id, dict(most))
            return token_rows.find(connection, self._keys, token_id)

        return await self._ledger.write(act, then=lambda token: self._live.change(token.id, token.rights))

    def verify(self, text: str, subject: str | None = None) -> Principal:
        """Whose token this is; from memory, without awaiting, in time that does not depend on the secret.

        `subject` is that of the certificate by which the client has proven who it is, None where it has not.
        Raises Unauthenticated with one and the same message for a malformed, unknown, expired or revoked
        token, or one that is bound to another subject, and for one of recovery that is not valid
        yet; Forbidden for a genuine one of a suspended customer.
        """
        if not _well_formed(text):
            raise Unauthenticated(_REFUSED)
        token_id, now = text[len(_PREFIX) : len(_PREFIX) + _ID], self._now()
        rights = self._live.rights(token_id, self._keys.mac(_MAC_LABEL, text.encode("ascii")), now)
        if rights is None or rights.client_subject not in {None, subject}:
            raise Unauthenticated(_REFUSED)
        self.last_uses.note(token_id, now)
        if self._customers.suspended(rights.customer):
            raise Forbidden(SUSPENDED)
        if rights.recovery_of is not None and self._waits(rights.customer, rights.recovery_of):
            raise Unauthenticated(_REFUSED)
        return Principal(
            rights.customer,
            token_id,
            rights.scopes,
            operator=False,
            collections=rights.collections,
            tasks=rights.tasks,
            requests_per_minute=rights.requests_per_minute,
            bytes_per_minute=rights.bytes_per_minute,
        )

    def require_live(self, principal: Principal) -> None:
        """That a token which was verified when a long call began has not ended since, from memory.

        Raises Unauthenticated, and Forbidden as `verify`.
        """
        if principal.customer is None or principal.token_id is None:
            return
        if not self._live.lives(principal.token_id, self._now()):
            raise Unauthenticated(_REFUSED)
        if self._customers.suspended(principal.customer):
            raise Forbidden(SUSPENDED)

    def is_first_use(self, principal: Principal) -> bool:
        """Whether the use of a token is yet to be noted for its customer, from memory."""
        return principal.customer is not None and not self._customers.claimed(principal.customer)

    async def note_use(self, principal: Principal, request: str) -> None:
        """Note durably that the customer uses its tokens; once for each customer, see `Customers.claim`."""
        if principal.customer is not None:
            await self._customers.claim(principal.actor(request), principal.customer)

    def _waits(self, customer: CustomerId, recovery_of: int) -> bool:
        """Whether the customer has not had its day yet to see a token of recovery."""
        since = max(recovery_of, self._customers.resumed_at(customer))
        return int(self._proven() * 1000) < since + RECOVERY_SECONDS * 1000

    def _now(self) -> int:
        return int(self._clock() * 1000)

    def _mint(self) -> tuple[IssuedToken, bytes]:
        public = "".join(secrets.choice(_BASE62) for _ in range(_ID))
        body = _PREFIX + public + _base62(int.from_bytes(secrets.token_bytes(32)), _SECRET)
        text = body + _base62(zlib.crc32(body.encode("ascii")), _CHECKSUM)
        return IssuedToken(public, text), self._keys.mac(_MAC_LABEL, text.encode("ascii"))

    def _owned(self, connection: Connection, customer: CustomerId | None, token_id: str) -> Token:
        token = token_rows.find(connection, self._keys, token_id)
        _check_owner(customer, token.customer)
        return token

    def _remember(self, token: Token, mac: bytes) -> None:
        self._live.put(token.id, mac, token.rights, token.expires_at)

    def _forget(self, token_id: str) -> None:
        self._live.drop(token_id)
        if token_id in self.damaged:
            self.damaged.remove(token_id)

    async def _tell_of_damage(self) -> None:
        """In the audit log, once: who verifies that has no key to see it with."""
        now = self._now()

        def act(connection: Connection) -> None:
            for token_id in self.damaged:
                if not token_rows.told_of_damage(connection, token_id):
                    record(connection, now, _LOADING, Event.TOKEN_DAMAGED, None, token_id)

        for token_id in self.damaged[:_NAMED]:
            _log.error("the row of token %s is not as it was written: it is not taken", token_id)
        await self._ledger.write(act)


def _well_formed(text: str) -> bool:
    # The checksum is for those who scan for lost tokens; whether it is right, the MAC says as well.
    return len(text) == _LENGTH and text.startswith(_PREFIX) and text.isascii()


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return "".join(reversed(digits))


def _recovery_scopes(actor: Actor, scopes: Collection[Scope] | None) -> frozenset[Scope]:
    if actor.kind == "token":
        raise InvalidInput("recovery: for operators alone; a customer that has a token issues others")
    asked = frozenset({Scope.ADMIN} if scopes is None else scopes)
    if {Scope.ADMIN, Scope.DATASETS_READ} <= asked:
        raise InvalidInput("scopes: a token of recovery has admin or datasets:read, never both")
    return asked


def _check_issuer(connection: Connection, actor: Actor, customer: CustomerId, *, recovery: bool) -> None:
    claimed = is_claimed(connection, customer)
    if recovery and not claimed:
        raise Conflict("the customer has used no token yet: issue an ordinary one, without recovery")
    if recovery and connection.execute(IS_SUSPENDED, (customer,)).get:
        raise Conflict("the customer is suspended, and could not see this: resume it first")
    if actor.kind == "operator" and claimed and not recovery:
        raise Forbidden(_CLAIMED)


def _check_room(connection: Connection, customer: CustomerId) -> None:
    held: Any = connection.execute(
        "SELECT count(*), total(length(collections)) + total(length(tasks)) FROM tokens"
        " WHERE customer = ? AND revoked_at IS NULL",
        (customer,),
    ).fetchone()
    count, lists = held
    if count >= MAX_TOKENS or lists >= MAX_LISTS:
        raise CapacityExceeded(
            f"a customer has at most {MAX_TOKENS} tokens that are not revoked, and {MAX_LISTS >> 20} MiB of"
            " their lists: revoke those that have ended"
        )


def _check_owner(customer: CustomerId | None, owner: str) -> None:
    if customer is not None and customer != owner:
        raise NotFound("no such token")


def _check_revoker(connection: Connection, actor: Actor, token: Token) -> None:
    kept = token.rights.recovery_of is None and is_claimed(connection, token.customer)
    if actor.kind == "operator" and kept:
        raise Forbidden(_KEPT)


def _ended(rotated: Token, now: int, overlap_seconds: int) -> Token:
    if not overlap_seconds:
        return replace(rotated, revoked_at=now)
    ends = now + overlap_seconds * 1000
    return replace(rotated, expires_at=ends if rotated.expires_at is None else min(ends, rotated.expires_at))


def _default_scopes(connection: Connection, asked: Rights) -> frozenset[Scope]:
    if asked.tasks is not None:
        return ALL_SCOPES - {Scope.ADMIN} - BEYOND_TASKS
    query = "SELECT 1 FROM tokens WHERE customer = ? LIMIT 1"
    if asked.collections is not None or connection.execute(query, (asked.customer,)).get:
        return ALL_SCOPES - {Scope.ADMIN}
    return ALL_SCOPES
