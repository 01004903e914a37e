"""The formats of datasets by their names, and what the names of files tell of them."""

import posixpath
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Literal

from appliance.datasets.interchange.annotated import Format
from appliance.datasets.interchange.coco import Coco
from appliance.datasets.interchange.image_folder import ImageFolder
from appliance.datasets.interchange.names import is_left_by_systems
from appliance.datasets.interchange.table import Csv
from appliance.datasets.interchange.yolo import Yolo
from appliance.errors import InvalidInput

FORMATS: Mapping[str, Format] = MappingProxyType(
    {"imagefolder": ImageFolder(), "coco": Coco(), "yolo": Yolo(), "csv": Csv()}
)

LEFT_OUT = "LEFT_OUT.csv"
"""The file of an export that names the damaged images which are not in it."""

_IMAGES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"}
    | {".heic", ".heif", ".avif", ".jp2"}
)


def kind_of(
    name: str, formats: Collection[Format] = FORMATS.values()
) -> Literal["image", "annotation", "other"]:
    """What a file is by its name; what systems leave in folders, and exports beside images, is "other"."""
    if name == LEFT_OUT or any(map(is_left_by_systems, name.split("/"))):
        return "other"
    if posixpath.splitext(name)[1].lower() in _IMAGES:
        return "image"
    return "annotation" if any(one.describes(name) for one in formats) else "other"


def detect(paths: Iterable[str]) -> str:
    """The name of the format of a tree by the paths of all its files, images among them.

    Raises InvalidInput where nothing is found, and where both COCO and YOLO are.
    """
    images = False
    found = dict[str, str]()  # by format, a file that speaks for it
    for path in paths:
        kind = kind_of(path)
        images = images or kind == "image"
        if kind == "annotation" and (name := _spoken_for(path.lower().split("/"))) is not None:
            found.setdefault(name, path)
    if {"coco", "yolo"} <= found.keys():
        raise InvalidInput(f"{found['coco']} is of coco, {found['yolo']} of yolo: say which format is meant")
    for name in ("coco", "yolo", "imagefolder", "csv"):
        if name in found:
            return name
    if images:
        return "imagefolder"
    raise InvalidInput(
        "no known format: .json files (coco), labels/*.txt or names of classes (yolo), .csv files (csv), or"
        " images in folders (imagefolder) are expected"
    )


def _spoken_for(parts: list[str]) -> str | None:
    """The format that has files like this one."""
    *folders, name = parts
    if FORMATS["imagefolder"].describes(name):
        return "imagefolder"
    if FORMATS["coco"].describes(name):
        return "coco"
    if (name.endswith(".txt") and "labels" in folders) or name in {"classes.txt", "obj.names", "data.yaml"}:
        return "yolo"
    if FORMATS["csv"].describes(name):
        return "csv"
    return None
