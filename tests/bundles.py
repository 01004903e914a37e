"""Bundles that tests make, as `appliance bundle install` takes them, and small models with known answers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from PIL import Image

from tests import images


def write(
    folder: Path,
    model: ModelProto,
    *,
    name: str,
    labels: Sequence[str],
    outputs: Mapping[str, tuple[int, ...]],
    version: str = "1",
    kind: str = "backbone",
    routes: Sequence[str] = (),
    preprocessing: Mapping[str, object] | None = None,
    **more: object,
) -> Path:
    """A bundle in a new folder; `more` are further keys of its manifest."""
    onnx.checker.check_model(model)
    (folder / "licences").mkdir(parents=True)
    files = {
        "model.onnx": model.SerializeToString(),
        "labels.txt": "".join(f"{label}\n" for label in labels).encode(),
        "licences/LICENCE.txt": b"made by the tests",
    }
    for file, content in files.items():
        (folder / file).write_bytes(content)
    digests = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
    source = {"name": "tests", "version": "1", "provides": "everything", "licence": "MIT"}
    top = {"format": 1, "name": name, "version": version, "kind": kind, "routes": list(routes), **more}
    tables = {
        "preprocessing": {"size": 224} if preprocessing is None else preprocessing,
        "outputs": {output: list(shape) for output, shape in outputs.items()},
        "files": digests,
        "[sources]": source | {"sha256": digests["model.onnx"]},
    }
    lines = [_line(key, value) for key, value in top.items()]
    for table, keys in tables.items():
        lines += [f"[{table}]", *(_line(key, value) for key, value in keys.items())]
    (folder / "bundle.toml").write_text("\n".join(lines))
    return folder


def _line(key: str, value: object) -> str:
    return f"{key if key.isidentifier() else json.dumps(key)} = {json.dumps(value)}"


def _model(nodes: Sequence[NodeProto], size: int, outputs: Mapping[str, tuple[int, ...]]) -> ModelProto:
    """Of nodes that read `red` and `green`, the mean levels (n, 1) of each image from 0 to 1."""
    mean = [
        helper.make_node("Cast", ["images"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["levels", "sides"], ["sums"], keepdims=0),
        helper.make_node("Div", ["sums", "full"], ["means"]),
        helper.make_node("Split", ["means", "ones"], ["red", "green", "blue"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, 2], np.int64), "sides"),
        numpy_helper.from_array(np.array(255, np.float32), "full"),
        numpy_helper.from_array(np.ones(3, np.int64), "ones"),
    ]
    graph = helper.make_graph(
        [*mean, *nodes],
        "means",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", size, size, 3])],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, ["n", *s]) for o, s in outputs.items()],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _constant(name: str, values: object) -> NodeProto:
    value = numpy_helper.from_array(np.asarray(values, np.float32), name)
    return helper.make_node("Constant", [], [name], value=value)


def tagger(folder: Path, *, route: str = "tagging/fashion/v2/tags", threshold: float = 0.4) -> Path:
    """Two tags, each for itself: "red" of a red image, "green" of a green one, both of a yellow one."""
    nodes = [
        _constant("half", 0.5),
        _constant("steep", 20),
        helper.make_node("Concat", ["red", "green"], ["two"], axis=1),
        helper.make_node("Sub", ["two", "half"], ["around"]),
        helper.make_node("Mul", ["around", "steep"], ["logits"]),
    ]
    return _of_two(folder, nodes, name="fashion", labels=("red", "green"), route=route, threshold=threshold)


def self_tested(folder: Path, expected: Sequence[float], *, route: str = "tagging/tested/v2/tags") -> Path:
    """The tagger with a red image, for which its maker's device is said to have given `expected`; it gives 10
    and -10.
    """
    made = tagger(folder, route=route)
    red = images.encoded(Image.new("RGB", (40, 40), "red"), "PNG")
    (made / "selftest.png").write_bytes(red)
    text = (made / "bundle.toml").read_text().replace('name = "fashion"', 'name = "tested"', 1)
    selftest = f'[selftest]\nimage = "selftest.png"\noutput = "logits"\nexpected = {[*expected]}\n'
    file = f'"selftest.png" = "{hashlib.sha256(red).hexdigest()}"'
    (made / "bundle.toml").write_text(text.replace("[files]", f"{selftest}[files]\n{file}", 1))
    return made


def widening(folder: Path, times: int, *, route: str = "tagging/wide/v2/tags") -> Path:
    """A tagger of one model with a trick: for a batch with a red image it gives `times` values in place of
    the two that it promises.
    """
    nodes = [
        _constant("nearly", 0.9),
        helper.make_node("ReduceMax", ["red"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "nearly"], ["lit"]),
        helper.make_node("Cast", ["lit"], ["on"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["on", "one"], ["switch"]),
        helper.make_node("Mul", ["switch", "more"], ["added"]),
        helper.make_node("Add", ["added", "two"], ["width"]),
        helper.make_node("Shape", ["red"], ["count"], start=0, end=1),
        helper.make_node("Concat", ["count", "width"], ["target"], axis=0),
        helper.make_node("Expand", ["red", "target"], ["logits"]),
    ]
    for name, number in (("one", 1), ("two", 2), ("more", times - 2)):
        value = numpy_helper.from_array(np.array([number], np.int64), name)
        nodes.insert(0, helper.make_node("Constant", [], [name], value=value))
    return _of_two(folder, nodes, name="wide", labels=("one", "other"), route=route, threshold=0.5)


def _of_two(
    folder: Path,
    nodes: list[NodeProto],
    *,
    name: str,
    labels: tuple[str, str],
    route: str,
    threshold: float,
) -> Path:
    """A tagger whose nodes make two logits of the means of an image of 32 x 32."""
    outputs: dict[str, tuple[int, ...]] = {"logits": (2,)}
    return write(
        folder,
        _model(nodes, 32, outputs),
        name=name,
        kind="tagger",
        labels=labels,
        outputs=outputs,
        routes=(route,),
        preprocessing={"size": 32},
        threshold=threshold,
    )


# Left, top, right, bottom on an input of 64 x 64; the second overlaps the first, the last is another class.
BOXES = ((8, 8, 40, 40), (10, 9, 41, 40), (30, 30, 64, 64), (8, 8, 40, 40))
CLASSES = (0, 0, 0, 1)


def detector(folder: Path, *, fit: str = "letterbox") -> Path:
    """The same boxes for every image; as probable as the image is red: 1, 0.9, 0.5 and 0.8 of that."""
    nodes = [
        _constant("table", BOXES),
        _constant("kinds", CLASSES),
        _constant("parts", (1, 0.9, 0.5, 0.8)),
        _constant("zero", 0),
        helper.make_node("Mul", ["red", "parts"], ["scores"]),
        helper.make_node("Mul", ["scores", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "kinds"], ["classes"]),
        helper.make_node("Unsqueeze", ["nothing", "last"], ["none"]),
        helper.make_node("Add", ["none", "table"], ["boxes"]),
    ]
    last = numpy_helper.from_array(np.array([2], np.int64), "last")
    nodes.insert(0, helper.make_node("Constant", [], ["last"], value=last))
    outputs: dict[str, tuple[int, ...]] = {"boxes": (4, 4), "scores": (4,), "classes": (4,)}
    return write(
        folder,
        _model(nodes, 64, outputs),
        name="things",
        kind="detector",
        labels=("cup", "plate"),
        outputs=outputs,
        preprocessing={"size": 64, "fit": fit},
        overlap=0.7,
    )
