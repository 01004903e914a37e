"""One image's way from bytes to pixels: every format and mode, and every way to be wrong."""

import base64
import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms, ImageOps
from sklearn.datasets import load_sample_image

from appliance.errors import InvalidImage, TooLarge
from appliance.recognition.decode import NEGATIVE, Decoded, decode, ingest
from appliance.recognition.preprocessing import Preprocessing
from demo.photos import file_of

Pixels = npt.NDArray[np.uint8]
SIZE = 64
# Large enough for the photo below to be decoded in full: no scaled JPEG decoding.
FULL = 180
MARKER = b"marker-7c1f0a"


def decoded(data: bytes | bytearray | memoryview, size: int = SIZE) -> Decoded:
    return decode(data, Preprocessing(size=size), max_pixels=50_000_000, max_side=16384)


def array(result: Decoded) -> npt.NDArray[np.int16]:
    return np.asarray(result.pixels).astype(np.int16)


def encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format_, **options)
    return out.getvalue()


def photo(width: int = 301, height: int = 200) -> Image.Image:
    return _coffee().resize((width, height))


@cache
def _coffee() -> Image.Image:
    return Image.open(file_of("coffee"))


def by_pillow(image: Image.Image, size: int) -> npt.NDArray[np.int16]:
    """The definition: upright, RGB, largest centre square, bicubic."""
    image = ImageOps.exif_transpose(image).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC)).astype(np.int16)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, bits: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("format_", "options"),
    [
        ("JPEG", {"quality": 90}),
        ("JPEG", {"quality": 90, "progressive": True, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"quality": 80}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
        ("GIF", {}),
    ],
)
def test_every_format_gives_what_pillow_gives(format_: str, options: dict[str, Any]) -> None:
    data = encoded(photo(), format_, **options)
    result = decoded(data, FULL)
    assert (result.width, result.height, result.format) == (301, 200, format_)
    assert np.abs(array(result) - by_pillow(Image.open(io.BytesIO(data)), FULL)).max() <= 1


def test_pixels_are_contiguous_rgb_bytes() -> None:
    pixels = decoded(encoded(Image.new("RGB", (10, 20), (255, 128, 1)), "PNG")).pixels
    assert (pixels.shape, pixels.format, pixels.c_contiguous) == ((SIZE, SIZE, 3), "B", True)
    assert np.asarray(pixels)[0, 0].tolist() == [255, 128, 1]


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_any_buffer_will_do(wrap: Callable[[bytes], Any]) -> None:
    assert decoded(wrap(encoded(photo(), "JPEG"))).format == "JPEG"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("shape", [(301, 200), (200, 301), (150, 150)])
