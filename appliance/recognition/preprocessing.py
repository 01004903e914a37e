"""How an image becomes a model's input: which part of it is seen, and where it lands.

Imported by decoder processes, which start in half the time without numpy and TOML.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from appliance.errors import InvalidInput

CHANNELS = 3

_Side = Annotated[int, msgspec.Meta(ge=16, le=2048)]
_Share = Annotated[float, msgspec.Meta(ge=0.1, le=1.0)]
# Of two: as `tuple[_Side, _Side]` in a union with an int, msgspec 0.21 corrupts memory.
_Sides = Annotated[tuple[_Side, ...], msgspec.Meta(min_length=2, max_length=2)]
Box = tuple[float, float, float, float]  # left, top, right, bottom


class Preprocessing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The input is RGB of 8 bits, upright, sRGB, over white; `size` is its side, or (height, width).

    `fit`: "crop" takes the largest centred part of the input's proportions, or `share` of its sides;
    "stretch" the whole image, or the centred `share` of its sides as if cut out of the whole one stretched
    (what lies beside it is still mixed into its edges); "letterbox" the whole image in its proportions,
    centred on grey (114).
    `scaled` lets a JPEG be decoded at 1/2, 1/4 or 1/8 where that leaves more pixels than the input has.
    """

    size: _Side | _Sides = 224
    fit: Literal["crop", "stretch", "letterbox"] = "crop"
    share: _Share = 1.0
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    scaled: bool = True

    @property
    def height(self) -> int:
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def width(self) -> int:
        return self.size if isinstance(self.size, int) else self.size[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the input for one image."""
        return self.height, self.width, CHANNELS

    @property
    def nbytes(self) -> int:
        """Of the input for one image."""
        return self.height * self.width * CHANNELS


def checked(fields: Mapping[str, object]) -> Preprocessing:
    """The preprocessing with these fields. Raises InvalidInput where it is none that a bundle has."""
    try:
        return msgspec.convert(fields, Preprocessing)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"its images: {error}") from error


@dataclass(frozen=True, slots=True)
class Window:
    """`source`, a box of the upright image, is seen at `target`, whole pixels of the input."""

    width: int
    height: int
    source: Box
    target: tuple[int, int, int, int]

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the image in one pixel of the input, across and down."""
        left, top, right, bottom = self.source
        return (
            (right - left) / (self.target[2] - self.target[0]),
            (bottom - top) / (self.target[3] - self.target[1]),
        )


def window(preprocessing: Preprocessing, width: int, height: int) -> Window:
    """Where an upright image of `width` x `height` pixels lands."""
    across, down = preprocessing.width, preprocessing.height
    if preprocessing.fit == "crop":
        scale = min(width / across, height / down) * preprocessing.share
        # Rounding can give a little more than there is.
        seen_width, seen_height = min(across * scale, width), min(down * scale, height)
        left, top = (width - seen_width) // 2, (height - seen_height) // 2
        return Window(width, height, (left, top, left + seen_width, top + seen_height), (0, 0, across, down))
    if preprocessing.fit == "stretch":
        left, top = width * (1 - preprocessing.share) / 2, height * (1 - preprocessing.share) / 2
        return Window(width, height, (left, top, width - left, height - top), (0, 0, across, down))
    scale = min(across / width, down / height)
    seen = max(1, round(width * scale)), max(1, round(height * scale))
    corner = (across - seen[0]) // 2, (down - seen[1]) // 2
    return Window(width, height, (0, 0, width, height), (*corner, corner[0] + seen[0], corner[1] + seen[1]))
