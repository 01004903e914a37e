"""Records as JSON lines: every line by itself, whatever the others are."""

import base64
import json
from collections.abc import AsyncIterator

import numpy as np
import pytest

from appliance.errors import InvalidInput
from appliance.search.interchange import lines
from appliance.search.records import Record

VECTOR = np.array([0.6, 0.8], np.float32)
ENCODED = base64.b64encode(VECTOR.tobytes()).decode()


async def split(content: bytes, size: int, most: int) -> list[bytes | None]:
    async def pieces() -> AsyncIterator[bytes]:
        for low in range(0, len(content), size):
            yield content[low : low + size]

    return [line async for some in lines.split(pieces(), most) for line in some]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
async def test_lines_are_cut_the_same_whatever_the_pieces(size: int) -> None:
    assert await split(b"one\n\ntwo\nthree", size, 5) == [b"one", b"", b"two", b"three"]
    assert await split(b"one\n", size, 5) == [b"one"]
    assert await split(b"a\n" + b"x" * 50 + b"\nb\n", size, 5) == [b"a", None, b"b"]
    assert await split(b"a\n" + b"x" * 50, size, 5) == [b"a", None]


def test_a_record_comes_back_bit_by_bit() -> None:
    alike = {"vector": 1, "_vector": 2, "__vector": 3, "_x": 4}
    record = Record("ü\n", {"a": [1, None, {"b": "\u2028"}], **alike})
    line = lines.encode(record, VECTOR)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    again = lines.decode(line, 2)
    assert (again.id, again.metadata) == (record.id, record.metadata)
    assert again.vector.tobytes() == VECTOR.tobytes()
    beside = lines.decode_beside(lines.encode(record, None), VECTOR)
    assert (beside.id, beside.metadata) == (record.id, record.metadata)
    assert beside.vector is VECTOR


def test_a_vector_may_be_a_list_of_numbers() -> None:
    assert lines.decode(b'{"_id": "a", "_vector": [0.25, -1]}', 2).vector.tolist() == [0.25, -1.0]


def test_an_image_is_not_kept() -> None:
    line = {"_id": "a", "_vector": ENCODED, "_base64": "aW1hZ2U=", "_file": "/home/x.jpg", "n": 1}
    assert lines.decode(json.dumps(line).encode(), 2).metadata == {"n": 1}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b'{"_id": "a"', "not a JSON object"),
        (b'{"_id": "\xff"}', "not a JSON object"),
        (b'{"_id": "a", "_vector": [NaN, 1]}', "not a JSON object"),
        (b"[" * 100_000, "not a JSON object"),
        (b'{"_vector": [1, 2]}', "_id"),
        (b'{"_id": 7, "_vector": [1, 2]}', "_id"),
        (b'{"_id": "a"}', "_vector"),
        (b'{"_id": "a", "_vector": null}', "_vector"),
        (b'{"_id": "a", "_vector": {"0": 1}}', "_vector"),
        (b'{"_id": "a", "_vector": [1, "2"]}', "no number"),
        (b'{"_id": "a", "_vector": [1, true]}', "no number"),
        (b'{"_id": "a", "_vector": [1, [2]]}', "no number"),
        (b'{"_id": "a", "_vector": "?"}', "base64"),
        (b'{"_id": "a", "_vector": "AAAA"}', "8 bytes, not 3"),
    ],
)
def test_what_is_no_record_says_which_field(line: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        lines.decode(line, 2)


def test_beside_an_array_a_line_has_no_vector_of_its_own() -> None:
    with pytest.raises(InvalidInput, match="the array has the vectors"):
        lines.decode_beside(json.dumps({"_id": "a", "_vector": ENCODED}).encode(), VECTOR)
