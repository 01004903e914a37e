"""From the bytes of one image to the pixels that a model sees, or to the file that may be kept of it.

Runs in the decoder processes. The only module that knows Pillow. It never touches numpy: a decoder process
starts in half the time without.
"""

import base64
import io
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from math import ceil, floor

import msgspec
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageChops,
    ImageCms,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

try:
    import pi_heif
except ImportError:  # the extra "heic" is not installed
    pi_heif = None

from appliance.errors import InvalidImage, TooLarge
from appliance.recognition.ingest import (
    Encoded,
    Format,
    Ingested,
    is_animated_webp,
    strip_jpeg,
    strip_png,
    strip_webp,
)
from appliance.recognition.preprocessing import Preprocessing, window

# Imported plugins are the only ones there are: Pillow looks for no others, on no input.
PLUGINS = (
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
if pi_heif is not None:
    pi_heif.register_heif_opener(thumbnails=False, decode_threads=1)
    FORMATS += ("HEIF",)
ORIENTATION = 0x0112
# Of TIFF (6.0, section 8): how many bits a sample has, whether zero is white, and how the samples lie.
BITS, PHOTOMETRIC, PLANAR = 258, 262, 284
WHITE_IS_ZERO, SEPARATE = 0, 2
NEGATIVE = "appliance: negative"  # in an image's info: its sixteen bits count from white
# EXIF orientation -> how the stored picture becomes upright (Exif 2.32, 4.6.4 A).
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDES_SWAPPED, X_MIRRORED, Y_MIRRORED = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)
RESAMPLE = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos")}
# What a header promises bounds what an image may cost, before it is decoded. Every scan of a JPEG passes
# over all of its pixels: programs write 10 (libjpeg's progression), optimisers up to 16, and of small images
# there may be more. A segment holds 64 KB, so that 64 MiB full of them are 1,024, and 100 scans bring tables.
MAX_SCANS, FULL_SCANS, MAX_SEGMENTS = 100, 16, 2048
MAX_FILL = 1 << 16  # bytes between segments, which Pillow reads one by one; programs write none, or a few
# libpng writes chunks of 8 KB (PNG_ZBUF_SIZE), of which 64 MiB hold 8,192; some write one for each row.
MAX_CHUNKS = 20_000
LARGE = 500_000  # pixels; smaller ones take some milliseconds whatever they are
# JPEG's markers (ITU-T T.81, table B.1). In front of a scan all that has no length is fill; behind one begins
# are coded bytes, in which only what is neither stuffed nor a restart is a marker.
JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
# Pillow takes them for markers without a length, until the first scan; libjpeg takes no image that has them.
NO_SEGMENTS = frozenset(
    marker & 0xFF for marker, (*_, read) in JpegImagePlugin.MARKER.items() if read is None
)
SEGMENT = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
GREY = (114, 114, 114)  # around a letterboxed image, as YOLO models were trained
# A JPEG is decoded at 1/2, 1/4 or 1/8 when that leaves both sides at least this much above the target: six
# times cheaper at 12 megapixels, for a mean error below one level of 255. At 1.125 the top label of one crop
# in 15 changed, of those that no model is sure of; at 1.5 of one in 70; of whole photographs none at either.
DRAFT_MARGIN = 1.5
STRIPS: dict[str, tuple[Format, Callable[[Encoded, int], bytes]]] = {
    "JPEG": ("jpeg", strip_jpeg),
    "PNG": ("png", strip_png),
    "WEBP": ("webp", strip_webp),
}
THUMBNAIL_SIDE, THUMBNAIL_QUALITY = 256, 85
# A photograph of 12 megapixels takes half the time of Pillow's default, and an eighth more room.
PNG_LEVEL = 1
# What Pillow raises on malformed files, beside its own UnidentifiedImageError (an OSError).
MALFORMED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    OverflowError,
    ZeroDivisionError,
    NotImplementedError,
    AssertionError,
    RuntimeError,  # of libheif, whose own limits are told this way
    struct.error,
)
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_SRGB_PROFILE = _SRGB.tobytes()
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class Decoded(msgspec.Struct, frozen=True):
    """`pixels`: RGB uint8 of the preprocessing's shape, C-contiguous; numpy.asarray takes it without a copy.

    `width` and `height` are those of the upright original, `format` is one of FORMATS.
    """

    pixels: memoryview
    width: int
    height: int
    format: str