def test_orientation_is_applied_as_pillow_does(
    orientation: int, format_: str, shape: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format_ == "WEBP" else {}
    data = encoded(photo(*shape), format_, exif=exif, **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    result = decoded(data, 130)
    assert (result.width, result.height) == upright.size
    assert np.abs(array(result) - by_pillow(upright, 130)).max() == 0


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_changes_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(), "PNG", exif=exif)
    assert np.array_equal(array(decoded(data)), by_pillow(photo(), SIZE))


def test_damaged_exif_is_not_a_damaged_picture() -> None:
    data = encoded(photo(), "JPEG", quality=90, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert decoded(data).width == 301


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("shape", [(640, 427), (1001, 777), (1537, 2001)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_scaled_jpeg_decoding_stays_close_to_full_decoding(
    name: str, shape: tuple[int, int], orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(load_sample_image(name)).resize(shape), "JPEG", quality=90, exif=exif)
    result = decoded(data, 224)
    assert {result.width, result.height} == set(shape)
    assert np.abs(array(result) - by_pillow(Image.open(io.BytesIO(data)), 224)).mean() <= 3


def sixteen_bits() -> Pixels:
    return np.linspace(0, 65535, 256 * 256).reshape(256, 256).astype(np.uint16)


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_upper_eight(format_: str) -> None:
    samples = sixteen_bits()
    expected = by_pillow(Image.fromarray((samples >> 8).astype(np.uint8)), SIZE)
    assert np.abs(array(decoded(encoded(Image.fromarray(samples), format_))) - expected).max() == 0


def test_big_endian_sixteen_bit_tiff() -> None:
    samples = sixteen_bits()
    image = Image.frombytes("I;16B", (256, 256), samples.astype(">u2").tobytes())
    expected = by_pillow(Image.fromarray((samples >> 8).astype(np.uint8)), SIZE)
    assert np.abs(array(decoded(encoded(image, "TIFF"))) - expected).max() == 0


def test_sixteen_bit_colour_png() -> None:
    rows = b"".join(b"\0" + struct.pack(">HHH", 0xFF00, 0x8000, 0x0100) * 8 for _ in range(8))
    data = png(8, 8, chunk(b"IDAT", zlib.compress(rows)), bits=16)
    assert array(decoded(data))[32, 32].tolist() == [255, 128, 1]


def test_a_transparent_level_of_sixteen_bit_grey() -> None:
    """Only the very level is transparent, and so white; its neighbours keep their upper eight bits."""
    levels = [0x1234, 0x1233, 0x12FF, 0x0000, 0x0100, 0x7FFF, 0x8000, 0xFFFF]
    rows = (b"\0" + struct.pack(">8H", *levels)) * 8
    data = png(8, 8, chunk(b"tRNS", b"\x12\x34"), chunk(b"IDAT", zlib.compress(rows)), bits=16, colour=0)
    assert array(decode_exactly(data, 8, 8))[3, ::2, 0].tolist() == [255, 0x12, 0x12, 0, 1, 0x7F, 0x80, 0xFF]


def decode_exactly(data: bytes, width: int, height: int) -> Decoded:
    """Each pixel twice as high and as wide, so that nothing is mixed."""
    wanted = Preprocessing(size=(2 * height, 2 * width), fit="stretch", resample="nearest")
    return decode(data, wanted, max_pixels=50_000_000, max_side=16384)


def tiff(
    planes: npt.NDArray[np.uint16], *, photometric: int, planar: int = 1, order: str = "<", bits: int = 16
) -> bytes:
    """An uncompressed TIFF of one strip, or of one for each plane; `planes` is (planes, height, width)."""
    count, height, width = planes.shape
    samples = planes if planar == 2 else planes.transpose(1, 2, 0)
    body = samples.astype(f"{order}u{bits // 8}").tobytes()
    strips = count if planar == 2 else 1
    tags = {
        256: [width],
        257: [height],
        258: [bits] * count,
        259: [1],
        262: [photometric],
        273: [8 + len(body) // strips * strip for strip in range(strips)],
        277: [count],
        278: [height],
        279: [len(body) // strips] * strips,
        284: [planar],
    }
    entries, beyond = b"", b""
    end = 8 + len(body) + 2 + 12 * len(tags) + 4
    for tag, values in tags.items():
        packed = struct.pack(f"{order}{len(values)}H", *values)
        if len(packed) > 4:
            packed, beyond = struct.pack(f"{order}I", end + len(beyond)), beyond + packed
        entries += struct.pack(f"{order}HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    header = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(body))
    return header + body + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + beyond


def test_sixteen_bit_grey_that_counts_from_white() -> None:
    samples = (np.arange(64, dtype=np.uint32) * 1040).astype(np.uint16).reshape(1, 8, 8)
    for photometric, expected in ((0, 255 - (samples[0] >> 8)), (1, samples[0] >> 8)):
        seen = array(decode_exactly(tiff(samples, photometric=photometric), 8, 8))
        assert np.array_equal(seen[::2, ::2, 0], expected)
    kept = ingest(tiff(samples, photometric=0), keep_metadata=False, max_pixels=4096, max_side=64)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(kept.image))), 255 - (samples[0] >> 8))


def test_words_of_a_file_make_no_negative_of_it() -> None:
    rows = (b"\0" + bytes(16)) * 8
    words = chunk(b"tEXt", NEGATIVE.encode() + b"\0yes")
    data = png(8, 8, words, chunk(b"IDAT", zlib.compress(rows)), bits=16, colour=0)
    assert array(decoded(data)).max() == 0


@pytest.mark.parametrize("order", ["<", ">"])
def test_separate_planes_are_read_with_eight_bits_and_refused_with_sixteen(order: str) -> None:
    levels = np.random.default_rng(2).integers(0, 256, (3, 8, 8), np.uint16)
    eight = tiff(levels, photometric=2, planar=2, bits=8, order=order)
    assert np.array_equal(array(decode_exactly(eight, 8, 8))[::2, ::2], levels.transpose(1, 2, 0))
    high = (levels << 8).astype(np.uint16)
    interleaved = tiff(high, photometric=2, order=order)
    assert np.array_equal(array(decode_exactly(interleaved, 8, 8))[::2, ::2], levels.transpose(1, 2, 0))
    with pytest.raises(InvalidImage, match="planes of 16 bits"):
        decoded(tiff(high, photometric=2, planar=2, order=order))


def test_cmyk_jpeg_is_what_pillow_converts_it_to() -> None:
    data = encoded(photo().convert("CMYK"), "JPEG", quality=95)
    assert np.abs(array(decoded(data, FULL)) - by_pillow(Image.open(io.BytesIO(data)), FULL)).max() <= 1


def swapped() -> bytes:
    """sRGB's profile with red and blue exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"tmpX", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"tmpX", b"bXYZ", 1)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_colours_are_those_that_the_profile_means(format_: str) -> None:
    red = Image.new("RGB", (64, 64), (220, 30, 40))
    data = encoded(red, format_, icc_profile=swapped(), **({"quality": 95} if format_ != "PNG" else {}))
    seen = array(decoded(data, 32))[16, 16]
    assert seen[2] > 200
    assert seen[0] < 60


def test_transparency_survives_the_profile() -> None:
    data = encoded(Image.new("RGBA", (64, 64), (220, 30, 40, 0)), "PNG", icc_profile=swapped())
    assert array(decoded(data, 32)).min() == 255


@pytest.mark.parametrize("profile", [b"no profile", bytes(200), b"\0\0\2\f" + bytes(1 << 19)])
def test_a_profile_that_is_none_is_ignored(profile: bytes) -> None:
    data = encoded(Image.new("RGB", (64, 64), (220, 30, 40)), "PNG", icc_profile=profile)
    assert array(decoded(data, 32))[16, 16].tolist() == [220, 30, 40]


def test_a_profile_that_unpacks_to_megabytes_is_refused() -> None:
    data = encoded(Image.new("RGB", (64, 64)), "PNG", icc_profile=bytes(50 << 20))
    assert len(data) < 1 << 17
    with pytest.raises(InvalidImage):
        decoded(data)


def test_a_profile_for_other_colours_is_ignored() -> None:
    """A profile for RGB in a grey picture."""
    data = encoded(Image.new("L", (64, 64), 90), "PNG", icc_profile=swapped())
    assert array(decoded(data, 32))[16, 16].tolist() == [90, 90, 90]


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_few_colours_become_rgb(mode: str) -> None:
    data = encoded(photo().convert(mode), "PNG")
    expected = by_pillow(Image.open(io.BytesIO(data)), SIZE)
    assert np.abs(array(decoded(data)) - expected).max() <= 1


def test_transparency_shows_white() -> None:
    image = Image.new("RGBA", (40, 40), (200, 0, 0, 0))
    image.paste((0, 0, 200, 255), (0, 0, 20, 40))
    half = Image.new("LA", (8, 8), (0, 128))
    assert array(decoded(encoded(image, "PNG")))[32, 60].tolist() == [255, 255, 255]
    assert array(decoded(encoded(image, "PNG")))[32, 2].tolist() == [0, 0, 200]
    assert array(decoded(encoded(image, "WEBP", lossless=True)))[32, 60].tolist() == [255, 255, 255]
    assert array(decoded(encoded(half, "PNG")))[5, 5].tolist() == [127, 127, 127]


@pytest.mark.parametrize("format_", ["PNG", "GIF"])
def test_a_palette_colour_may_be_transparent(format_: str) -> None:
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.paste(0, (0, 0, 20, 40))
    pixels = array(decoded(encoded(image, format_, transparency=0)))
    assert pixels[32, 2].tolist() == [255, 255, 255]
    assert pixels[32, 60].tolist() == [10, 200, 30]


@pytest.mark.parametrize(
    ("format_", "options"),
    [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})],
    ids=["GIF", "WEBP", "APNG", "TIFF"],
)
def test_the_first_of_many_frames_counts(format_: str, options: dict[str, Any]) -> None:
    frames = [Image.new("RGB", (30, 30), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], format_, save_all=True, append_images=frames[1:], **options)
    result = decoded(data)
    assert array(result)[10, 10].tolist() == [255, 0, 0]
    assert result.format == format_


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1)])
def test_an_image_may_be_one_pixel_wide(format_: str, shape: tuple[int, int]) -> None:
    result = decoded(encoded(Image.new("RGB", shape, "blue"), format_))
    assert (result.width, result.height) == shape
    assert np.abs(array(result) - [0, 0, 255]).max() <= 2


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_truncated_image_is_refused(format_: str, share: float) -> None:
    data = encoded(photo(), format_)
    with pytest.raises(InvalidImage, match=r"truncated|not an image"):
        decoded(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"\x00" * 1000,
        b"\xff\xd8\xff",
        b"GIF89a",
        b"RIFF\x10\x00\x00\x00WEBP",
        b"II*\x00\x08\x00\x00\x00\x00\x00",
        b"8BPS" + b"\0" * 60,
        b"P6 2 2 255 " + b"x" * 12,
        b"\x89PNG\r\n\x1a\n",
        b"MZ" + encoded(Image.new("RGB", (9, 9)), "PNG"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        decoded(data)


def test_no_bytes_are_named_as_such() -> None:
    with pytest.raises(InvalidImage, match="empty"):
        decoded(b"")


def test_formats_outside_the_list_stay_closed() -> None:
    for format_ in ("PPM", "ICO", "TGA", "PCX", "JPEG2000", "AVIF"):
        with pytest.raises(InvalidImage, match="JPEG, PNG, WEBP, BMP, TIFF, GIF"):
            decoded(encoded(photo(), format_))


def test_an_image_that_is_something_else_too_is_only_an_image() -> None:
    jpeg = encoded(photo(), "JPEG", quality=90)
    script = b"<script>alert(1)</script>"
    assert np.array_equal(array(decoded(jpeg + b"PK\x03\x04" + script)), array(decoded(jpeg)))
    with pytest.raises(InvalidImage):
        decoded(b"GIF89a/*" + script + b"*/=1;")
    with pytest.raises(InvalidImage):
        decoded(b"%PDF-1.7\n" + jpeg)


@pytest.mark.parametrize(
    ("width", "height"), [(20_000, 20_000), (16_385, 1), (1, 16_385), (10_000, 5_001), (2**31 - 1, 2**31 - 1)]
)
def test_dimensions_over_the_limit_are_refused_by_the_header(width: int, height: int) -> None:
    with pytest.raises(TooLarge, match="50000000"):
        decoded(png(width, height, chunk(b"IDAT", zlib.compress(b"\0" * 100))))


def test_the_message_says_size_and_limits() -> None:
    narrow = encoded(Image.new("L", (10, 200)), "PNG")
    with pytest.raises(TooLarge, match=r"10 x 200 pixels; the limit is 10000 pixels and 150 a side"):
        decode(narrow, Preprocessing(size=16), max_pixels=10_000, max_side=150)
    with pytest.raises(TooLarge, match=r"more than 1999 pixels"):
        decode(narrow, Preprocessing(size=16), max_pixels=1999, max_side=200)
    assert decode(narrow, Preprocessing(size=16), max_pixels=2000, max_side=200).height == 200


def test_an_enormous_jpeg_is_refused_before_it_is_decoded() -> None:
    data = bytearray(encoded(Image.new("L", (8, 8)), "JPEG"))
    position = data.index(b"\xff\xc0")
    data[position + 5 : position + 9] = struct.pack(">HH", 20_000, 20_000)
    with pytest.raises(TooLarge, match="50000000"):
        decoded(data)


def bomb() -> bytes:
    """60 KB that inflate to 60 MB, in layers of deflate the way iCCP and text chunks hold them."""
    return zlib.compress(b"\0" * 60_000_000, 9)


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param((chunk(b"IDAT", bomb()),), id="pixels"),
        pytest.param((chunk(b"iCCP", b"profile\0\0" + bomb()),), id="profile"),
        pytest.param((chunk(b"zTXt", b"text\0\0" + bomb()),) * 16, id="a gigabyte of texts"),
        pytest.param((chunk(b"iTXt", b"text\0\1\0\0\0" + bomb()),), id="international text"),
    ],
)
def test_a_bomb_is_not_unpacked(chunks: tuple[bytes, ...]) -> None:
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + b"\xff\0\0" * 16 for _ in range(16))))
    data = png(16, 16, *chunks, pixels)
    tracemalloc.start()
    try:
        # Pixels beyond the picture are ignored; texts and profiles over a megabyte are refused.
        result: Decoded | None = None
        with suppress(InvalidImage):
            result = decoded(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(data) + 8_000_000
    assert result is None or result.width == 16


def test_a_picture_of_a_billion_bytes_in_sixty_thousand_is_refused() -> None:
    data = png(16_384, 16_384, chunk(b"IDAT", bomb()), colour=6)
    assert len(data) < 61_000
    with pytest.raises(TooLarge):
        decoded(data)


def test_thirty_two_bit_samples_are_refused() -> None:
    with pytest.raises(InvalidImage, match="32 bits"):
        decoded(encoded(Image.new("F", (10, 10)), "TIFF"))


def test_no_error_repeats_the_image() -> None:
    hostile = [
        MARKER * 100,
        b"GIF89a" + MARKER * 100,
        png(16, 16, chunk(b"IDAT", MARKER), chunk(b"tEXt", MARKER + b"\0" + MARKER)),
        encoded(photo(), "JPEG", comment=MARKER)[:900],
        png(20_000, 20_000, chunk(b"tEXt", MARKER + b"\0" + MARKER)),
    ]
    for data in hostile:
        with pytest.raises((InvalidImage, TooLarge)) as caught:
            decoded(data)
        error: BaseException | None = caught.value
        assert error is not None
        assert MARKER.decode() not in repr(error)
        assert error.__suppress_context__ or error.__context__ is None


def test_flipped_bits_are_an_image_or_a_refusal() -> None:
    generator = np.random.default_rng(7)
    for format_ in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"):
        whole = encoded(photo(64, 48), format_)
        for _ in range(60):
            data = bytearray(whole)
            for position in generator.integers(0, len(data), 5):
                data[position] ^= 1 << int(generator.integers(8))
            with suppress(InvalidImage, TooLarge):
                assert array(
                    decode(data, Preprocessing(size=16), max_pixels=1_000_000, max_side=4096)
                ).shape == (16, 16, 3)


# 64 x 32 pixels (4x, 8y, 128 left and 20 right), made to stand upright by a quarter turn.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ADRpbG9jAAAAAERAAAIAAQAAAAAB7AABAAAAAAAAAHMAAgAAAAACXwABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAA"
    "AAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcnAAAADmaXBjbwAAAHZodmNDAQNwAAAA"
    "kAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq"
    "5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xh"
    "cAAAAEAAAAABAAAAIAAAAAEAAAAAAAAAAv///+AAAAACAAAAEHBpeGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEA"
    "AQaBAgMFhIYAAAAaaXJlZgAAAAAAAAAOY2RzYwACAAEAAQAAAJ9tZGF0AAAAbygBrwngPf7Nzy5C74J/zi/Y3UGERZBWoTJdC/zk"
    "hR0lZtV6bEnWV7ZvtudFKZ5Xbhac05M4jCh7ztJQKCBzOxmKkfHfR66nPRcYh4F/HeYilMHL7BIFACAl70y4FWH2ZKyZIiWL1mTB"
    "rVB2YlvjngAAAAZFeGlmAABNTQAqAAAACAABARIAAwAAAAEABgAAAAAAAA=="
)


def test_heic_is_decoded_upright() -> None:
    seen = decode(HEIC, Preprocessing(size=(64, 32), fit="stretch"), max_pixels=4096, max_side=64)
    assert (seen.width, seen.height, seen.format) == (32, 64, "HEIF")
    stored = np.zeros((32, 64, 3), np.float32)
    stored[..., 0], stored[..., 1] = np.arange(64) * 4, np.arange(32)[:, np.newaxis] * 8
    stored[..., 2] = np.where(np.arange(64) < 32, 128, 20)
    upright = np.rot90(stored, -1)
    assert np.abs(np.asarray(seen.pixels).astype(np.float32) - upright).mean() < 12


@pytest.mark.parametrize("length", range(0, len(HEIC), 40))
def test_a_cut_off_heic_is_refused(length: int) -> None:
    with pytest.raises(InvalidImage):
        decode(HEIC[:length], Preprocessing(size=32), max_pixels=4096, max_side=64)


def test_a_heic_over_the_limit_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(TooLarge):
        decode(HEIC, Preprocessing(size=32), max_pixels=2000, max_side=64)


# Found by fuzzing: the coded picture claims to be a billion pixels wide, its container does not.
SWOLLEN_HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjEAAGljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ADRpbG9jAAAAAERAAAIAAQAAAAAB7AABAAAAAAAAAHMAAgAAAAACXwABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAA"
    "AAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcnAAAADmaXBjbwAAAHZodmNDAQNwAAAA"
    "kAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq"
    "5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAFdFQlAAQAAAAEAAAAAoY2xh"
    "cAAAAEAAAAABAAAAIAAAAAEAAAAAAAAAAv///+AAAAACAAAAEHBpeGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEA"
    "AQaBAgMFhIYAAAAaaXJlZgAAAAAAAAAOY2RzYwACAAEAAQAAAJ9tZGF0AAAAbygBrwngPf7Nzy5C74J/zi/Y3UGERZBWoTJdC/zk"
    "hR0lZtV6bEnWV7ZvtudFKZ5Xbhac05M4jCh7ztJQKCBzOxmKkfHfR66nPRcYh4F/HeYilMHL7BIFACAl70y4FWH2ZKyZIiWL1mTB"
    "rVB2YlvjngAAAAZFeGlmAABNTQD//////w8AABIAAwAAAAEABgAAAAAAAA=="
)


def test_a_heic_that_swells_while_it_is_decoded_is_refused() -> None:
    with pytest.raises(InvalidImage, match="truncated or damaged"):
        decode(SWOLLEN_HEIC, Preprocessing(size=32), max_pixels=1 << 22, max_side=1 << 14)
