"""Takes the metadata out of an image file that is to be kept, without touching its pixels.

Of each format only the parts are copied that decoding needs; whatever else a program wrote (Exif, XMP, IPTC,
comments, thumbnails, further pictures, bytes behind the end) is left behind, known or not. Pure functions
over bytes: hostile files are parsed in the decoder processes alone.

`orientation` is that of the stored picture (Exif 2.32, 4.6.4 A; 1 to 8, 1 is upright), as decoding sees it:
it may come from any of the places that are left behind, and goes into a minimal Exif of our own unless it
is 1. A result is at most 64 bytes longer than its source, and stripping it again changes nothing.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from appliance.errors import InvalidImage

Encoded = bytes | bytearray | memoryview
Format = Literal["jpeg", "png", "webp"]


@dataclass(frozen=True, slots=True)
class Ingested:
    """An image as it may be kept: `image`, a file of `format`, and `thumbnail`, a JPEG of it.

    `width` and `height` are pixels of the upright picture. The bytes are not in its repr.
    """

    image: bytes = field(repr=False)
    thumbnail: bytes = field(repr=False)
    format: Format
    width: int
    height: int


# JPEG's markers (ITU-T T.81, table B.1).
_START, _END, _SCAN, _COMMENT = b"\xff\xd8", b"\xff\xd9", 0xDA, 0xFE
_JFIF, _ICC, _ADOBE = 0xE0, 0xE2, 0xEE
_APPLICATION = range(0xE0, 0xF0)
_STANDALONE = (0x01, *range(0xD0, 0xD8))
# Frames, tables, scans. JPG (C8), DHP, EXP and what is reserved stop every decoder.
_CODING = frozenset({*range(0xC0, 0xD0), 0xDA, 0xDB, 0xDC, 0xDD} - {0xC8})
# Decoders skip whatever lies between segments, fill bytes (FF) and stuffed ones (FF 00) included. Neither
# expression looks twice at a byte, however many FF follow each other.
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_BEHIND_SCAN = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
# Pixels and what their samples mean (PNG 3, 11.2 and 11.3.1 to 11.3.4). Not the palettes that are only
# suggested, which have names, nor the frames of an animation.
_PNG_KEPT = frozenset(b"IHDR PLTE IDAT tRNS bKGD pHYs sBIT cHRM gAMA iCCP sRGB cICP mDCV cLLI".split())
_ANCILLARY = 0x20  # set in the first letter of a chunk that a decoder may ignore

# WebP (RFC 9649): the flags of VP8X.
_HAS_ICC, _HAS_ALPHA, _HAS_EXIF, _IS_ANIMATED = 0x20, 0x10, 0x08, 0x02


def strip_jpeg(data: Encoded, orientation: int = 1) -> bytes:
    """The first image of a JPEG file: its tables, frames and scans byte for byte.

    Of the application segments, JFIF (without its thumbnail), Adobe and the ICC profile stay. Raises
    InvalidImage where segments or scans are cut off, or the end is missing.
    """
    whole = bytes(data)
    if not whole.startswith(_START):
        raise InvalidImage("the JPEG does not begin with its marker")
    view, jfif, kept, scans = memoryview(whole), b"", bytearray(), 0
    for marker, begin, body, end in _segments(whole):
        scans += marker == _SCAN
        if marker in _CODING:
            kept += view[begin:end]
        elif scans and marker in _APPLICATION:
            continue  # what colours mean is settled by then: in front it would change them
        elif marker == _ICC and whole.startswith(b"ICC_PROFILE\0", body):
            kept += view[begin:end]
        elif marker == _JFIF and whole.startswith(b"JFIF\0", body) and end - body >= 14:
            jfif = jfif or b"\xff\xe0\x00\x10" + whole[body : body + 12] + b"\0\0"
        elif marker == _ADOBE and whole.startswith(b"Adobe", body) and end - body >= 12:
            kept += b"\xff\xee\x00\x0e" + whole[body : body + 12]
        elif marker not in _APPLICATION and marker != _COMMENT:
            raise InvalidImage("the JPEG has a segment of an unknown kind")
    if not scans:
        raise InvalidImage("the JPEG has no picture")
    return b"".join((_START, jfif, _exif_segment(orientation), kept, _END))


def _segments(whole: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Marker, begin, body and end of those before the end of the image; a scan has its coded bytes in it."""
    position = len(_START)
    while found := _MARKER.search(whole, position):
        begin, body = found.start(), found.end() + 2
        marker = whole[begin + 1]
        if marker == _END[1]:
            return
        position = body - 2
        if marker in _STANDALONE:
            continue
        position += int.from_bytes(whole[position:body])
        if not body <= position <= len(whole):
            raise InvalidImage("a segment of the JPEG is cut off")
        if marker == _SCAN:
            behind = _BEHIND_SCAN.search(whole, position)
            position = behind.start() if behind else len(whole)
        yield marker, begin, body, position
    raise InvalidImage("the JPEG is truncated: its end is missing")


def _exif_segment(orientation: int) -> bytes:
    if orientation == 1:
        return b""
    body = b"Exif\0\0" + _exif(orientation)
    return b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body


