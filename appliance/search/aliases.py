"""Aliases: names that stand for a collection, and go over to another one in one durable step.

A new version of a backbone means a parallel collection, which the caller fills; then the alias goes over, and
no client changes a thing. Each has a key of its own, which its name is sealed under. All are in memory.
"""

import asyncio
import dataclasses
import logging
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NewType, Self
from uuid import UUID

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId
from appliance.accounts.endings import ERASED_CUSTOMERS
from appliance.errors import (
    ApplianceError,
    CapacityExceeded,
    InvalidInput,
    NotFound,
    SealBroken,
    may_be_kept,
)
from appliance.ledger import Connection, Ledger
from appliance.search import entries
from appliance.search.records import CollectionId
from appliance.search.seals import ContainerId, Seals
from appliance.vault import Keyring

AliasId = NewType("AliasId", str)

MOST = 1000
"""Of one customer: all are in memory, and each has a key in the keyring."""
_NAME = re.compile(r"[A-Za-z0-9.-]{1,64}")
_COLUMNS = "id, customer, name, collection, changed_at"
_LIVING = f" WHERE customer NOT IN ({ERASED_CUSTOMERS})"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Alias:
    """A customer's name for one of its collections; `changed_at` in unix milliseconds."""

    id: AliasId
    customer: CustomerId
    name: str
    collection: CollectionId
    changed_at: int


class Aliases:
    """The aliases of all customers."""

    def __init__(self, ledger: Ledger, keyring: Keyring, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._keyring = keyring
        self._clock = clock
        self._known: dict[tuple[CustomerId, str], Alias] = {}
        """By name and by id: a name has never the form of an id."""
        self._changing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        for alias in await self._ledger.read(_all):
            identity, customer, name, collection, changed_at = alias
            try:
                opened = Seals(self._keyring, customer, ContainerId(identity)).open_name(name)
            except (NotFound, SealBroken) as error:
                _log.error("alias %s cannot be used, set it again: %s", identity, error)
                continue
            self._note(Alias(identity, customer, opened, collection, changed_at))
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def find(self, customer: CustomerId, named: str) -> Alias | None:
        """The customer's alias of this name or id."""
        return self._known.get((customer, named))

    def list(self, customer: CustomerId | None) -> list[Alias]:
        """One customer's aliases, or all with None, by name."""
        own = {alias.id: alias for alias in self._known.values() if customer in {None, alias.customer}}
        return sorted(own.values(), key=lambda alias: (alias.name, alias.customer))

    async def point(
        self, actor: Actor, customer: CustomerId | None, name: str, collection: CollectionId
    ) -> Alias:
        """Have the name stand for this collection of the customer (None: of its owner), durably and audited.

        Every later call by the name is about this one. Raises InvalidInput for the name, NotFound for the
        collection, CapacityExceeded for a new name beyond MOST.
        """
        _check_name(name)
        async with self._changing:
            find = partial(entries.find_collection, customer=customer, id=collection)
            owner = (await self._ledger.read(find)).customer
            known = self.find(owner, name)
            if known is None:
                if len(self.list(owner)) >= MOST:
                    raise CapacityExceeded(f"a customer has at most {MOST} aliases: remove some")
                return await self._add(actor, owner, name, collection)
            return await self._switch(actor, known, collection)

    async def remove(self, actor: Actor, customer: CustomerId, name: str) -> None:
        """Forget the name, durably and audited; its collection stays. Raises NotFound."""
        async with self._changing:
            known = self.find(customer, name)
            if known is None:
                raise NotFound("no such alias")

            def act(connection: Connection) -> None:
                connection.execute("DELETE FROM aliases WHERE id = ?", (known.id,))
                self._audit(connection, actor, Event.ALIAS_REMOVE, known, {})

            def apply(_: None) -> None:
                for named in (known.name, known.id):
                    self._known.pop((customer, named), None)

            await self._ledger.write(act, then=apply)
            await asyncio.to_thread(self._keyring.destroy, UUID(customer), UUID(known.id))

    def forget(self, customer: CustomerId) -> None:
        """Its erasure has begun: no name stands for anything any more. The rows go with its others."""
        for known in [key for key in self._known if key[0] == customer]:
            del self._known[known]

    async def _add(self, actor: Actor, customer: CustomerId, name: str, collection: CollectionId) -> Alias:
        identity = str(uuid.uuid4())
        owner, container = UUID(customer), UUID(identity)
        # The key first: without it the row would be a name that nobody can read.
        await asyncio.to_thread(self._keyring.add, owner, container, "document")
        sealed = Seals(self._keyring, customer, ContainerId(identity)).seal_name(name)
        alias = Alias(AliasId(identity), customer, name, collection, self._now())

        def act(connection: Connection) -> Alias:
            entries.find_collection(connection, customer, collection)
            connection.execute(
                f"INSERT INTO aliases ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)",  # noqa: S608 -- a constant
                (alias.id, customer, sealed, collection, alias.changed_at),
            )
            self._audit(connection, actor, Event.ALIAS_SET, alias, {"collection": collection})
            return alias

        try:
            return await self._ledger.write(act, then=self._note)
        except ApplianceError as error:
            if not may_be_kept(error):
                await asyncio.to_thread(self._keyring.destroy, owner, container)
            raise

    async def _switch(self, actor: Actor, known: Alias, collection: CollectionId) -> Alias:
        alias = dataclasses.replace(known, collection=collection, changed_at=self._now())

        def act(connection: Connection) -> Alias:
            entries.find_collection(connection, alias.customer, collection)
            connection.execute(
                "UPDATE aliases SET collection = ?, changed_at = ? WHERE id = ?",
                (collection, alias.changed_at, alias.id),
            )
            details: dict[str, object] = {"collection": collection, "before": known.collection}
            self._audit(connection, actor, Event.ALIAS_SET, alias, details)
            return alias

        return await self._ledger.write(act, then=self._note)

    def _note(self, alias: Alias) -> None:
        self._known[alias.customer, alias.name] = self._known[alias.customer, alias.id] = alias

    def _audit(
        self, connection: Connection, actor: Actor, event: Event, alias: Alias, details: dict[str, object]
    ) -> None:
        record(connection, self._now(), actor, event, alias.customer, alias.id, details)

    def _now(self) -> int:
        return int(self._clock() * 1000)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidInput("name: 1 to 64 letters, digits, dots and hyphens are needed")
    try:
        UUID(name)
    except ValueError:
        return
    raise InvalidInput("name: it has the form of a collection's id")


def _all(connection: Connection) -> list[tuple[AliasId, CustomerId, bytes, CollectionId, int]]:
    found: list[Any] = connection.execute(f"SELECT {_COLUMNS} FROM aliases{_LIVING}").fetchall()  # noqa: S608
    return found
