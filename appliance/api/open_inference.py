"""The Open Inference Protocol (KServe v2, what Triton speaks over HTTP): tensors in, the model's outputs out.

A model is an installed bundle by its name. It takes its pixels as they are (`image`, UINT8) or encoded images
(`encoded`, BYTES), which are decoded and prepared as for the other routes. Every element of a batch is a job
of its own: the engine makes batches of what all callers send. One that cannot be served refuses the call.

Sources: see `tensors`, and Triton's docs/protocol/extension_model_repository.md.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib import metadata
from math import prod
from typing import TypeVar

import msgspec
import numpy as np

from appliance.api.answers import Answer
from appliance.api.call import Call
from appliance.api.payload import MAX_VALUES, Image, Record
from appliance.api.tensors import Inference, Pixels, read
from appliance.api.vision import Vector, Vision, each
from appliance.errors import ApplianceError, InvalidInput, TooLarge
from appliance.health import Readiness
from appliance.recognition.bundles import Bundle, Bundles

MAX_BATCH = 64
MAX_ANSWER_BYTES = 64 << 20

_HEADER_LENGTH = "Inference-Header-Content-Length"
_FLOAT_BYTES = 4
_OCTETS = "application/octet-stream"

S = TypeVar("S")
Values = Mapping[str, Vector]  # of one image


class OpenInference:
    """The handlers of `/v2`."""

    def __init__(self, vision: Vision, bundles: Bundles, readiness: Callable[[], Readiness]) -> None:
        self._vision = vision
        self._bundles = bundles
        self._readiness = readiness
        self._server = {
            "name": "appliance",
            "version": metadata.version("appliance"),
            "extensions": ["binary_tensor_data", "model_repository"],
        }

    async def server(self, _: Call) -> Answer:
        return Answer(self._server)

    async def live(self, _: Call) -> Answer:
        """As `/healthz`: the event loop turns."""
        return Answer({"live": True})

    async def ready(self, _: Call) -> Answer:
        """As `/readyz`."""
        serving = self._readiness().serving
        return Answer({"ready": serving}, 200 if serving else 503)

    async def index(self, call: Call) -> Answer:
        """Every version of every model; with `ready` those only that would answer now."""
        only_ready = call.payload.flag("ready")
        listed = [(bundle, self._vision.serves(bundle)) for bundle in call.bundles(self._bundles).list()]
        return Answer(
            [
                {
                    "name": bundle.name,
                    "version": bundle.version,
                    "state": "READY" if ready else "UNAVAILABLE",
                    "reason": "" if ready else "the device does not serve it",
                }
                for bundle, ready in listed
                if ready or not only_ready
            ]
        )

    async def model(self, call: Call) -> Answer:
        """Both inputs are listed; a request has one of them."""
        bundle = self._asked(call)
        versions = call.bundles(self._bundles).versions(bundle.name)
        pixels = [-1, *bundle.preprocessing.shape]
        return Answer(
            {
                "name": bundle.name,
                "versions": [one.version for one in versions],
                "platform": "onnxruntime_onnx",
                "inputs": [
                    {"name": "image", "datatype": "UINT8", "shape": pixels},
                    {"name": "encoded", "datatype": "BYTES", "shape": [-1]},
                ],
                "outputs": [
                    {"name": name, "datatype": "FP32", "shape": [-1, *shape]}
                    for name, shape in bundle.outputs.items()
                ],
            }
        )

    async def model_ready(self, call: Call) -> Answer:
        bundle = self._asked(call)
        ready = self._vision.serves(bundle)
        return Answer({"name": bundle.name, "ready": ready}, 200 if ready else 503)

    async def infer(self, call: Call) -> Answer:
        bundle = self._asked(call)
        inference = await read(call.payload.body, call.headers.get(_HEADER_LENGTH))
        count = inference.input.shape[0]
        if count > MAX_BATCH:
            raise InvalidInput(f"{inference.input.name}: at most {MAX_BATCH} in one call")
        binary = inference.outputs or dict.fromkeys(bundle.outputs, inference.binary)
        _check_outputs(bundle, binary, count)
        values = await self._values(call, bundle, inference, tuple(binary))
        return await _answer(bundle, inference, values, binary)

    def _asked(self, call: Call) -> Bundle:
        catalogue = call.bundles(self._bundles)
        return catalogue.for_name(call.parameters["name"], call.parameters.get("version"))

    async def _values(
        self, call: Call, bundle: Bundle, inference: Inference, outputs: tuple[str, ...]
    ) -> list[Values]:
        vision = self._vision.of(call.customer)

        async def see(image: Image | memoryview) -> Values:
            return (await vision.infer(bundle, Record({}, image), *outputs)).outputs

        async def run(pixels: Pixels) -> Values:
            return await vision.run(bundle, pixels, *outputs)

        sent = inference.input
        if sent.name == "encoded":
            return await _all(await sent.elements(), see, sent.name)
        if sent.name == "image":
            return await _all(list(sent.pixels(bundle.preprocessing.shape)), run, sent.name)
        raise InvalidInput("inputs: either image or encoded is expected")


async def _all(elements: Sequence[S], act: Callable[[S], Awaitable[Values]], name: str) -> list[Values]:
    values: list[Values] = []
    for index, outcome in enumerate(await each(elements, act)):
        if isinstance(outcome, InvalidInput):
            raise type(outcome)(f"{name}[{index}]: {outcome}") from None
        if isinstance(outcome, ApplianceError):
            raise outcome
        values.append(outcome)
    return values


def _check_outputs(bundle: Bundle, binary: Mapping[str, bool], count: int) -> None:
    """Refuses before anything is computed what could not be answered."""
    if not binary.keys() <= bundle.outputs.keys():
        raise InvalidInput(f"outputs: the model has {', '.join(bundle.outputs)}")
    sizes = {name: count * prod(bundle.outputs[name]) for name in binary}
    if sum(size for name, size in sizes.items() if not binary[name]) > MAX_VALUES:
        raise TooLarge(f"the answer has more than {MAX_VALUES} values: ask for binary_data")
    if sum(sizes.values()) * _FLOAT_BYTES > MAX_ANSWER_BYTES:
        raise TooLarge(f"the answer has more than {MAX_ANSWER_BYTES} bytes: send fewer images at once")


async def _answer(
    bundle: Bundle, inference: Inference, values: Sequence[Values], binary: Mapping[str, bool]
) -> Answer:
    outputs: list[dict[str, object]] = []
    behind: list[memoryview] = []
    for name, as_binary in binary.items():
        shape = (len(values), *bundle.outputs[name])
        output: dict[str, object] = {"name": name, "datatype": "FP32", "shape": shape}
        parts = [one[name] for one in values]
        if as_binary:
            output["parameters"] = {"binary_data_size": prod(shape) * _FLOAT_BYTES}
            behind += (part.data for part in parts)
        else:
            output["data"] = np.concatenate(parts, axis=None).tolist()
        outputs.append(output)
    document: dict[str, object] = {"model_name": bundle.name, "model_version": bundle.version}
    if inference.id is not None:
        document["id"] = inference.id
    document["outputs"] = outputs
    if not behind:
        return Answer(document)
    header = msgspec.json.encode(document)
    body = await asyncio.to_thread(b"".join, [header, *behind])  # up to 64 MiB
    return Answer(text=body, content_type=_OCTETS, headers={_HEADER_LENGTH: str(len(header))})
