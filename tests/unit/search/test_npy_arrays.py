"""Arrays as NumPy writes them, read as they come, whatever else a file may hold."""

from collections.abc import AsyncIterator
from io import BytesIO

import numpy as np
import numpy.typing as npt
import pytest

from appliance.errors import InvalidInput
from appliance.search.interchange.npy import Array, header

DIM = 3
ROWS = np.arange(21, dtype=np.float32).reshape(7, DIM)


def saved(array: npt.NDArray[np.generic], version: tuple[int, int] | None = None) -> bytes:
    file = BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


async def pieces(content: bytes, size: int) -> AsyncIterator[bytes]:
    for low in range(0, len(content), size):
        yield content[low : low + size]


async def read(content: bytes, size: int = 5, at_once: int = 2) -> npt.NDArray[np.floating]:
    array = await Array.open(pieces(content, size), DIM)
    blocks = [block async for block in array.blocks(at_once)]
    assert all(len(block) <= at_once for block in blocks)
    return np.concatenate([*blocks, np.empty((0, DIM), np.float16)])


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
async def test_every_float_type_is_read_in_pieces_of_any_size(dtype: str, version: tuple[int, int]) -> None:
    content = saved(ROWS.astype(dtype), version)
    for size, at_once in ((1, 1), (5, 2), (len(content), 100)):
        assert np.array_equal(await read(content, size, at_once), ROWS)


async def test_our_header_is_what_numpy_reads() -> None:
    content = header(7, DIM) + ROWS.tobytes()
    assert np.array_equal(np.load(BytesIO(content)), ROWS)
    assert np.array_equal(await read(content), ROWS)
    assert len(await read(header(0, DIM))) == 0


def described(text: str, version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no array"),
        (b"PK\x03\x04 a zip", "no array"),
        (saved(ROWS, (3, 0)), "version"),
        (saved(ROWS.astype(np.int32)), "not of float16"),
        (saved(ROWS.astype(np.longdouble)), "not of float16"),
        (saved(np.zeros(2, [("a", "<f4"), ("b", "<f4")])), "not of float16"),
        (saved(ROWS[:, :2]), "2 columns"),
        (saved(ROWS.ravel()), "shape"),
        (saved(ROWS.reshape(7, DIM, 1)), "shape"),
        (saved(np.asfortranarray(ROWS)), "Fortran"),
        (described("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3)}\n"), "shape"),
        (described("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), 'more': 1}\n"), "malformed"),
        (described("{'descr': 'O', 'fortran_order': False, 'shape': (1, 3)}\n"), "not of float16"),
        (described("__import__('os').abort()\n"), "malformed"),
        (described("[" * 5000), "malformed"),
        (described("{'descr': '<f4',\n  \tbroken"), "malformed"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "at most 10000"),
        (saved(ROWS)[:-1], "after 6 of its 7 rows"),
        (saved(ROWS) + b"\0", "more bytes"),
        (header(10**18, DIM) + ROWS.tobytes(), "after 7 of its"),
    ],
)
async def test_what_is_no_such_array_says_so(content: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        await read(content)
