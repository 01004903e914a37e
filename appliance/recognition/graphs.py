"""ONNX graphs of other makers: judged before anything runs them, and given this appliance's ends.

A model served here takes 8-bit pixels (n, height, width, 3) and answers in float32: what a maker's own code
did to the pixels before, and to the boxes after, becomes part of the graph.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from appliance.errors import InvalidInput

# Operators that onnxruntime brings itself; any other domain would need a library of the model's maker.
DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
MOST_DETECTIONS = 300  # candidates that a detector hands on
_MINE = "appliance/"
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}
_OLDEST_OPSET = 13


def parse(data: bytes) -> ModelProto:
    """The model in these bytes, fit to be loaded. Raises InvalidInput with the reason it is not.

    Refused are: what is no ONNX model; weights in other files; operators of other domains than DOMAINS;
    functions that call themselves; a graph with a cycle, with missing inputs, or otherwise against the ONNX
    specification.
    """
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError:
        raise InvalidInput("not an ONNX model") from None
    if not model.graph.node:
        raise InvalidInput("not an ONNX model: its graph is empty")
    functions = {(function.domain, function.name) for function in model.functions}
    for node in _all_nodes(model):
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in functions:
            raise InvalidInput(
                f"it needs the operator {node.op_type[:100]} of {node.domain[:100]}, which is not built in"
            )
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise InvalidInput("it keeps weights in other files: export it as one file")
    _check_calls(model)
    try:
        onnx.checker.check_model(data)
    except onnx.checker.ValidationError as error:
        raise InvalidInput(f"against the ONNX specification: {_first_line(error)}") from None
    except (ValueError, RuntimeError) as error:
        raise InvalidInput(f"it cannot be checked: {_first_line(error)}") from None
    return model


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0][:300]
    return "".join(character if character.isprintable() else " " for character in line)


def _all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    yield from _nodes(model.graph.node)
    for function in model.functions:
        yield from _nodes(function.node)


def _nodes(listed: Sequence[NodeProto]) -> Iterator[NodeProto]:
    waiting = list(listed)
    while waiting:
        node = waiting.pop()
        yield node
        for graph in _subgraphs(node):
            waiting.extend(graph.node)


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    graphs = [model.graph, *(graph for node in _all_nodes(model) for graph in _subgraphs(node))]
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in _all_nodes(model):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)


def _check_calls(model: ModelProto) -> None:
    calls = {
        (function.domain, function.name): {(node.domain, node.op_type) for node in _nodes(function.node)}
        for function in model.functions
    }
    finished: set[tuple[str, str]] = set()
    while len(finished) < len(calls):
        ready = {name for name, called in calls.items() if called & calls.keys() <= finished} - finished
        if not ready:
            raise InvalidInput("its functions call themselves")
        finished |= ready


@dataclass(frozen=True)
class Scaling:
    """What becomes of a level from 0 to 255, for each of red, green and blue: `level * factor + offset`.

    With `blue_first` the model sees the planes in the order blue, green, red.
    """

    factor: tuple[float, float, float]
    offset: tuple[float, float, float]
    blue_first: bool = False


def image_shape(model: ModelProto) -> tuple[int | None, int | None]:
    """Height and width of the one input, None where the model takes any.

    Raises InvalidInput unless it takes float images of three planes: (n, 3, height, width).
    """
    taken = _input(model).type.tensor_type
    dimensions = [dim.dim_value if dim.HasField("dim_value") else None for dim in taken.shape.dim]
    if taken.elem_type not in _FLOATS or len(dimensions) != 4 or dimensions[1] not in (3, None):
        raise InvalidInput(f"its input is {dimensions}: float images (n, 3, height, width) are expected")
    return dimensions[2], dimensions[3]


def output_shape(model: ModelProto, name: str) -> list[int | None]:
    """The dimensions of an output, None where they are open. Raises InvalidInput when there is none such."""
    for output in model.graph.output:
        if output.name == name:
            dims = output.type.tensor_type.shape.dim
            return [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
    raise InvalidInput(f"it has no output {name}")


def take_pixels(model: ModelProto, height: int, width: int, scaling: Scaling) -> None:
    """Have the model take 8-bit pixels (n, height, width, 3) in place of its float planes."""
    graph, given = model.graph, _input(model)
    kind = given.type.tensor_type.elem_type
    batch = given.type.tensor_type.shape.dim[0]
    first: int | str = batch.dim_value if batch.HasField("dim_value") else "n"
    names = {
        name: f"{_MINE}{name}"
        for name in ("pixels", "planes", "levels", "scaled", "shifted", "order", "ordered")
    }
    ends = (
        ("factor", scaling.factor),
        ("offset", scaling.offset),
    )
    for name, values in ends:
        planes = np.array(values, np.float32).reshape(1, 3, 1, 1)
        graph.initializer.append(numpy_helper.from_array(planes, f"{_MINE}{name}"))
    nodes = [
        helper.make_node("Transpose", [names["pixels"]], [names["planes"]], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", [names["planes"]], [names["levels"]], to=TensorProto.FLOAT),
        helper.make_node("Mul", [names["levels"], f"{_MINE}factor"], [names["scaled"]]),
        helper.make_node("Add", [names["scaled"], f"{_MINE}offset"], [names["shifted"]]),
    ]
    planes_given = names["shifted"]
    if scaling.blue_first:
        graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0], np.int64), names["order"]))
        nodes.append(helper.make_node("Gather", [planes_given, names["order"]], [names["ordered"]], axis=1))
        planes_given = names["ordered"]
    nodes.append(helper.make_node("Cast", [planes_given], [given.name], to=kind))
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    pixels = helper.make_tensor_value_info(names["pixels"], TensorProto.UINT8, [first, height, width, 3])
    others = [one for one in graph.input if one.name != given.name]
    del graph.input[:]
    graph.input.extend([pixels, *others])


def answer(model: ModelProto, source: str, name: str, shape: Sequence[int]) -> None:
    """Have the output `source` be the model's only one: `name`, float32, `shape` for each image."""
    _rename(model.graph, name, f"{_MINE}their {name}")
    source = f"{_MINE}their {name}" if source == name else source
    _end(model, [helper.make_node("Cast", [source], [name], to=TensorProto.FLOAT)], {name: shape})


