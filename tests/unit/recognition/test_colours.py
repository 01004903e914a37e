"""Dominant colours of pictures whose colours are known."""

import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageColor

from appliance.recognition.colours import SAME, Colour, dominant, lab, name

Picture = npt.NDArray[np.uint8]
Rgb = tuple[int, int, int]

WHITE, BLACK, GREY = (255, 255, 255), (0, 0, 0), (128, 128, 128)
RED, GREEN, BLUE = (200, 20, 30), (20, 150, 40), (30, 40, 200)


def plain(colour: Rgb, height: int = 128, width: int = 128) -> Picture:
    return np.full((height, width, 3), colour, np.uint8)


def stripes(*parts: tuple[Rgb, int]) -> Picture:
    """Columns of each colour, so many wide."""
    return np.concatenate([plain(colour, 128, columns) for colour, columns in parts], axis=1)


def noisy(picture: Picture, amplitude: int, seed: int = 1) -> Picture:
    noise = np.random.default_rng(seed).integers(-amplitude, amplitude + 1, picture.shape)
    return np.clip(picture.astype(int) + noise, 0, 255).astype(np.uint8)


def difference(one: Rgb, other: Rgb) -> float:
    return float(np.linalg.norm(lab(one) - lab(other)))


def random_picture(seed: int, colours: int) -> Picture:
    """A mosaic of a few colours, with noise, of any size."""
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 256, (colours, 3))
    height, width = rng.integers(1, 60, 2)
    return noisy(
        palette[rng.integers(0, colours, (height, width))].astype(np.uint8), int(rng.integers(9)), seed
    )


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        (BLACK, (0, 0, 0)),
        (WHITE, (100, 0, 0)),
        ((119, 119, 119), (50.03, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((3, 3, 3), (0.82, 0, 0)),  # on the linear parts of both curves
    ],
)
def test_lab_has_the_values_of_the_standards(rgb: Rgb, expected: Rgb) -> None:
    """As published for a white point of five digits; the one here has the four of the matrix."""
    assert lab(rgb) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize("colour", [WHITE, BLACK, GREY, RED, (7, 8, 248)])
def test_a_picture_of_one_colour_has_that_colour(colour: Rgb, product: bool) -> None:
    """All of it is background, so that nothing is left out."""
    assert dominant(plain(colour), product=product) == [Colour(colour, 1.0)]


def test_black_and_white() -> None:
    assert dominant(stripes((BLACK, 96), (WHITE, 32)), product=False) == [
        Colour(BLACK, 0.75),
        Colour(WHITE, 0.25),
    ]


def test_known_colours_come_by_share() -> None:
    picture = noisy(stripes((GREEN, 13), (WHITE, 64), (BLUE, 19), (RED, 32)), 6)
    told = dominant(picture, product=False)
    wanted = [(WHITE, 64), (RED, 32), (BLUE, 19), (GREEN, 13)]
    assert [colour.share for colour in told] == pytest.approx([part / 128 for _, part in wanted], abs=0.01)
    for colour, (rgb, _) in zip(told, wanted, strict=True):
        assert difference(colour.rgb, rgb) < 3


def test_shades_are_one_colour_and_different_colours_are_not() -> None:
    assert len(dominant(stripes(((120, 120, 120), 64), ((130, 130, 130), 64)), product=False)) == 1
    one, other = (120, 120, 120), (150, 150, 150)
    assert difference(one, other) > SAME
    assert [colour.rgb for colour in dominant(stripes((one, 65), (other, 63)), product=False)] == [one, other]


def test_what_is_below_two_percent_is_left_out_of_the_shares() -> None:
    told = dominant(stripes((WHITE, 62), (BLUE, 64), (RED, 2)), product=False)
    assert [colour.rgb for colour in told] == [BLUE, WHITE]
    assert [colour.share for colour in told] == pytest.approx([64 / 126, 62 / 126])
    assert RED in [
        colour.rgb for colour in dominant(stripes((WHITE, 62), (BLUE, 63), (RED, 3)), product=False)
    ]


def test_the_commonest_are_told_where_there_are_more_than_asked_for() -> None:
    picture = stripes((WHITE, 60), (RED, 30), (GREEN, 20), (BLUE, 18))
    told = dominant(picture, product=False, most=2)
    assert len(told) == 2
    assert sum(colour.share for colour in told) == pytest.approx(1)
    assert [len(dominant(picture, product=False, most=most)) for most in (1, 3, 4, 6)] == [1, 3, 4, 4]


def test_hundreds_of_small_shares_still_have_an_answer() -> None:
    rng = np.random.default_rng(1)
    told = dominant(rng.integers(0, 256, (128, 128, 3), np.uint8), product=False, most=200)
    assert told
    assert sum(colour.share for colour in told) == pytest.approx(1)


def test_a_red_object_on_white_is_red() -> None:
    picture = plain(WHITE)
    picture[40:90, 30:80] = RED
    assert dominant(picture, product=True) == [Colour(RED, 1.0)]
    assert [colour.rgb for colour in dominant(picture, product=False)] == [WHITE, RED]


def test_the_blurred_edge_of_an_object_is_no_colour_of_it() -> None:
    picture = plain(WHITE)
    picture[39:91, 29:81] = (228, 138, 143)
    picture[40:90, 30:80] = RED
    assert dominant(noisy(picture, 3), product=True)[0].share == 1


