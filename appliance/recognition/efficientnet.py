"""EfficientNet-Lite as an ONNX graph, written node by node from the tensors of a checkpoint.

Architecture: Tan & Le, "EfficientNet" (arXiv 1905.11946) in the Lite variant of TensorFlow's TPU repository:
no squeeze-and-excitation, ReLU6, stem and head not widened, first and last stage not deepened, "same" padding
as TensorFlow does it, batch-norm epsilon 1e-3, input (x - 127) / 128.

The graph's bytes are a function of the tensors alone: element-wise float64 arithmetic, which IEEE 754 rounds
the same on every machine, and signs drawn from SHA-256. No linear algebra library has a say in them.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from appliance.errors import InvalidInput

CLASSES = 1000
EMBEDDING = 512
_POOLED = 1280
_WINDOWS = 3  # a side, of `detail`

# How much of the embedding's length is the mid-level map; the rest is the pooled head. The head knows what a
# picture shows, the map which picture it is. Near-duplicates of cut-outs are found in 0.97 to 0.99 of cases
# from 0.5 to 0.7, in 0.76 with the head alone, and more of the head keeps things of a kind together.
_DETAIL_WEIGHT = 0.6

_EPSILON = 1e-3
_MEAN_LEVEL = 127
_LEVEL_SCALE = 1 / 128
_OPSET = 17
_IR_VERSION = 8


@dataclass(frozen=True)
class _Stage:
    """A row of the architecture's table: inverted residual blocks, the first of which has the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    inputs: int
    outputs: int


_STEM_CHANNELS = 32
_FEATURE_STAGE = 4  # the last at stride 16


