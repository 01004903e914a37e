"""Records as JSON lines: `_id`, the vector in `_vector`, and beside them the metadata as the wire has it.

A vector is written as base64 of little-endian float32, which gives back the very same bits; a list of numbers
is read too. Customers may have a metadata field of that name all the same: there it has one underscore more
in front, and so has each that looks like it then.
"""

import binascii
import re
from collections.abc import AsyncIterator

import msgspec
import numpy as np
import pybase64

from appliance.errors import InvalidInput
from appliance.search.records import AnyVector, Metadata, NewRecord, Record, Vector

VECTOR = "_vector"
_ALIKE = re.compile(r"_+vector")
_NOT_KEPT = ("_base64", "_file")
"""An image, and where it lay with the caller: dropped, as the wire's inserts drop them."""
_OBJECT = msgspec.json.Decoder(dict[str, object])
_MALFORMED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


async def split(pieces: AsyncIterator[bytes], most: int) -> AsyncIterator[list[bytes | None]]:
    """The lines without their ends, as they come; None for one of more than `most` bytes, never held."""
    rest, cut = b"", False
    async for piece in pieces:
        *ended, rest = (rest + piece).split(b"\n")
        lines = [None if len(line) > most else line for line in ended]
        if cut and lines:
            lines[0], cut = None, False
        if cut or len(rest) > most:
            rest, cut = b"", True
        if lines:
            yield lines
    if rest or cut:
        yield [None if cut else rest]


def decode(line: bytes, dim: int) -> NewRecord:
    """The record of a line. Raises InvalidInput, which names the field."""
    external, fields, vector = _taken_apart(line)
    if isinstance(vector, str):
        return NewRecord(external, _floats(vector, dim), fields)
    if isinstance(vector, list):
        return NewRecord(external, _numbers(vector), fields)
    raise InvalidInput(f"{VECTOR}: a list of numbers, or base64 of float32, is expected")


def decode_beside(line: bytes, vector: AnyVector) -> NewRecord:
    """The record of a line whose vector is elsewhere. Raises InvalidInput, which names the field."""
    external, fields, given = _taken_apart(line)
    if given is not None:
        raise InvalidInput(f"{VECTOR}: the array has the vectors")
    return NewRecord(external, vector, fields)


def encode(record: Record, vector: Vector | None) -> bytes:
    """A record's line with its end, without a vector where that is written elsewhere."""
    line: Metadata = {"_id": record.id}
    if vector is not None:
        line[VECTOR] = pybase64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode()
    for name, value in record.metadata.items():
        line[f"_{name}" if _ALIKE.fullmatch(name) else name] = value
    return msgspec.json.encode(line) + b"\n"


def _taken_apart(line: bytes) -> tuple[str, Metadata, object]:
    """Id, metadata, and what stands for the vector."""
    try:
        fields = _OBJECT.decode(line)
    except _MALFORMED:
        raise InvalidInput("is not a JSON object") from None
    external, vector = fields.pop("_id", None), fields.pop(VECTOR, None)
    if not isinstance(external, str):
        raise InvalidInput("_id: a string is expected")
    for name in _NOT_KEPT:
        fields.pop(name, None)
    return external, {name[1:] if _ALIKE.fullmatch(name) else name: fields[name] for name in fields}, vector


def _numbers(given: list[object]) -> AnyVector:
    if not all(type(one) is float or type(one) is int for one in given):
        raise InvalidInput(f"{VECTOR}: holds what is no number")
    try:
        return np.array(given, np.float64)
    except OverflowError:
        raise InvalidInput(f"{VECTOR}: its numbers are too large") from None


def _floats(encoded: str, dim: int) -> Vector:
    try:
        content: bytes = pybase64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"{VECTOR}: not valid base64") from None
    if len(content) != 4 * dim:
        raise InvalidInput(f"{VECTOR}: {dim} float32 are {4 * dim} bytes, not {len(content)}")
    return np.frombuffer(content, "<f4")