def test_what_the_object_encloses_belongs_to_it() -> None:
    picture = plain(WHITE)
    picture[20:100, 20:100] = RED
    picture[40:80, 40:80] = WHITE
    assert {colour.rgb for colour in dominant(picture, product=True)} == {RED, WHITE}
    picture[40:80, 80:] = WHITE
    assert {colour.rgb for colour in dominant(picture, product=True)} == {RED}


def test_an_object_may_touch_the_border() -> None:
    picture = plain(WHITE)
    picture[60:, 30:80] = BLUE
    assert [colour.rgb for colour in dominant(picture, product=True)] == [BLUE]


def test_thin_things_and_specks() -> None:
    picture = plain(WHITE)
    picture[64:66] = BLUE  # all of it is edge
    assert [colour.rgb for colour in dominant(picture, product=True)] == [BLUE]
    speck = plain(WHITE)
    speck[64:68, 64:68] = BLUE
    assert [colour.rgb for colour in dominant(speck, product=True)] == [WHITE]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 3)])
@pytest.mark.parametrize("product", [False, True])
def test_pictures_of_a_few_pixels(shape: tuple[int, int], product: bool) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    assert sum(colour.share for colour in dominant(picture, product=product)) == pytest.approx(1)


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.booleans(), st.integers(1, 8))
def test_whatever_the_picture(seed: int, colours: int, product: bool, most: int) -> None:
    picture = random_picture(seed, colours)
    told = dominant(picture, product=product, most=most)
    shares = [colour.share for colour in told]
    assert 1 <= len(told) <= most
    assert sum(shares) == pytest.approx(1, abs=1e-9)
    assert shares == sorted(shares, reverse=True)
    assert all(0.02 <= share <= 1 for share in shares)
    lows, highs = picture.min(axis=(0, 1)), picture.max(axis=(0, 1))
    assert all((lows <= colour.rgb).all() and (colour.rgb <= highs).all() for colour in told)
    assert dominant(picture.copy(), product=product, most=most) == told


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_where_the_pixels_lie_does_not_matter(seed: int, colours: int) -> None:
    picture = random_picture(seed, colours)
    shuffled = np.random.default_rng(seed).permutation(picture.reshape(-1, 3)).reshape(picture.shape)
    assert dominant(shuffled, product=False) == dominant(picture, product=False)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0.4, 0.8))
def test_the_background_is_what_a_walk_from_the_border_reaches(seed: int, density: float) -> None:
    """Against a flood fill written as a walk, on labyrinths around the density where they are longest."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 30, 2)
    white = rng.random((height, width)) < density
    white[0] = white[-1] = white[:, 0] = white[:, -1] = True
    picture = np.where(white[..., None], np.array(WHITE), np.array(BLUE)).astype(np.uint8)
    reached = walked(white)
    padded = np.pad(reached, 1)
    near = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    enough = (left for left in (~(reached | near), ~reached) if left.mean() >= 0.01)
    left = next(enough, np.ones_like(white))
    counts = {WHITE: int((left & white).sum()), BLUE: int((left & ~white).sum())}
    told = {rgb: count for rgb, count in counts.items() if count >= 0.02 * sum(counts.values())}
    expected = {rgb: count / sum(told.values()) for rgb, count in told.items()}
    assert {colour.rgb: colour.share for colour in dominant(picture, product=True)} == pytest.approx(expected)


def walked(white: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    height, width = white.shape
    reached = np.zeros_like(white)
    waiting = [(0, 0)]
    while waiting:
        row, column = waiting.pop()
        if 0 <= row < height and 0 <= column < width and white[row, column] and not reached[row, column]:
            reached[row, column] = True
            waiting += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
    return reached


def labyrinth() -> Picture:
    """A white corridor that winds from the border inwards, one pixel wide and 7,750 long."""
    picture = plain(WHITE)
    picture[1:-1, 1:-1] = BLUE
    picture[2:-2:2, 2:-2] = WHITE
    picture[3:-3:4, -3] = WHITE
    picture[1:-3:4, 2] = WHITE
    return picture


def test_no_picture_is_slow() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (128, 128, 3), np.uint8)
    assert [colour.rgb for colour in dominant(labyrinth(), product=True)] == [BLUE]
    for picture in (noise, labyrinth(), np.swapaxes(labyrinth(), 0, 1)):
        for product in (False, True):
            began = time.process_time()
            for _ in range(5):
                dominant(picture, product=product)
            # 0.5 to 5 ms each where it was written; grown pixel by pixel, the labyrinth takes 75 to 100.
            assert time.process_time() - began < 5 * 0.040


def test_the_names_are_those_of_css() -> None:
    """Pillow has the same table: each of its colours is called by a name of that value."""
    for css in ImageColor.colormap:
        rgb = ImageColor.getrgb(css)[:3]
        assert ImageColor.getrgb(name((rgb[0], rgb[1], rgb[2])))[:3] == rgb


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        ((254, 1, 2), "red"),
        ((3, 2, 4), "black"),
        ((255, 249, 249), "snow"),
        ((127, 128, 129), "gray"),
        ((0, 255, 255), "cyan"),
        ((255, 0, 255), "magenta"),
    ],
)
def test_the_nearest_name(rgb: Rgb, expected: str) -> None:
    assert name(rgb) == expected
