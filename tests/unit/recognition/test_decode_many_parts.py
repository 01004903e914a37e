"""Images of more parts than programs write: refused by their count, before anything is decoded."""

import io
import struct
import zlib

import pytest
from PIL import Image

from appliance.errors import InvalidImage
from appliance.recognition.decode import (
    FULL_SCANS,
    MAX_CHUNKS,
    MAX_FILL,
    MAX_SCANS,
    MAX_SEGMENTS,
    decode,
)
from appliance.recognition.preprocessing import Preprocessing


def in_scans(count: int) -> bytes:
    """A progressive JPEG with its last scan again and again."""
    out = io.BytesIO()
    Image.new("L", (64, 64), 90).save(out, "JPEG", progressive=True)
    whole = out.getvalue()
    start = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[start:-2] * (count - whole.count(b"\xff\xda")) + whole[-2:]


def test_a_jpeg_of_many_scans_is_decoded_and_one_of_thousands_is_not() -> None:
    limits = {"max_pixels": 10**6, "max_side": 1000}
    assert decode(in_scans(MAX_SCANS), Preprocessing(size=16), **limits).width == 64  # type: ignore[arg-type]
    for count, reason in ((MAX_SCANS + 1, "101 scans"), (50_000, f"over {MAX_SEGMENTS} segments")):
        with pytest.raises(InvalidImage, match=reason):
            decode(in_scans(count), Preprocessing(size=16), **limits)  # type: ignore[arg-type]


def test_how_many_scans_a_jpeg_may_have_depends_on_its_size() -> None:
    size = 64 * 64
    for scans in (10, FULL_SCANS):
        assert decode(in_scans(scans), Preprocessing(size=16), max_pixels=size, max_side=64).width == 64
    with pytest.raises(InvalidImage, match=f"{FULL_SCANS + 1} scans, which is too many for its size"):
        decode(in_scans(FULL_SCANS + 1), Preprocessing(size=16), max_pixels=size, max_side=64)


@pytest.mark.parametrize(
    "part", [b"\xff\xfe\0\2", b"\xff", b"\xff\0", b"\xff\xd0", b"\xff\xd9", b"\xff\xf0", b"a"]
)
def test_a_jpeg_of_a_million_parts_is_refused_before_it_is_opened(part: bytes) -> None:
    out = io.BytesIO()
    Image.new("L", (64, 64), 90).save(out, "JPEG")
    whole = out.getvalue()
    with pytest.raises(InvalidImage, match=f"over {MAX_SEGMENTS} segments, or {MAX_FILL} bytes"):
        decode(
            whole[:20] + part * 1_000_000 + whole[20:], Preprocessing(size=16), max_pixels=4096, max_side=64
        )


def test_a_png_of_as_many_chunks_as_a_large_one_has_is_decoded_and_one_of_far_more_is_not() -> None:
    out = io.BytesIO()
    Image.new("L", (64, 64), 90).save(out, "PNG")
    whole, chunk = out.getvalue(), struct.pack(">I4sI", 0, b"teXt", zlib.crc32(b"teXt"))
    parts = whole[:33], whole[33:]
    assert (
        decode((chunk * 16_384).join(parts), Preprocessing(size=16), max_pixels=4096, max_side=64).width == 64
    )
    with pytest.raises(InvalidImage, match=f"more than {MAX_CHUNKS} chunks"):
        decode((chunk * MAX_CHUNKS).join(parts), Preprocessing(size=16), max_pixels=4096, max_side=64)


def test_what_only_looks_like_scans_is_none() -> None:
    marks = b"\xff\xda" * 1000
    out = io.BytesIO()
    Image.new("RGB", (64, 64), (9, 90, 200)).save(out, "JPEG", comment=marks)
    for image in (out.getvalue(), out.getvalue() + marks):
        assert decode(image, Preprocessing(size=16), max_pixels=10**6, max_side=1000).width == 64
