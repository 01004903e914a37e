"""The formats of datasets by their names, and which of them a tree of files has."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from appliance.datasets.interchange.annotated import Format
from appliance.datasets.interchange.coco import Coco
from appliance.datasets.interchange.image_folder import ImageFolder
from appliance.datasets.interchange.table import Csv
from appliance.datasets.interchange.yolo import Yolo
from appliance.errors import InvalidInput

FORMATS: Mapping[str, Format] = MappingProxyType(
    {"imagefolder": ImageFolder(), "coco": Coco(), "yolo": Yolo(), "csv": Csv()}
)

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic", ".heif", ".jfif")


def detect(paths: Iterable[str]) -> str:
    """The name of the format of a tree by the paths of all its files, images among them.

    Raises InvalidInput where nothing is found, and where both COCO and YOLO are.
    """
    images = False
    found = dict[str, str]()  # by format, a file that speaks for it
    for path in paths:
        parts = path.lower().split("/")
        if any(part.startswith(".") or part == "__macosx" for part in parts):
            continue
        images = images or path.lower().endswith(_IMAGES)
        if (name := _spoken_for(parts)) is not None:
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
