"""What a customer wrote (names, descriptions, boxes, metadata, points): checked, and sealed one blob a row.

A blob is bound to its row's id, so that none can be put in another one's place.
"""

import re
from typing import Any, TypeVar

import msgspec

from appliance.datasets.records import MAX_NAME
from appliance.encodable import check_encodable
from appliance.errors import InvalidInput, TooLarge
from appliance.vault import Container

T = TypeVar("T")

MAX_TEXT = 4000
MAX_META_DATA = 64 << 10
MAX_LEVELS = 63  # of metadata: a request has 64, and is one of them itself

_COLOR = re.compile(r"#[0-9A-Fa-f]{6}", re.ASCII)


class TaskWords(msgspec.Struct, omit_defaults=True):
    name: str
    description: str | None = None


class LabelWords(msgspec.Struct, omit_defaults=True):
    name: str
    description: str | None = None
    output_name: str | None = None
    color: str | None = None


class ObjectWords(msgspec.Struct, omit_defaults=True):
    box: tuple[int | float, int | float, int | float, int | float]
    meta_data: dict[str, object] = {}


class PointWords(msgspec.Struct, omit_defaults=True):
    name: str | None
    data: Any


def sealed(keys: Container, noun: str, identity: str, document: object) -> bytes:
    """`document` as JSON, sealed for the row of this id."""
    return keys.seal(noun, msgspec.json.encode(document), identity.encode())


def opened(keys: Container, noun: str, identity: str, blob: bytes, kind: type[T]) -> T:
    """What was sealed for the row of this id. Raises SealBroken."""
    return msgspec.json.decode(keys.unseal(noun, blob, identity.encode()), type=kind)


def opened_meta_data(keys: Container, noun: str, identity: str, blob: bytes | None) -> dict[str, object]:
    """The metadata of a row, empty where it has none. Raises SealBroken."""
    return {} if blob is None else opened(keys, noun, identity, blob, dict[str, object])


def checked_name(name: str) -> str:
    """Raises InvalidInput unless it can be the name of something."""
    if not 1 <= len(name) <= MAX_NAME or not name.strip():
        raise InvalidInput(f"name: 1 to {MAX_NAME} characters are expected")
    return name


def checked_text(text: str | None, field: str) -> str | None:
    """Raises TooLarge for more than 4,000 characters."""
    if text is not None and len(text) > MAX_TEXT:
        raise TooLarge(f"{field}: at most {MAX_TEXT} characters")
    return text


def checked_color(color: str | None) -> str:
    """Raises InvalidInput unless it is written #RRGGBB; white for None."""
    if color is None:
        return "#FFFFFF"
    if _COLOR.fullmatch(color) is None:
        raise InvalidInput("color: #RRGGBB is expected")
    return color


def checked_meta_data(meta_data: dict[str, object]) -> bytes:
    """It as JSON. Raises TooLarge for more than 64 KiB, InvalidInput for more than 63 levels or an integer of
    more than 64 bit.
    """
    check_encodable(meta_data, "meta_data", MAX_LEVELS)
    encoded = msgspec.json.encode(meta_data)
    if len(encoded) > MAX_META_DATA:
        raise TooLarge(f"meta_data: at most {MAX_META_DATA} bytes of JSON")
    return encoded
