"""What is kept of an image: its pixels to the byte, its profile and its orientation, and nothing else."""

import io
import struct
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from appliance.errors import InvalidImage, TooLarge
from appliance.recognition.decode import decode, ingest
from appliance.recognition.ingest import Ingested, is_animated_webp, strip_jpeg, strip_png, strip_webp
from appliance.recognition.preprocessing import Preprocessing
from tests import images
from tests.unit.recognition.test_decode import HEIC, SWOLLEN_HEIC

Strip = Callable[[bytes, int], bytes]
MARKER = b"marker-3e9d41"
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:li>' + MARKER + b"</rdf:li></x:xmpmeta>"
LIMITS = {"max_pixels": 1 << 22, "max_side": 1 << 14}
# JPEG segments and PNG and WebP chunks that may stay.
SEGMENTS = {0xC0, 0xC2, 0xC4, 0xDA, 0xDB, 0xDD}
STRIPS: dict[str, Strip] = {"JPEG": strip_jpeg, "PNG": strip_png, "WEBP": strip_webp}
CPU_SECONDS = 10.0


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    text = MARKER.decode()
    if orientation != 1:
        made[0x0112] = orientation
    made[0x010F] = made[0x0110] = made[0x013B] = text  # make, model, artist
    made.get_ifd(0x8825).update({1: "N", 2: (50.0, 5.0, 12.3), 29: text})  # where, and when
    made.get_ifd(0x8769).update({0x9003: text, 0x9286: MARKER, 0xA431: text})  # when, comment, serial number
    return made


@cache
def profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def talkative_jpeg(orientation: int, mode: str = "RGB", **options: Any) -> bytes:
    """Everything that cameras and programs leave in a JPEG, and a video behind it."""
    given = {"exif": exif(orientation), "icc_profile": profile(), "xmp": XMP, "comment": MARKER}
    whole = images.encoded(images.noise().convert(mode), "JPEG", **(given | options))
    jfif = whole[2:4] == b"\xff\xe0"
    thumbnail = b"JFIF\0\1\1\0\0\1\0\1\4\1" + MARKER[:12]
    planted = b"".join(
        (
            segment(0xE0, thumbnail) if jfif else b"",
            segment(0xE0, b"JFXX\0\x10" + MARKER),
            segment(
                0xED, b"Photoshop 3.0\x008BIM\4\4\0\0" + struct.pack(">I", 18) + b"\x1c\2\x78\0\x0d" + MARKER
            ),
            segment(0xE2, b"MPF\0II*\0" + MARKER),
            segment(0xE2, b"urn:iso:std:iso:ts:21496:-1\0" + MARKER),
            segment(0xEB, b"JP\0\1" + MARKER),
            segment(0xEE, b"Ducky" + MARKER),
            segment(0xEF, MARKER),
        )
    )
    video = b"\0\0\0\x18ftypmp42" + MARKER + images.jpeg()
    return whole[:2] + planted + b"\xff\xff" + whole[20 if jfif else 2 :] + video


def talkative_png(orientation: int, **options: Any) -> bytes:
    text = PngInfo()
    text.add_text("Author", MARKER.decode())
    text.add_text("Comment", MARKER.decode(), zip=True)
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    whole = images.encoded(
        images.noise(),
        "PNG",
        pnginfo=text,
        exif=exif(orientation),
        icc_profile=profile(),
        dpi=(72, 72),
        **options,
    )
    planted = chunk(b"tIME", bytes(7)) + chunk(b"caBX", MARKER) + chunk(b"prVt", MARKER)
    return whole[:33] + planted + whole[33:-12] + chunk(b"tEXt", b"Late\0" + MARKER) + whole[-12:] + MARKER


def talkative_webp(orientation: int, mode: str = "RGB", **options: Any) -> bytes:
    picture = images.noise().convert(mode)
    if mode == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    whole = images.encoded(picture, "WEBP", exif=exif(orientation), icc_profile=profile(), xmp=XMP, **options)
    body = whole[8:] + b"HIDE" + struct.pack("<I", len(MARKER)) + MARKER + b"\0"
    return b"RIFF" + struct.pack("<I", len(body)) + body + MARKER


