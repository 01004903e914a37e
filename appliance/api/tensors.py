"""Tensors as the Open Inference Protocol carries them: within JSON, or as binary data behind it.

Binary data is little-endian, row-major, without padding; an element of BYTES is its length (4 bytes) and its
bytes. In JSON, which has no bytes, an element of BYTES is base64 here.

Sources: kserve/open-inference-protocol, specification/protocol/inference_rest.md; Triton's
docs/protocol/extension_binary_data.md.
"""

import asyncio
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.api.payload import MAX_FIELD_BYTES, MAX_VALUES, Image, decode_base64, too_many_values
from appliance.errors import InvalidInput, TooLarge

Pixels = npt.NDArray[np.uint8]

_DEEPER = re.compile(rb"\[\s*\[")
_LENGTH = struct.Struct("<I")
_MALFORMED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_Level = Annotated[int, msgspec.Meta(ge=0, le=255)]
_Side = Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]
_FLAT = msgspec.json.Decoder(list[_Level])
_NESTED = msgspec.json.Decoder(list[list[list[list[_Level]]]])
_ABSENT = msgspec.Raw()
_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw])


class _InputParameters(msgspec.Struct):
    binary_data_size: Annotated[int, msgspec.Meta(ge=0)] | None = None
    shared_memory_region: None = None


class _Input(msgspec.Struct):
    name: str
    datatype: str
    shape: Annotated[list[_Side], msgspec.Meta(min_length=1, max_length=8)]
    parameters: _InputParameters = msgspec.field(default_factory=_InputParameters)
    data: msgspec.Raw = _ABSENT


class _OutputParameters(msgspec.Struct):
    """What would make another answer than the tensor is refused; what is unknown is passed over."""

    binary_data: bool | None = None
    classification: None = None
    shared_memory_region: None = None


class _Output(msgspec.Struct):
    name: str
    parameters: _OutputParameters = msgspec.field(default_factory=_OutputParameters)


class _Parameters(msgspec.Struct):
    binary_data_output: bool = False


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str | None = None
    parameters: _Parameters = msgspec.field(default_factory=_Parameters)
    outputs: list[_Output] = []


class _Carrier(msgspec.Struct):
    data: msgspec.Raw = _ABSENT


class _Carriers(msgspec.Struct):
    inputs: list[_Carrier]


_REQUEST = msgspec.json.Decoder(_Request)
_CARRIERS = msgspec.json.Decoder(_Carriers)


