"""The colours that a picture consists of, and their names: k-means in CIELAB, no model.

Everything is computed on a histogram in the order of its bins: the same picture has the same answer, and one
of 128 x 128 pixels costs 1 to 2 ms, or 5 where all of it is noise.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Sums = npt.NDArray[np.float64]
Lab = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

# Colours that differ by less (Delta-E 76, the Euclidean distance in CIELAB) are one: shades of a fold, noise.
SAME = 10.0
LEAST_SHARE = 0.02  # of a colour that is told
LEAST_PRODUCT = 0.01  # of the picture; what is smaller is noise on a background, not a product
_BITS = 5  # a channel in the histogram
_ROUNDS = 8  # of k-means at most: a picture without clusters would never come to rest

# IEC 61966-2-1:1999, 5.2: linear sRGB to CIE XYZ; a row adds to that of the white point D65.
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_RELATIVE = (_XYZ / _XYZ.sum(axis=1, keepdims=True)).astype(np.float32)

# CSS Color Module Level 4, 6.1 "Named Colors": all 139 different ones. Of two names for a colour one is here:
# cyan, magenta, and gray with an a.
_CSS = """
aliceblue f0f8ff antiquewhite faebd7 aquamarine 7fffd4 azure f0ffff beige f5f5dc bisque ffe4c4 black 000000
blanchedalmond ffebcd blue 0000ff blueviolet 8a2be2 brown a52a2a burlywood deb887 cadetblue 5f9ea0
chartreuse 7fff00 chocolate d2691e coral ff7f50 cornflowerblue 6495ed cornsilk fff8dc crimson dc143c
cyan 00ffff darkblue 00008b darkcyan 008b8b darkgoldenrod b8860b darkgray a9a9a9 darkgreen 006400
darkkhaki bdb76b darkmagenta 8b008b darkolivegreen 556b2f darkorange ff8c00 darkorchid 9932cc darkred 8b0000
darksalmon e9967a darkseagreen 8fbc8f darkslateblue 483d8b darkslategray 2f4f4f darkturquoise 00ced1
darkviolet 9400d3 deeppink ff1493 deepskyblue 00bfff dimgray 696969 dodgerblue 1e90ff firebrick b22222
floralwhite fffaf0 forestgreen 228b22 gainsboro dcdcdc ghostwhite f8f8ff gold ffd700 goldenrod daa520
gray 808080 green 008000 greenyellow adff2f honeydew f0fff0 hotpink ff69b4 indianred cd5c5c indigo 4b0082
ivory fffff0 khaki f0e68c lavender e6e6fa lavenderblush fff0f5 lawngreen 7cfc00 lemonchiffon fffacd
lightblue add8e6 lightcoral f08080 lightcyan e0ffff lightgoldenrodyellow fafad2 lightgray d3d3d3
lightgreen 90ee90 lightpink ffb6c1 lightsalmon ffa07a lightseagreen 20b2aa lightskyblue 87cefa
lightslategray 778899 lightsteelblue b0c4de lightyellow ffffe0 lime 00ff00 limegreen 32cd32 linen faf0e6
magenta ff00ff maroon 800000 mediumaquamarine 66cdaa mediumblue 0000cd mediumorchid ba55d3 mediumpurple 9370db
mediumseagreen 3cb371 mediumslateblue 7b68ee mediumspringgreen 00fa9a mediumturquoise 48d1cc
mediumvioletred c71585 midnightblue 191970 mintcream f5fffa mistyrose ffe4e1 moccasin ffe4b5
navajowhite ffdead navy 000080 oldlace fdf5e6 olive 808000 olivedrab 6b8e23 orange ffa500 orangered ff4500
orchid da70d6 palegoldenrod eee8aa palegreen 98fb98 paleturquoise afeeee palevioletred db7093
papayawhip ffefd5 peachpuff ffdab9 peru cd853f pink ffc0cb plum dda0dd powderblue b0e0e6 purple 800080
rebeccapurple 663399 red ff0000 rosybrown bc8f8f royalblue 4169e1 saddlebrown 8b4513 salmon fa8072
sandybrown f4a460 seagreen 2e8b57 seashell fff5ee sienna a0522d silver c0c0c0 skyblue 87ceeb slateblue 6a5acd
slategray 708090 snow fffafa springgreen 00ff7f steelblue 4682b4 tan d2b48c teal 008080 thistle d8bfd8
tomato ff6347 turquoise 40e0d0 violet ee82ee wheat f5deb3 white ffffff whitesmoke f5f5f5 yellow ffff00
yellowgreen 9acd32
"""


@dataclass(frozen=True)
class Colour:
    """`rgb` is the mean (sRGB, 0 to 255) of the pixels it stands for, `share` their part, 0 to 1."""

    rgb: tuple[int, int, int]
    share: float


@dataclass
class _Group:
    """Pixels that count as one colour: how many, the sum of their sRGB values, their mean in CIELAB."""

    count: float
    total: Sums
    centre: Lab


def dominant(pixels: Pixels, *, product: bool, most: int = 6) -> list[Colour]:
    """The colours of an sRGB picture (height, width, 3), the largest share first: at least 1, at most `most`.

    Colours below 2 % are left out, nothing else is: the shares that are told add to 1. Where pixels lie does
    not matter, unless `product`: then what is connected to the border in the border's own colour is left out,
    and a pixel more, for edges are blurred. Of a picture that is background to 99 % nothing is left out.
    """
    chosen = _foreground(pixels) if product else pixels.reshape(-1, 3)
    groups = _merged(_clustered(chosen, most))
    groups.sort(key=lambda group: (-group.count, tuple(group.total)))
    pixel_count = sum(group.count for group in groups)
    told = [group for group in groups if group.count >= LEAST_SHARE * pixel_count] or groups[:1]
    told_count = sum(group.count for group in told)
    return [Colour(_rgb(group.total / group.count), float(group.count / told_count)) for group in told]


def name(rgb: tuple[int, int, int]) -> str:
    """The CSS name of the named colour that differs least (Delta-E 76) from this one."""
    differences = np.square(_NAMED - lab(rgb)).sum(axis=1)
    return _NAMES[int(differences.argmin())]


def lab(rgb: npt.ArrayLike) -> Lab:
    """sRGB values from 0 to 255, in the last axis, as CIELAB (L, a, b) for the white point D65.

    The transfer function and the matrix are those of IEC 61966-2-1:1999 (5.2), the rest is CIE 15:2004
    (8.2.1). In single precision: a quarter of the time of double, and far finer than anybody sees.
    """
    encoded = np.asarray(rgb, np.float32) / np.float32(255)
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    relative = linear @ _RELATIVE.T
    f = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


_NAMES = _CSS.split()[::2]
_NAMED = lab([list(bytes.fromhex(code)) for code in _CSS.split()[1::2]])


def _rgb(mean: Sums) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in np.rint(mean))
    return red, green, blue


def _bins(pixels: Pixels) -> npt.NDArray[np.intp]:
    """The histogram's bin of every pixel."""
    red, green, blue = ((pixels[:, channel] >> (8 - _BITS)).astype(np.intp) for channel in range(3))
    return (red << 2 * _BITS) | (green << _BITS) | blue