def decode(
    data: Encoded,
    preprocessing: Preprocessing,
    *,
    max_pixels: int,
    max_side: int,
    when_slow: Callable[[], None] | None = None,
) -> Decoded:
    """The upright first frame as a model with this preprocessing sees it: RGB over white.

    The format is told by content. Bytes after the end of the image are ignored: cameras append video and gain
    maps. Sixteen bits become the upper eight; colours are converted to sRGB by the ICC profile, if there is a
    usable one. `when_slow` is called before the pixels of an image that may take long: it is over LARGE, or
    comes in passes, of which there may be thousands. Raises InvalidImage for what is not a whole image of
    FORMATS, TooLarge beyond the limits; no message quotes it.
    """
    with _opened(bytes(data), max_pixels, max_side) as image:
        if when_slow is not None and _is_slow(image):
            when_slow()
        return _decode(image, preprocessing)


def ingest(data: Encoded, *, keep_metadata: bool, max_pixels: int, max_side: int) -> Ingested:
    """The image as it may be kept, without its metadata, and its thumbnail; proven by decoding it once.

    JPEG, PNG and WebP keep their pixels byte for byte (see `appliance.recognition.ingest`) or, with
    `keep_metadata`, are kept as they are. Other formats and animated WebP become a PNG of their upright first
    frame in sRGB of eight bits, with its alpha: of their metadata nothing remains, whatever was asked. The
    thumbnail is an upright JPEG in sRGB, over white, its longer side at most THUMBNAIL_SIDE; smaller images
    are not enlarged. Raises what `decode` does, and InvalidImage where the file is cut off or damaged, though
    not in its pixels.
    """
    whole = bytes(data)
    with _opened(whole, max_pixels, max_side) as image:
        if image.format not in ("JPEG", "MPO"):
            # Only then does every format know which way is up. A JPEG does, and is read whole at reduced size
            # too, in half the time.
            _load(image)
        seen = _decode(image, _thumbnail(image))
        if seen.format not in STRIPS or (seen.format == "WEBP" and is_animated_webp(whole)):
            return Ingested(_as_png(image), _as_jpeg(seen), "png", seen.width, seen.height)
        kind, strip = STRIPS[seen.format]
        # Also where metadata stay: what is refused does not depend on it.
        stripped = strip(whole, _orientation(image))
        kept = whole if keep_metadata else stripped
        return Ingested(kept, _as_jpeg(seen), kind, seen.width, seen.height)


@contextmanager
def _opened(data: bytes, max_pixels: int, max_side: int) -> Iterator[Image.Image]:
    """The image before its pixels, within the limits; what Pillow raises becomes what `decode` raises."""
    if not data:
        raise InvalidImage("the image is empty (0 bytes)")
    Image.MAX_IMAGE_PIXELS = max_pixels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            scans = _count_parts(data)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image, max_pixels, max_side)
                if scans > MAX_SCANS or scans * image.width * image.height > FULL_SCANS * max_pixels:
                    raise InvalidImage(f"the image has {scans} scans, which is too many for its size")
                yield image
        except UnidentifiedImageError:
            raise InvalidImage(f"not an image of a known format ({', '.join(FORMATS)})") from None
        except BOMBS:
            raise TooLarge(f"the image has more than {max_pixels} pixels") from None
        except MemoryError:
            raise TooLarge("the image needs more memory than a decoder has") from None
        except MALFORMED:
            raise InvalidImage("the image is truncated or damaged") from None


def _count_parts(data: bytes) -> int:
    """The scans of a JPEG. Raises InvalidImage where a JPEG or PNG has far more parts than programs write.

    Pillow reads one part after the other, however small they are, when it opens a file.
    """
    if data.startswith(PNG):
        _check_chunks(data)
    if not data.startswith(JPEG):
        return 0
    segments = scans = fill = 0
    position = 2
    while position < len(data) and segments <= MAX_SEGMENTS and fill <= MAX_FILL:
        found = SEGMENT.search(data, position)
        begin, end = found.span() if found else (len(data), len(data))
        fill += 0 if scans else begin - position
        position = end
        if not found or (scans and data[begin + 1] == END_OF_IMAGE):
            break
        if data[begin + 1] in NO_SEGMENTS:
            fill += 2
        else:
            segments, scans = segments + 1, scans + (data[begin + 1] == START_OF_SCAN)
            position += max(2, int.from_bytes(data[end : end + 2]))
    if segments > MAX_SEGMENTS or fill > MAX_FILL:
        raise InvalidImage(f"the JPEG has over {MAX_SEGMENTS} segments, or {MAX_FILL} bytes between them")
    return scans


def _check_chunks(data: bytes) -> None:
    position = len(PNG)
    for _ in range(MAX_CHUNKS):
        if position >= len(data) or data.startswith(b"IEND", position + 4):
            return
        position += 12 + int.from_bytes(data[position : position + 4])
    raise InvalidImage(f"the PNG has more than {MAX_CHUNKS} chunks")


