"""Models as other tools leave them, made into bundles: a Hugging Face export, a YOLO detector.

Nothing of the maker's code is run: what it does to an image is read from its settings and becomes the
bundle's preprocessing and part of the graph. A setting that is not understood is refused, never guessed.

All of it is a stranger's: `gather` looks for files and reads none, `convert` reads them and touches no disk.
"""

import ast
import hashlib
import json
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from appliance.errors import InvalidInput
from appliance.recognition import graphs, manifest, processors
from appliance.recognition.graphs import Scaling
from appliance.recognition.manifest import LABELS, LICENCES, MANIFEST, MODEL, Manifest, Source
from appliance.recognition.preprocessing import checked

CONFIG = "config.json"
_LICENCE = f"{LICENCES}/LICENCE.txt"
_LARGEST_SETTINGS = 16 * 1024 * 1024
_OVERLAP = 0.7  # of boxes of one class: the default of YOLO's own tools
_NO_LICENCE = "The folder that this model came in names no licence: ask its maker.\n"

Content = bytes | memoryview


class File(NamedTuple):
    """A file of an export: `name` is what `convert` knows it by, wherever it lies."""

    name: str
    path: Path
    size: int


class _Wanted(NamedTuple):
    name: str
    places: tuple[str, ...]
    largest: int
    needed: bool = True


_WANTED = (
    _Wanted(CONFIG, (CONFIG,), _LARGEST_SETTINGS),
    _Wanted(processors.SETTINGS, (processors.SETTINGS,), _LARGEST_SETTINGS),
    _Wanted(MODEL, (MODEL, f"onnx/{MODEL}"), manifest.limit(MODEL)),
    _Wanted(
        _LICENCE,
        ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt"),
        manifest.limit(_LICENCE),
        needed=False,
    ),
)


def gather(path: Path) -> list[File]:
    """What is read of an export: of a folder its settings, model and licence, else the ONNX file at `path`.

    Raises InvalidInput naming a file that is missing, too large, no plain file, or a link out of the folder,
    and OSError.
    """
    if path.suffix == ".onnx":
        return [_found(MODEL, path, manifest.limit(MODEL))]
    files = []
    for wanted in _WANTED:
        place = next((path / place for place in wanted.places if (path / place).is_file()), None)
        if place is not None:
            files.append(_found(wanted.name, _inside(path, place), wanted.largest))
        elif wanted.needed:
            raise InvalidInput(f"{wanted.places[0]} is missing")
    return files


def _inside(folder: Path, place: Path) -> Path:
    """Where a file of the folder lies: whoever made a link could have anything that its reader may read taken
    into the bundle. Hugging Face's own cache has snapshots of links to blobs beside them.
    """
    folder, target = folder.resolve(), place.resolve()
    of_cache = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else folder
    if not (target.is_relative_to(folder) or target.is_relative_to(of_cache)):
        raise InvalidInput(f"{place.name} is a link out of the folder: put the file itself there")
    return target


def _found(name: str, path: Path, largest: int) -> File:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise InvalidInput(f"{path.name} is not a plain file")
    if found.st_size > largest:
        raise InvalidInput(f"{path.name} has more than {largest} bytes")
    return File(name, path, found.st_size)


def bundle_name(path: Path, given: str | None = None) -> str:
    """What the bundle is called: as `given`, or as the export's folder or file is. Raises InvalidInput."""
    given = given or (path.stem if path.suffix == ".onnx" else path.resolve().name)
    name = re.sub(r"[^a-z0-9.-]+", "-", given.lower()).strip(".-")[:64].strip(".-")
    if not name:
        raise InvalidInput(f"--name: {given!r} has no letter or digit for a bundle's name")
    return name


def convert(name: str, files: Mapping[str, Content]) -> dict[str, bytes]:
    """The files of the bundle `name`, version 1, made of those that `gather` found. At its height it holds
    the model three times, beside what it is given.

    A model with its settings (`id2label`) and those of its preprocessor becomes a classifier, or a tagger
    where its labels exclude nothing; the ONNX file of a YOLO detector, with the metadata that its exporter
    writes, a detector. Raises InvalidInput with the reason of a refusal; the model that comes out is judged,
    as every other, before anything loads it.
    """
    return _classifier(name, files) if CONFIG in files else _detector(name, files[MODEL])


# Hugging Face.