@dataclass(frozen=True)
class Variant:
    """One size of the family: what it is called, the side of its input, its stages."""

    name: str
    size: int
    stages: tuple[_Stage, ...]

    @property
    def outputs(self) -> Mapping[str, tuple[int, ...]]:
        """For one image, as `model` describes them."""
        channels, side = self.stages[_FEATURE_STAGE].outputs, self.size
        for _ in range(4):
            side = -(-side // 2)
        return {
            "logits": (CLASSES,),
            "embedding": (EMBEDDING,),
            "pooled": (_POOLED,),
            "detail": (channels * _WINDOWS**2,),
            "feature_map": (channels, side, side),
        }


# Table 1 of the paper, with the compound coefficients of the Lite variants: width and depth 1.0 and 1.0, 1.0
# and 1.1, 1.1 and 1.2; channels are rounded to multiples of 8.
LITE0 = Variant(
    "efficientnet-lite0",
    224,
    (
        _Stage(1, 3, 1, 1, 32, 16),
        _Stage(2, 3, 2, 6, 16, 24),
        _Stage(2, 5, 2, 6, 24, 40),
        _Stage(3, 3, 2, 6, 40, 80),
        _Stage(3, 5, 1, 6, 80, 112),
        _Stage(4, 5, 2, 6, 112, 192),
        _Stage(1, 3, 1, 6, 192, 320),
    ),
)
LITE1 = Variant(
    "efficientnet-lite1",
    240,
    (
        _Stage(1, 3, 1, 1, 32, 16),
        _Stage(3, 3, 2, 6, 16, 24),
        _Stage(3, 5, 2, 6, 24, 40),
        _Stage(4, 3, 2, 6, 40, 80),
        _Stage(4, 5, 1, 6, 80, 112),
        _Stage(5, 5, 2, 6, 112, 192),
        _Stage(1, 3, 1, 6, 192, 320),
    ),
)
LITE2 = Variant(
    "efficientnet-lite2",
    260,
    (
        _Stage(1, 3, 1, 1, 32, 16),
        _Stage(3, 3, 2, 6, 16, 24),
        _Stage(3, 5, 2, 6, 24, 48),
        _Stage(4, 3, 2, 6, 48, 88),
        _Stage(4, 5, 1, 6, 88, 120),
        _Stage(5, 5, 2, 6, 120, 208),
        _Stage(1, 3, 1, 6, 208, 352),
    ),
)


def model(variant: Variant, tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """The serialised ONNX model (opset 17) of a checkpoint's tensors; equal tensors give equal bytes.

    Input `images`: uint8 (batch, size, size, 3), RGB, any batch size. Outputs, float32, one row an image:
    `logits` (1000), ImageNet-1k before softmax; `embedding` (512), of Euclidean length 1, for cosine search;
    `pooled` (1280), mean of the last features, 0 to 6; `detail`, the channels of `feature_map` averaged over
    3x3 overlapping windows, channel by channel; `feature_map`, stride 16: of Lite0 (1008) and (112, 14, 14).
    Raises InvalidInput when a tensor is missing, has another shape, or is left over.
    """
    graph = _Graph(variant, tensors)
    _head(graph, _trunk(graph))
    left_over = graph.left_over()
    if left_over:
        raise InvalidInput(f"checkpoint: not an {variant.name}, which has no {left_over[0]}")
    return graph.serialised()


class _Graph:
    """Nodes and constants in the order they are added; what adds one returns the name of its result."""

    def __init__(self, variant: Variant, tensors: Mapping[str, NDArray[Any]]) -> None:
        self.variant = variant
        self._tensors = dict(tensors)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def node(self, operator: str, inputs: Sequence[str], result: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(operator, list(inputs), [result], name=result, **attributes))
        return result

    def constant(self, name: str, values: NDArray[Any]) -> str:
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        little_endian = values.astype(values.dtype.newbyteorder("<")).tobytes()
        self._constants[name] = helper.make_tensor(name, kind, values.shape, little_endian, raw=True)
        return name

    def number(self, value: float) -> str:
        return self.constant(f"number.{value:g}", np.array(value, dtype=np.float32))

    def take(self, name: str, *shape: int) -> NDArray[np.float64]:
        """A tensor of the checkpoint, which is used once."""
        tensor = self._tensors.pop(name, None)
        if tensor is None or tensor.shape != shape or tensor.dtype != np.float32:
            raise InvalidInput(f"checkpoint: {name} is missing, or not float32 of shape {shape}")
        return tensor.astype(np.float64)

    def left_over(self) -> list[str]:
        return [name for name in self._tensors if not name.endswith(".num_batches_tracked")]

    def convolution(
        self,
        source: str,
        result: str,
        weight: NDArray[np.float64],
        norm: str,
        *,
        padding: tuple[int, int] = (0, 0),
        stride: int = 1,
        relu6: bool = True,
    ) -> str:
        """A convolution with its batch norm folded in; depthwise when the weight has one input channel."""
        channels, inputs, kernel, _ = weight.shape
        gain = self.take(f"{norm}.weight", channels)
        gain = gain / np.sqrt(self.take(f"{norm}.running_var", channels) + _EPSILON)
        bias = self.take(f"{norm}.bias", channels) - self.take(f"{norm}.running_mean", channels) * gain
        folded = weight * gain[:, None, None, None]
        before, after = padding
        convolved = self.node(
            "Conv",
            [
                source,
                self.constant(f"{result}.weight", folded.astype(np.float32)),
                self.constant(f"{result}.bias", bias.astype(np.float32)),
            ],
            f"{result}.linear" if relu6 else result,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[before, before, after, after],
            group=channels if inputs == 1 else 1,
        )
        if not relu6:
            return convolved
        return self.node("Clip", [convolved, self.number(0), self.number(6)], result)

    def unit(self, source: str, result: str) -> str:
        """Rows of Euclidean length 1; a row of zeros stays one."""
        length = self.node("ReduceL2", [source], f"{result}.length", axes=[1], keepdims=1)
        bounded = self.node("Max", [length, self.number(1e-12)], f"{result}.divisor")
        return self.node("Div", [source, bounded], result)

    def serialised(self) -> bytes:
        size = self.variant.size
        declared = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", size, size, 3])
        results = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
            for name, shape in self.variant.outputs.items()
        ]
        constants = list(self._constants.values())
        proto = helper.make_model(
            helper.make_graph(self._nodes, self.variant.name, [declared], results, constants),
            producer_name="appliance",
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
        )
        onnx.checker.check_model(proto, full_check=True)
        serialised: bytes = proto.SerializeToString(deterministic=True)
        return serialised


def _trunk(graph: _Graph) -> str:
    """From the images to the output of the last block; leaves `feature_map` on the way."""
    # Turning the bytes before they become floats moves a quarter of the memory; the division by 128, a power
    # of two, goes into the stem's weights without a rounding.
    planes = graph.node("Transpose", ["images"], "planes", perm=[0, 3, 1, 2])
    levels = graph.node("Cast", [planes], "levels", to=TensorProto.FLOAT)
    centred = graph.node("Sub", [levels, graph.number(_MEAN_LEVEL)], "centred")
    stem = graph.take("_conv_stem.weight", _STEM_CHANNELS, 3, 3, 3) * _LEVEL_SCALE
    padding = _same_padding(graph.variant.size, 3, 2)
    features = graph.convolution(centred, "stem", stem, "_bn0", padding=padding, stride=2)
    for block in _blocks(graph.variant):
        features = _inverted_residual(graph, features, block)
    return features


@dataclass(frozen=True)
class _Block:
    result: str
    tensors: str
    kernel: int
    stride: int
    inputs: int
    wide: int
    outputs: int
    side: int


def _blocks(variant: Variant) -> Iterator[_Block]:
    side, index = -(-variant.size // 2), 0
    for number, stage in enumerate(variant.stages):
        for repeat in range(stage.repeats):
            first, last = repeat == 0, repeat == stage.repeats - 1
            inputs = stage.inputs if first else stage.outputs
            yield _Block(
                result="feature_map" if last and number == _FEATURE_STAGE else f"block{index}",
                tensors=f"_blocks.{index}",
                kernel=stage.kernel,
                stride=stage.stride if first else 1,
                inputs=inputs,
                wide=inputs * stage.expansion,
                outputs=stage.outputs,
                side=side,
            )
            side = -(-side // stage.stride) if first else side
            index += 1


def _inverted_residual(graph: _Graph, source: str, block: _Block) -> str:
    """Widen, filter each channel, narrow; plus the block's input where the shapes agree."""
    features = source
    if block.wide != block.inputs:
        weight = graph.take(f"{block.tensors}._expand_conv.weight", block.wide, block.inputs, 1, 1)
        features = graph.convolution(features, f"{block.result}.widened", weight, f"{block.tensors}._bn0")
    features = graph.convolution(
        features,
        f"{block.result}.filtered",
        graph.take(f"{block.tensors}._depthwise_conv.weight", block.wide, 1, block.kernel, block.kernel),
        f"{block.tensors}._bn1",
        padding=_same_padding(block.side, block.kernel, block.stride),
        stride=block.stride,
    )
    weight = graph.take(f"{block.tensors}._project_conv.weight", block.outputs, block.wide, 1, 1)
    residual = block.stride == 1 and block.inputs == block.outputs
    narrowed = f"{block.result}.narrowed" if residual else block.result
    features = graph.convolution(features, narrowed, weight, f"{block.tensors}._bn2", relu6=False)
    return graph.node("Add", [features, source], block.result) if residual else features


def _same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "same": the odd pixel of padding goes to the right and the bottom."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def _head(graph: _Graph, features: str) -> None:
    weight = graph.take("_conv_head.weight", _POOLED, graph.variant.stages[-1].outputs, 1, 1)
    features = graph.convolution(features, "head", weight, "_bn1")
    pooled = graph.node("Flatten", [graph.node("GlobalAveragePool", [features], "mean")], "pooled", axis=1)
    weight = graph.take("_fc.weight", CLASSES, _POOLED)
    bias = graph.take("_fc.bias", CLASSES)
    classifier = [
        graph.constant("logits.weight", weight.astype(np.float32)),
        graph.constant("logits.bias", bias.astype(np.float32)),
    ]
    graph.node("Gemm", [pooled, *classifier], "logits", transB=1)
    # Windows every 4 pixels that reach the far side with the third: 6 wide on the 14 of Lite0.
    window = graph.variant.outputs["feature_map"][-1] - 4 * (_WINDOWS - 1)
    windows = graph.node("AveragePool", ["feature_map"], "windows", kernel_shape=[window] * 2, strides=[4, 4])
    detail = graph.node("Flatten", [windows], "detail", axis=1)
    _embedding(graph, pooled, detail)


def _embedding(graph: _Graph, pooled: str, detail: str) -> None:
    """Square roots keep a few strong channels from deciding alone; the map is signed, so are its roots."""
    root = graph.node("Sqrt", [graph.node("Abs", [detail], "detail.size")], "detail.root_size")
    root = graph.node("Mul", [root, graph.node("Sign", [detail], "detail.sign")], "detail.root")
    parts = [
        graph.unit(graph.node("Sqrt", [pooled], "pooled.root"), "pooled.unit"),
        graph.unit(root, "detail.unit"),
    ]
    mixture = graph.node("Concat", parts, "mixture", axis=1)
    outputs = graph.variant.outputs
    weights = [1 - _DETAIL_WEIGHT] * outputs["pooled"][0] + [_DETAIL_WEIGHT] * outputs["detail"][0]
    graph.unit(_projected(graph, mixture, weights, EMBEDDING), "embedding")


def _projected(graph: _Graph, source: str, weights: Sequence[float], width: int) -> str:
    """A sparse random sign projection of the weighted features: each is added to one result, or taken away.

    Count sketch (Charikar, Chen & Farach-Colton, 2002) with results of equal load. Cosines keep the variance
    that a dense matrix of signs would give them, for a five-hundredth of its work and none of its 4.7 MB.
    """
    draws = [
        hashlib.sha256(f"appliance/{graph.variant.name}/embedding/1/{i}".encode()).digest()
        for i in range(len(weights))
    ]
    order = sorted(range(len(weights)), key=draws.__getitem__)
    load = -(-len(weights) // width)
    sources = np.zeros(load * width, dtype=np.int64)
    signs = np.zeros(load * width, dtype=np.float32)
    for place, feature in enumerate(order):
        sources[place] = feature
        signs[place] = weights[feature] * (1 if draws[feature][-1] & 1 else -1)
    spread = graph.node("Gather", [source, graph.constant("projection.sources", sources)], "spread", axis=1)
    signed = graph.node("Mul", [spread, graph.constant("projection.signs", signs)], "signed")
    shape = graph.constant("projection.shape", np.array([-1, load, width], dtype=np.int64))
    axes = graph.constant("projection.axes", np.array([1], dtype=np.int64))
    loads = graph.node("Reshape", [signed, shape], "loads")
    return graph.node("ReduceSum", [loads, axes], "projected", keepdims=0)