def _is_slow(image: Image.Image) -> bool:
    return image.width * image.height > LARGE or "progressive" in image.info


def _check_size(image: Image.Image, max_pixels: int, max_side: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise InvalidImage(f"the image has no pixels ({width} x {height})")
    if width > max_side or height > max_side or width * height > max_pixels:
        raise TooLarge(
            f"the image has {width} x {height} pixels; the limit is {max_pixels} pixels and {max_side} a side"
        )


def _decode(image: Image.Image, preprocessing: Preprocessing) -> Decoded:
    width, height = image.size
    scale = _draft(image, preprocessing) if preprocessing.scaled else 1.0
    _load(image)
    name = "JPEG" if image.format == "MPO" else str(image.format)
    if (orientation := _orientation(image)) in UPRIGHT:
        # Before resampling, which rounds between its horizontal and its vertical pass.
        image = image.transpose(UPRIGHT[orientation])
        if orientation in SIDES_SWAPPED:
            width, height = height, width
    seen = window(preprocessing, width, height)
    left, top, right, bottom = (side / scale for side in seen.source)
    # Scaled decoding rounds sides up; mirrored, the part of a pixel that is not picture comes first.
    if orientation in X_MIRRORED:
        left, right = (side + image.width - width / scale for side in (left, right))
    if orientation in Y_MIRRORED:
        top, bottom = (side + image.height - height / scale for side in (top, bottom))
    part = image
    box = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
    if preprocessing.fit != "stretch":
        # Cropped before it is resampled: nothing outside may shine in.
        x, y = floor(left), floor(top)
        part = image.crop((x, y, min(ceil(right), image.width), min(ceil(bottom), image.height)))
        box = (left - x, top - y, min(right - x, part.width), min(bottom - y, part.height))
    target = (seen.target[2] - seen.target[0], seen.target[3] - seen.target[1])
    profile = image.info.get("icc_profile")
    part = _eight_bits(part).resize(target, RESAMPLE[preprocessing.resample], box)
    if isinstance(profile, bytes):
        part = _in_srgb(part, profile)
    if part.mode == "RGBA":
        part = Image.alpha_composite(Image.new("RGBA", part.size, "white"), part)
    part = part.convert("RGB")
    if target != (preprocessing.width, preprocessing.height):
        whole = Image.new("RGB", (preprocessing.width, preprocessing.height), GREY)
        whole.paste(part, seen.target)
        part = whole
    pixels = memoryview(part.tobytes()).cast("B", preprocessing.shape)
    return Decoded(pixels, width, height, name)


def _load(image: Image.Image) -> None:
    announced = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile) and _is_misread(image):
        raise InvalidImage("uncompressed TIFFs with separate planes of 16 bits are not decoded")
    image.load()
    # Pillow turns around what counts from white, with this one exception. Said of every image: a file may
    # bring words of its own for the info.
    image.info[NEGATIVE] = (
        isinstance(image, TiffImagePlugin.TiffImageFile)
        and image.tag_v2.get(PHOTOMETRIC, WHITE_IS_ZERO) == WHITE_IS_ZERO
    )
    if image.format == "HEIF" and image.size != announced:
        # The container was held to the limits, and the picture in it has a size of its own.
        raise InvalidImage("the image is not of the size that its file says")


