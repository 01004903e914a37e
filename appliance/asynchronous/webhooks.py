"""Webhooks: the end of a request, told to a declared host, signed, again and again until it is heard.

Signatures and headers are those of Standard Webhooks 1.0 (standardwebhooks.com), which has libraries for
receivers in most languages: `webhook-id`, `webhook-timestamp`, `webhook-signature: v1,BASE64`, the signature
being HMAC-SHA256 of "ID.TIMESTAMP.BODY".
"""

import asyncio
import base64
import contextlib
import hmac
import logging
import re
from collections import Counter
from collections.abc import Callable
from typing import Self

import msgspec

from appliance.accounts.customers import CustomerId
from appliance.asynchronous.requests import (
    LONGEST_PAUSE_SECONDS,
    Due,
    Request,
    RequestId,
    Requests,
    Webhook,
)
from appliance.background import end_tasks
from appliance.errors import InvalidInput, StorageFailed, VolumeFull
from appliance.outbound import Outbound
from appliance.unforeseen import frames_of
from appliance.vault import Keys

# Seconds before the next attempt, after the first, the second, ...: those that the standard recommends.
AGAIN = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, int(LONGEST_PAUSE_SECONDS))
AT_ONCE = 16
EACH_AT_ONCE = 2  # of one customer, whose receiver may be dead: others need not wait for it
MAX_HEADERS = 16
MAX_HEADER_CHARACTERS = 1024
_IDLE_SECONDS = 3600.0
_FAULT_SECONDS = 5.0
_UNFORESEEN_SECONDS = 60.0
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_OURS = re.compile(
    r"webhook-.*|content-.*|host|connection|transfer-encoding|upgrade|te|trailer|expect|proxy-.*",
    re.IGNORECASE,
)

log = logging.getLogger(__name__)


class Webhooks:
    """`async with` delivers what is due, also what an earlier run of the daemon left."""

    def __init__(
        self, requests: Requests, outbound: Outbound, keys: Keys, clock: Callable[[], float]
    ) -> None:
        self._requests = requests
        self._outbound = outbound
        self._keys = keys
        self._clock = clock
        self._woken = asyncio.Event()
        self._calls: dict[RequestId, tuple[CustomerId, asyncio.Task[None]]] = {}
        self._left: set[RequestId] = set()  # until the next start: a call of theirs met what nobody foresaw

    async def __aenter__(self) -> Self:
        self._task = asyncio.get_running_loop().create_task(self._deliver())
        return self

    async def __aexit__(self, *_: object) -> None:
        await end_tasks(self._task, *(task for _, task in self._calls.values()))

    def wake(self) -> None:
        """Something may be due."""
        self._woken.set()

    def secret(self, customer: CustomerId) -> str:
        """What the customer verifies signatures with: `whsec_` and 32 bytes in base64, always the same."""
        return "whsec_" + base64.b64encode(self._key(customer)).decode()

    def checked(self, given: object) -> Webhook | None:
        """A request's field `webhook`, None for none. Raises InvalidInput."""
        if given is None:
            return None
        try:
            webhook = msgspec.convert(given, Webhook)
        except msgspec.ValidationError as error:
            raise InvalidInput(f"webhook: {error}") from None
        self._outbound.check(webhook.endpoint, "webhooks")
        if len(webhook.headers) > MAX_HEADERS:
            raise InvalidInput(f"webhook: at most {MAX_HEADERS} headers")
        for name, value in webhook.headers.items():
            if not _NAME.fullmatch(name) or _OURS.fullmatch(name):
                raise InvalidInput("webhook: a header has a name that cannot be set")
            if len(value) > MAX_HEADER_CHARACTERS or not value.isprintable() or not value.isascii():
                raise InvalidInput(
                    f"webhook: a header has more than {MAX_HEADER_CHARACTERS} characters or others"
                )
        return webhook

    async def _deliver(self) -> None:
        while True:
            self._woken.clear()
            try:
                pause = await self._call_due()
            except (StorageFailed, VolumeFull):  # a finding of its own
                pause = _FAULT_SECONDS
            except Exception as error:  # noqa: BLE001 - what is wrong with one must not end all others
                _log_unforeseen("webhooks", error)
                pause = _UNFORESEEN_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._woken.wait()

    async def _call_due(self) -> float:
        """Calls what is due as far as there is room; seconds until more is; a call's end wakes."""
        while room := AT_ONCE - len(self._calls):
            calls = Counter(customer for customer, _ in self._calls.values())
            busy = [customer for customer, count in calls.items() if count >= EACH_AT_ONCE]
            besides = self._calls.keys() | self._left
            due = await self._requests.due(room, besides=besides, customers=busy)
            if not due:
                soonest = await self._requests.next_due(besides=besides, customers=busy)
                return _IDLE_SECONDS if soonest is None else min(soonest, _IDLE_SECONDS)
            for one in due:
                task = asyncio.get_running_loop().create_task(self._call(one))
                self._calls[one.request.id] = one.request.customer, task
        return _IDLE_SECONDS

    async def _call(self, due: Due) -> None:
        try:
            await self._tell(due)
        except (StorageFailed, VolumeFull):  # the ledger knows of no call: again, though not at once
            await asyncio.sleep(_FAULT_SECONDS)
        except Exception as error:  # noqa: BLE001 - it must not be called again and again
            self._left.add(due.request.id)
            _log_unforeseen(f"webhook of request {due.request.id}, left until the next start", error)
        finally:
            del self._calls[due.request.id]
            self._woken.set()

    async def _tell(self, due: Due) -> None:
        request, body = due.request, body_of(due.request)
        if due.webhook is None:
            log.error("webhook of request %s: its row is damaged, given up", request.id)
            await self._requests.told(request.id, None)
            return
        stamp = str(int(self._clock()))
        signed = hmac.digest(self._key(request.customer), f"{request.id}.{stamp}.".encode() + body, "sha256")
        headers = {
            **due.webhook.headers,
            "webhook-id": request.id,
            "webhook-timestamp": stamp,
            "webhook-signature": "v1," + base64.b64encode(signed).decode(),
        }
        try:
            status = await self._outbound.post(due.webhook.endpoint, body, headers)
        except InvalidInput:
            status = None  # declared when it was accepted, not any more: it may be again
        if status is not None and (200 <= status < 300 or status == 410):
            again = None
        else:
            again = AGAIN[due.attempts - 1] if due.attempts <= len(AGAIN) else None
            log.warning(
                "webhook of request %s: attempt %d failed (%s), %s",
                request.id,
                due.attempts,
                status or "no answer",
                "given up" if again is None else f"again in {again} s",
            )
        await self._requests.told(request.id, again)

    def _key(self, customer: CustomerId) -> bytes:
        return self._keys.mac("webhooks/signature", customer.encode())


def _log_unforeseen(what: str, error: Exception) -> None:
    log.error("%s: %s\n%s", what, type(error).__name__, frames_of(error))


def body_of(request: Request) -> bytes:
    """What is told of a request, as the cloud tells it."""
    response = None if request.response is None else msgspec.Raw(request.response)
    return msgspec.json.encode(
        {"status": request.state, "id": request.id, "type": request.type, "response": response}
    )