TALKATIVE: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "JPEG": ("JPEG", talkative_jpeg),
    "progressive JPEG": ("JPEG", lambda turn: talkative_jpeg(turn, progressive=True)),
    "JPEG with restarts": ("JPEG", lambda turn: talkative_jpeg(turn, restart_marker_blocks=3)),
    "JPEG in full colour": ("JPEG", lambda turn: talkative_jpeg(turn, subsampling=0, quality=95)),
    "JPEG kept as RGB": ("JPEG", lambda turn: talkative_jpeg(turn, keep_rgb=True)),
    "grey JPEG": ("JPEG", lambda turn: talkative_jpeg(turn, "L")),
    "PNG": ("PNG", talkative_png),
    "WebP": ("WEBP", talkative_webp),
    "lossless WebP": ("WEBP", lambda turn: talkative_webp(turn, lossless=True)),
    "WebP with alpha": ("WEBP", lambda turn: talkative_webp(turn, "RGBA")),
    "lossless WebP with alpha": ("WEBP", lambda turn: talkative_webp(turn, "RGBA", lossless=True)),
}


def opened(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a list of further pictures that is none
        picture = Image.open(io.BytesIO(data))
        picture.load()
    return picture


def samples(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(opened(data))


def segments(jpeg: bytes) -> Iterator[tuple[int, bytes]]:
    """Those before the first scan, its own included."""
    position, marker = 2, 0
    while marker != 0xDA:
        mark, marker, length = struct.unpack_from(">BBH", jpeg, position)
        assert mark == 0xFF
        yield marker, jpeg[position + 4 : position + 2 + length]
        position += 2 + length


def png_chunks(png: bytes) -> list[bytes]:
    position, kinds = 8, []
    while position < len(png):
        length, kind = struct.unpack_from(">I4s", png, position)
        kinds.append(kind)
        position += 12 + length
    return kinds


def webp_chunks(webp: bytes) -> list[bytes]:
    assert struct.unpack_from("<I", webp, 4)[0] == len(webp) - 8
    position, kinds = 12, []
    while position < len(webp):
        kind, length = struct.unpack_from("<4sI", webp, position)
        kinds.append(kind)
        position += 8 + length + (length & 1)
    assert position == len(webp)
    return kinds


def ingested(data: bytes, *, keep_metadata: bool = False) -> Ingested:
    return ingest(data, keep_metadata=keep_metadata, max_pixels=1 << 22, max_side=1 << 14)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("name", TALKATIVE)
def test_nothing_is_told_and_no_pixel_changes(name: str, orientation: int) -> None:
    form, make = TALKATIVE[name]
    data = make(orientation)
    assert MARKER in data
    before, kept = opened(data), ingested(data)
    after = opened(kept.image)
    assert MARKER not in kept.image
    assert b"adobe:ns:meta" not in kept.image
    assert (after.format, after.mode, kept.format) == (form, before.mode, form.lower())
    assert np.array_equal(np.asarray(after), np.asarray(before))
    assert after.info.get("icc_profile") == before.info["icc_profile"] == profile()
    assert dict(after.getexif()) == ({} if orientation == 1 else {0x0112: orientation})
    assert not after.getexif().get_ifd(0x8825)
    upright = ImageOps.exif_transpose(before)
    assert (kept.width, kept.height) == upright.size
    assert STRIPS[form](kept.image, orientation) == kept.image
    assert ingested(kept.image) == kept


def test_only_known_parts_of_a_jpeg_remain() -> None:
    kept = list(segments(strip_jpeg(talkative_jpeg(6), 6)))
    applications = [(marker, body[:6]) for marker, body in kept if marker not in SEGMENTS]
    assert applications == [(0xE0, b"JFIF\0\1"), (0xE1, b"Exif\0\0"), (0xE2, b"ICC_PR")]
    assert kept[0][1][12:] == b"\0\0", "without its thumbnail"


@pytest.mark.parametrize("transform", [0, 2])
def test_how_the_inks_of_a_jpeg_are_meant_stays(transform: int) -> None:
    data = bytearray(talkative_jpeg(1, "CMYK", icc_profile=None))
    data[data.index(b"Adobe") + 11] = transform
    longer = bytes(data).replace(b"\xff\xee\0\x0eAdobe", b"\xff\xee\0\x1bAdobe")
    position = longer.index(b"Adobe") + 12
    longer = longer[:position] + MARKER[:13] + longer[position:]
    kept = ingested(longer).image
    assert MARKER[:13] not in kept
    assert np.array_equal(samples(kept), samples(longer))
    assert opened(kept).info["adobe_transform"] == transform


def test_a_jpeg_keeps_its_colours_whatever_stands_behind_its_scan() -> None:
    """There no decoder asks any more whether samples are RGB; in front, JFIF would make them YCbCr."""
    plain = images.encoded(images.noise(64), "JPEG", quality=95)
    (jfif,) = (body for marker, body in segments(plain) if marker == 0xE0)
    rgb = segment(0xEE, b"Adobe\0\x64\0\0\0\0\0")
    bare = plain[:2] + rgb + plain[2:].replace(segment(0xE0, jfif), b"")
    late = bare[:-2] + segment(0xE0, jfif) + segment(0xEE, b"Adobe\0\x64\0\0\0\0\1") + bare[-2:]
    assert strip_jpeg(late) == strip_jpeg(bare)
    assert np.array_equal(samples(ingested(late).image), samples(late))


def test_only_known_chunks_of_a_png_remain() -> None:
    kinds = png_chunks(strip_png(talkative_png(1), 1))
    assert set(kinds) == {b"IHDR", b"iCCP", b"pHYs", b"IDAT", b"IEND"}
    assert png_chunks(strip_png(talkative_png(8), 8))[:2] == [b"IHDR", b"eXIf"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_kind_of_png_keeps_its_samples(mode: str) -> None:
    if mode == "I;16":
        data = images.sixteen_bit()
    else:
        transparent: dict[str, Any] = {"transparency": 3} if mode in ("P", "L") else {}
        data = images.encoded(images.noise().convert("RGB").convert(mode), "PNG", **transparent)
    colours = chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"sRGB", b"\0") + chunk(b"tEXt", MARKER)
    data = data[:33] + colours + data[33:]
    kept = opened(ingested(data).image)
    before = opened(data)
    assert (kept.mode, kept.getpalette()) == (before.mode, before.getpalette())
    assert {name: kept.info.get(name) for name in ("gamma", "srgb", "transparency")} == {
        name: before.info.get(name) for name in ("gamma", "srgb", "transparency")
    }
    assert np.array_equal(np.asarray(kept), np.asarray(before))


@pytest.mark.parametrize("default_image", [False, True])
def test_of_an_animated_png_the_first_frame_remains(default_image: bool) -> None:
    frames = [images.noise(seed=2), images.noise(seed=3)]
    data = images.encoded(
        images.noise(), "PNG", save_all=True, append_images=frames, default_image=default_image
    )
    kept = ingested(data)
    assert set(png_chunks(kept.image)) == {b"IHDR", b"IDAT", b"IEND"}
    assert np.array_equal(samples(kept.image), samples(data))


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [("RGB", [b"VP8 "]), ("RGBA", [b"VP8X", b"ALPH", b"VP8 "])],
)
def test_a_webp_without_metadata_stays_what_it_is(mode: str, kinds: list[bytes]) -> None:
    picture = images.noise().convert(mode)
    if mode == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    data = images.encoded(picture, "WEBP")
    assert ingested(data).image == data
    assert webp_chunks(data) == kinds


def test_the_flags_of_a_webp_say_what_is_in_it() -> None:
    kept = strip_webp(talkative_webp(6, "RGBA"), 6)
    assert webp_chunks(kept) == [b"VP8X", b"ICCP", b"ALPH", b"VP8 ", b"EXIF"]
    assert kept[20] == 0x20 | 0x10 | 0x08
    upright = strip_webp(talkative_webp(1), 1)
    assert webp_chunks(upright) == [b"VP8X", b"ICCP", b"VP8 "]
    assert upright[20] == 0x20
    bare = strip_webp(images.encoded(images.noise(), "WEBP", exif=exif(1)), 1)
    assert webp_chunks(bare) == [b"VP8X", b"VP8 "]
    assert bare[20] == 0


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_that_stands_in_xmp_alone_stays(form: str) -> None:
    turned = XMP + b'<rdf:Description tiff:Orientation="6"/>'
    options: dict[str, Any] = {"xmp": turned}
    if form == "PNG":
        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", turned.decode())
        options = {"pnginfo": text}
    picture = images.noise().resize((40, 30))
    data = images.encoded(picture, form, **options)
    kept = ingested(data)
    assert (kept.width, kept.height) == (30, 40)
    assert MARKER not in kept.image
    assert dict(opened(kept.image).getexif()) == {0x0112: 6}


def test_a_later_picture_is_no_part_of_the_first() -> None:
    data = images.encoded(images.noise(), "MPO", save_all=True, append_images=[images.noise(seed=2)])
    assert opened(data).format == "MPO"
    kept = ingested(data)
    assert opened(kept.image).format == "JPEG"
    assert kept.image.count(b"\xff\xd8\xff") == 1
    assert np.array_equal(samples(kept.image), samples(data))


@pytest.mark.parametrize("name", TALKATIVE)
def test_what_may_keep_its_metadata_is_kept_as_it_is(name: str) -> None:
    data = TALKATIVE[name][1](6)
    whole, bare = ingested(data, keep_metadata=True), ingested(data)
    assert whole.image == data
    assert (whole.thumbnail, whole.width, whole.height) == (bare.thumbnail, bare.width, bare.height)


def converted(form: str) -> bytes:
    picture = images.noise().resize((60, 40))
    every: dict[str, dict[str, Any]] = {
        "GIF": {"comment": MARKER},
        "TIFF": {"exif": exif(6), "icc_profile": profile(), "description": MARKER.decode()},
        "WEBP": {"save_all": True, "append_images": [images.noise(seed=2).resize((60, 40))], "lossless": True}
        | {"exif": exif(6), "xmp": XMP},
    }
    return images.encoded(picture, form, **every.get(form, {}))


@pytest.mark.parametrize("keep_metadata", [False, True])
@pytest.mark.parametrize("form", ["BMP", "GIF", "TIFF", "WEBP"])
def test_other_formats_become_an_upright_png(form: str, keep_metadata: bool) -> None:
    data = converted(form)
    kept = ingested(data, keep_metadata=keep_metadata)
    after = opened(kept.image)
    expected = ImageOps.exif_transpose(opened(data)).convert("RGB")
    assert (kept.format, after.format, after.size) == ("png", "PNG", (kept.width, kept.height))
    assert np.array_equal(np.asarray(after.convert("RGB")), np.asarray(expected))
    assert set(png_chunks(kept.image)) == {b"IHDR", b"IDAT", b"IEND"}
    assert MARKER not in kept.image


def test_heic_becomes_an_upright_png() -> None:
    kept = ingested(HEIC)
    assert (kept.format, kept.width, kept.height) == ("png", 32, 64)
    seen = decode(HEIC, Preprocessing(size=(64, 32), fit="stretch"), max_pixels=4096, max_side=64)
    assert np.array_equal(samples(kept.image), np.asarray(seen.pixels))
    with pytest.raises(InvalidImage):
        ingested(SWOLLEN_HEIC)


def test_what_is_converted_keeps_its_alpha_and_is_in_srgb() -> None:
    wide = profile().replace(b"rXYZ", b"tmpX", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"tmpX", b"bXYZ", 1)
    see_through = Image.new("RGBA", (30, 30), (220, 30, 40, 77))
    after = opened(ingested(images.encoded(see_through, "TIFF", icc_profile=wide)).image)
    red, _, blue, alpha = after.convert("RGBA").getpixel((5, 5))  # type: ignore[misc]
    assert (red < 60, blue > 200, alpha) == (True, True, 77)
    assert "icc_profile" not in after.info
    inks = images.encoded(images.noise().convert("CMYK"), "TIFF")
    assert opened(ingested(inks).image).mode == "RGB"


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("shape", [(1000, 500), (100, 3000), (40, 30), (2000, 1)])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_thumbnail_is_small_upright_and_mute(form: str, shape: tuple[int, int], orientation: int) -> None:
    picture = Image.linear_gradient("L").resize(shape).convert("RGB")
    data = images.encoded(picture, form, exif=exif(orientation), icc_profile=profile(), dpi=(300, 300))
    made = ingested(data)
    small = opened(made.thumbnail)
    scale = min(1.0, 256 / max(shape))
    expected = [max(1, round(side * scale)) for side in shape]
    assert small.size == tuple(expected if orientation == 1 else expected[::-1])
    assert (small.format, small.mode) == ("JPEG", "RGB")
    assert [marker for marker, _ in segments(made.thumbnail) if marker not in SEGMENTS] == [0xE0]
    upright = (
        ImageOps.exif_transpose(opened(data)).convert("RGB").resize(small.size, Image.Resampling.BICUBIC)
    )
    assert np.abs(np.asarray(small).astype(int) - np.asarray(upright).astype(int)).mean() < 4


def test_a_thumbnail_shows_colours_as_they_are_meant_over_white() -> None:
    swapped = profile().replace(b"rXYZ", b"tmpX", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"tmpX", b"bXYZ", 1)
    red = Image.new("RGB", (64, 64), (220, 30, 40))
    seen = samples(ingested(images.encoded(red, "PNG", icc_profile=swapped)).thumbnail)[30, 30]
    assert (seen[2] > 200, seen[0] < 60) == (True, True)
    clear = Image.new("RGBA", (64, 64), (220, 30, 40, 0))
    assert samples(ingested(images.encoded(clear, "PNG")).thumbnail).min() >= 254


def test_the_bytes_are_not_in_its_repr() -> None:
    made = ingested(images.encoded(images.noise(), "JPEG", comment=MARKER), keep_metadata=True)
    assert repr(made) == "Ingested(format='jpeg', width=64, height=64)"


@pytest.mark.parametrize("name", TALKATIVE)
def test_what_is_cut_off_is_refused(name: str) -> None:
    form, make = TALKATIVE[name]
    data = STRIPS[form](make(6), 6)
    for length in range(0, len(data), max(1, len(data) // 200)):
        with pytest.raises(InvalidImage):
            STRIPS[form](data[:length], 6)
    for length in range(0, len(data), max(1, len(data) // 20)):
        with pytest.raises(InvalidImage):
            ingested(data[:length])
    with pytest.raises(InvalidImage):
        ingested(data[:-1])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8" + segment(0xE1, b"Exif\0\0") + b"\xff\xd9",
        b"\xff\xd8\xff\xe1\0\1\xff\xd9",
        b"\xff\xd8\xff\xe1",
        b"\xff\xd8" + b"\xff" * 100,
        b"\xff\xd8" + segment(0xF3, b"") + b"\xff\xda\0\2\xff\xd9",
        b"\xff\xd8\xff\xd8\xff\xda\0\2\xff\xd9",
        b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""),
        b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)) * 2 + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(20)) + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)) + chunk(b"DDAT", b"") + chunk(b"IEND", b""),
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)) + chunk(b"a\0b\0", b"") + chunk(b"IEND", b""),
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)) + struct.pack(">I4sI", 2**32 - 1, b"IDAT", 0) * 2,
        b"RIFF\4\0\0\0WEBP",
        b"RIFF\x0c\0\0\0WEBPVP8 \xff\xff\xff\xff",
        b"RIFF\x0c\0\0\0WEBPVP8X\0\0\0\0",
        b"RIFF\x14\0\0\0WEBPVP8X\0\0\0\0VP8 \0\0\0\0",
    ],
)
def test_what_is_malformed_is_refused(data: bytes) -> None:
    for strip in STRIPS.values():
        with pytest.raises(InvalidImage) as caught:
            strip(data, 6)
        assert "\\x" not in str(caught.value)


