"""What verifying tokens takes, in memory: a million of them in little of it."""

import hmac
import secrets
from collections.abc import Hashable
from struct import Struct
from typing import Generic, TypeVar

R = TypeVar("R", bound=Hashable)

_ENTRY = Struct("<32sqI")  # the MAC, the end in unix milliseconds, the number of the rights
_NEVER = (1 << 63) - 1


class LiveTokens(Generic[R]):
    """Tokens by their public ids, each with its MAC, its end and its rights.

    An entry is one bytes object, which the garbage collector does not walk; equal rights are kept once, and
    as long as a token has them.
    """

    def __init__(self) -> None:
        self._entries: dict[str, bytes] = {}
        self._rights: list[R | None] = []  # None where the number is free
        self._holders: list[int] = []  # how many tokens have them
        self._numbers: dict[R, int] = {}
        self._free: list[int] = []
        # Who asks for an unknown token waits for the same comparison.
        self._nobody = _ENTRY.pack(secrets.token_bytes(32), 0, 0)

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, token_id: str, mac: bytes, rights: R, expires_at: int | None) -> None:
        """Add a token, or have it be so. `expires_at` is unix milliseconds, None for never."""
        number = self._take(rights)
        self.drop(token_id)
        self._entries[token_id] = _ENTRY.pack(mac, _NEVER if expires_at is None else expires_at, number)

    def rights(self, token_id: str, mac: bytes, now: int) -> R | None:
        """Those of the token with this id and MAC, None where there is none or `now` it has ended.

        In time that does not depend on the MAC, nor on whether the id exists.
        """
        kept, expires_at, number = _ENTRY.unpack(self._entries.get(token_id, self._nobody))
        genuine = hmac.compare_digest(mac, kept)
        return self._rights[number] if genuine and now < expires_at else None

    def lives(self, token_id: str, now: int) -> bool:
        """Whether there is such a token, and `now` it has not ended."""
        _, expires_at, _ = _ENTRY.unpack(self._entries.get(token_id, self._nobody))
        return bool(now < expires_at)

    def end(self, token_id: str, expires_at: int) -> None:
        """Have a token end then, where it is still there."""
        if (entry := self._entries.get(token_id)) is not None:
            mac, _, number = _ENTRY.unpack(entry)
            self._entries[token_id] = _ENTRY.pack(mac, expires_at, number)

    def change(self, token_id: str, rights: R) -> None:
        """Give a token other rights, where it is still there."""
        if (entry := self._entries.get(token_id)) is not None:
            mac, expires_at, _ = _ENTRY.unpack(entry)
            self.put(token_id, mac, rights, expires_at)

    def drop(self, token_id: str) -> None:
        """Forget a token."""
        if (entry := self._entries.pop(token_id, None)) is not None:
            self._give_back(_ENTRY.unpack(entry)[2])

    def clear(self) -> None:
        """Forget all."""
        for kept in (self._entries, self._rights, self._holders, self._numbers, self._free):
            kept.clear()

    def _take(self, rights: R) -> int:
        """The number of these rights, of which there is one holder more."""
        number = self._numbers.get(rights)
        if number is None:
            number = self._free.pop() if self._free else self._grow()
            self._rights[number] = rights
            self._numbers[rights] = number
        self._holders[number] += 1
        return number

    def _grow(self) -> int:
        self._rights.append(None)
        self._holders.append(0)
        return len(self._rights) - 1

    def _give_back(self, number: int) -> None:
        self._holders[number] -= 1
        rights = self._rights[number]
        if not self._holders[number] and rights is not None:
            del self._numbers[rights]
            self._rights[number] = None
            self._free.append(number)
