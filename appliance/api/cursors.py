"""The opaque `cursor` of pages that stay where they are while records come and go."""

import base64
import binascii
import zlib

from appliance.errors import InvalidInput
from appliance.search.collections import OpenCollection

_BYTES = 8


def encode_cursor(collection: OpenCollection, label: int) -> str:
    """The cursor of the page after this label; letters that need no escaping in a query."""
    position = label.to_bytes(_BYTES)
    return base64.urlsafe_b64encode(position + _check(collection, position)).decode().rstrip("=")


def decode_cursor(collection: OpenCollection, cursor: str) -> int:
    """The label that `encode_cursor` was given, -1 for the empty cursor, with which paging begins.

    Raises InvalidInput for what is no cursor of this collection.
    """
    if not cursor:
        return -1
    try:
        given = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        given = b""
    position = given[:_BYTES]
    if len(given) <= _BYTES or given[_BYTES:] != _check(collection, position):
        raise InvalidInput("cursor: not one of this collection's; begin with an empty one")
    return int.from_bytes(position)


def _check(collection: OpenCollection, position: bytes) -> bytes:
    # Against mistakes alone: a cursor says where to go on, not what may be seen.
    return zlib.crc32(position, zlib.crc32(collection.collection.id.encode())).to_bytes(4)
