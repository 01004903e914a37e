"""What a request says: its fields, its records and their images, parsed from bytes that are in RAM already.

JSON is parsed in steps that each hold the event loop for a few milliseconds at most, whatever the body holds:
images stay raw slices of the body until pybase64 decodes them, fields are parsed record by record.
"""

import asyncio
import binascii
import os
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from enum import Enum

import msgspec
import pybase64

from appliance.encodable import check_encodable
from appliance.errors import InvalidInput, TooLarge

MAX_IMAGES = 10  # images in one call, as in the cloud
MAX_RECORDS = 1000  # records in one call that carries ids only
MAX_VALUES = 100_000  # commas in a JSON body: parsing that many values holds the loop for about 8 ms
MAX_FIELD_BYTES = 1 << 20  # JSON of one record without its image, or of the request's own fields
MAX_DEPTH = 64
MAX_HEADER_BYTES = 256  # of a data: URL, up to its comma

Fields = dict[str, object]
Image = bytes | bytearray
Files = AsyncIterator[tuple[str, AsyncIterator[bytes]]]

_PIECE = 1 << 20
_SMALL = 1 << 16
_RAW_DOCUMENT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RAW_RECORDS = msgspec.json.Decoder(list[dict[str, msgspec.Raw]] | None)
_RAW_RECORD = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)
_NULL = msgspec.Raw(b"null")
_ENCODED = ("base64", "_base64")  # an upload's image, as the cloud calls it and as records do
_MALFORMED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Form(Enum):
    """What a route reads from its body."""

    NOTHING = "nothing"
    FIELDS = "fields"  # a JSON object
    IDS = "ids"  # JSON with `records` whose images, if any, are dropped undecoded
    RECORDS = "records"  # JSON, raw or multipart; images belong to `records`
    QUERY = (
        "query"  # JSON, raw or multipart; the first image belongs to `query_record`, the rest to `records`
    )
    UPLOAD = "upload"  # JSON, raw or multipart; the fields and the one image belong to the same record
    FILES = "files"  # multipart, read by the handler as it comes
    ARCHIVE = "archive"  # a tar of any length, read by the handler as it comes
    VECTORS = "vectors"  # arrays and JSON lines of any length, read by the handler as they come
    LINES = "lines"  # JSON lines or a JSON array of any length, read by the handler as it comes
    BYTES = "bytes"  # of any media type, parsed by the handler
    KEY = "key"  # a few raw bytes, which stand in no field and in no text
    DOCUMENT = "document"  # the raw bytes of a paper that was signed

    @property
    def takes_images(self) -> bool:
        return self in {Form.RECORDS, Form.QUERY, Form.UPLOAD}

    @property
    def carries_images(self) -> bool:
        """Also where the handler finds them in the bytes itself."""
        return self.takes_images or self is Form.BYTES


@dataclass
class Record:
    """One record: its fields without `_base64` and `_file`; its encoded image, or why that is unusable."""

    fields: Fields
    image: Image | memoryview | None = None
    problem: InvalidInput | None = None

    @property
    def has_image(self) -> bool:
        return self.image is not None or self.problem is not None

    @property
    def id(self) -> str:
        """The `_id` sent by the caller. Raises InvalidInput when there is none or it is not a string."""
        given = self.fields.get("_id")
        if isinstance(given, str) and given:
            return given
        raise InvalidInput("_id: a string of at least one character is expected")

    @property
    def url(self) -> str | None:
        """Where the image is to be fetched, None when it came along or no `_url` is given.

        Raises InvalidInput when `_url` is not a string.
        """
        given = self.fields.get("_url")
        if self.has_image or given is None:
            return None
        if isinstance(given, str):
            return given
        raise InvalidInput("_url: a string is expected")

    def ensure_id(self) -> None:
        """Gives the record a new UUID 4 as `_id` when the caller sent none."""
        if self.fields.get("_id") is None:
            self.fields["_id"] = new_id()

    def take_image(self) -> Image | memoryview:
        """Hands the image over: the record holds it no longer. Raises InvalidInput when there is none."""
        if self.problem is not None:
            raise self.problem
        if self.image is None:
            raise InvalidInput("the record has no image: send _base64, a raw body or a multipart part")
        image, self.image = self.image, None
        return image


