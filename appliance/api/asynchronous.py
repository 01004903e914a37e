"""`account/v2/request`: images taken in now, seen when there is room, the answer fetched or sent later.

Images wait in RAM, within the limits of `[requests]`, and customers take turns; the rows that say how each
request stands are durable.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Self
from urllib.parse import urlencode

import msgspec

from appliance.accounts.customers import CustomerId
from appliance.accounts.quotas import Quotas
from appliance.api.account import tagging_route
from appliance.api.answers import INTERNAL, Answer, Refused, encode, moment, refusal
from appliance.api.call import Call
from appliance.api.colours import Colours
from appliance.api.idempotency import content, digest_of, key_of
from appliance.api.payload import Payload, Record, integer
from appliance.api.recognition import Recognition
from appliance.api.vision import images
from appliance.asynchronous.requests import PAGE, Request, RequestId, Requests, State
from appliance.asynchronous.webhooks import Webhooks
from appliance.background import end_tasks
from appliance.config import Requests as Limits
from appliance.errors import (
    ApplianceError,
    InvalidInput,
    LedgerAltered,
    NotInstalled,
    Overloaded,
    QuotaReached,
    StorageFailed,
    VolumeFull,
    WorkerLost,
)
from appliance.recognition.bundles import Bundles
from appliance.recognition.turns import Shares, Turns
from appliance.unforeseen import frames_of

PATH = "/account/v2/request"
WORKERS = 2
# Seconds before a request that found no room is tried again; after the last it has failed.
AGAIN = (1, 2, 4, 8, 15, 30, 60, 120)
FULL_SECONDS = 2.0  # before what a full volume refused is written again

Handler = Callable[[Call], Awaitable[Answer]]
_Ended = tuple[State, bytes]

log = logging.getLogger("appliance.api")


# No repr: the images must not get into a message by accident.
@dataclass(eq=False, repr=False)
class _Pending:
    request: Request
    call: Call
    handler: Handler
    size: int
    pauses: Iterator[float] = field(default_factory=lambda: iter(AGAIN))
    task: asyncio.Task[_Ended | None] | None = None
    again: asyncio.TimerHandle | None = None


class Asynchronous:
    """The handlers of `account/v2/request`; `async with` sees what they take in."""

    def __init__(
        self,
        requests: Requests,
        webhooks: Webhooks,
        *,
        recognition: Recognition,
        colours: Colours,
        bundles: Bundles,
        limits: Limits,
        quotas: Quotas,
    ) -> None:
        self._quotas = quotas
        self._requests = requests
        self._webhooks = webhooks
        self._bundles = bundles
        self._recognition = recognition
        # By the names that `authorize` knows; taggers beside general tags are found by their route.
        self._types: dict[str, tuple[str, Handler]] = {
            "custom-recognition": ("/recognition/v2/classify", recognition.classify),
            "custom-object-detection": ("/detection/v2/detect", recognition.detect),
            "descriptor": ("/photo/v2/descriptor", recognition.descriptor),
            "dominant-colors-generic": ("/dom_colors/generic/v2/dominantcolor", colours.generic),
            "dominant-colors-product": ("/dom_colors/product/v2/dominantcolor", colours.product),
        }
        self._pending: dict[RequestId, _Pending] = {}
        self._room, self._bytes = Shares(limits.pending), Shares(limits.pending_bytes)
        self._queue = Turns[_Pending]()
        self._queued = asyncio.Semaphore(0)  # as many as wait in the queue
        self._workers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._workers = [loop.create_task(self._work()) for _ in range(WORKERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await end_tasks(*self._workers)
        for request in list(self._pending):
            self._forget(request)

    async def submit(self, call: Call) -> Answer:
        """Takes a request in: 201, or 200 and the same request again for an Idempotency-Key that is known."""
        fields = call.payload.fields
        kind = call.payload.text("type")
        if kind is None:
            raise InvalidInput("type: the name of a service is expected, such as custom-recognition")
        path, handler = self._service(call, kind)
        webhook = self._webhooks.checked(fields.get("webhook"))
        key = key_of(call)
        digest = None
        if key is not None:
            digest = await asyncio.to_thread(digest_of, content(call.payload))
        records = images(call)
        size = sum(len(record.image or b"") for record in records)
        self._check_room(call.customer, size)
        self._take(call.customer, size)
        new = False
        try:
            request, new = await self._requests.add(
                call.actor, call.customer, kind, key=key, digest=digest, webhook=webhook
            )
        finally:
            if not new:
                self._give(call.customer, size)
        if new:
            asked = {name: value for name, value in fields.items() if name not in {"type", "webhook"}}
            later = replace(call, id=request.id, path=path, payload=Payload(asked, records))
            pending = self._pending[request.id] = _Pending(request, later, handler, size)
            self._enqueue(pending)
        return Answer(_document(request), 201 if new else 200)

    async def get(self, call: Call) -> Answer:
        """The request, with `response` as soon as it has ended."""
        return Answer(_document(await self._requests.get(call.customer, call.parameters["id"], _only(call))))

    async def status(self, call: Call) -> Answer:
        """How the request stands."""
        found = await self._requests.get(call.customer, call.parameters["id"], _only(call))
        return Answer({"id": found.id, "status": found.state})

    async def list(self, call: Call) -> Answer:
        """A page of requests, the newest first, without their responses."""
        page = integer(call.query.get("page"), "page", 1, 1, 1 << 31)
        kind, state = call.query.get("type"), call.query.get("status")
        found, count = await self._requests.list(
            call.customer, page, kind=kind, state=state, only=_only(call)
        )
        filters = {name: value for name, value in (("type", kind), ("status", state)) if value}
        more = f"&{urlencode(filters)}" if filters else ""
        return Answer(
            {
                "count": count,
                "next": f"{PATH}?page={page + 1}{more}" if page * PAGE < count else None,
                "previous": f"{PATH}?page={page - 1}{more}" if page > 1 else None,
                "results": [_document(replace(one, response=None)) for one in found],
            }
        )

    async def cancel(self, call: Call) -> Answer:
        """Ends a request that has not ended; its images are dropped."""
        cancelled = await self._requests.cancel(call.actor, call.customer, call.parameters["id"], _only(call))
        pending = self._forget(cancelled.id)
        if pending is not None and pending.task is not None:
            pending.task.cancel()
        return Answer(_document(cancelled))

    def _service(self, call: Call, kind: str) -> tuple[str, Handler]:
        if kind.startswith("dominant-colors-"):
            call.check_all_tasks()
        if (found := self._types.get(kind)) is not None:
            return found
        route = tagging_route(kind)
        if route is None or not call.bundles(self._bundles).route_installed(route):
            raise NotInstalled("no bundle of this appliance serves this type")
        return f"/{route}", self._recognition.tags

    def jobs(self, customer: CustomerId) -> int:
        """How many requests of a customer have not ended."""
        return self._room.of(customer)

    def _check_room(self, customer: CustomerId, size: int) -> None:
        if self.jobs(customer) >= (most := self._quotas.of(customer).jobs):
            raise QuotaReached(most, "requests that have not ended")
        if not (self._room.fits(customer) and self._bytes.fits(customer, size)):
            raise Overloaded("as many requests wait as there is room for; try again", retry_after=10)

    def _take(self, customer: CustomerId, size: int) -> None:
        self._room.take(customer)
        self._bytes.take(customer, size)

    def _give(self, customer: CustomerId, size: int) -> None:
        self._room.give(customer)
        self._bytes.give(customer, size)

    def _forget(self, request: RequestId) -> _Pending | None:
        """Its images need no room any more."""
        pending = self._pending.pop(request, None)
        if pending is not None:
            self._give(pending.request.customer, pending.size)
            if pending.again is not None:
                pending.again.cancel()
        return pending

    def _enqueue(self, pending: _Pending) -> None:
        self._queue.append(pending.request.customer, pending)
        self._queued.release()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._queued.acquire()
            pending = self._queue.take()
            if pending.request.id not in self._pending:
                continue  # cancelled while it waited
            tried = pending.task = loop.create_task(self._try(pending))
            try:
                # Not awaited itself: its end by `cancel` must not look like the end of this task.
                await asyncio.wait([tried])
                if not tried.cancelled():
                    if (ended := tried.result()) is None:
                        continue  # others have their turn meanwhile
                    await self._finish(pending, *ended)
            except StorageFailed:
                pass  # the next start says that it has failed
            except Exception as error:  # noqa: BLE001 - the next request must find this task at work
                frames = frames_of(error)
                log.error("request %s failed: %s\n%s", pending.call.id, type(error).__name__, frames)  # noqa: TRY400
                await self._fail(pending)
            finally:
                tried.cancel()
                if pending.again is None:
                    self._forget(pending.request.id)

    async def _fail(self, pending: _Pending) -> None:
        answer = _refused(Refused(500, INTERNAL), pending.call)
        with contextlib.suppress(StorageFailed):
            await self._finish(pending, State.FAILED, answer)

    async def _finish(self, pending: _Pending, state: State, response: bytes) -> None:
        await _as_there_is_room(lambda: self._requests.finish(pending.request.id, state, response))
        self._webhooks.wake()

    async def _move(self, pending: _Pending, state: State) -> None:
        await _as_there_is_room(lambda: self._requests.move(pending.request.id, state))

    async def _try(self, pending: _Pending) -> _Ended | None:
        """None where it found no room: it queues again after a pause, as often as AGAIN has one."""
        if pending.again is None:
            await self._move(pending, State.PROCESSING)
        pending.again = None
        call = replace(pending.call, payload=_copy(pending.call.payload), began=time.perf_counter())
        try:
            answer = await pending.handler(call)
            return State.DONE, encode(answer.document)
        except (Overloaded, WorkerLost) as error:
            if (pause := next(pending.pauses, None)) is None:
                return State.FAILED, _refused(error, call)
        except ApplianceError as error:
            return State.FAILED, _refused(error, call)
        await self._move(pending, State.RETRY)
        pending.again = asyncio.get_running_loop().call_later(pause, self._enqueue, pending)
        return None


def _only(call: Call) -> str | None:
    """The token whose requests alone are shown, None for all: others may be about tasks that it knows not."""
    return None if call.principal.tasks is None else call.principal.token_id


async def _as_there_is_room(write: Callable[[], Awaitable[None]]) -> None:
    """Has the ledger note it, as soon as its volume has room and nothing else has changed its schema."""
    while True:
        try:
            return await write()
        except (VolumeFull, LedgerAltered):
            await asyncio.sleep(FULL_SECONDS)


def _copy(payload: Payload) -> Payload:
    """For one attempt, which takes the images away and writes into the fields."""
    records = [Record(dict(one.fields), one.image, one.problem) for one in payload.records or []]
    return Payload(dict(payload.fields), records)


def _refused(error: ApplianceError, call: Call) -> bytes:
    return encode(refusal(error, call.id, problem=False).document)


def _document(request: Request) -> dict[str, object]:
    document: dict[str, object] = {
        "id": request.id,
        "type": request.type,
        "status": request.state,
        "created": moment(request.created_at),
        "finished": moment(request.finished_at),
    }
    if request.response is not None:
        document["response"] = msgspec.Raw(request.response)
    return document
