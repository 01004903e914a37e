"""Which part of an image a model sees, and where: against Pillow doing the same in plain steps."""

import io
from math import ceil, floor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from appliance.recognition.decode import decode
from appliance.recognition.preprocessing import Preprocessing, window
from demo.photos import file_of

PHOTOS = ("coffee", "chelsea", "rocket", "astronaut")
SIDES = st.integers(1, 20_000)
FITS = st.sampled_from(["crop", "stretch", "letterbox"])


def seen(data: bytes, preprocessing: Preprocessing) -> npt.NDArray[np.int16]:
    decoded = decode(data, preprocessing, max_pixels=50_000_000, max_side=16384)
    return np.asarray(decoded.pixels).astype(np.int16)


def photo(name: str) -> Image.Image:
    image = Image.open(file_of(name)).convert("RGB")
    image.info.clear()  # its profile would be applied by one of the two alone
    return image


def encoded(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format_, **options)
    return out.getvalue()


def by_pillow(image: Image.Image, preprocessing: Preprocessing) -> npt.NDArray[np.int16]:
    """The definition in Pillow's own words."""
    filter_ = Image.Resampling[preprocessing.resample.upper()]
    size = (preprocessing.width, preprocessing.height)
    image = ImageOps.exif_transpose(image)
    if preprocessing.fit == "stretch":
        image = image.resize(size, filter_)
    elif preprocessing.fit == "letterbox":
        image = ImageOps.pad(image, size, filter_, (114, 114, 114), (0.5, 0.5))
    else:
        scale = min(image.width / size[0], image.height / size[1]) * preprocessing.share
        left, top = (image.width - size[0] * scale) // 2, (image.height - size[1] * scale) // 2
        box = (left, top, left + size[0] * scale, top + size[1] * scale)
        # Whole pixels are cut out first, so that nothing from outside shines in.
        part = image.crop((floor(left), floor(top), ceil(box[2]), ceil(box[3])))
        inner = (left - floor(left), top - floor(top), box[2] - floor(left), box[3] - floor(top))
        image = part.resize(size, filter_, inner)
    return np.asarray(image).astype(np.int16)


@pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(size=128),
        Preprocessing(size=(96, 160), fit="stretch"),
        Preprocessing(size=(160, 96), fit="letterbox"),
        Preprocessing(size=(64, 128)),
    ],
    ids=lambda one: f"{one.fit}-{one.height}x{one.width}",
)
@pytest.mark.parametrize("name", PHOTOS)
def test_full_decoding_is_pillows_within_one_level(
    name: str, preprocessing: Preprocessing, resample: Any
) -> None:
    wanted = Preprocessing(preprocessing.size, preprocessing.fit, resample=resample, scaled=False)
    image = photo(name)
    difference = np.abs(seen(encoded(image), wanted) - by_pillow(image, wanted))
    assert difference.max() <= 1


@pytest.mark.parametrize("name", PHOTOS)
def test_a_share_leaves_the_margin_out(name: str) -> None:
    """0.875 of a picture is what a resize to 256 and a central crop of 224 sees."""
    image = photo(name)
    side = min(image.size)
    shorter = image.resize((round(image.width * 256 / side), round(image.height * 256 / side)), 3)
    left, top = (shorter.width - 224) // 2, (shorter.height - 224) // 2
    usual = np.asarray(shorter.crop((left, top, left + 224, top + 224))).astype(np.int16)
    ours = seen(encoded(image), Preprocessing(224, share=0.875))
    assert np.abs(ours - usual).mean() < 6  # shifted by less than a pixel


@pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("name", PHOTOS)
def test_a_share_of_a_stretched_picture_is_cut_out_of_it(name: str, resample: Any) -> None:
    """To the level what a resize to 256 x 256 and a central crop of 224 x 224 give."""
    image = photo(name)
    whole = image.resize((256, 256), Image.Resampling[resample.upper()])
    usual = np.asarray(whole.crop((16, 16, 240, 240))).astype(np.int16)
    wanted = Preprocessing(224, "stretch", share=0.875, resample=resample, scaled=False)
    assert np.abs(seen(encoded(image), wanted) - usual).max() <= 1


@pytest.mark.parametrize("preprocessing", [Preprocessing(224), Preprocessing(224, "stretch")])
@pytest.mark.parametrize("name", PHOTOS)
def test_scaled_decoding_stays_close(name: str, preprocessing: Preprocessing) -> None:
    image = photo(name)
    image = image.resize((image.width * 3, image.height * 3))
    data = encoded(image, "JPEG", quality=90)
    full = Preprocessing(preprocessing.size, preprocessing.fit, scaled=False)
    assert np.abs(seen(data, preprocessing) - seen(data, full)).mean() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fit", ["crop", "stretch", "letterbox"])
def test_scaled_decoding_is_upright_in_every_fit(fit: Any, orientation: int) -> None:
    image = photo("coffee").resize((1600, 1000))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "JPEG", quality=95, exif=exif)
    wanted = Preprocessing((120, 200), fit)
    plain = by_pillow(Image.open(io.BytesIO(data)), wanted)
    assert np.abs(seen(data, wanted) - plain).mean() <= 3


@example(width=17, height=17, fit="crop", size=(543, 543))  # 17 / 543 * 543 is more than 17
@given(width=SIDES, height=SIDES, fit=FITS, size=st.tuples(st.integers(16, 2048), st.integers(16, 2048)))
def test_a_window_lies_within_both(width: int, height: int, fit: Any, size: tuple[int, int]) -> None:
    placed = window(Preprocessing(size, fit), width, height)
    left, top, right, bottom = placed.source
    assert 0 <= left < right <= width + 1e-6
    assert 0 <= top < bottom <= height + 1e-6
    left, top, right, bottom = placed.target
    assert 0 <= left < right <= size[1]
    assert 0 <= top < bottom <= size[0]
    across, down = placed.scale
    if fit == "crop":
        assert across == pytest.approx(down)
    if fit != "letterbox":
        assert placed.target == (0, 0, size[1], size[0])


@given(width=st.integers(1, 300), height=st.integers(1, 300), fit=FITS)
def test_images_of_any_size_are_seen(width: int, height: int, fit: Any) -> None:
    picture = encoded(Image.new("RGB", (width, height), (200, 100, 50)))
    pixels = seen(picture, Preprocessing((24, 32), fit))
    assert pixels.shape == (24, 32, 3)
    left, top, right, bottom = window(Preprocessing((24, 32), fit), width, height).target
    assert pixels[(top + bottom) // 2, (left + right) // 2].tolist() == [200, 100, 50]
