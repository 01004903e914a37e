"""Model files that must not be loaded: each refused with its reason, by a process that is locked in."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from appliance.errors import InvalidInput
from appliance.recognition import graphs, inspection
from tests.exports import classifier_model


def external() -> ModelProto:
    model = classifier_model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../../etc/passwd"
    return model


def hidden_external() -> ModelProto:
    """The weights of a branch that is never taken."""
    branch = helper.make_graph(
        [helper.make_node("Identity", ["weights"], ["out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [3, 3])],
        [external().graph.initializer[0]],
    )
    model = classifier_model()
    value = numpy_helper.from_array(np.array(False), "never")
    model.graph.node.extend(
        [
            helper.make_node("Constant", [], ["never"], value=value),
            helper.make_node("If", ["never"], ["unused"], then_branch=branch, else_branch=branch),
        ]
    )
    return model


def custom(domain: str) -> ModelProto:
    model = classifier_model()
    model.graph.node.append(helper.make_node("Shell", ["logits"], ["x"], domain=domain))
    model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def cycle() -> ModelProto:
    model = classifier_model()
    model.graph.node.extend(
        [helper.make_node("Identity", ["b"], ["a"]), helper.make_node("Identity", ["a"], ["b"])]
    )
    return model


def recursive() -> ModelProto:
    model = classifier_model()
    body = [helper.make_node("Again", ["x"], ["y"], domain="own")]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model.functions.append(helper.make_function("own", "Again", ["x"], ["y"], body, opsets))
    model.graph.node.append(helper.make_node("Again", ["logits"], ["z"], domain="own"))
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def without_an_input() -> ModelProto:
    model = classifier_model()
    model.graph.node.append(helper.make_node("Relu", ["nowhere"], ["z"]))
    return model


def nested(depth: int) -> bytes:
    """A model whose branches lie within branches: graph, node, attribute, graph, and so on."""

    def field(number: int, content: bytes) -> bytes:
        length, size = len(content), b""
        while True:
            size += bytes([length & 127 | (128 if length > 127 else 0)])
            length >>= 7
            if not length:
                return bytes([number << 3 | 2]) + size + content

    graph = b""
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))
    return field(7, graph)


REFUSED: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "external data": (external, "other files"),
    "external data in a branch": (hidden_external, "other files"),
    "a custom operator": (lambda: custom("com.evil"), "Shell of com.evil"),
    "a custom operator in a known namespace": (lambda: custom("ai.onnx.evil"), "Shell"),
    "a cycle": (cycle, "ONNX specification"),
    "a function that calls itself": (recursive, "call themselves"),
    "an input from nowhere": (without_an_input, "ONNX specification"),
    "an empty graph": (ModelProto, "ONNX model"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_hostile_models_are_refused(tmp_path: Path, case: str) -> None:
    make, reason = REFUSED[case]
    (tmp_path / "model.onnx").write_bytes(make().SerializeToString())
    before = set(psutil.Process().children())
    with pytest.raises(InvalidInput, match=reason) as refused:
        await inspection.inspect(tmp_path / "model.onnx")
    assert str(tmp_path) not in str(refused.value)
    assert set(psutil.Process().children()) <= before


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"not a model", bytes(1 << 20), b"\x3a\xff\xff\xff\xff\x0f", nested(1000)]
)
async def test_what_is_no_model_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(InvalidInput, match="not an ONNX model"):
        await inspection.inspect(tmp_path / "model.onnx")


async def test_good_models_pass_and_at_the_same_time(tmp_path: Path) -> None:
    onnx.save(classifier_model(), tmp_path / "model.onnx")
    await asyncio.gather(*(inspection.inspect(tmp_path / "model.onnx") for _ in range(2)))


def test_damaged_models_are_parsed_or_refused() -> None:
    whole = classifier_model().SerializeToString()
    generator = np.random.default_rng(3)
    for _ in range(300):
        data = bytearray(whole)
        for position in generator.integers(0, len(data), 3):
            data[position] ^= 1 << int(generator.integers(8))
        with suppress(InvalidInput):
            assert graphs.parse(bytes(data)).graph.node


def test_attributes_are_searched_too() -> None:
    model = classifier_model()
    node = helper.make_node("Constant", [], ["c"])
    attribute = AttributeProto(name="value", type=AttributeProto.TENSOR)
    attribute.t.CopyFrom(external().graph.initializer[0])
    node.attribute.append(attribute)
    model.graph.node.append(node)
    with pytest.raises(InvalidInput, match="other files"):
        graphs.parse(model.SerializeToString())