def answer_boxes(model: ModelProto, source: str, classes: int) -> int:
    """Have a YOLO model's output be `boxes`, `scores` and `classes` of its best candidates; returns how many.

    Known forms, for `classes` classes and a candidates: (n, 4 + classes, a) with centre and size, as of
    version 8 on; (n, a, 5 + classes) with an objectness of its own, as before; (n, a, 6) with corners, score
    and class, where the model has suppressed overlaps itself. In the first two a may be open: candidates of
    no certainty then fill up what the model leaves. Raises InvalidInput for others, and for an open one that
    may be of two forms.
    """
    shape = output_shape(model, source)
    _, second, third = shape if len(shape) == 3 else (None, None, None)
    if second == 4 + classes:
        count, nodes, axis = third, _ANCHOR_FREE, 2
    elif second is not None and second <= MOST_DETECTIONS and third == 6:
        count, nodes, axis = second, _SUPPRESSED, 1
    elif third == 5 + classes and (second is not None or third != 6):
        count, nodes, axis = second, _WITH_OBJECTNESS, 1
    else:
        raise InvalidInput(f"its output is {shape} for {classes} classes: no known YOLO form")
    kept = MOST_DETECTIONS if count is None else min(count, MOST_DETECTIONS)
    filled = [0] * 6  # before the first of each axis, then behind the last
    filled[3 + axis] = kept if count is None else 0
    for name, value in (
        *(("one", [1]), ("two", [2]), ("kept", [kept]), ("split 4", [4, classes]), ("four", [1, 1, 4])),
        *(("split 5", [4, 1, classes]), ("split 6", [4, 1, 1]), ("halves", [2, 2])),
        ("filled", filled),
    ):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), f"{_MINE}{name}"))
    half = numpy_helper.from_array(np.array(0.5, np.float32), f"{_MINE}half")
    model.graph.initializer.append(half)
    made = [helper.make_node("Cast", [source], [f"{_MINE}given"], to=TensorProto.FLOAT)]
    # Only where it is needed: it copies the whole output.
    made.append(_node(*(("Pad", "given,filled", "raw", {}) if count is None else _GIVEN)))
    made += [_node(*words) for words in (*nodes, *_BEST, *(_CORNERS if nodes is not _SUPPRESSED else _AS_IS))]
    _end(model, made, {"boxes": (kept, 4), "scores": (kept,), "classes": (kept,)})
    return kept


