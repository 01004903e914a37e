"""One fuzzing process: the first byte chooses how the rest is seen."""

import contextlib
import sys

import atheris

with atheris.instrument_imports(include=["appliance.recognition", "PIL"]):
    from appliance.errors import InvalidImage, TooLarge
    from appliance.recognition import decode as decoding
    from appliance.recognition.preprocessing import Preprocessing

# libheif is not ours and dies of some inputs, which ends this process and the search. The locks around a
# decoder are what holds then; tests/faults tries them with what was found.
decoding.FORMATS = tuple(form for form in decoding.FORMATS if form != "HEIF")

WAYS = (
    Preprocessing(size=32),
    Preprocessing(size=(48, 24), fit="stretch", scaled=False),
    Preprocessing(size=(24, 48), fit="letterbox", resample="nearest"),
    Preprocessing(size=64, share=0.5, resample="lanczos"),
)


def one(data: bytes) -> None:
    """Anything but pixels of the right shape or a refusal is a finding."""
    if not data:
        return
    wanted = WAYS[data[0] % len(WAYS)]
    # Seeds are whole images: the byte that chooses stays a part of them.
    with contextlib.suppress(InvalidImage, TooLarge):
        seen = decoding.decode(data, wanted, max_pixels=1 << 22, max_side=1 << 14)
        assert seen.pixels.shape == wanted.shape


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