def test_an_animated_webp_is_not_stripped() -> None:
    data = converted("WEBP")
    assert is_animated_webp(data)
    assert not is_animated_webp(talkative_webp(6))
    assert not is_animated_webp(data[:20])
    with pytest.raises(InvalidImage, match="animation"):
        strip_webp(data)


def test_limits_and_formats_are_those_of_decoding() -> None:
    with pytest.raises(TooLarge, match="4000 pixels"):
        ingest(images.jpeg(), keep_metadata=False, max_pixels=4000, max_side=1000)
    with pytest.raises(InvalidImage, match="not an image"):
        ingested(images.encoded(images.noise(), "PPM"))
    with pytest.raises(InvalidImage, match="32 bits"):
        ingested(images.encoded(Image.new("F", (9, 9)), "TIFF"))
    with pytest.raises(InvalidImage, match="empty"):
        ingested(b"")


def many(form: str) -> bytes:
    """A million parts, and megabytes of what is no part."""
    count = 1_000_000
    if form == "JPEG":
        whole = images.jpeg()
        end = whole.rindex(b"\xff\xd9")
        restarts = b"\xff\xd0\xff\x00\xff\xff\x01" * count
        noise = segment(0xFE, b"") * count + segment(0xEE, b"Adobe" + bytes(7)) * 9 + b"\xff" * (8 << 20)
        return whole[:20] + noise + whole[20:end] + restarts + whole[end:]
    if form == "PNG":
        whole = images.encoded(images.noise(), "PNG")
        return (
            whole[:33]
            + chunk(b"teXt", b"") * (count // 2)
            + whole[33:-12]
            + chunk(b"IDAT", b"") * (count // 2)
            + whole[-12:]
        )
    whole = images.encoded(images.noise(), "WEBP", exif=exif(6))
    body = whole[8:] + b"HIDE\0\0\0\0" * count + b"ICCP\0\0\0\0" * count
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("form", STRIPS)
def test_a_million_parts_take_some_seconds(form: str) -> None:
    data = many(form)
    began = time.process_time()
    kept = STRIPS[form](data, 6)
    assert len(kept) <= len(data)
    with pytest.raises(InvalidImage):
        STRIPS[form](data[:-20], 6)
    assert time.process_time() - began < CPU_SECONDS


@cache
def seeds() -> list[tuple[str, bytes]]:
    small = [(form, make(6)) for form, make in TALKATIVE.values()]
    return [*small, *((form, STRIPS[form](data, 6)) for form, data in small)]


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    form, whole = draw(st.sampled_from(seeds()))
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, len(data)) | st.integers(0, min(len(data), 800)))
        length = draw(st.integers(0, 12))
        data[place : place + length] = draw(
            st.binary(max_size=12)
            | st.sampled_from([b"\xff\xd9", b"\xff\xda\0\2", b"\0\0\0\0IEND", b"\xff" * 9])
        )
    return form, bytes(data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 3)) == 0 else data)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(damaged(), st.integers(1, 8))
