"""What a request is answered with: documents, refusals, and the error shapes of both worlds.

The cloud has two error shapes, `{"detail": text}` (account, CRUD) and `{"status": {"code", "text"}}`
(inference, search), and its clients look for either key only; those of the Open Inference Protocol look for
`{"error": text}`. Every wire refusal here carries all three, so one document serves all families;
`/appliance/v1` answers problem+json (RFC 9457).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import msgspec

from appliance.errors import (
    ApplianceError,
    CapacityExceeded,
    Conflict,
    Declined,
    Forbidden,
    ImageFailed,
    InvalidInput,
    ModelFailed,
    NotFound,
    NotInstalled,
    Overloaded,
    QuotaReached,
    TooLarge,
    Unauthenticated,
    VolumeFull,
)

JSON = "application/json"
PROBLEM = "application/problem+json"
INTERNAL = "the appliance failed on this request; its log names the request id"

# Subclasses before their bases.
_CODES: tuple[tuple[type[ApplianceError], int], ...] = (
    (Unauthenticated, 401),
    (Forbidden, 403),
    (NotFound, 404),
    (NotInstalled, 404),
    (Conflict, 409),
    (CapacityExceeded, 412),
    (TooLarge, 413),
    (ImageFailed, 422),
    (ModelFailed, 422),
    (InvalidInput, 400),
    (Overloaded, 429),
    (QuotaReached, 429),
    (VolumeFull, 507),
)

# Records whose encoding is not worth a pause: about 1 ms of the loop's time.
_ENCODED_AT_ONCE = 500

log = logging.getLogger("appliance.api")


class Refused(Declined):
    """A refusal that only HTTP knows (405, 408, 415, 417), with the headers that belong to it."""

    def __init__(self, code: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.headers = dict(headers or {})


@dataclass(frozen=True)
class Stream:
    """A body of `length` bytes that is made while it is sent; `close` is called once, whatever happens.

    Without a length, as of exports, making a piece may take its time; its reader has a limited one for each,
    longer where that is an operator's disk.
    """

    length: int | None
    pieces: AsyncIterator[bytes | memoryview]
    close: Callable[[], None]


@dataclass(frozen=True)
class Answer:
    """A finished answer: HTTP `status`, and a JSON `document`, a `text`, a `stream`, or nothing (204)."""

    document: object = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = JSON
    text: bytes | None = None
    stream: Stream | None = None


def code_of(error: ApplianceError) -> int:
    """The wire code of a refusal, which is its HTTP status too; 503 for what the appliance cannot do now."""
    if isinstance(error, Refused):
        return error.code
    return next((code for kind, code in _CODES if isinstance(error, kind)), 503)


def text_of(error: ApplianceError, request_id: str) -> str:
    """What a customer may read. The log has the message, where it says more."""
    if error.told != str(error):
        log.error("request %s: %s", request_id, error)
    return _of_service(error, error.told)


def status(code: int, text: str, request_id: str) -> dict[str, object]:
    """The object that the clients read as `status` and `_status`."""
    return {"code": code, "text": text, "request_id": request_id}


def status_of(error: ApplianceError, request_id: str) -> dict[str, object]:
    """`_status` of a record that was refused while the others were served."""
    return status(code_of(error), text_of(error, request_id), request_id)


def http_status(code: int) -> int:
    """200 for every 2xx wire code, else the code itself (the clients read the code from the body)."""
    return 200 if 200 <= code < 300 else code


def refusal(error: ApplianceError, request_id: str, *, problem: bool, to_operator: bool = False) -> Answer:
    """The whole answer of a refused request, as problem+json or in the wire shape.

    An operator is told all of it, a customer what `text_of` says.
    """
    code = code_of(error)
    text = _of_service(error, str(error)) if to_operator else text_of(error, request_id)
    detail = "service not installed" if isinstance(error, NotInstalled) and not problem else text
    headers: dict[str, str] = {}
    if isinstance(error, Refused):
        headers |= error.headers
    if code == 401:
        headers["WWW-Authenticate"] = "Token"
    if code in {429, 503}:
        headers["Retry-After"] = str(
            error.retry_after if isinstance(error, (Overloaded, QuotaReached)) else 1
        )
    document: dict[str, object]
    if problem:
        document = {
            "type": "about:blank",
            "title": HTTPStatus(code).phrase,
            "status": code,
            "detail": detail,
            "request_id": request_id,
        }
        return Answer(document, code, headers, PROBLEM)
    document = {"detail": detail, "error": text, "status": status(code, text, request_id)}
    return Answer(document, code, headers)


def _of_service(error: ApplianceError, text: str) -> str:
    return f"service not installed: {text}" if isinstance(error, NotInstalled) else text


def moment(milliseconds: int | None) -> str | None:
    """A time of the ledger (unix milliseconds) as answers have it: ISO 8601 in UTC, None for never."""
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")


def unix_milliseconds(given: datetime | None, field: str) -> int | None:
    """A time of a request as the ledger has it. Raises InvalidInput for one without a time zone."""
    if given is None:
        return None
    if given.tzinfo is None:
        raise InvalidInput(f"{field}: a time zone is expected (2027-01-31T12:00:00Z)")
    return int(given.timestamp() * 1000)


def encode(document: object) -> bytes:
    """JSON of an answer."""
    return msgspec.json.encode(document)


def is_long(document: object) -> bool:
    """Whether the answer is to be encoded in steps."""
    return isinstance(document, dict) and len(document.get("answer_records", ())) > _ENCODED_AT_ONCE


async def encode_in_steps(document: Any) -> bytes:
    """JSON of a long answer. Its `answer_records` are encoded in slices, so that a whole collection in one
    answer never holds the loop for longer than one slice takes."""
    records = document["answer_records"]
    slices: list[bytes] = []
    for start in range(0, len(records), _ENCODED_AT_ONCE):
        slices.append(msgspec.json.encode(records[start : start + _ENCODED_AT_ONCE])[1:-1])
        await asyncio.sleep(0)
    return msgspec.json.encode(document | {"answer_records": msgspec.Raw(b"[" + b",".join(slices) + b"]")})
