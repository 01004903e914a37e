"""Photos to insert: those of a folder, or crops of photographs that scikit-image and scikit-learn ship."""

import importlib.util
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})

# Package, file, width, height. The sizes stand here so that the ids are known without opening a picture.
PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png", 512, 512),
    "camera": ("skimage", "data/camera.png", 512, 512),
    "chelsea": ("skimage", "data/chelsea.png", 451, 300),
    "coffee": ("skimage", "data/coffee.png", 600, 400),
    "coins": ("skimage", "data/coins.png", 384, 303),
    "motorcycle": ("skimage", "data/motorcycle_left.png", 741, 500),
    "rocket": ("skimage", "data/rocket.jpg", 640, 427),
    "china": ("sklearn", "datasets/images/china.jpg", 640, 427),
    "flower": ("sklearn", "datasets/images/flower.jpg", 640, 427),
}


@dataclass(frozen=True)
class Photo:
    """One photo to insert: its `_id`, the metadata kept with it, and how to get its encoded bytes."""

    id: str
    read: Callable[[], bytes]
    metadata: dict[str, str] = field(default_factory=dict)


def of_folder(folder: Path) -> Iterator[Photo]:
    """Every file below `folder` with a common image suffix, sorted; the `_id` is the relative path."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix.lower() in SUFFIXES and path.is_file():
                relative = os.fsencode(path.relative_to(folder).as_posix())
                yield Photo(relative.decode("utf-8", "replace"), path.read_bytes)


def file_of(name: str) -> Path:
    """The file of a shipped photograph, found without importing the package that carries it."""
    package, inside, *_ = PHOTOGRAPHS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"{package} is not installed; it carries the demo's photographs")
    return Path(spec.submodule_search_locations[0], inside)


def crops(side: int = 128, stride: int = 100) -> Iterator[Photo]:
    """Square JPEG crops of the shipped photographs, `side` pixels wide, `NAME/LEFT-TOP.jpg` their `_id`."""
    for name, (_, _, width, height) in PHOTOGRAPHS.items():
        for top in range(0, height - side + 1, stride):
            for left in range(0, width - side + 1, stride):
                box = (left, top, left + side, top + side)
                yield Photo(f"{name}/{left}-{top}.jpg", _Crop(name, box), {"picture": name})


@dataclass(frozen=True)
class _Crop:
    name: str
    box: tuple[int, int, int, int]

    def __call__(self) -> bytes:
        encoded = io.BytesIO()
        with Image.open(file_of(self.name)) as picture:
            picture.convert("RGB").crop(self.box).save(encoded, "JPEG", quality=92)
        return encoded.getvalue()
