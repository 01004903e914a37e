"""The tensors of the Open Inference Protocol: what is sent comes back, and no bytes at all do harm."""

import asyncio
import base64
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from appliance.api.tensors import Inference, Pixels, read
from appliance.errors import InvalidInput, TooLarge

SHAPE = (2, 1, 3)
PIXELS = np.arange(12, dtype=np.uint8).reshape(2, *SHAPE)


def sent(
    data: object = None, /, *, binary: bytes | None = None, **changed: object
) -> tuple[bytearray, str | None]:
    """A body with one input, and the length of its JSON where binary data follows."""
    tensor: dict[str, object] = {"name": "image", "shape": list(PIXELS.shape), "datatype": "UINT8"}
    if binary is None:
        text = json.dumps({"inputs": [tensor | {"data": data} | changed]}).encode()
        return bytearray(text), None
    tensor["parameters"] = {"binary_data_size": len(binary)}
    text = json.dumps({"inputs": [tensor | changed]}).encode()
    return bytearray(text + binary), str(len(text))


def parsed(body: bytearray, header: str | None = None) -> Inference:
    return asyncio.run(read(body, header))


def pixels(body: bytearray, header: str | None = None) -> Pixels:
    return parsed(body, header).input.pixels(SHAPE)


def elements(body: bytearray, header: str | None = None) -> list[bytes]:
    return [bytes(one) for one in asyncio.run(parsed(body, header).input.elements())]


def prefixed(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


@given(arrays.arrays(np.uint8, (2, *SHAPE)))
def test_pixels_come_back_from_every_form(image: Pixels) -> None:
    for body in (sent(image.tolist()), sent(image.ravel().tolist()), sent(binary=image.tobytes())):
        assert np.array_equal(pixels(*body), image)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5))
def test_elements_come_back_from_every_form(texts: list[bytes]) -> None:
    named: dict[str, Any] = {"datatype": "BYTES", "shape": [len(texts)]}
    encoded = [base64.b64encode(text).decode() for text in texts]
    assert elements(*sent(encoded, **named)) == texts
    assert elements(*sent(binary=prefixed(*texts), **named)) == texts


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["inputs", "outputs", "name", "shape", "datatype", "data", "parameters", "id"]),
            inner,
        )
    ),
    max_leaves=12,
)
INPUT = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("image") | JSON,
        "shape": st.just([2, *SHAPE]) | st.lists(st.integers(-2, 1 << 70), max_size=5) | JSON,
        "datatype": st.sampled_from(["UINT8", "BYTES", "FP32", ""]) | JSON,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers()}) | JSON,
        "data": st.lists(st.integers(-1, 256), max_size=12) | JSON,
    },
)
REQUESTS = st.fixed_dictionaries(
    {"inputs": st.lists(INPUT, max_size=2)}, optional={"outputs": JSON, "id": JSON}
)


@given(
    st.binary(max_size=60) | (REQUESTS | JSON).map(lambda document: json.dumps(document).encode()),
    st.binary(max_size=40),
    st.none() | st.integers(-5, 300).map(str) | st.text(max_size=20),
)
def test_any_bytes_are_a_tensor_or_refused(text: bytes, binary: bytes, header: str | None) -> None:
    for length in (header, str(len(text))):
        try:
            tensor = parsed(bytearray(text + binary), length).input
        except InvalidInput:
            continue
        for act in (lambda: tensor.pixels(SHAPE), lambda: asyncio.run(tensor.elements())):  # noqa: B023
            try:
                assert len(act()) == tensor.shape[0]
            except InvalidInput:
                continue


