"""Where fuzzing begins: one small image of every format, and the classics among hostile ones."""

import struct
import zlib
from collections.abc import Iterator

from tests import images
from tests.unit.recognition.test_decode import HEIC
from tests.unit.recognition.test_ingest import TALKATIVE, converted


def seeds() -> Iterator[tuple[str, bytes]]:
    """Names and contents."""
    photo = images.noise(48)
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"):
        yield kind.lower(), images.encoded(photo, kind)
    yield "progressive", images.encoded(photo, "JPEG", progressive=True)
    yield "cmyk", images.cmyk()
    yield "sixteen-bit", images.sixteen_bit()
    yield "palette", images.palette()
    yield "alpha", images.alpha()
    yield "animated", images.animated()
    yield "truncated", images.truncated()
    yield "heic", HEIC
    yield from talkative()
    yield from hostile()


def talkative() -> Iterator[tuple[str, bytes]]:
    """Images with everything that is taken out of those that are kept."""
    for name, (_, make) in TALKATIVE.items():
        yield f"talkative-{name.replace(' ', '-').lower()}", make(6)
    yield "animated-webp", converted("WEBP")
    yield "turned-tiff", converted("TIFF")


def hostile() -> Iterator[tuple[str, bytes]]:
    """Images made to cost much, or to be two things at once."""
    photo = images.noise(48)
    jpeg, gif = images.encoded(photo, "JPEG"), images.encoded(photo, "GIF")
    yield "empty", b""
    yield "zeros", bytes(4 << 20)
    yield "bomb", png(20_000, 20_000, zlib.compress(bytes(1 << 20)))
    yield "wide", png(2**31 - 1, 1, zlib.compress(bytes(100)))
    yield (
        "profile-bomb",
        with_chunk(images.encoded(photo, "PNG"), b"iCCP", b"x\0\0" + zlib.compress(bytes(64 << 20))),
    )
    yield (
        "text-bomb",
        with_chunk(images.encoded(photo, "PNG"), b"zTXt", b"x\0\0" + zlib.compress(bytes(64 << 20))),
    )
    yield "tiff-of-10000-pages", pages(10_000)
    yield "million-scans", scans(images.encoded(photo, "JPEG", progressive=True), 1_000_000)
    yield "comments", jpeg[:20] + b"\xff\xfe\0\2" * 50_000 + jpeg[20:]
    yield "fill-bytes", jpeg[:20] + b"\xff" * (1 << 18) + jpeg[20:]
    yield "chunks", with_chunk(images.encoded(photo, "PNG"), b"teXt", b"", 50_000)
    yield "gif-without-frames", gif[:13] + b";"
    yield "jpeg-and-zip", jpeg + b"PK\x03\x04" + bytes(100)
    yield "gif-and-script", b"GIF89a/*" + gif[8:] + b"*/=alert(1)"
    yield "wrong-magic", b"\x89PNG\r\n\x1a\n" + jpeg
    yield (
        "negative-height",
        struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 154, 0, 0, 54, 40, 8, -(2**31), 1, 24, *[0] * 6),
    )


def png(width: int, height: int, data: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(encoded: bytes, kind: bytes, data: bytes, times: int = 1) -> bytes:
    """A PNG with one more chunk, or so many, behind its header."""
    return encoded[:33] + chunk(kind, data) * times + encoded[33:]


def pages(count: int) -> bytes:
    """A TIFF with so many pages of one grey pixel, each behind the other."""
    tags = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 1}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries
    size = len(directory) + 4
    following = (16 + (page + 1) * size if page < count - 1 else 0 for page in range(count))
    return (
        b"II*\0"
        + struct.pack("<I", 16)
        + bytes(8)
        + b"".join(directory + struct.pack("<I", offset) for offset in following)
    )


def scans(progressive: bytes, count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    end = progressive.rindex(b"\xff\xd9")
    last = progressive.rindex(b"\xff\xda", 0, end)
    head = progressive[last : last + 2 + struct.unpack(">H", progressive[last + 2 : last + 4])[0]]
    return progressive[:end] + (head + b"\x00") * count + b"\xff\xd9"