def test_damaged_files_are_stripped_or_refused(file: tuple[str, bytes], orientation: int) -> None:
    _, data = file
    for strip in STRIPS.values():
        with suppress(InvalidImage):
            kept = strip(data, orientation)
            assert len(kept) <= len(data) + 64
            assert strip(kept, orientation) == kept


@settings(max_examples=300, derandomize=True, deadline=None)
@given(damaged())
def test_of_damaged_files_the_pixels_stay_too(file: tuple[str, bytes]) -> None:
    seen = Preprocessing(size=40, fit="stretch", scaled=False)
    try:
        kept = ingested(file[1])
    except (InvalidImage, TooLarge):
        return
    before, after = (
        decode(data, seen, max_pixels=1 << 22, max_side=1 << 14) for data in (file[1], kept.image)
    )
    assert (before.width, before.height) == (after.width, after.height) == (kept.width, kept.height)
    if not np.array_equal(before.pixels, after.pixels):
        # What libjpeg-turbo makes of a damaged scan depends on whether enough bytes follow it for its fast
        # path: the same then have to follow both.
        assert kept.format == "jpeg"
        before = decode(images.up_to_its_last_scan(file[1]), seen, max_pixels=1 << 22, max_side=1 << 14)
        assert np.array_equal(before.pixels, after.pixels)


def test_a_jpeg_that_decodes_small_decodes_whole() -> None:
    """The proof reads a JPEG at reduced size: what that accepts, decoding every pixel accepts."""
    generator = np.random.default_rng(5)
    whole = images.encoded(images.noise(800), "JPEG", quality=60)
    for number in range(60):
        data = bytearray(whole)
        for _ in range(3):
            data[generator.integers(len(data))] = int(generator.integers(256))
        if number % 4 == 0:
            del data[int(generator.integers(len(data))) :]
        refusals = []
        for scaled in (True, False):
            try:
                decode(data, Preprocessing(size=16, scaled=scaled), max_pixels=1 << 22, max_side=1 << 14)
            except (InvalidImage, TooLarge) as refusal:
                refusals.append(str(refusal))
            else:
                refusals.append("")
        assert refusals[0] == refusals[1]
