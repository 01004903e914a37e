"""Bundles whose models are made here: a small network, and ones that misbehave on a sign in the picture."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, checker, helper, numpy_helper, save_model

from appliance.recognition.bundles import Bundle, Label, Preprocessing, TaskId

SIZE = 32
CLASSES = 5


def _bundle(folder: Path, name: str, outputs: dict[str, tuple[int, ...]]) -> Bundle:
    model = folder / f"{name}.onnx"
    return Bundle(
        name=name,
        version="1",
        kind="backbone",
        task=TaskId(f"task of {name}"),
        routes=(),
        preprocessing=Preprocessing(size=SIZE),
        outputs=outputs,
        labels=tuple(Label(f"{name}-{index}", f"class {index}") for index in range(CLASSES)),
        folder=folder,
        model=model,
        sha256=hashlib.sha256(model.read_bytes()).hexdigest(),
    )


def network(folder: Path, name: str = "network", *, seed: int = 1, layers: int = 2) -> Bundle:
    """Convolutions with fixed random weights; outputs `logits` (5), `embedding` (8), `map` (8, 8, 8)."""
    weights = np.random.default_rng(seed)
    constants = []

    def constant(label: str, *shape: int) -> str:
        values = (weights.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)
        constants.append(numpy_helper.from_array(values, label))
        return label

    nodes = [
        helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", constant("stem", 8, 3, 4, 4)], ["map"], strides=[4, 4]),
    ]
    last = "map"
    for layer in range(layers):
        nodes += [
            helper.make_node(
                "Conv", [last, constant(f"w{layer}", 8, 8, 3, 3)], [f"c{layer}"], pads=[1, 1, 1, 1]
            ),
            helper.make_node("Tanh", [f"c{layer}"], [f"t{layer}"]),
        ]
        last = f"t{layer}"
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["pooled"]),
        helper.make_node("LpNormalization", ["pooled"], ["embedding"], axis=1, p=2),
        helper.make_node("MatMul", ["pooled", constant("head", 8, CLASSES)], ["logits"]),
    ]
    outputs: dict[str, tuple[int, ...]] = {"logits": (CLASSES,), "embedding": (8,), "map": (8, 8, 8)}
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, ["n", *s]) for o, s in outputs.items()],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model)
    save_model(model, folder / f"{name}.onnx")
    return _bundle(folder, name, outputs)


def _simple(
    folder: Path, name: str, nodes: list[NodeProto], constants: dict[str, npt.NDArray[Any]], classes: int
) -> Bundle:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", classes])],
        [numpy_helper.from_array(values, label) for label, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    save_model(model, folder / f"{name}.onnx")
    return _bundle(folder, name, {"logits": (classes,)})


def made_for_one(folder: Path, *, silent: bool) -> Bundle:
    """Its input says any number of images, a Reshape inside says one: several fail, or are silently mixed."""
    name = f"made for one {silent}"
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["x", "flat"], ["row"]),
    ]
    constants: dict[str, npt.NDArray[Any]] = {"flat": np.array([1, -1], np.int64)}
    if silent:
        nodes.append(helper.make_node("ReduceMean", ["row", "across"], ["logits"], keepdims=1))
        constants["across"] = np.array([1], np.int64)
        return _simple(folder, name, nodes, constants, 1)
    nodes.append(helper.make_node("MatMul", ["row", "weights"], ["logits"]))
    weights = np.random.default_rng(4).standard_normal((SIZE * SIZE * 3, CLASSES)) / 1000
    constants["weights"] = weights.astype(np.float32)
    return _simple(folder, name, nodes, constants, CLASSES)


def quantised_as_it_runs(folder: Path) -> Bundle:
    """Its features are rounded to 255 steps of the range of the whole batch, as dynamic quantisation does."""
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["x"], ["row"]),
        helper.make_node("MatMul", ["row", "weights"], ["features"]),
        helper.make_node("DynamicQuantizeLinear", ["features"], ["steps", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["steps", "scale", "zero"], ["logits"]),
    ]
    weights = np.random.default_rng(4).standard_normal((SIZE * SIZE * 3, CLASSES)) / 100_000
    return _simple(folder, "quantised", nodes, {"weights": weights.astype(np.float32)}, CLASSES)


def wrong_when_bright(folder: Path) -> Bundle:
    """The root of 100 less a picture's first byte: no number for a bright one."""
    nodes = [
        helper.make_node("Slice", ["images", "zero4", "one4"], ["corner"]),
        helper.make_node("Cast", ["corner"], ["level"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["hundred", "level"], ["left"]),
        helper.make_node("Sqrt", ["left"], ["root"]),
        helper.make_node("Flatten", ["root"], ["logits"]),
    ]
    constants: dict[str, npt.NDArray[Any]] = {
        "zero4": np.zeros(4, np.int64),
        "one4": np.array([2**31, 1, 1, 1], np.int64),
        "hundred": np.array(100, np.float32),
    }
    return _simple(folder, "wrong when bright", nodes, constants, 1)


def elastic(folder: Path) -> Bundle:
    """Twice a picture's first byte, in a shape that its next bytes change for the whole batch where they are
    over 200: so many times 200,000 more values, so many fewer values, more images, and more dimensions.
    """
    constants: dict[str, npt.NDArray[Any]] = {
        "all": np.array([-1, SIZE * SIZE * 3], np.int64),
        "first": np.array([0], np.int64),
        "fifth": np.array([5], np.int64),
        "across": np.array([1], np.int64),
        "each": np.ones(5, np.int64),
        "quiet": np.array(240, np.int64),
        "nothing": np.array(0, np.int64),
        "one": np.array([1], np.int64),
        "two": np.array([2], np.int64),
        "many": np.array([200_000], np.int64),
    }
    changes = ("wider", "narrower", "taller", "deeper")
    nodes = [
        helper.make_node("Cast", ["images"], ["numbers"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["numbers", "all"], ["bytes"]),
        helper.make_node("Slice", ["bytes", "first", "fifth", "across"], ["head"]),
        helper.make_node("Split", ["head", "each"], ["level", *(f"{one}s" for one in changes)], axis=1),
    ]
    for one in changes:
        nodes += [
            helper.make_node("ReduceMax", [f"{one}s"], [f"{one} most"], keepdims=0),
            helper.make_node("Sub", [f"{one} most", "quiet"], [f"{one} loud"]),
            helper.make_node("Max", [f"{one} loud", "nothing"], [f"{one} by"]),
            helper.make_node("Reshape", [f"{one} by", "one"], [one]),
        ]
    nodes += [
        helper.make_node("Cast", ["level"], ["column"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["taller", "one"], ["added"], axis=0),
        helper.make_node("ConstantOfShape", ["added"], ["zeros"]),
        helper.make_node("Concat", ["column", "zeros"], ["rows"], axis=0),
        helper.make_node("Mul", ["wider", "many"], ["more"]),
        helper.make_node("Add", ["two", "more"], ["most"]),
        helper.make_node("Sub", ["most", "narrower"], ["width"]),
        helper.make_node("Shape", ["rows"], ["height"], start=0, end=1),
        helper.make_node("Concat", ["height", "width"], ["flat"], axis=0),
        helper.make_node("Expand", ["rows", "flat"], ["plain"]),
        helper.make_node(
            "ConstantOfShape", ["deeper"], ["units"], value=numpy_helper.from_array(np.ones(1, np.int64))
        ),
        helper.make_node("Concat", ["flat", "units"], ["shape"], axis=0),
        helper.make_node("Reshape", ["plain", "shape"], ["logits"], allowzero=1),
    ]
    return _simple(folder, "elastic", nodes, constants, 2)


def trap(folder: Path) -> Bundle:
    """A model that fails at run time for every batch in which a picture's first byte is 255, else gives 1."""
    nodes = [
        helper.make_node("Slice", ["images", "zero4", "one4"], ["corner"]),
        helper.make_node("Cast", ["corner"], ["marks"], to=TensorProto.INT64),
        helper.make_node("Div", ["marks", "limit"], ["sprung"]),
        helper.make_node("Flatten", ["sprung"], ["index"]),
        # An index beyond the table is what makes onnxruntime raise in the middle of a run.
        helper.make_node("Gather", ["table", "index"], ["logits"]),
    ]
    constants: dict[str, npt.NDArray[Any]] = {
        "zero4": np.zeros(4, np.int64),
        "one4": np.array([2**31, 1, 1, 1], np.int64),
        "limit": np.array(255, np.int64),
        "table": np.ones(1, np.float32),
    }
    return _simple(folder, "trap", nodes, constants, 1)


def endless(folder: Path, *, trapped: bool = False) -> Bundle:
    """A loop of 2^62 rounds; `trapped` of none, but where a picture's first byte is 255."""
    flag = helper.make_tensor_value_info("on", TensorProto.BOOL, [])
    still = helper.make_tensor_value_info("still", TensorProto.BOOL, [])
    value = helper.make_tensor_value_info("value", TensorProto.FLOAT, None)
    next_value = helper.make_tensor_value_info("next", TensorProto.FLOAT, None)
    round_ = helper.make_tensor_value_info("round", TensorProto.INT64, [])
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still"]), helper.make_node("Neg", ["value"], ["next"])],
        "round",
        [round_, flag, value],
        [still, next_value],
    )
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "sides"], ["level"], keepdims=0),
        helper.make_node("Slice", ["images", "zero4", "one4"], ["corner"]),
        helper.make_node("Cast", ["corner"], ["marks"], to=TensorProto.INT64),
        helper.make_node("Div", ["marks", "limit"], ["sprung"]),
        helper.make_node("ReduceMax", ["sprung"], ["any sprung"], keepdims=0),
        helper.make_node("Max", ["any sprung", "always"], ["goes"]),
        helper.make_node("Mul", ["goes", "many"], ["rounds"]),
        helper.make_node("Loop", ["rounds", "true", "level"], ["last"], body=body),
        helper.make_node("Reshape", ["last", "column"], ["logits"]),
    ]
    constants: dict[str, npt.NDArray[Any]] = {
        "sides": np.array([1, 2, 3], np.int64),
        "zero4": np.zeros(4, np.int64),
        "one4": np.array([2**31, 1, 1, 1], np.int64),
        "limit": np.array(255, np.int64),
        "always": np.array(not trapped, np.int64),
        "many": np.array(2**62, np.int64),
        "true": np.array(True),
        "column": np.array([-1, 1], np.int64),
    }
    return _simple(folder, "endless", nodes, constants, 1)


