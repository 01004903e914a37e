"""One fuzzing process: the first byte chooses how the rest is seen, and whether it is kept."""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import atheris

with atheris.instrument_imports(include=["appliance.recognition", "PIL"]):
    from appliance.errors import InvalidImage, TooLarge
    from appliance.recognition import decode as decoding
    from appliance.recognition import ingest as stripping
    from appliance.recognition.preprocessing import Preprocessing

from tests import images  # after what it uses has been instrumented

# libheif is not ours and dies of some inputs, which ends this process and the search. The locks around a
# decoder are what holds then; tests/faults tries them with what was found.
decoding.FORMATS = tuple(form for form in decoding.FORMATS if form != "HEIF")

WAYS = (
    Preprocessing(size=32),
    Preprocessing(size=(48, 24), fit="stretch", scaled=False),
    Preprocessing(size=(24, 48), fit="letterbox", resample="nearest"),
    Preprocessing(size=64, share=0.5, resample="lanczos"),
)


STRIPS = (stripping.strip_jpeg, stripping.strip_png, stripping.strip_webp)
LIMITS: dict[str, Any] = {"max_pixels": 1 << 22, "max_side": 1 << 14}
LONGER = 64


def one(data: bytes) -> None:
    """Anything but pixels of the right shape or a refusal is a finding; so is a pixel that is kept wrong."""
    if not data:
        return
    wanted = WAYS[data[0] % len(WAYS)]
    # Seeds are whole images: the byte that chooses stays a part of them.
    with contextlib.suppress(InvalidImage, TooLarge):
        seen = decoding.decode(data, wanted, **LIMITS)
        assert seen.pixels.shape == wanted.shape
        made = decoding.ingest(data, keep_metadata=False, **LIMITS)
        again = _seen_again(made.image, wanted)
        assert (made.width, made.height) == (seen.width, seen.height) == (again.width, again.height)
        # What is converted is rounded to eight bits, and its colours are, before it is made small.
        if made.format == seen.format.lower() and again.pixels != seen.pixels:
            # What libjpeg-turbo makes of a damaged scan depends on whether enough bytes follow it for its
            # fast path: the same then have to follow both.
            assert made.format == "jpeg"
            assert again.pixels == decoding.decode(images.up_to_its_last_scan(data), wanted, **LIMITS).pixels
    for strip in STRIPS:
        with contextlib.suppress(InvalidImage):
            _strip(strip, data, 1 + data[-1] % 8)


def _seen_again(image: bytes, wanted: Preprocessing) -> decoding.Decoded:
    """What is kept is an image, whatever it was made of."""
    try:
        return decoding.decode(image, wanted, **LIMITS)
    except (InvalidImage, TooLarge) as refusal:
        raise AssertionError("what is kept is refused") from refusal


def _strip(strip: Callable[[bytes, int], bytes], data: bytes, orientation: int) -> None:
    kept = strip(data, orientation)
    assert len(kept) <= len(data) + LONGER
    assert strip(kept, orientation) == kept


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
