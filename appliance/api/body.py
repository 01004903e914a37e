"""The only reader of request bodies. A body lives in RAM, is dropped when its call ends, and is never logged.

Three forms: JSON with `_base64`, one raw image (`Content-Type: image/*`, its record in the header `X-Record`,
the request's fields in the query), or multipart (part `request` is the JSON, parts `image-0` to `image-9` the
images of its records in order). aiohttp's `Request.post()` writes uploads over 1 MiB to a temporary file and
is never used. Files that an operator sends (`Form.FILES`), archives, lists and vectors (`_STREAMED`) may be
of any length and are not held: the handler reads them as they come. A body that a family parses itself
(`Form.BYTES`) is handed on as it is.
"""

import asyncio
import re
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from aiohttp import (
    BadContentDispositionHeader,
    BadContentDispositionParam,
    BodyPartReader,
    HttpVersion11,
    web,
)
from aiohttp.http_exceptions import HttpProcessingError

from appliance.accounts.customers import CustomerId
from appliance.api.answers import Refused
from appliance.api.payload import (
    MAX_IMAGES,
    Form,
    Image,
    Payload,
    Record,
    parse,
    parse_record,
    parse_word,
    uploaded,
)
from appliance.config import Api
from appliance.errors import InvalidInput, Overloaded, TooLarge
from appliance.metrics import CpuTime
from appliance.recognition.turns import Shares

T = TypeVar("T")

IN_FLIGHT_BODIES = 16  # bodies of the largest size that may be held at the same time

_CHUNK = 1 << 18
_MULTIPART = "multipart/form-data"
# Media types of what is not held: it may be of any length.
_STREAMED: dict[Form, tuple[str, ...]] = {
    Form.ARCHIVE: ("application/x-tar",),
    Form.LINES: ("application/x-ndjson", "application/json"),
    Form.VECTORS: ("application/x-npy", "application/x-ndjson", _MULTIPART),
}
_IMAGE_PART = re.compile(r"image-([0-9])")
_PLAIN_ENCODINGS = {"", "binary", "8bit", "7bit"}
# These would print a part's header to the log: as errors they are refused like all that is malformed.
_WARNINGS = (BadContentDispositionHeader, BadContentDispositionParam)
# What aiohttp's multipart reader raises for broken bodies; none of the messages is passed on.
_BROKEN_MULTIPART = (
    ValueError,
    AssertionError,
    RuntimeError,
    LookupError,
    *_WARNINGS,
    HttpProcessingError,
    web.HTTPException,
)


class Bodies:
    """Reads bodies within the limits of `[api]`: size, time, and the bytes of all bodies held at once.

    Those with images have a `queue` in bytes besides. What a head declares takes its place in it at once: a
    body that would find none is refused unread.
    """

    def __init__(self, config: Api, queue: Shares, parsing: CpuTime) -> None:
        self._config = config
        self._queue = queue
        self._parsing = parsing
        self._room = Shares(config.max_body_bytes * IN_FLIGHT_BODIES)
        for warning in _WARNINGS:
            warnings.simplefilter("error", warning)

    @property
    def held(self) -> int:
        """Bytes that have arrived of all bodies whose calls have not ended."""
        return self._room.taken

    def patience(self, size: int) -> float:
        """Seconds in which a body of `size` bytes has to come or go."""
        return self._config.body_seconds + size / self._config.body_bytes_per_second

    async def read(self, request: web.BaseRequest, form: Form, customer: CustomerId | None) -> "Held":
        """The body of `request`, which counts as held until it is released.

        Raises TooLarge and Overloaded, before a byte is read when the length is declared: the latter when too
        much is in flight and of this customer more than an equal share. InvalidInput for what cannot be
        parsed, Refused for a media type (415) or a slow sender (408).
        """
        if form is Form.NOTHING:
            return Held(Payload())
        if form is Form.FILES or (form is Form.VECTORS and request.content_type == _MULTIPART):
            files = _Upload(request, self._config).files()
            return Held(Payload(files=files), arriving=files)
        if form in _STREAMED:
            pieces = _Upload(request, self._config).pieces(_STREAMED[form])
            return Held(Payload(pieces=pieces), arriving=pieces)
        queue = self._queue if form.carries_images else None
        transfer = _Transfer(request, self._config, self._room, queue, customer)
        try:
            return Held(await _payload(request, form, transfer, self._parsing), transfer)
        except BaseException:
            transfer.forget()
            raise


@dataclass(slots=True)
class Held:
    """A payload whose bytes are in RAM, or still on their way. `release` must follow when the call ends."""

    payload: Payload
    transfer: "_Transfer | None" = None
    arriving: AsyncGenerator[object] | None = None

    async def release(self) -> None:
        """The call has ended: its bytes count no more, and what is still to come is not read."""
        if self.transfer is not None:
            self.transfer.forget()
        if self.arriving is not None:
            await self.arriving.aclose()


