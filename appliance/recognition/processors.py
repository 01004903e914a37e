"""What Hugging Face's image processors do to an image, read from their settings.

Every kind of processor resizes in its own way and has defaults of its own. Both are written down here, as in
transformers 4.57, for the kinds that classifiers of whole images come with; another kind is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from appliance.errors import InvalidInput
from appliance.recognition.graphs import Scaling
from appliance.recognition.preprocessing import Preprocessing, checked

SETTINGS = "preprocessor_config.json"

# Pillow's numbers, as the files have them.
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_NEAREST, _BILINEAR, _BICUBIC = 0, 2, 3
# Steps that no bundle has.
_UNKNOWN_STEPS = ("do_pad", "do_reduce_labels", "do_thumbnail", "rescale_offset")
# Beyond these a float of the graph has nothing left of 8 bits, or is none.
_SMALLEST, _LARGEST = 1e-6, 1e6

_Side = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
_Size = _Side | dict[str, _Side]
_Colour = tuple[float, float, float]


class _Settings(msgspec.Struct, frozen=True):
    """preprocessor_config.json, with the defaults of its kind for what it leaves out."""

    size: _Size
    resample: int
    do_center_crop: bool
    image_mean: _Colour = (0.0, 0.0, 0.0)
    image_std: _Colour = (1.0, 1.0, 1.0)
    crop_size: _Size | None = None
    crop_pct: float = 1.0
    rescale_factor: float = 1 / 255
    do_resize: bool = True
    do_rescale: bool = True
    do_normalize: bool = True
    do_flip_channel_order: bool = False
    include_top: bool = False


@dataclass(frozen=True)
class _Kind:
    """`models` are the kinds of model that have this processor where the settings do not name it.

    `square` says that a whole number as `size` means both sides, and not the shorter one. What `defaults`
    leave out the settings must say: versions of the processor differ there.
    """

    models: str
    defaults: Mapping[str, Any]
    square: bool = False
    crops: bool = True


_STANDARD = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
_IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
_CLIP = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}


def _cropped(size: int, crop: int, resample: int) -> dict[str, Any]:
    return {"size": size, "crop_size": crop, "do_center_crop": True, "resample": resample}


def _whole(size: int | dict[str, int], resample: int) -> dict[str, Any]:
    return {"size": size, "do_center_crop": False, "resample": resample}


_KINDS = {
    "Beit": _Kind("beit data2vec-vision", {"crop_size": 224, "resample": _BICUBIC} | _STANDARD, square=True),
    "Bit": _Kind("bit dinov2 focalnet hiera", _cropped(224, 224, _BICUBIC) | _CLIP),
    "CLIP": _Kind("clip", _cropped(224, 224, _BICUBIC) | _CLIP),
    "ConvNext": _Kind(
        "convnext convnextv2 cvt regnet resnet van",
        _whole(384, _BILINEAR) | {"crop_pct": 224 / 256} | _STANDARD,
        crops=False,
    ),
    "DeiT": _Kind("deit", _cropped(256, 224, _BICUBIC) | _STANDARD, square=True),
    "EfficientFormer": _Kind("efficientformer", _cropped(224, 224, _BICUBIC) | _IMAGENET, square=True),
    "EfficientNet": _Kind(
        "efficientnet",
        _whole(346, _NEAREST) | {"crop_size": 289, "include_top": True} | _STANDARD,
        square=True,
    ),
    "Levit": _Kind("levit", _cropped(224, 224, _BICUBIC) | _IMAGENET),
    "MobileNetV1": _Kind("mobilenet_v1", _cropped(256, 224, _BILINEAR) | _STANDARD),
    "MobileNetV2": _Kind("mobilenet_v2", _cropped(256, 224, _BILINEAR) | _STANDARD),
    "MobileViT": _Kind(
        "mobilevit mobilevitv2", _cropped(224, 256, _BILINEAR) | {"do_flip_channel_order": True}
    ),
    "PoolFormer": _Kind("poolformer", _cropped(224, 224, _BICUBIC) | {"crop_pct": 0.9} | _IMAGENET),
    "Pvt": _Kind("pvt pvt_v2", _whole(224, _BILINEAR) | _IMAGENET, square=True, crops=False),
    "Segformer": _Kind("segformer", _whole(512, _BILINEAR) | _IMAGENET, square=True, crops=False),
    "Siglip": _Kind(
        "siglip",
        _whole({"height": 224, "width": 224}, _BICUBIC) | _STANDARD,
        crops=False,
    ),
    "ViT": _Kind(
        "dinat ijepa nat swiftformer swin swinv2 vit vit_msn",
        _whole(224, _BILINEAR) | _STANDARD,
        square=True,
        crops=False,
    ),
    "ViTHybrid": _Kind("vit_hybrid", _cropped(224, 224, _BICUBIC) | _CLIP),
}
# Settings that change nothing but with these kinds.
_ONLY_OF = {
    "crop_pct": ("ConvNext", "PoolFormer"),
    "do_flip_channel_order": ("MobileViT",),
    "include_top": ("EfficientNet",),
}
_WARPED = 384  # ConvNeXT's images of this size and more are not cropped


def understand(settings: Mapping[str, Any], model_type: str) -> tuple[Preprocessing, Scaling]:
    """How a processor with these settings resizes an image, and what it then does to the pixels.

    `model_type`, of config.json, says which processor it is where its settings do not. Raises InvalidInput
    naming the setting that is not understood, or the kind.
    """
    name = _name(settings, model_type)
    try:
        given = _given(name, settings)
        return _preprocessing(name, given), _scaling(name, given)
    except InvalidInput as refusal:
        raise InvalidInput(f"{SETTINGS}: {refusal}") from refusal


def _name(settings: Mapping[str, Any], model_type: str) -> str:
    called = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    if called is None:
        name = next((name for name, kind in _KINDS.items() if model_type in kind.models.split()), None)
        called = f"the processor of a model of type {model_type[:50]!r}"
    else:
        short = str(called).removesuffix("Fast")
        name = short.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
        called = repr(str(called)[:100])
    if name not in _KINDS:
        raise InvalidInput(
            f"{SETTINGS}: how {called} resizes is not known: write a bundle.toml and install that"
        )
    return name


def _given(name: str, settings: Mapping[str, Any]) -> _Settings:
    kind = _KINDS[name]
    said = {key: value for key, value in settings.items() if value is not None}
    for step in _UNKNOWN_STEPS:
        if said.get(step):
            raise InvalidInput(f"{step} is not understood")
    for setting, names in _ONLY_OF.items():
        if said.get(setting) and name not in names:
            raise InvalidInput(f"{setting} is not understood but of {' and '.join(names)}")
    try:
        given = msgspec.convert({**kind.defaults, **said}, _Settings)
    except msgspec.ValidationError as error:
        raise InvalidInput(str(error)) from error
    if given.do_center_crop and not kind.crops:
        raise InvalidInput(f"do_center_crop is not understood of {name}")
    if not 0.1 <= given.crop_pct <= 1:
        raise InvalidInput("crop_pct: a number from 0.1 to 1 is expected")
    if name in _ONLY_OF["crop_pct"] and _shorter(name, given.size) is None:
        raise InvalidInput(f"size: a shortest_edge is expected of {name}")
    return given


def _preprocessing(name: str, given: _Settings) -> Preprocessing:
    """Whole sides are stretched, a shorter side is scaled to; a central crop may follow both."""
    if not given.do_resize:
        raise InvalidInput("do_resize: images of every size must become the model's")
    if given.resample not in _RESAMPLE:
        raise InvalidInput(f"resample: {given.resample} is not understood")
    shorter = _shorter(name, given.size)
    crop = _sides(given.crop_size) if given.do_center_crop else None
    if shorter is None:
        fields = _stretch(_sides(given.size), crop)
    elif name == "ConvNext" and shorter >= _WARPED:
        fields = _stretch((shorter, shorter), None)
    elif name == "ConvNext":
        fields = _crop(int(shorter / given.crop_pct), (shorter, shorter))
    elif name == "PoolFormer":
        fields = _crop(int(shorter / given.crop_pct), crop)
    elif name == "Levit":
        fields = _crop(int((256 / 224) * shorter), crop)
    else:
        fields = _crop(shorter, crop)
    return checked(fields | {"resample": _RESAMPLE[given.resample]})


def _shorter(name: str, size: int | dict[str, int]) -> int | None:
    """What the shorter side of an image is scaled to, None where both sides are said."""
    if isinstance(size, int):
        return None if _KINDS[name].square else size
    return size["shortest_edge"] if size.keys() == {"shortest_edge"} else None


def _sides(size: int | Mapping[str, int] | None) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if size is None or size.keys() != {"height", "width"}:
        raise InvalidInput("a height and a width are expected")
    return size["height"], size["width"]


def _crop(shorter: int, crop: tuple[int, int] | None) -> dict[str, object]:
    if crop is None or not crop[0] == crop[1] <= shorter:
        raise InvalidInput(_NO_ONE_SIZE)
    return {"size": crop[0], "fit": "crop", "share": crop[0] / shorter}


def _stretch(sides: tuple[int, int], crop: tuple[int, int] | None) -> dict[str, object]:
    if crop in (None, sides):
        return {"size": list(sides), "fit": "stretch"}
    if not _is_central(crop, sides):
        raise InvalidInput(_NO_ONE_SIZE)
    return {"size": list(crop), "fit": "stretch", "share": crop[0] / sides[0]}


_NO_ONE_SIZE = "size and crop_size together give no input of one size"


def _is_central(crop: tuple[int, int], sides: tuple[int, int]) -> bool:
    """Whether one share of both sides is this crop, to the pixel: an odd margin is cut off unevenly."""
    within = all(part <= whole and (whole - part) % 2 == 0 for part, whole in zip(crop, sides, strict=True))
    return within and crop[0] * sides[1] == crop[1] * sides[0]


def _scaling(name: str, given: _Settings) -> Scaling:
    if not all(abs(mean) <= _LARGEST for mean in given.image_mean):
        raise InvalidInput("image_mean: finite numbers are expected")
    for setting, values in (("image_std", given.image_std), ("rescale_factor", (given.rescale_factor,))):
        if not all(_SMALLEST <= value <= _LARGEST for value in values):
            raise InvalidInput(f"{setting}: finite numbers above zero are expected")
    factor = given.rescale_factor if given.do_rescale else 1.0
    # MobileViT's applies neither mean nor deviation, whatever its settings say.
    normalised = given.do_normalize and name != "MobileViT"
    mean = given.image_mean if normalised else (0.0, 0.0, 0.0)
    deviation = given.image_std if normalised else (1.0, 1.0, 1.0)
    again = given.image_std if given.include_top else (1.0, 1.0, 1.0)
    red, green, blue = (
        (factor / one / more, -middle / one / more)
        for middle, one, more in zip(mean, deviation, again, strict=True)
    )
    return Scaling((red[0], green[0], blue[0]), (red[1], green[1], blue[1]), given.do_flip_channel_order)