def _clustered(pixels: Pixels, most: int) -> list[_Group]:
    """Weighted k-means (Lloyd) over the mean colours of the bins."""
    bins, size = _bins(pixels), 1 << 3 * _BITS
    counts = np.bincount(bins, minlength=size).astype(np.float64)
    used = counts > 0
    # Sums of integers: exact in any order of the pixels.
    totals = np.stack([np.bincount(bins, pixels[:, channel], size)[used] for channel in range(3)], axis=1)
    counts = counts[used]
    points = np.asfortranarray(lab(totals / counts[:, None]))  # each axis in one piece: four times faster
    weighted = [counts * axis for axis in points.T]
    centres, owners = _spread(points, counts, most), None
    for _ in range(_ROUNDS):
        nearest = _nearest(points, centres)
        if owners is not None and np.array_equal(nearest, owners):
            break
        owners = nearest
        weights = np.bincount(owners, counts, len(centres))
        sums = [np.bincount(owners, axis, len(centres)) for axis in weighted]
        kept = weights[:, None] > 0  # a centre that nothing is nearest to any more stays where it is
        means = np.stack(sums, axis=1) / np.maximum(weights, 1)[:, None]
        centres = np.where(kept, means, centres).astype(np.float32)
    assert owners is not None
    grouped = np.stack([np.bincount(owners, axis, len(centres)) for axis in totals.T], axis=1)
    parts = zip(np.bincount(owners, counts, len(centres)), grouped, centres, strict=True)
    return [_Group(float(count), total, centre) for count, total, centre in parts if count > 0]