@pytest.mark.parametrize(
    "changed",
    [
        {"shape": [2, 3, 1, 3]},
        {"shape": [2, 2, 1]},
        {"shape": [-2, *SHAPE]},
        {"shape": [0, *SHAPE]},
        {"shape": []},
        {"shape": [1 << 62, *SHAPE]},
        {"shape": [10**40, *SHAPE]},
        {"shape": "2,2,1,3"},
        {"shape": [2.5, *SHAPE]},
        {"datatype": "FP32"},
        {"datatype": "BYTES"},
        {"datatype": 8},
        {"name": None},
        {"data": PIXELS.tolist()},
        {"parameters": {"binary_data_size": 11}},
        {"parameters": {"binary_data_size": 13}},
        {"parameters": {"binary_data_size": -1}},
        {"parameters": {"binary_data_size": 1 << 80}},
        {"parameters": {"binary_data_size": "12"}},
        {"parameters": {}},
        {"parameters": {"binary_data_size": 12, "shared_memory_region": "r"}},
    ],
    ids=json.dumps,
)
def test_binary_pixels_that_are_not_what_they_say(changed: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        pixels(*sent(binary=PIXELS.tobytes(), **changed))


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        7,
        "text",
        {},
        [*range(11)],
        [*range(13)],
        [256] * 12,
        [-1] * 12,
        [1.5] * 12,
        [True] * 12,
        ["1"] * 12,
        [None] * 12,
        [[*range(12)]],
        [[[[0, 1, 2]], [[3, 4, 5]]], [[[6, 7, 8]], [[9, 10]]]],
        [[[[0, 1, 2, 3, 4, 5]]], [[[6, 7, 8, 9, 10, 11]]]],
    ],
    ids=str,
)
def test_json_pixels_that_do_not_fill_their_shape(data: object) -> None:
    with pytest.raises(InvalidInput):
        pixels(*sent(data))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "binary",
    [b"", b"\1", b"\1\0\0", prefixed(b"ab", b"c")[:-1], prefixed(b"ab", b"c") + b"x", b"\xff" * 9],
    ids=repr,
)
def test_elements_whose_lengths_lie(binary: bytes, count: int) -> None:
    with pytest.raises(InvalidInput):
        elements(*sent(binary=binary, datatype="BYTES", shape=[count]))


@pytest.mark.parametrize("header", ["", "-1", "+5", "1e2", "0", "999999", "9" * 5000, "²", "12, 12"])
def test_a_length_of_the_json_that_lies(header: str) -> None:
    with pytest.raises(InvalidInput):
        parsed(sent(binary=b"x")[0], header)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"\xff", b'{"inputs":[]}', b'{"inputs":{}}', b"[" * 5000]
)
def test_what_is_no_request(text: bytes) -> None:
    with pytest.raises(InvalidInput):
        parsed(bytearray(text))


def test_depth_is_no_danger() -> None:
    deep = b"[" * 90_000 + b"]" * 90_000
    body = b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[2,2,1,3],"data":%s}]}' % deep
    with pytest.raises(InvalidInput):
        pixels(bytearray(body))


def test_two_inputs_are_one_too_many() -> None:
    one = {"name": "image", "shape": [1], "datatype": "UINT8", "data": [1]}
    with pytest.raises(InvalidInput, match="exactly one"):
        parsed(bytearray(json.dumps({"inputs": [one, one]}).encode()))


def test_a_large_tensor_is_to_be_sent_as_binary_data() -> None:
    with pytest.raises(TooLarge, match="binary data"):
        parsed(sent([0] * 100_002)[0])


def test_what_is_large_beside_the_data_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(TooLarge, match="beside the data"):
        parsed(sent([1], name="x" * 2_000_000)[0])


def test_outputs_say_how_they_want_to_come_back() -> None:
    def asked(**more: object) -> Inference:
        body = json.loads(sent([1])[0]) | more
        return parsed(bytearray(json.dumps(body).encode()))

    outputs = [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}]
    default = {"binary_data_output": True, "priority": 5, "mine": {"x": [1]}}
    assert asked().outputs == {}
    assert asked().binary is False
    assert asked(outputs=outputs).outputs == {"a": False, "b": False}
    assert asked(outputs=outputs, parameters=default).outputs == {"a": True, "b": False}
    assert asked(parameters=default).binary is True
    for refused in (
        [{"name": "a"}, {"name": "a"}],
        [{"name": "a", "parameters": {"classification": 3}}],
        [{"name": "a", "parameters": {"shared_memory_region": "r"}}],
    ):
        with pytest.raises(InvalidInput):
            asked(outputs=refused)