@contextmanager
def _dropped_on_failure(buffers: dict[str, bytearray]) -> Iterator[None]:
    """Empties the buffers when the block fails.

    The traceback of an upload that breaks off keeps its frames until the collector comes by; the image must
    not stay with them.
    """
    try:
        yield
    except BaseException:
        for buffer in buffers.values():
            buffer.clear()
        raise


class _Transfer:
    """One body on its way in: its deadline moves with what came, its bytes count against the limits."""

    def __init__(
        self,
        request: web.BaseRequest,
        config: Api,
        room: Shares,
        queue: Shares | None,
        customer: CustomerId | None,
    ) -> None:
        self._request = request
        self._config = config
        self._room = room
        self._queue = queue
        self._queued = 0
        self._customer = customer
        self._received = 0
        self._timeout: asyncio.Timeout | None = None
        self._began = 0.0
        declared = request.content_length or 0
        self._check_size(declared)
        self._check_room(declared)
        self._enqueue(declared)

    @asynccontextmanager
    async def deadline(self) -> AsyncIterator[None]:
        """Ends the transfer with Refused(408) when it falls behind `body_seconds` + received / rate."""
        self._began = asyncio.get_running_loop().time()
        self._timeout = asyncio.timeout(None)
        await _invite(self._request)
        try:
            async with self._timeout:
                self.count(0)
                yield
        except TimeoutError:
            raise _slow(self._config) from None
        except (HttpProcessingError, web.RequestPayloadError, EOFError):
            raise InvalidInput("the body breaks the rules of its transfer encoding") from None

    def count(self, arrived: int) -> None:
        """Takes room for bytes that arrived; they buy time. Raises TooLarge or Overloaded."""
        self._check_size(self._received + arrived)
        self._check_room(arrived)
        self._enqueue(self._received + arrived)
        self._room.take(self._customer, arrived)
        self._received += arrived
        if self._timeout is not None:
            earned = self._received / self._config.body_bytes_per_second
            self._timeout.reschedule(self._began + self._config.body_seconds + earned)

    async def everything(self) -> Image:
        """The whole body; one that came along with its head, as small ones do, without waiting."""
        content = self._request.content
        if content.is_eof() and content.exception() is None:
            whole = content.read_nowait()
            self.count(len(whole))
            return whole
        async with self.deadline():
            return await self._rest()

    async def _rest(self) -> bytearray:
        content = self._request.content
        content.set_read_chunk_size(_CHUNK)
        body = bytearray()
        with _dropped_on_failure({"body": body}):
            while chunk := await content.readany():
                self.count(len(chunk))
                body += chunk
        return body

    def forget(self) -> None:
        """Gives the room back: the call has ended."""
        self._room.give(self._customer, self._received)
        self._received = 0
        if self._queue is not None:
            self._queue.give(self._customer, self._queued)
            self._queued = 0

    def _enqueue(self, size: int) -> None:
        """Takes a place for a body of this size, or more of one for a body that does not declare its size."""
        more = size - self._queued
        if self._queue is None or more <= 0:
            return
        if not self._queue.fits(self._customer, more):
            raise Overloaded("bodies with images take as many bytes as the queue holds; try again")
        self._queue.take(self._customer, more)
        self._queued += more

    def _check_room(self, more: int) -> None:
        if not self._room.fits(self._customer, more):
            raise Overloaded("too many bodies are in flight; try again", retry_after=1)

    def _check_size(self, size: int) -> None:
        if size > self._config.max_body_bytes:
            raise TooLarge(f"the body is larger than {self._config.max_body_bytes} bytes")


class _Upload:
    """A body that may be of any length, nothing of it held: its files, or its pieces as they come.

    Only waiting for the sender counts: it may pause for `body_seconds`, and what arrives buys that time back
    at `body_bytes_per_second`. How long the handler takes over a piece is not the sender's fault.
    """

    def __init__(self, request: web.BaseRequest, config: Api) -> None:
        self._request = request
        self._config = config
        self._patience = config.body_seconds

    async def files(self) -> AsyncGenerator[tuple[str, AsyncIterator[bytes]]]:
        """Every part's name and content. Raises Refused for a media type or a slow sender, InvalidInput."""
        if self._request.content_type != _MULTIPART:
            raise Refused(415, f"Content-Type: {_MULTIPART} is expected")
        await _invite(self._request)
        reader = await self._waited(self._request.multipart())
        while (part := await self._waited(reader.next())) is not None:
            plain = _plain(part)
            yield plain.name or "", self._content(plain)

    async def pieces(self, media: tuple[str, ...]) -> AsyncGenerator[bytes]:
        """The body as it comes. Raises Refused for another media type or a slow sender, InvalidInput."""
        if self._request.content_type not in media:
            raise Refused(415, f"Content-Type: {' or '.join(media)} is expected")
        await _invite(self._request)
        content = self._request.content
        content.set_read_chunk_size(_CHUNK)
        while piece := await self._waited(content.readany()):
            self._earn(len(piece))
            yield piece

    async def _content(self, part: BodyPartReader) -> AsyncIterator[bytes]:
        while not part.at_eof():
            chunk = await self._waited(part.read_chunk(_CHUNK))
            self._earn(len(chunk))
            yield chunk

    def _earn(self, arrived: int) -> None:
        earned = arrived / self._config.body_bytes_per_second
        self._patience = min(self._patience + earned, self._config.body_seconds)

    async def _waited(self, arriving: Awaitable[T]) -> T:
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            async with asyncio.timeout(self._patience):
                return await arriving
        except TimeoutError:
            raise _slow(self._config) from None
        except (*_BROKEN_MULTIPART, web.RequestPayloadError, EOFError):
            raise InvalidInput("the body is malformed, or breaks off") from None
        finally:
            self._patience -= clock() - began