# Operator, inputs, outputs, attributes; names without the prefix.
_Words = tuple[str, str, str, dict[str, Any]]
_ANCHOR_FREE: tuple[_Words, ...] = (
    ("Split", "raw,split 4", "placed,each", {"axis": 1}),
    ("TopK", "each,one", "certain,kinds", {"axis": 1}),
    ("Squeeze", "certain,one", "certainty", {}),
    ("Squeeze", "kinds,one", "kind", {}),
    ("Transpose", "placed", "candidates", {"perm": [0, 2, 1]}),
)
_WITH_OBJECTNESS: tuple[_Words, ...] = (
    ("Split", "raw,split 5", "candidates,object,each", {"axis": 2}),
    ("Mul", "object,each", "joint", {}),
    ("TopK", "joint,one", "certain,kinds", {"axis": 2}),
    ("Squeeze", "certain,two", "certainty", {}),
    ("Squeeze", "kinds,two", "kind", {}),
)
_SUPPRESSED: tuple[_Words, ...] = (
    ("Split", "raw,split 6", "candidates,certain,kinds", {"axis": 2}),
    ("Squeeze", "certain,two", "certainty", {}),
    ("Squeeze", "kinds,two", "kind", {}),
)
_GIVEN: _Words = ("Identity", "given", "raw", {})
_BEST: tuple[_Words, ...] = (
    ("TopK", "certainty,kept", "/scores,best", {"axis": 1}),
    ("GatherElements", "kind,best", "their kind", {"axis": 1}),
    ("Cast", "their kind", "/classes", {"to": TensorProto.FLOAT}),
    ("Unsqueeze", "best,two", "best of them", {}),
    ("Tile", "best of them,four", "best of four", {}),
    ("GatherElements", "candidates,best of four", "chosen", {"axis": 1}),
)
_CORNERS: tuple[_Words, ...] = (
    ("Split", "chosen,halves", "centre,size", {"axis": 2}),
    ("Mul", "size,half", "reach", {}),
    ("Sub", "centre,reach", "corner", {}),
    ("Add", "centre,reach", "far corner", {}),
    ("Concat", "corner,far corner", "/boxes", {"axis": 2}),
)
_AS_IS: tuple[_Words, ...] = (("Identity", "chosen", "/boxes", {}),)


def _node(operator: str, inputs: str, outputs: str, attributes: dict[str, Any]) -> NodeProto:
    def named(names: str) -> list[str]:
        return [name[1:] if name.startswith("/") else f"{_MINE}{name}" for name in names.split(",")]

    return helper.make_node(operator, named(inputs), named(outputs), **attributes)


def _input(model: ModelProto) -> onnx.ValueInfoProto:
    constants = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in constants]
    if len(inputs) != 1:
        raise InvalidInput(f"it has {len(inputs)} inputs; one image is expected")
    (image,) = inputs
    assert isinstance(image, onnx.ValueInfoProto)
    return image


def _rename(graph: GraphProto, old: str, new: str) -> None:
    """Everywhere, also in the branches and bodies of its nodes: no name means two things in a model."""
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, old, new)
                for value in inner.output:
                    value.name = new if value.name == old else value.name


def _end(model: ModelProto, nodes: Sequence[NodeProto], outputs: dict[str, Sequence[int]]) -> None:
    graph = model.graph
    graph.node.extend(nodes)
    first = graph.input[0].type.tensor_type.shape.dim[0]
    batch: int | str = first.dim_value if first.HasField("dim_value") else "n"
    del graph.output[:]
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape])
        for name, shape in outputs.items()
    )
    # The operators above mean the same in every version from this one on.
    version = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if version < _OLDEST_OPSET:
        raise InvalidInput(f"it uses opset {version}; export it with {_OLDEST_OPSET} or newer")
