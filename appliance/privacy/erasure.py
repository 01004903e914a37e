"""The erasure of a customer: its keys first, with which nothing that it stored opens any more, then all else.

    marked     in one transaction: the name goes, no token and no link is taken, the audit log says so
    keys       destroyed in the keyring, whole and durably: that moment is the erasure
    the rest   collections, datasets, tokens, and what else refers to the customer, some rows at a time
    certified  when no byte of it is in the ledger or its log

Every step can be repeated, so that an erasure which a stop interrupts goes on at the next start. A customer
whose row somebody puts back is erased once more then: the audit log tells that it was, and tells of this too.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Self
from uuid import UUID

import msgspec

from appliance.accounts.agreements import AgreementId, Agreements
from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.certificates import Certificate, Certificates, Erased
from appliance.accounts.customers import CustomerId, Customers, check_living
from appliance.accounts.endings import ERASED_CUSTOMERS
from appliance.accounts.tokens import Tokens
from appliance.background import end_tasks
from appliance.datasets.catalogue import Datasets
from appliance.errors import ApplianceError, InvalidInput
from appliance.ledger import Connection, Ledger
from appliance.search.collections import Collections
from appliance.vault import Keyring

_ERASURE = Actor("system", "erasure")
_ROWS = 64
"""At once, so that others' writes get in between: some hold whole answers."""
_COUNTS = """
SELECT json_object(
    'datasets', (SELECT count(*) FROM datasets WHERE customer = ?1 AND erased_at IS NULL),
    'images', (SELECT coalesce(sum(images), 0) FROM datasets WHERE customer = ?1 AND erased_at IS NULL),
    'collections', (SELECT count(*) FROM collections WHERE customer = ?1 AND NOT removed),
    'records', (SELECT coalesce(sum(count), 0) FROM collections WHERE customer = ?1 AND NOT removed),
    'aliases', (SELECT count(*) FROM aliases WHERE customer = ?1),
    'requests', (SELECT count(*) FROM requests WHERE customer = ?1),
    'agreements', (SELECT count(*) FROM agreements WHERE customer = ?1),
    'tokens', (SELECT count(*) FROM tokens WHERE customer = ?1))
"""
_MARK = (
    "UPDATE customers SET name = id, erased_at = ?2, suspended_at = coalesce(suspended_at, ?2), erasing = ?3"
    " WHERE id = ?1"
)
_REFERRING = """
SELECT tables.name, keys."from" FROM sqlite_schema AS tables, pragma_foreign_key_list(tables.name) AS keys
    WHERE tables.type = 'table' AND keys."table" = 'customers' ORDER BY tables.name
"""

_log = logging.getLogger(__name__)


