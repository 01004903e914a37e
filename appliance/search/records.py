"""What callers hand in and get back, and the checks at the door."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NewType

import msgspec

from appliance.accounts.customers import CustomerId
from appliance.encodable import INTEGERS
from appliance.errors import InvalidInput, TooLarge
from appliance.search import arrays

CollectionId = NewType("CollectionId", str)
Metadata = dict[str, object]
Vector = arrays.Vector
AnyVector = arrays.AnyVector
Inserted = Literal["inserted", "duplicate", "full"]
Upserted = Literal["inserted", "replaced", "full"]

MAX_DIM = 4096
MAX_METADATA_DEPTH = 32
MAX_NAME = 128
RECALL, LOWEST_RECALL, HIGHEST_RECALL = 0.95, 0.8, 0.999
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Collection:
    """A customer's set of records of one backbone; `created_at` in unix milliseconds.

    `recall` is what its graphs are tuned to, see `tuning`.
    """

    id: CollectionId
    customer: CustomerId
    name: str
    backbone: str
    dim: int
    created_at: int
    count: int
    recall: float = RECALL


@dataclass(frozen=True, slots=True)
class NewRecord:
    """A record to insert; its vector has shape (dim,)."""

    id: str
    vector: AnyVector
    metadata: Metadata = field(default_factory=dict)


class Record(msgspec.Struct, frozen=True):
    """A stored record as the caller named and described it."""

    id: str
    metadata: Metadata


class Hit(msgspec.Struct, frozen=True):
    """A record near the query; `distance` is 1 - cosine, in [0, 2], exact to 1e-7."""

    id: str
    distance: float
    metadata: Metadata


def encode_id(external: object, max_bytes: int) -> bytes:
    """The exact UTF-8 bytes of a caller's id: ids that differ in one byte are different ids.

    Raises InvalidInput when it is not a string, empty, longer than `max_bytes`, holds a NUL or a lone
    surrogate.
    """
    if not isinstance(external, str):
        raise InvalidInput(f"_id: a string is needed, not {type(external).__name__}")
    if not external:
        raise InvalidInput("_id: must not be empty")
    if "\0" in external:
        raise InvalidInput("_id: must not contain a NUL character")
    try:
        encoded = external.encode()
    except UnicodeEncodeError:
        raise InvalidInput("_id: is not valid Unicode (it contains a lone surrogate)") from None
    if len(encoded) > max_bytes:
        raise InvalidInput(f"_id: {len(encoded)} bytes, at most {max_bytes} are allowed")
    return encoded


def encode_metadata(metadata: object, max_bytes: int) -> bytes:
    """The metadata as JSON bytes.

    Raises InvalidInput for what JSON cannot carry (NaN, infinities, other types, a key that is not a string),
    integers beyond 64 bit or more than 32 levels, naming the field; TooLarge above `max_bytes` of JSON.
    """
    if not isinstance(metadata, dict):
        raise InvalidInput(f"metadata: an object is needed, not {type(metadata).__name__}")
    _check_json(metadata, "", MAX_METADATA_DEPTH)
    try:
        encoded = msgspec.json.encode(metadata)
    except UnicodeEncodeError:
        raise InvalidInput("metadata: is not valid Unicode (it contains a lone surrogate)") from None
    if len(encoded) > max_bytes:
        raise TooLarge(f"metadata: {len(encoded)} bytes of JSON, at most {max_bytes} are allowed")
    return encoded


def decode_metadata(encoded: bytes) -> Metadata:
    return _METADATA.decode(encoded)


_METADATA: msgspec.json.Decoder[Metadata] = msgspec.json.Decoder(Metadata)


def check_name(name: str) -> str:
    """The name of a collection, trimmed; InvalidInput unless it has 1 to 128 printable characters."""
    trimmed = name.strip()
    if not trimmed or len(trimmed) > MAX_NAME or _CONTROL.search(trimmed):
        raise InvalidInput(f"name: 1 to {MAX_NAME} printable characters are needed")
    return trimmed


def check_recall(recall: float) -> float:
    """`recall` itself; InvalidInput unless 0.8 <= recall <= 0.999."""
    if not LOWEST_RECALL <= recall <= HIGHEST_RECALL:
        raise InvalidInput(f"recall: a number from {LOWEST_RECALL} to {HIGHEST_RECALL} is needed")
    return recall


def _check_json(value: object, path: str, depth: int) -> None:
    match value:
        case None | bool() | str():
            return
        case int():
            if value not in INTEGERS:
                raise InvalidInput(f"metadata{path}: an integer has more than 64 bit")
        case float():
            if not math.isfinite(value):
                raise InvalidInput(f"metadata{path}: {value} is not a JSON number")
        case dict() | list():
            if depth == 0:
                raise InvalidInput(f"metadata: nested deeper than {MAX_METADATA_DEPTH} levels")
            for below, item in _inside(value, path):
                _check_json(item, below, depth - 1)
        case _:
            raise InvalidInput(f"metadata{path}: {type(value).__name__} is not a JSON type")


def _inside(value: dict[object, object] | list[object], path: str) -> Iterator[tuple[str, object]]:
    """The paths and the values of what an object or a list holds."""
    if isinstance(value, list):
        for position, item in enumerate(value):
            yield f"{path}[{position}]", item
        return
    for key, item in value.items():
        if not isinstance(key, str):
            raise InvalidInput(f"metadata{path}: the key {key!r} is not a string")
        yield f"{path}.{key[:64]}", item