def gigabytes(folder: Path) -> Bundle:
    """It computes with 8 GiB of zeros, whatever the picture."""
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "sides"], ["level"], keepdims=0),
        helper.make_node("ConstantOfShape", ["many"], ["zeros"]),
        helper.make_node("ReduceMax", ["zeros"], ["none"], keepdims=0),
        helper.make_node("Add", ["level", "none"], ["row"]),
        helper.make_node("Reshape", ["row", "column"], ["logits"]),
    ]
    constants: dict[str, npt.NDArray[Any]] = {
        "sides": np.array([1, 2, 3], np.int64),
        "many": np.array([2**31], np.int64),
        "column": np.array([-1, 1], np.int64),
    }
    return _simple(folder, "gigabytes", nodes, constants, 1)


def insatiable(folder: Path) -> Bundle:
    """It takes more memory than there is when a picture's first byte is 255, which ends its worker."""
    nodes = [
        helper.make_node("Slice", ["images", "zero4", "one4"], ["corner"]),
        helper.make_node("Cast", ["corner"], ["marks"], to=TensorProto.INT64),
        helper.make_node("Div", ["marks", "limit"], ["sprung"]),
        helper.make_node("ReduceMax", ["sprung"], ["any"], keepdims=0),
        helper.make_node("Mul", ["any", "much"], ["wanted"]),
        helper.make_node("Reshape", ["wanted", "row"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["corner"], ["level"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["level", "sum"], ["levels"]),
        helper.make_node("Flatten", ["levels"], ["logits"]),
    ]
    constants: dict[str, npt.NDArray[Any]] = {
        "zero4": np.zeros(4, np.int64),
        "one4": np.array([2**31, 1, 1, 1], np.int64),
        "limit": np.array(255, np.int64),
        "much": np.array(2**50, np.int64),
        "row": np.array([1], np.int64),
    }
    return _simple(folder, "insatiable", nodes, constants, 1)