def _is_misread(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether Pillow itself, and not libtiff, would read planes of 16 bits: it takes halves for samples."""
    tags = image.tag_v2
    separate: bool = tags.get(PLANAR, 1) == SEPARATE and max(tags.get(BITS, (1,))) > 8
    return separate and any(tile.codec_name == "raw" for tile in image.tile)


def _thumbnail(image: Image.Image) -> Preprocessing:
    """How the whole of an image is seen in the size of its thumbnail."""
    width, height = image.size
    if _orientation(image) in SIDES_SWAPPED:
        width, height = height, width
    scale = min(1.0, THUMBNAIL_SIDE / max(width, height))
    return Preprocessing(size=(max(1, round(height * scale)), max(1, round(width * scale))), fit="stretch")


def _as_jpeg(seen: Decoded) -> bytes:
    """A thumbnail's pixels as a file."""
    height, width, _ = seen.pixels.shape or ()
    file = io.BytesIO()
    picture = Image.frombytes("RGB", (width, height), seen.pixels.tobytes())
    picture.save(file, "JPEG", quality=THUMBNAIL_QUALITY)
    return file.getvalue()


def _as_png(image: Image.Image) -> bytes:
    """The whole upright picture in sRGB, with its alpha and without its metadata."""
    profile = image.info.get("icc_profile")
    if (orientation := _orientation(image)) in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    image = _eight_bits(image)
    if isinstance(profile, bytes):
        image = _in_srgb(image, profile)
    if image.mode == "CMYK":
        image = image.convert("RGB")
    file = io.BytesIO()
    # Pillow writes the profile that the picture came with unless it is told of none.
    image.save(file, "PNG", compress_level=PNG_LEVEL, icc_profile=None)
    return file.getvalue()


def _draft(image: Image.Image, preprocessing: Preprocessing) -> float:
    """Have a JPEG decoded no larger than needed; returns how much smaller it will be."""
    if image.format not in ("JPEG", "MPO"):
        return 1.0
    width, height = image.size
    swapped = _orientation(image) in SIDES_SWAPPED
    upright = (height, width) if swapped else (width, height)
    across, down = window(preprocessing, *upright).scale
    least = (int(upright[0] / across * DRAFT_MARGIN), int(upright[1] / down * DRAFT_MARGIN))
    drafted = image.draft("RGB", (least[1], least[0]) if swapped else least)
    return width / drafted[1][2] if drafted else 1.0


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 when none is valid; damaged metadata does not make a damaged picture."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except MALFORMED:
        return 1
    return value if isinstance(value, int) and value in UPRIGHT else 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image in a mode that resamples like RGB: L, RGB, or RGBA when anything may be transparent."""
    if image.mode.startswith("I;16"):
        # Before transparency: converted to RGBA, sixteen bits would be cut off at 255.
        return _upper_eight(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return image.convert("RGBA")
    if image.mode in ("I", "F"):
        raise InvalidImage("images with 32 bits a sample have no defined white and are not decoded")
    if image.mode in ("L", "1"):
        return image.convert("L")
    # Inks are mixed by their profile, and that comes last: it costs less on the small picture.
    return image if image.mode == "CMYK" and image.info.get("icc_profile") else image.convert("RGB")


def _upper_eight(image: Image.Image) -> Image.Image:
    """Grey of sixteen bits as L, or as RGBA where one of its levels means nothing (PNG's tRNS)."""
    levels = image.convert("I")
    grey = levels.point(lambda value: value * (1 / 256)).convert("L")
    if image.info.get(NEGATIVE):
        return ImageChops.invert(grey)
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return grey
    seen = grey.convert("RGBA")
    seen.putalpha(levels.point([255 * (level != transparent) for level in range(1 << 16)], "L"))
    return seen


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """The colours that its ICC profile means, in sRGB; a profile that does not fit the picture is ignored."""
    colours, alpha = (image.convert("RGB"), image.getchannel("A")) if image.mode == "RGBA" else (image, None)
    try:
        seen = ImageCms.applyTransform(colours, _to_srgb(profile, colours.mode))
    except (*MALFORMED, ImageCms.PyCMSError):
        return image
    assert seen is not None
    if alpha is not None:
        seen.putalpha(alpha)
    return seen


@lru_cache(maxsize=8)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    """Cameras and programs have few profiles, and reading one costs as much as applying it."""
    given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.buildTransform(given, _SRGB, mode, "RGB")


# 16 x 16 red pixels: nothing here writes HEIC.
_HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ACJpbG9jAAAAAERAAAEAAQAAAAABoAABAAAAAAAAACoAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRt"
    "AAAAAAABAAAA/GlwcnAAAADcaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMA"
    "AAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNs"
    "eAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAEAAAAAEAAAAQAAAAAf///9AAAAAC////0AAAAAIAAAAQcGl4"
    "aQAAAAADCAgIAAAAGGlwbWEAAAAAAAAAAQABBYECAwWEAAAAMm1kYXQAAAAmKAGvGSFeQkDvXaW//3x8/zqV/iFbfKZKppcE14iZ"
    "CwOBgI2RnTg="
)


def warm_up() -> None:
    """Decode and ingest one small picture of every kind, so that what Pillow imports late is there."""
    pictures = [_HEIC] if "HEIF" in FORMATS else []
    for form, mode in (
        *((form, "RGB") for form in FORMATS if form != "HEIF"),
        ("JPEG", "CMYK"),
        ("PNG", "LA"),
        ("PNG", "I;16"),
    ):
        picture = io.BytesIO()
        options = {"exif": Image.Exif(), "progressive": True} if form == "JPEG" else {}
        Image.new(mode, (16, 16)).save(picture, form, icc_profile=_SRGB_PROFILE, **options)
        pictures.append(picture.getvalue())
    for data in pictures:
        decode(data, Preprocessing(size=16), max_pixels=4096, max_side=64)
        ingest(data, keep_metadata=False, max_pixels=4096, max_side=64)