@dataclass(frozen=True)
class Tensor:
    """An input as it was sent: its elements are looked at when they are asked for.

    `data` is JSON when `binary` is false.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    data: memoryview
    binary: bool

    def pixels(self, shape: tuple[int, ...]) -> Pixels:
        """The images of a UINT8 tensor [n, *shape]. Raises InvalidInput for any other one."""
        self._expect("UINT8", [self.shape[0], *shape])
        if not self.binary:
            return self._levels()
        if len(self.data) != prod(self.shape):
            raise InvalidInput(f"{self.name}: {len(self.data)} bytes of data for the shape {self.shape}")
        return np.frombuffer(self.data, np.uint8).reshape(self.shape)

    async def elements(self) -> Sequence[Image | memoryview]:
        """The elements of a BYTES tensor [n]. Raises InvalidInput for any other one."""
        self._expect("BYTES", self.shape[:1])
        elements = self._prefixed() if self.binary else self._listed()
        if len(elements) != self.shape[0]:
            raise InvalidInput(f"{self.name}: {len(elements)} elements for the shape {self.shape}")
        return [
            await decode_base64(element, f"{self.name}: data")
            if isinstance(element, msgspec.Raw)
            else element
            for element in elements
        ]

    def _expect(self, datatype: str, shape: Sequence[int]) -> None:
        if self.datatype != datatype:
            raise InvalidInput(f"{self.name}: the datatype {datatype} is expected")
        if list(self.shape) != list(shape):
            raise InvalidInput(f"{self.name}: the shape {[-1, *shape[1:]]} is expected")

    def _levels(self) -> Pixels:
        flat = _DEEPER.match(self.data) is None
        try:
            levels = np.array((_FLAT if flat else _NESTED).decode(self.data), np.uint8)
        except (*_MALFORMED, ValueError):
            raise InvalidInput(f"{self.name}: data: integers from 0 to 255 are expected") from None
        if levels.shape != (prod(self.shape),) if flat else levels.shape != tuple(self.shape):
            raise InvalidInput(f"{self.name}: the data does not fill the shape {self.shape}")
        return levels.reshape(self.shape)

    def _prefixed(self) -> Sequence[memoryview]:
        elements: list[memoryview] = []
        position = 0
        while position < len(self.data):
            start = position + _LENGTH.size
            length = _LENGTH.unpack_from(self.data, position)[0] if start <= len(self.data) else 0
            position = start + length
            if position > len(self.data) or len(elements) == self.shape[0]:
                raise InvalidInput(f"{self.name}: the lengths of the elements do not fit the data")
            elements.append(self.data[start:position])
        return elements

    def _listed(self) -> Sequence[msgspec.Raw]:
        try:
            return _ELEMENTS.decode(self.data)
        except _MALFORMED:
            raise InvalidInput(f"{self.name}: data: a list of base64 strings is expected") from None


@dataclass(frozen=True)
class Inference:
    """A request to infer: `outputs` says of every output that is asked for whether it goes back as binary
    data; when it is empty all are meant, as `binary` says."""

    id: str | None
    input: Tensor
    outputs: dict[str, bool]
    binary: bool


async def read(body: Image, header_length: str | None) -> Inference:
    """The request in a body whose JSON ends after `header_length` bytes (the whole body when None).

    Raises InvalidInput for what breaks the protocol or has not exactly one input, TooLarge for more than
    100,000 values in JSON, or 1 MiB of it beside the data.
    """
    end = _json_bytes(header_length, len(body))
    if await too_many_values(body, end):
        raise TooLarge(f"the JSON holds more than {MAX_VALUES} values: send the tensor as binary data")
    text, binary = memoryview(body)[:end], memoryview(body)[end:]
    try:
        carried = sum(len(memoryview(one.data)) for one in _CARRIERS.decode(text).inputs)
        if end - carried > MAX_FIELD_BYTES:
            raise TooLarge(f"the JSON beside the data is larger than {MAX_FIELD_BYTES} bytes")
        await asyncio.sleep(0)
        request = _REQUEST.decode(text)
    except msgspec.ValidationError as error:
        raise InvalidInput(str(error)) from None
    except _MALFORMED:
        raise InvalidInput("the body is not the JSON of an inference request") from None
    if len(request.inputs) != 1:
        raise InvalidInput("inputs: exactly one is expected")
    default = request.parameters.binary_data_output
    outputs: dict[str, bool] = {}
    for output in request.outputs:
        if output.name in outputs:
            raise InvalidInput("outputs: one was named twice")
        wanted = output.parameters.binary_data
        outputs[output.name] = default if wanted is None else wanted
    return Inference(request.id, _tensor(request.inputs[0], binary), outputs, default)


def _json_bytes(header_length: str | None, length: int) -> int:
    if header_length is None:
        return length
    if header_length.isascii() and header_length.isdigit() and len(header_length) < 16:
        end = int(header_length)
        if end <= length:
            return end
    raise InvalidInput("Inference-Header-Content-Length: the bytes of the body's JSON are expected")


def _tensor(sent: _Input, binary: memoryview) -> Tensor:
    size = sent.parameters.binary_data_size
    data = memoryview(sent.data)
    if (size is None) == (not data):
        raise InvalidInput(f"{sent.name}: either data or parameters.binary_data_size is expected")
    if len(binary) != (size or 0):
        raise InvalidInput(f"{sent.name}: {len(binary)} bytes follow the JSON, not binary_data_size")
    return Tensor(sent.name, sent.datatype, sent.shape, data or binary, binary=not data)
