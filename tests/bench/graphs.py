"""Networks of the shapes that people run, with random weights: their cost is real, their answers are not.

MobileNetV2 (Sandler et al., arXiv 1801.04381, width 1.0) and ResNet-50 (He et al., arXiv 1512.03385, the
stride in the 3x3 convolution as everybody trains it), batch norms folded. Input `images`: uint8 (batch, 224,
224, 3); the preprocessing is in the graph, as in the starter backbone. Output `logits` (1000).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests import bundles

SIZE, CLASSES = 224, 1000
MEAN_LEVEL, LEVEL_SCALE = 127, 1 / 64
# Of MobileNetV2: expansion, channels, repeats, stride of the first. Of ResNet-50: channels, repeats, stride.
INVERTED = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
BOTTLENECKS = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))


class Graph:
    """Nodes and weights in the order they are added; what adds one returns the name of its result."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(1)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._channels: dict[str, int] = {}
        planes = self.node("Transpose", "images", perm=[0, 3, 1, 2])
        levels = self.node("Cast", planes, to=TensorProto.FLOAT)
        self.images = self.node("Sub", levels, self.constant(np.array(MEAN_LEVEL, np.float32)))
        self._channels[self.images] = 3

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        result = f"{operator.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [result], **attributes))
        self._channels[result] = self._channels.get(inputs[0], 0)
        return result

    def constant(self, values: Any) -> str:
        name = f"constant{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(values, name))
        return name

    def convolution(
        self,
        source: str,
        channels: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        depthwise: bool = False,
        gain: float = 1.0,
    ) -> str:
        """Weights of He's deviation times `gain`: activations neither explode nor become denormal."""
        inputs = 1 if depthwise else self._channels[source]
        deviation = gain * np.sqrt(2 / (inputs * kernel * kernel))
        weight = deviation * self._rng.standard_normal((channels, inputs, kernel, kernel))
        result = self.node(
            "Conv",
            source,
            self.constant(weight.astype(np.float32)),
            self.constant(self._rng.uniform(0.01, 0.1, channels).astype(np.float32)),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
            group=channels if depthwise else 1,
        )
        self._channels[result] = channels
        return result

    def relu6(self, source: str) -> str:
        bounds = (self.constant(np.array(bound, np.float32)) for bound in (0, 6))
        return self.node("Clip", source, *bounds)

    def model(self, features: str) -> onnx.ModelProto:
        """The mean of the features, a dense layer, and the whole as a model."""
        pooled = self.node("Flatten", self.node("GlobalAveragePool", features), axis=1)
        weight = 0.02 * self._rng.standard_normal((CLASSES, self._channels[features]))
        dense = [self.constant(weight.astype(np.float32)), self.constant(np.zeros(CLASSES, np.float32))]
        self._nodes.append(helper.make_node("Gemm", [pooled, *dense], ["logits"], transB=1))
        graph = helper.make_graph(
            self._nodes,
            "bench",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
            self._constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def mobilenet_v2() -> onnx.ModelProto:
    """3.5 million weights, 0.3 thousand million multiplications an image."""
    graph = Graph()
    features = graph.relu6(graph.convolution(graph.images, 32, 3, 2, gain=LEVEL_SCALE))
    inputs = 32
    for expansion, channels, repeats, first_stride in INVERTED:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            wide, source = inputs * expansion, features
            if expansion > 1:
                features = graph.relu6(graph.convolution(features, wide))
            features = graph.relu6(graph.convolution(features, wide, 3, stride, depthwise=True))
            features = graph.convolution(features, channels, gain=0.7)
            if stride == 1 and inputs == channels:
                features = graph.node("Add", features, source)
            inputs = channels
    return graph.model(graph.relu6(graph.convolution(features, 1280)))


def resnet_50() -> onnx.ModelProto:
    """25.5 million weights, 4.1 thousand million multiplications an image."""
    graph = Graph()
    features = graph.node("Relu", graph.convolution(graph.images, 64, 7, 2, gain=LEVEL_SCALE))
    features = graph.node("MaxPool", features, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for channels, repeats, first_stride in BOTTLENECKS:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            source = graph.convolution(features, 4 * channels, 1, stride) if repeat == 0 else features
            features = graph.node("Relu", graph.convolution(features, channels))
            features = graph.node("Relu", graph.convolution(features, channels, 3, stride))
            features = graph.convolution(features, 4 * channels, gain=0.3)
            features = graph.node("Relu", graph.node("Add", features, source))
    return graph.model(features)


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {"mobilenet-v2": mobilenet_v2, "resnet-50": resnet_50}


def bundle(name: str, folder: Path) -> Path:
    """A classifier of MODELS as `appliance bundle install` takes it."""
    labels = [f"class {number}" for number in range(CLASSES)]
    return bundles.write(
        folder,
        MODELS[name](),
        name=name,
        labels=labels,
        outputs={"logits": (CLASSES,)},
        kind="classifier",
        preprocessing={"size": SIZE},
    )
