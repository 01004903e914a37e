"""Requests of the time before their results were sealed: the first start since seals them.

Migration 025 has moved aside what was in clear. Each step is one transaction that seals some and deletes
them, so a start that is killed goes on where it was. In the end the table is dropped, which overwrites its
pages, and the log is cut: no byte in clear is in any file.
"""

import logging
from functools import partial
from typing import Any

import msgspec

from appliance.accounts.customers import CustomerId
from appliance.accounts.endings import ERASED_CUSTOMERS
from appliance.accounts.seals import Seals
from appliance.asynchronous.seals import RequestSeals
from appliance.errors import SealBroken
from appliance.ledger import Connection, Ledger
from appliance.vault import Keyring, Keys

_ROWS = 64
_SERVICE = "webhooks/endpoint"
"""The label under which the service's key sealed webhooks."""
_DAMAGED = b""
"""What opens as nothing: who asks is told that it is damaged."""
_SOME = """
SELECT number, id, clear.response, clear.webhook FROM clear_requests AS clear JOIN requests USING (number)
    WHERE customer = ? ORDER BY number LIMIT ?
"""
_CUSTOMERS = f"""
SELECT DISTINCT customer FROM clear_requests JOIN requests USING (number)
    WHERE customer NOT IN ({ERASED_CUSTOMERS}) ORDER BY customer
"""  # noqa: S608 - constants

_log = logging.getLogger(__name__)


async def seal_clear_requests(ledger: Ledger, keyring: Keyring) -> None:
    """Seal every response and webhook that is under no key of its customer's yet; drop those of erased ones.

    Raises StorageFailed, VolumeFull; the next call goes on.
    """
    if not await ledger.read(_anything_clear):
        return
    seals, service, count = Seals(keyring), keyring.service, 0
    for customer in await ledger.read(_customers):
        await seals.ready(customer)
        seal_some = partial(
            _seal_some, seals=RequestSeals(seals, customer), service=service, customer=customer
        )
        while sealed := await ledger.write(seal_some):
            count += sealed
    await ledger.write(_drop)
    while not await ledger.empty_log():
        pass
    if count:
        _log.info(
            "sealed what %d asynchronous requests hold; their Idempotency-Keys are forgotten:"
            " what is sent again under one is done again",
            count,
        )


def _anything_clear(connection: Connection) -> bool:
    return bool(connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'clear_requests'").get)


def _customers(connection: Connection) -> list[CustomerId]:
    return [CustomerId(row[0]) for row in connection.execute(_CUSTOMERS)]


def _seal_some(connection: Connection, seals: RequestSeals, service: Keys, customer: CustomerId) -> int:
    """Some rows of a customer; how many there were."""
    found: list[tuple[Any, ...]] = connection.execute(_SOME, (customer, _ROWS)).fetchall()
    for number, request, response, webhook in found:
        connection.execute(
            "UPDATE requests SET response = ?, webhook = ? WHERE number = ?",
            (
                None if response is None else _response(seals, request, response),
                None if webhook is None else _webhook(seals, service, request, webhook),
                number,
            ),
        )
        connection.execute("DELETE FROM clear_requests WHERE number = ?", (number,))
    return len(found)


def _response(seals: RequestSeals, request: str, response: bytes) -> bytes:
    try:
        msgspec.json.decode(response)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _DAMAGED
    return seals.seal_response(request, response)


def _webhook(seals: RequestSeals, service: Keys, request: str, webhook: bytes) -> bytes:
    try:
        return seals.seal_webhook(request, service.unseal(_SERVICE, webhook, request.encode()))
    except SealBroken:
        return _DAMAGED


def _drop(connection: Connection) -> None:
    connection.execute("DROP TABLE clear_requests")