def new_id() -> str:
    """A random UUID (RFC 9562, version 4); by the library's class it costs five times as much."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


async def _no_files() -> Files:
    none: list[tuple[str, AsyncIterator[bytes]]] = []
    for file in none:
        yield file


async def _no_pieces() -> AsyncGenerator[bytes]:
    none: list[bytes] = []
    for piece in none:
        yield piece


@dataclass
class Payload:
    """A parsed body. `fields` are the request's own; `records` is None when the body has none.

    `files` and the `pieces` of an archive come from the wire while they are read: each content to its end,
    before the next name. `body` is the bytes of a route that parses them itself.
    """

    fields: Fields = field(default_factory=dict)
    records: list[Record] | None = None
    query: Record | None = None
    files: Files = field(default_factory=_no_files, compare=False)
    pieces: AsyncIterator[bytes] = field(default_factory=_no_pieces, compare=False)
    body: Image = field(default=b"", repr=False)

    def text(self, name: str) -> str | None:
        """A string field; None when absent or null. Raises InvalidInput naming the field otherwise."""
        value = self.fields.get(name)
        if value is None or isinstance(value, str):
            return value
        raise InvalidInput(f"{name}: a string is expected")

    def integer(self, name: str, default: int, lowest: int, highest: int) -> int:
        """An integer field within [lowest, highest], `default` when absent or null."""
        return integer(self.fields.get(name), name, default, lowest, highest)

    def fraction(self, name: str, default: float) -> float:
        """A number field within [0, 1], `default` when absent or null. Raises InvalidInput otherwise."""
        return self.number(name, default, 1)

    def number(self, name: str, default: float, highest: int) -> float:
        """A number field within [0, highest], `default` when absent or null. Raises InvalidInput."""
        value = self.fields.get(name)
        if value is None:
            return default
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= highest:
            return float(value)
        raise InvalidInput(f"{name}: a number from 0 to {highest} is expected")

    def flag(self, name: str) -> bool:
        """A true or false field; null and absent are false, the words of query fields are taken."""
        value = self.fields.get(name)
        if isinstance(value, str) and value.lower() in {"true", "false"}:
            return value.lower() == "true"
        if value is None or isinstance(value, bool):
            return bool(value)
        raise InvalidInput(f"{name}: true or false is expected")

    def slots(self, form: Form) -> list[Record]:
        """The records that images sent beside the JSON belong to, in order."""
        asked = [self.query] if form is Form.QUERY and self.query is not None else []
        return asked + (self.records or [])

    def check_counts(self) -> None:
        """Raises InvalidInput for more than 10 records with images, or more than 1,000 in all."""
        records = self.records or []
        if len(records) > MAX_RECORDS:
            raise InvalidInput(f"records: at most {MAX_RECORDS} in one call")
        if sum(record.has_image for record in records) > MAX_IMAGES:
            raise InvalidInput(f"records: at most {MAX_IMAGES} with images in one call")


def integer(value: object, name: str, default: int, lowest: int, highest: int) -> int:
    """`value` (or its decimal string) as an integer within [lowest, highest], `default` for None.

    Raises InvalidInput naming the field and its limits.
    """
    if value is None:
        return default
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest:
        return value
    raise InvalidInput(f"{name}: an integer from {lowest} to {highest} is expected")


async def parse(body: Image, form: Form) -> Payload:
    """A JSON body as a payload. With `form` FIELDS every key is a field; with UPLOAD all but the image are,
    of the request as of its one record; else `records` and `query_record` are taken apart and their images
    are decoded. An empty body is an empty object.

    Raises InvalidInput for JSON that is malformed, nested deeper than 64, holds NaN or integers beyond
    64 bit, or has too many records; TooLarge for more than 100,000 values or fields over 1 MiB. A `_base64`
    that cannot be decoded is the problem of its record alone.
    """
    document = await _document(body)
    if form is Form.FIELDS:
        return Payload(_fields(document, "the request"))
    if form is Form.UPLOAD:
        return await _upload(document)
    raw_records, raw_query = document.pop("records", _NULL), document.pop("query_record", _NULL)
    payload = Payload(_fields(document, "the request"))
    encoded: list[tuple[Record, msgspec.Raw]] = []
    payload.records = await _records(raw_records, encoded)
    payload.query = await _query(raw_query, encoded)
    if len(encoded) > MAX_IMAGES + (payload.query is not None):
        raise InvalidInput(f"records: at most {MAX_IMAGES} with images in one call")
    if form.takes_images:
        for record, raw in encoded:
            try:
                record.image = await decode_base64(raw)
            except InvalidInput as problem:
                record.problem = problem
    return payload


async def _document(body: Image) -> dict[str, msgspec.Raw]:
    if not body:
        return {}
    if await too_many_values(body, len(body)):
        raise TooLarge(f"the body holds more than {MAX_VALUES} values")
    try:
        document = _RAW_DOCUMENT.decode(body)
    except _MALFORMED:
        raise InvalidInput("the body is not a JSON object") from None
    if len(body) > _SMALL:
        await asyncio.sleep(0)
    return document


def parse_record(text: bytes) -> Record:
    """The record of a raw image from its header `X-Record`. Raises InvalidInput when it is not an object."""
    try:
        document = _RAW_DOCUMENT.decode(text)
    except _MALFORMED:
        raise InvalidInput("X-Record: a JSON object is expected") from None
    for name in (*_ENCODED, "_file"):
        document.pop(name, None)
    return Record(_fields(document, "X-Record"))


def uploaded(record: Record) -> Payload:
    """The payload of an upload: its fields are those of its record, whose `url` goes by the name `_url`."""
    fields = record.fields
    link = fields.pop("url", None)
    if link is not None:
        fields.setdefault("_url", link)
    return Payload(fields, [record])


def parse_word(text: str) -> object:
    """A query field: JSON where it is JSON (`5`, `true`, `["_id"]`, `{..}`), else the text itself."""
    try:
        value = msgspec.json.decode(text)
    except (*_MALFORMED, UnicodeEncodeError):
        return text
    check_encodable(value, "the query", MAX_DEPTH)
    return value


async def decode_base64(raw: msgspec.Raw, name: str = "_base64") -> bytes:
    """The bytes behind a JSON string of base64, with or without a `data:` header of any kind.

    Decoded straight from the body; JSON escapes (`\\/` of PHP, `\\u003d` of Gson, line breaks) are undone in
    pieces. Raises InvalidInput, in which the string is called `name`, for anything that is not base64 in the
    standard alphabet with padding.
    """
    view = memoryview(raw)
    if len(view) > _SMALL:
        await asyncio.sleep(0)
    if view[0] != ord('"'):
        raise InvalidInput(f"{name}: a string is expected")
    view = view[1:-1]
    header = bytes(view[:MAX_HEADER_BYTES])
    if header[:5].lower() == b"data:":
        comma = header.find(b",")
        if comma < 0:
            raise InvalidInput(f"{name}: the data: header does not end")
        view = view[comma + 1 :]
    try:
        return await _decoded(view)
    except (binascii.Error, ValueError):
        pass
    try:
        return await _decoded(await _unescaped(view))
    except (binascii.Error, ValueError, *_MALFORMED):
        raise InvalidInput(f"{name}: not valid base64") from None


async def _decoded(encoded: bytes | memoryview) -> bytes:
    """Others get their turn before the caller goes on: it copies what was decoded, which takes as long."""
    decoded: bytes = pybase64.b64decode(encoded, validate=True)
    if len(decoded) > _SMALL:
        await asyncio.sleep(0)
    return decoded


async def _unescaped(view: memoryview) -> bytes:
    pieces: list[bytes] = []
    position, escaped = 0, False
    while position < len(view):
        piece = bytes(view[position : position + _PIECE])
        if position + len(piece) < len(view) and (start := piece.rfind(b"\\", -6)) > 0:
            piece = piece[:start]  # an escape is at most 6 bytes long: the next piece begins with it
        position += len(piece)
        if b"\\" in piece:
            escaped = True
            piece = msgspec.json.decode(b'"' + piece + b'"', type=str).encode()
        pieces.append(piece.translate(None, b"\r\n"))
        await asyncio.sleep(0)
    if not escaped:
        raise ValueError
    return b"".join(pieces)


async def _upload(document: dict[str, msgspec.Raw]) -> Payload:
    encoded = [(name, document.pop(name, _NULL)) for name in _ENCODED]
    document.pop("_file", None)
    record = Record(_fields(document, "the request"))
    for name, raw in encoded:
        if bytes(memoryview(raw)[:4]) != b"null":
            record.image = await decode_base64(raw, name)
            break
    return uploaded(record)


async def _records(raw: msgspec.Raw, encoded: list[tuple[Record, msgspec.Raw]]) -> list[Record] | None:
    try:
        records = _RAW_RECORDS.decode(raw)
    except _MALFORMED:
        raise InvalidInput("records: a list of objects is expected") from None
    if records is None:
        return None
    if len(records) > MAX_RECORDS:
        raise InvalidInput(f"records: at most {MAX_RECORDS} in one call")
    return [await _record(record, encoded) for record in records]


async def _query(raw: msgspec.Raw, encoded: list[tuple[Record, msgspec.Raw]]) -> Record | None:
    try:
        record = _RAW_RECORD.decode(raw)
    except _MALFORMED:
        raise InvalidInput("query_record: an object is expected") from None
    return None if record is None else await _record(record, encoded)


async def _record(raw: dict[str, msgspec.Raw], encoded: list[tuple[Record, msgspec.Raw]]) -> Record:
    image = raw.pop("_base64", None)
    raw.pop("_file", None)
    record = Record(_fields(raw, "a record"))
    if sum(len(memoryview(value)) for value in raw.values()) > _SMALL:
        await asyncio.sleep(0)
    if image is not None and bytes(memoryview(image)[:4]) != b"null":
        encoded.append((record, image))
    return record


def _fields(raw: dict[str, msgspec.Raw], owner: str) -> Fields:
    if sum(len(memoryview(value)) for value in raw.values()) > MAX_FIELD_BYTES:
        raise TooLarge(f"the fields of {owner} are larger than {MAX_FIELD_BYTES} bytes")
    try:
        fields = {name: msgspec.json.decode(value) for name, value in raw.items()}
    except _MALFORMED:
        raise InvalidInput(f"a field of {owner} is not valid JSON") from None
    check_encodable(fields, owner, MAX_DEPTH)
    return fields


async def too_many_values(body: Image, end: int) -> bool:
    """Whether the JSON in the first `end` bytes may hold more than MAX_VALUES values.

    To count them takes as long as to parse them does: others get their turn before the caller goes on.
    """
    commas = 0
    for start in range(0, end, _PIECE):
        commas += body.count(b",", start, min(start + _PIECE, end))
        if commas > MAX_VALUES:
            return True
    if end > _SMALL:
        await asyncio.sleep(0)
    return False
