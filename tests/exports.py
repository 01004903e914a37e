"""Models as other tools leave them, small enough to compute by hand."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
# What the export of a BiT or a DINOv2 carries.
BIT: dict[str, Any] = {
    "crop_pct": None,
    "do_center_crop": True,
    "crop_size": {"height": 64, "width": 64},
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_processor_type": "BitImageProcessor",
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 72},
    **IMAGENET,
}
# Logits of the mean planes, which the normalisation has brought around zero.
WEIGHTS = np.array([[9, -9, -9], [-9, 9, -9], [-9, -9, 9]], np.float32).T
COLOURS = ("red", "green", "blue")


def classifier_model(
    *, output: str = "logits", sides: Sequence[int | str] = ("h", "w"), half: bool = False
) -> ModelProto:
    """Three logits of an image's mean colour."""
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixel_values"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], [output]),
    ]
    graph = helper.make_graph(
        nodes,
        "main_graph",
        [helper.make_tensor_value_info("pixel_values", kind, ["batch", 3, *sides])],
        [helper.make_tensor_value_info(output, kind, ["batch", 3])],
        [numpy_helper.from_array(WEIGHTS.astype(np.float16 if half else np.float32), "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def hugging_face(
    folder: Path,
    *,
    model: ModelProto | None = None,
    processor: Mapping[str, Any] = BIT,
    place: str = "model.onnx",
    **config: Any,
) -> Path:
    """The folder that an export to ONNX leaves, of a classifier of three colours."""
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model or classifier_model(), folder / place)
    settings = {"model_type": "bit", "id2label": {str(n): name for n, name in enumerate(COLOURS)}}
    (folder / "config.json").write_text(json.dumps(settings | config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def yolo(
    path: Path,
    raw: npt.NDArray[np.float32],
    *,
    names: str = "{0: 'cup', 1: 'plate'}",
    batch: int | str = "batch",
    said: Sequence[int | str] = (),
    **metadata: str,
) -> Path:
    """A detector's ONNX file whose output is always `raw`, whatever it sees, and said to be `said`."""
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["mean"], keepdims=1),
        helper.make_node("Squeeze", ["mean", "last"], ["level"]),
        helper.make_node("Mul", ["level", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "raw"], ["output0"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes"),
        numpy_helper.from_array(np.array([3], np.int64), "last"),
        numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
        numpy_helper.from_array(raw.astype(np.float32)[np.newaxis], "raw"),
    ]
    graph = helper.make_graph(
        nodes,
        "yolo",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, 64, 64])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [batch, *(said or raw.shape)])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, {"names": names, "task": "detect", "imgsz": "[64, 64]"} | metadata)
    onnx.save(model, path)
    return path
