"""Perceptual hashes of real photographs: near for what is the same picture, far for what is not."""

import io
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from appliance.recognition import hashing
from appliance.recognition.decode import decode
from demo import photos

NAMES = ("chelsea", "coffee", "rocket", "china", "flower")


def hashed(encoded: bytes) -> hashing.Bits:
    decoded = decode(encoded, hashing.PREPROCESSING, max_pixels=100_000_000, max_side=20_000)
    return hashing.perceptual(np.asarray(decoded.pixels))


def saved(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def photo(name: str) -> Image.Image:
    return Image.open(photos.file_of(name)).convert("RGB")


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_keeps_its_hash_however_it_is_saved(name: str) -> None:
    picture = photo(name)
    original = hashed(saved(picture))
    half = (picture.width // 2, picture.height // 2)
    for changed, most in (
        (saved(picture, "JPEG", quality=50), 4),
        (saved(picture, "WEBP", quality=50), 4),
        (saved(picture.resize(half)), 4),
        (saved(picture.convert("L")), 4),
        (saved(ImageEnhance.Brightness(picture).enhance(0.8)), 6),
        (saved(picture.filter(ImageFilter.GaussianBlur(2))), 4),
    ):
        assert hashing.differing(hashed(changed), original) <= most


def test_different_pictures_are_far_apart() -> None:
    bits = [hashed(saved(photo(name))) for name in NAMES]
    assert min(hashing.differing(one, other) for one, other in combinations(bits, 2)) > 18


def test_a_flat_picture_has_no_bit_and_none_is_noise() -> None:
    for level in (0, 1, 127, 255):
        flat: npt.NDArray[np.uint8] = np.full((32, 32, 3), level, np.uint8)
        assert hashing.text(hashing.perceptual(flat)) == "0" * 16


def test_the_hash_is_what_it_was() -> None:
    """A stored hash is compared with those that later versions make."""
    x, y = np.meshgrid(np.arange(32), np.arange(32))
    pixels = np.stack([(x * 8) % 256, (y * 8) % 256, (x * y) % 256], axis=-1).astype(np.uint8)
    assert hashing.text(hashing.perceptual(pixels)) == "7ce3c69992a56a54"


def test_vectors_measure_the_bits_that_differ() -> None:
    rng = np.random.default_rng(2)
    one, other = rng.random(64) < 0.5, rng.random(64) < 0.5
    first, second = hashing.vector(one), hashing.vector(other)
    assert first.dtype == np.float32
    assert np.linalg.norm(first) == pytest.approx(1)
    assert 1 - float(first @ second) == pytest.approx(hashing.differing(one, other) / 32, abs=1e-6)