def _exif(orientation: int) -> bytes:
    """A TIFF of one directory with one entry."""
    return struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def strip_png(data: Encoded, orientation: int = 1) -> bytes:
    """A PNG of one frame: the chunks that its pixels and colours need, byte for byte.

    Raises InvalidImage where a chunk is cut off, the end or the pixels are missing, or an unknown chunk is
    one that no decoder may ignore.
    """
    whole = bytes(data)
    if not whole.startswith(_PNG):
        raise InvalidImage("the PNG does not begin with its signature")
    view, kept, pixels = memoryview(whole), bytearray(_PNG), False
    for kind, begin, end in _png_chunks(whole):
        header = kind == b"IHDR"
        if header != (begin == len(_PNG)) or (header and end - begin != 25):
            raise InvalidImage("the PNG does not begin with its header")
        if kind in _PNG_KEPT:
            kept += view[begin:end]
        elif not (kind.isalpha() and kind[0] & _ANCILLARY):
            raise InvalidImage("the PNG has a chunk of an unknown kind")
        if header and orientation != 1:
            kept += _png_chunk(b"eXIf", _exif(orientation))
        pixels = pixels or kind == b"IDAT"
    if not pixels:
        raise InvalidImage("the PNG has no picture")
    return bytes(kept + _PNG_END)


def _png_chunks(whole: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, begin and end of those before IEND."""
    position = len(_PNG)
    while position + 12 <= len(whole):
        length, kind = struct.unpack_from(">I4s", whole, position)
        begin, position = position, position + 12 + length
        if position > len(whole):
            raise InvalidImage("a chunk of the PNG is cut off")
        if kind == b"IEND":
            return
        yield kind, begin, position
    raise InvalidImage("the PNG is truncated: its end is missing")


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def is_animated_webp(data: Encoded) -> bool:
    """Whether a WebP file has frames, even a single one; `strip_webp` refuses it then."""
    head = bytes(data[:21])
    return head[12:16] == b"VP8X" and bool(head[20:] and head[20] & _IS_ANIMATED)


def strip_webp(data: Encoded, orientation: int = 1) -> bytes:
    """A WebP still: its bitstream, alpha and ICC profile, byte for byte.

    In the simple layout, which has no place for it, `orientation` is ignored. Raises InvalidImage where the
    file or a chunk is cut off, the bitstream is missing, or the file is an animation.
    """
    whole = bytes(data)
    if whole[:4] != b"RIFF" or whole[8:12] != b"WEBP":
        raise InvalidImage("the WebP does not begin with its signature")
    end = 8 + int.from_bytes(whole[4:8], "little")
    if end > len(whole):
        raise InvalidImage("the WebP is truncated")
    if is_animated_webp(whole):
        raise InvalidImage("the WebP is an animation")
    chunks: dict[bytes, memoryview] = {}
    view, position, pixels = memoryview(whole), 12, False
    while position + 8 <= end:
        kind, length = struct.unpack_from("<4sI", whole, position)
        begin, position = position + 8, position + 8 + length
        if position > end:
            raise InvalidImage("a chunk of the WebP is cut off")
        # One bitstream is the picture; a second one is as foreign as what is unknown.
        if kind in (b"VP8X", b"ICCP") or (kind in (b"ALPH", b"VP8 ", b"VP8L") and not pixels):
            chunks.setdefault(kind, view[begin:position])
        pixels = pixels or kind in (b"VP8 ", b"VP8L")
        position += length & 1
    extended = whole[12:16] == b"VP8X"
    if not pixels or (extended and len(chunks[b"VP8X"]) != 10):
        raise InvalidImage("the WebP has no picture")
    return _extended(chunks, orientation) if extended else _riff(chunks, b"VP8 ", b"VP8L")


def _extended(chunks: dict[bytes, memoryview], orientation: int) -> bytes:
    head = bytes(chunks[b"VP8X"])
    flags = head[0] & _HAS_ALPHA
    if head[0] & _HAS_ICC and b"ICCP" in chunks:
        flags |= _HAS_ICC
    else:
        chunks.pop(b"ICCP", None)
    if orientation != 1:
        flags |= _HAS_EXIF
        chunks[b"EXIF"] = memoryview(_exif(orientation))
    if b"VP8L" in chunks:
        chunks.pop(b"ALPH", None)
    chunks[b"VP8X"] = memoryview(bytes((flags, 0, 0, 0)) + head[4:])
    return _riff(chunks, b"VP8X", b"ICCP", b"ALPH", b"VP8 ", b"VP8L", b"EXIF")


def _riff(chunks: dict[bytes, memoryview], *kinds: bytes) -> bytes:
    """A WebP file of those chunks that there are, in this order."""
    body = bytearray(b"WEBP")
    for kind in kinds:
        if (chunk := chunks.get(kind)) is not None:
            body += kind + len(chunk).to_bytes(4, "little")
            body += chunk
            body += bytes(len(chunk) & 1)
    return b"RIFF" + len(body).to_bytes(4, "little") + body