def _classifier(name: str, files: Mapping[str, Content]) -> dict[str, bytes]:
    config = _settings(CONFIG, files)
    settings = _settings(processors.SETTINGS, files)
    preprocessing, scaling = processors.understand(settings, str(config.get("model_type", "")))
    model = graphs.parse(bytes(files[MODEL]))
    labels = _labels(config)
    exclusive = config.get("problem_type") != "multi_label_classification"
    if config.get("problem_type") == "regression" or (exclusive and len(labels) == 1):
        raise InvalidInput(f"{CONFIG}: a model that estimates a value instead of a label is not served")
    fixed = graphs.image_shape(model)
    for side, wanted, dimension in zip(
        fixed, (preprocessing.height, preprocessing.width), ("high", "wide"), strict=True
    ):
        if side not in (None, wanted):
            raise InvalidInput(
                f"{processors.SETTINGS} makes images {wanted} pixels {dimension}, the model takes {side}"
            )
    source = (
        "logits" if any(one.name == "logits" for one in model.graph.output) else model.graph.output[0].name
    )
    shape = graphs.output_shape(model, source)
    if len(shape) != 2 or shape[1] not in (None, len(labels)):
        raise InvalidInput(f"{len(labels)} labels in {CONFIG} for an output of {shape}")
    graphs.take_pixels(model, preprocessing.height, preprocessing.width, scaling)
    graphs.answer(model, source, "logits", (len(labels),))
    return _bundle(
        name,
        model.SerializeToString(),
        labels,
        kind="classifier" if exclusive else "tagger",
        preprocessing=preprocessing,
        outputs={"logits": (len(labels),)},
        origin=_origin(name, files[MODEL]),
        licence=bytes(files.get(_LICENCE, _NO_LICENCE.encode())),
    )


def _labels(config: Mapping[str, Any]) -> list[str]:
    names = config.get("id2label")
    if not isinstance(names, dict) or set(names) != {str(index) for index in range(len(names))} or not names:
        raise InvalidInput(f"{CONFIG}: id2label: a name for each class from 0 on is expected")
    return [_label(names[str(index)]) for index in range(len(names))]


def _label(name: object) -> str:
    text = "".join(character if character.isprintable() else " " for character in str(name))
    return text.strip()[: manifest.LONGEST_LABEL].strip() or "(no name)"


# YOLO.


def _detector(name: str, original: Content) -> dict[str, bytes]:
    model = graphs.parse(bytes(original))
    told = {entry.key: entry.value for entry in model.metadata_props}
    labels = _class_names(told.get("names", ""))
    if told.get("task", "detect") != "detect":
        raise InvalidInput(f"its task is {told['task'][:50]}; detect is expected")
    height, width = graphs.image_shape(model)
    if height is None or width is None:
        height, width = _image_size(told.get("imgsz", ""))
    source = model.graph.output[0].name
    preprocessing = checked({"size": [height, width], "fit": "letterbox", "resample": "bilinear"})
    graphs.take_pixels(model, height, width, Scaling((1 / 255, 1 / 255, 1 / 255), (0.0, 0.0, 0.0)))
    kept = graphs.answer_boxes(model, source, len(labels))
    return _bundle(
        name,
        model.SerializeToString(),
        labels,
        kind="detector",
        preprocessing=preprocessing,
        outputs={"boxes": (kept, 4), "scores": (kept,), "classes": (kept,)},
        origin=_origin(name, original, told.get("license", "")),
        licence=(told.get("license") or _NO_LICENCE).encode(),
        overlap=_OVERLAP,
    )


def _class_names(text: str) -> list[str]:
    """`{0: 'person', 1: 'bicycle'}`: a Python literal, which is how YOLO's exporter writes it."""
    try:
        names = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        names = None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or set(names) != set(range(len(names))):
        raise InvalidInput("its metadata has no names of classes: only YOLO's detectors are understood")
    return [_label(names[index]) for index in range(len(names))]


def _image_size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"\[(\d{2,4}), ?(\d{2,4})\]", text)
    if found is None:
        raise InvalidInput("neither its input nor its metadata (imgsz) says how large its images are")
    return int(found[1]), int(found[2])


# The bundle.


def _bundle(
    name: str,
    model: bytes,
    labels: Sequence[str],
    *,
    licence: bytes,
    origin: Source,
    **more: Any,
) -> dict[str, bytes]:
    files = {MODEL: model, LABELS: "".join(f"{label}\n" for label in labels).encode(), _LICENCE: licence}
    digests = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
    listed = Manifest(format=1, name=name, version="1", files=digests, sources=(origin,), **more)
    return {MANIFEST: manifest.render(listed)} | files


def _origin(name: str, original: Content, licence: str = "") -> Source:
    digest = hashlib.sha256(original).hexdigest()
    return Source(
        name=name, version="1", provides="model", licence=licence[:500] or "NOASSERTION", sha256=digest
    )


def _settings(name: str, files: Mapping[str, Content]) -> dict[str, Any]:
    try:
        settings = json.loads(bytes(files[name]))
    except (ValueError, RecursionError):
        raise InvalidInput(f"{name}: not JSON") from None
    if not isinstance(settings, dict):
        raise InvalidInput(f"{name}: a JSON object is expected")
    return settings
