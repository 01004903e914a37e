"""The perceptual hash of a picture: 64 bits that hardly change when it is scaled, recompressed or recoloured.

pHash by the discrete cosine transform (C. Zauner, Implementation and Benchmarking of Perceptual Image Hash
Functions, 2010): of a grey picture of 32 x 32 pixels the 8 x 8 lowest frequencies beside the constant ones,
each a bit that says whether it is above their median. Scaling down averages already: no filter goes before.
"""

import numpy as np
import numpy.typing as npt

from appliance.recognition.preprocessing import Preprocessing

Pixels = npt.NDArray[np.uint8]
Bits = npt.NDArray[np.bool_]
Vector = npt.NDArray[np.float32]

PIN = "phash@1"
"""What a collection of these hashes has in the place of a backbone's NAME@VERSION."""
BITS = 64
PREPROCESSING = Preprocessing(size=32, fit="stretch")
_SIDE, _LOW = 32, 8
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601-7, 2.5.1
_DECIMALS = 6
"""Sums of 1,024 levels are exact to far more: what is left of a flat picture is zero, and no noise."""

_n = np.arange(_SIDE)
_COSINES = np.cos(
    np.pi * (2 * _n + 1) * np.arange(1, _LOW + 1)[:, None] / (2 * _SIDE)
)  # rows 1 to 8 of DCT-II


def perceptual(pixels: Pixels) -> Bits:
    """The 64 bits of sRGB pixels (32, 32, 3), as PREPROCESSING leaves them; all 0 for a flat picture."""
    grey = pixels.astype(np.float64) @ _LUMA
    low = np.round(_COSINES @ grey @ _COSINES.T, _DECIMALS).ravel()
    bits: Bits = low > np.median(low)
    return bits


def text(bits: Bits) -> str:
    """16 hexadecimal digits."""
    return np.packbits(bits).tobytes().hex()


def vector(bits: Bits) -> Vector:
    """float32 of shape (64,) and length 1: 1 - cosine of two is twice the share of bits that differ."""
    return np.where(bits, 1, -1).astype(np.float32) / np.float32(np.sqrt(BITS))


def differing(one: Bits, other: Bits) -> int:
    """How many bits differ (the Hamming distance), 0 to 64; unrelated pictures are around 32."""
    return int(np.count_nonzero(one != other))
