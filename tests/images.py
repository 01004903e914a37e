"""Odd and hostile pictures for the tests, made in memory."""

import hashlib
import io
import struct
import zlib

import numpy as np
from PIL import Image

from appliance.recognition import ingest as stripping


def noise(side: int = 64, seed: int = 1) -> Image.Image:
    """An RGB picture of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    """The picture as a file of `kind` (Pillow's name)."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def jpeg(side: int = 64, seed: int = 1) -> bytes:
    return encoded(noise(side, seed), "JPEG")


def plain(seed: str | bytes) -> bytes:
    """A PNG of 640 x 480 in one colour, which `seed` decides; nothing of it is metadata."""
    digest = hashlib.sha256(seed.encode() if isinstance(seed, str) else seed).digest()
    return encoded(Image.new("RGB", (640, 480), (digest[0], digest[1], digest[2])), "PNG")


def truncated() -> bytes:
    whole = jpeg(256)
    return whole[: len(whole) // 2]


def animated() -> bytes:
    return encoded(noise(seed=1), "GIF", save_all=True, append_images=[noise(seed=2), noise(seed=3)])


def cmyk() -> bytes:
    return encoded(noise().convert("CMYK"), "JPEG")


def sixteen_bit() -> bytes:
    grey = np.random.default_rng(3).integers(0, 65536, (64, 64), np.uint16)
    return encoded(Image.fromarray(grey), "PNG")


def palette() -> bytes:
    return encoded(noise().quantize(16), "PNG")


def alpha() -> bytes:
    picture = noise().convert("RGBA")
    picture.putalpha(100)
    return encoded(picture, "PNG")


def blank_png(side: int) -> bytes:
    """A black 1-bit PNG, `side` pixels square; nothing of it is ever unpacked here.

    22,000 pixels make a file of 60 KB that unpacks to 1.4 GB of RGB.
    """
    row = bytes(1 + (side + 7) // 8)
    packer = zlib.compressobj(9)
    packed = b"".join([*(packer.compress(row) for _ in range(side)), packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    )


def up_to_its_last_scan(jpeg: bytes) -> bytes:
    """A JPEG without what follows its last scan but its end: what is kept of one ends so."""
    ends = [end for marker, _, _, end in stripping._segments(jpeg) if marker == stripping._SCAN]
    return jpeg[: ends[-1]] + stripping._END