async def _invite(request: web.BaseRequest) -> None:
    """Tells a sender that waits for the word to go on."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0


def _slow(config: Api) -> Refused:
    return Refused(408, f"the body came slower than {config.body_bytes_per_second} bytes a second")


def _plain(part: object) -> BodyPartReader:
    """The part, if its bytes are the content itself. Raises InvalidInput, Refused."""
    if not isinstance(part, BodyPartReader):
        raise InvalidInput("multipart: parts within parts are not read")
    if part.headers.get("Content-Transfer-Encoding", "").lower() not in _PLAIN_ENCODINGS:
        raise Refused(415, "multipart: Content-Transfer-Encoding is not undone; send the bytes as they are")
    if "Content-Encoding" in part.headers:
        raise Refused(415, "multipart: Content-Encoding is not undone; send the bytes as they are")
    return part


async def _payload(request: web.BaseRequest, form: Form, transfer: _Transfer, parsing: CpuTime) -> Payload:
    media = request.content_type if "Content-Type" in request.headers else ""
    if media == _MULTIPART and form.takes_images:
        parts: dict[str, bytearray] = {}
        with _dropped_on_failure(parts):
            async with transfer.deadline():
                await _receive_parts(request, transfer, parts)
        return await _assembled(parts, form)
    body = await transfer.everything()
    if form in {Form.BYTES, Form.KEY, Form.DOCUMENT}:
        return Payload(body=body)
    if media.startswith("image/") and form.takes_images:
        with parsing:
            return _raw_image(body, request, form)
    if body and media != "application/json":
        others = ", multipart/form-data or image/*" if form.takes_images else ""
        raise Refused(415, f"Content-Type: application/json{others} is expected")
    return await parsing.steps(parse(body, form))


def _raw_image(body: Image, request: web.BaseRequest, form: Form) -> Payload:
    header = request.headers.get("X-Record")
    record = Record({}) if header is None else parse_record(header.encode("utf-8", "surrogateescape"))
    record.image = body
    fields = {name: parse_word(value) for name, value in request.query.items()}
    if form is Form.UPLOAD:
        record.fields = fields | record.fields
        return uploaded(record)
    if form is Form.QUERY:
        return Payload(fields, query=record)
    return Payload(fields, records=[record])


async def _receive_parts(request: web.BaseRequest, transfer: _Transfer, parts: dict[str, bytearray]) -> None:
    try:
        reader = await request.multipart()
        while (received := await reader.next()) is not None:
            part = _plain(received)
            name = part.name or ""
            if name != "request" and not _IMAGE_PART.fullmatch(name):
                raise InvalidInput("multipart: only the parts request and image-0 to image-9 are read")
            if name in parts:
                raise InvalidInput(f"multipart: the part {name} came twice")
            data = parts[name] = bytearray()
            while not part.at_eof():
                chunk = await part.read_chunk(_CHUNK)
                transfer.count(len(chunk))
                data += chunk
    except _BROKEN_MULTIPART:
        raise InvalidInput("multipart: the body is malformed") from None


async def _assembled(parts: dict[str, bytearray], form: Form) -> Payload:
    payload = await parse(parts.pop("request", bytearray()), form)
    given = payload.records is not None
    if form is Form.QUERY and payload.query is None and parts:
        payload.query = Record({})
    for name in sorted(parts):
        index = int(name.removeprefix("image-"))
        slots = payload.slots(form)
        if index == len(slots) and not given and len(slots) < MAX_IMAGES:
            payload.records = [*(payload.records or []), Record({})]
            slots = payload.slots(form)
        if index >= len(slots):
            raise InvalidInput(f"multipart: {name} belongs to no record")
        if slots[index].has_image:
            raise InvalidInput(f"multipart: the record of {name} has an image already")
        slots[index].image = parts[name]
    payload.check_counts()
    return payload