def _spread(points: Lab, counts: Sums, most: int) -> Lab:
    """Where k-means begins: the fullest bin, then again and again the one that costs most where it is.

    That is k-means++ (Arthur and Vassilvitskii, 2007) with the likeliest draw in place of a random one.
    """
    chosen = [int(counts.argmax())]
    squares = _squares(points, points[chosen[0]])
    while len(chosen) < most and squares.max() > 0:
        chosen.append(int((counts * squares).argmax()))
        squares = np.minimum(squares, _squares(points, points[chosen[-1]]))
    return points[chosen]


def _nearest(points: Lab, centres: Lab) -> npt.NDArray[np.intp]:
    """The number of the nearest centre of every point, the lowest of several.

    Centre by centre: arrays of all distances would be large enough to be fetched from the system every time.
    """
    nearest = np.zeros(len(points), np.intp)
    least = _squares(points, centres[0])
    for number, centre in enumerate(centres[1:], 1):
        squares = _squares(points, centre)
        nearest = np.where(squares < least, number, nearest)
        least = np.minimum(least, squares)
    return nearest


def _squares(points: Lab, centre: Lab) -> Lab:
    """Delta-E 76 squared."""
    lightness, a, b = (points[..., axis] - centre[axis] for axis in range(3))
    squares: Lab = lightness * lightness + a * a + b * b
    return squares


def _merged(groups: list[_Group]) -> list[_Group]:
    """The groups after the two nearest became one, again and again, until all differ by SAME or more."""
    groups = list(groups)
    while len(groups) > 1:
        centres = np.stack([group.centre for group in groups])
        squares = np.stack([_squares(centres, centre) for centre in centres])
        np.fill_diagonal(squares, np.inf)
        first, second = sorted(divmod(int(squares.argmin()), len(groups)))
        if squares[first, second] >= SAME**2:
            break
        one, other = groups[first], groups.pop(second)
        count = one.count + other.count
        centre = (one.centre * one.count + other.centre * other.count) / count
        groups[first] = _Group(count, one.total + other.total, centre.astype(np.float32))
    return groups


def _foreground(pixels: Pixels) -> Pixels:
    """The pixels that are no background, all of them where too few are left."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = max(_merged(_clustered(border, 6)), key=lambda group: group.count).centre
    outside = _outside(_squares(lab(pixels), background) < SAME**2)
    grown = outside.copy()
    grown[1:] |= outside[:-1]
    grown[:-1] |= outside[1:]
    grown[:, 1:] |= outside[:, :-1]
    grown[:, :-1] |= outside[:, 1:]
    for left_out in (grown, outside):
        if (~left_out).mean() >= LEAST_PRODUCT:
            return pixels[~left_out]
    return pixels.reshape(-1, 3)


def _outside(close: Mask) -> Mask:
    """What of the mask is connected to the border by edges of pixels.

    Not pixels but whole runs of a row are joined, each to the lowest number it is connected with: a maze made
    to be slow takes a few rounds like anything else.
    """
    starts = close.copy()
    starts[:, 1:] &= ~close[:, :-1]
    runs = np.where(close, np.cumsum(starts).reshape(close.shape), 0)
    above, below = runs[:-1], runs[1:]
    touching = (above > 0) & (below > 0)
    above, below = above[touching], below[touching]
    lowest = np.arange(runs.max() + 1)
    for edge in (runs[0], runs[-1], runs[:, 0], runs[:, -1]):
        lowest[edge] = 0
    while True:
        one, other = lowest[above], lowest[below]
        apart = one != other
        if not apart.any():
            outside: Mask = close & (lowest[runs] == 0)
            return outside
        np.minimum.at(lowest, np.maximum(one, other)[apart], np.minimum(one, other)[apart])
        while not np.array_equal(shorter := lowest[lowest], lowest):
            lowest = shorter