class Erasure:
    """Erases customers. Entering goes on with what a stop interrupted, and erases again whom somebody has put
    back; leaving interrupts.
    """

    def __init__(
        self,
        ledger: Ledger,
        keyring: Keyring,
        *,
        customers: Customers,
        tokens: Tokens,
        agreements: Agreements,
        collections: Collections,
        datasets: Datasets,
        clock: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._keyring = keyring
        self._customers = customers
        self._tokens = tokens
        self._agreements = agreements
        self._collections = collections
        self._datasets = datasets
        self._clock = clock
        self._certificates = Certificates(ledger, keyring.service)
        self._tasks: dict[CustomerId, asyncio.Task[None]] = {}
        self.held_up: set[CustomerId] = set()
        """Whose erasure could not go on: it does with the next call, or the next start."""

    async def __aenter__(self) -> Self:
        for customer in await self._ledger.read(_put_back):
            _log.error("the row of customer %s, which was erased, was put back: it is erased again", customer)
            again = partial(self._mark, actor=_ERASURE, customer=customer)
            await self._ledger.write(again, then=self._forget)
        for customer in await self._ledger.read(_erased):  # also what an older version left of them
            await asyncio.to_thread(self._keyring.destroy_customer, UUID(customer))
        for customer in await self._ledger.read(_under_way):
            _ = self._start(customer)
        return self

    async def __aexit__(self, *_: object) -> None:
        await end_tasks(*self._tasks.values())

    async def erase(self, actor: Actor, customer: CustomerId, name: str) -> Certificate:
        """Erase a customer for good; when this returns all of it is gone, and this is the proof.

        Its `name` is said with it. From the first transaction on none of its tokens and links is taken,
        its keys are destroyed next. One that is being erased already is waited for, whatever the name. Raises
        NotFound, InvalidInput for another name; StorageFailed, VolumeOffline, VolumeFull when not all of it
        could be removed yet. A caller who goes away stops nothing.
        """
        if customer not in await self._ledger.read(_under_way):
            if (await self._customers.get(customer)).name != name:
                raise InvalidInput("name: to erase a customer give its name with it, letter by letter")

            def act(connection: Connection) -> CustomerId:
                check_living(connection, customer)
                return self._mark(connection, actor, customer)

            await self._ledger.write(act, then=self._forget)
        await asyncio.shield(self._start(customer))
        return (await self._certificates.list(customer, about=customer))[-1]

    async def erase_agreed(self, actor: Actor, customer: CustomerId, agreement: AgreementId) -> None:
        """Revoke a training-data agreement and erase all datasets of its customer, in one durable act.

        When this returns their keys are destroyed; files and rows go soon after. What a stop interrupts the
        next start goes on with. Raises what `Agreements.revoke` does, which changes nothing.
        """
        await self._datasets.make_room()
        end_all = partial(self._datasets.end_all, actor=actor, customer=customer)
        await self._agreements.revoke(actor, customer, agreement, erase=end_all)
        await self._datasets.go_on(customer)

    def _mark(self, connection: Connection, actor: Actor, customer: CustomerId) -> CustomerId:
        now, counts = int(self._clock() * 1000), str(connection.execute(_COUNTS, (customer,)).get)
        connection.execute(_MARK, (customer, now, counts))
        details: dict[str, object] = dict(msgspec.json.decode(counts, type=dict[str, int]))
        record(connection, now, actor, Event.CUSTOMER_ERASE, customer, customer, details)
        return customer

    def _forget(self, customer: CustomerId) -> None:
        self._customers.forget(customer)
        self._agreements.forget(customer)

    def _start(self, customer: CustomerId) -> asyncio.Task[None]:
        task = self._tasks.get(customer)
        if task is None:
            task = self._tasks[customer] = asyncio.get_running_loop().create_task(self._finish(customer))
            task.add_done_callback(partial(self._ended, customer))
        return task

    def _ended(self, customer: CustomerId, task: asyncio.Task[None]) -> None:
        del self._tasks[customer]
        if task.cancelled() or (error := task.exception()) is None:
            self.held_up.discard(customer)
            return
        self.held_up.add(customer)
        reason = str(error) if isinstance(error, ApplianceError) else type(error).__name__
        _log.error("the erasure of customer %s is held up: %s", customer, reason)

    async def _finish(self, customer: CustomerId) -> None:
        owner = UUID(customer)
        await asyncio.to_thread(self._keyring.destroy_customer, owner)
        await self._collections.erase_all(_ERASURE, customer)
        await self._datasets.erase_all(_ERASURE, customer)
        await self._tokens.erase(customer)
        for table, column in await self._ledger.read(_referring):
            erase = partial(_erase_some, table=table, column=column, customer=customer)
            await self._ledger.write_on(erase, _ROWS)
        await self._cut_log()
        await self._ledger.write(partial(self._certify, customer=customer))
        await self._cut_log()

    async def _cut_log(self) -> None:
        while not await self._ledger.empty_log():  # somebody who reads is in the way: a moment only
            pass

    def _certify(self, connection: Connection, customer: CustomerId) -> None:
        counts = connection.execute("SELECT erasing FROM customers WHERE id = ?", (customer,)).get
        connection.execute("UPDATE customers SET erasing = NULL WHERE id = ?", (customer,))
        held = msgspec.json.decode(str(counts), type=dict[str, int])
        erased = Erased("customer", customer, customer, held, keys=(customer,))
        self._certificates.add(connection, int(self._clock() * 1000), erased)


def _under_way(connection: Connection) -> list[CustomerId]:
    found = connection.execute("SELECT id FROM customers WHERE erasing IS NOT NULL ORDER BY erased_at, id")
    return [CustomerId(row[0]) for row in found]


def _put_back(connection: Connection) -> list[CustomerId]:
    """Whose rows are not as an erasure leaves them: the log tells that there was one."""
    query = (
        "SELECT id FROM customers WHERE (erased_at IS NULL OR name <> id)"  # noqa: S608
        f" AND id IN ({ERASED_CUSTOMERS})"
    )
    return [CustomerId(row[0]) for row in connection.execute(query)]


def _erased(connection: Connection) -> list[CustomerId]:
    """Those of whom nothing is left."""
    found = connection.execute("SELECT id FROM customers WHERE erased_at IS NOT NULL AND erasing IS NULL")
    return [CustomerId(row[0]) for row in found]


def _referring(connection: Connection) -> list[tuple[str, str]]:
    """Every table that has rows of customers, and the column that says whose."""
    found: list[Any] = connection.execute(_REFERRING).fetchall()
    return found


def _erase_some(connection: Connection, most: int, table: str, column: str, customer: CustomerId) -> bool:
    """Some rows of a customer; whether there were any."""
    query = "SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk"
    key = ", ".join(f'"{row[0]}"' for row in connection.execute(query, (table,)))
    connection.execute(
        f'DELETE FROM "{table}" WHERE ({key}) IN'  # noqa: S608 -- names of the schema
        f' (SELECT {key} FROM "{table}" WHERE "{column}" = ? LIMIT ?)',
        (customer, most),
    )
    return connection.changes() > 0
