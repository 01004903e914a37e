"""Models as other tools leave them, made into bundles: a Hugging Face export, a YOLO detector.

Nothing of the maker's code is run: what it does to an image is read from its settings and becomes the
bundle's preprocessing and part of the graph. A setting that is not understood is refused, never guessed.
"""

import ast
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from appliance.errors import InvalidInput, StorageFailed
from appliance.recognition import graphs, manifest, processors
from appliance.recognition.graphs import Scaling
from appliance.recognition.manifest import LABELS, LICENCES, MANIFEST, MODEL, Manifest, Source
from appliance.recognition.preprocessing import checked

CONFIG = "config.json"
_MODELS = ("model.onnx", "onnx/model.onnx")
_LARGEST_SETTINGS = 16 * 1024 * 1024
_OVERLAP = 0.7  # of boxes of one class: the default of YOLO's own tools
_NO_LICENCE = "The folder that this model came in names no licence: ask its maker.\n"


def convert(path: Path, name: str | None = None) -> dict[str, bytes]:
    """The files of the bundle, by name. Blocks; holds the model in memory twice.

    `path` is a folder with `config.json` (`id2label`), `preprocessor_config.json` and `model.onnx`, which
    becomes a classifier, or a tagger where its labels exclude nothing; or the ONNX file of a YOLO detector
    with the metadata that its exporter writes. The bundle is called `name`, or as the folder or file is; its
    version is 1. Raises InvalidInput with the reason of a refusal, StorageFailed.
    """
    try:
        if path.suffix == ".onnx":
            return _detector(path, _bundle_name(name or path.stem))
        return _classifier(path, _bundle_name(name or path.resolve().name))
    except OSError as error:
        raise StorageFailed(f"{path}: {error.strerror}") from error
    except InvalidInput as refusal:
        raise InvalidInput(f"{path}: {refusal}") from refusal


def _bundle_name(given: str) -> str:
    name = re.sub(r"[^a-z0-9.-]+", "-", given.lower()).strip(".-")[:64].strip(".-")
    if not name:
        raise InvalidInput(f"--name: {given!r} has no letter or digit for a bundle's name")
    return name


# Hugging Face.


def _classifier(folder: Path, name: str) -> dict[str, bytes]:
    config = _settings(folder / CONFIG)
    settings = _settings(folder / processors.SETTINGS)
    preprocessing, scaling = processors.understand(settings, str(config.get("model_type", "")))
    place = next((folder / model for model in _MODELS if (folder / model).is_file()), None)
    if place is None:
        raise InvalidInput(f"{_MODELS[0]} is missing")
    original = _content(place, manifest.limit(MODEL))
    model = graphs.parse(original)
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
        origin=_origin(name, original),
        licences=_licences(folder),
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


def _detector(path: Path, name: str) -> dict[str, bytes]:
    original = _content(path, manifest.limit(MODEL))
    model = graphs.parse(original)
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
        licences={"LICENCE.txt": (told.get("license") or _NO_LICENCE).encode()},
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
    licences: Mapping[str, bytes],
    origin: Source,
    **more: Any,
) -> dict[str, bytes]:
    graphs.parse(model)
    files = {MODEL: model, LABELS: "".join(f"{label}\n" for label in labels).encode()}
    files |= {f"{LICENCES}/{file}": text for file, text in licences.items()}
    digests = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
    listed = Manifest(format=1, name=name, version="1", files=digests, sources=(origin,), **more)
    return {MANIFEST: manifest.render(listed)} | files


def _origin(name: str, original: bytes, licence: str = "") -> Source:
    digest = hashlib.sha256(original).hexdigest()
    return Source(
        name=name, version="1", provides="model", licence=licence[:500] or "NOASSERTION", sha256=digest
    )


def _licences(folder: Path) -> dict[str, bytes]:
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt"):
        if (folder / name).is_file():
            return {"LICENCE.txt": _content(folder / name, manifest.limit(f"{LICENCES}/LICENCE.txt"))}
    return {"LICENCE.txt": _NO_LICENCE.encode()}


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InvalidInput(f"{path.name} is missing")
    try:
        settings = json.loads(_content(path, _LARGEST_SETTINGS))
    except (ValueError, RecursionError):
        raise InvalidInput(f"{path.name}: not JSON") from None
    if not isinstance(settings, dict):
        raise InvalidInput(f"{path.name}: a JSON object is expected")
    return settings


def _content(path: Path, largest: int) -> bytes:
    if path.stat().st_size > largest:
        raise InvalidInput(f"{path.name} has more than {largest} bytes")
    return path.read_bytes()
